//! Opening a log: which segments there are, what they contain, and where writing goes on.
//!
//! Sealed segments are not read, only their footers: the cost of a restart is proportional to the number of
//! entries, not to their bytes. The last segment with records is scanned and, when a crash tore its tail,
//! cut. Blank ones after it were prepared and never used.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Access, Disk, DiskFile};
use crate::error::{Corruption, StartError};
use crate::format::{BadHeader, Contents, Footer, LogState, SegmentHeader, VERSION};
use crate::prepare::Prepared;
use crate::scan::{self, Ending, Scan};
use crate::segment::{Segment, SegmentTable};

/// What a segment file is called.
pub(crate) const SUFFIX: &str = ".seg";
/// A segment file in preparation.
pub(crate) const TEMPORARY: &str = ".seg.tmp";
/// How much is overwritten with zeros by one write.
const ZERO_CHUNK: usize = 256 << 10;
static ZEROS: [u8; ZERO_CHUNK] = [0; ZERO_CHUNK];

/// The path of segment `id`.
pub(crate) fn segment_path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016}{SUFFIX}"))
}

/// A log as it was found.
pub(crate) struct Recovered {
    pub(crate) table: SegmentTable,
    pub(crate) state: LogState,
    /// Where writing goes on; `None` when no segment has room for it.
    pub(crate) active: Option<Active>,
    /// Blank segments ready for use, in order.
    pub(crate) blank: Vec<Prepared>,
    /// The id of the next segment to be made.
    pub(crate) next_id: u64,
}

/// The segment that is being written.
pub(crate) struct Active {
    pub(crate) segment: Arc<Segment>,
    /// Where the next record goes.
    pub(crate) end: u64,
    /// The lowest index that a truncate record in it made void.
    pub(crate) truncated_from: Option<u64>,
}

/// One segment file, opened.
pub(crate) struct Opened {
    pub(crate) header: SegmentHeader,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) capacity: u64,
}

/// Finds and opens all segment files, in order.
pub(crate) fn open_all(disk: &dyn Disk, dir: &Path, access: Access) -> Result<Vec<Opened>, StartError> {
    let names = disk.list(dir).map_err(|source| StartError::Io { file: dir.to_path_buf(), source })?;
    let mut ids: Vec<u64> = names.iter().filter_map(|name| name.strip_suffix(SUFFIX)?.parse().ok()).collect();
    ids.sort_unstable();
    ids.into_iter().map(|id| open_one(disk, dir, id, access)).collect()
}

fn open_one(disk: &dyn Disk, dir: &Path, id: u64, access: Access) -> Result<Opened, StartError> {
    let path = segment_path(dir, id);
    let failed = |source| StartError::Io { file: path.clone(), source };
    let file = disk.open(&path, access).map_err(failed)?;
    let capacity = file.size().map_err(failed)?;
    let corrupt = |what: &str| corrupt(dir, &path, 0, what.to_owned());
    match scan::read_header(&file).map_err(failed)? {
        Ok(header) if header.id == id && !header.contents.is_bodies() => {
            Ok(Opened { header, path, file, capacity })
        }
        Ok(header) => Err(corrupt(&format!("it is segment {} under another name", header.id))),
        Err(BadHeader::Version(found)) => {
            Err(StartError::Version { file: path.clone(), found, supported: VERSION })
        }
        Err(BadHeader::Damaged) => Err(corrupt("the segment header is damaged")),
    }
}

fn corrupt(dir: &Path, file: &Path, offset: u64, what: String) -> StartError {
    Corruption { dir: dir.to_path_buf(), file: file.to_path_buf(), offset, what, member: None }.into()
}

/// Opens the log in `dir`, cuts a torn tail and makes everything that was found durable.
///
/// # Errors
/// [`StartError::Corrupt`] when going on could lose acknowledged entries; nothing was changed then.
pub(crate) fn recover(disk: &dyn Disk, dir: &Path) -> Result<Recovered, StartError> {
    let opened = open_all(disk, dir, Access::Write)?;
    let next_id = opened.last().map_or(1, |last| last.header.id + 1);
    let last_used = last_used(&opened)?;
    let mut walk = Walk { dir, table: SegmentTable::default(), before: None };
    let mut active = None;
    let (mut blank, mut reused) = (Vec::new(), Vec::new());
    for (at, segment) in opened.into_iter().enumerate() {
        if last_used.is_none_or(|last| at > last) {
            let Opened { header, path, file, capacity } = segment;
            match header.contents {
                Contents::Log | Contents::Bodies => blank.push(Prepared { header, path, file, capacity }),
                // Something may have been written and not survived: only zeros show that nothing was.
                Contents::LogInReused { .. } => reused.push(path),
            }
        } else if Some(at) == last_used {
            active = walk.last(segment)?;
        } else {
            walk.sealed(segment)?;
        }
    }
    let state = walk.before.as_ref().map(|before| before.state).unwrap_or_default();
    walk.check_complete(&state)?;
    // Only now: a start that refuses changes nothing.
    remove_temporary(disk, dir)?;
    for path in &reused {
        disk.unlink(path).map_err(|source| StartError::Io { file: path.clone(), source })?;
    }
    disk.sync_dir(dir).map_err(|source| StartError::Io { file: dir.to_path_buf(), source })?;
    Ok(Recovered { table: walk.table, state, active, blank, next_id })
}

