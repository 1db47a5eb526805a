//! Reading one segment file from its start: what it contains, and where and how that ends.
//!
//! Torn or corrupt? Let X be the first place where no valid record starts.
//!
//! ```text
//! zeros from X to the end of the file                      clean end
//! a valid record after X whose `durable` is above X        corrupt: X was synced before that was written
//! valid records after X, X's flush was never synced:
//!     a whole sector of zeros between X and the next one   torn: a power cut kept later sectors only
//!     none                                                 corrupt: bits changed
//! no valid record after X                                  torn
//! ```
//!
//! In a file that was a segment before there are no zeros to go by, but what is there of the life before. Then all that counts
//! is whether a valid record of this life with a `durable` above X follows. The flush thread sees to that: when it has
//! nothing to do it writes one more record (see `flush.rs`), so that every flush has a witness a moment later.
//!
//! Only the last segment may be torn; the caller decides which one that is.

use std::io;
use std::sync::Arc;

use crate::append::UNSYNCED_MAX;
use crate::disk::DiskFile;
use crate::format::{
    self, ALIGN, Contents, Footer, HEAD_LEN, HEADER_LEN, Head, IN_PIECES, Kind, LogState, Position,
    RecordCrc, SegmentHeader, StateRecord, TRAILER_LEN,
};

/// How much is read at once.
const WINDOW: usize = 256 << 10;
/// The smallest unit that a disk writes as a whole.
const SECTOR: u64 = 512;

/// What the records of a segment amount to.
#[derive(Debug)]
pub(crate) struct Scan {
    /// State, truncation and entries after its last valid record.
    pub(crate) summary: Footer,
    /// Where the valid records (the footer excluded) end.
    pub(crate) end: u64,
    /// How they end.
    pub(crate) ending: Ending,
    /// The id and end of the segment before it, as its state record says.
    pub(crate) previous: Option<(u64, u64)>,
    /// How many valid records there are.
    pub(crate) records: u64,
    /// Up to where they say that it was synced, before the last of them was written.
    pub(crate) durable: u64,
}

/// How the valid records of a segment end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With a valid footer.
    Sealed,
    /// With zeros up to the end of the file.
    Clean,
    /// With what the file held before it became this segment.
    Reused {
        /// Up to where a write that was cut short can have reached.
        to: u64,
    },
    /// With the trace of a write that was cut short; `to` is where the non-zero bytes end.
    Torn {
        /// Where the last byte that is not zero lies, plus one; in a reused file as far as it can have reached.
        to: u64,
    },
    /// With damage that no crash explains.
    Corrupt {
        /// Where it starts.
        at: u64,
        /// What is wrong.
        what: String,
    },
}

/// Reads and checks a segment's header.
pub(crate) fn read_header(file: &Arc<dyn DiskFile>) -> io::Result<Result<SegmentHeader, format::BadHeader>> {
    let mut bytes = [0; HEADER_LEN];
    let read = file.read_at(&mut bytes, 0)?;
    Ok(SegmentHeader::decode(&bytes[..read]))
}

/// The footer's place and contents, when trailer and footer are both valid.
pub(crate) fn read_footer(
    file: &Arc<dyn DiskFile>,
    header: &SegmentHeader,
) -> io::Result<Option<(u64, Footer)>> {
    let Some(at) = read_trailer(file, header)? else { return Ok(None) };
    let mut head = [0; HEAD_LEN];
    if file.read_at(&mut head, at)? < HEAD_LEN {
        return Ok(None);
    }
    let Some(parsed) = Head::parse(&head) else { return Ok(None) };
    if parsed.kind != Kind::Footer || at + parsed.record_len() > file.size()? {
        return Ok(None);
    }
    let mut payload = vec![0; parsed.len as usize];
    file.read_at(&mut payload, at + HEAD_LEN as u64)?;
    let mut crc = RecordCrc::new(format::seed(header.id, header.epoch), &head);
    crc.update(&payload);
    Ok(crc.matches().then(|| Footer::decode(&payload)).flatten().map(|footer| (at, footer)))
}

