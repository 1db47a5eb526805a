//! The bytes of an image, read: a source that keeps the checksum, records in it, fields in these.

use std::io::{self, Read};

use beanpole_raft::BodyAddr;
use crc32fast::Hasher;

use super::image::{Before, COUNTS, POLICY, SAME_ENTRY, SAME_NUMBERS, SAME_TUBE, STATE, SavedJob};
use super::jobs::{Counts, Hold, Place};
use super::policy::Reason;
use super::record::{Record, Terms};

/// Read from the source at once.
const READ_BYTES: usize = 256 << 10;
/// No record is longer.
pub(super) const RECORD_MAX: usize = 1 << 10;

/// The error of an image that is not what it should be.
pub(super) fn bad(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the state image cannot be read: {why}"))
}

/// The value, unless it is out of range.
pub(super) fn checked<T>(value: Option<T>, what: &str) -> io::Result<T> {
    value.ok_or_else(|| bad(format!("{what} is out of range")))
}

/// A buffered reader that keeps the checksum.
pub(super) struct Source<'a> {
    image: &'a mut dyn Read,
    buffer: Vec<u8>,
    at: usize,
    /// How much of the buffer is in the checksum.
    summed: usize,
    crc: Hasher,
    ended: bool,
}

impl<'a> Source<'a> {
    pub fn new(image: &'a mut dyn Read) -> Self {
        Source { image, buffer: Vec::new(), at: 0, summed: 0, crc: Hasher::new(), ended: false }
    }

    /// Reads what comes next with `read`, no more than a record.
    pub fn record<R>(&mut self, read: impl FnOnce(&mut Fields<'_>) -> io::Result<R>) -> io::Result<R> {
        if self.buffer.len() - self.at < RECORD_MAX && !self.ended {
            self.fill()?;
        }
        let mut fields = Fields { bytes: &self.buffer[self.at..] };
        let value = read(&mut fields)?;
        self.at = self.buffer.len() - fields.bytes.len();
        Ok(value)
    }

    /// Makes a whole record available, unless the image ends before.
    fn fill(&mut self) -> io::Result<()> {
        self.sum();
        self.buffer.drain(..self.at);
        (self.at, self.summed) = (0, 0);
        let got = self.image.take(READ_BYTES as u64).read_to_end(&mut self.buffer)?;
        self.ended = got < READ_BYTES;
        Ok(())
    }

    fn sum(&mut self) {
        self.crc.update(&self.buffer[self.summed..self.at]);
        self.summed = self.at;
    }

    /// Checks the sum, and that nothing follows.
    pub fn end(&mut self) -> io::Result<()> {
        self.sum();
        let sum = self.crc.clone().finalize();
        if self.record(|fields| fields.u32())? != sum {
            return Err(bad("its checksum is wrong"));
        }
        match self.buffer.len() - self.at {
            0 => Ok(()),
            _ => Err(bad("bytes follow its end")),
        }
    }
}

/// What is left of a record, and what follows it.
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Of a record that is all there.
    pub fn new(bytes: &'a [u8]) -> Self {
        Fields { bytes }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn take(&mut self, len: usize) -> io::Result<&'a [u8]> {
        let (taken, left) = self.bytes.split_at_checked(len).ok_or_else(|| bad("it is cut short"))?;
        self.bytes = left;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("take answers as many bytes as asked for"))
    }

    pub fn u8(&mut self) -> io::Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> io::Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    #[inline]
    pub fn varint(&mut self) -> io::Result<u64> {
        // Most numbers are small.
        match self.bytes {
            [byte, left @ ..] if *byte < 0x80 => {
                self.bytes = left;
                Ok(u64::from(*byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> io::Result<u64> {
        let mut number = 0u64;
        for (place, byte) in self.bytes.iter().take(10).enumerate() {
            number |= u64::from(byte & 0x7f) << (7 * place);
            if *byte < 0x80 {
                self.bytes = &self.bytes[place + 1..];
                return Ok(number);
            }
        }
        Err(bad(if self.bytes.len() < 10 { "it is cut short" } else { "a number is too long" }))
    }

    pub fn zigzag(&mut self) -> io::Result<i64> {
        let number = self.varint()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    pub fn number(&mut self) -> io::Result<u32> {
        checked(u32::try_from(self.varint()?).ok(), "a number")
    }

    /// A job, after its flags. Its tube's slot is left open.
    pub fn job(&mut self, flags: u8, before: &Before) -> io::Result<SavedJob> {
        let last = &before.record;
        let id = checked(before.id.checked_add(self.varint()?), "a job's id")?;
        let born = if flags & SAME_TUBE != 0 { before.born } else { self.varint()? };
        let [pri, delay_s, ttr_s] = match flags & SAME_NUMBERS {
            0 => [self.number()?, self.number()?, self.number()?],
            _ => Before::numbers(last),
        };
        let (hops, reason) = match flags & POLICY {
            0 => (0, Reason::None),
            _ => (self.u8()?, checked(Reason::of_code(self.u8()?), "a job's reason")?),
        };
        let (mut index, mut created_us, mut base) = (last.body.index, last.created_us, before.body_end());
        if flags & SAME_ENTRY == 0 {
            index = index.wrapping_add(self.zigzag()? as u64);
            created_us = created_us.wrapping_add(self.zigzag()? as u64);
            base = 0;
        }
        let offset = base.checked_add(self.zigzag()?).and_then(|offset| u32::try_from(offset).ok());
        let offset = checked(offset, "a body's offset")?;
        let body = BodyAddr { index, offset, len: self.number()? };
        let terms = Terms { tube: 0, delay_s, ttr_s, hops, reason };
        let record = Record { body, created_us, pri, terms };
        let counts = if flags & COUNTS != 0 { self.counts()? } else { Counts::default() };
        Ok(SavedJob { id, born, record, counts, place: self.place(flags & STATE)? })
    }

    fn counts(&mut self) -> io::Result<Counts> {
        let (reserves, timeouts, releases) = (self.number()?, self.number()?, self.number()?);
        Ok(Counts { reserves, timeouts, releases, buries: self.number()?, kicks: self.number()? })
    }

    fn place(&mut self, state: u8) -> io::Result<Place> {
        Ok(match state {
            0 => Place::Ready,
            1 => {
                let (node, conn, want) = (self.number()?, self.varint()?, self.varint()?);
                Place::Reserved(Hold { node, conn, want, deadline: self.varint()?, seq: self.varint()? })
            }
            2 => Place::Delayed(self.varint()?),
            _ => Place::Buried(self.varint()?),
        })
    }
}
