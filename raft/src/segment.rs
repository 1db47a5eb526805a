//! Segments as the running node knows them: an open file, its map, where each entry lies, and how much of it
//! is still referenced.
//!
//! ```text
//! SegmentTable   sealed, sealed, ..., active          in the order of their ids
//!                body segment, body segment, ...      beside them
//! Segment        first index + u32 offset per entry   4 bytes of memory per retained entry
//! ```
//!
//! The ranges of indexes of the log's segments rise and do not overlap: a truncation takes the void entries out
//! of the tables of earlier segments, so a later record of an index wins.
//!
//! Body segments hold what compaction left, or came with a snapshot of another node: entries with gaps, whole or in
//! pieces, of which only the bodies matter. What they hold was committed, while the log of that time may hold other
//! entries under the same indexes that were not, until it is purged. So for a body they come first, the newest of
//! them before the others; for an entry of the log they are not asked.

use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::RwLock;

use crate::disk::{DiskFile, DiskMap};
use crate::format::{self, IN_PIECES, SegmentHeader};

/// One segment file.
pub(crate) struct Segment {
    pub(crate) header: SegmentHeader,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) map: Arc<dyn DiskMap>,
    /// The file's length in bytes.
    pub(crate) capacity: u64,
    /// Seeds the CRC of its records.
    pub(crate) seed: u32,
    entries: RwLock<Entries>,
    /// Where the records end (so far), in bytes.
    end: AtomicU64,
    /// Bytes of bodies in it that the state references.
    live_bytes: AtomicU64,
    /// Number of bodies in it that the state references.
    live: AtomicU64,
    /// The index of the entry whose apply took the last reference away; 0 when there never was one.
    died_at: AtomicU64,
    /// Something in it did not check out: it is not compacted any more, but written anew.
    damaged: AtomicBool,
}

/// Where an entry, or what is left of it, lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// Where its record starts.
    pub(crate) start: u64,
    /// A bound for where it ends: the next entry, or the end.
    pub(crate) end: u64,
    /// Only pieces of it are there: see [`crate::pieces`].
    pub(crate) in_pieces: bool,
}

/// Where the entries of a segment start.
struct Entries {
    /// The index of the first one; without any, the index that the first one will have at least.
    first: u64,
    offsets: Vec<u32>,
    /// The index of each in a body segment; empty in the log's, where they are consecutive.
    indexes: Vec<u64>,
}

impl Entries {
    /// The place of an entry in the table.
    fn place(&self, index: u64) -> Option<usize> {
        let at = if self.indexes.is_empty() {
            usize::try_from(index.checked_sub(self.first)?).ok()?
        } else {
            self.indexes.binary_search(&index).ok()?
        };
        (at < self.offsets.len()).then_some(at)
    }

    /// The index of the entry at a place.
    fn index(&self, place: usize) -> u64 {
        self.indexes.get(place).copied().unwrap_or(self.first + place as u64)
    }

    /// Where the record at a place starts.
    fn start(&self, place: usize) -> Option<u64> {
        self.offsets.get(place).map(|offset| u64::from(offset & !IN_PIECES))
    }

    /// The places of the entries with an index in `range`.
    fn places(&self, range: &RangeInclusive<u64>) -> Range<usize> {
        let below = |index: u64| {
            if self.indexes.is_empty() {
                let places = usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX);
                places.min(self.offsets.len())
            } else {
                self.indexes.partition_point(|at| *at < index)
            }
        };
        let start = below(*range.start());
        start..below(range.end().saturating_add(1)).max(start)
    }
}

impl Segment {
    pub(crate) fn new(
        header: SegmentHeader,
        path: PathBuf,
        file: Arc<dyn DiskFile>,
        capacity: u64,
        first: u64,
    ) -> std::io::Result<Self> {
        let map = file.map(capacity)?;
        Ok(Self {
            header,
            path,
            file,
            map,
            capacity,
            seed: format::seed(header.id, header.epoch),
            entries: RwLock::new(Entries { first, offsets: Vec::new(), indexes: Vec::new() }),
            end: AtomicU64::new(format::HEADER_LEN as u64),
            live_bytes: AtomicU64::new(0),
            live: AtomicU64::new(0),
            died_at: AtomicU64::new(0),
            damaged: AtomicBool::new(false),
        })
    }

    /// Replaces what is known about its entries.
    pub(crate) fn load(&self, first: u64, offsets: Vec<u32>, end: u64) {
        *self.entries.write() = Entries { first, offsets, indexes: Vec::new() };
        self.end.store(end, Ordering::Release);
    }

