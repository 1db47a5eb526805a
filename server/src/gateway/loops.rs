//! Loops that feed themselves: a worker that answers a job by putting another one, which comes back to it.
//!
//! Who puts while it holds a job makes a *derived* put: one hop more than the job that it holds. Honest chains are short.
//! A put of many hops, or one that its tube's policy refused for its hops, makes the pair of tubes suspect: where the held
//! job was reserved from, and where the new one was put to. All nodes see the same, as it comes with the log; time is
//! the log's too.
//!
//! ```text
//!   reserve 7 from a ─► put into b: job 8, 1 hop ─► reserve 8 from b ─► put into a: job 9, 2 hops ─► ...
//!                        pair (a, b)                                     pair (b, a)
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::queue::Derived;

/// From so many hops on a pair is suspect.
pub const HOPS_SUSPECT: u8 = 8;
/// Pairs that are kept account of; one that is not active makes room for another.
const PAIRS_MAX: usize = 256;
/// Rates are counted over windows of this length.
const WINDOW_US: u64 = 10_000_000;
/// A pair that had no suspect put for this long is so no longer.
const CALM_US: u64 = 60_000_000;

/// What is known of one pair of tubes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Where the held jobs came from.
    pub from: Arc<str>,
    /// Where the new ones were put.
    pub to: Arc<str>,
    /// Derived puts since this process started, refused ones included.
    pub puts: u64,
    /// Of these a second, over the last window that is complete, or the one begun if there is none.
    pub rate: u64,
    /// The most hops of late.
    pub hops: u8,
    /// It may be a loop.
    pub suspect: bool,
}

#[derive(Default)]
struct Account {
    puts: u64,
    /// When the window began.
    window_us: u64,
    in_window: u64,
    /// A second, in the window before.
    rate: Option<u64>,
    hops: u8,
    /// When the last put came, and the last one that was suspect.
    last_us: u64,
    suspect_us: Option<u64>,
}

/// All pairs of late.
#[derive(Default)]
pub struct Loops {
    pairs: BTreeMap<(Arc<str>, Arc<str>), Account>,
    now_us: u64,
}

impl Loops {
    /// Takes in a derived put; answers the pair if it has become suspect by that.
    pub fn note(&mut self, derived: &Derived, stamp_us: u64) -> Option<Pair> {
        self.now_us = self.now_us.max(stamp_us);
        let now = self.now_us;
        let key = (derived.from.clone(), derived.to.clone());
        if !self.pairs.contains_key(&key) && self.pairs.len() >= PAIRS_MAX {
            self.make_room();
        }
        let account = self.pairs.entry(key.clone()).or_default();
        let was_suspect = account.is_suspect(now);
        account.count(derived, now);
        (!was_suspect && account.is_suspect(now)).then(|| account.pair(&key, now))
    }

    /// The pair that was not heard of for the longest time.
    fn make_room(&mut self) {
        let oldest = self.pairs.iter().min_by_key(|(_, account)| account.last_us).map(|(key, _)| key.clone());
        if let Some(oldest) = oldest {
            self.pairs.remove(&oldest);
        }
    }

    /// Time as the log has it.
    pub fn pass(&mut self, stamp_us: u64) {
        self.now_us = self.now_us.max(stamp_us);
    }

    /// Every pair, by name.
    pub fn pairs(&self) -> impl Iterator<Item = Pair> {
        self.pairs.iter().map(|(key, account)| account.pair(key, self.now_us))
    }
}

impl Account {
    fn count(&mut self, derived: &Derived, now: u64) {
        if now >= self.window_us + WINDOW_US {
            let whole = self.puts > 0 && now < self.window_us + 2 * WINDOW_US;
            self.rate = whole.then_some(self.in_window * 1_000_000 / WINDOW_US);
            (self.window_us, self.in_window, self.hops) = (now, 0, 0);
        }
        self.puts += 1;
        self.in_window += 1;
        self.hops = self.hops.max(derived.hops);
        self.last_us = now;
        if derived.hops >= HOPS_SUSPECT || derived.refused {
            self.suspect_us = Some(now);
        }
    }

    fn is_suspect(&self, now: u64) -> bool {
        self.suspect_us.is_some_and(|at| now < at + CALM_US)
    }

    fn pair(&self, (from, to): &(Arc<str>, Arc<str>), now: u64) -> Pair {
        let begun_s = (now.saturating_sub(self.window_us) / 1_000_000).max(1);
        let rate = match self.rate {
            _ if now >= self.last_us + 2 * WINDOW_US => 0,
            Some(rate) => rate,
            None => self.in_window / begun_s,
        };
        let (from, to) = (from.clone(), to.clone());
        Pair { from, to, puts: self.puts, rate, hops: self.hops, suspect: self.is_suspect(now) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    fn derived(from: &str, to: &str, hops: u8) -> Derived {
        Derived { from: from.into(), to: to.into(), hops, refused: false }
    }

    #[test]
    fn chains_are_no_loops_and_many_hops_are() {
        let mut loops = Loops::default();
        for hops in 1..HOPS_SUSPECT {
            assert_eq!(loops.note(&derived("q", "q", hops), 100 * S), None);
        }
        let pair = loops.note(&derived("q", "q", HOPS_SUSPECT), 101 * S).expect("that many are suspect");
        assert_eq!((&*pair.from, &*pair.to, pair.puts, pair.hops, pair.suspect), ("q", "q", 8, 8, true));
        assert_eq!(loops.note(&derived("q", "q", 9), 102 * S), None, "it is said once");
        loops.pass(200 * S);
        assert!(loops.pairs().all(|pair| !pair.suspect && pair.rate == 0), "until it is over");
        assert!(loops.note(&derived("q", "q", 10), 300 * S).is_some(), "and comes again");
    }

    #[test]
    fn a_refused_hop_is_suspect_at_once() {
        let mut loops = Loops::default();
        let refused = Derived { refused: true, ..derived("a", "b", 3) };
        assert!(loops.note(&refused, S).is_some());
    }

    #[test]
    fn rates_are_those_of_windows() {
        let mut loops = Loops::default();
        for tick in 0..300 {
            loops.note(&derived("a", "b", 1), 1000 * S + tick * S / 10);
        }
        assert_eq!(loops.pairs().next().map(|pair| (pair.puts, pair.rate)), Some((300, 10)));
    }

    #[test]
    fn the_account_is_bounded() {
        let mut loops = Loops::default();
        for number in 0..1000 {
            loops.note(&derived(&format!("t{number}"), "x", 1), number * S);
        }
        assert_eq!(loops.pairs().count(), PAIRS_MAX);
        assert!(loops.pairs().any(|pair| &*pair.from == "t999"), "the newest stay");
    }
}
