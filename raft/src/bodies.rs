//! Reading and accounting of bodies.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};

use crate::damage::DamageTotals;
use crate::error::BodyError;
use crate::format::{HEAD_LEN, Head};
use crate::log::Log;
use crate::payload::BodyAddr;
use crate::pieces::{self, Found};
use crate::prepare::Preparer;
use crate::repair;
use crate::scan::{self, Window};
use crate::segment::{Segment, Span};
use crate::space::Space;

/// A handle to read bodies and to say which are still referenced. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Bodies {
    log: Arc<Log>,
    preparer: Arc<Preparer>,
}

impl Bodies {
    pub(crate) fn new(log: Arc<Log>, preparer: Arc<Preparer>) -> Self {
        Self { log, preparer }
    }

    /// Appends the bytes at `addr` to `out` when that needs no disk: they are in the ring of recent entries,
    /// or in a mapped page that is resident. Answers `false`, and leaves `out` alone, when they are cold.
    ///
    /// # Errors
    /// [`BodyError::Unknown`] when no retained entry holds that range.
    pub fn read_now(&self, addr: BodyAddr, out: &mut BytesMut) -> Result<bool, BodyError> {
        if self.read_ring(addr, out)? {
            return Ok(true);
        }
        let read = self.log.table.with_body(addr.index, |segment| copy_resident(segment, addr, out));
        match read {
            Some(Found::At(_)) => Ok(true),
            Some(Found::Cold) => Ok(false),
            Some(Found::Absent) | None => Err(BodyError::Unknown(addr)),
        }
    }

    /// Reads a body wherever it is, on the blocking pool, or at once where the node does all IO on the runtime.
    ///
    /// # Errors
    /// As [`Bodies::read_blocking`]; [`BodyError::Io`] also when the runtime goes down meanwhile.
    pub async fn read(&self, addr: BodyAddr) -> Result<Bytes, BodyError> {
        let bodies = self.clone();
        let read = self.log.blocking(move || Ok(bodies.read_blocking(addr))).await;
        read.unwrap_or_else(|source| Err(BodyError::Io { addr, source }))
    }

    /// Reads a body wherever it is. May block on the disk: call it on the blocking pool. It reads through the
    /// file and not through the map: a media error is an error then, and not a signal that ends the process.
    ///
    /// # Errors
    /// [`BodyError::Unknown`] when no retained entry holds that range, [`BodyError::Io`] when the disk fails.
    pub fn read_blocking(&self, addr: BodyAddr) -> Result<Bytes, BodyError> {
        read(&self.log, addr)
    }

    /// A body that could not be read, or does not check out, from wherever it is whole: from this disk if it was only
    /// the reading that failed, else from a peer. This disk's copy is repaired later. Takes some seconds at most, and no
    /// longer than peers need to answer. What it gives has passed [`crate::Options::body_check`].
    ///
    /// # Errors
    /// [`BodyError::Lost`] when every voter has answered that it has not got it, [`BodyError::Unavailable`] when
    /// somebody who may have it has not answered.
    pub async fn recover(&self, addr: BodyAddr) -> Result<Bytes, BodyError> {
        let log = self.log.clone();
        let own = self.log.blocking(move || Ok(look_again(&log, addr))).await;
        match own {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) | Err(_) => repair::fetch_one(&self.log, addr).await,
        }
    }

    /// Damage found on this node's disk, and what became of it, since the start. Cheap.
    #[must_use]
    pub fn damage(&self) -> DamageTotals {
        self.log.damage.totals()
    }

    /// Appends the bytes at `addr` when the ring has them.
    fn read_ring(&self, addr: BodyAddr, out: &mut BytesMut) -> Result<bool, BodyError> {
        read_ring(&self.log, addr, out)
    }

    /// Says that the state references the body from now on: its segment stays. Call it during apply.
    pub fn retain(&self, addr: BodyAddr) {
        self.log.retain(addr.index, u64::from(addr.len));
    }

    /// Says that the state no longer references the body. Call it during apply, once per `retain`. The bytes
    /// stay readable until the segment goes, which is not before the next durable snapshot.
    ///
    /// # Panics
    /// When it was not retained.
    pub fn release(&self, addr: BodyAddr) {
        self.log.release(addr.index, u64::from(addr.len));
    }

    /// What the node takes on, by the room on its disk. Not [`Space::Open`] means that what adds to what is kept should
    /// be refused; what takes away is to be proposed as ever, it has a reserve. Becomes open by itself when there is room.
    /// Cheap.
    #[must_use]
    pub fn space(&self) -> Space {
        self.preparer.space()
    }

    /// What the log and its bodies occupy now. Takes time in proportion to the number of segments.
    #[must_use]
    pub fn disk_usage(&self) -> DiskUsage {
        let mut segments = self.log.table.all();
        let bodies = self.log.table.bodies();
        let compaction = &self.log.compaction;
        let mut usage = DiskUsage {
            segments: (segments.len() + bodies.len()) as u64,
            body_segments: bodies.len() as u64,
            logged_bytes: self.log.written_bytes(),
            rewritten_bytes: compaction.written.load(Ordering::Relaxed),
            compacted_bytes: compaction.gained.load(Ordering::Relaxed),
            pinned_deleted: self.log.table.pinned_deleted(),
            space: self.space(),
            free_bytes: self.log.disk.space(&self.log.dir).ok().flatten().map(|space| space.free),
            ..DiskUsage::default()
        };
        segments.extend(bodies);
        for segment in &segments {
            usage.damaged_segments += u64::from(segment.is_damaged());
            usage.log_bytes += segment.capacity;
            usage.body_bytes += segment.end();
            usage.live_bytes += segment.live_bytes();
        }
        usage.dead_bytes = usage.body_bytes.saturating_sub(usage.live_bytes);
        usage
    }
}