/// Where the trailer says that the footer is, when there is a valid trailer.
pub(crate) fn read_trailer(file: &Arc<dyn DiskFile>, header: &SegmentHeader) -> io::Result<Option<u64>> {
    let len = file.size()?;
    let Some(at) = len.checked_sub(TRAILER_LEN as u64) else { return Ok(None) };
    let mut bytes = [0; TRAILER_LEN];
    let read = file.read_at(&mut bytes, at)?;
    Ok(format::decode_trailer(header, &bytes[..read]).filter(|footer| *footer < at))
}

/// The id and end of the segment before, as the state record of this one says.
pub(crate) fn read_previous(
    file: &Arc<dyn DiskFile>,
    header: &SegmentHeader,
) -> io::Result<Option<(u64, u64)>> {
    let mut payload = Vec::new();
    let seed = format::seed(header.id, header.epoch);
    let mut fold = Fold::default();
    match Window::new(file.clone())?.record(seed, HEADER_LEN as u64, &mut payload)? {
        Found::Record(head) => Ok(fold.add(&head, HEADER_LEN as u64, &payload).ok().and(fold.previous)),
        Found::Nothing | Found::Damaged(_) => Ok(None),
    }
}

/// The head of the record at `offset`, when there is one that checks out as a whole.
pub(crate) fn whole_record(window: &mut Window, seed: u32, offset: u64) -> io::Result<Option<Head>> {
    match window.record(seed, offset, &mut Vec::new())? {
        Found::Record(head) => Ok(Some(head)),
        Found::Nothing | Found::Damaged(_) => Ok(None),
    }
}

/// Whether nothing was ever written after the header. With `quick`, looks only as far as a first flush that
/// was cut short can have reached. In a reused file: whether there is no record of this life that far.
pub(crate) fn is_blank(
    file: &Arc<dyn DiskFile>,
    header: Option<&SegmentHeader>,
    quick: bool,
) -> io::Result<bool> {
    let mut window = Window::new(file.clone())?;
    if let Some(header) = header
        && let Contents::LogInReused { old_seed } = header.contents
    {
        let seed = format::seed(header.id, header.epoch);
        let to = (HEADER_LEN + UNSYNCED_MAX) as u64;
        return Ok(window.next_record((seed, Some(old_seed)), HEADER_LEN as u64, to)?.is_none());
    }
    if quick {
        window.len = window.len.min((HEADER_LEN + UNSYNCED_MAX) as u64);
    }
    Ok(window.zeros_until(HEADER_LEN as u64)? == window.len)
}

/// Reads all records of a segment and calls `met` with the place and the head of each valid one.
///
/// # Errors
/// When reading fails. Damage is not an error but an [`Ending`].
pub(crate) fn scan(
    file: &Arc<dyn DiskFile>,
    header: &SegmentHeader,
    met: &mut dyn FnMut(u64, &Head),
) -> io::Result<Scan> {
    let mut window = Window::new(file.clone())?;
    let seed = format::seed(header.id, header.epoch);
    let mut fold = Fold { bodies: header.contents.is_bodies(), ..Fold::default() };
    let mut offset = HEADER_LEN as u64;
    let (mut records, mut durable) = (0, offset);
    let mut payload = Vec::new();
    let ending = loop {
        let head = match window.record(seed, offset, &mut payload)? {
            Found::Record(head) => head,
            Found::Nothing => break judge(&mut window, header, offset, "no record starts here")?,
            Found::Damaged(what) => break judge(&mut window, header, offset, what)?,
        };
        if head.kind == Kind::Footer {
            met(offset, &head);
            break Ending::Sealed;
        }
        if let Err(what) = fold.add(&head, offset, &payload) {
            break Ending::Corrupt { at: offset, what };
        }
        met(offset, &head);
        records += 1;
        durable = durable.max(u64::from(head.durable));
        offset += head.record_len();
    };
    Ok(Scan { summary: fold.summary, end: offset, ending, previous: fold.previous, records, durable })
}

