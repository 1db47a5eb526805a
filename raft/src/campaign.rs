//! Standing for election without waiting for the random timeout, when the leader's connection has closed.
//!
//! ```text
//! the leader's process dies ── its kernel closes the sockets ──> every follower notices at once
//!     |<──────────────── lease ────────────────>|
//!     last heartbeat                            first in line asks; second in line asks a little later; ...
//! ```
//!
//! The lease is never bypassed: what is started here is a pre-vote, which this node refuses to itself and every
//! other one refuses to it as long as it holds a lease; a leader that is alive renews the lease and nothing
//! happens. Who stands first goes by number, so that two do not split the votes.

use std::sync::Arc;
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::cluster::{Cluster, RaftHandle};
use crate::leadership::Leadership;

/// The leader's lease, in shortest election timeouts.
const LEASE_ELECTIONS: u32 = 2;

/// Stands for election whenever the leader is lost, until the node stops. `lost` says whose connection closed.
pub(crate) async fn run(
    cluster: Arc<Cluster>,
    raft: RaftHandle,
    mut lost: mpsc::Receiver<u64>,
    leadership: watch::Receiver<Leadership>,
) {
    while let Some(peer) = lost.recv().await {
        let view = *leadership.borrow();
        if view.leader != Some(peer) {
            continue;
        }
        if let Some(rank) = rank(&raft, cluster.node, peer) {
            tracing::debug!(node = cluster.node, leader = peer, rank, "the leader's connection closed");
            stand(&cluster, &raft, view, leadership.clone(), rank).await;
        }
        // What was reported meanwhile is about the same loss.
        while lost.try_recv().is_ok() {}
    }
}

/// How many voters stand before this node; `None` when it has no vote.
fn rank(raft: &RaftHandle, node: u64, leader: u64) -> Option<u32> {
    let metrics = raft.server_metrics();
    let now = metrics.borrow_watched();
    let mut voters = now.membership_config.voter_ids().filter(|id| *id != leader);
    voters.position(|id| id == node).and_then(|rank| u32::try_from(rank).ok())
}

/// Asks for votes again and again from the moment that the lease has ended, until there is a newer term, or so
/// much time has passed that the leader must be alive or the usual timeout has taken over.
async fn stand(
    cluster: &Cluster,
    raft: &RaftHandle,
    lost: Leadership,
    leadership: watch::Receiver<Leadership>,
    rank: u32,
) {
    let election = cluster.timing.election;
    // Each in line gives those before it the time of a round of votes.
    let turn = LEASE_ELECTIONS * election + rank * (election / 8);
    let deadline = Instant::now() + turn + election;
    while Instant::now() < deadline && leadership.borrow().term == lost.term {
        let Ok(heard) = raft.with_raft_state(|state| state.vote_last_modified()).await else { return };
        // The leader may be heard of again meanwhile: then the lease ends later.
        let remaining = heard.map_or(Duration::ZERO, |heard| turn.saturating_sub(heard.elapsed()));
        if !remaining.is_zero() {
            tokio::time::sleep(remaining).await;
            continue;
        }
        if raft.trigger().elect(true).await.is_err() {
            return;
        }
        // The lease of the others may end a little later.
        tokio::time::sleep(election / 16).await;
    }
}