fn remove_temporary(disk: &dyn Disk, dir: &Path) -> Result<(), StartError> {
    let failed = |source| StartError::Io { file: dir.to_path_buf(), source };
    for name in disk.list(dir).map_err(failed)? {
        if name.ends_with(TEMPORARY) {
            disk.unlink(&dir.join(name)).map_err(failed)?;
        }
    }
    Ok(())
}

/// The place of the last segment that anything was written to. A segment is written to only after the one
/// before it was sealed: behind an unsealed one a short look is enough.
fn last_used(opened: &[Opened]) -> Result<Option<usize>, StartError> {
    for (at, segment) in opened.iter().enumerate().rev() {
        let failed = |source| StartError::Io { file: segment.path.clone(), source };
        let before = at.checked_sub(1).map(|before| &opened[before]);
        let unsealed = match before {
            Some(before) => scan::read_trailer(&before.file, &before.header).map_err(failed)?.is_none(),
            None => false,
        };
        if !scan::is_blank(&segment.file, Some(&segment.header), unsealed).map_err(failed)? {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// Goes through the segments in order.
struct Walk<'a> {
    dir: &'a Path,
    table: SegmentTable,
    before: Option<Before>,
}

/// What the segment before left.
struct Before {
    id: u64,
    state: LogState,
    /// Where its records end, when it was scanned because its footer is damaged: the next segment must agree.
    scanned_end: Option<(u64, PathBuf)>,
}

impl Walk<'_> {
    /// A segment that others follow: it must be whole.
    fn sealed(&mut self, opened: Opened) -> Result<(), StartError> {
        let failed = |source| StartError::Io { file: opened.path.clone(), source };
        if let Some((end, footer)) = scan::read_footer(&opened.file, &opened.header).map_err(failed)? {
            let doubt = self.before.as_ref().is_some_and(|before| before.scanned_end.is_some());
            if doubt {
                self.check_previous(scan::read_previous(&opened.file, &opened.header).map_err(failed)?)?;
            }
            self.add(&opened, footer, end, None)?;
            return Ok(());
        }
        let scan = scan::scan(&opened.file, &opened.header, &mut |_, _| {}).map_err(failed)?;
        self.check_previous(scan.previous)?;
        tracing::warn!(file = %opened.path.display(), "the footer of a sealed segment is damaged; it was scanned");
        let trailer = scan::read_trailer(&opened.file, &opened.header).map_err(failed)?;
        let unconfirmed = match (&scan.ending, trailer) {
            (Ending::Sealed, _) => None,
            (_, Some(footer)) if footer == scan.end => None,
            (Ending::Corrupt { at, what }, _) if *at != scan.end => {
                return Err(corrupt(self.dir, &opened.path, *at, what.clone()));
            }
            // Neither footer nor trailer: the next segment says where this one ends.
            (Ending::Clean | Ending::Reused { .. } | Ending::Torn { .. } | Ending::Corrupt { .. }, _) => {
                Some((scan.end, opened.path.clone()))
            }
        };
        self.add(&opened, scan.summary, scan.end, unconfirmed)
    }

    /// The last segment that anything was written to: the only one that may be torn.
    fn last(&mut self, opened: Opened) -> Result<Option<Active>, StartError> {
        let failed = |source| StartError::Io { file: opened.path.clone(), source };
        if scan::read_footer(&opened.file, &opened.header).map_err(failed)?.is_some() {
            // Sealed, and the process died before the next one was begun.
            self.sealed(opened)?;
            return Ok(None);
        }
        let scan = scan::scan(&opened.file, &opened.header, &mut |_, _| {}).map_err(failed)?;
        match &scan.ending {
            Ending::Sealed | Ending::Clean | Ending::Reused { .. } | Ending::Torn { .. } => {}
            Ending::Corrupt { at, what } => {
                return Err(corrupt(self.dir, &opened.path, *at, what.clone()));
            }
        }
        self.check_previous(scan.previous)?;
        self.check_begun(&opened, &scan)?;
        cut(&opened, &scan).map_err(failed)?;
        self.activate(&opened, scan)
    }

    fn activate(&mut self, opened: &Opened, scan: Scan) -> Result<Option<Active>, StartError> {
        if scan.records == 0 {
            // Not even its state record survived. It starts anew; the flusher writes another.
            let first = self.before.as_ref().map_or(0, |before| scan::next_index(&before.state));
            let segment = Arc::new(self.segment(opened, first)?);
            self.table.push(segment.clone());
            return Ok(Some(Active { segment, end: scan.end, truncated_from: None }));
        }
        let (end, truncated_from) = (scan.end, scan.summary.truncated_from);
        self.add(opened, scan.summary, end, None)?;
        let segment = self.table.all().pop().expect("the segment was just added");
        Ok(Some(Active { segment, end, truncated_from }))
    }

    /// A segment that follows another begins with what that one ended with.
    fn check_begun(&self, opened: &Opened, scan: &Scan) -> Result<(), StartError> {
        let Some(before) = &self.before else { return Ok(()) };
        let follows = scan.previous.is_some_and(|(id, _)| id == before.id);
        if scan.records > 0 && !follows && opened.header.id == before.id + 1 {
            let what = format!("its state record does not continue segment {}", before.id);
            return Err(corrupt(self.dir, &opened.path, crate::format::HEADER_LEN as u64, what));
        }
        Ok(())
    }

    /// Confirms the end of a segment without a footer by what the one after it says.
    fn check_previous(&mut self, previous: Option<(u64, u64)>) -> Result<(), StartError> {
        let Some(before) = &mut self.before else { return Ok(()) };
        let Some((end, path)) = before.scanned_end.take() else { return Ok(()) };
        if previous == Some((before.id, end)) {
            return Ok(());
        }
        let what = "the records end here, without a footer, and the next segment does not confirm that";
        Err(corrupt(self.dir, &path, end, what.to_owned()))
    }

    fn segment(&self, opened: &Opened, first: u64) -> Result<Segment, StartError> {
        Segment::new(opened.header, opened.path.clone(), opened.file.clone(), opened.capacity, first)
            .map_err(|source| StartError::Io { file: opened.path.clone(), source })
    }

    fn add(
        &mut self,
        opened: &Opened,
        footer: Footer,
        end: u64,
        scanned_end: Option<(u64, PathBuf)>,
    ) -> Result<(), StartError> {
        if let Some(index) = footer.truncated_from {
            self.table.truncate(index);
        }
        let segment = self.segment(opened, footer.first)?;
        segment.load(footer.first, footer.offsets, end);
        self.table.push(Arc::new(segment));
        self.before = Some(Before { id: opened.header.id, state: footer.state, scanned_end });
        Ok(())
    }

    /// Every entry that is neither purged nor beyond the end must be there.
    fn check_complete(&self, state: &LogState) -> Result<(), StartError> {
        let mut expected = state.purged.map_or(0, |purged| purged.index + 1);
        let Some(last) = state.last else { return Ok(()) };
        for segment in self.table.all() {
            let Some((first, end)) = segment.range() else { continue };
            // A log may begin at any index, but only when nothing was purged.
            if first > expected && (state.purged.is_some() || expected > 0) {
                let what = format!("entries {expected} to {} are missing before this segment", first - 1);
                return Err(corrupt(self.dir, &segment.path, 0, what));
            }
            expected = expected.max(end + 1);
        }
        if expected <= last.index {
            let what = format!("entries {expected} to {} are missing", last.index);
            return Err(corrupt(self.dir, self.dir, 0, what));
        }
        Ok(())
    }
}

/// Overwrites what follows the last valid record with zeros and makes the segment durable: records that are
/// found count as flushed from here on, though the process may have died before it synced them.
///
/// What is not known to have been synced is written once more. If the process ended because a sync failed, the
/// system may take those pages for clean: they can be read, a further sync says nothing, and the next power cut takes them.
fn cut(opened: &Opened, scan: &Scan) -> io::Result<()> {
    write_again(&opened.file, scan.durable, scan.end)?;
    match &scan.ending {
        Ending::Torn { to } => {
            tracing::warn!(
                file = %opened.path.display(), from = scan.end, to,
                "the last write before the crash was cut short and not acknowledged; it is removed"
            );
            zero(&opened.file, scan.end, *to)?;
        }
        // A write that was cut short may be among what the file held before.
        Ending::Reused { to } => zero(&opened.file, scan.end, *to)?,
        Ending::Sealed => {
            // The footer without its trailer: the seal was not finished and is redone when the segment is full.
            zero(&opened.file, scan.end, opened.capacity)?;
        }
        Ending::Clean | Ending::Corrupt { .. } => {}
    }
    opened.file.sync_data()
}

/// Writes what is there from `from` to `to` once more, and syncs after each piece of moderate size.
fn write_again(file: &Arc<dyn DiskFile>, from: u64, to: u64) -> io::Result<()> {
    let mut bytes = vec![0; ZERO_CHUNK];
    let mut at = from;
    while at < to {
        let len = usize::try_from(to - at).unwrap_or(usize::MAX).min(ZERO_CHUNK);
        let read = file.read_at(&mut bytes[..len], at)?;
        if read == 0 {
            // Of a file that was cut short only the padding of the last record is missing.
            break;
        }
        file.write_at(&[IoSlice::new(&bytes[..read])], at)?;
        file.sync_data()?;
        at += read as u64;
    }
    Ok(())
}

/// Writes zeros from `from` to `to`, and syncs after each piece of moderate size.
pub(crate) fn zero(file: &Arc<dyn DiskFile>, from: u64, to: u64) -> io::Result<()> {
    let mut at = from;
    while at < to {
        let len = usize::try_from(to - at).unwrap_or(usize::MAX).min(ZERO_CHUNK);
        file.write_at(&[IoSlice::new(&ZEROS[..len])], at)?;
        file.sync_data()?;
        at += len as u64;
    }
    Ok(())
}
