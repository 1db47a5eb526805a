//! Reading an image back. It comes from a checksummed file or from a peer; every number is checked all the
//! same, because a state that is not what it seems is worse than none.

use std::io::{self, Read};

use beanpole_raft::BodyAddr;
use crc32fast::Hasher;

use super::engine::Engine;
use super::gateways::Life;
use super::history::History;
use super::image::{
    Before, COUNTS, END, IMAGE_VERSION, JOB, MAGIC, PLAIN_VERSION, POLICY, SAME_ENTRY, SAME_NUMBERS,
    SAME_TUBE, STATE, TUBE,
};
use super::jobs::{Counts, Hold, Place};
use super::level::LEVEL;
use super::policy::Reason;
use super::record::{Record, Terms};
use super::tubes::{DEFAULT, ReadyKey, TimeKey, Tube};
use super::types::{Mark, URGENT_BELOW};

/// Read from the source at once.
const READ_BYTES: usize = 256 << 10;
/// No record is longer.
const RECORD_MAX: usize = 1 << 10;
/// Ready jobs are put in order this many at a time: they come by id, and their order is by priority.
const SORT_MAX: usize = 1 << 16;

impl Engine {
    /// The state of an image.
    ///
    /// # Errors
    /// Those of the reader; `InvalidData`, with the reason, when the image is damaged, cut short, or of a
    /// version that this release does not read.
    pub fn restore(image: &mut dyn Read) -> io::Result<Self> {
        let mut source = Source::new(image);
        let mut engine = Engine::empty();
        engine.read_head(&mut source)?;
        let mut state = Progress::default();
        loop {
            match source.u8()? {
                END => break,
                TUBE if state.jobs == 0 => engine.read_tube(&mut source, &mut state)?,
                flags if flags & JOB != 0 => engine.read_job(&mut source, &mut state, flags)?,
                kind => return Err(bad(format!("it has a record of unknown kind {kind:#04x}"))),
            }
        }
        engine.insert_ready(&mut state.ready);
        if (source.varint()?, source.varint()?) != (state.tubes, state.jobs) {
            return Err(bad("its counts do not agree with its records"));
        }
        source.end()?;
        match engine.tubes.find(DEFAULT) {
            Some(_) => Ok(engine),
            None => Err(bad("it has no tube `default`")),
        }
    }

    fn read_head(&mut self, source: &mut Source<'_>) -> io::Result<()> {
        if source.array::<4>()? != *MAGIC {
            return Err(bad("it does not begin with BPQI"));
        }
        let version = u16::from_le_bytes(source.array()?);
        if !(PLAIN_VERSION..=IMAGE_VERSION).contains(&version) {
            let read = format!("{PLAIN_VERSION} to {IMAGE_VERSION}");
            return Err(bad(format!("its version is {version}, and this release reads {read}")));
        }
        source.array::<2>()?;
        self.applied = source.u64()?;
        self.stamp = source.u64()?;
        self.lease = source.u64()?;
        self.last_id = source.u64()?;
        self.last_seq = source.u64()?;
        self.next_born = source.u64()?;
        self.totals.total_jobs = source.u64()?;
        self.totals.timeouts = source.u64()?;
        self.history = History(source.u64()?);
        self.mark = Mark { nonce: source.u64()?, index: source.u64()?, hash: source.u64()? };
        self.draining = source.u8()? != 0;
        self.leaving = u32::from_le_bytes(source.array()?);
        for _ in 0..u32::from_le_bytes(source.array()?) {
            let node = u32::from_le_bytes(source.array()?);
            let (epoch, nonce, sequence) = (source.u64()?, source.u64()?, source.u64()?);
            let live = source.u8()? != 0;
            self.gateways.set(node, Life { epoch, nonce, sequence, live });
        }
        if version > PLAIN_VERSION { self.read_level(source) } else { Ok(()) }
    }

