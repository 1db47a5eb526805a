//! Taking an image in slices while entries go on being applied.
//!
//! ```text
//!   tubes by birth, then jobs by id:   written ──────►│ not yet written            │ made since: not in the image
//!                                                   next                          end
//!   a record that changes here:        nothing to do  │ is copied as it is first   │ nothing to do
//! ```
//!
//! A copy is written in its turn, in the place of the record. So the image is that of the moment it was
//! begun, whatever happened since and however the slices were cut; it costs memory only for what changed
//! meanwhile, and little of it (`kept`). When it would be much all the same, because one command changes millions of jobs,
//! the image is given up and taken another time.

use std::collections::BTreeMap;

use beanpole_raft::BodyAddr;

use super::engine::Engine;
use super::image::{ImageWriter, SavedJob, SavedTube};
use super::kept::Kept;

/// A slice ends at the first record beyond this many bytes ...
const SLICE_BYTES: usize = 64 << 10;
/// ... or after this many steps. Apply waits for one slice at most: that is below a millisecond.
const SLICE_STEPS: usize = 128;
/// What is kept of changed jobs may take this part of the index; an image for which more would have to be kept is given up.
const KEPT_PART: usize = 12;
/// ... but at least this much.
const KEPT_MIN: usize = 8 << 20;
/// Tubes or jobs written in one step at most.
const STEP_RECORDS: usize = 64;

/// A snapshot being taken. Give it back with [`Engine::end_snapshot`] when it is complete or given up.
#[derive(Debug)]
pub struct SnapshotCursor {
    ticket: u64,
}

/// The engine's side of a snapshot being taken.
pub(super) struct Saving {
    ticket: u64,
    walk: Walk,
    tubes: BTreeMap<u64, SavedTube>,
    jobs: Kept,
    /// How many bytes they may take.
    jobs_max: usize,
}

/// What was copied before it changed, and who is told of bodies.
struct Copies<'a> {
    tubes: &'a mut BTreeMap<u64, SavedTube>,
    jobs: &'a mut Kept,
    live: &'a mut dyn FnMut(BodyAddr),
}

/// How far the image is.
struct Walk {
    writer: ImageWriter,
    next_tube: u64,
    /// Births from here on are later than the image.
    end_tube: u64,
    next_job: u64,
    last_job: u64,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Head,
    Tubes,
    Jobs,
    Ended,
    GivenUp,
}

impl Engine {
    /// Begins an image of the state as it is now. One at a time: beginning another gives up the one before.
    /// When the jobs that change before their turn take more than a twelfth of the index it is given up.
    pub fn begin_snapshot(&mut self) -> SnapshotCursor {
        let kept_max = (self.index_bytes() / KEPT_PART).max(KEPT_MIN);
        self.begin_snapshot_within(kept_max)
    }

    /// As [`Engine::begin_snapshot`], with another bound for what is kept of changed jobs, in bytes.
    pub fn begin_snapshot_within(&mut self, jobs_max: usize) -> SnapshotCursor {
        self.snapshots += 1;
        let ticket = self.snapshots;
        let (tubes, jobs) = (BTreeMap::new(), Kept::default());
        self.saving = Some(Box::new(Saving { ticket, walk: self.walk(), tubes, jobs, jobs_max }));
        SnapshotCursor { ticket }
    }

    /// Appends the next slice of the image, some 64 KiB, to `out`, and passes the body of every job in it to `live`;
    /// answers false when that was the last, or it was given up. Entries may be applied between slices and do not show in
    /// the image.
    ///
    /// # Panics
    /// When another snapshot was begun since, or the state was replaced: half an image must never pass for a
    /// whole one.
    pub fn snapshot_slice(
        &mut self,
        cursor: &mut SnapshotCursor,
        out: &mut Vec<u8>,
        live: &mut dyn FnMut(BodyAddr),
    ) -> bool {
        self.snapshot_slice_of(cursor, out, SLICE_BYTES, live)
    }

