//! How long to wait before trying again: twice as long each time, up to a limit, and never the same for two clients.

use rand::Rng;
use std::time::Duration;

/// Waits that double, with jitter, so that clients which failed together do not come back together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The wait after the first failure, at most.
    pub first: Duration,
    /// The longest wait.
    pub max: Duration,
}

impl Backoff {
    /// The wait after `failures` failures in a row: between half and the whole of `first` doubled for every failure after
    /// the first one, and of `max` at most. No failure, no wait.
    pub fn wait(&self, failures: u32, random: &mut impl Rng) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        let factor = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
        let whole = self.first.saturating_mul(factor).min(self.max);
        whole.mul_f64(random.random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    #[test]
    fn waits_double_up_to_the_limit_and_vary() {
        let backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(3) };
        let mut random = SmallRng::seed_from_u64(7);
        assert_eq!(backoff.wait(0, &mut random), Duration::ZERO);
        for (failures, whole_ms) in
            [(1, 100), (2, 200), (3, 400), (5, 1600), (6, 3000), (40, 3000), (u32::MAX, 3000)]
        {
            let waits: Vec<u128> = (0..50).map(|_| backoff.wait(failures, &mut random).as_millis()).collect();
            assert!(waits.iter().all(|ms| (whole_ms / 2..=whole_ms).contains(ms)), "{failures}: {waits:?}");
            assert!(waits.iter().any(|ms| *ms != waits[0]), "{failures}: all the same");
        }
    }

    #[test]
    fn the_same_seed_waits_the_same() {
        let backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(3) };
        let waits = |seed| {
            let mut random = SmallRng::seed_from_u64(seed);
            (1..20).map(|failures| backoff.wait(failures, &mut random)).collect::<Vec<_>>()
        };
        assert_eq!(waits(1), waits(1));
        assert_ne!(waits(1), waits(2));
    }
}
