//! Reading an image back. It comes from a checksummed file or from a peer; every number is checked all the
//! same, because a state that is not what it seems is worse than none.
//!
//! ```text
//!   jobs by id ──► records, one after the other ──► a page of ids at a time
//!         ready ones ──► gathered, sorted, and put into their tubes' orders many at a time
//! ```
//!
//! A start takes as long as this: what can be done for many jobs at once is not done for each.

use std::io::{self, Read};

use super::engine::Engine;
use super::fields::{Fields, RECORD_MAX, Source, bad, checked};
use super::gateways::Life;
use super::history::History;
use super::image::{Before, END, IMAGE_VERSION, JOB, MAGIC, PLAIN_VERSION, TUBE};
use super::jobs::{Page, Place};
use super::level::LEVEL;
use super::tubes::{DEFAULT, ReadyKey, TimeKey, Tube};
use super::types::{Mark, URGENT_BELOW};

/// Ready jobs are put in order this many at a time: they come by id, and their order is by priority ...
const SORT_MIN: usize = 1 << 14;
/// ... but when they scatter, so many that they are this part of those that are in order already: the more there are, the
/// more go into each part of an order, and the memory that it takes stays small beside theirs.
const SORT_PART: u64 = 16;
/// They do not scatter when they go behind all others of their tubes, so many in each on average.
const OF_TUBE_MIN: usize = 64;
/// Keys that are given to an order at once.
const KEYS_MAX: usize = 1 << 12;

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
        while source.record(|fields| engine.read_record(fields, &mut state))? {}
        engine.jobs.loaded(std::mem::take(&mut state.page));
        engine.insert_ready(&mut state.ready);
        source.end()?;
        match engine.tubes.find(DEFAULT) {
            Some(_) => Ok(engine),
            None => Err(bad("it has no tube `default`")),
        }
    }

    fn read_head(&mut self, source: &mut Source<'_>) -> io::Result<()> {
        let (version, gateways) = source.record(|fields| self.read_numbers(fields))?;
        for _ in 0..gateways {
            source.record(|fields| {
                let node = fields.u32()?;
                let (epoch, nonce, sequence) = (fields.u64()?, fields.u64()?, fields.u64()?);
                let live = fields.u8()? != 0;
                self.gateways.set(node, Life { epoch, nonce, sequence, live });
                Ok(())
            })?;
        }
        if version > PLAIN_VERSION { self.read_level(source) } else { Ok(()) }
    }

    fn read_level(&mut self, source: &mut Source<'_>) -> io::Result<()> {
        let (level, mut left) = source.record(|fields| Ok((fields.u32()?, fields.u32()? as usize)))?;
        if level == 0 || level > LEVEL {
            return Err(bad(format!("its level is {level}, and this release reads levels up to {LEVEL}")));
        }
        self.level = level;
        let mut annex = Vec::new();
        while left > 0 {
            let part = left.min(RECORD_MAX);
            source.record(|fields| fields.take(part).map(|bytes| annex.extend_from_slice(bytes)))?;
            left -= part;
        }
        self.read_annex(&annex).map_err(bad)
    }

    /// Answers the version, and how many gateways follow.
    fn read_numbers(&mut self, fields: &mut Fields<'_>) -> io::Result<(u16, u32)> {
        if fields.array::<4>()? != *MAGIC {
            return Err(bad("it does not begin with BPQI"));
        }
        let version = fields.u16()?;
        if !(PLAIN_VERSION..=IMAGE_VERSION).contains(&version) {
            let read = format!("{PLAIN_VERSION} to {IMAGE_VERSION}");
            return Err(bad(format!("its version is {version}, and this release reads {read}")));
        }
        fields.array::<2>()?;
        self.applied = fields.u64()?;
        self.stamp = fields.u64()?;
        self.lease = fields.u64()?;
        self.last_id = fields.u64()?;
        self.last_seq = fields.u64()?;
        self.next_born = fields.u64()?;
        self.totals.total_jobs = fields.u64()?;
        self.totals.timeouts = fields.u64()?;
        self.history = History(fields.u64()?);
        self.mark = Mark { nonce: fields.u64()?, index: fields.u64()?, hash: fields.u64()? };
        self.draining = fields.u8()? != 0;
        self.leaving = fields.u32()?;
        Ok((version, fields.u32()?))
    }

    /// Answers false at the end.
    fn read_record(&mut self, fields: &mut Fields<'_>, state: &mut Progress) -> io::Result<bool> {
        match fields.u8()? {
            flags if flags & JOB != 0 => self.read_job(fields, state, flags)?,
            TUBE if state.jobs == 0 => self.read_tube(fields, state)?,
            END => {
                if (fields.varint()?, fields.varint()?) != (state.tubes, state.jobs) {
                    return Err(bad("its counts do not agree with its records"));
                }
                return Ok(false);
            }
            kind => return Err(bad(format!("it has a record of unknown kind {kind:#04x}"))),
        }
        Ok(true)
    }

    fn read_tube(&mut self, fields: &mut Fields<'_>, state: &mut Progress) -> io::Result<()> {
        let born = checked(state.born.checked_add(fields.varint()?), "a tube's birth")?;
        if born >= self.next_born || (state.tubes > 0 && born == state.born) {
            return Err(bad("its tubes are out of order"));
        }
        let len = fields.u8()? as usize;
        let name = std::str::from_utf8(fields.take(len)?).map_err(|_| bad("a tube's name is not text"))?;
        let mut tube = Tube { name: name.into(), born, policy: self.policies.of(name), ..Tube::default() };
        tube.total_jobs = fields.varint()?;
        tube.cmd_delete = fields.varint()?;
        tube.cmd_pause = fields.varint()?;
        tube.pause_s = fields.number()?;
        if tube.pause_s > 0 {
            tube.pause_until_us = fields.varint()?;
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

    fn read_job(&mut self, fields: &mut Fields<'_>, state: &mut Progress, flags: u8) -> io::Result<()> {
        let mut job = fields.job(flags, &state.before)?;
        if job.id == state.before.id || job.id > self.last_id {
            return Err(bad("its jobs are out of order"));
        }
        if state.jobs == 0 || job.born != state.before.born {
            state.tube = self.tubes.of_birth(job.born).ok_or_else(|| bad("a job's tube is missing"))?;
        }
        job.record.terms.tube = state.tube;
        if !job.record.fits() {
            return Err(bad("a job's entry is beyond all logs"));
        }
        self.tubes.get_mut(state.tube).bytes += u64::from(job.record.body.len);
        let slot = self.jobs.load(&mut state.page, job.id, &job.record);
        self.jobs.set_counts(slot, job.counts);
        state.before = Before::next(&job);
        state.jobs += 1;
        match job.place {
            Place::Ready => {
                self.load_ready(state, ReadyKey::new(job.record.pri, job.id));
                Ok(())
            }
            place @ (Place::Delayed(_) | Place::Buried(_) | Place::Reserved(_)) => {
                self.jobs.set_place(slot, place);
                self.load_place(state.tube, job.id, place)
            }
        }
    }

    fn load_ready(&mut self, state: &mut Progress, key: ReadyKey) {
        state.ready.push((state.tube, key));
        self.totals.ready += 1;
        if key.pri < URGENT_BELOW {
            self.tubes.get_mut(state.tube).urgent += 1;
            self.totals.urgent += 1;
        }
        if state.ready.len() >= state.sort_at {
            let scattered = self.insert_ready(&mut state.ready);
            let part = usize::try_from(self.totals.ready / SORT_PART).unwrap_or(usize::MAX);
            state.sort_at = if scattered { part.max(SORT_MIN) } else { SORT_MIN };
            state.ready.reserve_exact(state.sort_at);
        }
    }

    /// Answers whether they scattered.
    fn insert_ready(&mut self, ready: &mut Vec<(u32, ReadyKey)>) -> bool {
        ready.sort_unstable();
        let mut keys = Vec::with_capacity(KEYS_MAX);
        let (mut tubes, mut behind) = (0, true);
        for of_tube in ready.chunk_by(|(tube, _), (next, _)| tube == next) {
            tubes += 1;
            let last = self.tubes.get(of_tube[0].0).ready.last();
            behind &= last.is_none_or(|last| last < of_tube[0].1);
            for piece in of_tube.chunks(KEYS_MAX) {
                keys.extend(piece.iter().map(|(_, key)| *key));
                self.tubes.reorder(of_tube[0].0, |home| home.ready.extend(&keys));
                keys.clear();
            }
        }
        let scattered = !behind || tubes * OF_TUBE_MIN > ready.len();
        ready.clear();
        scattered
    }

    /// Puts a job that is not ready where the image has it.
    fn load_place(&mut self, tube: u32, id: u64, place: Place) -> io::Result<()> {
        match place {
            Place::Ready => {}
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
                self.tubes.get_mut(tube).reserved += 1;
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
    /// Of the index, with the last jobs.
    page: Page,
    /// Ready jobs that are not in their tube's order yet, with their tube.
    ready: Vec<(u32, ReadyKey)>,
    /// They are put there when they are so many.
    sort_at: usize,
}
