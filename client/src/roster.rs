//! The addresses of a cluster, and which of them is to be tried next. It decides and touches nothing: time comes in, a node
//! comes out.
//!
//! The order of the list is the order of preference: the first node is the near one. A node that failed is left alone for a
//! while, longer each time; meanwhile the next ones serve.

use crate::backoff::Backoff;
use crate::stream::Address;
use rand::rngs::SmallRng;
use std::time::Duration;
use tokio::time::Instant;

/// What to do when a connection is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pick {
    /// Try this node.
    Connect(usize),
    /// All of them failed a short while ago: wait until then.
    WaitUntil(Instant),
}

#[derive(Debug)]
struct Node {
    address: Address,
    /// In a row, since it last worked.
    failures: u32,
    /// It is left alone until then.
    not_before: Option<Instant>,
    /// It is left alone because somebody is trying it.
    is_claimed: bool,
}

/// The nodes that a client knows.
#[derive(Debug)]
pub(crate) struct Roster {
    nodes: Vec<Node>,
    backoff: Backoff,
    random: SmallRng,
}

impl Roster {
    /// Of these addresses, the preferred one first.
    ///
    /// # Panics
    /// When there is no address.
    pub(crate) fn new(addresses: Vec<Address>, backoff: Backoff, random: SmallRng) -> Roster {
        assert!(!addresses.is_empty(), "a list of addresses has at least one");
        let nodes = addresses.into_iter().map(|address| Node {
            address,
            failures: 0,
            not_before: None,
            is_claimed: false,
        });
        Roster { nodes: nodes.collect(), backoff, random }
    }

    pub(crate) fn address(&self, node: usize) -> &Address {
        &self.nodes[node].address
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The first node in the order of preference that is not left alone, or when one will be.
    pub(crate) fn pick(&self, now: Instant) -> Pick {
        let free = |node: &Node| node.not_before.is_none_or(|at| at <= now);
        match self.nodes.iter().position(free) {
            Some(node) => Pick::Connect(node),
            None => {
                Pick::WaitUntil(self.nodes.iter().filter_map(|node| node.not_before).min().unwrap_or(now))
            }
        }
    }

    /// A node that is preferred to `current` and may be tried again. Whoever asks is to try it: for `limit` others are not
    /// sent there too.
    pub(crate) fn better_than(&mut self, current: usize, now: Instant, limit: Duration) -> Option<usize> {
        let free = |node: &Node| node.not_before.is_none_or(|at| at <= now);
        let better = self.nodes[..current].iter().position(free)?;
        if self.nodes[better].failures > 0 {
            self.nodes[better].not_before = Some(now + limit);
            self.nodes[better].is_claimed = true;
        }
        Some(better)
    }

    /// The node answered a command.
    pub(crate) fn worked(&mut self, node: usize) {
        let works = &mut self.nodes[node];
        (works.failures, works.not_before, works.is_claimed) = (0, None, false);
    }

    /// The node could not be reached, was lost, or said that it is of no use at the moment. When many connections to it are
    /// lost at once, that is one failure.
    pub(crate) fn failed(&mut self, node: usize, now: Instant) {
        let failed = &mut self.nodes[node];
        if failed.not_before.is_some_and(|at| at > now) && !failed.is_claimed {
            return;
        }
        failed.is_claimed = false;
        failed.failures = failed.failures.saturating_add(1);
        let wait = self.backoff.wait(failed.failures, &mut self.random);
        failed.not_before = Some(now + wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn roster(nodes: usize) -> Roster {
        let addresses = (0..nodes).map(|node| Address::from(format!("n{node}:1").as_str())).collect();
        let backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(5) };
        Roster::new(addresses, backoff, SmallRng::seed_from_u64(1))
    }

    #[test]
    fn the_first_is_preferred_and_failed_ones_are_left_alone() {
        let (mut roster, now) = (roster(3), Instant::now());
        assert_eq!(roster.pick(now), Pick::Connect(0));
        roster.failed(0, now);
        assert_eq!(roster.pick(now), Pick::Connect(1));
        roster.failed(1, now);
        roster.failed(2, now);
        let Pick::WaitUntil(at) = roster.pick(now) else { panic!("all failed just now") };
        assert!(at > now && at <= now + Duration::from_millis(100), "{:?}", at - now);
        assert!(matches!(roster.pick(at), Pick::Connect(_)));
        roster.worked(1);
        assert_eq!(roster.pick(now), Pick::Connect(1));
    }

    #[test]
    fn a_node_that_goes_on_failing_is_asked_ever_more_rarely() {
        let (mut roster, mut now) = (roster(1), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..12 {
            roster.failed(0, now);
            let Pick::WaitUntil(at) = roster.pick(now) else { panic!("it failed just now") };
            waits.push(at - now);
            now = at;
        }
        assert!(waits[11] >= Duration::from_millis(2500) && waits[11] <= Duration::from_secs(5), "{waits:?}");
        assert!(waits[0] <= Duration::from_millis(100), "{waits:?}");
    }

    #[test]
    fn many_connections_that_are_lost_at_once_are_one_failure() {
        let (mut roster, now) = (roster(1), Instant::now());
        (0..50).for_each(|_| roster.failed(0, now));
        let Pick::WaitUntil(at) = roster.pick(now) else { panic!("it failed just now") };
        assert!(at - now <= Duration::from_millis(100), "{:?}", at - now);
    }

    #[test]
    fn one_at_a_time_goes_back_to_a_preferred_node() {
        let (mut roster, now) = (roster(3), Instant::now());
        let limit = Duration::from_secs(2);
        assert_eq!(roster.better_than(0, now, limit), None);
        roster.failed(0, now);
        assert_eq!(roster.better_than(1, now, limit), None, "it failed just now");
        assert_eq!(roster.better_than(2, now, limit), Some(1), "it never failed");
        let later = now + Duration::from_millis(100);
        assert_eq!(roster.better_than(1, later, limit), Some(0));
        assert_eq!(roster.better_than(1, later, limit), None, "somebody tries it");
        roster.failed(0, later);
        assert_eq!(roster.better_than(1, later + Duration::from_millis(50), limit), None, "it failed again");
        let later = later + Duration::from_millis(200);
        assert_eq!(roster.better_than(1, later, limit), Some(0));
        roster.worked(0);
        assert_eq!(roster.better_than(1, later, limit), Some(0), "it works for everybody");
    }
}
