//! Copying the live bodies of some segments into a new one.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Job;
use crate::body_segment::{Sealed, Writer};
use crate::format::{HEAD_LEN, Head, Kind, Position, RecordCrc};
use crate::log::Log;
use crate::payload::BodyAddr;
use crate::pieces::{GAP_MAX, Pieces};
use crate::prepare::Preparer;
use crate::scan::{self, Window};
use crate::segment::{Segment, Span};

/// After so many bytes were written, or [`READS`] times as many read, ...
const STEP: u64 = 256 << 10;
/// ... others have disk and processor for so long.
const PAUSE: Duration = Duration::from_millis(2);
/// A byte that is read, often from memory, holds others up less than one that is written and synced.
const READS: u64 = 4;

/// Why a copy was given up. What was written is removed.
pub(crate) enum Failure {
    /// A record that is needed does not check out.
    Damaged {
        /// The segment.
        segment: Arc<Segment>,
        /// The entry.
        index: u64,
        /// What is wrong.
        what: String,
    },
    /// The node stops.
    Stopping,
    /// The new file cannot be written.
    Disk(io::Error),
}

/// What was copied, durable and not yet in its place.
pub(crate) struct Copied {
    /// `None` when nothing is live.
    pub(super) sealed: Option<Sealed>,
    /// Bodies in it.
    pub(super) bodies: u64,
    /// Its length.
    pub(super) bytes: u64,
}

impl Copied {
    pub(super) fn discard(&self, log: &Log) {
        if let Some(sealed) = &self.sealed {
            sealed.discard(&*log.disk);
        }
    }

    /// Gives the file its name, durably.
    pub(super) fn put_into_place(&self, log: &Log) -> io::Result<Option<Arc<Segment>>> {
        let Some(sealed) = &self.sealed else { return Ok(None) };
        sealed.put_into_place(&*log.disk)?;
        log.disk.sync_dir(&log.dir)?;
        Ok(Some(sealed.segment.clone()))
    }
}

/// Copies the live bodies of `job` into a new segment that belongs to the snapshot at `snapshot`.
pub(super) fn copy(
    log: &Arc<Log>,
    preparer: &Arc<Preparer>,
    job: &Job,
    snapshot: Position,
) -> Result<Copied, Failure> {
    let mut copier = Copier::new(log.clone(), preparer.clone(), snapshot);
    let mut bodies = 0;
    for entry in job.live.chunk_by(|a, b| a.index == b.index) {
        let found = log.table.with_body(entry[0].index, Arc::clone);
        let ours = found.filter(|found| job.segments.iter().any(|segment| Arc::ptr_eq(segment, found)));
        // Else it lies elsewhere: ranges of indexes may overlap where a snapshot was installed.
        let Some(segment) = ours else { continue };
        copier.entry(&segment, entry)?;
        bodies += entry.len() as u64;
    }
    copier.seal(bodies)
}

/// Writes one new segment.
pub(super) struct Copier {
    pub(super) log: Arc<Log>,
    preparer: Arc<Preparer>,
    pub(super) snapshot: Position,
    /// From the first live body on.
    writer: Option<Writer>,
    reading: Option<(Arc<Segment>, Window)>,
    /// Bytes written since the last pause, and a part of those read.
    since_pause: u64,
}

impl Copier {
    pub(super) fn new(log: Arc<Log>, preparer: Arc<Preparer>, snapshot: Position) -> Self {
        Self { log, preparer, snapshot, writer: None, reading: None, since_pause: 0 }
    }

    /// Makes what was written durable; it holds so many bodies.
    pub(super) fn seal(self, bodies: u64) -> Result<Copied, Failure> {
        let sealed = self.writer.map(Writer::seal).transpose().map_err(Failure::Disk)?;
        let bytes = sealed.as_ref().map_or(0, |sealed| sealed.segment.capacity);
        Ok(Copied { sealed, bodies, bytes })
    }

