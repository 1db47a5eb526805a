//! Body segments: files of entries, whole or in pieces, for the bodies in them: what compaction left of segments of the
//! log, or what came with a snapshot of another node.
//!
//! ```text
//! 42.body.tmp   being written: state record, entries in rising order, footer with their indexes, trailer
//! 42.body       complete and durable; belongs to the snapshot whose position its state record repeats
//! ```
//!
//! Those that came from elsewhere get their names before that snapshot gets its own, so a start that finds one of a
//! later snapshot than the newest finds the remains of an installation that a crash cut short, and removes them.
//! Compaction writes those of a snapshot that is durable, and removes what it replaced only when they have their
//! names; until then the same bodies are there twice. Being complete before they have their names, they are never
//! torn: any damage is refused.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::Rng;

use crate::disk::{Access, Disk};
use crate::error::{Corruption, StartError};
use crate::format::{
    self, ALIGN, BadHeader, Contents, Footer, HEAD_LEN, HEADER_LEN, Head, IN_PIECES, Kind, LogState,
    OpenRecord, Position, SegmentHeader, StateRecord, VERSION,
};
use crate::output::Output;
use crate::scan::{self, Ending};
use crate::segment::Segment;

/// What a body segment is called.
pub(crate) const SUFFIX: &str = ".body";
/// A body segment being written.
const TEMPORARY: &str = ".body.tmp";
/// Records gather up to this many bytes before they are written.
const GATHER: usize = 256 << 10;

/// The path of body segment `id`.
pub(crate) fn path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016}{SUFFIX}"))
}

fn temporary_path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016}{TEMPORARY}"))
}

/// A complete, durable body segment that does not have its name yet.
pub(crate) struct Sealed {
    pub(crate) segment: Arc<Segment>,
    temporary: PathBuf,
}

impl Sealed {
    /// Gives it its name; durable after the directory is synced.
    pub(crate) fn put_into_place(&self, disk: &dyn Disk) -> io::Result<()> {
        disk.rename(&self.temporary, &self.segment.path)
    }

    /// Removes it, as far as that goes: the next start would remove it as well.
    pub(crate) fn discard(&self, disk: &dyn Disk) {
        disk.unlink(&self.temporary).ok();
    }
}

/// A body segment being written. Its file is removed when it is dropped before it was sealed.
pub(crate) struct Writer {
    disk: Arc<dyn Disk>,
    header: SegmentHeader,
    seed: u32,
    /// What its state and its footer say: where the snapshot stands.
    state: LogState,
    path: PathBuf,
    /// Removed when this is dropped.
    temporary: Option<PathBuf>,
    out: Output,
    /// What follows `out.at`, not yet written.
    gathered: Vec<u8>,
    record: Option<Record>,
    offsets: Vec<u32>,
    indexes: Vec<u64>,
}

/// The entry being written.
struct Record {
    /// Where it starts.
    start: u64,
    open: OpenRecord,
    /// How much of its payload is missing.
    left: usize,
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(path) = &self.temporary {
            // What remains is removed by the next start.
            self.disk.unlink(path).ok();
        }
    }
}

impl Writer {
    /// Begins body segment `id` of the snapshot that stands at `snapshot`.
    pub(crate) fn create(disk: &Arc<dyn Disk>, dir: &Path, id: u64, snapshot: Position) -> io::Result<Self> {
        let header = SegmentHeader { id, epoch: rand::rng().random(), contents: Contents::Bodies };
        let at = Some(snapshot);
        let state = LogState { ballot: None, last: at, committed: at, purged: at };
        let temporary = temporary_path(dir, id);
        let mut writer = Self {
            disk: disk.clone(),
            header,
            seed: format::seed(header.id, header.epoch),
            state,
            path: path(dir, id),
            out: Output::create(&**disk, &temporary)?,
            temporary: Some(temporary),
            gathered: header.encode().to_vec(),
            record: None,
            offsets: Vec::new(),
            indexes: Vec::new(),
        };
        let payload = StateRecord { state, previous_id: 0, previous_end: 0 }.encode();
        writer.begin(Kind::State, Position { term: 0, index: 0 }, payload.len());
        writer.push(&payload)?;
        Ok(writer)
    }

