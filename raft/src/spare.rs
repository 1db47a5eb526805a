//! Segment files that are no longer needed and serve again as segments: what they hold need not be overwritten first, so in
//! a steady flow every byte of the log is written once.
//!
//! ```text
//! dead segment ──rename──> ID.seg.tmp ──nobody reads it any more──> new header, synced ──rename──> the next segment
//!                                     └──not needed for a while, or the disk is nearly full──> unlinked
//! ```
//!
//! A start removes those that are there: temporary files are.

use std::path::PathBuf;
use std::sync::Weak;
use std::time::{Duration, Instant};

use crate::recover::TEMPORARY;
use crate::segment::Segment;

/// So many files are kept at most.
const FILES_MAX: usize = 4;
/// A file that was not needed for so long is given back.
pub(crate) const KEPT_FOR: Duration = Duration::from_secs(30);

/// A segment file that waits for its next life.
pub(crate) struct Spare {
    pub(crate) path: PathBuf,
    /// Seeds the CRCs of the records in it.
    pub(crate) seed: u32,
    /// Somebody may still read it.
    readers: Weak<Segment>,
    since: Instant,
}

impl Spare {
    /// What a segment is renamed to; it leaves the table before.
    pub(crate) fn of(segment: &std::sync::Arc<Segment>) -> Self {
        let path = segment.path.with_extension(TEMPORARY.trim_start_matches('.'));
        let readers = std::sync::Arc::downgrade(segment);
        Self { path, seed: segment.seed, readers, since: Instant::now() }
    }
}

/// Those that there are, the oldest first.
#[derive(Default)]
pub(crate) struct Spares(Vec<Spare>);

impl Spares {
    pub(crate) fn has_room(&self) -> bool {
        self.0.len() < FILES_MAX
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn add(&mut self, spare: Spare) {
        self.0.push(spare);
    }

    /// The oldest that nobody reads.
    pub(crate) fn take(&mut self) -> Option<Spare> {
        let at = self.0.iter().position(|spare| spare.readers.strong_count() == 0)?;
        Some(self.0.remove(at))
    }

    /// Those that were kept for long enough; with `pressed` all of them.
    pub(crate) fn expired(&mut self, pressed: bool) -> Vec<Spare> {
        self.0.extract_if(.., |spare| pressed || spare.since.elapsed() >= KEPT_FOR).collect()
    }
}
