//! Appending to a segment: past the system's page cache where the file allows it.
//!
//! A write through the page cache costs the system twice as much time as one past it, and a sync of it waits
//! nearly twice as long (docs/adr/009). Past the cache only whole blocks can be written, so the block that the
//! records end in is written again with the next ones, with the same bytes where it held records:
//!
//! ```text
//!            block           block           block
//! file   |aaaaaaaaaaaaaaa|aaaaa..........|...............|      a: durable      .: zeros
//! write                  |aaaaabbbbbbbbbb|bbbb...........|      b: the new ones
//! ```
//!
//! A write that is cut short leaves each sector as it was or as it was to be: neither takes an `a` away.

use std::io::{self, IoSlice};
use std::sync::Arc;

use crate::disk::{Direct, DiskFile};

/// How many bytes may be written without a sync: more would let other processes' threads stall on write-back.
pub(crate) const UNSYNCED_MAX: usize = 1 << 20;
/// What a buffer for direct writes is aligned to in memory: the most that any disk asks for.
const MEMORY_ALIGN: usize = 4096;

/// The end of a file, being written.
pub(crate) struct Appender {
    file: Arc<dyn DiskFile>,
    direct: Option<Direct>,
    /// Where in the file `staged` starts: at a block.
    start: u64,
    /// Bytes of the last block that were written before, then those that are not yet written.
    staged: AlignedBuf,
    /// How many of them were written before.
    written: usize,
}

impl Appender {
    /// Goes on at `at`. What lies behind it in its block is taken for zeros and may be overwritten with them.
    ///
    /// # Errors
    /// When the block that `at` lies in cannot be read.
    pub(crate) fn new(file: Arc<dyn DiskFile>, at: u64) -> io::Result<Self> {
        let direct = file.direct(at);
        let mut appender = Self { file, direct, start: at, staged: AlignedBuf::default(), written: 0 };
        let written = usize::try_from(at % appender.block() as u64).expect("blocks are small");
        appender.start -= written as u64;
        let mut block = vec![0; written];
        if appender.file.read_at(&mut block, appender.start)? < written {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        appender.staged.extend(&block);
        appender.written = written;
        Ok(appender)
    }

    /// What writes are aligned to, in bytes.
    fn block(&self) -> usize {
        self.direct.as_ref().map_or(1, |direct| direct.block)
    }

    /// Where the next byte goes.
    pub(crate) fn at(&self) -> u64 {
        self.start + self.staged.bytes().len() as u64
    }

    /// How many bytes wait to be written.
    pub(crate) fn waiting(&self) -> usize {
        self.staged.bytes().len() - self.written
    }

    /// Adds bytes at the end.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.staged.extend(bytes);
    }

    /// Writes what waits, syncing whenever [`UNSYNCED_MAX`] bytes were written; the last sync is the caller's.
    ///
    /// # Errors
    /// What the system says. It must not be retried.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        if self.waiting() == 0 {
            return Ok(());
        }
        let (block, len) = (self.block(), self.staged.bytes().len());
        self.staged.pad_to(block);
        let mut at = self.start;
        let mut chunks = self.staged.bytes().chunks(UNSYNCED_MAX).peekable();
        while let Some(chunk) = chunks.next() {
            match &self.direct {
                Some(direct) => direct.file.write_blocks(chunk, at)?,
                None => self.file.write_at(&[IoSlice::new(chunk)], at)?,
            }
            at += chunk.len() as u64;
            if chunks.peek().is_some() {
                self.file.sync_data()?;
            }
        }
        self.written = len % block;
        self.start += (len - self.written) as u64;
        self.staged.keep(len - self.written..len);
        Ok(())
    }
}

/// Bytes that start at an address that a direct write takes.
#[derive(Default)]
struct AlignedBuf {
    bytes: Vec<u8>,
    /// Where in `bytes` they start.
    from: usize,
}

impl AlignedBuf {
    fn bytes(&self) -> &[u8] {
        &self.bytes[self.from..]
    }

    fn extend(&mut self, more: &[u8]) {
        self.reserve(more.len());
        self.bytes.extend_from_slice(more);
    }

