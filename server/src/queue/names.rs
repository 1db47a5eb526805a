//! From a tube's name to its slot. The one hash table of the engine, and this module offers no way to walk
//! it: its order can reach nothing that is replicated. The hasher is fixed, which changes nothing but is one
//! thing less to think about.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

type Shard = HashMap<Arc<str>, u32, BuildHasherDefault<DefaultHasher>>;

/// Growing copies one shard only: with 100,000 tubes that is some 1,500 entries.
const SHARDS: usize = 64;

/// See the module.
pub(super) struct Names {
    shards: Box<[Shard]>,
}

impl Default for Names {
    fn default() -> Self {
        Names { shards: std::iter::repeat_with(Shard::default).take(SHARDS).collect() }
    }
}

impl Names {
    /// The slot of the tube with that name.
    pub fn get(&self, name: &str) -> Option<u32> {
        self.shards[shard(name)].get(name).copied()
    }

    /// Notes a new tube.
    pub fn insert(&mut self, name: Arc<str>, slot: u32) {
        let before = self.shards[shard(&name)].insert(name, slot);
        debug_assert!(before.is_none(), "a name is one tube's");
    }

    /// Forgets a tube.
    pub fn remove(&mut self, name: &str) {
        self.shards[shard(name)].remove(name);
    }
}

/// Names tend to differ at their end; any choice is correct.
fn shard(name: &str) -> usize {
    name.bytes().rev().take(4).fold(name.len(), |sum, byte| sum * 31 + usize::from(byte)) % SHARDS
}