    /// The same for a body segment: the index of each of its entries, which rise.
    pub(crate) fn load_bodies(&self, indexes: Vec<u64>, offsets: Vec<u32>, end: u64) {
        assert_eq!(indexes.len(), offsets.len(), "every entry has an index and a place");
        let first = indexes.first().copied().unwrap_or(0);
        *self.entries.write() = Entries { first, offsets, indexes };
        self.end.store(end, Ordering::Release);
    }

    /// Adds the places of entries whose records were written, the first of them being `first`.
    pub(crate) fn add(&self, first: u64, offsets: &[u32], end: u64) {
        self.end.store(end, Ordering::Release);
        if offsets.is_empty() {
            return;
        }
        let mut entries = self.entries.write();
        if entries.offsets.is_empty() {
            entries.first = first;
        }
        assert_eq!(
            entries.first + entries.offsets.len() as u64,
            first,
            "a segment's entries are consecutive"
        );
        entries.offsets.extend_from_slice(offsets);
    }

    /// Forgets entries from `index` on.
    fn truncate(&self, index: u64) {
        let mut entries = self.entries.write();
        let keep = index.saturating_sub(entries.first);
        entries.offsets.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
        entries.first = entries.first.min(index);
    }

    /// Gives back memory that the table of a segment that is complete does not need.
    pub(crate) fn shrink(&self) {
        self.entries.write().offsets.shrink_to_fit();
    }

    /// First index and offsets, for the footer.
    pub(crate) fn entries(&self) -> (u64, Vec<u32>) {
        let entries = self.entries.read();
        (entries.first, entries.offsets.clone())
    }

    /// How many entries it holds.
    pub(crate) fn count(&self) -> usize {
        self.entries.read().offsets.len()
    }

    /// The indexes it holds, first and last; `None` when it holds none.
    pub(crate) fn range(&self) -> Option<(u64, u64)> {
        let entries = self.entries.read();
        let last = entries.offsets.len().checked_sub(1)?;
        Some((entries.first, entries.index(last)))
    }

    /// Where the record of `index` starts.
    pub(crate) fn offset(&self, index: u64) -> Option<u64> {
        let entries = self.entries.read();
        entries.place(index).and_then(|at| entries.start(at))
    }

    /// Index and place of the first `limit` of its entries in `range`, in order.
    pub(crate) fn places(&self, range: &RangeInclusive<u64>, limit: usize) -> Vec<(u64, u32)> {
        let entries = self.entries.read();
        let places = entries.places(range).take(limit);
        places.map(|at| (entries.index(at), entries.offsets[at] & !IN_PIECES)).collect()
    }

    /// How many bytes the records from the first to the last entry in `range` take.
    pub(crate) fn bytes_of(&self, range: &RangeInclusive<u64>) -> u64 {
        let entries = self.entries.read();
        let places = entries.places(range);
        if places.is_empty() {
            return 0;
        }
        let end = entries.start(places.end).unwrap_or_else(|| self.end());
        end - entries.start(places.start).unwrap_or(end)
    }

    /// Where the record of `index` lies.
    pub(crate) fn span(&self, index: u64) -> Option<Span> {
        let entries = self.entries.read();
        let at = entries.place(index)?;
        let in_pieces = entries.offsets[at] & IN_PIECES != 0;
        let end = entries.start(at + 1).unwrap_or_else(|| self.end());
        Some(Span { start: entries.start(at)?, end, in_pieces })
    }

    /// Where the entries of `range` start, the first of which it holds: as many as a read of about `limit`
    /// bytes covers, at least the first; and where that read ends.
    pub(crate) fn run(&self, range: Range<u64>, limit: u64) -> (Vec<u32>, u64) {
        let entries = self.entries.read();
        let place = |index: u64| usize::try_from(index - entries.first).unwrap_or(usize::MAX);
        let first = place(range.start);
        let last = place(range.end).min(entries.offsets.len());
        let bound = u64::from(entries.offsets[first]) + limit;
        let fitting = entries.offsets[first..last].partition_point(|start| u64::from(*start) <= bound);
        // The last one that starts within the limit may end beyond it, by no more than its own length.
        let last = first + fitting.max(1);
        let end = entries.offsets.get(last).map_or_else(|| self.end(), |next| u64::from(*next));
        (entries.offsets[first..last].to_vec(), end)
    }