/// Reads a body through the file. May block.
fn read(log: &Log, addr: BodyAddr) -> Result<Bytes, BodyError> {
    let mut out = BytesMut::new();
    if read_ring(log, addr, &mut out)? {
        return Ok(out.freeze());
    }
    let segment = log.table.with_body(addr.index, Arc::clone).ok_or(BodyError::Unknown(addr))?;
    let failed = |source| BodyError::Io { addr, source };
    let mut read = |at: u64, out: &mut [u8]| match segment.file.read_at(out, at) {
        Ok(read) if read == out.len() => Ok(true),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(source) => Err(source),
    };
    let Found::At(start) = place(&segment, addr, &mut read).map_err(failed)? else {
        return Err(BodyError::Unknown(addr));
    };
    let mut bytes = vec![0; addr.len as usize];
    read(start, &mut bytes).map_err(failed)?;
    Ok(bytes.into())
}

/// Appends the bytes at `addr` when the ring has them. What is in a body segment is not taken from there:
/// the ring may still hold an entry that was never committed under the same index.
fn read_ring(log: &Log, addr: BodyAddr, out: &mut BytesMut) -> Result<bool, BodyError> {
    if log.table.in_bodies(addr.index) {
        return Ok(false);
    }
    match log.ring_bytes(addr.index, addr.offset as usize, addr.len as usize, out) {
        Some(false) => Err(BodyError::Unknown(addr)),
        found => Ok(found.is_some()),
    }
}

/// Reads a body; `None` when it does not check out. May block.
pub(crate) fn read_sound(log: &Log, addr: BodyAddr) -> Result<Option<Bytes>, BodyError> {
    let bytes = read(log, addr)?;
    let sound = match log.damage.check {
        Some(check) => check(&bytes),
        None => entry_is_whole(log, addr.index).map_err(|source| BodyError::Io { addr, source })?,
    };
    Ok(sound.then_some(bytes))
}

/// Whether all of the entry that bodies of this index are read from checks out. Memory does.
fn entry_is_whole(log: &Log, index: u64) -> io::Result<bool> {
    let in_ring = !log.table.in_bodies(index) && log.ring_bytes(index, 0, 0, &mut BytesMut::new()).is_some();
    let Some((segment, span)) =
        log.table.with_body(index, |segment| Some((segment.clone(), segment.span(index)?))).flatten()
    else {
        return Ok(in_ring);
    };
    let mut window = Window::new(segment.file.clone())?;
    let head = scan::whole_record(&mut window, segment.seed, span.start)?;
    Ok(in_ring || head.is_some_and(|head| head.index == index))
}

