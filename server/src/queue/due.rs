//! What time does: delays and pauses end by the stamp, reservations run out by the lease clock.
//!
//! An entry fires at most [`DUE_MAX`] of these, so that a great many at once do not hold up everything else;
//! its leader proposes further entries for the rest. Commands must not see the difference: what a command is
//! about is settled first.

use super::engine::{Engine, Run};
use super::types::{Due, JobState};

/// Transitions that one entry fires at most.
pub(super) const DUE_MAX: usize = 1024;

impl Engine {
    /// When something is next due, for the leader to propose an entry then.
    #[must_use]
    pub fn next_due(&self) -> Due {
        let delayed = self.delayed.first().map(|key| key.at);
        let pause = self.pauses.first().map(|key| key.at);
        // The next slice of a bulk operation is always due.
        let slice = (self.bulks.is_working() || self.policies.is_sweeping()).then_some(0);
        let sweep = self.policies.next_sweep();
        let stamp = delayed.into_iter().chain(pause).chain(slice).chain(sweep).min();
        Due { stamp, lease: self.reserved.by_deadline.first().map(|key| key.at) }
    }

    /// How many transitions an entry with these clocks would fire, counting up to the 1,024 that one entry
    /// fires.
    #[must_use]
    pub fn due_now(&self, stamp: u64, lease: u64) -> usize {
        let sweeps = self.policies.is_sweeping() || self.policies.next_sweep().is_some_and(|at| at <= stamp);
        let mut due = usize::from(self.bulks.is_working() || sweeps);
        for head in self.delayed.iter().take_while(|key| key.at <= stamp) {
            let slot = self.jobs.find(head.id).expect("a delayed job is there");
            let home = self.tubes.get(self.jobs.tube(slot));
            due += home.delayed.iter().take_while(|key| key.at <= stamp).take(DUE_MAX).count();
            if due >= DUE_MAX {
                return DUE_MAX;
            }
        }
        due += self.pauses.iter().take_while(|key| key.at <= stamp).take(DUE_MAX).count();
        due += self.reserved.by_deadline.iter().take_while(|key| key.at <= lease).take(DUE_MAX).count();
        due.min(DUE_MAX)
    }

    /// Fires what is due: delays, then pauses, then reservations, each in the order of their times.
    pub(super) fn fire_due(&mut self, run: &mut Run<'_>) {
        for _ in 0..DUE_MAX {
            if !self.fire_one(run) {
                return;
            }
        }
    }

    fn fire_one(&mut self, run: &mut Run<'_>) -> bool {
        if let Some(head) = self.delayed.first()
            && head.at <= self.stamp
        {
            let slot = self.jobs.find(head.id).expect("a delayed job is there");
            self.end_delay(run, head.id, slot);
            return true;
        }
        if let Some(pause) = self.pauses.first()
            && pause.at <= self.stamp
        {
            let tube = self.tubes.of_birth(pause.id).expect("a paused tube is there");
            self.end_pause(tube);
            self.became_ready(run, tube);
            return true;
        }
        if let Some(next) = self.reserved.by_deadline.first()
            && next.at <= self.lease
        {
            let slot = self.jobs.find(next.id).expect("a reserved job is there");
            self.expire(run, next.id, slot);
            return true;
        }
        false
    }

    fn end_delay(&mut self, run: &mut Run<'_>, id: u64, slot: u32) {
        self.take_out(id, slot);
        self.place_ready(run, id, slot);
    }

    /// Finds a job for a command, and fires its own transition if that is due.
    pub(super) fn settle(&mut self, run: &mut Run<'_>, id: u64) -> Option<u32> {
        let slot = self.jobs.find(id)?;
        match self.jobs.state(slot) {
            JobState::Reserved if self.jobs.hold(slot).deadline <= self.lease => self.expire(run, id, slot),
            JobState::Delayed if self.jobs.mark(slot) <= self.stamp => self.end_delay(run, id, slot),
            JobState::Reserved | JobState::Delayed | JobState::Ready | JobState::Buried => {}
        }
        Some(slot)
    }
}
