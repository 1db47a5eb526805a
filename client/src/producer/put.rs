//! A put on its way through a producer, and whoever waits to hear what came of it.

use super::Outcome;
use crate::commands::PutOptions;
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

/// One job to be put.
pub(super) struct Put {
    pub(super) tube: Arc<str>,
    pub(super) body: Bytes,
    pub(super) options: PutOptions,
    /// It is put once for this key, where the server knows how.
    pub(super) key: Option<Box<str>>,
    /// It was sent with its key, and what came of that is not known.
    pub(super) is_doubtful: bool,
    pub(super) waiter: Waiter,
}

/// Who waits for the outcome.
pub(super) enum Waiter {
    /// A call, until its deadline.
    Caller(Caller),
    /// The spool that it comes from, by its number there.
    Spool(u64),
    /// It was told already, or nobody waits any more.
    Nobody,
}

/// A call that waits.
pub(super) struct Caller {
    pub(super) deadline: Instant,
    pub(super) answer: oneshot::Sender<Outcome>,
    /// One of the puts that a producer holds at most.
    pub(super) place: OwnedSemaphorePermit,
}

impl Put {
    /// When its caller is to be told at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.waiter {
            Waiter::Caller(caller) => Some(caller.deadline),
            Waiter::Spool(_) | Waiter::Nobody => None,
        }
    }

    /// Whether the outcome no longer matters to anybody.
    pub(super) fn is_abandoned(&self) -> bool {
        match &self.waiter {
            Waiter::Caller(caller) => caller.answer.is_closed(),
            Waiter::Spool(_) => false,
            Waiter::Nobody => true,
        }
    }

    /// The same job, under way and in doubt, with somebody to be told.
    pub(super) fn of_same_job(&self, waiter: Waiter) -> Put {
        let (tube, body, key) = (self.tube.clone(), self.body.clone(), self.key.clone());
        Put { tube, body, options: self.options, key, is_doubtful: true, waiter }
    }

    /// Whether it lies in the spool, too.
    pub(super) fn is_spooled(&self) -> bool {
        matches!(self.waiter, Waiter::Spool(_))
    }
}
