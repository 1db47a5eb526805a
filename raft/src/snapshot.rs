//! Snapshot files: an image of the state, and where in the log it belongs.
//!
//! ```text
//! header   0 magic "BEANSNAP"  8 version u32  12 membership length u32  16 log position: term u64, index u64
//!          32 log position of the membership  48 membership  then crc u32
//! frame    length u32  crc u32  bytes                                    any number of them
//! end      0 u32  crc u32 of the total length u64
//! ```
//!
//! Written under a temporary name, synced, renamed, and the directory synced; the one before is removed only
//! then. A frame's CRC is seeded with the number of bytes before it, so that no frame can be lost or swapped.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Access, Disk, DiskFile};
use crate::error::{Corruption, StartError};
use crate::format::{self, VERSION, u32_at};
use crate::output::Output;
use crate::transfer::Staged;
use crate::types::{self, SnapshotMeta, StoredMembership};

/// What a snapshot file is called.
pub(crate) const SUFFIX: &str = ".snap";
const TEMPORARY: &str = ".snap.tmp";
const MAGIC: &[u8; 8] = b"BEANSNAP";
const FIXED: usize = 48;
/// The longest frame; longer slices are cut.
const FRAME_MAX: usize = 1 << 20;
/// The longest encoded membership.
const MEMBERSHIP_MAX: usize = 1 << 20;

/// A durable snapshot.
#[derive(Clone)]
pub(crate) struct SnapshotFile {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) path: PathBuf,
    pub(crate) meta: SnapshotMeta,
    /// Where the frames start.
    start: u64,
    /// What came with it from another node and waits, like the file itself, to be put into place.
    pub(crate) staged: Option<Arc<Staged>>,
}

impl SnapshotFile {
    /// The index it was taken at.
    pub(crate) fn index(&self) -> u64 {
        self.meta.last_log_id.map_or(0, |id| id.index())
    }

    /// How long the file is, in bytes.
    pub(crate) fn size(&self) -> io::Result<u64> {
        self.disk.open(&self.path, Access::Read)?.size()
    }

    /// Gives a file that was staged its name, durably.
    pub(crate) fn put_into_place(&self, dir: &Path) -> io::Result<Self> {
        let path = path(dir, self.index());
        self.disk.rename(&self.path, &path)?;
        self.disk.sync_dir(dir)?;
        Ok(Self { path, staged: None, ..self.clone() })
    }

    /// Reads the image.
    pub(crate) fn image(&self) -> io::Result<ImageReader> {
        let file = self.disk.open(&self.path, Access::Read)?;
        Ok(ImageReader { file, at: self.start, total: 0, frame: Vec::new(), used: 0, ended: false })
    }
}

