//! A job's record: what it is when it is looked at, and the 32 bytes that it is in memory.
//!
//! ```text
//!   Packed   pri u32 │ terms u30, state u2 │ side u32 │ body: offset u32, length u32, entry u48 │ created u48
//!                          │                   └──► Side: counts and mark or hold, of the few jobs that have them
//!                          └──► Terms: tube, delay, ttr, hops and reason, shared by all jobs that are alike in them
//! ```

use std::collections::BTreeMap;

use beanpole_raft::BodyAddr;

use super::policy::Reason;
use super::slab::Slab;
use super::types::JobState;

/// Slots of terms have 30 bits; the state has the two above.
const TERMS_BITS: u32 = 30;
/// The stamp of creation is kept in units of so many microseconds: 48 bits of them reach into the year 2112.
const CREATED_UNIT_US: u64 = 16;
/// Terms of different jobs kept in one chunk.
const CHUNK: usize = 64;

/// One job.
#[derive(Clone, Copy)]
pub(super) struct Record {
    pub body: BodyAddr,
    /// Rounded down to a multiple of 16 once it is kept.
    pub created_us: u64,
    pub pri: u32,
    pub terms: Terms,
}

/// What jobs of one kind have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Terms {
    /// Slot of the tube.
    pub tube: u32,
    pub delay_s: u32,
    pub ttr_s: u32,
    /// How many jobs it descends from: each was held by the session that put the next.
    pub hops: u8,
    pub reason: Reason,
}

impl Record {
    /// Whether its entry's index fits what is kept.
    pub fn fits(&self) -> bool {
        self.body.index < 1 << 48
    }
}

/// See the module.
#[derive(Clone, Copy, Default)]
pub(super) struct Packed {
    pub pri: u32,
    /// State above, slot of the terms below.
    place: u32,
    /// Slot + 1 of its side; 0 while it has none.
    pub side: u32,
    body_offset: u32,
    body_len: u32,
    body_index_low: u32,
    created_low: u32,
    body_index_high: u16,
    created_high: u16,
}

const _: () = assert!(size_of::<Packed>() == 32, "the memory budget of a job counts on it");

impl Packed {
    /// A ready job.
    ///
    /// # Panics
    /// When its entry's index does not fit.
    pub fn new(record: &Record, terms: u32) -> Self {
        let (body_index_high, body_index_low) = split(record.body.index);
        // By a clock that is a century off, all jobs are of the same age.
        let (created_high, created_low) = split((record.created_us / CREATED_UNIT_US).min((1 << 48) - 1));
        Packed {
            pri: record.pri,
            place: terms,
            side: 0,
            body_offset: record.body.offset,
            body_len: record.body.len,
            body_index_low,
            created_low,
            body_index_high,
            created_high,
        }
    }

    pub fn body(&self) -> BodyAddr {
        let index = join(self.body_index_high, self.body_index_low);
        BodyAddr { index, offset: self.body_offset, len: self.body_len }
    }

    pub fn created_us(&self) -> u64 {
        join(self.created_high, self.created_low) * CREATED_UNIT_US
    }

    /// Slot of its terms.
    pub fn terms(&self) -> u32 {
        self.place & ((1 << TERMS_BITS) - 1)
    }

    pub fn set_terms(&mut self, terms: u32) {
        self.place = self.place >> TERMS_BITS << TERMS_BITS | terms;
    }

    pub fn state(&self) -> JobState {
        match self.place >> TERMS_BITS {
            0 => JobState::Ready,
            1 => JobState::Reserved,
            2 => JobState::Delayed,
            _ => JobState::Buried,
        }
    }

    pub fn set_state(&mut self, state: JobState) {
        let bits = match state {
            JobState::Ready => 0,
            JobState::Reserved => 1,
            JobState::Delayed => 2,
            JobState::Buried => 3,
        };
        self.place = self.terms() | bits << TERMS_BITS;
    }
}

fn split(number: u64) -> (u16, u32) {
    (u16::try_from(number >> 32).expect("48 bits last for a century"), number as u32)
}

fn join(high: u16, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// All terms that some job has, each once.
#[derive(Default)]
pub(super) struct TermsTable {
    slab: Slab<Shared, CHUNK>,
    slots: BTreeMap<Terms, u32>,
    /// The slot of the last ones looked for: jobs that come one after the other are often alike.
    last: Option<u32>,
}

#[derive(Clone, Copy, Default)]
struct Shared {
    terms: Terms,
    jobs: u32,
}

impl TermsTable {
    /// Bytes of memory that it holds; those of the tree's nodes by rule of thumb.
    pub fn bytes(&self) -> usize {
        self.slab.bytes() + self.slots.len() * (size_of::<Terms>() + size_of::<u32>()) * 3 / 2
    }

    pub fn get(&self, slot: u32) -> Terms {
        self.slab[slot].terms
    }

    /// Counts one more job with these terms; answers their slot.
    pub fn add(&mut self, terms: Terms) -> u32 {
        let slot = self.find(terms);
        self.slab[slot].jobs += 1;
        self.last = Some(slot);
        slot
    }

    fn find(&mut self, terms: Terms) -> u32 {
        if let Some(last) = self.last
            && self.slab[last].terms == terms
        {
            return last;
        }
        *self.slots.entry(terms).or_insert_with(|| {
            let slot = self.slab.insert(Shared { terms, jobs: 0 });
            assert!(slot < 1 << TERMS_BITS, "jobs take more memory than there is long before");
            slot
        })
    }

    /// Counts one job less.
    pub fn remove(&mut self, slot: u32) {
        let shared = &mut self.slab[slot];
        shared.jobs -= 1;
        if shared.jobs > 0 {
            return;
        }
        let Shared { terms, .. } = self.slab.remove(slot);
        self.slots.remove(&terms);
        self.last = self.last.filter(|last| *last != slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_packing() {
        let body = BodyAddr { index: (1 << 48) - 3, offset: u32::MAX - 1, len: u32::MAX - 2 };
        let record = Record { body, created_us: 1 << 60, pri: u32::MAX, terms: Terms::default() };
        let created_us = (1 << 52) - 16;
        assert!(record.fits());
        let mut packed = Packed::new(&record, (1 << TERMS_BITS) - 1);
        for state in [JobState::Reserved, JobState::Delayed, JobState::Buried, JobState::Ready] {
            packed.set_state(state);
            assert_eq!((packed.body(), packed.created_us(), packed.state()), (body, created_us, state));
            assert_eq!(packed.terms(), (1 << TERMS_BITS) - 1);
        }
        packed.set_state(JobState::Buried);
        packed.set_terms(7);
        assert_eq!((packed.terms(), packed.state()), (7, JobState::Buried));
    }

    #[test]
    fn terms_are_kept_once_and_as_long_as_a_job_has_them() {
        let mut table = TermsTable::default();
        let terms = |delay_s| Terms { tube: 3, delay_s, ttr_s: 60, ..Terms::default() };
        let first = table.add(terms(0));
        let other = table.add(terms(5));
        assert_eq!(table.add(terms(0)), first);
        assert_eq!((table.get(first), table.get(other)), (terms(0), terms(5)));
        table.remove(first);
        assert_eq!(table.add(terms(0)), first);
        table.remove(first);
        table.remove(first);
        table.remove(other);
        assert!(table.slots.is_empty() && table.last.is_none());
    }
}
