//! The newest entries of the log, in memory: apply takes committed entries from here, and bodies that were
//! just put are handed out from here.
//!
//! Bounded in bytes. openraft applies and reads what was *submitted*, which may not be written yet, so an
//! entry leaves only after its `pwrite` returned; when everything in it waits for that, appends wait too.

use std::collections::VecDeque;

use crate::types::Entry;

/// What an entry costs besides its payload, roughly.
const ENTRY_COST: usize = 128;

/// Consecutive entries, the newest last.
pub(crate) struct Ring {
    entries: VecDeque<Slot>,
    /// What the entries cost, in bytes.
    bytes: usize,
    limit: usize,
    /// Entries appended with a number up to this one are written.
    written: u64,
    /// The number of the newest append.
    appended: u64,
}

struct Slot {
    entry: Entry,
    /// Numbers every append ever made, so that a re-appended index is not taken for its void predecessor.
    number: u64,
}

fn cost(entry: &Entry) -> usize {
    let payload = match &entry.payload {
        openraft::EntryPayload::Normal(payload) => payload.len(),
        openraft::EntryPayload::Blank | openraft::EntryPayload::Membership(_) => 0,
    };
    payload + ENTRY_COST
}

impl Ring {
    pub(crate) fn new(limit: usize) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, limit, written: 0, appended: 0 }
    }

    /// Whether an append has to wait: what is not yet written fills it.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= self.limit && self.entries.front().is_some_and(|slot| slot.number > self.written)
    }

    /// What its entries cost, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends an entry and answers its number. Older entries make room when they are written.
    pub(crate) fn push(&mut self, entry: Entry) -> u64 {
        if self.entries.back().is_some_and(|last| last.entry.log_id.index + 1 != entry.log_id.index) {
            // A jump, after a snapshot replaced the log.
            self.clear();
        }
        self.appended += 1;
        self.bytes += cost(&entry);
        self.entries.push_back(Slot { entry, number: self.appended });
        self.evict();
        self.appended
    }

    /// Says that appends up to `number` are written.
    pub(crate) fn written(&mut self, number: u64) {
        self.written = self.written.max(number);
        self.evict();
    }

    /// Drops entries from `index` on.
    pub(crate) fn truncate(&mut self, index: u64) {
        while self.entries.back().is_some_and(|slot| slot.entry.log_id.index >= index) {
            let slot = self.entries.pop_back();
            self.bytes -= slot.map_or(0, |slot| cost(&slot.entry));
        }
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    pub(crate) fn get(&self, index: u64) -> Option<&Entry> {
        let first = self.entries.front()?.entry.log_id.index;
        let at = usize::try_from(index.checked_sub(first)?).ok()?;
        self.entries.get(at).map(|slot| &slot.entry)
    }

    fn evict(&mut self) {
        let written = self.written;
        while self.bytes > self.limit && self.entries.front().is_some_and(|slot| slot.number <= written) {
            let slot = self.entries.pop_front();
            self.bytes -= slot.map_or(0, |slot| cost(&slot.entry));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Kind, Position};
    use crate::types::record_entry;

    fn entry(term: u64, index: u64, len: usize) -> Entry {
        record_entry(Kind::Normal, Position { term, index }, vec![0; len].into()).unwrap()
    }

    /// Entries stay until written, however full it is, and leave oldest first afterwards.
    #[test]
    fn leaves_after_written() {
        let mut ring = Ring::new(1000);
        for index in 5..10 {
            ring.push(entry(1, index, 400));
        }
        assert!(ring.is_full() && ring.get(5).is_some());
        ring.written(3);
        assert!(ring.get(7).is_none() && ring.get(8).is_some());
        assert!(ring.is_full());
        ring.written(5);
        assert!(!ring.is_full() && ring.get(9).is_some() && ring.get(10).is_none());
    }

    /// A truncated index that is appended again is not written because its predecessor was.
    #[test]
    fn truncation_is_not_confused() {
        let mut ring = Ring::new(100);
        let old = ring.push(entry(1, 1, 400));
        ring.truncate(1);
        ring.push(entry(2, 1, 400));
        ring.written(old);
        assert_eq!(ring.get(1).unwrap().log_id.committed_leader_id().term, 2);
        assert!(ring.is_full());
    }
}
