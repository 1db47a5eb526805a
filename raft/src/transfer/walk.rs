//! Looking through the frames of a transfer without writing anything.

use std::io;

use bytes::Bytes;

use super::totals::Totals;
use super::{BEGIN_LEN, ENTRY_LEN, FrameKind, VERSION, close_frame, open_frame, parse_frame, refused};
use crate::format::{Position, u32_at, u64_at};
use crate::snapshot;

/// Checks frames as they come.
#[derive(Default)]
pub(crate) struct Walk {
    /// The number of the next frame.
    number: u64,
    /// Where the snapshot stands; none before the first frame.
    pub(crate) snapshot: Option<Position>,
    /// The last frame came.
    pub(crate) ended: bool,
    pub(crate) totals: Totals,
    /// Index and length of each entry, rising.
    lens: Vec<(u64, u32)>,
    /// The head of the next entry as far as it came.
    head: Vec<u8>,
    /// How much of an entry's payload is missing.
    left: usize,
}

impl Walk {
    /// Takes the next frame; answers the piece of the image in it, if it has one.
    ///
    /// # Errors
    /// `InvalidData` when it is damaged or cannot follow the one before.
    pub(crate) fn frame<'f>(&mut self, frame: &'f [u8]) -> io::Result<Option<&'f [u8]>> {
        let (kind, data) = parse_frame(frame, self.number)?;
        self.number += 1;
        if self.ended || self.snapshot.is_none() != (kind == FrameKind::Begin) {
            return Err(refused("a frame out of order"));
        }
        match kind {
            FrameKind::Begin => self.begin(data)?,
            FrameKind::Entries => self.entries(data)?,
            FrameKind::Image if self.left > 0 || !self.head.is_empty() || data.is_empty() => {
                return Err(refused("the image within an entry, or empty"));
            }
            FrameKind::Image => {
                self.totals.hash(data);
                self.totals.image_bytes += data.len() as u64;
                return Ok(Some(data));
            }
            FrameKind::End => self.end(data)?,
        }
        Ok(None)
    }

    /// The length of an entry's payload; none when it did not come.
    pub(crate) fn len_of(&self, index: u64) -> Option<u32> {
        let at = self.lens.binary_search_by_key(&index, |(index, _)| *index).ok()?;
        Some(self.lens[at].1)
    }

    fn begin(&mut self, data: &[u8]) -> io::Result<()> {
        let (fixed, header) = begin_parts(data)?;
        if u32_at(fixed, 0) != VERSION {
            return Err(refused(&format!("version {}, {VERSION} is known here", u32_at(fixed, 0))));
        }
        let meta =
            snapshot::decode_header(header).map_err(|_| refused("a snapshot header that is damaged"))?;
        self.snapshot = meta.last_log_id.map(Position::from);
        if self.snapshot.is_none() {
            return Err(refused("a snapshot of nothing"));
        }
        Ok(())
    }

    fn entries(&mut self, mut data: &[u8]) -> io::Result<()> {
        if self.totals.image_bytes > 0 {
            return Err(refused("an entry after the image"));
        }
        self.totals.hash(data);
        while !data.is_empty() {
            if self.left > 0 {
                let piece = data.len().min(self.left);
                self.left -= piece;
                self.totals.entry_bytes += piece as u64;
                data = &data[piece..];
                continue;
            }
            let (head, rest) = data.split_at(data.len().min(ENTRY_LEN - self.head.len()));
            self.head.extend_from_slice(head);
            data = rest;
            if self.head.len() == ENTRY_LEN {
                self.begin_entry()?;
            }
        }
        Ok(())
    }

    fn begin_entry(&mut self) -> io::Result<()> {
        let (index, len) = (u64_at(&self.head, 0), u32_at(&self.head, 16));
        self.head.clear();
        let last = self.lens.last().map_or(0, |(last, _)| *last);
        if index <= last || self.snapshot.is_some_and(|at| index > at.index) {
            return Err(refused(&format!("entry {index} after {last}")));
        }
        self.lens.push((index, len));
        self.left = len as usize;
        self.totals.entries += 1;
        Ok(())
    }

    fn end(&mut self, data: &[u8]) -> io::Result<()> {
        if self.left > 0 || !self.head.is_empty() || data != self.totals.encode() {
            return Err(refused("the totals are not those of what came"));
        }
        self.ended = true;
        Ok(())
    }
}

fn begin_parts(data: &[u8]) -> io::Result<(&[u8], &[u8])> {
    data.split_at_checked(BEGIN_LEN).ok_or_else(|| refused("a beginning that cannot be read"))
}

/// The first frame of a transfer with another header of the snapshot, made from the one that it has.
pub(crate) fn with_snapshot_header(
    frame: &[u8],
    change: impl FnOnce(&[u8]) -> io::Result<Vec<u8>>,
) -> io::Result<Bytes> {
    let (kind, data) = parse_frame(frame, 0)?;
    if kind != FrameKind::Begin {
        return Err(refused("no beginning"));
    }
    let (fixed, header) = begin_parts(data)?;
    let header = change(header)?;
    let mut changed = open_frame(fixed.len() + header.len());
    changed.extend_from_slice(fixed);
    changed.extend_from_slice(&header);
    Ok(close_frame(changed, FrameKind::Begin, 0))
}
