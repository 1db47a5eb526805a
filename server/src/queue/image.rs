//! The image of the state: its bytes, and the way back.
//!
//! Version 1 at level 0 (see [`super::level`]), so that members of an older release can load it; else version 2, which
//! has the annex. `u8`, `u16`, `u32`, `u64` are little-endian; `v` is a number in LEB128 (7 bits a byte, the
//! lowest first); `z` is a difference as `v` of its zigzag form.
//!
//! ```text
//! 0            4             6             8
//! ┌────────────┬─────────────┬─────────────┬─────────────────────────────────────────┐
//! │ "BPQI"     │ version u16 │ reserved u16│ applied, stamp, lease, last id, last seq,│
//! │            │             │ = 0         │ next birth, total jobs, timeouts,        │
//! │            │             │             │ history, mark's nonce, index, hash: u64  │
//! ├────────────┴─────────────┴─────────────┴──────────────────────────────────────┬──┘
//! │ draining u8, leaving node u32, gateways u32                                   │
//! │ gateway*: node u32, epoch u64, nonce u64, sequence u64, live u8               │  by node
//! │ version 2: level u32, length u32, annex (see `annex`)                         │
//! ├───────────────────────────────────────────────────────────────────────────────┤
//! │ tube*: 1 u8, birth v (less the one before), name length u8, name,             │  by birth
//! │        total jobs v, cmd-delete v, cmd-pause v,                               │
//! │        pause seconds v, if these are not 0: end of pause v                    │
//! ├───────────────────────────────────────────────────────────────────────────────┤
//! │ job*:  flags u8, id v (less the one before),                                  │  by id
//! │        [tube's birth v]              unless SAME_TUBE                         │
//! │        [pri v, delay v, ttr v]       unless SAME_NUMBERS                      │
//! │        [hops u8, reason u8]          if POLICY: one of them is not 0          │
//! │        [entry z, created z]          unless SAME_ENTRY; from the job before   │
//! │        body offset z, body length v  offset: from the end of the body before  │
//! │                                      with SAME_ENTRY, else from 0             │
//! │        [reserves, timeouts, releases, buries, kicks: v]       if COUNTS       │
//! │        delayed: due v    buried: place v                                      │
//! │        reserved: node v, conn v, want v, deadline v, seq v                    │
//! ├───────────────────────────────────────────────────────────────────────────────┤
//! │ 0 u8, tubes v, jobs v, CRC32 u32 of all bytes before it                       │
//! └───────────────────────────────────────────────────────────────────────────────┘
//! flags: 0x80, and 0x03 state (0 ready, 1 reserved, 2 delayed, 3 buried), 0x04 COUNTS, 0x08 SAME_TUBE,
//!        0x10 SAME_NUMBERS, 0x20 SAME_ENTRY: equal to those of the job before; 0x40 POLICY, in version 2
//! ```
//!
//! What can be derived is not in it: orders, sums, slots.

use std::sync::Arc;

use beanpole_raft::BodyAddr;
use crc32fast::Hasher;

use super::engine::Engine;
use super::jobs::{Counts, Place};
use super::record::{Record, Terms};
use super::types::JobState;

pub(super) const MAGIC: &[u8; 4] = b"BPQI";
/// Newest version of the image format.
pub const IMAGE_VERSION: u16 = 2;
/// Version of the format of a state of level 0.
pub(super) const PLAIN_VERSION: u16 = 1;

pub(super) const END: u8 = 0;
pub(super) const TUBE: u8 = 1;
pub(super) const JOB: u8 = 0x80;
pub(super) const STATE: u8 = 0x03;
pub(super) const COUNTS: u8 = 0x04;
pub(super) const SAME_TUBE: u8 = 0x08;
pub(super) const SAME_NUMBERS: u8 = 0x10;
pub(super) const SAME_ENTRY: u8 = 0x20;
pub(super) const POLICY: u8 = 0x40;

/// A tube as the image has it.
#[derive(Clone, Default)]
pub(super) struct SavedTube {
    pub name: Arc<str>,
    pub born: u64,
    pub total_jobs: u64,
    pub cmd_delete: u64,
    pub cmd_pause: u64,
    pub pause_s: u32,
    pub pause_until_us: u64,
}

/// A job as the image has it; its tube is named by birth.
#[derive(Clone)]
pub(super) struct SavedJob {
    pub id: u64,
    pub born: u64,
    pub record: Record,
    pub counts: Counts,
    pub place: Place,
}

/// What a job's differences are from: the job before.
#[derive(Clone, Copy)]
pub(super) struct Before {
    pub id: u64,
    pub born: u64,
    pub record: Record,
}

impl Default for Before {
    fn default() -> Self {
        let body = BodyAddr { index: 0, offset: 0, len: 0 };
        Before { id: 0, born: 0, record: Record { body, created_us: 0, pri: 0, terms: Terms::default() } }
    }
}

impl Before {
    pub fn next(job: &SavedJob) -> Self {
        Before { id: job.id, born: job.born, record: job.record }
    }
    pub fn numbers(record: &Record) -> [u32; 3] {
        [record.pri, record.terms.delay_s, record.terms.ttr_s]
    }
    pub fn body_end(&self) -> i64 {
        let BodyAddr { offset, len, .. } = self.record.body;
        i64::from(offset) + i64::from(len)
    }
}

/// Writes an image, record by record.
pub(super) struct ImageWriter {
    head: Vec<u8>,
    crc: Hasher,
    tubes: u64,
    jobs: u64,
    last_born: u64,
    before: Before,
}