/// The newest snapshot in `dir`. Older ones, left by a crash, and unfinished ones are removed.
pub(crate) fn open_newest(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Option<SnapshotFile>, StartError> {
    let failed = |source| StartError::Io { file: dir.to_path_buf(), source };
    let names = disk.list(dir).map_err(failed)?;
    let mut indexes: Vec<u64> =
        names.iter().filter_map(|name| name.strip_suffix(SUFFIX)?.parse().ok()).collect();
    indexes.sort_unstable();
    let newest = indexes.pop();
    let unfinished = names.iter().filter(|name| name.ends_with(TEMPORARY)).map(|name| dir.join(name));
    let older = indexes.into_iter().map(|index| path(dir, index));
    let superfluous: Vec<PathBuf> = unfinished.chain(older).collect();
    let found = newest.map(|index| open(disk, dir, &path(dir, index))).transpose()?;
    for path in superfluous {
        disk.unlink(&path).map_err(failed)?;
    }
    Ok(found)
}

/// The paths of all snapshots in `dir`.
pub(crate) fn paths(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<PathBuf>> {
    let names = disk.list(dir)?;
    Ok(names.iter().filter(|name| name.ends_with(SUFFIX)).map(|name| dir.join(name)).collect())
}

fn path(dir: &Path, index: u64) -> PathBuf {
    dir.join(format!("{index:016}{SUFFIX}"))
}

/// Opens a snapshot and checks its header.
pub(crate) fn open(disk: &Arc<dyn Disk>, dir: &Path, path: &Path) -> Result<SnapshotFile, StartError> {
    let failed = |source| StartError::Io { file: path.to_path_buf(), source };
    let file = disk.open(path, Access::Read).map_err(failed)?;
    match read_header(&*file).map_err(failed)? {
        Ok((meta, start)) => {
            Ok(SnapshotFile { disk: disk.clone(), path: path.to_path_buf(), meta, start, staged: None })
        }
        Err(Some(found)) => Err(StartError::Version { file: path.to_path_buf(), found, supported: VERSION }),
        Err(None) => Err(corrupt(dir, path, "the snapshot's header is damaged")),
    }
}

/// The error of a snapshot that cannot be used.
pub(crate) fn corrupt(dir: &Path, file: &Path, what: &str) -> StartError {
    let what = what.to_owned();
    Corruption { dir: dir.to_path_buf(), file: file.to_path_buf(), offset: 0, what, member: None }.into()
}

type Header = (SnapshotMeta, u64);

/// The header, or the other version that it has, or `None` for damage.
fn read_header(file: &dyn DiskFile) -> io::Result<Result<Header, Option<u32>>> {
    let mut bytes = vec![0; FIXED];
    let read = file.read_at(&mut bytes, 0)?;
    if read == FIXED {
        let len = (u32_at(&bytes, 12) as usize).min(MEMBERSHIP_MAX);
        bytes.resize(FIXED + len + 4, 0);
        let read = file.read_at(&mut bytes[FIXED..], FIXED as u64)?;
        bytes.truncate(FIXED + read);
    } else {
        bytes.truncate(read);
    }
    let start = bytes.len() as u64;
    Ok(decode_header(&bytes).map(|meta| (meta, start)))
}

/// The meaning of exactly the bytes of a header, or the other version that they have, or `None` for damage.
pub(crate) fn decode_header(bytes: &[u8]) -> Result<SnapshotMeta, Option<u32>> {
    if bytes.len() < FIXED + 4 || &bytes[..8] != MAGIC {
        return Err(None);
    }
    if u32_at(bytes, 8) != VERSION {
        return Err(Some(u32_at(bytes, 8)));
    }
    let (checked, crc) = bytes.split_at(bytes.len() - 4);
    let len = u32_at(bytes, 12) as usize;
    if checked.len() != FIXED + len || crc32fast::hash(checked) != u32_at(crc, 0) {
        return Err(None);
    }
    let membership = types::decode_membership(&checked[FIXED..]).ok_or(None)?;
    let membership_at = format::decode_position(bytes, 32).map(Into::into);
    Ok(SnapshotMeta {
        last_log_id: format::decode_position(bytes, 16).map(Into::into),
        last_membership: StoredMembership::new(membership_at, membership),
    })
}

pub(crate) fn encode_header(meta: &SnapshotMeta) -> Vec<u8> {
    let membership = types::encode_membership(meta.last_membership.membership());
    let mut out = Vec::with_capacity(FIXED + membership.len() + 4);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    let len = u32::try_from(membership.len()).expect("a membership has few nodes");
    out.extend_from_slice(&len.to_le_bytes());
    format::encode_position(meta.last_log_id.map(Into::into), &mut out);
    format::encode_position(meta.last_membership.log_id().map(Into::into), &mut out);
    out.extend_from_slice(&membership);
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// Appends the next slice of an image; answers `false` when that was the last.
pub(crate) type NextSlice<'a> = &'a mut dyn FnMut(&mut Vec<u8>) -> io::Result<bool>;

/// Writes a snapshot and makes it durable. Blocks. An unfinished file is removed when that fails.
pub(crate) fn write(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    meta: &SnapshotMeta,
    image: NextSlice<'_>,
) -> io::Result<SnapshotFile> {
    let index = meta.last_log_id.map_or(0, |id| id.index());
    let temporary = dir.join(format!("{index:016}{TEMPORARY}"));
    match write_file(disk, &temporary, meta, image) {
        Ok(file) => file.put_into_place(dir),
        Err(error) => {
            disk.unlink(&temporary).ok();
            Err(error)
        }
    }
}

fn write_file(
    disk: &Arc<dyn Disk>,
    path: &Path,
    meta: &SnapshotMeta,
    image: NextSlice<'_>,
) -> io::Result<SnapshotFile> {
    let mut out = Writer::create(disk, path.to_path_buf(), meta)?;
    let mut slice = Vec::new();
    let mut more = true;
    while more {
        slice.clear();
        more = image(&mut slice)?;
        out.write(&slice)?;
    }
    out.finish(None)
}

/// Where a snapshot is written that comes from another node. `number` keeps it apart from one that this node
/// takes at the same index.
pub(crate) fn staging_path(dir: &Path, index: u64, number: u64) -> PathBuf {
    dir.join(format!("{index:016}-{number}{TEMPORARY}"))
}

/// A snapshot file being written under a temporary name.
pub(crate) struct Writer {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    meta: SnapshotMeta,
    start: u64,
    /// Bytes of the image so far.
    total: u64,
    out: Output,
}

impl Writer {
    pub(crate) fn create(disk: &Arc<dyn Disk>, path: PathBuf, meta: &SnapshotMeta) -> io::Result<Self> {
        let mut out = Output::create(&**disk, &path)?;
        out.write(&[&encode_header(meta)])?;
        Ok(Self { disk: disk.clone(), path, meta: meta.clone(), start: out.at, total: 0, out })
    }

    /// Appends to the image.
    pub(crate) fn write(&mut self, image: &[u8]) -> io::Result<()> {
        for frame in image.chunks(FRAME_MAX) {
            let len = u32::try_from(frame.len()).expect("a frame is short");
            self.out.write(&[&len.to_le_bytes(), &frame_crc(self.total, frame).to_le_bytes(), frame])?;
            self.total += frame.len() as u64;
        }
        Ok(())
    }

    /// Ends the image and makes the file durable, though not yet its name.
    pub(crate) fn finish(mut self, staged: Option<Arc<Staged>>) -> io::Result<SnapshotFile> {
        self.out.write(&[&0u32.to_le_bytes(), &frame_crc(self.total, &[]).to_le_bytes()])?;
        self.out.sync()?;
        Ok(SnapshotFile { disk: self.disk, path: self.path, meta: self.meta, start: self.start, staged })
    }
}

fn frame_crc(before: u64, frame: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&before.to_le_bytes());
    crc.update(frame);
    crc.finalize()
}

/// Reads an image frame by frame, checking each before it is handed on.
pub(crate) struct ImageReader {
    file: Arc<dyn DiskFile>,
    at: u64,
    total: u64,
    frame: Vec<u8>,
    used: usize,
    ended: bool,
}

impl ImageReader {
    fn next_frame(&mut self) -> io::Result<()> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a damaged frame in the snapshot");
        let mut head = [0; 8];
        if self.file.read_at(&mut head, self.at)? < head.len() {
            return Err(damaged());
        }
        let len = u32_at(&head, 0) as usize;
        if len > FRAME_MAX {
            return Err(damaged());
        }
        self.frame.resize(len, 0);
        let read = self.file.read_at(&mut self.frame, self.at + 8)?;
        if read < len || frame_crc(self.total, &self.frame) != u32_at(&head, 4) {
            return Err(damaged());
        }
        self.at += 8 + len as u64;
        self.total += len as u64;
        self.used = 0;
        self.ended = len == 0;
        Ok(())
    }
}

impl Read for ImageReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.used == self.frame.len() && !self.ended {
            self.next_frame()?;
        }
        let len = out.len().min(self.frame.len() - self.used);
        out[..len].copy_from_slice(&self.frame[self.used..self.used + len]);
        self.used += len;
        Ok(len)
    }
}