    /// As [`Engine::snapshot_slice`], with slices of another size.
    ///
    /// # Panics
    /// As [`Engine::snapshot_slice`].
    pub fn snapshot_slice_of(
        &mut self,
        cursor: &mut SnapshotCursor,
        out: &mut Vec<u8>,
        bytes: usize,
        live: &mut dyn FnMut(BodyAddr),
    ) -> bool {
        let saving = self.saving.take().filter(|saving| saving.ticket == cursor.ticket);
        let mut saving = saving.expect("the snapshot was given up: its image cannot be completed");
        let Saving { walk, tubes, jobs, .. } = &mut *saving;
        let more = self.write_some(walk, Copies { tubes, jobs, live }, out, bytes);
        self.saving = Some(saving);
        more
    }

    /// Whether the snapshot being taken was given up: what there is of it is no image.
    #[must_use]
    pub fn snapshot_given_up(&self) -> bool {
        self.saving.as_ref().is_some_and(|saving| saving.walk.stage == Stage::GivenUp)
    }

    /// The snapshot being taken is not to be given up, whatever has to be kept for it.
    pub fn insist_on_snapshot(&mut self) {
        if let Some(saving) = &mut self.saving {
            saving.jobs_max = usize::MAX;
        }
    }

    /// Ends a snapshot, complete or not: the engine copies no more records for it.
    pub fn end_snapshot(&mut self, cursor: SnapshotCursor) {
        if self.saving.as_ref().is_some_and(|saving| saving.ticket == cursor.ticket) {
            self.saving = None;
        }
    }

    /// Bytes of records kept for an image that is being taken; 0 while none is.
    #[must_use]
    pub fn saving_bytes(&self) -> usize {
        let Some(saving) = &self.saving else { return 0 };
        saving.tubes.len() * size_of::<SavedTube>() * 3 / 2 + saving.jobs.bytes()
    }

    /// A hash of the whole state (FNV-1a of its image): equal states have equal digests on every node.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut walk = self.walk();
        let (mut tubes, mut jobs) = (BTreeMap::new(), Kept::default());
        let mut slice = Vec::new();
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut more = true;
        while more {
            let copies = Copies { tubes: &mut tubes, jobs: &mut jobs, live: &mut |_| {} };
            more = self.write_some(&mut walk, copies, &mut slice, SLICE_BYTES);
            for byte in slice.drain(..) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        hash
    }

    fn walk(&self) -> Walk {
        Walk {
            writer: ImageWriter::new(self),
            next_tube: 0,
            end_tube: self.next_born,
            next_job: 1,
            last_job: self.last_id,
            stage: Stage::Head,
        }
    }

    fn write_some(&self, walk: &mut Walk, copies: Copies<'_>, out: &mut Vec<u8>, bytes: usize) -> bool {
        let Copies { tubes, jobs, live } = copies;
        let start = out.len();
        for _ in 0..SLICE_STEPS {
            if out.len() - start >= bytes {
                break;
            }
            match walk.stage {
                Stage::Head => {
                    walk.writer.head(out);
                    walk.stage = Stage::Tubes;
                }
                Stage::Tubes => self.write_tubes(walk, tubes, out),
                Stage::Jobs => self.write_jobs(walk, jobs, live, out),
                Stage::Ended | Stage::GivenUp => break,
            }
        }
        walk.writer.checksum(&out[start..]);
        if walk.stage == Stage::Ended {
            walk.writer.end(out);
        }
        walk.stage < Stage::Ended
    }

