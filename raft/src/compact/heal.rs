//! Writing a damaged segment anew, with bodies from peers in the place of those that do not check out.
//!
//! ```text
//!   run ──> entry whole: copied ──> entry damaged: Wanted ── peers ──> run with what they brought ──> ...
//!       ──> Done: the new segment is durable ──> put into place as in compaction ──> the damaged one is unlinked
//! ```
//!
//! What is dead in it is left out, damaged or not. One entry at a time is in memory. Until the new segment is in its place,
//! a crash leaves the damaged one as it was.

use std::sync::Arc;

use bytes::Bytes;

use super::Job;
use super::copy::{Copied, Copier, Failure};
use crate::bodies;
use crate::format::Position;
use crate::log::Log;
use crate::payload::BodyAddr;
use crate::prepare::Preparer;
use crate::repair::Fetched;
use crate::segment::Segment;

/// One segment being written anew.
pub(crate) struct Healing {
    log: Arc<Log>,
    preparer: Arc<Preparer>,
    job: Job,
    snapshot: Position,
    /// Gone when it is done.
    copier: Option<Copier>,
    /// The place in `job.live` of the next body.
    next: usize,
    /// Bodies written.
    bodies: u64,
    /// Those of the entry that needs some from elsewhere, with what there is of them here.
    waiting: Vec<(BodyAddr, Option<Bytes>)>,
}

/// How far it came.
pub(crate) enum Step {
    /// These bodies of an entry, offset and length each, are needed from elsewhere.
    Wanted {
        /// The entry.
        index: u64,
        /// Offset and length of each.
        bodies: Vec<(u32, u32)>,
    },
    /// The new segment is in the place of the damaged one, which is gone.
    Done,
    /// Another snapshot was installed meanwhile, or what is live is not what the snapshot said.
    Void,
}

impl Healing {
    /// Begins with a damaged segment, after everything that the image of the snapshot at `snapshot` references was noted.
    pub(crate) fn new(log: Arc<Log>, preparer: Arc<Preparer>, mut job: Job, snapshot: Position) -> Self {
        job.sort();
        let copier = Some(Copier::new(log.clone(), preparer.clone(), snapshot));
        Self { log, preparer, job, snapshot, copier, next: 0, bodies: 0, waiting: Vec::new() }
    }

    /// The segment.
    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.job.segments[0]
    }

    /// Goes on until bodies are needed from elsewhere, which the next call brings, or until it is over. Blocks.
    ///
    /// # Errors
    /// See [`Failure`]; the damaged segment stays.
    pub(crate) fn run(&mut self, brought: Option<Fetched>) -> Result<Step, Failure> {
        let log = self.log.clone();
        let _tidying = log.tidying.lock();
        if log.is_stopping() {
            return Err(Failure::Stopping);
        }
        if !self.waiting.is_empty() {
            let brought = brought.expect("it was asked for");
            self.write_waiting(brought.bodies, brought.term)?;
        }
        while let Some(first) = self.job.live.get(self.next) {
            let index = first.index;
            if !self.entry(index)? {
                let missing = self.waiting.iter().filter(|(_, here)| here.is_none());
                let bodies = missing.map(|(addr, _)| (addr.offset, addr.len)).collect();
                return Ok(Step::Wanted { index, bodies });
            }
        }
        self.finish()
    }

    /// Copies what is live of an entry, if all of it is here.
    fn entry(&mut self, index: u64) -> Result<bool, Failure> {
        let start = self.next;
        self.next += self.job.live[start..].partition_point(|addr| addr.index == index);
        let (segment, live) = (self.job.segments[0].clone(), &self.job.live[start..self.next]);
        let found = self.log.table.with_body(index, Arc::clone);
        if !found.is_some_and(|found| Arc::ptr_eq(&found, &segment)) {
            // It lies elsewhere: ranges of indexes may overlap.
            return Ok(true);
        }
        let copier = self.copier.as_mut().expect("it is not done");
        // That it cannot be read is damage, too.
        if copier.is_whole(&segment, index).unwrap_or(false) {
            copier.entry(&segment, live)?;
            self.bodies += live.len() as u64;
            return Ok(true);
        }
        self.log.damage.note_entry(&segment, index, "the entry does not check out");
        let log = &self.log;
        // Of a damaged entry only those bodies can be believed that check out by themselves.
        let here = |addr: &BodyAddr| {
            let alone = log.damage.check.is_some();
            if alone { bodies::read_sound(log, *addr).ok().flatten() } else { None }
        };
        self.waiting = live.iter().map(|addr| (*addr, here(addr))).collect();
        if self.waiting.iter().any(|(_, here)| here.is_none()) {
            return Ok(false);
        }
        self.write_waiting(Vec::new(), None)?;
        Ok(true)
    }

    /// Writes the entry that waited, `brought` filling its gaps.
    fn write_waiting(&mut self, brought: Vec<Bytes>, term: Option<u64>) -> Result<(), Failure> {
        let waiting = std::mem::take(&mut self.waiting);
        let index = waiting[0].0.index;
        let mut brought = brought.into_iter();
        let bodies: Vec<(BodyAddr, Bytes)> = waiting
            .into_iter()
            .map(|(addr, here)| (addr, here.or_else(|| brought.next()).expect("all that was asked for came")))
            .collect();
        // What a damaged record says of itself is bounded by what can be.
        let term = term.or_else(|| bodies::term_of(&self.log, index)).unwrap_or(self.snapshot.term);
        let position = Position { term: term.min(self.snapshot.term), index };
        self.bodies += bodies.len() as u64;
        self.copier.as_mut().expect("it is not done").pieces(position, &bodies)
    }

    fn finish(&mut self) -> Result<Step, Failure> {
        let copier = self.copier.take().expect("it is done once");
        let copied: Copied = copier.seal(self.bodies)?;
        let done =
            self.job.finish(&self.log, &self.preparer, self.snapshot, copied).map_err(Failure::Disk)?;
        if !done {
            return Ok(Step::Void);
        }
        self.log.damage.count_healed(self.segment().header.id);
        Ok(Step::Done)
    }
}
