//! Reserves: how one becomes a *want*, waits, times out, and ends.
//!
//! ```text
//!   reserve ─► Checked ── nothing ready ──► Waiting ── its time comes ──► Checked ── nothing ready ──► TIMED_OUT
//!                 │                            │                            │
//!                 └── something ready ─► Tried ◄───── something ready ──────┘
//!                                          └── its entry applied: RESERVED, or as if nothing were ready
//! ```
//!
//! A want that waits lies with the leader and costs no log entry; the leader offers it in the entry that makes a job
//! ready. Which want
//! gets a job is decided only by the engine, when it applies the entry. A hand-out to a want that is over is taken back.

use std::sync::Arc;

use beanpole_protocol::Reply;

use super::session::{Blocked, ConnId, Session, Want, WantState};
use super::{Gateway, SAFETY_MARGIN_US};
use crate::leader::ToLeader;

impl Gateway {
    /// Starts a reserve of a session that is owed nothing.
    pub(super) fn begin_reserve(&mut self, conn: ConnId, timeout: Option<u32>) {
        self.clocks.advance();
        if self.is_cut_off() {
            return self.close(conn);
        }
        let times_out_us = timeout.map(|s| self.clocks.monotonic() + u64::from(s) * 1_000_000);
        let Some(session) = self.sessions.get_mut(conn) else { return };
        session.worker = true;
        session.wants += 1;
        let number = session.wants;
        session.blocked =
            Blocked::Reserving(Want { number, times_out_us, timer_us: None, state: WantState::Checked });
        for tube in &session.watched {
            self.tubes.wait(*tube);
        }
        if self.is_answer_due(conn) { self.check(conn) } else { self.wait(conn) }
    }

    /// Whether the want must be answered now, with a job or without: it timed out, the client sends nothing more, or one of its
    /// jobs is about to run out.
    fn is_answer_due(&self, conn: ConnId) -> bool {
        let Some((session, want)) = self.want(conn) else { return false };
        let now = self.clocks.monotonic();
        session.input_ended
            || want.times_out_us.is_some_and(|at| at <= now)
            || self.deadline_soon_us(conn).is_some_and(|at| at <= now)
    }

    /// Finds out whether a job is ready, as of now or later.
    fn check(&mut self, conn: ConnId) {
        self.set_want(conn, WantState::Checked, None);
        self.begin_check(conn);
    }

    /// What was ready when it was looked for is known: tries for it, answers without a job, or waits.
    pub(super) fn checked(&mut self, conn: ConnId) {
        if !self.want(conn).is_some_and(|(_, want)| want.state == WantState::Checked) {
            return;
        }
        if self.has_ready_for(conn) || self.may_become_ready() {
            self.set_want(conn, WantState::Tried, None);
            self.tell_want(conn, true);
        } else {
            self.refuse_or_wait(conn);
        }
    }

    /// Nothing is ready.
    fn refuse_or_wait(&mut self, conn: ConnId) {
        self.clocks.advance();
        let now = self.clocks.monotonic();
        let soon = self.deadline_soon_us(conn).is_some_and(|at| at <= now);
        if soon {
            self.refuse(conn, &Reply::DeadlineSoon);
        } else if self.is_answer_due(conn) {
            self.refuse(conn, &Reply::TimedOut);
        } else {
            self.wait(conn);
        }
    }

    /// Lets the want wait with the leader until its time comes.
    fn wait(&mut self, conn: ConnId) {
        let soon = self.deadline_soon_us(conn);
        let Some((_, want)) = self.want(conn) else { return };
        let timer = soon.into_iter().chain(want.times_out_us).min();
        self.set_want(conn, WantState::Waiting, timer);
        self.tell_want(conn, false);
    }

    /// Whether a job is ready in any tube that the session watches.
    fn has_ready_for(&self, conn: ConnId) -> bool {
        let Some(session) = self.sessions.get(conn) else { return false };
        session.watched.iter().any(|tube| self.engine.has_ready(self.tubes.get(*tube).name().as_bytes()) > 0)
    }

    /// Tells the leader of the session's want.
    fn tell_want(&mut self, conn: ConnId, once: bool) {
        let Some(session) = self.session_id(conn) else { return };
        let Some((client, want)) = self.want(conn) else { return };
        let number = want.number;
        let tubes: Vec<Arc<str>> =
            client.watched.iter().map(|tube| self.tubes.get(*tube).shared_name()).collect();
        self.tell(ToLeader::Want { session, number, tubes, once });
    }