    /// Adds zeros up to a multiple of `block`.
    fn pad_to(&mut self, block: usize) {
        let len = self.bytes().len();
        let padding = len.next_multiple_of(block) - len;
        self.reserve(padding);
        self.bytes.resize(self.bytes.len() + padding, 0);
    }

    /// Keeps nothing but `range`, from its start on.
    fn keep(&mut self, range: std::ops::Range<usize>) {
        let len = range.len();
        // One large entry must not keep its buffer for ever.
        if self.bytes.capacity() > 2 * UNSYNCED_MAX + MEMORY_ALIGN {
            let kept = self.bytes()[range].to_vec();
            *self = Self::default();
            self.extend(&kept);
            return;
        }
        self.bytes.copy_within(self.from + range.start..self.from + range.end, self.from);
        self.bytes.truncate(self.from + len);
    }

    /// Makes room for `more` bytes: a vector that grows by itself would move to any address.
    fn reserve(&mut self, more: usize) {
        let needed = self.bytes().len() + more;
        if self.bytes.len() + more <= self.bytes.capacity() {
            return;
        }
        let room = needed.max(2 * self.bytes().len()).next_multiple_of(MEMORY_ALIGN);
        let mut bytes: Vec<u8> = Vec::with_capacity(room + MEMORY_ALIGN);
        let from = bytes.as_ptr().align_offset(MEMORY_ALIGN);
        bytes.resize(from, 0);
        bytes.extend_from_slice(self.bytes());
        *self = Self { bytes, from };
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::disk::{Access, Disk, FaultDisk, RealDisk};

    fn read(file: &Arc<dyn DiskFile>, len: usize) -> Vec<u8> {
        let mut bytes = vec![7; len];
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), len);
        bytes
    }

    /// Appends pieces of all kinds of lengths, going on anew now and then, and reads what came of it.
    fn appends(disk: &dyn Disk, dir: &Path) {
        let file = disk.open(&dir.join("f"), Access::Create).unwrap();
        file.allocate(4 << 20).unwrap();
        let mut expected: Vec<u8> = (0..100).collect();
        file.write_at(&[IoSlice::new(&expected)], 0).unwrap();
        let mut appender = Appender::new(file.clone(), 100).unwrap();
        for (number, len) in (0u8..).zip([1, 411, 1, 511, 512, 4000, 97, 70_000, 2_200_000, 3, 0, 9]) {
            let piece = vec![number; len];
            appender.push(&piece[..len / 3]);
            appender.push(&piece[len / 3..]);
            assert_eq!(appender.waiting(), len);
            expected.extend_from_slice(&piece);
            assert_eq!(appender.at(), expected.len() as u64);
            appender.write().unwrap();
            file.sync_data().unwrap();
            let mut all = expected.clone();
            all.resize(expected.len() + 600, 0);
            assert_eq!(read(&file, all.len()), all, "after {len} bytes");
            if number % 3 == 0 {
                appender = Appender::new(file.clone(), expected.len() as u64).unwrap();
            }
        }
    }

    #[test]
    fn appends_any_length() {
        appends(&FaultDisk::new(), Path::new("/d"));
        let dir = tempfile::tempdir().unwrap();
        appends(&RealDisk, dir.path());
    }

    /// The same bytes of a file on a disk seen through its map, before and after they are written.
    #[test]
    fn a_map_shows_what_was_appended() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealDisk.open(&dir.path().join("f"), Access::Create).unwrap();
        file.allocate(1 << 20).unwrap();
        let map = file.map(1 << 20).unwrap();
        let mut appender = Appender::new(file, 0).unwrap();
        for at in 0..2000u64 {
            let mut seen = bytes::BytesMut::new();
            map.copy(at * 100, 100, &mut seen);
            assert_eq!(&seen[..], [0; 100], "piece {at} before it is written");
            appender.push(&[1; 100]);
            appender.write().unwrap();
            seen.clear();
            map.copy(at * 100, 100, &mut seen);
            assert_eq!(&seen[..], [1; 100], "piece {at}");
        }
    }
}
