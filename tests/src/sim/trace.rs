//! What happened in a run, as lines with simulated time. Two runs of one seed have the same lines, so the same hash.

use std::fmt::{Display, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The FNV-1a prime and its beginning.
const PRIME: u64 = 0x0000_0100_0000_01B3;
const BEGIN: u64 = 0xCBF2_9CE4_8422_2325;

/// Takes note of events. Clones write to the same trace.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<Inner>>);

struct Inner {
    begun: Instant,
    hash: u64,
    events: u64,
    print: bool,
    line: String,
}

impl Trace {
    /// An empty trace that begins now; `print` shows every line as it comes.
    #[must_use]
    pub fn new(print: bool) -> Self {
        let inner = Inner { begun: Instant::now(), hash: BEGIN, events: 0, print, line: String::new() };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Something has happened.
    pub fn note(&self, what: impl Display) {
        let mut inner = self.0.lock();
        let mut line = std::mem::take(&mut inner.line);
        line.clear();
        write!(line, "{:12.6} {what}", inner.begun.elapsed().as_secs_f64())
            .expect("a string takes everything");
        for byte in line.bytes().chain([b'\n']) {
            inner.hash = (inner.hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
        inner.events += 1;
        if inner.print {
            println!("{line}");
        }
        inner.line = line;
    }

    /// The hash of all lines so far, and how many there were.
    #[must_use]
    pub fn hash(&self) -> (u64, u64) {
        let inner = self.0.lock();
        (inner.hash, inner.events)
    }
}
