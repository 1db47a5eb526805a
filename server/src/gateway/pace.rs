//! Puts under pressure: slowed by credits per connection, or refused. Everything else goes on.
//!
//! ```text
//!   put ── open ─────► the open batch
//!      ├── shedding ─► its connection's turn has come? ── no: Slowed ── timer ──┐
//!      │                        └─ yes ─────────► the open batch ◄──────────────┘
//!      └── closed ───► OUT_OF_MEMORY; a body that is still coming is thrown away as it comes
//! ```
//!
//! What holds is the worse of two stances: that of this node's own memory, and the leader's word, which knows all voters.

use beanpole_protocol::{PutHeader, Reply};
use bytes::Bytes;

use super::Gateway;
use super::session::{Blocked, ConnId};
use crate::admission::{Stance, State};

/// What puts meet now, and what they met so far.
#[derive(Debug, Default)]
pub(super) struct Pace {
    own: Stance,
    word: Stance,
    now: Stance,
    slowed: u64,
    refused: u64,
    over_limit: u64,
}

impl Gateway {
    /// What this node's own memory allows from now on.
    pub fn set_own_stance(&mut self, stance: Stance) {
        self.pace.own = stance;
        self.pace.now = stance.worst(self.pace.word);
    }

    /// What the leader allows from now on.
    pub fn hear_stance(&mut self, stance: Stance) {
        self.pace.word = stance;
        self.pace.now = stance.worst(self.pace.own);
    }

    /// What puts meet now.
    pub fn stance(&self) -> Stance {
        self.pace.now
    }

    /// Puts that waited for their turn, and puts refused for want of memory, since the process started.
    pub fn puts_held_back(&self) -> (u64, u64) {
        (self.pace.slowed, self.pace.refused)
    }

    /// Puts that a tube's policy refused, since the process started.
    pub fn puts_over_limit(&self) -> u64 {
        self.pace.over_limit
    }

    /// A tube's policy refused a put.
    pub(super) fn note_over_limit(&mut self) {
        self.pace.over_limit += 1;
    }

    /// Whether a put into the tube that the session uses is certain to be refused by its policy, so that its body need not
    /// go through the log. What the session has under way may change that.
    pub(super) fn is_over_limit(&mut self, conn: ConnId, bytes: usize) -> bool {
        if self.engine.policies().next().is_none() {
            return false;
        }
        self.clocks.advance();
        let Some(session) = self.sessions.get(conn).filter(|session| session.slots.is_empty()) else {
            return false;
        };
        let tube = self.tubes.get(session.used).name();
        self.engine.would_refuse(tube, bytes as u64, self.clocks.stamp())
    }

    /// Whether a put that begins now is refused, so that its body need not be kept.
    pub fn refuses_puts(&self) -> bool {
        self.pace.now.state == State::Closed
    }

    /// Answers a put that there is no room for.
    pub(super) fn refuse_put(&mut self, conn: ConnId) {
        self.pace.refused += 1;
        self.reply_now(conn, &Reply::OutOfMemory);
    }

    /// Whether a put of the session goes on now; else it is given back when its time comes.
    pub(super) fn take_turn(&mut self, conn: ConnId, header: &PutHeader, body: &Bytes) -> bool {
        let gap_us = u64::from(self.pace.now.gap_us);
        if gap_us == 0 {
            return true;
        }
        self.clocks.advance();
        let now = self.clocks.monotonic();
        let Some(session) = self.sessions.get_mut(conn) else { return false };
        // A shorter gap than the one that was in force counts at once.
        let turn = session.next_put_us.min(now + gap_us);
        if turn <= now {
            session.next_put_us = now + gap_us;
            return true;
        }
        session.next_put_us = turn + gap_us;
        session.blocked = Blocked::Slowed(*header, body.clone());
        self.timers.insert((turn, conn));
        self.pace.slowed += 1;
        false
    }

    /// A timer of the session came: its put's turn, or that of a reserve.
    pub(super) fn timer_fired(&mut self, conn: ConnId) {
        let Some(session) = self.sessions.get_mut(conn) else { return };
        let (header, body) = match std::mem::take(&mut session.blocked) {
            Blocked::Slowed(header, body) => (header, body),
            other @ (Blocked::No
            | Blocked::Held(_)
            | Blocked::Reading(_)
            | Blocked::Reserving(_)
            | Blocked::Closing) => {
                session.blocked = other;
                return self.want_timer_fired(conn);
            }
        };
        // A client that is being let go, or whose gateway is dead, learns by the end of its connection that it was not stored.
        if self.epoch.is_none() || self.stopping {
            return self.close(conn);
        }
        self.put_in_turn(conn, &header, body);
        self.touch_session(conn, true);
    }
}
