//! The sending side.
//!
//! Entries come from two rows of segments, the log's and the body segments, merged by index. Everything that is
//! read was pinned at the start: segments by their `Arc`, which keeps their files open, the image by an open
//! file. Purges and removals go on meanwhile and change nothing here but when disk space is freed.

use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;

use super::totals::Totals;
use super::{
    DATA_MAX, ENTRY_LEN, FrameKind, IN_PIECES, Progress, VERSION, WHOLE, close_frame, open_frame, refused,
};
use crate::format::{HEAD_LEN, Head, Kind, RecordCrc};
use crate::log::Log;
use crate::machine::MachineShared;
use crate::scan::Window;
use crate::segment::Segment;
use crate::snapshot::{self, ImageReader, SnapshotFile};

/// A snapshot on its way to another node, as a sequence of frames.
pub(crate) struct Export {
    log: Arc<Log>,
    progress: Arc<Progress>,
    /// Keeps the log behind the snapshot.
    _hold: LogHold,
    /// Away while a frame is being made; gone after an error.
    sender: Option<Box<Sender>>,
}

impl Export {
    /// Begins to send `snapshot`, which must be this node's current one, to a node that has everything up to
    /// the index `above` (0: nothing), as its [`super::Import::above`] says. Pins what will be read, and until
    /// this is dropped the log that follows the snapshot is not purged (within limits, see the keeper): keep it
    /// until the receiver has installed the snapshot, so that it can go on from there.
    ///
    /// # Errors
    /// `NotFound` when `snapshot` is not the current one any more: ask for that and begin again. Else what the
    /// disk says.
    pub(crate) async fn begin(
        shared: &Arc<MachineShared>,
        snapshot: &SnapshotFile,
        above: u64,
    ) -> io::Result<Self> {
        let (shared, snapshot) = (shared.clone(), snapshot.clone());
        let log = shared.log.clone();
        let progress = Arc::new(Progress::default());
        let counted = progress.clone();
        let hold = LogHold::new(log.clone(), snapshot.index());
        let sender = log.blocking(move || Sender::new(&shared, &snapshot, above, counted)).await?;
        Ok(Self { log, progress, _hold: hold, sender: Some(Box::new(sender)) })
    }

    /// How far it is.
    pub(crate) fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// The next frame, at most [`super::FRAME_MAX`] bytes; `None` after the last one. A call that is dropped
    /// half-way ends the export: the next one fails.
    ///
    /// # Errors
    /// When a segment or the image cannot be read or is damaged. The export is over then.
    pub(crate) async fn next_frame(&mut self) -> io::Result<Option<Bytes>> {
        let mut sender = self.sender.take().ok_or_else(|| io::Error::other("the export was given up"))?;
        let made = self.log.blocking(move || sender.next_frame().map(|frame| (sender, frame)));
        let (sender, frame) = made.await?;
        self.sender = Some(sender);
        Ok(frame)
    }
}

/// What a frame takes besides entries and image, at most.
const FRAME_COST: u64 = 64;
/// Frames of a transfer without data that fills any.
const FRAMES_MIN: u64 = 4;
/// How many places of entries are looked up at once.
const PLACES_MAX: usize = 256;

/// Keeps the log after an index from being purged, as long as it lives.
struct LogHold {
    log: Arc<Log>,
    after: u64,
}

impl LogHold {
    fn new(log: Arc<Log>, after: u64) -> Self {
        log.holds.lock().push(after);
        Self { log, after }
    }
}

impl Drop for LogHold {
    fn drop(&mut self) {
        let mut holds = self.log.holds.lock();
        if let Some(at) = holds.iter().position(|after| *after == self.after) {
            holds.swap_remove(at);
        }
    }
}

struct Sender {
    /// The number of the next frame.
    number: u64,
    stage: Stage,
    /// The log's segments, and the body segments.
    rows: [Row; 2],
    /// The entry of which some bytes were sent.
    sending: Option<Sending>,
    image: ImageReader,
    totals: Totals,
    progress: Arc<Progress>,
}

enum Stage {
    /// The data of the first frame.
    Begin(Vec<u8>),
    Entries,
    Image,
    End,
    Over,
}

