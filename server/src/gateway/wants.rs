//! Reserves: how one becomes a *want*, is offered to batches, waits, times out, and ends.
//!
//! A want that finds nothing ready waits in memory and costs no log entry. It is *offered* in a batch when it may be
//! served: when its tube has ready jobs, when a put to its tube goes into the open batch (so that put and hand-out cost one
//! commit), or when what just applied made jobs ready. It is in at most one batch at a time, and only the engine, when it
//! applies the batch, decides whether it gets a job.

use beanpole_protocol::Reply;

use super::session::{Blocked, ConnId, Session, Want, WantState};
use super::tubes::TubeRef;
use super::{Gateway, SAFETY_MARGIN_US};

impl Gateway {
    /// Starts a reserve of a session that is owed nothing.
    pub(super) fn begin_reserve(&mut self, conn: ConnId, timeout: Option<u32>) {
        self.clocks.advance();
        let times_out_us = timeout.map(|s| self.clocks.monotonic() + u64::from(s) * 1_000_000);
        let Some(session) = self.sessions.get_mut(conn) else { return };
        session.worker = true;
        session.wants += 1;
        let number = session.wants;
        session.blocked = Blocked::Reserving(Want {
            number,
            ticket: self.next_ticket,
            times_out_us,
            timer_us: None,
            state: WantState::Offered,
        });
        self.next_ticket += 1;
        if self.has_ready_for(conn) || self.may_become_ready() {
            self.offer(conn);
        } else {
            self.wait_or_refuse(conn);
        }
    }

    /// Whether a job is ready in any tube that the session watches.
    fn has_ready_for(&self, conn: ConnId) -> bool {
        let Some(session) = self.sessions.get(conn) else { return false };
        session.watched.iter().any(|tube| self.engine.has_ready(self.tubes.get(*tube).name().as_bytes()) > 0)
    }

    /// Puts the session's want into the open batch.
    fn offer(&mut self, conn: ConnId) {
        self.open_batch();
        let Gateway { sessions, tubes, open, node, epoch, .. } = self;
        let (Some(session), Some(open), Some(epoch)) = (sessions.get_mut(conn), open.as_mut(), *epoch) else {
            return;
        };
        let Blocked::Reserving(want) = &mut session.blocked else { return };
        want.state = WantState::Offered;
        let id = crate::queue::SessionId { node: *node, epoch, conn: conn.0 };
        let names = session.watched.iter().map(|tube| tubes.get(*tube).name().as_bytes());
        open.builder.offer(id, want.number, names);
    }

    /// Nothing is ready: the want waits, unless it must be answered at once.
    fn wait_or_refuse(&mut self, conn: ConnId) {
        let Some((session, want)) = self.want(conn) else { return };
        let now = self.clocks.monotonic();
        let soon = self.deadline_soon_us(conn);
        let over = session.input_ended || want.times_out_us.is_some_and(|at| at <= now);
        if soon.is_some_and(|at| at <= now) {
            return self.refuse(conn, &Reply::DeadlineSoon);
        }
        if over {
            return self.refuse(conn, &Reply::TimedOut);
        }
        let timer = soon.into_iter().chain(want.times_out_us).min();
        let Some(session) = self.sessions.get_mut(conn) else { return };
        let Blocked::Reserving(want) = &mut session.blocked else { return };
        want.state = WantState::Waiting;
        want.timer_us = timer;
        if let Some(at) = timer {
            self.timers.insert((at, conn));
        }
        for tube in &session.watched {
            self.tubes.wait(*tube, want.ticket, conn);
        }
    }

    /// When the first of the session's jobs has a second left, in monotonic microseconds.
    fn deadline_soon_us(&self, conn: ConnId) -> Option<u64> {
        let deadline = self.engine.session_deadline(self.session_id(conn)?)?;
        let left = deadline.saturating_sub(SAFETY_MARGIN_US).saturating_sub(self.clocks.lease());
        Some(self.clocks.monotonic() + left)
    }

    /// Takes a waiting want out of the orders of waiting and drops its timer.
    pub(super) fn stop_waiting(&mut self, conn: ConnId) {
        let Gateway { sessions, tubes, timers, .. } = self;
        let Some(session) = sessions.get_mut(conn) else { return };
        let Blocked::Reserving(want) = &mut session.blocked else { return };
        if want.state == WantState::Waiting {
            for tube in &session.watched {
                tubes.stop_waiting(*tube, want.ticket);
            }
            want.state = WantState::Offered;
        }
        if let Some(at) = want.timer_us.take() {
            timers.remove(&(at, conn));
        }
    }

    /// The connection goes: its want neither waits nor times out.
    pub(super) fn stop_want(&mut self, conn: ConnId) {
        self.stop_waiting(conn);
    }

    /// Ends a reserve without a job.
    fn refuse(&mut self, conn: ConnId, reply: &Reply<'_>) {
        self.stop_waiting(conn);
        if let Some(session) = self.sessions.get_mut(conn) {
            session.blocked = Blocked::No;
            session.reply(reply);
            self.touch_session(conn, true);
        }
    }

    /// A waiting want's time came: to time out, or for `DEADLINE_SOON`.
    pub(super) fn want_timer_fired(&mut self, conn: ConnId) {
        if let Some(session) = self.sessions.get_mut(conn)
            && let Blocked::Reserving(want) = &mut session.blocked
        {
            want.timer_us = None;
            self.check_want(conn);
        }
    }

    /// Looks at a waiting want again. One that is offered is looked at when its batch's fate is known.
    pub(super) fn check_want(&mut self, conn: ConnId) {
        if self.want(conn).is_some_and(|(_, want)| want.state == WantState::Waiting) {
            self.stop_waiting(conn);
            self.wait_or_refuse(conn);
        }
    }

    fn want(&self, conn: ConnId) -> Option<(&Session, &Want)> {
        let session = self.sessions.get(conn)?;
        match &session.blocked {
            Blocked::Reserving(want) => Some((session, want)),
            Blocked::No | Blocked::Held(_) | Blocked::Reading(_) | Blocked::Closing => None,
        }
    }

    /// Whether the session's outstanding want is this one.
    pub(super) fn is_outstanding(&self, conn: ConnId, number: u64) -> bool {
        self.want(conn).is_some_and(|(_, want)| want.number == number)
    }

    /// A batch applied that offered this want, and it got nothing.
    pub(super) fn want_unmatched(&mut self, conn: ConnId, number: u64) {
        if !self.is_outstanding(conn, number) {
            return;
        }
        if self.has_ready_for(conn) {
            self.offer(conn);
        } else {
            self.wait_or_refuse(conn);
        }
    }

    /// A job is about to become ready: offers it to who has waited longest for its tube.
    pub(super) fn offer_for_job(&mut self, id: u64) {
        if let Some(job) = self.engine.job(id)
            && let Some(tube) = self.tubes.find(job.tube)
        {
            self.offer_waiting(tube, 1);
        }
    }

    /// Offers up to `most` of the wants that have waited longest for a tube.
    pub(super) fn offer_waiting(&mut self, tube: TubeRef, most: usize) {
        for _ in 0..most {
            let Some(conn) = self.tubes.longest_waiting(tube) else { return };
            self.stop_waiting(conn);
            self.offer(conn);
        }
    }
}
