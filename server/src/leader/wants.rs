//! The reserves that wait, of all gateways' clients, in the order in which they came.
//!
//! A want is *waiting* in every tube that its session watches, or *offered* in one entry whose fate is not known yet. It
//! costs no log entry while it waits, and is lost with the leader: gateways send their wants again to the next one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::queue::{Gateway, SessionId};

/// A place in the order of waiting: lower waits longer.
type Ticket = u64;

/// One session's blocked reserve.
pub(super) struct Want {
    /// Counts the reserves of its session.
    pub number: u64,
    /// The tubes that its session watches, in that order.
    pub tubes: Vec<Arc<str>>,
    ticket: Ticket,
    offered: bool,
    /// It is answered by the first entry that offers it, whatever that brings.
    once: bool,
}

/// All wants known to the leader.
#[derive(Default)]
pub(super) struct Wants {
    of_sessions: HashMap<SessionId, Want>,
    waiting: HashMap<Arc<str>, BTreeMap<Ticket, SessionId>>,
    last_ticket: Ticket,
}

impl Wants {
    /// Whether nobody waits or is offered.
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.of_sessions.is_empty()
    }

    /// Whether nobody waits in any tube.
    pub fn nobody_waits(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes in a want, or marks one that is known already. Answers whether it waits now.
    pub fn add(&mut self, session: SessionId, number: u64, tubes: Vec<Arc<str>>, once: bool) -> bool {
        if let Some(want) = self.of_sessions.get_mut(&session)
            && want.number == number
        {
            want.once |= once;
            return !want.offered;
        }
        self.remove(session);
        self.last_ticket += 1;
        let want = Want { number, tubes, ticket: self.last_ticket, offered: false, once };
        self.enter(session, &want);
        self.of_sessions.insert(session, want);
        true
    }

    fn enter(&mut self, session: SessionId, want: &Want) {
        for tube in &want.tubes {
            self.waiting.entry(tube.clone()).or_default().insert(want.ticket, session);
        }
    }

    fn leave(waiting: &mut HashMap<Arc<str>, BTreeMap<Ticket, SessionId>>, want: &Want) {
        for tube in &want.tubes {
            if let Some(line) = waiting.get_mut(tube) {
                line.remove(&want.ticket);
                if line.is_empty() {
                    waiting.remove(tube);
                }
            }
        }
    }

    /// Forgets the session's want, whatever its number.
    pub fn remove(&mut self, session: SessionId) {
        if let Some(want) = self.of_sessions.remove(&session)
            && !want.offered
        {
            Self::leave(&mut self.waiting, &want);
        }
    }

    /// Forgets the session's want of that number.
    pub fn remove_number(&mut self, session: SessionId, number: u64) {
        if self.of_sessions.get(&session).is_some_and(|want| want.number == number) {
            self.remove(session);
        }
    }

    /// Forgets the wants of sessions that are not of these gateways.
    pub fn keep_only(&mut self, live: &[Gateway]) {
        let gone: Vec<SessionId> =
            self.of_sessions.keys().filter(|session| !live.contains(&session.gateway())).copied().collect();
        for session in gone {
            self.remove(session);
        }
    }

    /// Forgets all wants of a node.
    pub fn remove_node(&mut self, node: u32) {
        let gone: Vec<SessionId> =
            self.of_sessions.keys().filter(|session| session.node == node).copied().collect();
        for session in gone {
            self.remove(session);
        }
    }

    /// Who has waited longest for a tube.
    pub fn longest_waiting(&self, tube: &str) -> Option<SessionId> {
        self.waiting.get(tube)?.first_key_value().map(|(_, session)| *session)
    }

    /// How many wait for a tube at other nodes than this one.
    pub fn waiting_elsewhere(&self, node: u32, tube: &str) -> usize {
        let line = self.waiting.get(tube).into_iter().flat_map(BTreeMap::values);
        line.filter(|session| session.node != node).count()
    }

    /// Takes the want out of the order of waiting, to offer it.
    pub fn offer(&mut self, session: SessionId) -> Option<&Want> {
        let Wants { of_sessions, waiting, .. } = self;
        let want = of_sessions.get_mut(&session).filter(|want| !want.offered)?;
        want.offered = true;
        Self::leave(waiting, want);
        Some(want)
    }

    /// An entry that offered the want gave it nothing. Answers the tubes it waits for again, unless that was its only try.
    pub fn unmatched(&mut self, session: SessionId, number: u64) -> Option<&[Arc<str>]> {
        let want = self.of_sessions.get_mut(&session).filter(|want| want.number == number && want.offered)?;
        if want.once {
            self.of_sessions.remove(&session);
            return None;
        }
        want.offered = false;
        let Wants { of_sessions, waiting, .. } = self;
        let want = &of_sessions[&session];
        for tube in &want.tubes {
            waiting.entry(tube.clone()).or_default().insert(want.ticket, session);
        }
        Some(&want.tubes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(conn: u64) -> SessionId {
        SessionId { node: 1, epoch: 5, conn }
    }

    fn tubes(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    #[test]
    fn who_waits_longest_is_first_and_keeps_its_place_when_an_offer_gave_nothing() {
        let mut wants = Wants::default();
        assert!(wants.add(session(1), 1, tubes(&["a", "b"]), false));
        assert!(wants.add(session(2), 1, tubes(&["a"]), false));
        assert_eq!(wants.longest_waiting("a"), Some(session(1)));
        assert_eq!(wants.offer(session(1)).map(|want| want.number), Some(1));
        assert!(wants.offer(session(1)).is_none(), "it is in one entry at a time");
        assert_eq!((wants.longest_waiting("a"), wants.longest_waiting("b")), (Some(session(2)), None));
        assert!(wants.unmatched(session(1), 1).is_some());
        assert_eq!(wants.longest_waiting("a"), Some(session(1)));
    }

    #[test]
    fn a_want_that_is_tried_once_is_gone_after_its_entry() {
        let mut wants = Wants::default();
        wants.add(session(1), 1, tubes(&["a"]), false);
        wants.offer(session(1));
        assert!(!wants.add(session(1), 1, tubes(&["a"]), true), "it is offered already");
        assert!(wants.unmatched(session(1), 1).is_none());
        assert!(wants.is_empty() && wants.nobody_waits());
    }

    #[test]
    fn a_later_reserve_replaces_an_earlier_one_of_its_session() {
        let mut wants = Wants::default();
        wants.add(session(1), 1, tubes(&["a"]), false);
        wants.add(session(1), 2, tubes(&["b"]), false);
        wants.remove_number(session(1), 1);
        assert_eq!((wants.longest_waiting("a"), wants.longest_waiting("b")), (None, Some(session(1))));
        wants.keep_only(&[]);
        assert!(wants.is_empty() && wants.nobody_waits());
    }
}