/// What to make of the first place without a valid record.
fn judge(window: &mut Window, header: &SegmentHeader, at: u64, what: &str) -> io::Result<Ending> {
    let seed = format::seed(header.id, header.epoch);
    let (seeds, to) = match header.contents {
        Contents::LogInReused { old_seed } => {
            let reached = at + (UNSYNCED_MAX + HEADER_LEN) as u64;
            ((seed, Some(old_seed)), reached.next_multiple_of(SECTOR).min(window.len))
        }
        Contents::Log | Contents::Bodies => match window.last_nonzero(at)? {
            Some(to) => ((seed, None), to),
            None => return Ok(Ending::Clean),
        },
    };
    let mut next = None;
    let mut offset = at + ALIGN as u64;
    while let Some((found, head)) = window.next_record(seeds, offset, window.len)? {
        if u64::from(head.durable) > at {
            let what =
                format!("{what}, and the {} record at {found} was written after that was synced", head.kind);
            return Ok(Ending::Corrupt { at, what });
        }
        next.get_or_insert(found);
        offset = found + head.record_len();
    }
    let reused = seeds.1.is_some();
    Ok(match next {
        None if reused => Ending::Reused { to },
        Some(next) if !reused && !window.has_zero_sector(at, next)? => {
            Ending::Corrupt { at, what: format!("{what}, and a valid record follows at {next}") }
        }
        Some(_) | None => Ending::Torn { to },
    })
}

/// The effect of records, one after the other.
#[derive(Default)]
struct Fold {
    summary: Footer,
    previous: Option<(u64, u64)>,
    /// Whether the state record was met, which every segment starts with.
    known: bool,
    /// It is a body segment.
    bodies: bool,
}

impl Fold {
    fn add(&mut self, head: &Head, offset: u64, payload: &[u8]) -> Result<(), String> {
        let position = Position { term: head.term, index: head.index };
        if self.known == (head.kind == Kind::State) {
            return Err(format!("a {} record at this place", head.kind));
        }
        if self.bodies && self.known {
            return self.body(head, offset);
        }
        let state = &mut self.summary.state;
        match head.kind {
            Kind::State => return self.set(payload),
            Kind::Normal | Kind::Blank | Kind::Membership => return self.entry(position, offset),
            Kind::Vote => {
                state.ballot = Some(format::decode_ballot(payload).ok_or("a vote that cannot be read")?);
            }
            Kind::Truncate => return self.truncate(head.index, payload),
            Kind::Purge => {
                state.purged = Some(position);
                if state.last.is_none_or(|last| last.index < position.index) {
                    state.last = Some(position);
                }
            }
            Kind::Committed => state.committed = Some(position),
            Kind::Footer | Kind::Pieces => return Err(format!("a {} record within the log", head.kind)),
        }
        Ok(())
    }

    fn set(&mut self, payload: &[u8]) -> Result<(), String> {
        let record = StateRecord::decode(payload).ok_or("a state record that cannot be read")?;
        self.known = true;
        self.previous = (record.previous_end > 0).then_some((record.previous_id, record.previous_end));
        self.summary.state = record.state;
        self.summary.first = next_index(&record.state);
        Ok(())
    }

    fn entry(&mut self, position: Position, offset: u64) -> Result<(), String> {
        let summary = &mut self.summary;
        if let Some(last) = summary.state.last
            && (position.index != last.index + 1 || position.term < last.term)
        {
            return Err(format!("entry {position:?} follows entry {last:?}"));
        }
        if summary.offsets.is_empty() {
            summary.first = position.index;
        } else if position.index != summary.first + summary.offsets.len() as u64 {
            return Err(format!("entry {position:?} leaves a gap"));
        }
        summary.offsets.push(u32::try_from(offset).map_err(|_| "a segment beyond 4 GiB".to_owned())?);
        summary.state.last = Some(position);
        Ok(())
    }

