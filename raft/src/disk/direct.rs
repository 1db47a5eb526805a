//! Writes past the page cache, on the file systems that are known to keep reads and maps of the same file right.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

use nix::sys::statfs::{EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, fstatfs};

use super::{BlockFile, Direct};

/// Units to try, in bytes: what a disk calls a sector, small ones first, as the last one is written again each time.
const BLOCKS: [usize; 2] = [512, 4096];

/// The smallest unit in which `file` takes direct writes, found by writing what lies at `offset` once more.
///
/// `None` where there are none, and when the file does not consist of whole units. Also on file systems other than
/// ext4 and XFS: these are known to drop what is cached of a range when it is written directly.
pub(super) fn try_out(file: &File, offset: u64) -> Option<Direct> {
    let kind = fstatfs(file).ok()?.filesystem_type();
    if kind != EXT4_SUPER_MAGIC && kind != XFS_SUPER_MAGIC {
        return None;
    }
    // The same file, though it may have been renamed since it was opened.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).ok()?;
    let direct = DirectFile { file: direct };
    let len = file.metadata().ok()?.len();
    let fits = |block: usize| len.is_multiple_of(block as u64);
    let block =
        BLOCKS.into_iter().find(|&block| fits(block) && direct.write_again(file, offset, block).is_ok())?;
    Some(Direct { file: Arc::new(direct), block })
}

struct DirectFile {
    file: File,
}

impl DirectFile {
    fn write_again(&self, cached: &File, offset: u64, block: usize) -> io::Result<()> {
        let mut bytes = vec![0; 2 * BLOCKS[BLOCKS.len() - 1]];
        let from = bytes.as_ptr().align_offset(BLOCKS[BLOCKS.len() - 1]);
        let bytes = &mut bytes[from..from + block];
        let offset = offset - offset % block as u64;
        cached.read_exact_at(bytes, offset)?;
        self.write_blocks(bytes, offset)
    }
}

impl BlockFile for DirectFile {
    fn write_blocks(&self, blocks: &[u8], offset: u64) -> io::Result<()> {
        let mut written = 0;
        while written < blocks.len() {
            match self.file.write_at(&blocks[written..], offset + written as u64) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(now) => written += now,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
