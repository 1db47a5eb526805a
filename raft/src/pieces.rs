//! What is left of an entry most of whose bodies are dead: the bytes around the live ones, and where they were.
//!
//! ```text
//! payload of a `pieces` record
//! 0 count u32   4 crc u32   8 (start u32, length u32) per piece   then the bytes of all pieces, one after the other
//! ```
//!
//! Starts are offsets in the payload of the whole entry, so that the address of a body never changes. Pieces rise
//! and do not overlap. The list has a CRC of its own, of count and items: a body is found by it without the rest of the
//! record being read, and a damaged list must not lead to another body.

use std::io;
use std::ops::Range;

use crate::format::{HEAD_LEN, u32_at};

/// Length of the payload before the list of pieces.
const FIXED: usize = 8;
/// Length of one piece in the list.
const ITEM: usize = 8;
/// Bodies that lie no further apart are kept as one piece: the gap costs no more than another piece would.
pub(crate) const GAP_MAX: u32 = 8;
/// Pieces looked at together when one is searched for.
const ITEMS_AT_ONCE: usize = 64;

/// Ranges of an entry's payload, rising, and apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pieces(Vec<Range<u32>>);

impl Pieces {
    /// Adds a range that does not start before those that were added.
    pub(crate) fn add(&mut self, range: Range<u32>) {
        match self.0.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(GAP_MAX) => {
                last.end = last.end.max(range.end)
            }
            Some(_) | None => self.0.push(range),
        }
    }

    pub(crate) fn ranges(&self) -> &[Range<u32>] {
        &self.0
    }

    /// How long the payload of the record is.
    pub(crate) fn payload_len(&self) -> u64 {
        let bytes: u64 = self.0.iter().map(|range| u64::from(range.end - range.start)).sum();
        (FIXED + ITEM * self.0.len()) as u64 + bytes
    }

    /// The payload up to the bytes of the pieces.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED + ITEM * self.0.len());
        let count = u32::try_from(self.0.len()).expect("an entry has fewer pieces than bytes");
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for range in &self.0 {
            out.extend_from_slice(&range.start.to_le_bytes());
            out.extend_from_slice(&(range.end - range.start).to_le_bytes());
        }
        let crc = ListCrc::of(count, &out[FIXED..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The list that the payload of `len` bytes starts with, read by `read`; `None` when it cannot be one.
    pub(crate) fn decode(len: u64, read: Read<'_>) -> io::Result<Option<Self>> {
        let mut fixed = [0; FIXED];
        if len < FIXED as u64 || !read(0, &mut fixed)? {
            return Ok(None);
        }
        let items = u64::from(u32_at(&fixed, 0)) * ITEM as u64;
        if items > len - FIXED as u64 {
            return Ok(None);
        }
        let mut list = vec![0; usize::try_from(items).map_err(|_| io::ErrorKind::InvalidData)?];
        if !read(FIXED as u64, &mut list)? {
            return Ok(None);
        }
        if ListCrc::of(u32_at(&fixed, 0), &list) != u32_at(&fixed, 4) {
            return Ok(None);
        }
        let range = |item: &[u8]| Some(u32_at(item, 0)..u32_at(item, 0).checked_add(u32_at(item, 4))?);
        let ranges: Option<Vec<_>> = list.chunks_exact(ITEM).map(range).collect();
        let rising = |ranges: &Vec<Range<u32>>| ranges.is_sorted_by(|a, b| a.end <= b.start);
        Ok(ranges.filter(rising).map(Self))
    }

    /// Where in the payload of the record the bytes of `wanted` are; `None` when they are not all there.
    pub(crate) fn place(&self, wanted: &Range<u32>) -> Option<u64> {
        let mut at = (FIXED + ITEM * self.0.len()) as u64;
        for range in &self.0 {
            if range.start <= wanted.start && wanted.end <= range.end {
                return Some(at + u64::from(wanted.start - range.start));
            }
            at += u64::from(range.end - range.start);
        }
        None
    }
}

/// The CRC of a list.
struct ListCrc(crc32fast::Hasher);

impl ListCrc {
    fn new(count: u32) -> Self {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&count.to_le_bytes());
        Self(crc)
    }

    fn of(count: u32, items: &[u8]) -> u32 {
        let mut crc = Self::new(count);
        crc.0.update(items);
        crc.0.finalize()
    }
}

/// Reads at a place in a payload until the buffer is full; answers `false` when that is not possible now.
pub(crate) type Read<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> io::Result<bool>;

/// What a search for a body found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// It starts here, from the start of the record.
    At(u64),
    /// The record does not have it.
    Absent,
    /// The reader could not read now.
    Cold,
}

