//! A durable place for puts while no server takes any.
//!
//! ```text
//!   Producer ── no node takes it ──► thread ──► segments on disk ──► Spooled
//!      ▲                                │
//!      └── a node serves: in order, at a rate that rises slowly, under each record's key
//! ```

mod ramp;
mod record;
mod store;
mod thread;

pub(crate) use ramp::Ramp;
pub(crate) use record::Record;
pub(crate) use thread::{Replayed, Spool, Stored, now_ms};

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// When what is spooled is written through to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// Before the put's outcome is told: [`Outcome::Spooled`](crate::Outcome::Spooled) survives a power cut. Puts that come
    /// together share one.
    EachPut,
    /// At the latest so long after a put: what was spooled survives the end of the process, and all but this last time survives
    /// that of the machine.
    Every(Duration),
}

/// Where and how a [`Producer`](crate::Producer) keeps puts while no node takes them.
///
/// What is spooled is put at least once. Each has a key, so that a replay that was cut off (by a lost connection, or the
/// end of the program) and is repeated makes no second job, where the server knows `put-once` and for as long as it remembers
/// the key: a Beanpole ten minutes, if nothing else was set. Spooled puts keep their order among themselves; puts that
/// come when nodes serve again do not wait for them.
#[derive(Clone, Debug)]
pub struct SpoolSettings {
    /// Its directory, used by one producer at a time; made if there is none.
    pub directory: PathBuf,
    /// How long a put waits for a node before it goes to the spool, if the producer's deadline is not shorter. While nodes
    /// have taken nothing since, further puts go there at once. 1 s.
    pub patience: Duration,
    /// Bytes of files at most; beyond that puts are refused with
    /// [`Rejection::SpoolFull`](crate::Rejection::SpoolFull). 256 MiB.
    pub bytes_max: u64,
    /// Puts that were spooled longer ago are dropped, and counted. 24 h.
    pub age_max: Duration,
    /// When a file is full and the next one begun. 4 MiB.
    pub segment_bytes: u64,
    /// When to fsync. Before each put's outcome.
    pub fsync: Fsync,
    /// How many puts a second are replayed at first, when a node takes puts again, and after each refusal for want of room. 50.
    pub rate_first: u32,
    /// How many puts a second are replayed at most: the rate doubles every second. 1,000.
    pub rate_max: u32,
}

impl SpoolSettings {
    /// A spool in this directory, with the defaults named at each field.
    pub fn new(directory: impl Into<PathBuf>) -> SpoolSettings {
        SpoolSettings {
            directory: directory.into(),
            patience: Duration::from_secs(1),
            bytes_max: 256 << 20,
            age_max: Duration::from_secs(24 * 3600),
            segment_bytes: 4 << 20,
            fsync: Fsync::EachPut,
            rate_first: 50,
            rate_max: 1000,
        }
    }

    fn age_max_ms(&self) -> u64 {
        u64::try_from(self.age_max.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Why a spool cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Another producer uses the directory.
    #[error("another producer uses the spool {directory}")]
    InUse {
        /// Which.
        directory: PathBuf,
    },
    /// The system refused.
    #[error("the spool {directory} cannot be used: {source}")]
    Io {
        /// Which.
        directory: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What a spool holds and has done since its producer's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpoolCounts {
    /// Puts that are on disk and not yet acknowledged by a server, now.
    pub unfinished: u64,
    /// Bytes of its files, now.
    pub bytes: u64,
    /// Puts that were spooled.
    pub spooled: u64,
    /// Spooled puts that a server has acknowledged.
    pub replayed: u64,
    /// Spooled puts that were dropped because they were older than [`SpoolSettings::age_max`].
    pub dropped_old: u64,
    /// Spooled puts that were dropped because a server refused them for good.
    pub dropped_refused: u64,
    /// Spooled puts that were dropped because their bytes no longer check out.
    pub damaged: u64,
    /// Puts that were refused because the spool was full; their callers were told.
    pub refused_full: u64,
}

#[derive(Debug, Default)]
pub(crate) struct SpoolCounters {
    /// Records that were not handed out.
    pub(crate) waiting: AtomicU64,
    unfinished: AtomicU64,
    bytes: AtomicU64,
    spooled: AtomicU64,
    replayed: AtomicU64,
    dropped_old: AtomicU64,
    dropped_refused: AtomicU64,
    damaged: AtomicU64,
    refused_full: AtomicU64,
}

impl SpoolCounters {
    pub(crate) fn read(&self) -> SpoolCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SpoolCounts {
            unfinished: get(&self.unfinished),
            bytes: get(&self.bytes),
            spooled: get(&self.spooled),
            replayed: get(&self.replayed),
            dropped_old: get(&self.dropped_old),
            dropped_refused: get(&self.dropped_refused),
            damaged: get(&self.damaged),
            refused_full: get(&self.refused_full),
        }
    }
}
