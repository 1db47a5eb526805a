//! What each command of a client does, and what it answers.

use beanpole_raft::BodyAddr;

use super::decode::Put;
use super::engine::{Engine, Run};
use super::moves::micros;
use super::policy::Reason;
use super::record::{Record, Terms};
use super::tubes::{DEFAULT, TimeKey};
use super::types::{JobState, Outcome, SessionId};

impl Engine {
    pub(super) fn put(
        &mut self,
        run: &mut Run<'_>,
        session: SessionId,
        put: &Put<'_>,
        body: BodyAddr,
    ) -> Outcome {
        if let Some(first) = self.first_of(put) {
            return Outcome::Inserted(first);
        }
        if self.draining {
            return Outcome::Draining;
        }
        let tube = self.tube_for(run, put.tube);
        let held = self.hops_of(session);
        let hops = held.map_or(0, |(hops, _)| hops);
        if let Some(held) = held {
            self.note_derived(held, tube);
        }
        if self.refuses(tube, put, hops) {
            self.note_lost(run, tube);
            return Outcome::OverLimit;
        }
        self.save_tube(tube);
        let home = self.tubes.get_mut(tube);
        home.total_jobs += 1;
        home.bytes += u64::from(body.len);
        self.totals.total_jobs += 1;
        self.last_id += 1;
        let id = self.last_id;
        let (delay_s, ttr_s) = (put.delay_s, put.ttr_s.max(1));
        let terms = Terms { tube, delay_s, ttr_s, hops, reason: Reason::None };
        let record = Record { body, created_us: self.stamp, pri: put.pri, terms };
        let slot = self.jobs.insert(id, &record);
        self.note_first(put, id);
        run.effects.retained.push(body);
        match put.delay_s {
            0 => self.place_ready(run, id, slot),
            delay_s => self.place_delayed(id, slot, self.stamp + micros(delay_s)),
        }
        Outcome::Inserted(id)
    }

    pub(super) fn reserve_job(&mut self, run: &mut Run<'_>, session: SessionId, id: u64) -> Outcome {
        let Some(slot) = self.settle(run, id) else { return Outcome::NotFound };
        match self.jobs.state(slot) {
            JobState::Reserved => Outcome::NotFound,
            JobState::Ready | JobState::Delayed | JobState::Buried => {
                self.take_out(id, slot);
                self.place_reserved(id, slot, session, 0);
                Outcome::Reserved { id, body: self.jobs.record(slot).body }
            }
        }
    }

    pub(super) fn delete(&mut self, run: &mut Run<'_>, session: SessionId, id: u64) -> Outcome {
        let Some(slot) = self.settle(run, id) else { return Outcome::NotFound };
        if self.jobs.state(slot) == JobState::Reserved && !self.holds(session, slot) {
            return Outcome::NotFound;
        }
        self.take_out(id, slot);
        let tube = self.jobs.tube(slot);
        self.forget_job(run, id, slot);
        self.save_tube(tube);
        self.tubes.get_mut(tube).cmd_delete += 1;
        Outcome::Deleted
    }

    pub(super) fn release(
        &mut self,
        run: &mut Run<'_>,
        session: SessionId,
        id: u64,
        pri: u32,
        delay_s: u32,
    ) -> Outcome {
        let Some(slot) = self.settle_held(run, session, id) else { return Outcome::NotFound };
        self.take_out(id, slot);
        self.jobs.set_pri(slot, pri);
        self.jobs.set_delay(slot, delay_s);
        self.jobs.count(slot, |counts| counts.releases = counts.releases.saturating_add(1));
        self.come_back(run, id, slot, delay_s);
        Outcome::Released
    }

    pub(super) fn bury(&mut self, run: &mut Run<'_>, session: SessionId, id: u64, pri: u32) -> Outcome {
        let Some(slot) = self.settle_held(run, session, id) else { return Outcome::NotFound };
        self.take_out(id, slot);
        self.jobs.set_pri(slot, pri);
        self.jobs.count(slot, |counts| counts.buries = counts.buries.saturating_add(1));
        self.place_buried(id, slot);
        Outcome::Buried
    }

    /// No voter has the job's body: nobody is to meet it again before an operator has looked. Whoever holds the job got the
    /// body from somewhere, and may go on with it.
    pub(super) fn body_lost(&mut self, run: &mut Run<'_>, id: u64, body: (u64, u32)) {
        let Some(slot) = self.settle(run, id) else { return };
        let BodyAddr { index, offset, .. } = self.jobs.record(slot).body;
        if (index, offset) != body {
            return;
        }
        match self.jobs.state(slot) {
            JobState::Buried | JobState::Reserved => return,
            JobState::Ready | JobState::Delayed => {}
        }
        self.take_out(id, slot);
        self.jobs.count(slot, |counts| counts.buries = counts.buries.saturating_add(1));
        self.place_buried(id, slot);
        let tube = self.tubes.get(self.jobs.tube(slot)).name.clone();
        run.effects.lost.push((id, tube));
    }