    /// Writes some of the next tubes, as they were if they changed since.
    fn write_tubes(&self, walk: &mut Walk, saved: &mut BTreeMap<u64, SavedTube>, out: &mut Vec<u8>) {
        let end = walk.end_tube;
        let live = self.tubes.born_since(walk.next_tube);
        let mut live = live.take_while(|(_, tube)| tube.born < end).peekable();
        for _ in 0..STEP_RECORDS {
            let next = live.peek().map(|(slot, tube)| (*slot, tube.born));
            let tube = match (next, saved.first_entry()) {
                (None, None) => {
                    walk.stage = Stage::Jobs;
                    return;
                }
                (None, Some(copy)) => copy.remove(),
                (Some((_, born)), Some(copy)) if *copy.key() <= born => {
                    live.next_if(|(_, tube)| tube.born == *copy.key());
                    copy.remove()
                }
                (Some((slot, _)), _) => {
                    live.next();
                    self.saved_tube(slot)
                }
            };
            walk.next_tube = tube.born + 1;
            walk.writer.tube(&tube, out);
        }
    }

    /// Writes some of the next jobs, as they were if they changed since.
    fn write_jobs(
        &self,
        walk: &mut Walk,
        kept: &mut Kept,
        live: &mut dyn FnMut(BodyAddr),
        out: &mut Vec<u8>,
    ) {
        let last = walk.last_job;
        let page = self.jobs.page_from(walk.next_job).into_iter().flatten();
        let mut page = page.take_while(|(id, _)| *id <= last).peekable();
        let head = page.peek().map(|(id, _)| *id);
        if head.is_none() && kept.is_empty() {
            walk.stage = Stage::Ended;
            return;
        }
        let limit = kept.bring(head);
        // Then what is kept comes before all that is not.
        let none_live = head.is_none_or(|head| head >= limit);
        for _ in 0..STEP_RECORDS {
            let next = page.peek().copied().filter(|(id, _)| *id < limit);
            let job = match (next, kept.first()) {
                (None, Some(copy)) if none_live => copy.remove(),
                (None, _) => return,
                (Some((id, _)), Some(copy)) if *copy.key() <= id => {
                    page.next_if(|(id, _)| id == copy.key());
                    copy.remove()
                }
                (Some((id, slot)), _) => {
                    page.next();
                    self.saved_job(id, slot)
                }
            };
            walk.next_job = job.id + 1;
            live(job.record.body);
            walk.writer.job(&job, out);
        }
    }

    /// Call before a tube changes or goes: what of it belongs to the image is kept.
    pub(super) fn save_tube(&mut self, slot: u32) {
        let Some(mut saving) = self.saving.take() else { return };
        let born = self.tubes.get(slot).born;
        let wanted = (saving.walk.next_tube..saving.walk.end_tube).contains(&born);
        if wanted && saving.walk.stage <= Stage::Tubes && !saving.tubes.contains_key(&born) {
            saving.tubes.insert(born, self.saved_tube(slot));
        }
        self.saving = Some(saving);
    }

    /// Call before a job changes or goes: what of it belongs to the image is kept.
    pub(super) fn save_job(&mut self, id: u64, slot: u32) {
        let Some(mut saving) = self.saving.take() else { return };
        let wanted = (saving.walk.next_job..=saving.walk.last_job).contains(&id);
        if wanted && saving.walk.stage < Stage::Ended && !saving.jobs.knows(id) {
            saving.jobs.add(&self.saved_job(id, slot));
            if saving.jobs.bytes() > saving.jobs_max {
                saving.walk.stage = Stage::GivenUp;
                saving.jobs = Kept::default();
                saving.tubes.clear();
            }
        }
        self.saving = Some(saving);
    }

    fn saved_tube(&self, slot: u32) -> SavedTube {
        let tube = self.tubes.get(slot);
        SavedTube {
            name: tube.name.clone(),
            born: tube.born,
            total_jobs: tube.total_jobs,
            cmd_delete: tube.cmd_delete,
            cmd_pause: tube.cmd_pause,
            pause_s: tube.pause_s,
            pause_until_us: tube.pause_until_us,
        }
    }

    fn saved_job(&self, id: u64, slot: u32) -> SavedJob {
        let record = self.jobs.record(slot);
        SavedJob {
            id,
            born: self.tubes.get(record.terms.tube).born,
            record,
            counts: self.jobs.counts(slot),
            place: self.jobs.place(slot),
        }
    }
}
