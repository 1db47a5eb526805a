//! The format of a spooled put. Integers are little-endian.
//!
//! ```text
//!   segment:  "BPSPOOL1" | record | record | ...
//!   record:   length u32 | crc-32 u32 | payload (so many bytes, of which the crc is)
//!   payload:  put at, ms since 1970 u64 | pri u32 | delay s u32 | ttr s u32 | key length u8 | tube length u8 | key | tube | body
//! ```

use crate::commands::PutOptions;
use bytes::Bytes;
use std::sync::Arc;

/// How every segment begins.
pub(super) const MAGIC: &[u8; 8] = b"BPSPOOL1";
/// Length and CRC.
const HEAD: usize = 8;
/// A payload without key, tube and body.
const FIXED: usize = 22;

/// A put as it lies in the spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// When it was put, in milliseconds since 1970.
    pub(crate) put_at_ms: u64,
    pub(crate) options: PutOptions,
    /// It is replayed under this key, so that a replay that is repeated doubles nothing.
    pub(crate) key: Box<str>,
    pub(crate) tube: Arc<str>,
    pub(crate) body: Bytes,
}

/// What lies at some place of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A record that checks out, and where the next one begins.
    Record(Record, usize),
    /// A record that does not, with others behind it, and where the next one begins.
    Damaged(usize),
    /// The end, or a record that was not written whole before a crash.
    End,
}

impl Record {
    /// Its bytes in a segment.
    ///
    /// # Panics
    /// When key or tube are longer than the protocol allows, which were checked before.
    pub(super) fn encode(&self) -> Vec<u8> {
        let byte = |text: &str| u8::try_from(text.len()).expect("keys and tubes have at most 200 bytes");
        let mut payload =
            Vec::with_capacity(HEAD + FIXED + self.key.len() + self.tube.len() + self.body.len());
        payload.extend_from_slice(&[0; HEAD]);
        payload.extend_from_slice(&self.put_at_ms.to_le_bytes());
        for number in [self.options.pri, self.options.delay_s, self.options.ttr_s] {
            payload.extend_from_slice(&number.to_le_bytes());
        }
        payload.extend_from_slice(&[byte(&self.key), byte(&self.tube)]);
        payload.extend_from_slice(self.key.as_bytes());
        payload.extend_from_slice(self.tube.as_bytes());
        payload.extend_from_slice(&self.body);
        let length = u32::try_from(payload.len() - HEAD).unwrap_or(u32::MAX);
        let crc = crc32fast::hash(&payload[HEAD..]);
        payload[..4].copy_from_slice(&length.to_le_bytes());
        payload[4..HEAD].copy_from_slice(&crc.to_le_bytes());
        payload
    }

    fn decode(payload: &[u8]) -> Option<Record> {
        let (fixed, rest) = payload.split_at_checked(FIXED)?;
        let (key, rest) = rest.split_at_checked(fixed[20].into())?;
        let (tube, body) = rest.split_at_checked(fixed[21].into())?;
        let number = |at: usize| fixed[at..at + 4].try_into().map(u32::from_le_bytes).ok();
        Some(Record {
            put_at_ms: u64::from_le_bytes(fixed[..8].try_into().ok()?),
            options: PutOptions { pri: number(8)?, delay_s: number(12)?, ttr_s: number(16)? },
            key: std::str::from_utf8(key).ok()?.into(),
            tube: std::str::from_utf8(tube).ok()?.into(),
            body: Bytes::copy_from_slice(body),
        })
    }
}

/// What lies at `at` of a whole segment.
pub(super) fn read(segment: &[u8], at: usize) -> Found {
    let Some((head, rest)) = segment.get(at..).and_then(|rest| rest.split_at_checked(HEAD)) else {
        return Found::End;
    };
    let word = |at: usize| head[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
    let (length, crc) = (word(0) as usize, word(4));
    let Some(payload) = rest.get(..length).filter(|payload| payload.len() >= FIXED) else {
        return Found::End;
    };
    let next = at + HEAD + length;
    let whole = (crc32fast::hash(payload) == crc).then(|| Record::decode(payload)).flatten();
    match whole {
        Some(record) => Found::Record(record, next),
        // The last one may have been under way when everything ended.
        None if next >= segment.len() => Found::End,
        None => Found::Damaged(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(body: &str) -> Record {
        let options = PutOptions { pri: 7, delay_s: 8, ttr_s: 9 };
        let body = Bytes::copy_from_slice(body.as_bytes());
        Record { put_at_ms: 1 << 40, options, key: "k".into(), tube: "mail".into(), body }
    }

    #[test]
    fn what_is_written_is_read_and_every_flipped_bit_is_seen() {
        let (first, second) = (record("a body\r\n"), record(""));
        let mut segment = MAGIC.to_vec();
        segment.extend(first.encode());
        let middle = segment.len();
        segment.extend(second.encode());
        assert_eq!(read(&segment, MAGIC.len()), Found::Record(first.clone(), middle));
        assert_eq!(read(&segment, middle), Found::Record(second, segment.len()));
        assert_eq!(read(&segment, segment.len()), Found::End);
        for bit in MAGIC.len() * 8..middle * 8 {
            let mut flipped = segment.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(read(&flipped, MAGIC.len()), Found::Record(..)), "bit {bit}");
        }
    }

    #[test]
    fn a_record_that_was_cut_off_is_the_end() {
        let whole = record("body").encode();
        for len in 0..whole.len() {
            assert_eq!(read(&whole[..len], 0), Found::End, "{len} bytes");
        }
        // A file system may give back zeros for what it did not write.
        assert_eq!(read(&[0; 100], 0), Found::End);
        assert_eq!(read(&[0; 100], 1000), Found::End);
    }
}
