//! A disk in memory that can be made to fail in the ways that real ones do.
//!
//! Crash model: a write becomes durable with the next `sync_data` of its file, a name with the next
//! `sync_dir`. A power cut keeps, of everything not yet durable, an arbitrary subset: each sector (512 or
//! 4096 bytes, see [`FaultDisk::with_sector`]) of each unsynced write independently has its new or its old
//! content, and of the unsynced changes of names a prefix survives.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Access, BlockFile, Direct, Disk, DiskFile, DiskLock, DiskMap, DiskSpace};

/// What direct writes to it are aligned to.
const BLOCK: usize = 512;

/// A disk in memory, with faults on demand. Clones share the same disk.
#[derive(Clone)]
pub struct FaultDisk {
    inner: Arc<Inner>,
}

struct Inner {
    /// Granularity at which an unsynced write survives a power cut, in bytes.
    sector: usize,
    /// Set by a power cut: every handle to this disk fails from then on.
    off: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Names as the running process sees them.
    names: BTreeMap<PathBuf, FileRef>,
    /// Names as of the last `sync_dir`.
    durable_names: BTreeMap<PathBuf, FileRef>,
    /// Changes of names since then, in order.
    pending: Vec<NameChange>,
    dirs: BTreeSet<PathBuf>,
    locks: Arc<Mutex<BTreeSet<PathBuf>>>,
    /// Bytes that all files together may have; `None` for no limit.
    space: Option<u64>,
    /// How many more syncs succeed before one fails.
    syncs_before_failure: Option<u64>,
    /// How many more writes succeed before one fails.
    writes_before_failure: Option<u64>,
    /// How many more changes are done before the power goes.
    changes_before_cut: Option<u64>,
    /// How long a write and its sync take at most, and what draws how long each takes; none takes no time.
    slowness: Option<(Duration, StdRng)>,
    /// Syncs and writes that have failed because they were to.
    failures: u64,
    /// How many more changes are done before there is no more space.
    changes_before_full: Option<u64>,
    changes: u64,
    syncs: u64,
    writes: u64,
    bytes_written: u64,
    most_unsynced: u64,
}

type FileRef = Arc<Mutex<Contents>>;

#[derive(Clone)]
enum NameChange {
    Set(PathBuf, FileRef),
    Remove(PathBuf),
}

#[derive(Default)]
struct Contents {
    /// As the running process sees it.
    now: Vec<u8>,
    /// As of the last sync.
    durable: Vec<u8>,
    /// Sectors in which the two may differ.
    dirty: BTreeSet<usize>,
    /// Bytes that cannot be read any more.
    unreadable: Vec<Range<usize>>,
}

impl FaultDisk {
    /// An empty disk with 512-byte sectors.
    #[must_use]
    pub fn new() -> Self {
        Self::with_sector(512)
    }

    /// An empty disk where unsynced writes survive a power cut in units of `sector` bytes.
    #[must_use]
    pub fn with_sector(sector: usize) -> Self {
        Self::from_state(sector, State::default())
    }

    fn from_state(sector: usize, state: State) -> Self {
        Self { inner: Arc::new(Inner { sector, off: AtomicBool::new(false), state: Mutex::new(state) }) }
    }

    /// Cuts the power: this disk and every open file of it fail from now on. Answers the disk that the next
    /// start finds; which unsynced sectors and names survived is drawn from `seed`.
    #[must_use]
    pub fn power_cut(&self, seed: u64) -> Self {
        self.inner.off.store(true, Ordering::SeqCst);
        let mut rng = StdRng::seed_from_u64(seed);
        let state = self.inner.state.lock();
        let mut names = state.durable_names.clone();
        let survive = rng.random_range(0..=state.pending.len());
        for change in &state.pending[..survive] {
            change.clone().apply(&mut names);
        }
        let names: BTreeMap<_, _> = names
            .into_iter()
            .map(|(path, file)| {
                let image = file.lock().survive(self.inner.sector, &mut rng);
                (path, Arc::new(Mutex::new(image)))
            })
            .collect();
        let survivor =
            State { durable_names: names.clone(), names, dirs: state.dirs.clone(), ..State::default() };
        Self::from_state(self.inner.sector, survivor)
    }

