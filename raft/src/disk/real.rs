//! The operating system's files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::sys::statvfs::statvfs;
use nix::sys::uio::pwritev;

use super::direct;
use super::map::FileMap;
use super::{Access, Direct, Disk, DiskFile, DiskLock, DiskMap, DiskSpace};

/// The operating system's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

/// The most parts one `pwritev` takes.
const IOV_MAX: usize = 1024;

impl Disk for RealDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(dir)?;
        // The directory's own name must survive a power cut as well.
        match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => self.sync_dir(parent),
            Some(_) | None => self.sync_dir(Path::new(".")),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        match access {
            Access::Read => options.read(true),
            Access::Write => options.read(true).write(true),
            Access::Create => options.read(true).write(true).create(true).truncate(true),
        };
        Ok(Arc::new(RealFile { file: options.open(path)? }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn space(&self, dir: &Path) -> io::Result<Option<DiskSpace>> {
        let found = statvfs(dir)?;
        let block = found.fragment_size();
        let bytes = |blocks: u64| blocks.saturating_mul(block);
        Ok(Some(DiskSpace { free: bytes(found.blocks_available()), total: bytes(found.blocks()) }))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<DiskLock>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut held) => {
                // Who holds it, for the error message of the next one. Nothing depends on it.
                held.set_len(0)?;
                writeln!(held, "{}", std::process::id())?;
                Ok(Some(Box::new(held)))
            }
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }
}

struct RealFile {
    file: File,
}

impl DiskFile for RealFile {
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut offset = offset;
        for chunk in parts.chunks(IOV_MAX) {
            let total: usize = chunk.iter().map(|part| part.len()).sum();
            let mut written = 0;
            while written < total {
                let now = if written == 0 {
                    pwritev_once(&self.file, chunk, offset)?
                } else {
                    self.write_rest(chunk, written, offset)?
                };
                written += now;
                offset += now as u64;
            }
        }
        Ok(())
    }

    fn direct(&self, offset: u64) -> Option<Direct> {
        direct::try_out(&self.file, offset)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut read = 0;
        while read < buf.len() {
            match self.file.read_at(&mut buf[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(now) => read += now,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn forget(&self, offset: u64, len: usize) {
        if let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) {
            // A system that does not take the hint reads from memory.
            posix_fadvise(&self.file, offset, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED).ok();
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let now = self.size()?;
        if len <= now {
            return Ok(());
        }
        let bytes = i64::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        match fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            // A file system without it still gives zeros, and the caller writes them out anyway.
            Err(Errno::EOPNOTSUPP) => self.file.set_len(len),
            answer => Ok(answer?),
        }
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn map(&self, len: u64) -> io::Result<Arc<dyn DiskMap>> {
        Ok(Arc::new(FileMap::new(&self.file, len)?))
    }
}

impl RealFile {
    /// The system took part of a gathering write: writes what is left of the part it stopped in.
    fn write_rest(&self, parts: &[IoSlice<'_>], written: usize, offset: u64) -> io::Result<usize> {
        let mut skip = written;
        for part in parts {
            if skip < part.len() {
                return pwritev_once(&self.file, &[IoSlice::new(&part[skip..])], offset);
            }
            skip -= part.len();
        }
        Ok(0)
    }
}

fn pwritev_once(file: &File, parts: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
    let at = i64::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    loop {
        match pwritev(file, parts, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(now) => return Ok(now),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