impl Sender {
    fn new(
        shared: &MachineShared,
        snapshot: &SnapshotFile,
        above: u64,
        progress: Arc<Progress>,
    ) -> io::Result<Self> {
        let superseded = || io::Error::new(io::ErrorKind::NotFound, "the snapshot is not the current one");
        let is_current = || shared.current().is_some_and(|current| current.path == snapshot.path);
        let table = &shared.log.table;
        let (log, bodies) = (table.all(), table.bodies());
        let image = snapshot.image()?;
        let image_size = snapshot.size()?;
        // Segments that it references are removed after it was replaced only: while it is current, the list is
        // complete.
        if !is_current() {
            return Err(superseded());
        }
        let upto = snapshot.index();
        let wanted = above.saturating_add(1)..=upto;
        let rows = [log, bodies].map(|segments| Row::new(&shared.log, segments, &wanted, upto));
        let data = rows.iter().map(Row::bytes).sum::<u64>() + image_size;
        progress.set_total(data + (data / DATA_MAX as u64 + FRAMES_MIN) * FRAME_COST);
        let mut begin = Vec::new();
        begin.extend_from_slice(&VERSION.to_le_bytes());
        begin.extend_from_slice(&[0; 4]);
        begin.extend_from_slice(&above.to_le_bytes());
        begin.extend_from_slice(&progress.total().to_le_bytes());
        begin.extend_from_slice(&snapshot::encode_header(&snapshot.meta));
        Ok(Self {
            number: 0,
            stage: Stage::Begin(begin),
            rows,
            sending: None,
            image,
            totals: Totals::default(),
            progress,
        })
    }

    fn next_frame(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match &mut self.stage {
                Stage::Begin(begin) => {
                    let mut frame = open_frame(begin.len());
                    frame.append(begin);
                    self.stage = Stage::Entries;
                    return Ok(Some(self.close(frame, FrameKind::Begin)));
                }
                Stage::Entries => {
                    let mut frame = open_frame(DATA_MAX);
                    self.fill_entries(&mut frame)?;
                    if frame.len() > super::HEAD_LEN {
                        return Ok(Some(self.close(frame, FrameKind::Entries)));
                    }
                    self.stage = Stage::Image;
                }
                Stage::Image => {
                    let mut frame = open_frame(DATA_MAX);
                    let read = (&mut self.image).take(DATA_MAX as u64).read_to_end(&mut frame)?;
                    self.totals.image_bytes += read as u64;
                    if read > 0 {
                        return Ok(Some(self.close(frame, FrameKind::Image)));
                    }
                    self.stage = Stage::End;
                }
                Stage::End => {
                    let mut frame = open_frame(super::END_LEN);
                    frame.extend_from_slice(&self.totals.encode());
                    self.stage = Stage::Over;
                    let frame = self.close(frame, FrameKind::End);
                    self.progress.finish();
                    return Ok(Some(frame));
                }
                Stage::Over => return Ok(None),
            }
        }
    }

    fn close(&mut self, frame: Vec<u8>, kind: FrameKind) -> Bytes {
        match kind {
            FrameKind::Entries | FrameKind::Image => self.totals.hash(&frame[super::HEAD_LEN..]),
            FrameKind::Begin | FrameKind::End => {}
        }
        self.progress.add(frame.len());
        let number = self.number;
        self.number += 1;
        close_frame(frame, kind, number)
    }

    /// Appends entries until the frame is full or there are no more.
    fn fill_entries(&mut self, frame: &mut Vec<u8>) -> io::Result<()> {
        loop {
            let room = super::FRAME_MAX - frame.len();
            match &mut self.sending {
                None if room < ENTRY_LEN => return Ok(()),
                None => match self.next_entry()? {
                    Some(sending) => self.announce(sending, frame),
                    None => return Ok(()),
                },
                Some(_) if room == 0 => return Ok(()),
                Some(sending) => {
                    let copied = sending.copy(&mut self.rows[sending.row], room, frame)?;
                    self.totals.entry_bytes += copied as u64;
                    if sending.left == 0 {
                        let sending = self.sending.take().expect("it is being sent");
                        let row = sending.row;
                        sending.check(&self.rows[row])?;
                    }
                }
            }
        }
    }

    fn announce(&mut self, sending: Sending, frame: &mut Vec<u8>) {
        let head = &sending.head;
        frame.extend_from_slice(&head.index.to_le_bytes());
        frame.extend_from_slice(&head.term.to_le_bytes());
        frame.extend_from_slice(&head.len.to_le_bytes());
        let kind = if head.kind == Kind::Pieces { IN_PIECES } else { WHOLE };
        frame.extend_from_slice(&kind.to_le_bytes());
        self.totals.entries += 1;
        self.sending = Some(sending);
    }

    /// The entry with the next index, of whichever row; what both have is the same.
    fn next_entry(&mut self) -> io::Result<Option<Sending>> {
        loop {
            let next = [self.rows[0].peek()?, self.rows[1].peek()?];
            let Some(lowest) = next.iter().flatten().min().copied() else { return Ok(None) };
            let row = usize::from(next[1] == Some(lowest));
            let sending = self.rows[row].take(row)?;
            if next[0] == next[1] {
                self.rows[0].skip();
            }
            // Other entries carry no body.
            if matches!(sending.head.kind, Kind::Normal | Kind::Pieces) {
                return Ok(Some(sending));
            }
        }
    }
}

