//! How fast a spool is replayed: slowly at first, and twice as fast every second. A cluster that has just come back is not met
//! by everything that waited for it.

use rand::Rng;
use std::time::Duration;
use tokio::time::Instant;

/// A rate that rises.
#[derive(Debug)]
pub(crate) struct Ramp {
    first: f64,
    max: f64,
    /// Puts a second, now.
    rate: f64,
    /// Puts that may be sent; less than none until the beginning.
    tokens: f64,
    at: Option<Instant>,
}

impl Ramp {
    pub(crate) fn new(first: u32, max: u32) -> Ramp {
        let first = f64::from(first.max(1));
        Ramp { first, max: f64::from(max).max(first), rate: first, tokens: 0.0, at: None }
    }

    /// A node serves again. Up to a second passes before the first put, so that producers that waited together do not begin
    /// together.
    pub(crate) fn begin(&mut self, now: Instant, random: &mut impl Rng) {
        (self.rate, self.tokens) = (self.first, 0.0);
        self.at = Some(now + Duration::from_secs(1).mul_f64(random.random_range(0.0..1.0)));
    }

    /// A node refused a put for want of room: back to the beginning.
    pub(crate) fn refused(&mut self) {
        (self.rate, self.tokens) = (self.first, self.tokens.min(0.0));
    }

    /// How many puts may be replayed now.
    pub(crate) fn allowed(&mut self, now: Instant) -> usize {
        let Some(passed) = self.at.and_then(|at| now.checked_duration_since(at)) else { return 0 };
        let passed_s = passed.as_secs_f64();
        // What was not used is not saved up: at most a tenth of a second's worth.
        self.tokens = (self.tokens + self.rate * passed_s).min((self.rate / 10.0).max(1.0));
        self.rate = (self.rate * passed_s.min(30.0).exp2()).min(self.max);
        self.at = Some(now);
        self.tokens as usize
    }

    /// So many were.
    pub(crate) fn used(&mut self, puts: usize) {
        self.tokens -= puts as f64;
    }

    /// When the next one may be.
    pub(crate) fn next(&self) -> Option<Instant> {
        let missing = (1.0 - self.tokens).max(0.0);
        self.at.map(|at| at + Duration::from_secs_f64(missing / self.rate) + Duration::from_micros(100))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    /// Puts in each of the next seconds, for a producer that uses all that it may.
    fn puts_by_second(ramp: &mut Ramp, begin: Instant, seconds: u64) -> Vec<usize> {
        let steps = |second: u64| (0..100).map(move |step| Duration::from_millis(second * 1000 + step * 10));
        let mut one = |second| {
            steps(second).fold(0, |puts, at| {
                let allowed = ramp.allowed(begin + at);
                ramp.used(allowed);
                puts + allowed
            })
        };
        (0..seconds).map(&mut one).collect()
    }

    #[test]
    fn the_rate_doubles_every_second_up_to_its_limit_and_starts_again_when_refused() {
        let (mut ramp, now) = (Ramp::new(100, 1000), Instant::now());
        assert_eq!((ramp.allowed(now), ramp.next()), (0, None), "nobody serves yet");
        ramp.begin(now, &mut SmallRng::seed_from_u64(1));
        assert_eq!(ramp.allowed(now), 0, "it begins a little later");
        let begin = ramp.next().unwrap();
        assert!(begin - now < Duration::from_millis(1020), "{:?}", begin - now);
        let puts = puts_by_second(&mut ramp, begin, 6);
        for (second, about) in [144, 288, 577, 980, 1000, 1000].into_iter().enumerate() {
            let range = about * 8 / 10..=about * 11 / 10;
            assert!(range.contains(&puts[second]), "second {second}: {puts:?}");
        }
        ramp.refused();
        let after = puts_by_second(&mut ramp, begin + Duration::from_secs(6), 1)[0];
        assert!((110..=200).contains(&after), "{after}");
    }

    #[test]
    fn what_was_not_used_is_not_saved_up() {
        let (mut ramp, now) = (Ramp::new(10, 100), Instant::now());
        ramp.begin(now, &mut SmallRng::seed_from_u64(1));
        assert!(ramp.allowed(now + Duration::from_secs(60)) <= 10);
        assert!(ramp.allowed(now + Duration::from_secs(120)) <= 10);
    }
}
