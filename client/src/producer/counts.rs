//! What a producer has done so far.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of a producer since its start. Each only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProducerCounts {
    /// Puts that ended as inserted.
    pub inserted: u64,
    /// Puts that ended as rejected.
    pub rejected: u64,
    /// Puts that ended as unknown.
    pub unknown: u64,
    /// Puts that ended as spooled; see [`SpoolCounts`](crate::SpoolCounts).
    pub spooled: u64,
    /// Times that a put was sent again: after a lost connection, or after it was refused for a while.
    pub retries: u64,
    /// `OUT_OF_MEMORY` and `DRAINING` heard.
    pub refusals: u64,
    /// Connections that came about.
    pub connects: u64,
    /// Connections that were lost or given up.
    pub losses: u64,
}

/// The counters themselves, shared by the producer's task and its handles.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) inserted: AtomicU64,
    pub(super) rejected: AtomicU64,
    pub(super) unknown: AtomicU64,
    pub(super) spooled: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) refusals: AtomicU64,
    pub(super) connects: AtomicU64,
    pub(super) losses: AtomicU64,
}

/// Counts one.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    pub(super) fn read(&self) -> ProducerCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ProducerCounts {
            inserted: get(&self.inserted),
            rejected: get(&self.rejected),
            unknown: get(&self.unknown),
            spooled: get(&self.spooled),
            retries: get(&self.retries),
            refusals: get(&self.refusals),
            connects: get(&self.connects),
            losses: get(&self.losses),
        }
    }
}