    /// An entry of a body segment, which says nothing about the log.
    fn body(&mut self, head: &Head, offset: u64) -> Result<(), String> {
        let summary = &mut self.summary;
        if !head.kind.holds_bodies() || summary.indexes.last().is_some_and(|last| *last >= head.index) {
            return Err(format!("a {} record of index {} among bodies", head.kind, head.index));
        }
        if summary.indexes.is_empty() {
            summary.first = head.index;
        }
        let offset = u32::try_from(offset).map_err(|_| "a segment beyond 4 GiB".to_owned())?;
        summary.offsets.push(offset | if head.kind == Kind::Pieces { IN_PIECES } else { 0 });
        summary.indexes.push(head.index);
        Ok(())
    }

    fn truncate(&mut self, index: u64, payload: &[u8]) -> Result<(), String> {
        let summary = &mut self.summary;
        if payload.len() != 16 {
            return Err("a truncate record that cannot be read".into());
        }
        let keep = usize::try_from(index.saturating_sub(summary.first)).unwrap_or(usize::MAX);
        summary.offsets.truncate(keep);
        summary.first = summary.first.min(index);
        summary.truncated_from = Some(summary.truncated_from.unwrap_or(index).min(index));
        summary.state.last = format::decode_position(payload, 0);
        Ok(())
    }
}

/// The index of the next entry.
pub(crate) fn next_index(state: &LogState) -> u64 {
    state.last.map_or(0, |last| last.index + 1)
}

/// Where the first byte that is not zero is. Compares block by block: most of what it sees is zeros.
fn first_nonzero(bytes: &[u8]) -> Option<usize> {
    const BLOCK: [u8; 256] = [0; 256];
    let skip = bytes.chunks(BLOCK.len()).take_while(|chunk| *chunk == &BLOCK[..chunk.len()]).count();
    let start = (skip * BLOCK.len()).min(bytes.len());
    bytes[start..].iter().position(|byte| *byte != 0).map(|place| start + place)
}

/// What is at a place.
enum Found {
    Record(Head),
    /// Zeros instead of a head, or the end of the file.
    Nothing,
    Damaged(&'static str),
}

/// A file read piece by piece, so that a scan of any file takes little memory.
pub(crate) struct Window {
    file: Arc<dyn DiskFile>,
    len: u64,
    at: u64,
    bytes: Vec<u8>,
}

impl Window {
    pub(crate) fn new(file: Arc<dyn DiskFile>) -> io::Result<Self> {
        let len = file.size()?;
        Ok(Self { file, len, at: 0, bytes: Vec::new() })
    }

    /// The bytes from `offset` on: at least `want` (fewer at the end of the file, or when `want` is more than
    /// a window), and as many more as are at hand.
    pub(crate) fn get(&mut self, offset: u64, want: usize) -> io::Result<&[u8]> {
        let end = self.at + self.bytes.len() as u64;
        let needed = (offset + want.min(WINDOW) as u64).min(self.len);
        if offset < self.at || needed > end {
            self.bytes.resize(WINDOW, 0);
            let read = self.file.read_at(&mut self.bytes, offset)?;
            self.bytes.truncate(read);
            self.at = offset;
        }
        let start = usize::try_from(offset - self.at).expect("within the window");
        Ok(&self.bytes[start.min(self.bytes.len())..])
    }

