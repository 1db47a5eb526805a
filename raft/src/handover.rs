//! Giving the lead to another voter.
//!
//! A leader that hands over takes no more proposals and sends no more heartbeats, whether it works out or not: a
//! handover that fails costs an election. So it is tried only with a voter that answers now and has caught up,
//! and it is done when that one is known to lead.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::cluster::RaftHandle;
use crate::error::TransferError;
use crate::leadership::Leadership;
use crate::progress::Progress;

/// Hands over to `to`, or to the voter that has the most; answers who leads then.
pub(crate) async fn run(
    node: u64,
    raft: &RaftHandle,
    mut watched: watch::Receiver<Leadership>,
    to: Option<u64>,
    election: Duration,
) -> Result<u64, TransferError> {
    let before = *watched.borrow_and_update();
    if !before.ready {
        return Err(TransferError::NotLeader { leader: before.leader.filter(|leader| *leader != node) });
    }
    if to == Some(node) {
        return Ok(node);
    }
    let to = caught_up(node, raft, to, election).await?;
    tracing::info!(node, to, term = before.term, "the lead is handed over");
    raft.trigger().transfer_leader(to).await.map_err(|error| TransferError::Stopped(error.to_string()))?;
    let next = watched.wait_for(|view| view.term > before.term && view.leader.is_some());
    let leader = match tokio::time::timeout(election * 3, next).await {
        Ok(Ok(view)) => view.leader,
        Ok(Err(_)) | Err(_) => None,
    };
    match leader {
        Some(leader) if leader == to => Ok(to),
        Some(_) | None => Err(TransferError::Failed { node: to, leader }),
    }
}

/// Waits until the voter has everything that was in the log when it was asked; answers which one that is.
async fn caught_up(
    node: u64,
    raft: &RaftHandle,
    to: Option<u64>,
    election: Duration,
) -> Result<u64, TransferError> {
    let goal = Progress::read(raft).last;
    let deadline = Instant::now() + election;
    loop {
        let progress = Progress::read(raft);
        let candidates = progress.members.iter().filter(|member| member.voter && member.id != node);
        let best = match to {
            Some(to) => {
                let candidate = candidates.into_iter().find(|member| member.id == to);
                Some(candidate.ok_or(TransferError::NotVoter { node: to })?)
            }
            None => candidates.filter(|member| member.answers(election)).max_by_key(|member| member.matched),
        };
        if let Some(best) = best.filter(|best| best.answers(election) && best.has(goal)) {
            return Ok(best.id);
        }
        if Instant::now() >= deadline {
            let lag = best.map(|best| goal.saturating_sub(best.matched.unwrap_or(0)));
            return Err(TransferError::NotCaughtUp { node: best.map(|best| best.id), lag });
        }
        tokio::time::sleep(election / 64).await;
    }
}
