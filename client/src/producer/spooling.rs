//! What a producer does with its spool: puts go there while no node takes them, and come back when one does.

use super::actor::Actor;
use super::put::{Put, Waiter};
use super::{Outcome, Rejection};
use crate::commands::PutOptions;
use crate::spool::{Ramp, Record, Replayed, Spool, SpoolSettings, Stored, now_ms};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::time::Instant;

/// Replayed puts that are not acknowledged yet, at most.
const REPLAYING_MAX: usize = 64;

pub(super) struct Spooling {
    spool: Spool,
    ramp: Ramp,
    /// A put waited in vain, and none was taken since: further ones go to the spool at once.
    is_away: bool,
    /// Records are on their way.
    is_asked: bool,
    /// Records in the producer's hands.
    replaying: usize,
}

impl Spooling {
    pub(super) fn new(spool: Spool, settings: &SpoolSettings) -> Spooling {
        let ramp = Ramp::new(settings.rate_first, settings.rate_max);
        Spooling { spool, ramp, is_away: false, is_asked: false, replaying: 0 }
    }

    pub(super) fn is_away(&self) -> bool {
        self.is_away
    }

    /// A node took a put.
    pub(super) fn served(&mut self) {
        self.is_away = false;
    }

    /// A node has no room.
    pub(super) fn refused(&mut self) {
        self.ramp.refused();
    }

    /// A record is dealt with.
    pub(super) fn done(&mut self, number: u64, how: Replayed) {
        self.replaying -= 1;
        self.spool.done(number, how);
    }

    /// Records that were asked for; for ever nothing without a spool. May be cancelled and called again.
    pub(super) async fn next(spooling: &mut Option<Spooling>) -> Vec<(u64, Record)> {
        match spooling {
            Some(spooling) => spooling.spool.next().await,
            None => std::future::pending().await,
        }
    }

    fn wants_more(&self) -> bool {
        !self.is_asked && self.replaying < REPLAYING_MAX && self.spool.has_waiting()
    }

    /// When the next record may be asked for.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.ramp.next().filter(|_| self.wants_more())
    }

    pub(super) async fn close(self) {
        self.spool.close().await;
    }
}

impl Actor {
    /// A connection came about.
    pub(super) fn begin_replay(&mut self) {
        let Some(spooling) = &mut self.spooling else { return };
        spooling.ramp.begin(Instant::now(), &mut self.random);
        if !spooling.spool.has_waiting() && spooling.replaying == 0 {
            // Nothing would ever be put that could tell that nodes take puts again.
            spooling.is_away = false;
        }
    }

    /// Asks for as many records as may be replayed now.
    pub(super) fn ask_spool(&mut self, is_leaving: bool) {
        let is_closing = self.is_closing();
        let Some(spooling) = self.spooling.as_mut().filter(|_| !is_leaving && !is_closing) else { return };
        if !spooling.wants_more() {
            return;
        }
        let allowed = spooling.ramp.allowed(Instant::now()).min(REPLAYING_MAX - spooling.replaying);
        if allowed > 0 {
            spooling.is_asked = true;
            spooling.spool.ask(allowed);
        }
    }

    /// Records of the spool, to be put.
    pub(super) fn replay(&mut self, records: Vec<(u64, Record)>) {
        let is_closing = self.is_closing();
        let Some(spooling) = &mut self.spooling else { return };
        spooling.is_asked = false;
        // An answer without records counts, too: a disk that cannot be read is not asked without end.
        spooling.ramp.used(records.len().max(1));
        if is_closing {
            return;
        }
        spooling.replaying += records.len();
        for (number, record) in records {
            self.enqueue(replayed(number, record));
        }
    }

    /// A put goes to the spool; its caller is told when it is there.
    pub(super) fn spool(&mut self, put: Put) {
        let Put { tube, body, options, key, is_doubtful, waiter } = put;
        let (Waiter::Caller(caller), Some(spooling), Some(key)) = (waiter, &mut self.spooling, key) else {
            return;
        };
        if !spooling.is_away {
            tracing::warn!("no node takes puts: they are spooled");
        }
        spooling.is_away = true;
        let counters = self.counters.clone();
        let record = Record { put_at_ms: now_ms(), options, key, tube, body };
        spooling.spool.store(record, move |stored| {
            let outcome = match stored {
                Stored::Kept => Outcome::Spooled,
                Stored::Unclear => Outcome::Unknown,
                // It was sent before, and nobody knows what came of that.
                Stored::Full | Stored::Failed(_) if is_doubtful => Outcome::Unknown,
                Stored::Full => Outcome::Rejected(Rejection::SpoolFull),
                Stored::Failed(why) => Outcome::Rejected(Rejection::NotSpooled(why)),
            };
            let counter = match &outcome {
                Outcome::Spooled => &counters.spooled,
                Outcome::Inserted(_) | Outcome::Unknown => &counters.unknown,
                Outcome::Rejected(_) => &counters.rejected,
            };
            counter.fetch_add(1, Relaxed);
            drop(caller.place);
            // A caller that is gone does not want to know.
            let _gone = caller.answer.send(outcome);
        });
    }
}

/// A spooled put, to be put now: what has passed of its delay has passed.
fn replayed(number: u64, record: Record) -> Put {
    let waited_s = u32::try_from(now_ms().saturating_sub(record.put_at_ms) / 1000).unwrap_or(u32::MAX);
    let PutOptions { pri, delay_s, ttr_s } = record.options;
    let options = PutOptions { pri, delay_s: delay_s.saturating_sub(waited_s), ttr_s };
    let (tube, body, waiter) = (Arc::clone(&record.tube), record.body, Waiter::Spool(number));
    Put { tube, body, options, key: Some(record.key), is_doubtful: false, waiter }
}