/// Searches for a body in a record of `len` bytes, head and padding included.
///
/// # Errors
/// `InvalidData` when the list is damaged; what `read` says.
pub(crate) fn find(len: u64, wanted: &Range<u32>, read: Read<'_>) -> io::Result<Found> {
    let mut fixed = [0; FIXED];
    let Some(room) = len.checked_sub((HEAD_LEN + FIXED) as u64) else { return Ok(Found::Absent) };
    if !read(HEAD_LEN as u64, &mut fixed)? {
        return Ok(Found::Cold);
    }
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the list of an entry's pieces is damaged");
    let mut crc = ListCrc::new(u32_at(&fixed, 0));
    let count = u64::from(u32_at(&fixed, 0));
    if count * ITEM as u64 > room {
        return Err(damaged());
    }
    let mut found = Found::Absent;
    let items = (HEAD_LEN + FIXED) as u64;
    let mut at = items + count * ITEM as u64;
    let mut number = 0;
    let mut buffer = [0; ITEM * ITEMS_AT_ONCE];
    while number < count {
        let now = usize::try_from(count - number).unwrap_or(ITEMS_AT_ONCE).min(ITEMS_AT_ONCE);
        let list = &mut buffer[..now * ITEM];
        if !read(items + number * ITEM as u64, list)? {
            return Ok(Found::Cold);
        }
        crc.0.update(list);
        for item in list.chunks_exact(ITEM) {
            let (start, length) = (u32_at(item, 0), u32_at(item, 4));
            if start <= wanted.start && u64::from(wanted.end) <= u64::from(start) + u64::from(length) {
                let place = at + u64::from(wanted.start - start);
                let fits = place + u64::from(wanted.end - wanted.start) <= len;
                found = if fits { Found::At(place) } else { Found::Absent };
            }
            at += u64::from(length);
        }
        number += now as u64;
    }
    if crc.0.finalize() == u32_at(&fixed, 4) { Ok(found) } else { Err(damaged()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record without its head's contents.
    fn record(pieces: &Pieces, whole: &[u8]) -> Vec<u8> {
        let mut out = vec![0; HEAD_LEN];
        out.extend_from_slice(&pieces.encode());
        for range in pieces.ranges() {
            out.extend_from_slice(&whole[range.start as usize..range.end as usize]);
        }
        out
    }

    /// A reader of `bytes` from `base` on.
    fn from(bytes: &[u8], base: usize) -> impl FnMut(u64, &mut [u8]) -> io::Result<bool> {
        move |at, out| {
            let at = base + usize::try_from(at).unwrap();
            let Some(found) = bytes.get(at..at + out.len()) else { return Ok(false) };
            out.copy_from_slice(found);
            Ok(true)
        }
    }

    /// What was kept is found at its old address, near neighbours as one piece; what was not kept is absent.
    #[test]
    fn keeps_addresses() {
        let whole: Vec<u8> = (0..=255).collect();
        let mut pieces = Pieces::default();
        for range in [3..10, 12..20, 100..101, 200..256] {
            pieces.add(range);
        }
        assert_eq!(pieces.ranges(), [3..20, 100..101, 200..256]);
        let bytes = record(&pieces, &whole);
        assert_eq!(bytes.len() as u64, HEAD_LEN as u64 + pieces.payload_len());
        let len = bytes.len() as u64;
        for wanted in [3..10u32, 12..20, 100..101, 210..256] {
            let found = find(len, &wanted, &mut from(&bytes, 0)).unwrap();
            let Found::At(at) = found else { panic!("{wanted:?}: {found:?}") };
            let at = usize::try_from(at).unwrap();
            let long = (wanted.end - wanted.start) as usize;
            assert_eq!(bytes[at..at + long], whole[wanted.start as usize..wanted.end as usize]);
            assert_eq!(pieces.place(&wanted), Some((at - HEAD_LEN) as u64));
        }
        for wanted in [2..10u32, 21..22, 99..101, 250..257] {
            assert_eq!(find(len, &wanted, &mut from(&bytes, 0)).unwrap(), Found::Absent, "{wanted:?}");
            assert_eq!(pieces.place(&wanted), None);
        }
        let back = Pieces::decode(pieces.payload_len(), &mut from(&bytes, HEAD_LEN));
        assert_eq!(back.unwrap(), Some(pieces));
        assert_eq!(find(len, &(3..10), &mut |_, _| Ok(false)).unwrap(), Found::Cold);
    }

    /// A changed bit in the list is noticed and leads to no other body.
    #[test]
    fn believes_nothing() {
        let mut pieces = Pieces::default();
        pieces.add(0..10);
        pieces.add(128..138);
        let bytes = record(&pieces, &[7; 200]);
        for bit in (HEAD_LEN * 8)..(HEAD_LEN + FIXED + 2 * ITEM) * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let found = find(damaged.len() as u64, &(128..138), &mut from(&damaged, 0));
            assert!(!matches!(found, Ok(Found::At(_) | Found::Absent)), "bit {bit}: {found:?}");
            let decoded = Pieces::decode(pieces.payload_len(), &mut from(&damaged, HEAD_LEN));
            assert_eq!(decoded.unwrap(), None, "bit {bit}");
        }
        let mut swapped = bytes[HEAD_LEN..].to_vec();
        swapped[FIXED..FIXED + 2 * ITEM].rotate_left(ITEM);
        assert_eq!(Pieces::decode(44, &mut from(&swapped, 0)).unwrap(), None);
    }
}