    /// The record at `offset`, if a valid one is there. Its payload is put into `payload` unless it is an
    /// entry.
    fn record(&mut self, seed: u32, offset: u64, payload: &mut Vec<u8>) -> io::Result<Found> {
        payload.clear();
        let bytes = self.get(offset, HEAD_LEN)?;
        let Some(head_bytes) = bytes.first_chunk::<HEAD_LEN>().copied() else { return Ok(Found::Nothing) };
        if head_bytes == [0; HEAD_LEN] {
            return Ok(Found::Nothing);
        }
        let Some(head) = Head::parse(&head_bytes) else { return Ok(Found::Damaged("no record head")) };
        if offset + HEAD_LEN as u64 + u64::from(head.len) > self.len {
            return Ok(Found::Damaged("a record that is longer than the file"));
        }
        if u64::from(head.durable) > offset {
            return Ok(Found::Damaged("a record that claims to be durable before it was written"));
        }
        let mut crc = RecordCrc::new(seed, &head_bytes);
        let mut left = head.len as usize;
        let mut at = offset + HEAD_LEN as u64;
        while left > 0 {
            let piece = self.get(at, 1)?;
            let piece = &piece[..piece.len().min(left)];
            if piece.is_empty() {
                return Ok(Found::Damaged("a record that is longer than the file"));
            }
            crc.update(piece);
            if !head.kind.holds_bodies() {
                payload.extend_from_slice(piece);
            }
            left -= piece.len();
            at += piece.len() as u64;
        }
        Ok(if crc.matches() { Found::Record(head) } else { Found::Damaged("a wrong checksum") })
    }

    /// The first valid record that starts from `offset` on and before `to`. With the seed of an earlier life its records
    /// are passed over whole: one of this life within them would have broken their checksums.
    fn next_record(
        &mut self,
        (seed, old_seed): (u32, Option<u32>),
        offset: u64,
        to: u64,
    ) -> io::Result<Option<(u64, Head)>> {
        let mut payload = Vec::new();
        let mut offset = offset;
        loop {
            let place = self.zeros_until(offset)?;
            if place >= to.min(self.len) {
                return Ok(None);
            }
            offset = place / ALIGN as u64 * ALIGN as u64;
            if let Found::Record(head) = self.record(seed, offset, &mut payload)? {
                return Ok(Some((offset, head)));
            }
            let old = match old_seed {
                Some(old_seed) => self.record(old_seed, offset, &mut payload)?,
                None => Found::Nothing,
            };
            offset += match old {
                Found::Record(head) => head.record_len(),
                Found::Nothing | Found::Damaged(_) => ALIGN as u64,
            };
        }
    }

    /// The first place from `offset` on that is not zero, or the length of the file.
    fn zeros_until(&mut self, offset: u64) -> io::Result<u64> {
        let mut at = offset;
        while at < self.len {
            let bytes = self.get(at, 1)?;
            match first_nonzero(bytes) {
                Some(place) => return Ok(at + place as u64),
                None if bytes.is_empty() => break,
                None => at += bytes.len() as u64,
            }
        }
        Ok(self.len)
    }

    /// The end of the non-zero bytes from `offset` on; `None` when there are only zeros.
    fn last_nonzero(&mut self, offset: u64) -> io::Result<Option<u64>> {
        let mut last = None;
        let mut at = offset;
        while at < self.len {
            let bytes = self.get(at, 1)?;
            if bytes.is_empty() {
                break;
            }
            if first_nonzero(bytes).is_some() {
                let place = bytes.iter().rposition(|byte| *byte != 0);
                last = place.map(|place| at + place as u64 + 1);
            }
            at += bytes.len() as u64;
        }
        Ok(last)
    }

    /// Whether a whole sector that ends at or before `to` has only zeros from `from` on: the trace of a
    /// sector that a power cut kept from being written.
    fn has_zero_sector(&mut self, from: u64, to: u64) -> io::Result<bool> {
        let mut sector = from / SECTOR * SECTOR;
        while sector + SECTOR <= to {
            let start = sector.max(from);
            let len = usize::try_from(sector + SECTOR - start).expect("a sector is small");
            if self.get(start, len)?.iter().take(len).all(|byte| *byte == 0) {
                return Ok(true);
            }
            sector += SECTOR;
        }
        Ok(false)
    }
}
