//! Read-only maps of segment files: the only module with `unsafe`.
//!
//! A map is never turned into a reference that outlives a call: bytes are copied out at once. The bytes that
//! are copied are those of records whose `pwrite` returned before their place was published, so nobody
//! writes to them meanwhile.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use bytes::BytesMut;
use memmap2::{Advice, Mmap, MmapOptions};

use super::DiskMap;

/// A mapped file.
pub(super) struct FileMap {
    map: Mmap,
}

impl FileMap {
    /// Maps the first `len` bytes of `file`.
    pub(super) fn new(file: &File, len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        // SAFETY: the data directory is locked, so only this process changes the file; segment files never
        // shrink while mapped (they are only extended before the map is made, and unlinked as a whole), and
        // published ranges are never rewritten.
        let map = unsafe { MmapOptions::new().len(len).map(file)? };
        // Bodies are read one by one, in no order that read-ahead could guess.
        map.advise(Advice::Random)?;
        Ok(Self { map })
    }

    fn range(&self, offset: u64, len: usize) -> (usize, usize) {
        let start = usize::try_from(offset).expect("a map's offset fits the address space");
        let end = start.checked_add(len).expect("a map's end fits the address space");
        assert!(end <= self.map.len(), "range {start}..{end} of a map of {} bytes", self.map.len());
        (start, end)
    }
}

impl DiskMap for FileMap {
    fn copy(&self, offset: u64, len: usize, out: &mut BytesMut) {
        let (start, end) = self.range(offset, len);
        out.extend_from_slice(&self.map[start..end]);
    }

    fn resident(&self, offset: u64, len: usize) -> bool {
        let (start, end) = self.range(offset, len);
        if start == end {
            return true;
        }
        let page = page_size();
        let first = start - start % page;
        let pages = (end - first).div_ceil(page);
        let mut flags = [0u8; PAGES_PER_CALL];
        let mut done = 0;
        while done < pages {
            let now = (pages - done).min(PAGES_PER_CALL);
            // SAFETY: `first` is page-aligned and within the map, `now` pages from there cover mapped
            // addresses only (the kernel rounds the length up to the page that holds the last byte), and
            // `flags` has room for one byte per page.
            let answer = unsafe {
                let address = self.map.as_ptr().add(first + done * page);
                let length = (end - first - done * page).min(now * page);
                libc::mincore(address.cast_mut().cast(), length, flags.as_mut_ptr())
            };
            if answer != 0 || flags[..now].iter().any(|flag| flag & 1 == 0) {
                return false;
            }
            done += now;
        }
        true
    }
}

/// How many pages one `mincore` call asks about: 1 MiB of them.
const PAGES_PER_CALL: usize = 256;

fn page_size() -> usize {
    static PAGE: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *PAGE.get_or_init(|| {
        // SAFETY: `sysconf` with a valid name has no preconditions.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(size).expect("the system has a page size")
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;

    /// What is written to the file shows in the map, and pages just written are resident.
    #[test]
    fn shows_what_was_written() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![1; 3_000_000]).unwrap();
        let map = FileMap::new(&file, 3_000_000).unwrap();
        file.write_all_at(&[2; 5000], 1_000_000).unwrap();
        assert!(map.resident(999_999, 5002) && map.resident(0, 3_000_000) && map.resident(3_000_000, 0));
        let mut out = BytesMut::from("x");
        map.copy(999_999, 5002, &mut out);
        assert_eq!((out[0], out[1], out[2], out[5001], out[5002]), (b'x', 1, 2, 2, 1));
    }
}
