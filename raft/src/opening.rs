//! How far a start is, for whoever waits for it.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// A handle to watch a start by. Cloning gives another handle to the same one.
#[derive(Clone, Default)]
pub struct Opening {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    step: AtomicU8,
    done: AtomicU64,
    of: AtomicU64,
}

/// What a start is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpeningStep {
    /// Finds the segments of the log and where it ends.
    Log,
    /// Reads the newest snapshot of the state: so many bytes of how many.
    State {
        /// Read.
        done: u64,
        /// In all.
        of: u64,
    },
    /// Looks for the bodies that the state references.
    Bodies,
    /// Applies the entries after the snapshot: so many of how many.
    Replay {
        /// Applied.
        done: u64,
        /// In all.
        of: u64,
    },
    /// Nothing: the log is open.
    Open,
}

const STATE: u8 = 1;
const BODIES: u8 = 2;
const REPLAY: u8 = 3;
const OPEN: u8 = 4;

impl Opening {
    /// What the start is at now.
    #[must_use]
    pub fn step(&self) -> OpeningStep {
        let shared = &*self.shared;
        let (done, of) = (shared.done.load(Ordering::Relaxed), shared.of.load(Ordering::Relaxed));
        match shared.step.load(Ordering::Relaxed) {
            STATE => OpeningStep::State { done, of },
            BODIES => OpeningStep::Bodies,
            REPLAY => OpeningStep::Replay { done, of },
            OPEN => OpeningStep::Open,
            _ => OpeningStep::Log,
        }
    }

    /// The start is at this now.
    pub(crate) fn begin(&self, step: OpeningStep) {
        let (number, of) = match step {
            OpeningStep::Log => (0, 0),
            OpeningStep::State { of, .. } => (STATE, of),
            OpeningStep::Bodies => (BODIES, 0),
            OpeningStep::Replay { of, .. } => (REPLAY, of),
            OpeningStep::Open => (OPEN, 0),
        };
        self.shared.done.store(0, Ordering::Relaxed);
        self.shared.of.store(of, Ordering::Relaxed);
        self.shared.step.store(number, Ordering::Relaxed);
    }

    /// So much more of it is done.
    pub(crate) fn advance(&self, by: u64) {
        self.shared.done.fetch_add(by, Ordering::Relaxed);
    }

    /// Counts what is read.
    pub(crate) fn counting<R: Read>(&self, reader: R) -> Counting<'_, R> {
        Counting { reader, opening: self }
    }
}

/// A reader whose bytes are counted as progress.
pub(crate) struct Counting<'a, R> {
    reader: R,
    opening: &'a Opening,
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(out)?;
        self.opening.advance(read as u64);
        Ok(read)
    }
}

impl fmt::Display for OpeningStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |done: u64, of: u64| done.saturating_mul(100).checked_div(of).unwrap_or(100).min(100);
        match *self {
            Self::Log => write!(f, "reading the log"),
            Self::State { done, of } => {
                write!(f, "reading the state: {} % of {} MiB", percent(done, of), of.div_ceil(1 << 20))
            }
            Self::Bodies => write!(f, "looking for the bodies that the state needs"),
            Self::Replay { done, of } => {
                write!(f, "applying the log after the snapshot: {} % of {of} entries", percent(done, of))
            }
            Self::Open => write!(f, "the log is open"),
        }
    }
}
