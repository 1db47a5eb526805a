//! What does not check out on this node's disk, and what becomes of it.
//!
//! ```text
//!   read that does not check out ──┐
//!   scrub, compaction ─────────────┴─> segment marked ──> keeper: written anew, what is bad of it from peers
//!   the reader meanwhile: the same body from a peer
//! ```
//!
//! Nothing that does not check out is handed on. A segment that is marked stays as it is until another one has taken
//! its place, durably.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use crate::cluster::Cluster;
use crate::segment::Segment;

/// Tells whether bytes are a body as it was put, by what they contain.
pub type BodyCheck = fn(&[u8]) -> bool;

/// Bodies that are asked for at the same time; further readers wait. A disk that goes bad is no flood for the others.
const ASKS_MAX: usize = 4;
/// Places that are remembered, so that each is counted and logged once. Beyond that they are again.
const PLACES_MAX: usize = 4096;

/// What was found since the start.
pub(crate) struct Damage {
    /// How a body is told to be whole; without it its record's CRC has to do.
    pub(crate) check: Option<BodyCheck>,
    /// The way to the peers, as long as the node runs; `None` for a lone voter.
    cluster: Mutex<Option<Weak<Cluster>>>,
    pub(crate) asking: Semaphore,
    /// Segments and places in them that were found damaged.
    places: Mutex<BTreeSet<(u64, u64)>>,
    /// The last one found: the file, the offset, and what is wrong.
    last: Mutex<Option<(PathBuf, u64, String)>>,
    /// A segment was marked.
    pub(crate) due: Notify,
    found: AtomicU64,
    fetched: AtomicU64,
    healed: AtomicU64,
    lost: AtomicU64,
}

/// Who else may have what is damaged here.
pub(crate) enum Peers {
    /// This node is a lone voter.
    None,
    /// The node stops.
    Gone,
    Some(Arc<Cluster>),
}

/// Damage on this node's disk, since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DamageTotals {
    /// Places in segments that did not check out or could not be read.
    pub found: u64,
    /// Bodies that came from peers in the place of such.
    pub fetched: u64,
    /// Segments that were written anew, durably, so that nothing damaged is left of them.
    pub healed: u64,
    /// How often every voter answered that it has not got a body either.
    pub lost: u64,
}

impl Damage {
    pub(crate) fn new(check: Option<BodyCheck>) -> Self {
        Self {
            check,
            cluster: Mutex::default(),
            asking: Semaphore::new(ASKS_MAX),
            places: Mutex::default(),
            last: Mutex::default(),
            due: Notify::new(),
            found: AtomicU64::new(0),
            fetched: AtomicU64::new(0),
            healed: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    /// Hands over the way to the peers.
    pub(crate) fn set_cluster(&self, cluster: &Arc<Cluster>) {
        *self.cluster.lock() = Some(Arc::downgrade(cluster));
    }

    pub(crate) fn peers(&self) -> Peers {
        match &*self.cluster.lock() {
            None => Peers::None,
            Some(cluster) => cluster.upgrade().map_or(Peers::Gone, Peers::Some),
        }
    }

    /// The same for the record of an entry.
    pub(crate) fn note_entry(&self, segment: &Segment, index: u64, what: &str) {
        self.note(segment, Some(index), segment.offset(index).unwrap_or(0), what);
    }

    /// Notes that something at `offset` of a segment does not check out: the segment is to be written anew.
    pub(crate) fn note(&self, segment: &Segment, index: Option<u64>, offset: u64, what: &str) {
        let first = {
            let mut places = self.places.lock();
            if places.len() >= PLACES_MAX {
                places.clear();
            }
            places.insert((segment.header.id, offset))
        };
        *self.last.lock() = Some((segment.path.clone(), offset, what.to_owned()));
        if first {
            self.found.fetch_add(1, Ordering::Relaxed);
            let file = segment.path.display();
            tracing::error!(%file, offset, index, what, "damage on this disk; what is damaged is not served");
        }
        if !segment.is_damaged() {
            segment.set_damaged();
            self.due.notify_one();
        }
    }

    /// The last damage found in a file: its name, the offset, and what is wrong.
    pub(crate) fn last(&self) -> Option<(PathBuf, u64, String)> {
        self.last.lock().clone()
    }

    pub(crate) fn count_fetched(&self, bodies: u64) {
        self.fetched.fetch_add(bodies, Ordering::Relaxed);
    }

    /// Notes that a segment was written anew.
    pub(crate) fn count_healed(&self, segment: u64) {
        self.healed.fetch_add(1, Ordering::Relaxed);
        self.places.lock().retain(|(id, _)| *id != segment);
    }

    pub(crate) fn count_lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn totals(&self) -> DamageTotals {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        DamageTotals {
            found: load(&self.found),
            fetched: load(&self.fetched),
            healed: load(&self.healed),
            lost: load(&self.lost),
        }
    }
}
