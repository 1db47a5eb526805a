//! A running hash over everything that entries did, and its value at marked entries: nodes that have the same hash at
//! the same entry have
//! done the same. It costs a few multiplications per command, and is part of the state, so a node that was brought
//! forward by an image
//! goes on with it.

use super::engine::Engine;
use super::types::{Effects, Mark, Outcome, SessionId, Totals};

/// An odd number with no pattern: the golden ratio's bits, as in Fibonacci hashing.
const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;

/// The running hash. It finds replicas that drift apart by mistake, not forgers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct History(pub u64);

impl History {
    fn add(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(FACTOR);
    }

    fn add_session(&mut self, session: &SessionId) {
        self.add(u64::from(session.node));
        self.add(session.epoch);
        self.add(session.conn);
    }

    fn add_outcome(&mut self, outcome: &Outcome) {
        let (kind, value) = match outcome {
            Outcome::Inserted(id) => (1, *id),
            Outcome::NotFound => (2, 0),
            Outcome::Deleted => (3, 0),
            Outcome::Released => (4, 0),
            Outcome::Buried => (5, 0),
            Outcome::Touched => (6, 0),
            Outcome::Kicked(count) => (7, *count),
            Outcome::KickedJob => (8, 0),
            Outcome::Paused => (9, 0),
            Outcome::Reserved { id, .. } => (10, *id),
            Outcome::Noop => (11, 0),
            Outcome::Draining => (12, 0),
            Outcome::OverLimit => (13, 0),
        };
        self.add(kind);
        self.add(value);
    }
}

/// How many effects there were before an entry.
#[derive(Clone, Copy)]
pub(super) struct Before {
    outcomes: usize,
    handouts: usize,
    unmatched: usize,
}

impl Before {
    pub fn of(effects: &Effects) -> Self {
        Before {
            outcomes: effects.outcomes.len(),
            handouts: effects.handouts.len(),
            unmatched: effects.unmatched.len(),
        }
    }
}

impl Engine {
    /// Takes what the entry did into the hash: the effects behind those that were there `before` it.
    pub(super) fn note_history(&mut self, effects: &Effects, before: Before) {
        let history = &mut self.history;
        for number in [self.applied, self.stamp, self.lease, self.last_id, self.last_seq, self.next_born] {
            history.add(number);
        }
        let Totals { urgent, ready, reserved, delayed, buried, total_jobs, timeouts, tubes } = self.totals;
        for number in [urgent, ready, reserved, delayed, buried, total_jobs, timeouts, tubes] {
            history.add(number);
        }
        for (session, outcome) in &effects.outcomes[before.outcomes..] {
            history.add_session(session);
            history.add_outcome(outcome);
        }
        for handout in &effects.handouts[before.handouts..] {
            history.add_session(&handout.session);
            history.add(handout.want);
            history.add(handout.id);
        }
        for (session, want) in &effects.unmatched[before.unmatched..] {
            history.add_session(session);
            history.add(*want);
        }
        for done in self.bulks.progress() {
            self.history.add(done);
        }
        if let Some(nonce) = self.marking.take() {
            self.mark = Mark { nonce, index: self.applied, hash: self.history.0 };
        }
    }

    /// The newest mark: the hash of everything up to its entry.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// The hash of everything so far.
    #[must_use]
    pub fn history(&self) -> u64 {
        self.history.0
    }
}