    fn read_level(&mut self, source: &mut Source<'_>) -> io::Result<()> {
        self.level = u32::from_le_bytes(source.array()?);
        if self.level == 0 || self.level > LEVEL {
            let level = self.level;
            return Err(bad(format!("its level is {level}, and this release reads levels up to {LEVEL}")));
        }
        let mut left = u32::from_le_bytes(source.array()?) as usize;
        let mut annex = Vec::new();
        while left > 0 {
            let part = left.min(RECORD_MAX);
            annex.extend_from_slice(source.take(part)?);
            left -= part;
        }
        self.read_annex(&annex).map_err(bad)
    }

    fn read_tube(&mut self, source: &mut Source<'_>, state: &mut Progress) -> io::Result<()> {
        let born = checked(state.born.checked_add(source.varint()?), "a tube's birth")?;
        if born >= self.next_born || (state.tubes > 0 && born == state.born) {
            return Err(bad("its tubes are out of order"));
        }
        let len = source.u8()? as usize;
        let name = std::str::from_utf8(source.take(len)?).map_err(|_| bad("a tube's name is not text"))?;
        let mut tube = Tube { name: name.into(), born, policy: self.policies.of(name), ..Tube::default() };
        tube.total_jobs = source.varint()?;
        tube.cmd_delete = source.varint()?;
        tube.cmd_pause = source.varint()?;
        tube.pause_s = source.number()?;
        if tube.pause_s > 0 {
            tube.pause_until_us = source.varint()?;
            self.pauses.insert(TimeKey { at: tube.pause_until_us, id: born });
        }
        if self.tubes.find(&tube.name).is_some() {
            return Err(bad("it has a tube twice"));
        }
        self.tubes.insert(tube);
        self.totals.tubes += 1;
        state.born = born;
        state.tubes += 1;
        Ok(())
    }

    fn read_job(&mut self, source: &mut Source<'_>, state: &mut Progress, flags: u8) -> io::Result<()> {
        let before = state.before;
        let last = before.record;
        let id = checked(before.id.checked_add(source.varint()?), "a job's id")?;
        if id == before.id || id > self.last_id {
            return Err(bad("its jobs are out of order"));
        }
        let born = if flags & SAME_TUBE != 0 { before.born } else { source.varint()? };
        if state.jobs == 0 || born != before.born {
            state.tube = self.tubes.of_birth(born).ok_or_else(|| bad("a job's tube is missing"))?;
        }
        let [pri, delay_s, ttr_s] = match flags & SAME_NUMBERS {
            0 => [source.number()?, source.number()?, source.number()?],
            _ => Before::numbers(&last),
        };
        let (hops, reason) = match flags & POLICY {
            0 => (0, Reason::None),
            _ => (source.u8()?, checked(Reason::of_code(source.u8()?), "a job's reason")?),
        };
        let (mut index, mut created_us, mut base) = (last.body.index, last.created_us, before.body_end());
        if flags & SAME_ENTRY == 0 {
            index = index.wrapping_add(source.zigzag()? as u64);
            created_us = created_us.wrapping_add(source.zigzag()? as u64);
            base = 0;
        }
        let offset = base.checked_add(source.zigzag()?).and_then(|offset| u32::try_from(offset).ok());
        let offset = checked(offset, "a body's offset")?;
        let body = BodyAddr { index, offset, len: source.number()? };
        let terms = Terms { tube: state.tube, delay_s, ttr_s, hops, reason };
        let record = Record { body, created_us, pri, terms };
        state.before = Before { id, born, record };
        state.jobs += 1;
        if !record.fits() {
            return Err(bad("a job's entry is beyond all logs"));
        }
        self.tubes.get_mut(state.tube).bytes += u64::from(body.len);
        let slot = self.jobs.insert(id, &record);
        if flags & COUNTS != 0 {
            let counts = source.counts()?;
            self.jobs.set_counts(slot, counts);
        }
        let place = source.place(flags & STATE)?;
        self.set_place(state, id, slot, place)
    }

    /// Inserting in order touches each part of a tube's order once, not at random.
    fn insert_ready(&mut self, ready: &mut Vec<(u32, ReadyKey)>) {
        ready.sort_unstable();
        for (tube, key) in ready.drain(..) {
            self.tubes.reorder(tube, |home| home.ready.insert(key));
        }
    }