    /// Tells a new leader of all wants that wait for it.
    pub(super) fn tell_wants_again(&mut self) {
        let wants: Vec<(ConnId, WantState)> = self
            .sessions
            .iter()
            .filter_map(|session| match &session.blocked {
                Blocked::Reserving(want) => Some((session.conn, want.state)),
                Blocked::No
                | Blocked::Held(_)
                | Blocked::Reading(_)
                | Blocked::Slowed(..)
                | Blocked::Closing => None,
            })
            .collect();
        for (conn, state) in wants {
            match state {
                WantState::Checked => {}
                WantState::Waiting => self.tell_want(conn, false),
                WantState::Tried => self.tell_want(conn, true),
            }
        }
    }

    /// When the first of the session's jobs has a second left, in monotonic microseconds.
    fn deadline_soon_us(&self, conn: ConnId) -> Option<u64> {
        let deadline = self.engine.session_deadline(self.session_id(conn)?)?;
        let left = deadline.saturating_sub(SAFETY_MARGIN_US).saturating_sub(self.clocks.lease());
        Some(self.clocks.monotonic() + left)
    }

    /// Moves the want on, and sets its timer.
    fn set_want(&mut self, conn: ConnId, state: WantState, timer: Option<u64>) {
        let Gateway { sessions, timers, .. } = self;
        let Some(session) = sessions.get_mut(conn) else { return };
        let Blocked::Reserving(want) = &mut session.blocked else { return };
        want.state = state;
        if let Some(at) = std::mem::replace(&mut want.timer_us, timer) {
            timers.remove(&(at, conn));
        }
        if let Some(at) = timer {
            timers.insert((at, conn));
        }
    }

    /// The want is over, answered or not; the session takes commands again.
    pub(super) fn end_want(&mut self, conn: ConnId) {
        let Gateway { sessions, tubes, timers, .. } = self;
        let Some(session) = sessions.get_mut(conn) else { return };
        let Blocked::Reserving(want) = &session.blocked else { return };
        if let Some(at) = want.timer_us {
            timers.remove(&(at, conn));
        }
        for tube in &session.watched {
            tubes.stop_waiting(*tube);
        }
        session.blocked = Blocked::No;
    }

    /// Takes the want back from the leader, if the leader has it.
    pub(super) fn untell_want(&mut self, conn: ConnId) {
        let Some(session) = self.session_id(conn) else { return };
        let Some((_, want)) = self.want(conn) else { return };
        let number = want.number;
        self.tell(ToLeader::Unwant { session, number });
        let (proposed, applied) = (self.proposed, self.applied);
        if let Some(session) = self.sessions.get_mut(conn) {
            session.loose.add(number, proposed, applied);
        }
    }

    /// Ends a reserve without a job.
    fn refuse(&mut self, conn: ConnId, reply: &Reply<'_>) {
        self.untell_want(conn);
        self.end_want(conn);
        if let Some(session) = self.sessions.get_mut(conn) {
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

    /// Looks at a waiting want again: something changed, so that its answer may be due.
    pub(super) fn check_want(&mut self, conn: ConnId) {
        if self.want(conn).is_some_and(|(_, want)| want.state == WantState::Waiting) {
            if self.is_answer_due(conn) { self.check(conn) } else { self.wait(conn) }
        }
    }

    fn want(&self, conn: ConnId) -> Option<(&Session, &Want)> {
        let session = self.sessions.get(conn)?;
        match &session.blocked {
            Blocked::Reserving(want) => Some((session, want)),
            Blocked::No | Blocked::Held(_) | Blocked::Reading(_) | Blocked::Slowed(..) | Blocked::Closing => {
                None
            }
        }
    }

    /// When the session's outstanding want times out, in monotonic microseconds, if it ever does.
    pub(super) fn want_times_out(&self, conn: ConnId) -> Option<u64> {
        self.want(conn).and_then(|(_, want)| want.times_out_us)
    }

    /// Whether the session's outstanding want is this one.
    pub(super) fn is_outstanding(&self, conn: ConnId, number: u64) -> bool {
        self.want(conn).is_some_and(|(_, want)| want.number == number)
    }

    /// An entry applied that offered this want, and it got nothing.
    pub(super) fn want_unmatched(&mut self, conn: ConnId, number: u64) {
        if self.is_outstanding(conn, number)
            && self.want(conn).is_some_and(|(_, want)| want.state == WantState::Tried)
        {
            if self.has_ready_for(conn) {
                self.tell_want(conn, true);
            } else {
                self.refuse_or_wait(conn);
            }
        }
    }
}