    /// The reader of a segment.
    fn window(&mut self, segment: &Arc<Segment>) -> io::Result<&mut Window> {
        if self.reading.as_ref().is_none_or(|(open, _)| !Arc::ptr_eq(open, segment)) {
            self.reading = Some((segment.clone(), Window::new(segment.file.clone())?));
        }
        Ok(&mut self.reading.as_mut().expect("it was opened a line ago").1)
    }

    /// Copies what is live of one entry.
    pub(super) fn entry(&mut self, segment: &Arc<Segment>, live: &[BodyAddr]) -> Result<(), Failure> {
        let index = live[0].index;
        let damaged = |what: &str| Failure::Damaged {
            segment: segment.clone(),
            index,
            what: format!("entry {index}: {what}"),
        };
        let unread = |error: io::Error| damaged(&error.to_string());
        let span = segment.span(index).ok_or_else(|| damaged("it is not listed"))?;
        let window = self.window(segment).map_err(unread)?;
        let bytes = window.get(span.start, HEAD_LEN).map_err(unread)?.first_chunk::<HEAD_LEN>().copied();
        let head = bytes.and_then(|bytes| Some((Head::parse(&bytes)?, bytes)));
        let (head, bytes) =
            head.filter(|(head, _)| head.index == index).ok_or_else(|| damaged("no such record"))?;
        let cut = cut(segment, &span, &head, live).map_err(unread)?;
        let cut = cut.ok_or_else(|| damaged("a live body is not within it"))?;
        self.begin(Position { term: head.term, index }, &cut)?;
        let crc = RecordCrc::new(segment.seed, &bytes);
        if self.payload(span.start + HEAD_LEN as u64, &head, &cut.ranges, crc, &unread)? {
            return Ok(());
        }
        Err(damaged("a wrong checksum"))
    }

    fn begin(&mut self, position: Position, cut: &Cut) -> Result<(), Failure> {
        if self.writer.is_none() {
            let (log, id) = (&self.log, self.preparer.reserve_id());
            let writer = Writer::create(&log.disk, &log.dir, id, self.snapshot).map_err(Failure::Disk)?;
            self.writer = Some(writer);
        }
        let writer = self.writer.as_mut().expect("there is one now");
        let len = usize::try_from(cut.len).expect("it is not longer than a payload");
        writer.begin_entry(cut.kind, position, len).map_err(Failure::Disk)?;
        if cut.list.is_empty() {
            return Ok(());
        }
        writer.push(&cut.list).map_err(Failure::Disk)
    }

    /// Passes the whole payload through the CRC and copies `ranges` of it; answers whether the CRC is right.
    fn payload(
        &mut self,
        start: u64,
        head: &Head,
        ranges: &[Range<u64>],
        mut crc: RecordCrc,
        unread: &dyn Fn(io::Error) -> Failure,
    ) -> Result<bool, Failure> {
        let (mut at, mut next) = (0, 0);
        let len = u64::from(head.len);
        while at < len {
            let (_, window) = self.reading.as_mut().expect("it is being read");
            let piece = window.get(start + at, 1).map_err(unread)?;
            let piece = &piece[..usize::try_from(len - at).unwrap_or(usize::MAX).min(piece.len())];
            if piece.is_empty() {
                return Ok(false);
            }
            crc.update(piece);
            let end = at + piece.len() as u64;
            let writer = self.writer.as_mut().expect("a record was begun");
            let mut step = piece.len() as u64 / READS;
            while let Some(range) = ranges.get(next).filter(|range| range.start < end) {
                let within = range.start.max(at)..range.end.min(end);
                let place = |at_range: u64| usize::try_from(at_range - at).expect("within the piece");
                if within.start < within.end {
                    writer.push(&piece[place(within.start)..place(within.end)]).map_err(Failure::Disk)?;
                    step += within.end - within.start;
                }
                if range.end > end {
                    break;
                }
                next += 1;
            }
            at = end;
            self.pause(step)?;
        }
        Ok(crc.matches())
    }

