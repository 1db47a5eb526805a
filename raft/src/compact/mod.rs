//! Compaction: segments of which little is live are rewritten, so that one job that waits for long does not keep the
//! bodies of thousands that are gone.
//!
//! ```text
//!   before the snapshot   plan: which segments, by what is counted as live in them
//!   while it is written   every body that its image references: those in these segments are noted
//!   snapshot durable, log purged
//!   copy      42.body.tmp   the noted bodies, each record's CRC checked on the way, synced every MiB, slowly
//!   in place  42.body       rename, sync of the directory
//!   switch    readers and counts go over to it, in one step
//!   unlink    the segments that it replaces, sync of the directory
//! ```
//!
//! A crash before the rename leaves a file that the next start removes; one after it leaves bodies in two places,
//! of which the newer counts and the older goes as dead. Whoever still reads a replaced segment keeps its file open.
//!
//! The image tells what is live: what it references must stay until the next one is durable, and of bodies older than
//! it, later states reference only fewer.

mod copy;
mod heal;
mod plan;

use std::io;
use std::sync::Arc;

use crate::format::Position;
use crate::log::Log;
use crate::payload::BodyAddr;
use crate::prepare::Preparer;
use crate::segment::Segment;
use copy::Copied;
use plan::Candidate;

pub(crate) use copy::Failure;
pub(crate) use heal::{Healing, Step};

/// Live bodies noted for one round, at most: 16 MiB of addresses. What is left over comes with the next round.
const NOTED_MAX: u64 = 1 << 20;

/// What one round rewrites.
#[derive(Default)]
pub(crate) struct Round {
    /// In the order of their first index.
    jobs: Vec<Job>,
    /// The same for damaged segments, each by itself.
    damaged: Vec<Job>,
    /// What it frees, about, in bytes.
    gain: u64,
}

/// Segments that become one.
pub(crate) struct Job {
    segments: Vec<Arc<Segment>>,
    first: u64,
    last: u64,
    /// The highest index in this job and those before it.
    reach: u64,
    live: Vec<BodyAddr>,
}

impl Round {
    /// What there is to do among segments that have nothing after `upto`, up to where the log will be purged. A new
    /// segment has at most `most` bytes. Damaged ones are left alone unless it is time to `heal` them.
    pub(crate) fn plan(log: &Log, upto: u64, most: u64, heal: bool) -> Self {
        let mut segments = log.table.all();
        // The last one is being written.
        segments.pop();
        let logged = segments.len();
        segments.extend(log.table.bodies());
        let mut found: Vec<(u64, Arc<Segment>, Candidate)> = Vec::new();
        let mut gain = 0;
        let mut damaged = Vec::new();
        for (at, segment) in segments.into_iter().enumerate() {
            let Some((first, last)) = segment.range() else { continue };
            if last > upto || segment.is_damaged() && !heal {
                continue;
            }
            let (live_bytes, live) = (segment.live_bytes(), segment.live());
            if live == 0 {
                // The snapshot alone lets it go.
                gain += segment.capacity;
                continue;
            }
            if segment.is_damaged() {
                damaged.push(segment);
                continue;
            }
            let candidate = Candidate { file: segment.capacity, live_bytes, live, bodies: at >= logged };
            found.push((first, segment, candidate));
        }
        found.sort_by_key(|(first, segment, _)| (*first, segment.header.id));
        let candidates: Vec<Candidate> = found.iter().map(|(_, _, candidate)| *candidate).collect();
        let mut round = Self { jobs: Vec::new(), damaged: Vec::new(), gain };
        damaged.sort_by_key(|segment| segment.range());
        let mut noted = 0;
        for segment in damaged {
            noted += segment.live();
            if noted > NOTED_MAX && !round.damaged.is_empty() {
                break;
            }
            push(&mut round.damaged, vec![segment]);
        }
        noted = 0;
        for run in plan::plan(&candidates, most) {
            noted += candidates[run.clone()].iter().map(|candidate| candidate.live).sum::<u64>();
            if noted > NOTED_MAX && !round.jobs.is_empty() {
                break;
            }
            round.gain += plan::gain(&candidates[run.clone()]);
            push(&mut round.jobs, found[run].iter().map(|(_, segment, _)| segment.clone()).collect());
        }
        round
    }