    /// How long the file is so far, in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.out.at + self.gathered.len() as u64
    }

    /// Begins an entry, or what is left of one, whose payload of `len` bytes follows; its index is above those
    /// before.
    pub(crate) fn begin_entry(&mut self, kind: Kind, position: Position, len: usize) -> io::Result<()> {
        let start = u32::try_from(self.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        assert!(kind.holds_bodies(), "an entry");
        assert!(self.indexes.last().is_none_or(|last| *last < position.index), "indexes rise");
        self.offsets.push(start | if kind == Kind::Pieces { IN_PIECES } else { 0 });
        self.indexes.push(position.index);
        self.begin(kind, position, len);
        self.push(&[])
    }

    fn begin(&mut self, kind: Kind, position: Position, len: usize) {
        let head = Head {
            kind,
            len: u32::try_from(len).expect("payloads are bounded"),
            // It says nothing in a file that is never torn.
            durable: u32::try_from(HEADER_LEN).expect("the header is short"),
            index: position.index,
            term: position.term,
        };
        assert!(self.record.is_none(), "one record at a time");
        self.record = Some(Record { start: self.len(), open: head.begin(self.seed), left: len });
        // The head comes when the payload is complete.
        self.gathered.extend_from_slice(&[0; HEAD_LEN]);
    }

    /// Appends to the payload of the record that was begun.
    pub(crate) fn push(&mut self, piece: &[u8]) -> io::Result<()> {
        let record = self.record.as_mut().expect("a record was begun");
        record.open.update(piece);
        record.left -= piece.len();
        let done = record.left == 0;
        self.gathered.extend_from_slice(piece);
        if done {
            self.end_record()?;
        }
        if self.gathered.len() >= GATHER {
            self.write_gathered()?;
        }
        Ok(())
    }

    fn end_record(&mut self) -> io::Result<()> {
        let Some(record) = self.record.take() else { return Ok(()) };
        let head = record.open.finish();
        self.gathered.resize(self.gathered.len() + padding(self.len() - record.start), 0);
        match record.start.checked_sub(self.out.at) {
            Some(at) => {
                let at = usize::try_from(at).expect("what is gathered fits memory");
                self.gathered[at..at + HEAD_LEN].copy_from_slice(&head);
                Ok(())
            }
            None => self.out.patch(&head, record.start),
        }
    }

    fn write_gathered(&mut self) -> io::Result<()> {
        self.out.write(&[&self.gathered])?;
        self.gathered.clear();
        Ok(())
    }

    /// Completes the file and makes it durable.
    pub(crate) fn seal(mut self) -> io::Result<Sealed> {
        assert!(self.record.is_none(), "the last record is complete");
        self.write_gathered()?;
        let end = self.out.at;
        let footer = Footer {
            state: self.state,
            truncated_from: None,
            first: self.indexes.first().copied().unwrap_or(0),
            offsets: std::mem::take(&mut self.offsets),
            indexes: std::mem::take(&mut self.indexes),
        };
        let payload = footer.encode();
        let head = Head {
            kind: Kind::Footer,
            len: u32::try_from(payload.len()).map_err(|_| io::ErrorKind::FileTooLarge)?,
            durable: u32::try_from(HEADER_LEN).expect("the header is short"),
            index: footer.first,
            term: 0,
        };
        let mut record = head.begin(self.seed);
        record.update(&payload);
        self.out.write(&[&record.finish()])?;
        self.out.write_long(&payload)?;
        let padding = vec![0; padding(self.out.at - end)];
        self.out.write(&[&padding, &format::encode_trailer(&self.header, end)])?;
        self.out.sync()?;
        let capacity = self.out.at;
        let segment = Segment::new(self.header, self.path.clone(), self.out.file.clone(), capacity, 0)?;
        segment.load_bodies(footer.indexes, footer.offsets, end);
        let temporary = self.temporary.take().expect("it is sealed once");
        Ok(Sealed { segment: Arc::new(segment), temporary })
    }
}