/// Keeps a snapshot that came from elsewhere: writes it anew into `dir`, checking it on the way.
pub(crate) fn copy(disk: &Arc<dyn Disk>, dir: &Path, from: &SnapshotFile) -> io::Result<SnapshotFile> {
    let mut reader = from.image()?;
    write(disk, dir, &from.meta, &mut |out| {
        reader.next_frame()?;
        out.extend_from_slice(&reader.frame);
        Ok(!reader.ended)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FaultDisk;
    use crate::format::Position;
    use crate::types::Membership;

    fn written(index: u64) -> (FaultDisk, Arc<dyn Disk>, SnapshotFile) {
        let disk = FaultDisk::new();
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        shared.create_dir(Path::new("d")).unwrap();
        let meta = SnapshotMeta {
            last_log_id: Some(Position { term: 2, index }.into()),
            last_membership: StoredMembership::new(None, Membership::default()),
        };
        let mut slices = vec![vec![3; 3_000_000], Vec::new(), vec![1; 100]];
        let file = write(&shared, Path::new("d"), &meta, &mut |out| {
            out.extend_from_slice(&slices.pop().unwrap());
            Ok(!slices.is_empty())
        });
        let file = file.unwrap();
        (disk, shared, file)
    }

    /// What was written is read back, meta and image; an older file and an unfinished one are removed.
    #[test]
    fn round_trip() {
        let (disk, shared, file) = written(40);
        let mut bytes = Vec::new();
        file.image().unwrap().read_to_end(&mut bytes).unwrap();
        let expected: Vec<u8> = [vec![1; 100], vec![3; 3_000_000]].concat();
        assert!(bytes == expected);
        disk.overwrite(Path::new("d/0000000000000039.snap"), vec![1]);
        disk.overwrite(Path::new("d/0000000000000050.snap.tmp"), vec![1]);
        let found = open_newest(&shared, Path::new("d")).unwrap().unwrap();
        assert_eq!((found.index(), &found.meta), (40, &file.meta));
        assert_eq!(shared.list(Path::new("d")).unwrap().len(), 1);
    }

    /// A changed, missing or cut byte is noticed, in the header at once and in the image when it is read.
    #[test]
    fn damage() {
        let (disk, shared, file) = written(40);
        let whole = disk.read(&file.path).unwrap();
        for at in (0..whole.len()).step_by(9_973).chain([0, 12, 20, 60, whole.len() - 1]) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            disk.overwrite(&file.path, bytes);
            let read = open_newest(&shared, Path::new("d"))
                .map_err(|error| io::Error::other(error.to_string()))
                .and_then(|found| found.unwrap().image()?.read_to_end(&mut Vec::new()));
            assert!(read.is_err(), "byte {at}");
        }
        disk.overwrite(&file.path, whole[..whole.len() - 8].to_vec());
        assert!(file.image().unwrap().read_to_end(&mut Vec::new()).is_err());
    }
}