    /// A process kill: what was written stays, synced or not. Handles of the old process fail.
    #[must_use]
    pub fn kill(&self) -> Self {
        self.inner.off.store(true, Ordering::SeqCst);
        let state = self.inner.state.lock();
        let names: BTreeMap<_, _> = state
            .names
            .iter()
            .map(|(path, file)| {
                let file = file.lock();
                let image = Contents {
                    now: file.now.clone(),
                    durable: file.durable.clone(),
                    dirty: file.dirty.clone(),
                    unreadable: file.unreadable.clone(),
                };
                (path.clone(), Arc::new(Mutex::new(image)))
            })
            .collect();
        let survivor =
            State { durable_names: names.clone(), names, dirs: state.dirs.clone(), ..State::default() };
        Self::from_state(self.inner.sector, survivor)
    }

    /// Fails one sync with an input/output error, after `successes` more that succeed; what the failed one
    /// should have made durable is lost with the next power cut.
    pub fn fail_sync_after(&self, successes: u64) {
        self.inner.state.lock().syncs_before_failure = Some(successes);
    }

    /// Fails one write with an input/output error, after `successes` more that succeed.
    pub fn fail_write_after(&self, successes: u64) {
        self.inner.state.lock().writes_before_failure = Some(successes);
    }

    /// Lets the power go after `changes` more writes, syncs and changes of names: everything fails from then on.
    /// [`FaultDisk::power_cut`] answers what survived.
    pub fn cut_after(&self, changes: u64) {
        self.inner.state.lock().changes_before_cut = Some(changes);
    }

    /// From now on a write and its sync take up to `most` together, drawn from `seed` each time.
    pub fn slow_down(&self, most: Duration, seed: u64) {
        self.inner.state.lock().slowness = (!most.is_zero()).then(|| (most, StdRng::seed_from_u64(seed)));
    }

    /// Takes back every failure that was asked for and has not come yet.
    pub fn be_well(&self) {
        let mut state = self.inner.state.lock();
        (state.syncs_before_failure, state.writes_before_failure, state.changes_before_cut) =
            (None, None, None);
        (state.space, state.slowness, state.changes_before_full) = (None, None, None);
    }

    /// Whether a failure that was asked for has come: the power is gone, or a sync or write has failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.inner.off.load(Ordering::SeqCst) || self.inner.state.lock().failures > 0
    }

    /// Lets the disk be full after `changes` more writes, syncs and changes of names: nothing may grow from then on.
    pub fn full_after(&self, changes: u64) {
        self.inner.state.lock().changes_before_full = Some(changes);
    }

    /// How many writes, syncs and changes of names were begun.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.inner.state.lock().changes
    }

    /// Bounds what all files together may occupy, in bytes; beyond it writing gives "no space".
    pub fn set_space(&self, bytes: Option<u64>) {
        self.inner.state.lock().space = bytes;
    }

    /// What all files occupy, in bytes.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.inner.state.lock().used()
    }

    /// How many syncs (of data and of directories) have succeeded.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.inner.state.lock().syncs
    }

    /// How many writes have succeeded.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.inner.state.lock().writes
    }

    /// How many bytes were written.
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        self.inner.state.lock().bytes_written
    }

    /// The most bytes, in whole sectors, that any one file had unsynced at a time.
    #[must_use]
    pub fn most_unsynced(&self) -> u64 {
        self.inner.state.lock().most_unsynced
    }

    /// The contents of a file as the running process sees them.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.inner.state.lock();
        let file = state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        let now = file.lock().now.clone();
        Ok(now)
    }

    /// Replaces the contents of a file, durably, behind the back of whoever uses it: how tests damage files.
    pub fn overwrite(&self, path: &Path, bytes: Vec<u8>) {
        let mut state = self.inner.state.lock();
        let contents = Contents { now: bytes.clone(), durable: bytes, ..Contents::default() };
        let file = Arc::new(Mutex::new(contents));
        state.names.insert(path.to_path_buf(), file.clone());
        state.durable_names.insert(path.to_path_buf(), file);
    }

    /// Changes a bit of a file, durably: who has it open sees it, too.
    ///
    /// # Panics
    /// When there is no such file, or it is shorter.
    pub fn flip(&self, path: &Path, offset: u64) {
        let state = self.inner.state.lock();
        let mut file = state.names.get(path).expect("there is such a file").lock();
        let at = to_usize(offset);
        file.now[at] ^= 1;
        if let Some(byte) = file.durable.get_mut(at) {
            *byte ^= 1;
        }
    }

    /// From now on reads of a part of a file fail with an input/output error.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn spoil(&self, path: &Path, range: Range<u64>) {
        let state = self.inner.state.lock();
        let mut file = state.names.get(path).expect("there is such a file").lock();
        file.unreadable.push(to_usize(range.start)..to_usize(range.end));
    }

    /// Counts a change, unless the power is gone by then.
    fn count_change(&self) -> io::Result<()> {
        self.check()?;
        let mut state = self.inner.state.lock();
        state.changes += 1;
        match &mut state.changes_before_cut {
            Some(0) => self.inner.off.store(true, Ordering::SeqCst),
            Some(left) => *left -= 1,
            None => {}
        }
        match &mut state.changes_before_full {
            Some(0) => {
                state.changes_before_full = None;
                state.space = Some(state.used());
            }
            Some(left) => *left -= 1,
            None => {}
        }
        drop(state);
        self.check()
    }

    fn check(&self) -> io::Result<()> {
        if self.inner.off.load(Ordering::SeqCst) {
            return Err(io::Error::other("the power is cut"));
        }
        Ok(())
    }
}

