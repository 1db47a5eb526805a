//! The receiving side: writes everything under temporary names, in the order in which it comes, and believes
//! nothing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;

use super::totals::Totals;
use super::{
    BEGIN_LEN, DATA_MAX, ENTRY_LEN, FrameKind, IN_PIECES, Progress, Staged, VERSION, WHOLE, parse_frame,
    refused,
};
use crate::body_segment;
use crate::format::{Kind, MAX_PAYLOAD, Position, record_len, u32_at, u64_at};
use crate::machine::MachineShared;
use crate::prepare::is_media_error;
use crate::snapshot::{self, SnapshotFile};

/// A snapshot being received. Dropping it removes what was received.
pub(crate) struct Import {
    shared: Arc<MachineShared>,
    above: u64,
    /// Away while a frame is being written; gone after an error.
    receiver: Option<Box<Receiver>>,
}

impl Import {
    /// Begins to receive: finds out what this node has and needs no more.
    ///
    /// # Errors
    /// When the log has failed.
    pub(crate) async fn begin(shared: &Arc<MachineShared>) -> io::Result<Self> {
        // Counted first, durable then: what is counted is durable.
        let above = shared.log.complete_upto();
        shared.log.flushed().await?;
        let progress = Arc::new(Progress::default());
        let receiver =
            Receiver { shared: shared.clone(), progress, above, number: 0, receiving: None, ended: false };
        Ok(Self { shared: shared.clone(), above, receiver: Some(Box::new(receiver)) })
    }

    /// Up to where this node has everything: what [`super::Export::begin`] is to be told.
    pub(crate) fn above(&self) -> u64 {
        self.above
    }

    /// Takes the next frame. A call that is dropped half-way ends the import: the next one fails.
    ///
    /// # Errors
    /// `InvalidData` when the frame is damaged or not the next one of this transfer, `StorageFull` when there is
    /// no room; both are harmless. The import is over after any error, and what was received is removed.
    pub(crate) async fn frame(&mut self, frame: Bytes) -> io::Result<()> {
        let mut receiver = self.take()?;
        let taken = self.shared.log.blocking(move || receiver.frame(&frame).map(|()| receiver)).await;
        self.receiver = Some(taken.map_err(|error| self.failed(error))?);
        Ok(())
    }

    /// After the last frame: makes everything durable, still under temporary names. The answer is to be given
    /// to `Raft::install_full_snapshot`, which puts it into place; dropping it removes the files.
    ///
    /// # Errors
    /// `InvalidData` when frames are missing; what the disk says.
    pub(crate) async fn finish(mut self) -> io::Result<SnapshotFile> {
        let receiver = self.take()?;
        let finished = self.shared.log.blocking(move || receiver.finish()).await;
        finished.map_err(|error| self.failed(error))
    }

    fn take(&mut self) -> io::Result<Box<Receiver>> {
        self.receiver.take().ok_or_else(|| io::Error::other("the import was given up"))
    }

    /// A disk that fails is no longer to be trusted with anything.
    fn failed(&self, error: io::Error) -> io::Error {
        if is_media_error(&error) {
            self.shared.log.fail(&format!("receiving a snapshot: {error}"), Vec::new());
        }
        error
    }
}

struct Receiver {
    shared: Arc<MachineShared>,
    progress: Arc<Progress>,
    above: u64,
    /// The number of the next frame.
    number: u64,
    /// From the first frame on.
    receiving: Option<Receiving>,
    /// The last frame came.
    ended: bool,
}

impl Receiver {
    fn frame(&mut self, frame: &[u8]) -> io::Result<()> {
        let (kind, data) = parse_frame(frame, self.number)?;
        self.number += 1;
        if self.ended {
            return Err(refused("a frame after the last one"));
        }
        match (kind, &mut self.receiving) {
            (FrameKind::Begin, None) => self.receiving = Some(self.begin(data)?),
            (FrameKind::Entries, Some(receiving)) => receiving.entries(&self.shared, data)?,
            (FrameKind::Image, Some(receiving)) => receiving.image(data)?,
            (FrameKind::End, Some(receiving)) => {
                receiving.end(data)?;
                self.ended = true;
            }
            (FrameKind::Begin, Some(_)) => return Err(refused("a second beginning")),
            (FrameKind::Entries | FrameKind::Image | FrameKind::End, None) => {
                return Err(refused("no beginning"));
            }
        }
        self.progress.add(frame.len());
        if self.ended {
            self.progress.finish();
        }
        Ok(())
    }