impl ImageWriter {
    /// Takes down at once what is not written record by record.
    pub fn new(engine: &Engine) -> Self {
        let mut head = Vec::new();
        head.extend_from_slice(MAGIC);
        let version = if engine.level == 0 { PLAIN_VERSION } else { IMAGE_VERSION };
        head.extend_from_slice(&version.to_le_bytes());
        head.extend_from_slice(&[0; 2]);
        let numbers = [
            engine.applied,
            engine.stamp,
            engine.lease,
            engine.last_id,
            engine.last_seq,
            engine.next_born,
            engine.totals.total_jobs,
            engine.totals.timeouts,
            engine.history.0,
            engine.mark.nonce,
            engine.mark.index,
            engine.mark.hash,
        ];
        for number in numbers {
            head.extend_from_slice(&number.to_le_bytes());
        }
        head.push(u8::from(engine.draining));
        head.extend_from_slice(&engine.leaving.to_le_bytes());
        head.extend_from_slice(&(engine.gateways.iter().count() as u32).to_le_bytes());
        for (node, life) in engine.gateways.iter() {
            head.extend_from_slice(&node.to_le_bytes());
            head.extend_from_slice(&life.epoch.to_le_bytes());
            head.extend_from_slice(&life.nonce.to_le_bytes());
            head.extend_from_slice(&life.sequence.to_le_bytes());
            head.push(u8::from(life.live));
        }
        head.append(&mut engine.annex());
        let (crc, before) = (Hasher::new(), Before::default());
        ImageWriter { head, crc, tubes: 0, jobs: 0, last_born: 0, before }
    }

    pub fn head(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.head);
    }

    pub fn tube(&mut self, tube: &SavedTube, out: &mut Vec<u8>) {
        out.push(TUBE);
        varint(out, tube.born - self.last_born);
        out.push(tube.name.len() as u8);
        out.extend_from_slice(tube.name.as_bytes());
        varints(out, [tube.total_jobs, tube.cmd_delete, tube.cmd_pause, u64::from(tube.pause_s)]);
        if tube.pause_s > 0 {
            varint(out, tube.pause_until_us);
        }
        self.last_born = tube.born;
        self.tubes += 1;
    }

    pub fn job(&mut self, job: &SavedJob, out: &mut Vec<u8>) {
        write_job(&self.before, job, out);
        self.before = Before::next(job);
        self.jobs += 1;
    }

    /// Takes what was written into the checksum.
    pub fn checksum(&mut self, written: &[u8]) {
        self.crc.update(written);
    }

    /// Writes the end, checksum included.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        let start = out.len();
        out.push(END);
        varint(out, self.tubes);
        varint(out, self.jobs);
        self.crc.update(&out[start..]);
        out.extend_from_slice(&self.crc.clone().finalize().to_le_bytes());
    }
}

/// Writes a job as it differs from the one before.
pub(super) fn write_job(before: &Before, job: &SavedJob, out: &mut Vec<u8>) {
    let (record, last) = (&job.record, &before.record);
    let has_counts = job.counts != Counts::default();
    let same_tube = job.born == before.born;
    let same_numbers = Before::numbers(record) == Before::numbers(last);
    let same_entry = record.body.index == last.body.index && record.created_us == last.created_us;
    let (hops, reason) = (record.terms.hops, record.terms.reason.code());
    let has_policy = hops > 0 || reason > 0;
    let flag = |on: bool, flag: u8| if on { flag } else { 0 };
    out.push(
        JOB | state_bits(job.place.state())
            | flag(has_counts, COUNTS)
            | flag(same_tube, SAME_TUBE)
            | flag(same_numbers, SAME_NUMBERS)
            | flag(same_entry, SAME_ENTRY)
            | flag(has_policy, POLICY),
    );
    varint(out, job.id - before.id);
    if !same_tube {
        varint(out, job.born);
    }
    if !same_numbers {
        varints(out, Before::numbers(record));
    }
    if has_policy {
        out.extend_from_slice(&[hops, reason]);
    }
    let body = record.body;
    if same_entry {
        zigzag(out, i64::from(body.offset) - before.body_end());
    } else {
        zigzag(out, body.index.wrapping_sub(last.body.index) as i64);
        zigzag(out, record.created_us.wrapping_sub(last.created_us) as i64);
        zigzag(out, i64::from(body.offset));
    }
    varint(out, u64::from(body.len));
    if has_counts {
        let Counts { reserves, timeouts, releases, buries, kicks } = job.counts;
        varints(out, [reserves, timeouts, releases, buries, kicks]);
    }
    match &job.place {
        Place::Ready => {}
        Place::Delayed(mark) | Place::Buried(mark) => varint(out, *mark),
        Place::Reserved(hold) => {
            varint(out, u64::from(hold.node));
            varints(out, [hold.conn, hold.want, hold.deadline, hold.seq]);
        }
    }
}

fn state_bits(state: JobState) -> u8 {
    match state {
        JobState::Ready => 0,
        JobState::Reserved => 1,
        JobState::Delayed => 2,
        JobState::Buried => 3,
    }
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn varints<N: Into<u64>, const COUNT: usize>(out: &mut Vec<u8>, numbers: [N; COUNT]) {
    for number in numbers {
        varint(out, number.into());
    }
}

fn zigzag(out: &mut Vec<u8>, number: i64) {
    varint(out, (number << 1 ^ number >> 63) as u64);
}
