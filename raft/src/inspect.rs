//! An offline look at a data directory, for `beanpole segment ls|verify|dump`. Reads only, takes no lock, and
//! changes nothing; on a directory in use the segment being written may look torn.

mod files;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::body_segment;
use crate::disk::{Access, Disk, DiskFile};
use crate::format::{BadHeader, Head, SegmentHeader};
use crate::recover::{SUFFIX, segment_path};
use crate::scan::{self, Ending};
use crate::snapshot;

pub use files::{FileInfo, FileKind, files, verify_files};

/// One segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its number.
    pub id: u64,
    /// Its path.
    pub file: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Bytes of it that hold records, header included.
    pub used: u64,
    /// What it is.
    pub kind: SegmentKind,
    /// The index of its first entry; `None` when it has none.
    pub first: Option<u64>,
    /// The index of its last entry; `None` when it has none.
    pub last: Option<u64>,
}

/// Where a segment is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// Complete, with a footer.
    Sealed,
    /// Being written, or sealed and without a valid footer.
    Open,
    /// Prepared, without any record.
    Blank,
    /// Without a readable header.
    Unreadable,
}

/// What a check of one file found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The file.
    pub file: PathBuf,
    /// How many valid records it has; 0 for a snapshot.
    pub records: u64,
    /// What is to be said about it.
    pub finding: Finding,
}

/// The state of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Everything in it is valid.
    Whole,
    /// A write was cut short, as a crash leaves it; a start removes that.
    Torn {
        /// Where the valid records end.
        from: u64,
        /// Where the remains end.
        to: u64,
    },
    /// Its footer is damaged: a start scans it instead.
    Footer {
        /// Where the valid records end.
        end: u64,
    },
    /// Damage that no crash explains: a start refuses.
    Damaged {
        /// Where it starts.
        offset: u64,
        /// What is wrong.
        what: String,
    },
}

/// One record, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordInfo {
    /// The segment's number.
    pub segment: u64,
    /// Where the record starts in the file.
    pub offset: u64,
    /// What it is: state, entry, blank, membership, vote, truncate, purge, committed or footer.
    pub kind: &'static str,
    /// The entry's index, or the index that the record is about.
    pub index: u64,
    /// The entry's term.
    pub term: u64,
    /// Length of the payload in bytes.
    pub len: u32,
    /// Up to where the segment was synced when the record was written.
    pub durable: u32,
}

struct Found {
    id: u64,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    header: Result<SegmentHeader, BadHeader>,
}

