//! Tubes: their jobs in order, their counters, their pause.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::names::Names;
use super::runs::Runs;
use super::slab::Slab;

/// The name of the tube that always is.
pub(super) const DEFAULT: &str = "default";

/// The order of hand-out: priority, then age. Twelve bytes, hence the halves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct ReadyKey {
    pub pri: u32,
    high: u32,
    low: u32,
}

impl ReadyKey {
    pub fn new(pri: u32, id: u64) -> Self {
        ReadyKey { pri, high: (id >> 32) as u32, low: id as u32 }
    }
    pub fn id(self) -> u64 {
        u64::from(self.high) << 32 | u64::from(self.low)
    }
}

/// A time or a place in an order, and whose it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct TimeKey {
    pub at: u64,
    pub id: u64,
}

/// One tube.
#[derive(Default)]
pub(super) struct Tube {
    pub name: Arc<str>,
    /// Counts tubes in the order of their creation; never used twice.
    pub born: u64,
    pub ready: Runs<ReadyKey>,
    /// By due stamp.
    pub delayed: Runs<TimeKey>,
    /// In the order of burying.
    pub buried: Runs<TimeKey>,
    pub urgent: u64,
    pub reserved: u64,
    pub total_jobs: u64,
    pub cmd_delete: u64,
    pub cmd_pause: u64,
    /// Seconds of the pause in force.
    pub pause_s: u32,
    /// Stamp at which the pause ends; 0 = not paused.
    pub pause_until_us: u64,
    /// What concerns only the entry being applied.
    pub now: Now,
}

/// A tube's part in the entry being applied; each field counts only if its number is the entry's.
#[derive(Default)]
pub(super) struct Now {
    /// It is in the list of tubes that got ready jobs.
    pub ready_noted: u64,
    /// It is in the list of tubes that lost jobs.
    pub lost_noted: u64,
    /// Offers wait for it: first and last link of their list.
    pub offered: u64,
    pub first_link: u32,
    pub last_link: u32,
}

impl Tube {
    pub fn is_paused(&self) -> bool {
        self.pause_until_us != 0
    }
    /// Jobs it holds.
    pub fn jobs(&self) -> u64 {
        (self.ready.len() + self.delayed.len() + self.buried.len()) as u64 + self.reserved
    }
    /// What it would hand out next.
    pub fn next_ready(&self) -> Option<ReadyKey> {
        if self.is_paused() { None } else { self.ready.first() }
    }
}

/// All tubes.
#[derive(Default)]
pub(super) struct Tubes {
    slab: Slab<Tube, 32>,
    names: Names,
    /// Slots in the order of creation.
    order: BTreeMap<u64, u32>,
}

impl Tubes {
    pub fn find(&self, name: &str) -> Option<u32> {
        self.names.get(name)
    }

    pub fn by_name(&self, name: &[u8]) -> Option<&Tube> {
        let slot = self.find(std::str::from_utf8(name).ok()?)?;
        Some(&self.slab[slot])
    }

    pub fn insert(&mut self, tube: Tube) -> u32 {
        let (name, born) = (tube.name.clone(), tube.born);
        let slot = self.slab.insert(tube);
        self.names.insert(name, slot);
        self.order.insert(born, slot);
        slot
    }

    pub fn remove(&mut self, slot: u32) {
        let tube = self.slab.remove(slot);
        self.names.remove(&tube.name);
        self.order.remove(&tube.born);
    }

    pub fn get(&self, slot: u32) -> &Tube {
        &self.slab[slot]
    }

    pub fn get_mut(&mut self, slot: u32) -> &mut Tube {
        &mut self.slab[slot]
    }

    /// The tube, if it is still there.
    pub fn if_there(&self, slot: u32) -> Option<&Tube> {
        self.slab.get(slot)
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn of_birth(&self, born: u64) -> Option<u32> {
        self.order.get(&born).copied()
    }

    /// In the order of creation, from one of them on.
    pub fn born_since(&self, born: u64) -> impl Iterator<Item = (u32, &Tube)> {
        self.order.range(born..).map(|(_, slot)| (*slot, &self.slab[*slot]))
    }
}
