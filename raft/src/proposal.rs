//! What becomes of a proposal, and the channel that says so.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use openraft::errors::ClientWriteError;
use openraft::raft::ClientWriteResult;
use openraft::raft::responder::Responder;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::types::TypeConfig;

/// What became of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Durable on a quorum and applied here.
    Committed {
        /// Its log index.
        index: u64,
    },
    /// Certainly never appended anywhere.
    NotProposed {
        /// The leader as far as is known.
        leader: Option<u64>,
    },
    /// It may or may not commit, now or after a restart.
    Unknown,
}

/// The fate of one proposed payload, to be awaited or dropped.
#[derive(Debug)]
pub struct Proposal {
    outcome: oneshot::Receiver<Outcome>,
}

impl Future for Proposal {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        // A sender that went away without a word means that the node stopped in between.
        Pin::new(&mut self.outcome).poll(cx).map(|outcome| outcome.unwrap_or(Outcome::Unknown))
    }
}

/// The sending side, which openraft keeps beside the entry. Holds the share of the in-flight budget until the
/// entry is applied or dropped.
pub(crate) struct Answer<T> {
    outcome: oneshot::Sender<Outcome>,
    _admitted: OwnedSemaphorePermit,
    _result: std::marker::PhantomData<fn(T)>,
}

/// Connects a proposal with its answer.
pub(crate) fn channel<T>(admitted: OwnedSemaphorePermit) -> (Answer<T>, Proposal) {
    let (sender, receiver) = oneshot::channel();
    let answer = Answer { outcome: sender, _admitted: admitted, _result: std::marker::PhantomData };
    (answer, Proposal { outcome: receiver })
}

/// How a result of openraft reads as an outcome.
pub(crate) trait IntoOutcome {
    fn into_outcome(self) -> Outcome;
}

impl IntoOutcome for ClientWriteResult<TypeConfig> {
    fn into_outcome(self) -> Outcome {
        match self {
            Ok(response) => Outcome::Committed { index: response.log_id.index() },
            Err(ClientWriteError::ForwardToLeader(to)) => Outcome::NotProposed { leader: to.leader_id },
            // Discarded: another leader may have committed it. The others concern membership changes only.
            Err(
                ClientWriteError::LogEntryDiscarded(_)
                | ClientWriteError::ChangeMembershipError(_)
                | ClientWriteError::PreconditionFailed(_),
            ) => Outcome::Unknown,
        }
    }
}

impl<T: 'static> Responder<TypeConfig, T> for Answer<T>
where
    T: openraft::OptionalSend,
{
    fn on_complete(self, result: T) {
        let outcome = outcome_of(result);
        // Nobody may be waiting any more.
        self.outcome.send(outcome).ok();
    }
}

/// openraft asks for a responder of any result type but only ever answers writes through it.
fn outcome_of<T: 'static>(result: T) -> Outcome {
    let mut result = Some(result);
    let any: &mut dyn std::any::Any = &mut result;
    match any.downcast_mut::<Option<ClientWriteResult<TypeConfig>>>().and_then(Option::take) {
        Some(write) => write.into_outcome(),
        None => Outcome::Unknown,
    }
}