    pub(super) fn touch(&mut self, run: &mut Run<'_>, session: SessionId, id: u64) -> Outcome {
        let Some(slot) = self.settle_held(run, session, id) else { return Outcome::NotFound };
        self.save_job(id, slot);
        let deadline = self.lease + micros(self.jobs.terms(slot).ttr_s);
        let before = std::mem::replace(&mut self.jobs.hold_mut(slot).deadline, deadline);
        self.reserved.remove(session.node, session.conn, before, id);
        self.reserved.insert(session.node, session.conn, deadline, id);
        Outcome::Touched
    }

    /// If anything is buried then only that, the oldest burial first; else what is delayed, the nearest
    /// first.
    pub(super) fn kick(&mut self, run: &mut Run<'_>, tube: &str, bound: u32) -> Outcome {
        let Some(tube) = self.tubes.find(tube) else { return Outcome::Kicked(0) };
        let buried = self.tubes.get(tube).buried.len() > 0;
        let mut kicked = 0;
        while kicked < u64::from(bound) {
            let home = self.tubes.get(tube);
            let next = if buried { home.buried.first() } else { home.delayed.first() };
            let Some(TimeKey { id, .. }) = next else { break };
            let slot = self.jobs.find(id).expect("a tube's job is there");
            self.kick_one(run, id, slot);
            kicked += 1;
        }
        Outcome::Kicked(kicked)
    }

    pub(super) fn kick_job(&mut self, run: &mut Run<'_>, id: u64) -> Outcome {
        let Some(slot) = self.settle(run, id) else { return Outcome::NotFound };
        match self.jobs.state(slot) {
            JobState::Ready | JobState::Reserved => Outcome::NotFound,
            JobState::Delayed | JobState::Buried => {
                self.kick_one(run, id, slot);
                Outcome::KickedJob
            }
        }
    }

    pub(super) fn kick_one(&mut self, run: &mut Run<'_>, id: u64, slot: u32) {
        self.take_out(id, slot);
        self.jobs.set_reason(slot, Reason::None);
        self.jobs.count(slot, |counts| counts.kicks = counts.kicks.saturating_add(1));
        self.place_ready(run, id, slot);
    }

    pub(super) fn pause_tube(
        &mut self,
        run: &mut Run<'_>,
        name: &str,
        delay_s: u32,
        referenced: bool,
    ) -> Outcome {
        let tube = match self.tubes.find(name) {
            Some(tube) => tube,
            None if !referenced => return Outcome::NotFound,
            None => {
                let tube = self.tube_for(run, name);
                self.note_lost(run, tube);
                tube
            }
        };
        self.save_tube(tube);
        self.tubes.get_mut(tube).cmd_pause += 1;
        self.end_pause(tube);
        if delay_s > 0 {
            let until = self.stamp + micros(delay_s);
            let home = self.tubes.get_mut(tube);
            home.pause_s = delay_s;
            home.pause_until_us = until;
            self.pauses.insert(TimeKey { at: until, id: home.born });
        } else {
            self.became_ready(run, tube);
        }
        Outcome::Paused
    }

    /// Lifts a tube's pause, if it has one. The caller serves those who wait.
    pub(super) fn end_pause(&mut self, tube: u32) {
        self.save_tube(tube);
        let home = self.tubes.get_mut(tube);
        if home.is_paused() {
            self.pauses.remove(TimeKey { at: home.pause_until_us, id: home.born });
            home.pause_until_us = 0;
            home.pause_s = 0;
        }
    }

    /// Takes back a hand-out that never reached its client.
    pub(super) fn unreserve(&mut self, run: &mut Run<'_>, session: SessionId, want: u64, id: u64) {
        if let Some(slot) = self.settle_held(run, session, id)
            && want != 0
            && self.jobs.hold(slot).want == want
        {
            self.return_to_ready(run, id, slot, true);
        }
    }

    /// Forgets a tube that holds nothing, unless it is `default` or somebody waits for it in this very entry.
    pub(super) fn tube_gone(&mut self, run: &mut Run<'_>, name: &str) {
        let Some(slot) = self.tubes.find(name) else { return };
        let tube = self.tubes.get(slot);
        if name == DEFAULT || tube.jobs() > 0 || tube.now.offered == self.serial {
            return;
        }
        self.end_pause(slot);
        self.policies.forget(self.tubes.get(slot).born);
        self.tubes.remove(slot);
        self.totals.tubes -= 1;
        run.offers.forget_tube(slot);
    }

    /// Whether the session holds the job in this slot.
    pub(super) fn holds(&self, session: SessionId, slot: u32) -> bool {
        self.jobs.held(slot).is_some_and(|hold| hold.node == session.node && hold.conn == session.conn)
    }

    /// The slot of a job that the session holds and whose reservation has not run out.
    fn settle_held(&mut self, run: &mut Run<'_>, session: SessionId, id: u64) -> Option<u32> {
        let slot = self.settle(run, id)?;
        self.holds(session, slot).then_some(slot)
    }
}