/// Segments in the order of their entries.
struct Row {
    log: Arc<Log>,
    wanted: RangeInclusive<u64>,
    segments: std::vec::IntoIter<Arc<Segment>>,
    /// Index and place of the next entries of the segment being read.
    places: std::iter::Peekable<std::vec::IntoIter<(u64, u32)>>,
    reading: Option<(Arc<Segment>, Window)>,
}

impl Row {
    /// The segments that have any entry of `wanted`, but not those in which neither the state nor the snapshot
    /// at `snapshot` references anything.
    fn new(
        log: &Arc<Log>,
        mut segments: Vec<Arc<Segment>>,
        wanted: &RangeInclusive<u64>,
        snapshot: u64,
    ) -> Self {
        segments.retain(|segment| segment.bytes_of(wanted) > 0 && !segment.dead_at(snapshot));
        segments.sort_by_key(|segment| segment.range());
        Self {
            log: log.clone(),
            wanted: wanted.clone(),
            segments: segments.into_iter(),
            places: Vec::new().into_iter().peekable(),
            reading: None,
        }
    }

    /// How many bytes the segments not yet read will give at most.
    fn bytes(&self) -> u64 {
        self.segments.as_slice().iter().map(|segment| segment.bytes_of(&self.wanted)).sum()
    }

    /// The index of the next entry.
    fn peek(&mut self) -> io::Result<Option<u64>> {
        loop {
            if let Some((index, _)) = self.places.peek() {
                return Ok(Some(*index));
            }
            if let Some((segment, _)) = &self.reading {
                let more = segment.places(&self.wanted, PLACES_MAX);
                if !more.is_empty() {
                    self.places = more.into_iter().peekable();
                    continue;
                }
            }
            let Some(segment) = self.segments.next() else { return Ok(None) };
            let window = Window::new(segment.file.clone())?;
            self.reading = Some((segment, window));
        }
    }

    /// Leaves the next entry out.
    fn skip(&mut self) {
        self.next_place();
    }

    fn next_place(&mut self) -> Option<(u64, u32)> {
        let place = self.places.next();
        if let Some((index, _)) = place {
            self.wanted = index + 1..=*self.wanted.end();
        }
        place
    }

    /// Begins to read the next entry; `row` is this row's number.
    fn take(&mut self, row: usize) -> io::Result<Sending> {
        let (index, offset) = self.next_place().expect("an entry was seen");
        let (segment, window) = self.reading.as_mut().expect("its segment is open");
        let offset = u64::from(offset);
        let read = window.get(offset, HEAD_LEN).map(|bytes| bytes.first_chunk::<HEAD_LEN>().copied());
        // That it cannot be read is damage, too.
        let head_bytes = read.unwrap_or(None);
        let head = head_bytes.and_then(|bytes| Some((Head::parse(&bytes)?, bytes)));
        match head.filter(|(head, _)| head.kind.holds_bodies() && head.index == index) {
            Some((head, bytes)) => Ok(Sending {
                row,
                head,
                at: offset + HEAD_LEN as u64,
                left: head.len as usize,
                crc: RecordCrc::new(segment.seed, &bytes),
            }),
            None => Err(self.damaged(index)),
        }
    }

    /// The transfer ends; the segment is to be written anew, and the next one will come to its end.
    fn damaged(&self, index: u64) -> io::Error {
        if let Some((segment, _)) = &self.reading {
            self.log.damage.note_entry(segment, index, "the entry does not check out");
        }
        let file =
            self.reading.as_ref().map_or_else(String::new, |(segment, _)| segment.path.display().to_string());
        refused(&format!("entry {index} in {file} is damaged"))
    }
}

/// An entry being sent.
struct Sending {
    row: usize,
    head: Head,
    /// Where the rest of its payload is.
    at: u64,
    left: usize,
    crc: RecordCrc,
}

impl Sending {
    /// Appends at most `room` bytes of the payload.
    fn copy(&mut self, row: &mut Row, room: usize, frame: &mut Vec<u8>) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        let (_, window) = row.reading.as_mut().expect("its segment is open");
        let piece = window.get(self.at, 1).unwrap_or(&[]);
        let piece = &piece[..piece.len().min(room).min(self.left)];
        if piece.is_empty() {
            return Err(row.damaged(self.head.index));
        }
        frame.extend_from_slice(piece);
        self.crc.update(piece);
        self.at += piece.len() as u64;
        self.left -= piece.len();
        Ok(piece.len())
    }

    /// Whether what was sent is what was written. A receiver to whom damaged bytes were sent never gets the end.
    fn check(self, row: &Row) -> io::Result<()> {
        if self.crc.matches() { Ok(()) } else { Err(row.damaged(self.head.index)) }
    }
}
