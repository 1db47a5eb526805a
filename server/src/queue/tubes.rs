//! Tubes: their jobs in order, their counters, their pause.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::names::Names;
use super::policy::Policy;
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
    /// Bytes that its jobs' bodies take in the log. Derived.
    pub bytes: u64,
    /// Limits and rules for it. Derived.
    pub policy: Option<Arc<Policy>>,
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
    /// Bytes of memory that its orders hold.
    pub fn order_bytes(&self) -> usize {
        self.ready.bytes() + self.delayed.bytes() + self.buried.bytes()
    }
    /// What it would hand out next.
    pub fn next_ready(&self) -> Option<ReadyKey> {
        if self.is_paused() || self.room() == 0 { None } else { self.ready.first() }
    }
    /// How many jobs it may hand out, whether it has them or not.
    pub fn room(&self) -> u64 {
        match &self.policy {
            Some(policy) if policy.pause_output => 0,
            Some(policy) if policy.max_reserved > 0 => policy.max_reserved.saturating_sub(self.reserved),
            Some(_) | None => u64::MAX,
        }
    }
}

/// All tubes.
#[derive(Default)]
pub(super) struct Tubes {
    slab: Slab<Tube, 32>,
    names: Names,
    /// Slots in the order of creation.
    order: BTreeMap<u64, u32>,
    /// Bytes of memory that all tubes' orders hold.
    order_bytes: usize,
    /// Bytes of all tubes' names.
    name_bytes: usize,
}

/// What a tube costs beside its record and its name: entries of a tree and of a hash table, and a name's counts.
const TUBE_COST: usize = 96;

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
        self.order_bytes += tube.order_bytes();
        self.name_bytes += name.len();
        let slot = self.slab.insert(tube);
        self.names.insert(name, slot);
        self.order.insert(born, slot);
        slot
    }

    pub fn remove(&mut self, slot: u32) {
        let tube = self.slab.remove(slot);
        self.order_bytes -= tube.order_bytes();
        self.name_bytes -= tube.name.len();
        self.names.remove(&tube.name);
        self.order.remove(&tube.born);
    }

    pub fn get(&self, slot: u32) -> &Tube {
        &self.slab[slot]
    }

    /// For all but the orders of its jobs: see [`Tubes::reorder`].
    pub fn get_mut(&mut self, slot: u32) -> &mut Tube {
        &mut self.slab[slot]
    }

    /// Changes the orders of a tube's jobs, and keeps account of their memory.
    pub fn reorder<R>(&mut self, slot: u32, change: impl FnOnce(&mut Tube) -> R) -> R {
        let tube = &mut self.slab[slot];
        let before = tube.order_bytes();
        let result = change(tube);
        self.order_bytes = self.order_bytes + tube.order_bytes() - before;
        result
    }

    /// Bytes of memory that they hold.
    pub fn bytes(&self) -> usize {
        self.slab.bytes() + self.order_bytes + self.name_bytes + self.order.len() * TUBE_COST
    }

    /// Bytes of memory that all tubes' orders hold, counted anew.
    pub fn order_bytes_recounted(&self) -> (usize, usize) {
        (self.order_bytes, self.born_since(0).map(|(_, tube)| tube.order_bytes()).sum())
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