/// What fills a record of `len` bytes up.
fn padding(len: u64) -> usize {
    usize::try_from(len.next_multiple_of(ALIGN as u64) - len).expect("less than the alignment")
}

/// The highest id of a body segment in `dir`; 0 when there is none.
pub(crate) fn last_id(disk: &dyn Disk, dir: &Path) -> io::Result<u64> {
    let names = disk.list(dir)?;
    Ok(names.iter().filter_map(|name| id_of(name)).max().unwrap_or(0))
}

/// The id of the body segment of that file name.
pub(crate) fn id_of(name: &str) -> Option<u64> {
    name.strip_suffix(SUFFIX)?.parse().ok()
}

/// Opens the body segments in `dir` that belong to the snapshot at `snapshot` or to an earlier one, and removes
/// those that were never put into place.
///
/// # Errors
/// [`StartError::Corrupt`] when one of them is damaged; nothing was changed then.
pub(crate) fn recover(disk: &dyn Disk, dir: &Path, snapshot: u64) -> Result<Vec<Arc<Segment>>, StartError> {
    let failed = |source| StartError::Io { file: dir.to_path_buf(), source };
    let names = disk.list(dir).map_err(failed)?;
    let mut superfluous: Vec<PathBuf> =
        names.iter().filter(|name| name.ends_with(TEMPORARY)).map(|name| dir.join(name)).collect();
    let mut ids: Vec<u64> = names.iter().filter_map(|name| id_of(name)).collect();
    ids.sort_unstable();
    let mut segments = Vec::new();
    for id in ids {
        let (segment, belongs_to) = open(disk, dir, id)?;
        if belongs_to > snapshot {
            superfluous.push(path(dir, id));
        } else {
            segments.push(Arc::new(segment));
        }
    }
    for path in &superfluous {
        disk.unlink(path).map_err(failed)?;
    }
    if !superfluous.is_empty() {
        tracing::info!(files = superfluous.len(), "remains of an unfinished snapshot installation removed");
        disk.sync_dir(dir).map_err(failed)?;
    }
    Ok(segments)
}

/// One body segment, and the index of the snapshot it belongs to.
fn open(disk: &dyn Disk, dir: &Path, id: u64) -> Result<(Segment, u64), StartError> {
    let path = path(dir, id);
    let failed = |source| StartError::Io { file: path.clone(), source };
    let corrupt = |offset, what: &str| {
        let (dir, file, what) = (dir.to_path_buf(), path.clone(), what.to_owned());
        StartError::from(Corruption { dir, file, offset, what, member: None })
    };
    let file = disk.open(&path, Access::Read).map_err(failed)?;
    let capacity = file.size().map_err(failed)?;
    let header = match scan::read_header(&file).map_err(failed)? {
        Ok(header) if header.id == id && header.contents.is_bodies() => header,
        Ok(_) => return Err(corrupt(0, "it is another segment under this name")),
        Err(BadHeader::Version(found)) => {
            return Err(StartError::Version { file: path.clone(), found, supported: VERSION });
        }
        Err(BadHeader::Damaged) => return Err(corrupt(0, "the segment header is damaged")),
    };
    let (end, footer) = match scan::read_footer(&file, &header).map_err(failed)? {
        Some(found) => found,
        None => {
            tracing::warn!(file = %path.display(), "the footer of a body segment is damaged; it is scanned");
            let scan = scan::scan(&file, &header, &mut |_, _| {}).map_err(failed)?;
            let trailer = scan::read_trailer(&file, &header).map_err(failed)?;
            if scan.ending != Ending::Sealed && trailer != Some(scan.end) {
                return Err(corrupt(scan.end, "the records end here, without a footer"));
            }
            (scan.end, scan.summary)
        }
    };
    if footer.indexes.len() != footer.offsets.len() || footer.indexes.is_empty() {
        return Err(corrupt(end, "the footer does not list the bodies"));
    }
    let belongs_to = footer.state.purged.map_or(0, |purged| purged.index);
    let segment = Segment::new(header, path.clone(), file, capacity, footer.first).map_err(failed)?;
    segment.load_bodies(footer.indexes, footer.offsets, end);
    Ok((segment, belongs_to))
}
