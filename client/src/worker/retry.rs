//! What becomes of a job after its handler: pure decisions.

use crate::backoff::Backoff;
use rand::Rng;
use std::fmt;
use std::time::Duration;

/// What a handler says of its job.
///
/// A handler may also return `()`, which is [`Done`](Verdict::Done), or a `Result<(), E>`, whose error is a
/// [`Retry`](Verdict::Retry) without a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is done: the job is deleted.
    Done,
    /// It did not work out: the job is tried again after this time (whole seconds, rounded up), or by the worker's
    /// [`Retries`] if none is given; and buried when it was tried often enough.
    Retry {
        /// When to try again.
        after: Option<Duration>,
    },
    /// It will never work out: the job is put aside until somebody kicks it.
    Bury,
}

impl From<()> for Verdict {
    fn from((): ()) -> Verdict {
        Verdict::Done
    }
}

impl<E: fmt::Display> From<Result<(), E>> for Verdict {
    fn from(result: Result<(), E>) -> Verdict {
        match result {
            Ok(()) => Verdict::Done,
            Err(error) => {
                tracing::warn!(%error, "the handler failed");
                Verdict::Retry { after: None }
            }
        }
    }
}

/// How often and when jobs are tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    /// When a handler names no time, or panics: after the first attempt this, and so on.
    pub backoff: Backoff,
    /// A job that was handed out so often is buried instead of tried again. What counts is the server's `reserves`, so
    /// attempts of all workers count, also those that ended with a lost connection.
    pub attempts_max: u64,
}

impl Default for Retries {
    /// 1 s, 2 s, 4 s, ... up to 10 minutes, with jitter; 20 attempts.
    fn default() -> Retries {
        let backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(600) };
        Retries { backoff, attempts_max: 20 }
    }
}

/// What is done with a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It is deleted.
    Delete,
    /// It is given back, and handed out again after so many seconds.
    Release {
        /// Seconds.
        delay_s: u32,
    },
    /// It is put aside.
    Bury,
}

impl Retries {
    /// What to do after a verdict on an attempt, counted from 1.
    pub fn decide(&self, verdict: Verdict, attempt: u64, random: &mut impl Rng) -> Ending {
        match verdict {
            Verdict::Done => Ending::Delete,
            Verdict::Bury => Ending::Bury,
            Verdict::Retry { .. } if attempt >= self.attempts_max => Ending::Bury,
            Verdict::Retry { after: Some(after) } => Ending::Release { delay_s: whole_seconds(after) },
            Verdict::Retry { after: None } => {
                let failures = u32::try_from(attempt).unwrap_or(u32::MAX);
                Ending::Release { delay_s: whole_seconds(self.backoff.wait(failures, random)) }
            }
        }
    }
}

/// The protocol knows whole seconds; never less than was asked for.
fn whole_seconds(time: Duration) -> u32 {
    let up = u64::from(time.subsec_nanos() > 0);
    u32::try_from(time.as_secs().saturating_add(up)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    #[test]
    fn retries_grow_and_end() {
        let mut random = SmallRng::seed_from_u64(1);
        let retries = Retries {
            backoff: Backoff { first: Duration::from_secs(2), max: Duration::from_secs(60) },
            attempts_max: 8,
        };
        let again = Verdict::Retry { after: None };
        for (attempt, whole) in [(1, 2), (2, 4), (3, 8), (7, 60)] {
            let Ending::Release { delay_s } = retries.decide(again, attempt, &mut random) else {
                panic!("again")
            };
            assert!((whole / 2..=whole).contains(&delay_s), "{attempt}: {delay_s}");
        }
        let after = |ms| Verdict::Retry { after: Some(Duration::from_millis(ms)) };
        assert_eq!(retries.decide(after(0), 1, &mut random), Ending::Release { delay_s: 0 });
        assert_eq!(retries.decide(after(1001), 7, &mut random), Ending::Release { delay_s: 2 });
        for verdict in [again, after(5000)] {
            assert_eq!(retries.decide(verdict, 8, &mut random), Ending::Bury);
        }
        assert_eq!(retries.decide(Verdict::Done, 99, &mut random), Ending::Delete);
        assert_eq!(retries.decide(Verdict::Bury, 1, &mut random), Ending::Bury);
    }

    #[test]
    fn what_handlers_may_return() {
        assert_eq!(Verdict::from(()), Verdict::Done);
        assert_eq!(Verdict::from(Ok::<(), String>(())), Verdict::Done);
        assert_eq!(Verdict::from(Err::<(), _>("no")), Verdict::Retry { after: None });
    }
}