    /// Writes bodies of one entry that were brought, in the order of their offsets.
    pub(super) fn pieces(&mut self, position: Position, bodies: &[(BodyAddr, Bytes)]) -> Result<(), Failure> {
        let mut wanted = Pieces::default();
        for (addr, _) in bodies {
            wanted.add(addr.offset..addr.offset + addr.len);
        }
        let (len, list) = (wanted.payload_len(), wanted.encode());
        self.begin(position, &Cut { kind: Kind::Pieces, len, list, ranges: Vec::new() })?;
        let writer = self.writer.as_mut().expect("a record was begun");
        let mut ranges = wanted.ranges().iter();
        let mut left: Option<Range<u32>> = None;
        for (addr, bytes) in bodies {
            if left.as_ref().is_none_or(|left| addr.offset > left.end) {
                left = ranges.next().cloned();
            }
            let left = left.as_mut().expect("a range for every body");
            // A few bytes between two bodies belong to neither.
            let gap = &[0; GAP_MAX as usize][..(addr.offset - left.start) as usize];
            for piece in [gap, bytes].into_iter().filter(|piece| !piece.is_empty()) {
                writer.push(piece).map_err(Failure::Disk)?;
            }
            left.start = addr.offset + addr.len;
        }
        self.pause(len)
    }

    /// Whether the record of an entry checks out as a whole.
    pub(super) fn is_whole(&mut self, segment: &Arc<Segment>, index: u64) -> io::Result<bool> {
        let Some(span) = segment.span(index) else { return Ok(false) };
        let seed = segment.seed;
        let head = scan::whole_record(self.window(segment)?, seed, span.start)?;
        Ok(head.is_some_and(|head| head.index == index))
    }

    fn pause(&mut self, bytes: u64) -> Result<(), Failure> {
        self.since_pause += bytes;
        if self.since_pause < STEP {
            return Ok(());
        }
        self.since_pause = 0;
        if self.log.is_stopping() {
            return Err(Failure::Stopping);
        }
        if !self.log.inline {
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

/// What of a record is kept.
struct Cut {
    kind: Kind,
    /// The length of the new payload.
    len: u64,
    /// What it starts with.
    list: Vec<u8>,
    /// What follows of the old payload.
    ranges: Vec<Range<u64>>,
}

/// Decides what to keep; `None` when a live body is not within the record.
fn cut(segment: &Segment, span: &Span, head: &Head, live: &[BodyAddr]) -> io::Result<Option<Cut>> {
    let mut wanted = Pieces::default();
    for addr in live {
        let Some(end) = addr.offset.checked_add(addr.len) else { return Ok(None) };
        wanted.add(addr.offset..end);
    }
    let ranges: Option<Vec<Range<u64>>> = match head.kind {
        Kind::Normal => {
            let within = |range: &Range<u32>| range.end <= head.len;
            let as_is =
                |range: &Range<u32>| within(range).then(|| u64::from(range.start)..u64::from(range.end));
            wanted.ranges().iter().map(as_is).collect()
        }
        Kind::Pieces => {
            let from = span.start + HEAD_LEN as u64;
            let mut read = |at: u64, out: &mut [u8]| Ok(segment.file.read_at(out, from + at)? == out.len());
            let Some(old) = Pieces::decode(u64::from(head.len), &mut read)? else { return Ok(None) };
            let moved = |range: &Range<u32>| {
                let start = old.place(range)?;
                let end = start + u64::from(range.end - range.start);
                (end <= u64::from(head.len)).then_some(start..end)
            };
            wanted.ranges().iter().map(moved).collect()
        }
        Kind::State
        | Kind::Blank
        | Kind::Membership
        | Kind::Vote
        | Kind::Truncate
        | Kind::Purge
        | Kind::Committed
        | Kind::Footer => None,
    };
    let Some(ranges) = ranges else { return Ok(None) };
    if wanted.payload_len() >= u64::from(head.len) {
        let len = u64::from(head.len);
        return Ok(Some(Cut {
            kind: head.kind,
            len,
            list: Vec::new(),
            ranges: std::iter::once(0..len).collect(),
        }));
    }
    Ok(Some(Cut { kind: Kind::Pieces, len: wanted.payload_len(), list: wanted.encode(), ranges }))
}
