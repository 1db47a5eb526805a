//! A file written from start to end that becomes durable on the way.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use crate::disk::{Access, Disk, DiskFile};

/// How many bytes may be written without a sync.
const UNSYNCED_MAX: u64 = 1 << 20;

/// A new file of which never more than [`UNSYNCED_MAX`] bytes are unsynced, unless one write alone is longer.
pub(crate) struct Output {
    pub(crate) file: Arc<dyn DiskFile>,
    /// Where the next write goes.
    pub(crate) at: u64,
    unsynced: u64,
}

impl Output {
    pub(crate) fn create(disk: &dyn Disk, path: &Path) -> io::Result<Self> {
        Ok(Self { file: disk.open(path, Access::Create)?, at: 0, unsynced: 0 })
    }

    /// Writes `parts` at the end.
    pub(crate) fn write(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.make_room(len as u64)?;
        self.file.write_at(&slices, self.at)?;
        self.at += len as u64;
        Ok(())
    }

    /// Writes a long piece, in parts of moderate size.
    pub(crate) fn write_long(&mut self, bytes: &[u8]) -> io::Result<()> {
        bytes.chunks(256 << 10).try_for_each(|chunk| self.write(&[chunk]))
    }

    /// Writes over what was written before.
    pub(crate) fn patch(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.make_room(bytes.len() as u64)?;
        self.file.write_at(&[IoSlice::new(bytes)], at)
    }

    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.unsynced = 0;
        Ok(())
    }

    fn make_room(&mut self, len: u64) -> io::Result<()> {
        if self.unsynced + len > UNSYNCED_MAX {
            self.sync()?;
        }
        self.unsynced += len;
        Ok(())
    }
}