fn find(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<Found>> {
    let names = disk.list(dir)?;
    find_named(disk, &names, |name| name.strip_suffix(SUFFIX)?.parse().ok(), |id| segment_path(dir, id))
}

/// The body segments.
fn find_bodies(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<Found>> {
    find_named(disk, &disk.list(dir)?, body_segment::id_of, |id| body_segment::path(dir, id))
}

fn find_named(
    disk: &dyn Disk,
    names: &[String],
    id_of: impl Fn(&str) -> Option<u64>,
    path_of: impl Fn(u64) -> PathBuf,
) -> io::Result<Vec<Found>> {
    let mut ids: Vec<u64> = names.iter().filter_map(|name| id_of(name)).collect();
    ids.sort_unstable();
    let open = |id| {
        let path = path_of(id);
        let file = disk.open(&path, Access::Read)?;
        let header = scan::read_header(&file)?;
        Ok(Found { id, path, file, header })
    };
    ids.into_iter().map(open).collect()
}

/// Lists the segments in `dir`, in order, body segments (which came with a snapshot) first. Reads headers and
/// footers, and scans segments without a footer.
///
/// # Errors
/// When the directory or a file cannot be read.
pub fn list(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<SegmentInfo>> {
    let mut found = find_bodies(disk, dir)?;
    found.extend(find(disk, dir)?);
    found.iter().map(describe).collect()
}

fn describe(found: &Found) -> io::Result<SegmentInfo> {
    let bytes = found.file.size()?;
    let mut info = SegmentInfo {
        id: found.id,
        file: found.path.clone(),
        bytes,
        used: 0,
        kind: SegmentKind::Unreadable,
        first: None,
        last: None,
    };
    let Ok(header) = found.header else { return Ok(info) };
    let (footer, end) = match scan::read_footer(&found.file, &header)? {
        Some((end, footer)) => {
            info.kind = SegmentKind::Sealed;
            (footer, end)
        }
        None => {
            let scan = scan::scan(&found.file, &header, &mut |_, _| {})?;
            let blank = scan.records == 0 && matches!(scan.ending, Ending::Clean | Ending::Reused { .. });
            info.kind = if blank { SegmentKind::Blank } else { SegmentKind::Open };
            (scan.summary, scan.end)
        }
    };
    info.used = end;
    if !footer.offsets.is_empty() {
        info.first = Some(footer.first);
        let last = footer.first + footer.offsets.len() as u64 - 1;
        info.last = Some(footer.indexes.last().copied().unwrap_or(last));
    }
    Ok(info)
}

/// Reads every record of every segment and every frame of every snapshot in `dir`, and checks them.
///
/// # Errors
/// When the directory or a file cannot be read. Damage is not an error but a [`Finding`].
pub fn verify(disk: &Arc<dyn Disk>, dir: &Path) -> io::Result<Vec<Check>> {
    let found = find(&**disk, dir)?;
    let mut last_used = 0;
    for (at, segment) in found.iter().enumerate() {
        if !scan::is_blank(&segment.file, segment.header.as_ref().ok(), false)? {
            last_used = at;
        }
    }
    let mut checks = Vec::new();
    for (at, segment) in found.iter().enumerate() {
        checks.push(check_segment(segment, at >= last_used)?);
    }
    for segment in &find_bodies(&**disk, dir)? {
        checks.push(check_segment(segment, false)?);
    }
    for path in snapshot::paths(&**disk, dir)? {
        checks.push(check_snapshot(disk, dir, path)?);
    }
    Ok(checks)
}

/// Checks one segment; only the last one may be torn.
fn check_segment(found: &Found, last: bool) -> io::Result<Check> {
    let check = |records, finding| Check { file: found.path.clone(), records, finding };
    let header = match found.header {
        Ok(header) if header.id == found.id => header,
        Ok(header) => {
            let what = format!("it is segment {} under another name", header.id);
            return Ok(check(0, Finding::Damaged { offset: 0, what }));
        }
        Err(bad) => {
            let what = format!("the segment header is not valid: {bad:?}");
            return Ok(check(0, Finding::Damaged { offset: 0, what }));
        }
    };
    let scan = scan::scan(&found.file, &header, &mut |_, _| {})?;
    let footer = scan::read_footer(&found.file, &header)?;
    let trailer = scan::read_trailer(&found.file, &header)?;
    let end = scan.end;
    let finding = match scan.ending {
        Ending::Sealed if footer.is_some() => Finding::Whole,
        Ending::Sealed => Finding::Footer { end },
        Ending::Corrupt { at, .. } if at == end && trailer == Some(end) => Finding::Footer { end },
        Ending::Corrupt { at, what } => Finding::Damaged { offset: at, what },
        Ending::Clean | Ending::Reused { .. } if last => Finding::Whole,
        Ending::Torn { to } if last => Finding::Torn { from: end, to },
        Ending::Clean | Ending::Reused { .. } | Ending::Torn { .. } if trailer == Some(end) => {
            Finding::Footer { end }
        }
        Ending::Clean | Ending::Reused { .. } | Ending::Torn { .. } => {
            let what = "the records end here, and other segments follow".to_owned();
            Finding::Damaged { offset: end, what }
        }
    };
    Ok(check(scan.records, finding))
}

fn check_snapshot(disk: &Arc<dyn Disk>, dir: &Path, file: PathBuf) -> io::Result<Check> {
    let damaged = |what: String| Finding::Damaged { offset: 0, what };
    let finding = match snapshot::open(disk, dir, &file) {
        Ok(snapshot) => match io::copy(&mut snapshot.image()?, &mut io::sink()) {
            Ok(_) => Finding::Whole,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => damaged(error.to_string()),
            Err(error) => return Err(error),
        },
        Err(error) => damaged(error.to_string()),
    };
    Ok(Check { file, records: 0, finding })
}

/// Passes every valid record of the segments in `dir` to `f`, in order; with `only`, those of one segment.
///
/// # Errors
/// When the directory or a file cannot be read.
pub fn dump(disk: &dyn Disk, dir: &Path, only: Option<u64>, f: &mut dyn FnMut(RecordInfo)) -> io::Result<()> {
    let mut all = find_bodies(disk, dir)?;
    all.extend(find(disk, dir)?);
    for found in all {
        let Ok(header) = found.header else { continue };
        if only.is_some_and(|only| only != found.id) {
            continue;
        }
        scan::scan(&found.file, &header, &mut |offset, head: &Head| {
            f(RecordInfo {
                segment: found.id,
                offset,
                kind: head.kind.name(),
                index: head.index,
                term: head.term,
                len: head.len,
                durable: head.durable,
            });
        })?;
    }
    Ok(())
}
