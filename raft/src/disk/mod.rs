//! The one seam for files: everything that touches the disk goes through [`Disk`], [`DiskFile`] and
//! [`DiskMap`], so that a test can put [`FaultDisk`] underneath, which loses unsynced writes, tears them,
//! flips bits, fails an fsync or runs out of space.

mod direct;
mod fault;
mod map;
mod real;

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;

pub use fault::FaultDisk;
pub use real::RealDisk;

/// Where files live. All paths are those of the data directory and of the files directly within it.
pub trait Disk: Send + Sync + 'static {
    /// Creates a directory and its parents; nothing happens when it exists.
    ///
    /// # Errors
    /// What the system says.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// The names of the files directly within `dir`, in no particular order.
    ///
    /// # Errors
    /// What the system says.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Opens a file.
    ///
    /// # Errors
    /// What the system says; `NotFound` when it is absent and not to be created.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file, replacing one of the new name. Durable after [`Disk::sync_dir`] only.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Durable after [`Disk::sync_dir`] only.
    ///
    /// # Errors
    /// What the system says.
    fn unlink(&self, path: &Path) -> io::Result<()>;

    /// Makes creations, renames and removals within `dir` durable.
    ///
    /// # Errors
    /// What the system says. As with any fsync, it must not be retried.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// The room on the disk that holds `dir`; `None` when nothing bounds it. Must not wait for the disk.
    ///
    /// # Errors
    /// What the system says.
    fn space(&self, dir: &Path) -> io::Result<Option<DiskSpace>>;

    /// Takes an exclusive lock on the file, created when absent, until the answer is dropped; `None` when
    /// somebody else holds it.
    ///
    /// # Errors
    /// What the system says.
    fn lock(&self, path: &Path) -> io::Result<Option<DiskLock>>;

    /// How long the next write and sync are to take by the runtime's clock. Asked by nodes only that do their
    /// IO on the runtime ([`crate::Options::inline`]): a disk in memory is slow because it says so.
    fn latency(&self) -> Duration {
        Duration::ZERO
    }
}

/// The room on a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// What this process may still use.
    pub free: u64,
    /// What there is.
    pub total: u64,
}

/// A lock held; dropping it releases it.
pub type DiskLock = Box<dyn std::any::Any + Send + Sync>;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Existing, for reading.
    Read,
    /// Existing, for reading and writing.
    Write,
    /// New and empty, for reading and writing; an existing one is emptied.
    Create,
}

/// One open file.
pub trait DiskFile: Send + Sync {
    /// Writes all of `parts`, one after the other, at `offset`. Not durable before [`DiskFile::sync_data`].
    ///
    /// # Errors
    /// What the system says; some of the bytes may have been written then.
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()>;

    /// A way to write past the system's page cache, when there is one that keeps reads and maps of the file right, and
    /// the file's length is a multiple of the block. What lies at `offset` is written once more to try it out: nobody
    /// else may write to the file meanwhile.
    fn direct(&self, offset: u64) -> Option<Direct>;

    /// Reads at `offset` until `buf` is full or the file ends; answers how many bytes were read.
    ///
    /// # Errors
    /// What the system says; this is where a media error shows.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Drops what the system keeps in memory of a range that is written and synced, as far as nobody has it mapped: the next
    /// read comes from the disk. Only a hint.
    fn forget(&self, offset: u64, len: usize) {
        let _ = (offset, len);
    }

    /// Makes everything written durable (`fdatasync`).
    ///
    /// # Errors
    /// What the system says. It must not be retried: the kernel may have dropped the writes.
    fn sync_data(&self) -> io::Result<()>;

    /// Reserves space so that the file is at least `len` bytes long; what is new reads as zeros.
    ///
    /// # Errors
    /// What the system says, `StorageFull` above all.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// The file's size in bytes.
    ///
    /// # Errors
    /// What the system says.
    fn size(&self) -> io::Result<u64>;

    /// Maps the first `len` bytes for reading. What is written to the file later is seen in the map.
    ///
    /// # Errors
    /// What the system says.
    fn map(&self, len: u64) -> io::Result<Arc<dyn DiskMap>>;
}

/// Writes past the system's page cache.
pub struct Direct {
    /// Where they go.
    pub file: Arc<dyn BlockFile>,
    /// What offsets and lengths must be multiples of, in bytes.
    pub block: usize,
}

/// A file written past the system's page cache.
pub trait BlockFile: Send + Sync {
    /// Writes whole blocks at a block's offset, from an address that is a multiple of 4096. Not durable before
    /// [`DiskFile::sync_data`].
    ///
    /// # Errors
    /// What the system says; some of the bytes may have been written then.
    fn write_blocks(&self, blocks: &[u8], offset: u64) -> io::Result<()>;
}

/// A file mapped for reading. The file must never become shorter than the map.
pub trait DiskMap: Send + Sync {
    /// Appends `len` bytes at `offset` to `out`. Faults pages in when they are not resident, so call it for
    /// resident ranges only.
    ///
    /// # Panics
    /// When the range is not within the map.
    fn copy(&self, offset: u64, len: usize, out: &mut BytesMut);

    /// Whether all pages of the range are in memory, so that [`DiskMap::copy`] will not wait for the disk.
    ///
    /// # Panics
    /// When the range is not within the map.
    fn resident(&self, offset: u64, len: usize) -> bool;
}
