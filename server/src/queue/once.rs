//! Puts with a key: one that comes again within a window is answered with the first one's id, and puts nothing.
//!
//! ```text
//!   put-once k ─► known in this tube, and not too long ago? ── yes ──► INSERTED, the id of then
//!                        └── no ──► put ─► window: [ (stamp, tube + key) ... ]   oldest first
//! ```
//!
//! The window is bounded in time and in keys; what is beyond it is forgotten, a few keys with each such put. A key that
//! is forgotten puts again: so a client must not try for longer than the window. A put that was refused leaves no key.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::decode::Put;
use super::engine::Engine;

/// The window, in microseconds, unless it is set.
pub const ONCE_WINDOW_US: u64 = 600_000_000;
/// Keys in the window, unless it is set.
pub const ONCE_KEYS: u64 = 65_536;
/// Keys that a window may be set to hold, at most: some 40 MiB of memory.
pub const ONCE_KEYS_MAX: u64 = 262_144;
/// Keys forgotten with one put, at most, while the window has been made smaller.
const FORGOTTEN_AT_ONCE: usize = 8;
/// What a key costs beside its bytes: a tree's and a queue's entry, and the counts of what they share.
const KEY_COST: usize = 96;

/// A tube's name, a space, and a key: neither has a space in it.
type Name = Arc<[u8]>;

/// Keys of late, and the puts that they stand for.
pub(super) struct Once {
    pub window_us: u64,
    pub keys_max: u64,
    /// The stamp at which it was put, and its id.
    ids: BTreeMap<Name, (u64, u64)>,
    /// The oldest first.
    order: VecDeque<(u64, Name)>,
    /// Bytes of all names.
    name_bytes: usize,
}

impl Default for Once {
    fn default() -> Self {
        Once::new(ONCE_WINDOW_US, ONCE_KEYS)
    }
}

impl Once {
    pub fn new(window_us: u64, keys_max: u64) -> Self {
        Once { window_us, keys_max, ids: BTreeMap::new(), order: VecDeque::new(), name_bytes: 0 }
    }

    /// Whether it is as in a state that never had a key.
    pub fn is_plain(&self) -> bool {
        self.order.is_empty() && (self.window_us, self.keys_max) == (ONCE_WINDOW_US, ONCE_KEYS)
    }

    /// Stamp, name and id of each key, the oldest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u64, &[u8], u64)> {
        self.order.iter().map(|(at, name)| (*at, &**name, self.ids[name].1))
    }

    /// Notes a key that is not in it.
    pub fn add(&mut self, at: u64, name: &[u8], id: u64) {
        let name: Name = name.into();
        self.name_bytes += name.len();
        self.ids.insert(name.clone(), (at, id));
        self.order.push_back((at, name));
    }

    /// Bytes of memory that it holds; those of the tree's nodes by rule of thumb.
    pub fn bytes(&self) -> usize {
        self.name_bytes + self.order.len() * KEY_COST
    }

    /// The id of a key that is known now.
    fn known(&self, now: u64, name: &[u8]) -> Option<u64> {
        let (at, id) = self.ids.get(name)?;
        (now.saturating_sub(*at) <= self.window_us).then_some(*id)
    }

    /// Forgets some of the oldest keys, and this one if it is there: one more has room then.
    fn make_room(&mut self, now: u64, name: &[u8]) {
        for _ in 0..FORGOTTEN_AT_ONCE {
            let Some((at, _)) = self.order.front() else { return };
            let is_full = self.order.len() as u64 >= self.keys_max;
            if !is_full && now.saturating_sub(*at) <= self.window_us {
                break;
            }
            self.forget(0);
        }
        if let Some((at, _)) = self.ids.get(name) {
            let first = self.order.partition_point(|(other, _)| other < at);
            let place = (first..self.order.len()).find(|place| *self.order[*place].1 == *name);
            self.forget(place.expect("a key that is known is in the order, at its stamp"));
        }
    }

    /// Forgets the key at a place in the order.
    fn forget(&mut self, place: usize) {
        if let Some((_, name)) = self.order.remove(place) {
            self.ids.remove(&name);
            self.name_bytes -= name.len();
        }
    }
}

impl Engine {
    /// The window of `put-once`: microseconds and keys at most, and how many keys there are.
    #[must_use]
    pub fn once_window(&self) -> (u64, u64, usize) {
        (self.once.window_us, self.once.keys_max, self.once.order.len())
    }

    pub(super) fn set_once(&mut self, window_us: u64, keys: u64) {
        self.once.window_us = window_us;
        self.once.keys_max = keys.clamp(1, ONCE_KEYS_MAX);
    }

    /// The job of the first put with this key, if the window has it.
    pub(super) fn first_of(&self, put: &Put<'_>) -> Option<u64> {
        self.once.known(self.stamp, &name_of(put.tube, put.key?))
    }

    /// The put with this key was taken.
    pub(super) fn note_first(&mut self, put: &Put<'_>, id: u64) {
        if let Some(key) = put.key {
            let name = name_of(put.tube, key);
            self.once.make_room(self.stamp, &name);
            self.once.add(self.stamp, &name, id);
        }
    }
}

fn name_of(tube: &str, key: &str) -> Vec<u8> {
    [tube.as_bytes(), b" ", key.as_bytes()].concat()
}