impl Default for FaultDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    fn used(&self) -> u64 {
        self.names.values().map(|file| file.lock().now.len() as u64).sum()
    }

    fn change(&mut self, change: NameChange) {
        change.clone().apply(&mut self.names);
        self.pending.push(change);
    }

    fn sync_result(&mut self) -> io::Result<()> {
        countdown(&mut self.syncs_before_failure).inspect_err(|_| self.failures += 1)?;
        self.syncs += 1;
        Ok(())
    }
}

fn countdown(left: &mut Option<u64>) -> io::Result<()> {
    match left {
        None => Ok(()),
        Some(0) => {
            *left = None;
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
        Some(more) => {
            *more -= 1;
            Ok(())
        }
    }
}

impl NameChange {
    fn apply(self, names: &mut BTreeMap<PathBuf, FileRef>) {
        match self {
            Self::Set(path, file) => names.insert(path, file),
            Self::Remove(path) => names.remove(&path),
        };
    }
}

impl Contents {
    fn survive(&self, sector: usize, rng: &mut StdRng) -> Self {
        let mut image = self.durable.clone();
        let grown = self.now.len() > self.durable.len();
        if grown && rng.random() {
            image.resize(self.now.len(), 0);
        }
        // Mostly a mixture, at times all or nothing.
        let keep: f64 = [0.0, 0.5, 0.9, 1.0][rng.random_range(0..4)];
        for &number in &self.dirty {
            let start = (number * sector).min(image.len());
            let end = (start + sector).min(image.len()).min(self.now.len());
            if start < end && rng.random_bool(keep) {
                image[start..end].copy_from_slice(&self.now[start..end]);
            }
        }
        let unreadable = self.unreadable.clone();
        Self { now: image.clone(), durable: image, dirty: BTreeSet::new(), unreadable }
    }

    fn is_unreadable(&self, start: usize, len: usize) -> bool {
        self.unreadable.iter().any(|bad| bad.start < start + len && start < bad.end)
    }

    fn write(&mut self, sector: usize, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if self.now.len() < end {
            self.now.resize(end, 0);
        }
        self.now[offset..end].copy_from_slice(bytes);
        if !bytes.is_empty() {
            self.dirty.extend(offset / sector..=(end - 1) / sector);
        }
    }

    fn sync(&mut self, sector: usize) {
        self.durable.resize(self.now.len(), 0);
        for number in std::mem::take(&mut self.dirty) {
            let start = number * sector;
            let end = (start + sector).min(self.now.len());
            self.durable[start..end].copy_from_slice(&self.now[start..end]);
        }
    }
}

impl Disk for FaultDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.check()?;
        self.inner.state.lock().dirs.insert(dir.to_path_buf());
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.check()?;
        let state = self.inner.state.lock();
        if !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let here = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(here.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        match access {
            Access::Create => self.count_change()?,
            Access::Read | Access::Write => self.check()?,
        }
        let mut state = self.inner.state.lock();
        let file = match (access, state.names.get(path)) {
            (Access::Read | Access::Write, None) => return Err(io::ErrorKind::NotFound.into()),
            (Access::Read | Access::Write, Some(file)) => file.clone(),
            (Access::Create, _) => {
                let file = FileRef::default();
                state.change(NameChange::Set(path.to_path_buf(), file.clone()));
                file
            }
        };
        Ok(Arc::new(FaultFile { disk: self.clone(), file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.count_change()?;
        let mut state = self.inner.state.lock();
        let file = state.names.get(from).cloned().ok_or(io::ErrorKind::NotFound)?;
        state.change(NameChange::Set(to.to_path_buf(), file));
        state.change(NameChange::Remove(from.to_path_buf()));
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.count_change()?;
        let mut state = self.inner.state.lock();
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change(NameChange::Remove(path.to_path_buf()));
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        self.count_change()?;
        let mut state = self.inner.state.lock();
        state.sync_result()?;
        state.durable_names = state.names.clone();
        state.pending.clear();
        Ok(())
    }

    fn space(&self, _dir: &Path) -> io::Result<Option<DiskSpace>> {
        self.check()?;
        let state = self.inner.state.lock();
        let space = |total: u64| DiskSpace { free: total.saturating_sub(state.used()), total };
        Ok(state.space.map(space))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<DiskLock>> {
        self.check()?;
        let locks = self.inner.state.lock().locks.clone();
        let taken = locks.lock().insert(path.to_path_buf());
        Ok(taken.then(|| Box::new(Held { locks, path: path.to_path_buf() }) as DiskLock))
    }

    fn latency(&self) -> Duration {
        let mut state = self.inner.state.lock();
        state.slowness.as_mut().map_or(Duration::ZERO, |(most, rng)| rng.random_range(Duration::ZERO..=*most))
    }
}

struct Held {
    locks: Arc<Mutex<BTreeSet<PathBuf>>>,
    path: PathBuf,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.locks.lock().remove(&self.path);
    }
}

struct FaultFile {
    disk: FaultDisk,
    file: FileRef,
}

impl FaultFile {
    fn room_for(&self, state: &State, len: usize) -> io::Result<()> {
        let grows = len.saturating_sub(self.file.lock().now.len()) as u64;
        match state.space {
            Some(space) if grows > 0 && state.used() + grows > space => {
                Err(io::Error::from_raw_os_error(libc::ENOSPC))
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn to_usize(offset: u64) -> usize {
    usize::try_from(offset).expect("a file in memory is addressable")
}

impl DiskFile for FaultFile {
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.disk.count_change()?;
        let mut state = self.disk.inner.state.lock();
        let total: usize = parts.iter().map(|part| part.len()).sum();
        self.room_for(&state, to_usize(offset) + total)?;
        let state = &mut *state;
        countdown(&mut state.writes_before_failure).inspect_err(|_| state.failures += 1)?;
        state.writes += 1;
        state.bytes_written += total as u64;
        let mut at = to_usize(offset);
        let mut file = self.file.lock();
        for part in parts {
            file.write(self.disk.inner.sector, part, at);
            at += part.len();
        }
        let unsynced = (file.dirty.len() * self.disk.inner.sector) as u64;
        state.most_unsynced = state.most_unsynced.max(unsynced);
        Ok(())
    }

    fn direct(&self, _offset: u64) -> Option<Direct> {
        let file = Self { disk: self.disk.clone(), file: self.file.clone() };
        let whole = self.file.lock().now.len().is_multiple_of(BLOCK);
        whole.then(|| Direct { file: Arc::new(file), block: BLOCK })
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.check()?;
        let file = self.file.lock();
        let start = to_usize(offset).min(file.now.len());
        let len = buf.len().min(file.now.len() - start);
        if file.is_unreadable(start, len) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        buf[..len].copy_from_slice(&file.now[start..start + len]);
        Ok(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.count_change()?;
        let result = self.disk.inner.state.lock().sync_result();
        let mut file = self.file.lock();
        match result {
            Ok(()) => file.sync(self.disk.inner.sector),
            // As Linux does: the pages count as clean afterwards, their content is not on the disk.
            Err(_) => file.dirty.clear(),
        }
        result
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.disk.check()?;
        let state = self.disk.inner.state.lock();
        self.room_for(&state, to_usize(len))?;
        let mut file = self.file.lock();
        if file.now.len() < to_usize(len) {
            file.now.resize(to_usize(len), 0);
        }
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        self.disk.check()?;
        Ok(self.file.lock().now.len() as u64)
    }

    fn map(&self, len: u64) -> io::Result<Arc<dyn DiskMap>> {
        self.disk.check()?;
        if self.file.lock().now.len() < to_usize(len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Arc::new(FaultMap { file: self.file.clone() }))
    }
}

impl BlockFile for FaultFile {
    fn write_blocks(&self, blocks: &[u8], offset: u64) -> io::Result<()> {
        assert!(blocks.len().is_multiple_of(BLOCK) && offset.is_multiple_of(BLOCK as u64), "whole blocks");
        self.write_at(&[IoSlice::new(blocks)], offset)
    }
}

struct FaultMap {
    file: FileRef,
}

impl DiskMap for FaultMap {
    fn copy(&self, offset: u64, len: usize, out: &mut BytesMut) {
        let start = to_usize(offset);
        out.extend_from_slice(&self.file.lock().now[start..start + len]);
    }

    fn resident(&self, offset: u64, len: usize) -> bool {
        let (file, start) = (self.file.lock(), to_usize(offset));
        assert!(start + len <= file.now.len(), "{len} bytes at {start} are beyond the map");
        !file.is_unreadable(start, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(disk: &FaultDisk, name: &str) -> Arc<dyn DiskFile> {
        disk.create_dir(Path::new("d")).unwrap();
        disk.open(&Path::new("d").join(name), Access::Create).unwrap()
    }

    /// Synced bytes survive every power cut, unsynced ones not always, and old handles are dead.
    #[test]
    fn power_cut_keeps_what_was_synced() {
        let mut lost = 0;
        for seed in 0..100 {
            let disk = FaultDisk::new();
            let f = file(&disk, "a");
            f.write_at(&[IoSlice::new(&[1; 2000])], 0).unwrap();
            f.sync_data().unwrap();
            disk.sync_dir(Path::new("d")).unwrap();
            f.write_at(&[IoSlice::new(&[2; 512])], 512).unwrap();
            let after = disk.power_cut(seed);
            assert!(f.write_at(&[IoSlice::new(&[3])], 0).is_err());
            let bytes = after.read(Path::new("d/a")).unwrap();
            assert_eq!(&bytes[..512], &[1; 512]);
            assert_eq!(&bytes[1024..], &[1; 976]);
            assert!(bytes[512..1024] == [1; 512] || bytes[512..1024] == [2; 512]);
            lost += u32::from(bytes[512] == 1);
        }
        assert!((10..90).contains(&lost), "lost {lost} of 100");
    }

    /// A name that was not synced may or may not be there; a failed sync is reported once.
    #[test]
    fn names_and_failures() {
        let disk = FaultDisk::new();
        let f = file(&disk, "a");
        disk.fail_sync_after(1);
        f.sync_data().unwrap();
        assert!(f.sync_data().is_err());
        f.sync_data().unwrap();
        let kept = (0..50).filter(|seed| disk.power_cut(*seed).read(Path::new("d/a")).is_ok()).count();
        assert!((1..50).contains(&kept), "kept {kept}");
    }

    /// Space that is used up gives the system's own error and leaves the file as it was.
    #[test]
    fn no_space() {
        let disk = FaultDisk::new();
        disk.set_space(Some(100));
        let f = file(&disk, "a");
        f.write_at(&[IoSlice::new(&[1; 100])], 0).unwrap();
        let error = f.write_at(&[IoSlice::new(&[1; 1])], 100).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(f.size().unwrap(), 100);
        let locked = disk.lock(Path::new("d/lock")).unwrap();
        assert!(locked.is_some() && disk.lock(Path::new("d/lock")).unwrap().is_none());
        drop(locked);
        assert!(disk.lock(Path::new("d/lock")).unwrap().is_some());
    }
}
