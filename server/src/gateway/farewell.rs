//! Letting clients go before this node stops: first those that do nothing, then those that wait for a job, and those
//! that hold one when they are
//! done with it or when the time is over.
//!
//! A client is let go between two commands: everything it is owed is written, and what it sends afterwards is not
//! executed. Its task then says goodbye (see
//! `net/connection.rs`), so that no reply on its way is destroyed.

use super::Gateway;
use super::session::{Blocked, ConnId};

/// Clients that wait for a job are let go this long after the idle ones, in microseconds.
const WAITING_AFTER_US: u64 = 100_000;
/// How often it is looked who may go, in microseconds.
const LOOK_EVERY_US: u64 = 20_000;
/// Clients that hold a job have this long to finish it when the node is drained, in microseconds.
const DRAIN_GRACE_US: u64 = 30_000_000;

/// A farewell under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Farewell {
    /// When it began, in monotonic microseconds.
    since: u64,
    /// When even clients that hold a job must go.
    until: u64,
    /// The node was drained, and may be taken back into service; else the process ends.
    drained: bool,
}

impl Gateway {
    /// Lets all clients go, those that hold a job within so many microseconds.
    pub fn let_go(&mut self, within_us: u64) {
        self.clocks.advance();
        let now = self.clocks.monotonic();
        self.farewell = Some(Farewell { since: now, until: now + within_us, drained: false });
        self.send_off();
    }

    /// Closes the connections of clients that could not be let go in time. Called before this gateway's life ends: from then on
    /// what they hold is others'.
    pub fn part(&mut self) {
        self.close_all(|session| !session.let_go || session.is_owed());
    }

    /// Begins or ends the farewell of a node that was drained.
    fn heed_leaving(&mut self) {
        let now = self.clocks.monotonic();
        match (self.is_leaving(), self.farewell) {
            (true, None) => {
                tracing::info!(
                    clients = self.sessions.len(),
                    "this node leaves service: its clients are let go"
                );
                self.farewell = Some(Farewell { since: now, until: now + DRAIN_GRACE_US, drained: true });
            }
            (false, Some(Farewell { drained: true, .. })) => {
                tracing::info!("this node is back in service");
                self.farewell = None;
            }
            _ => {}
        }
    }

    /// Lets go who may go now.
    pub(super) fn send_off(&mut self) {
        self.heed_leaving();
        let Some(farewell) = self.farewell else { return };
        let now = self.clocks.monotonic();
        let over = now >= farewell.until;
        let waiting = over || now >= farewell.since + WAITING_AFTER_US;
        let may_go = |session: &&super::Session| match &session.blocked {
            Blocked::No => {
                over || !self.session_id(session.conn).is_some_and(|id| self.engine.session_holds(id))
            }
            Blocked::Reserving(_) => waiting,
            Blocked::Held(_) | Blocked::Reading(_) | Blocked::Slowed(..) | Blocked::Closing => over,
        };
        let idle = |session: &&super::Session| over || !session.is_owed();
        let going: Vec<ConnId> = self
            .sessions
            .iter()
            .filter(|session| !session.let_go)
            .filter(idle)
            .filter(may_go)
            .map(|session| session.conn)
            .collect();
        for conn in going {
            self.untell_want(conn);
            self.end_want(conn);
            if let Some(session) = self.sessions.get_mut(conn) {
                session.let_go = true;
                self.touch_session(conn, true);
            }
        }
    }

    /// Whether new clients are turned away.
    pub fn turns_away(&self) -> bool {
        self.farewell.is_some()
    }

    /// In how many microseconds it is to be looked again who may go.
    pub(super) fn next_send_off_in_us(&self) -> Option<u64> {
        (self.farewell.is_some() && self.sessions.len() > 0).then_some(LOOK_EVERY_US)
    }
}