    /// Where its records end, in bytes.
    pub(crate) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Bytes of records of entries after `index`.
    pub(crate) fn bytes_after(&self, index: u64) -> u64 {
        let entries = self.entries.read();
        if entries.offsets.is_empty() {
            return 0;
        }
        let skip = (index + 1).saturating_sub(entries.first);
        match entries.offsets.get(usize::try_from(skip).unwrap_or(usize::MAX)) {
            Some(offset) => self.end() - u64::from(*offset),
            None => 0,
        }
    }

    pub(crate) fn retain(&self, bytes: u64, bodies: u64) {
        self.live_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.live.fetch_add(bodies, Ordering::Relaxed);
    }

    /// Takes a reference away in the apply of entry `at`.
    pub(crate) fn release(&self, bytes: u64, at: u64) {
        let bytes_before = self.live_bytes.fetch_sub(bytes, Ordering::Relaxed);
        let before = self.live.fetch_sub(1, Ordering::Relaxed);
        assert!(
            before > 0 && bytes_before >= bytes,
            "a body is released at most as often as it was retained"
        );
        if before == 1 {
            self.died_at.store(at, Ordering::Relaxed);
        }
    }

    /// Forgets all references.
    pub(crate) fn reset_live(&self) {
        self.live_bytes.store(0, Ordering::Relaxed);
        self.live.store(0, Ordering::Relaxed);
        self.died_at.store(0, Ordering::Relaxed);
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes.load(Ordering::Relaxed)
    }