    /// Puts a job that is nowhere where the image has it.
    fn set_place(&mut self, state: &mut Progress, id: u64, slot: u32, place: Place) -> io::Result<()> {
        self.jobs.set_place(slot, place);
        let record = self.jobs.record(slot);
        let (pri, tube) = (record.pri, record.terms.tube);
        let home = self.tubes.get_mut(tube);
        match place {
            Place::Ready => {
                state.ready.push((tube, ReadyKey::new(pri, id)));
                home.urgent += u64::from(pri < URGENT_BELOW);
                self.totals.urgent += u64::from(pri < URGENT_BELOW);
                self.totals.ready += 1;
                if state.ready.len() == SORT_MAX {
                    self.insert_ready(&mut state.ready);
                }
            }
            Place::Delayed(at) => {
                self.change_delayed(tube, |delayed| delayed.insert(TimeKey { at, id }));
                self.totals.delayed += 1;
            }
            Place::Buried(at) => {
                self.tubes.reorder(tube, |home| home.buried.insert(TimeKey { at, id }));
                self.totals.buried += 1;
            }
            Place::Reserved(hold) => {
                if !self.gateways.of_node(hold.node).is_some_and(|life| life.live) {
                    return Err(bad("a job is held by nobody who lives"));
                }
                self.reserved.insert(hold.node, hold.conn, hold.deadline, id);
                home.reserved += 1;
                self.totals.reserved += 1;
            }
        }
        Ok(())
    }
}

/// Where reading stands.
#[derive(Default)]
struct Progress {
    tubes: u64,
    jobs: u64,
    /// Of the last tube.
    born: u64,
    /// Slot of the last job's tube.
    tube: u32,
    before: Before,
    /// Ready jobs that are not in their tube's order yet, with their tube.
    ready: Vec<(u32, ReadyKey)>,
}

fn bad(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the state image cannot be read: {why}"))
}

fn checked<T>(value: Option<T>, what: &str) -> io::Result<T> {
    value.ok_or_else(|| bad(format!("{what} is out of range")))
}

/// A buffered reader that keeps the checksum.
struct Source<'a> {
    image: &'a mut dyn Read,
    buffer: Vec<u8>,
    at: usize,
    /// How much of the buffer is in the checksum.
    summed: usize,
    crc: Hasher,
    ended: bool,
}

impl<'a> Source<'a> {
    fn new(image: &'a mut dyn Read) -> Self {
        Source { image, buffer: Vec::new(), at: 0, summed: 0, crc: Hasher::new(), ended: false }
    }

    /// Makes a whole record available, unless the image ends before.
    fn fill(&mut self) -> io::Result<()> {
        self.sum();
        self.buffer.drain(..self.at);
        (self.at, self.summed) = (0, 0);
        let have = self.buffer.len();
        let got = self.image.take(READ_BYTES as u64).read_to_end(&mut self.buffer)?;
        debug_assert_eq!(self.buffer.len(), have + got);
        self.ended = got < READ_BYTES;
        Ok(())
    }

    fn sum(&mut self) {
        self.crc.update(&self.buffer[self.summed..self.at]);
        self.summed = self.at;
    }

    fn take(&mut self, len: usize) -> io::Result<&[u8]> {
        if self.buffer.len() - self.at < RECORD_MAX && !self.ended {
            self.fill()?;
        }
        let taken = self.buffer.get(self.at..self.at + len).ok_or_else(|| bad("it is cut short"))?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("take answers as many bytes as asked for"))
    }

    fn u8(&mut self) -> io::Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(bad("a number is too long"))
    }

    fn zigzag(&mut self) -> io::Result<i64> {
        let number = self.varint()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    fn number(&mut self) -> io::Result<u32> {
        checked(u32::try_from(self.varint()?).ok(), "a number")
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

    /// Checks the sum, and that nothing follows.
    fn end(&mut self) -> io::Result<()> {
        self.take(0)?;
        self.sum();
        let sum = self.crc.clone().finalize();
        if u32::from_le_bytes(self.array()?) != sum {
            return Err(bad("its checksum is wrong"));
        }
        match self.buffer.len() - self.at {
            0 => Ok(()),
            _ => Err(bad("bytes follow its end")),
        }
    }
}
