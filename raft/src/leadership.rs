//! Who leads, as a value that can be watched.

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftServerMetrics;
use tokio::sync::watch;

use crate::cluster::RaftHandle;
use crate::types::TypeConfig;

/// Who leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Leadership {
    /// The newest term that this node has durably heard of.
    pub term: u64,
    /// The leader of that term, as far as this node knows.
    pub leader: Option<u64>,
    /// This node leads and has applied the first entry of its term: its state shows all that was committed
    /// before, and what it proposes is of this term.
    pub ready: bool,
}

impl Leadership {
    /// What the library's figures say. The leader and the vote may be of different moments: then the leader is
    /// not known yet.
    fn read(metrics: &RaftServerMetrics<TypeConfig>) -> Self {
        let vote = &metrics.vote;
        let known = vote.committed.then_some(vote.leader_id.voted_for);
        let leader = metrics.current_leader.filter(|leader| known == Some(*leader));
        Self { term: vote.leader_id.term, leader, ready: false }
    }
}

/// Keeps `watched` up to date until the node stops.
pub(crate) async fn follow(node: u64, raft: RaftHandle, watched: watch::Sender<Leadership>) {
    let mut server = raft.server_metrics();
    loop {
        let (mut now, leads) = {
            let metrics = server.borrow_and_update();
            (Leadership::read(&metrics), metrics.state == ServerState::Leader)
        };
        let leads = leads && now.leader == Some(node);
        let before = *watched.borrow();
        now.ready = leads && before.ready && before.term == now.term;
        publish(&watched, now);
        let changed = if leads && !now.ready {
            tokio::select! {
                changed = server.changed() => changed,
                () = applied_in(&raft, now.term) => {
                    publish(&watched, Leadership { ready: true, ..now });
                    server.changed().await
                }
            }
        } else {
            server.changed().await
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Waits until an entry of `term` was applied. Wakes with every entry: for the short time until then only.
async fn applied_in(raft: &RaftHandle, term: u64) {
    let mut metrics = raft.metrics();
    loop {
        let applied = metrics.borrow_and_update().last_applied;
        if applied.is_some_and(|id| id.committed_leader_id().term == term) {
            return;
        }
        if metrics.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn publish(watched: &watch::Sender<Leadership>, now: Leadership) {
    watched.send_if_modified(|before| {
        let changed = *before != now;
        *before = now;
        changed
    });
}
