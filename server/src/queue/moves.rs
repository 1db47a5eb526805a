//! A job's moves between its states. Every move keeps all orders and sums in step with the record, and lets
//! offers have what becomes ready.
//!
//! ```text
//!            place_delayed   place_ready   place_buried   place_reserved
//!                  ▲              ▲             ▲               ▲
//!                  └──────────────┴── nowhere ──┴───────────────┘
//!                                        ▲
//!                                    take_out
//! ```

use super::engine::{Engine, Run};
use super::jobs::{Hold, Place};
use super::runs::Runs;
use super::tubes::{ReadyKey, TimeKey};
use super::types::{JobState, SessionId, URGENT_BELOW};

/// Microseconds of protocol seconds: at most 2^32 of them, so the product fits.
pub(super) fn micros(seconds: u32) -> u64 {
    u64::from(seconds) * 1_000_000
}

impl Engine {
    /// Takes a job out of the order it is in. Follow with one of the `place_` moves, or forget the job.
    pub(super) fn take_out(&mut self, id: u64, slot: u32) {
        self.save_job(id, slot);
        let record = self.jobs.record(slot);
        let (pri, tube) = (record.pri, record.terms.tube);
        match self.jobs.state(slot) {
            JobState::Ready => {
                let known = self.tubes.reorder(tube, |home| home.ready.remove(ReadyKey::new(pri, id)));
                assert!(known, "job {id} is ready, so its tube knows it");
                self.count_ready_out(tube, pri);
            }
            JobState::Delayed => {
                let key = TimeKey { at: self.jobs.clear_mark(slot), id };
                self.change_delayed(tube, |delayed| {
                    assert!(delayed.remove(key), "job {id} is delayed, so its tube knows it");
                });
                self.totals.delayed -= 1;
            }
            JobState::Buried => {
                let key = TimeKey { at: self.jobs.clear_mark(slot), id };
                let known = self.tubes.reorder(tube, |home| home.buried.remove(key));
                assert!(known, "job {id} is buried, so its tube knows it");
                self.totals.buried -= 1;
            }
            JobState::Reserved => {
                let hold = self.jobs.clear_hold(slot);
                self.reserved.remove(hold.node, hold.conn, hold.deadline, id);
                self.tubes.get_mut(tube).reserved -= 1;
                self.totals.reserved -= 1;
                self.note_freed(tube);
            }
        }
    }

    /// Makes a job ready that is nowhere, and serves offers with it.
    pub(super) fn place_ready(&mut self, run: &mut Run<'_>, id: u64, slot: u32) {
        self.jobs.set_place(slot, Place::Ready);
        let record = self.jobs.record(slot);
        let (pri, tube) = (record.pri, record.terms.tube);
        self.tubes.reorder(tube, |home| home.ready.insert(ReadyKey::new(pri, id)));
        self.arm_sweep(tube);
        self.totals.ready += 1;
        if pri < URGENT_BELOW {
            self.tubes.get_mut(tube).urgent += 1;
            self.totals.urgent += 1;
        }
        self.became_ready(run, tube);
    }

    /// Delays a job that is nowhere until a stamp.
    pub(super) fn place_delayed(&mut self, id: u64, slot: u32, due: u64) {
        self.jobs.set_place(slot, Place::Delayed(due));
        let tube = self.jobs.tube(slot);
        self.change_delayed(tube, |delayed| delayed.insert(TimeKey { at: due, id }));
        self.arm_sweep(tube);
        self.totals.delayed += 1;
    }

    /// Buries a job that is nowhere, behind those that are.
    pub(super) fn place_buried(&mut self, id: u64, slot: u32) {
        self.last_seq += 1;
        self.place_buried_at(id, slot, self.last_seq);
    }

    /// Buries a job that is nowhere at a place in the order of burying that nobody else has.
    pub(super) fn place_buried_at(&mut self, id: u64, slot: u32, at: u64) {
        self.jobs.set_place(slot, Place::Buried(at));
        let tube = self.jobs.tube(slot);
        let key = TimeKey { at, id };
        self.tubes.reorder(tube, |home| home.buried.insert(key));
        self.arm_sweep(tube);
        self.totals.buried += 1;
    }

    /// Gives a job that is nowhere to a session, for one TTR.
    pub(super) fn place_reserved(&mut self, id: u64, slot: u32, session: SessionId, want: u64) {
        self.last_seq += 1;
        let record = self.jobs.record(slot);
        let (deadline, tube) = (self.lease + micros(record.terms.ttr_s), record.terms.tube);
        let SessionId { node, conn, .. } = session;
        let hold = Hold { deadline, conn, want, seq: self.last_seq, node };
        self.jobs.set_place(slot, Place::Reserved(hold));
        self.jobs.count(slot, |counts| counts.reserves = counts.reserves.saturating_add(1));
        self.reserved.insert(node, conn, deadline, id);
        self.tubes.get_mut(tube).reserved += 1;
        self.totals.reserved += 1;
    }

    /// A held job becomes ready again; `undone` means that its hand-out never happened.
    pub(super) fn return_to_ready(&mut self, run: &mut Run<'_>, id: u64, slot: u32, undone: bool) {
        self.take_out(id, slot);
        if undone {
            self.jobs.count(slot, |counts| counts.reserves = counts.reserves.saturating_sub(1));
            return self.place_ready(run, id, slot);
        }
        self.come_back(run, id, slot, 0);
    }

    /// A reservation runs out.
    pub(super) fn expire(&mut self, run: &mut Run<'_>, id: u64, slot: u32) {
        self.take_out(id, slot);
        self.jobs.count(slot, |counts| counts.timeouts = counts.timeouts.saturating_add(1));
        self.totals.timeouts += 1;
        self.come_back(run, id, slot, 0);
    }

    /// Forgets a job that is nowhere.
    pub(super) fn forget_job(&mut self, run: &mut Run<'_>, id: u64, slot: u32) {
        let record = self.jobs.remove(id, slot);
        run.effects.released.push(record.body);
        self.tubes.get_mut(record.terms.tube).bytes -= u64::from(record.body.len);
        self.note_lost(run, record.terms.tube);
    }

    /// A job that is nowhere belongs to another tube from now on.
    pub(super) fn change_tube(&mut self, slot: u32, to: u32) {
        let (from, bytes) = (self.jobs.tube(slot), u64::from(self.jobs.record(slot).body.len));
        self.jobs.set_tube(slot, to);
        self.tubes.get_mut(from).bytes -= bytes;
        self.tubes.get_mut(to).bytes += bytes;
    }

    /// What was ready is so no longer.
    pub(super) fn count_ready_out(&mut self, tube: u32, pri: u32) {
        self.totals.ready -= 1;
        if pri < URGENT_BELOW {
            self.tubes.get_mut(tube).urgent -= 1;
            self.totals.urgent -= 1;
        }
    }

    /// Changes a tube's delayed jobs and keeps the order of all tubes' first ones.
    pub(super) fn change_delayed(&mut self, tube: u32, change: impl FnOnce(&mut Runs<TimeKey>)) {
        let (before, after) = self.tubes.reorder(tube, |home| {
            let before = home.delayed.first();
            change(&mut home.delayed);
            (before, home.delayed.first())
        });
        if before != after {
            if let Some(key) = before {
                self.delayed.remove(key);
            }
            if let Some(key) = after {
                self.delayed.insert(key);
            }
        }
    }
}