/// The term of an entry, as its record says.
pub(crate) fn term_of(log: &Log, index: u64) -> Option<u64> {
    let (segment, span) =
        log.table.with_body(index, |segment| Some((segment.clone(), segment.span(index)?))).flatten()?;
    let mut bytes = [0; HEAD_LEN];
    let read = segment.file.read_at(&mut bytes, span.start).ok()?;
    Head::parse(&bytes[..read]).filter(|head| head.index == index).map(|head| head.term)
}

/// Reads a body that did not check out once more. What is damaged is noted.
fn look_again(log: &Log, addr: BodyAddr) -> Option<Bytes> {
    let what = match read_sound(log, addr) {
        Ok(Some(bytes)) => return Some(bytes),
        Ok(None) => format!("the body at {} of the entry has a wrong checksum", addr.offset),
        // It was let go meanwhile, or was never here: that says nothing about the disk.
        Err(BodyError::Unknown(_)) => return None,
        Err(error) => error.to_string(),
    };
    if let Some(segment) = log.table.with_body(addr.index, Arc::clone) {
        log.damage.note_entry(&segment, addr.index, &what);
    }
    None
}

/// Where in the file a body starts; absent when it is not within what is left of its entry.
fn place(segment: &Segment, addr: BodyAddr, read: pieces::Read<'_>) -> io::Result<Found> {
    let Some(span) = segment.span(addr.index) else { return Ok(Found::Absent) };
    if span.in_pieces {
        let Some(end) = addr.offset.checked_add(addr.len) else { return Ok(Found::Absent) };
        let found = pieces::find(span.end - span.start, &(addr.offset..end), &mut |at, out| {
            read(span.start + at, out)
        })?;
        return Ok(match found {
            Found::At(at) => Found::At(span.start + at),
            Found::Absent | Found::Cold => found,
        });
    }
    let start = span.start + HEAD_LEN as u64 + u64::from(addr.offset);
    Ok(if start + u64::from(addr.len) <= span.end { Found::At(start) } else { Found::Absent })
}

/// Whether a body is within what is left of its entry, unless only pieces are left of that. What is left of an entry is what
/// was live, so there is no need to look, and a start need not read every list of pieces.
pub(crate) fn is_within(span: Span, addr: BodyAddr) -> bool {
    let end = u64::from(addr.offset) + u64::from(addr.len);
    span.in_pieces || span.start + HEAD_LEN as u64 + end <= span.end
}

/// Appends a body when all that must be read for it is in memory.
fn copy_resident(segment: &Segment, addr: BodyAddr, out: &mut BytesMut) -> Found {
    let mut piece = BytesMut::new();
    let mut read = |at: u64, to: &mut [u8]| {
        let resident = segment.map.resident(at, to.len());
        if resident {
            piece.clear();
            segment.map.copy(at, to.len(), &mut piece);
            to.copy_from_slice(&piece);
        }
        Ok(resident)
    };
    // What is wrong is told by the reading that may block.
    let found = place(segment, addr, &mut read).unwrap_or(Found::Cold);
    let Found::At(start) = found else { return found };
    if !segment.map.resident(start, addr.len as usize) {
        return Found::Cold;
    }
    segment.map.copy(start, addr.len as usize, out);
    found
}

/// Bytes and files of the log, for statistics and for admission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Size of the segment files in use.
    pub log_bytes: u64,
    /// Bytes of records in them.
    pub body_bytes: u64,
    /// Bytes of bodies that the state references.
    pub live_bytes: u64,
    /// `body_bytes` less `live_bytes`: what a purge or a compaction could give back.
    pub dead_bytes: u64,
    /// Number of segments, the active one included.
    pub segments: u64,
    /// Body segments among them: what compaction left, and what came with a snapshot.
    pub body_segments: u64,
    /// Bytes of segment files that are deleted but still mapped by a reader.
    pub pinned_deleted: u64,
    /// Bytes of records written to the log since the start.
    pub logged_bytes: u64,
    /// Bytes of segments that compaction wrote since the start.
    pub rewritten_bytes: u64,
    /// Bytes of files that compaction gave back since the start, less what it wrote.
    pub compacted_bytes: u64,
    /// Segments in which something did not check out, as long as they are not written anew.
    pub damaged_segments: u64,
    /// What is free on the disk; `None` when nothing bounds it, or it does not tell.
    pub free_bytes: Option<u64>,
    /// What the node takes on by that.
    pub space: Space,
}
