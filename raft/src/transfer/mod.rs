//! Bringing a node forward by a snapshot, when the log it would need is gone.
//!
//! A snapshot is an image of the state and names bodies by address; they lie in the segments of the node that
//! took it. So the bodies travel with it: every entry above what the receiver has, of all segments in which
//! something is still referenced. Bodies in them that are dead travel along; a segment that is dead as a whole
//! does not.
//!
//! ```text
//!   sender                                                 receiver
//!   Export::begin(snapshot, above) <── above ───────────── Import::above
//!     pins segments and image
//!   next_frame ── Begin, Entries..., Image..., End ──────> Import::frame
//!                                                            *.body.tmp   entries, in body segments
//!                                                            *.snap.tmp   the image
//!                                                          Import::finish ──> SnapshotFile, staged
//!                                                          Raft::install_full_snapshot
//!                                                            Machine::install_snapshot: restore, check that no
//!                                                            body is missing, then the names, and with the
//!                                                            snapshot's own name the new state is in force
//!                                                            purge: the log before it is replaced
//! ```
//!
//! Nothing that was received has any effect before it is installed: a crash before the snapshot has its name
//! leaves the old state, and files that the next start removes. Afterwards the new state is in force, whether
//! or not the log was purged by then: a start finishes that.
//!
//! A frame, little-endian: `0 crc u32  4 kind u8  5 zero [3]  8 number u64  16 data`. Numbers rise by one from 0;
//! the CRC covers what follows it. The data of all `Entries` frames together are one run of bytes,
//! `[index u64][term u64][length u32][kind u32][payload]` per entry, cut anywhere: kind 0 is a whole entry, 1 what is
//! left of one, in pieces. Those of all `Image` frames are the image.

mod export;
mod import;
mod totals;
mod walk;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;

use crate::body_segment::Sealed;
use crate::disk::Disk;
use crate::format::{u32_at, u64_at};
use crate::segment::Segment;

pub(crate) use export::Export;
pub(crate) use import::Import;
pub(crate) use walk::{Walk, with_snapshot_header};

/// The longest frame.
pub(crate) const FRAME_MAX: usize = 256 << 10;
/// Length of a frame without its data.
const HEAD_LEN: usize = 16;
/// The longest data of a frame.
const DATA_MAX: usize = FRAME_MAX - HEAD_LEN;
/// The version of everything in a transfer.
const VERSION: u32 = 1;
/// Length of an entry without its payload.
const ENTRY_LEN: usize = 24;
/// The kind of an entry of which the whole payload comes.
const WHOLE: u32 = 0;
/// The kind of an entry of which pieces come.
const IN_PIECES: u32 = 1;
/// Length of the data of a `Begin` frame before the snapshot's header:
/// `[version u32][zero u32][above u64][total u64]`.
const BEGIN_LEN: usize = 24;
/// Length of the data of an `End` frame: `[entries u64][bytes of entries u64][bytes of image u64][crc u32]`.
/// The CRC is that of the data of all `Entries` and `Image` frames.
const END_LEN: usize = 28;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FrameKind {
    /// What comes: above which index, how many bytes about, and the header of the snapshot file.
    Begin,
    /// Entries.
    Entries,
    /// A piece of the image.
    Image,
    /// Totals.
    End,
}

impl FrameKind {
    fn code(self) -> u8 {
        match self {
            Self::Begin => 1,
            Self::Entries => 2,
            Self::Image => 3,
            Self::End => 4,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Begin),
            2 => Some(Self::Entries),
            3 => Some(Self::Image),
            4 => Some(Self::End),
            0 | 5..=u8::MAX => None,
        }
    }
}

/// An empty frame, to be filled with data and closed.
fn open_frame(capacity: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD_LEN + capacity);
    frame.resize(HEAD_LEN, 0);
    frame
}

/// Completes a frame.
fn close_frame(mut frame: Vec<u8>, kind: FrameKind, number: u64) -> Bytes {
    assert!(frame.len() <= FRAME_MAX, "frames are bounded");
    frame[4] = kind.code();
    frame[8..16].copy_from_slice(&number.to_le_bytes());
    let crc = crc32fast::hash(&frame[4..]);
    frame[..4].copy_from_slice(&crc.to_le_bytes());
    frame.into()
}

/// Kind and data of the frame that must be number `number`.
fn parse_frame(frame: &[u8], number: u64) -> io::Result<(FrameKind, &[u8])> {
    if frame.len() < HEAD_LEN || frame.len() > FRAME_MAX || crc32fast::hash(&frame[4..]) != u32_at(frame, 0) {
        return Err(refused("a damaged frame"));
    }
    let kind = FrameKind::from_code(frame[4]).ok_or_else(|| refused("a frame of an unknown kind"))?;
    if frame[5..8] != [0; 3] || u64_at(frame, 8) != number {
        return Err(refused(&format!("frame {} in place of frame {number}", u64_at(frame, 8))));
    }
    Ok((kind, &frame[HEAD_LEN..]))
}

/// The error of a transfer that cannot be what a node sends.
fn refused(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("snapshot transfer: {what}"))
}

/// How far a transfer is. Read from anywhere.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Bytes sent or received.
    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// How many there will be, about and at most; 0 while that is not known.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.done.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn set_total(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    fn finish(&self) {
        self.total.store(self.done(), Ordering::Relaxed);
    }
}

/// The files of a snapshot that was received and not yet put into place. Dropping it removes them.
pub(crate) struct Staged {
    disk: Arc<dyn Disk>,
    /// The image under its temporary name.
    image: PathBuf,
    bodies: Vec<Sealed>,
    /// They are, or are being, given their names.
    placed: AtomicBool,
}

impl Staged {
    /// Its body segments.
    pub(crate) fn segments(&self) -> Vec<Arc<Segment>> {
        self.bodies.iter().map(|sealed| sealed.segment.clone()).collect()
    }

    /// Gives the body segments their names, durably. The snapshot's own name comes after that.
    ///
    /// # Errors
    /// When the disk fails, or when this was called before.
    pub(crate) fn put_into_place(&self) -> io::Result<()> {
        if self.placed.swap(true, Ordering::SeqCst) {
            return Err(io::Error::other("a received snapshot is installed once"));
        }
        for sealed in &self.bodies {
            sealed.put_into_place(&*self.disk)?;
        }
        match self.image.parent() {
            Some(dir) if !self.bodies.is_empty() => self.disk.sync_dir(dir),
            Some(_) | None => Ok(()),
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.placed.load(Ordering::SeqCst) {
            return;
        }
        // What cannot be removed now is removed by the next start.
        self.disk.unlink(&self.image).ok();
        for sealed in &self.bodies {
            sealed.discard(&*self.disk);
        }
    }
}