    fn begin(&self, data: &[u8]) -> io::Result<Receiving> {
        let short = || refused("a beginning that cannot be read");
        let (fixed, header) = data.split_at_checked(BEGIN_LEN).ok_or_else(short)?;
        if u32_at(fixed, 0) != VERSION {
            let what = format!("version {} of the sender, {VERSION} is known here", u32_at(fixed, 0));
            return Err(refused(&what));
        }
        let above = u64_at(fixed, 8);
        if above > self.above {
            return Err(refused(&format!(
                "it begins after entry {above}, this node has up to {}",
                self.above
            )));
        }
        let meta = snapshot::decode_header(header).map_err(|_| short())?;
        let snapshot = Position::from(meta.last_log_id.ok_or_else(short)?);
        self.progress.set_total(u64_at(fixed, 16));
        let log = &self.shared.log;
        let number = self.shared.preparer.reserve_id();
        let path = snapshot::staging_path(&log.dir, snapshot.index, number);
        let staged = Staged {
            disk: log.disk.clone(),
            image: path.clone(),
            bodies: Vec::new(),
            placed: AtomicBool::new(false),
        };
        Ok(Receiving {
            snapshot,
            last: above,
            image: snapshot::Writer::create(&log.disk, path, &meta)?,
            bodies: None,
            head: Vec::with_capacity(ENTRY_LEN),
            left: 0,
            totals: Totals::default(),
            staged,
        })
    }

    fn finish(self) -> io::Result<SnapshotFile> {
        match self.receiving {
            Some(receiving) if self.ended => receiving.finish(),
            Some(_) | None => Err(refused("it is not complete")),
        }
    }
}

struct Receiving {
    /// Where the snapshot stands.
    snapshot: Position,
    /// The index of the newest entry that came; entries rise.
    last: u64,
    image: snapshot::Writer,
    /// The body segment being written.
    bodies: Option<body_segment::Writer>,
    /// The head of the next entry as far as it came.
    head: Vec<u8>,
    /// How much of an entry's payload is missing.
    left: usize,
    totals: Totals,
    /// What is complete; removed when the import is given up.
    staged: Staged,
}

impl Receiving {
    fn entries(&mut self, shared: &MachineShared, mut data: &[u8]) -> io::Result<()> {
        if self.totals.image_bytes > 0 {
            return Err(refused("an entry after the image"));
        }
        self.totals.hash(data);
        while !data.is_empty() {
            if self.left == 0 {
                let (head, rest) = data.split_at(data.len().min(ENTRY_LEN - self.head.len()));
                self.head.extend_from_slice(head);
                data = rest;
                if self.head.len() == ENTRY_LEN {
                    self.begin_entry(shared)?;
                    self.head.clear();
                }
            } else {
                let (piece, rest) = data.split_at(data.len().min(self.left));
                self.bodies.as_mut().expect("an entry was begun").push(piece)?;
                self.left -= piece.len();
                self.totals.entry_bytes += piece.len() as u64;
                data = rest;
            }
        }
        Ok(())
    }

    fn begin_entry(&mut self, shared: &MachineShared) -> io::Result<()> {
        let position = Position { term: u64_at(&self.head, 8), index: u64_at(&self.head, 0) };
        let len = u32_at(&self.head, 16) as usize;
        let Position { term, index } = self.snapshot;
        if position.index <= self.last || position.index > index || position.term > term {
            return Err(refused(&format!("entry {position:?} after {} in {:?}", self.last, self.snapshot)));
        }
        let kind = match u32_at(&self.head, 20) {
            WHOLE => Kind::Normal,
            IN_PIECES => Kind::Pieces,
            other => return Err(refused(&format!("entry {position:?} of kind {other}"))),
        };
        if len > MAX_PAYLOAD {
            return Err(refused(&format!("entry {position:?} of {len} bytes")));
        }
        let full =
            |bodies: &body_segment::Writer| bodies.len() + record_len(len) > shared.preparer.segment_bytes();
        if self.bodies.as_ref().is_some_and(full) {
            self.seal()?;
        }
        if self.bodies.is_none() {
            let (log, id) = (&shared.log, shared.preparer.reserve_id());
            self.bodies = Some(body_segment::Writer::create(&log.disk, &log.dir, id, self.snapshot)?);
        }
        self.bodies.as_mut().expect("there is one now").begin_entry(kind, position, len)?;
        self.last = position.index;
        self.left = len;
        self.totals.entries += 1;
        Ok(())
    }

    fn seal(&mut self) -> io::Result<()> {
        if let Some(bodies) = self.bodies.take() {
            self.staged.bodies.push(bodies.seal()?);
        }
        Ok(())
    }

    /// Whether an entry is not complete.
    fn within_entry(&self) -> bool {
        self.left > 0 || !self.head.is_empty()
    }

    fn image(&mut self, data: &[u8]) -> io::Result<()> {
        if self.within_entry() {
            return Err(refused("the image within an entry"));
        }
        if data.is_empty() || data.len() > DATA_MAX {
            return Err(refused("an empty piece of the image"));
        }
        self.totals.hash(data);
        self.totals.image_bytes += data.len() as u64;
        self.image.write(data)
    }

    fn end(&mut self, data: &[u8]) -> io::Result<()> {
        if self.within_entry() || data != self.totals.encode() {
            return Err(refused("the totals are not those of what came"));
        }
        self.seal()
    }

    fn finish(self) -> io::Result<SnapshotFile> {
        let file = self.image.finish(Some(Arc::new(self.staged)))?;
        tracing::info!(
            index = self.snapshot.index,
            entries = self.totals.entries,
            entry_bytes = self.totals.entry_bytes,
            image_bytes = self.totals.image_bytes,
            "snapshot received"
        );
        Ok(file)
    }
}