    /// What the snapshot and the round free together, about, in bytes.
    pub(crate) fn gain(&self) -> u64 {
        self.gain
    }

    /// Nothing is to be rewritten.
    pub(crate) fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.damaged.is_empty()
    }

    /// Takes out what is damaged, to be written anew by [`Healing`].
    pub(crate) fn take_damaged(&mut self) -> Vec<Job> {
        std::mem::take(&mut self.damaged)
    }

    /// Notes a body that the image references.
    pub(crate) fn note(&mut self, addr: BodyAddr) {
        note(&mut self.jobs, addr);
        note(&mut self.damaged, addr);
    }

    /// Rewrites what was planned, after everything that the image of the snapshot at `snapshot` references was noted.
    /// Blocks for long. What cannot be read is left as it is.
    ///
    /// # Errors
    /// What the disk says when it cannot be written to; nothing is lost then.
    pub(crate) fn run(self, log: &Arc<Log>, preparer: &Arc<Preparer>, snapshot: Position) -> io::Result<()> {
        let _tidying = log.tidying.lock();
        for mut job in self.jobs {
            job.sort();
            let purged = *log.watch_purged().borrow();
            if job.last > purged || log.is_stopping() {
                continue;
            }
            match copy::copy(log, preparer, &job, snapshot) {
                Ok(copied) => {
                    job.finish(log, preparer, snapshot, copied)?;
                }
                Err(Failure::Damaged { segment, index, what }) => {
                    log.damage.note_entry(&segment, index, &what);
                }
                Err(Failure::Stopping) => return Ok(()),
                Err(Failure::Disk(error)) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Adds a job for these segments.
fn push(jobs: &mut Vec<Job>, segments: Vec<Arc<Segment>>) {
    let ranges = || segments.iter().filter_map(|segment| segment.range());
    let (Some(first), Some(last)) =
        (ranges().map(|range| range.0).min(), ranges().map(|range| range.1).max())
    else {
        return;
    };
    let reach = jobs.last().map_or(last, |job| job.reach.max(last));
    jobs.push(Job { segments, first, last, reach, live: Vec::new() });
}

fn note(jobs: &mut [Job], addr: BodyAddr) {
    let upto = jobs.partition_point(|job| job.first <= addr.index);
    for job in jobs[..upto].iter_mut().rev() {
        if job.reach < addr.index {
            return;
        }
        if addr.index <= job.last {
            job.live.push(addr);
        }
    }
}

impl Job {
    /// The last index of its segments.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    fn sort(&mut self) {
        self.live.sort_unstable_by_key(|addr| (addr.index, addr.offset));
    }

    /// Puts the new segment into place and removes those that it replaces; answers whether that could be done.
    fn finish(&self, log: &Log, preparer: &Preparer, snapshot: Position, copied: Copied) -> io::Result<bool> {
        let ids: Vec<u64> = self.segments.iter().map(|segment| segment.header.id).collect();
        let before: u64 = self.segments.iter().map(|segment| segment.capacity).sum();
        let gone = {
            let _replacing = log.replacing.lock();
            let counted: u64 = self.segments.iter().map(|segment| segment.live()).sum();
            // Another snapshot may have been installed meanwhile. And what is counted can only have become less.
            let overtaken = log.snapshot_index() != snapshot.index;
            if overtaken || counted > copied.bodies {
                copied.discard(log);
                if !overtaken {
                    let file = self.segments[0].path.display();
                    tracing::error!(%file, counted, found = copied.bodies, "live bodies are missing from the snapshot");
                    self.segments.iter().for_each(|segment| segment.set_damaged());
                }
                return Ok(false);
            }
            let placed = copied.put_into_place(log)?;
            log.table.replace(&ids, placed.as_ref())
        };
        let segments = gone.len();
        preparer.dispose(gone)?;
        log.compaction.count(copied.bytes, before.saturating_sub(copied.bytes));
        tracing::info!(
            segments,
            bytes = before,
            live_bytes = copied.bytes,
            bodies = copied.bodies,
            "compacted"
        );
        Ok(true)
    }
}
