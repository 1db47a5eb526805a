//! How many puts may be under way after a server has refused some for want of room: one, then ever more as they are taken, as
//! TCP does after a loss. So a server that has just found room is not flooded by everybody who waited for it.

use crate::backoff::Backoff;
use rand::Rng;
use tokio::time::Instant;

/// The pace of one producer.
#[derive(Debug)]
pub(super) struct Pace {
    window: usize,
    window_max: usize,
    /// Rounds of refusals since a put was taken.
    refusals: u32,
    /// Nothing is sent before.
    not_before: Option<Instant>,
    backoff: Backoff,
}

impl Pace {
    pub(super) fn new(window_max: usize, backoff: Backoff) -> Pace {
        let window_max = window_max.max(1);
        Pace { window: window_max, window_max, refusals: 0, not_before: None, backoff }
    }

    /// How many puts may be unanswered now.
    pub(super) fn window(&self, now: Instant) -> usize {
        if self.not_before.is_some_and(|at| at > now) { 0 } else { self.window }
    }

    /// When something may be sent again, while nothing may.
    pub(super) fn opens_at(&self, now: Instant) -> Option<Instant> {
        self.not_before.filter(|at| *at > now)
    }

    /// Rounds of refusals since a put was taken.
    pub(super) fn refusals(&self) -> u32 {
        self.refusals
    }

    /// A put was taken.
    pub(super) fn accepted(&mut self) {
        self.refusals = 0;
        self.window = (self.window + 1).min(self.window_max);
    }

    /// A put was refused. Those that were under way with it and are refused as well are the same round.
    pub(super) fn refused(&mut self, now: Instant, random: &mut impl Rng) {
        self.window = 1;
        if self.not_before.is_none_or(|at| at <= now) {
            self.refusals = self.refusals.saturating_add(1);
            self.not_before = Some(now + self.backoff.wait(self.refusals, random));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;
    use std::time::Duration;

    #[test]
    fn refusals_close_the_window_and_it_opens_slowly() {
        let backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(2) };
        let (mut pace, mut random, now) = (Pace::new(8, backoff), SmallRng::seed_from_u64(1), Instant::now());
        assert_eq!((pace.window(now), pace.opens_at(now)), (8, None));
        // Eight that were under way are one round.
        (0..8).for_each(|_| pace.refused(now, &mut random));
        assert_eq!((pace.window(now), pace.refusals()), (0, 1));
        let opens = pace.opens_at(now).unwrap();
        assert!(opens - now <= Duration::from_millis(100));
        assert_eq!(pace.window(opens), 1);
        pace.refused(opens, &mut random);
        assert_eq!(pace.refusals(), 2);
        let later = opens + Duration::from_secs(1);
        for window in [2, 3, 4, 5, 6, 7, 8, 8] {
            pace.accepted();
            assert_eq!((pace.window(later), pace.refusals()), (window, 0));
        }
    }
}