    /// How many bodies in it the state references.
    pub(crate) fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    /// Takes over the references of the segments that it replaces. Nobody else counts meanwhile.
    fn take_over(&self, replaced: &[Arc<Self>]) {
        for segment in replaced {
            self.retain(segment.live_bytes(), segment.live());
            self.died_at.fetch_max(segment.died_at.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Notes that something in it does not check out: it is not compacted any more, but written anew.
    pub(crate) fn set_damaged(&self) {
        self.damaged.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Whether neither the state nor a snapshot taken at `snapshot` references a body in it.
    pub(crate) fn dead_at(&self, snapshot: u64) -> bool {
        self.live.load(Ordering::Relaxed) == 0 && self.died_at.load(Ordering::Relaxed) <= snapshot
    }
}

/// A body segment, and the indexes it holds, first and last.
struct Bodies {
    segment: Arc<Segment>,
    range: RangeInclusive<u64>,
}

impl Bodies {
    fn new(segment: Arc<Segment>) -> Self {
        let (first, last) = segment.range().unwrap_or((1, 0));
        Self { segment, range: first..=last }
    }
}

/// All segments with records, in order.
#[derive(Default)]
pub(crate) struct SegmentTable {
    segments: RwLock<Vec<Arc<Segment>>>,
    /// Body segments, in the order of their ids.
    bodies: RwLock<Vec<Bodies>>,
    /// The highest index in a body segment: most readers ask for newer entries and need not look there.
    bodies_last: AtomicU64,
    /// Unlinked ones that a reader may still have mapped.
    deleted: RwLock<Vec<Weak<Segment>>>,
}

impl SegmentTable {
    /// Appends a segment; its id must be the highest.
    pub(crate) fn push(&self, segment: Arc<Segment>) {
        let mut segments = self.segments.write();
        let rising = segments.last().is_none_or(|last| last.header.id < segment.header.id);
        assert!(rising, "segment ids rise");
        segments.push(segment);
    }

    /// Voids entries from `index` on, in all segments.
    pub(crate) fn truncate(&self, index: u64) {
        for segment in self.segments.read().iter() {
            segment.truncate(index);
        }
    }

    /// Adds body segments.
    pub(crate) fn adopt(&self, segments: &[Arc<Segment>]) {
        self.insert(&mut self.bodies.write(), segments);
    }

    fn insert(&self, bodies: &mut Vec<Bodies>, segments: &[Arc<Segment>]) {
        bodies.extend(segments.iter().cloned().map(Bodies::new));
        bodies.sort_by_key(|bodies| bodies.segment.header.id);
        let last = bodies.iter().map(|bodies| *bodies.range.end()).max();
        self.bodies_last.store(last.unwrap_or(0), Ordering::Release);
    }

    /// Puts a compacted segment in the place of those that it replaces, in one step for everybody who looks for a
    /// body: the references that are counted for them are counted for it from then on.
    pub(crate) fn replace(&self, ids: &[u64], with: Option<&Arc<Segment>>) -> Vec<Arc<Segment>> {
        let (mut bodies, mut segments) = (self.bodies.write(), self.segments.write());
        let mut gone: Vec<_> = segments.extract_if(.., |segment| ids.contains(&segment.header.id)).collect();
        let of_bodies = bodies.extract_if(.., |bodies| ids.contains(&bodies.segment.header.id));
        gone.extend(of_bodies.map(|bodies| bodies.segment));
        if let Some(with) = with {
            with.take_over(&gone);
            self.insert(&mut bodies, std::slice::from_ref(with));
        }
        drop((bodies, segments));
        self.note_deleted(&gone);
        gone
    }

    fn note_deleted(&self, gone: &[Arc<Segment>]) {
        let mut deleted = self.deleted.write();
        deleted.retain(|segment| segment.strong_count() > 0);
        deleted.extend(gone.iter().map(Arc::downgrade));
    }

    /// The log's segment that holds the entry, and where its record starts.
    pub(crate) fn find(&self, index: u64) -> Option<(Arc<Segment>, u64)> {
        self.in_log(index, |segment, offset| (segment.clone(), offset))
    }

    /// Calls `f` with the segment that holds the bodies of an entry. Segments are not replaced meanwhile.
    pub(crate) fn with_body<R>(&self, index: u64, f: impl FnOnce(&Arc<Segment>) -> R) -> Option<R> {
        let bodies = self.bodies.read();
        match self.among(&bodies, index) {
            Some(segment) => Some(f(segment)),
            None => self.in_log(index, |segment, _| f(segment)),
        }
    }

    /// The segment that holds the bodies of an entry, and the indexes around it for which the same is true if the segment
    /// has an entry of that index at all: there is none, or none that is newer, in other segments.
    pub(crate) fn body_holder(&self, index: u64) -> Option<(Arc<Segment>, RangeInclusive<u64>)> {
        let bodies = self.bodies.read();
        let (mut low, mut high) = (0, u64::MAX);
        // The newest first, as for every reader of a body.
        for Bodies { segment, range } in bodies.iter().rev() {
            if range.contains(&index) {
                if segment.offset(index).is_some() {
                    return Some((segment.clone(), low.max(*range.start())..=high.min(*range.end())));
                }
                // It has others around this one.
                (low, high) = (index, index);
            } else if *range.end() < index {
                low = low.max(range.end() + 1);
            } else {
                high = high.min(range.start().saturating_sub(1));
            }
        }
        self.in_log(index, |segment, _| segment.clone()).map(|segment| (segment, low..=high))
    }

    /// Whether a body segment holds the entry.
    pub(crate) fn in_bodies(&self, index: u64) -> bool {
        index <= self.bodies_last.load(Ordering::Acquire) && self.among(&self.bodies.read(), index).is_some()
    }

    fn among<'a>(&self, bodies: &'a [Bodies], index: u64) -> Option<&'a Arc<Segment>> {
        if index > self.bodies_last.load(Ordering::Acquire) {
            return None;
        }
        let mut near = bodies.iter().rev().filter(|bodies| bodies.range.contains(&index));
        near.find(|bodies| bodies.segment.offset(index).is_some()).map(|bodies| &bodies.segment)
    }

    /// Calls `f` with the log's segment that holds the entry and where its record starts.
    fn in_log<R>(&self, index: u64, f: impl FnOnce(&Arc<Segment>, u64) -> R) -> Option<R> {
        let segments = self.segments.read();
        // Segments without entries may lie between.
        let after = segments.partition_point(|segment| segment.entries.read().first <= index);
        let segment = segments[..after].iter().rev().find(|segment| segment.count() > 0)?;
        segment.offset(index).map(|offset| f(segment, offset))
    }

    /// A copy of the list of the log's segments, in order.
    pub(crate) fn all(&self) -> Vec<Arc<Segment>> {
        self.segments.read().clone()
    }

    /// A copy of the list of body segments.
    pub(crate) fn bodies(&self) -> Vec<Arc<Segment>> {
        self.bodies.read().iter().map(|bodies| bodies.segment.clone()).collect()
    }

    /// How many segments are marked as damaged.
    pub(crate) fn damaged(&self) -> usize {
        let segments = self.all().into_iter().chain(self.bodies());
        segments.filter(|segment| segment.is_damaged()).count()
    }

    /// Takes segments out of the lists; readers that still have them keep the files' space.
    pub(crate) fn remove(&self, ids: &[u64]) -> Vec<Arc<Segment>> {
        self.replace(ids, None)
    }

    /// Bytes of files that are unlinked and still mapped.
    pub(crate) fn pinned_deleted(&self) -> u64 {
        let deleted = self.deleted.read();
        deleted.iter().filter_map(|segment| segment.upgrade()).map(|segment| segment.capacity).sum()
    }
}
