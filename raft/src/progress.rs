//! How far the others are, as the leader sees them.

use std::time::Duration;

use openraft::Instant;
use openraft::async_runtime::watch::WatchReceiver;

use crate::cluster::RaftHandle;

/// What the leader knows of one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its number.
    pub id: u64,
    /// Where its peers reach it; empty for a lone voter.
    pub address: String,
    /// It votes; else it learns.
    pub voter: bool,
    /// The index up to which its log is known to be that of the leader. On the leader only; none before its
    /// first answer.
    pub matched: Option<u64>,
    /// How long ago it last answered. On the leader only; none before its first answer.
    pub heard: Option<Duration>,
    /// A snapshot that this node, the leader, is sending it: bytes sent, and of how many.
    pub receives: Option<(u64, u64)>,
    /// This node has a connection to it now; of itself always true.
    pub connected: bool,
}

/// All members, and the last index of the log.
pub(crate) struct Progress {
    pub(crate) members: Vec<MemberStatus>,
    pub(crate) last: u64,
}

impl Progress {
    pub(crate) fn read(raft: &RaftHandle) -> Self {
        let metrics = raft.metrics();
        let now = metrics.borrow_watched();
        let membership = now.membership_config.membership();
        let voters: Vec<u64> = membership.voter_ids().collect();
        let members = membership.nodes().map(|(id, member)| {
            let matched = now.replication.as_ref().and_then(|all| all.get(id).copied().flatten());
            let heard = now.heartbeat.as_ref().and_then(|all| all.get(id).copied().flatten());
            MemberStatus {
                id: *id,
                address: member.address.clone(),
                voter: voters.contains(id),
                matched: matched.map(|id| id.index()),
                heard: heard.map(|at| at.elapsed()),
                receives: None,
                connected: true,
            }
        });
        Self { members: members.collect(), last: now.last_log_index.unwrap_or(0) }
    }

    pub(crate) fn member(&self, id: u64) -> Option<&MemberStatus> {
        self.members.iter().find(|member| member.id == id)
    }
}

impl MemberStatus {
    /// Whether it answered within `limit`.
    pub(crate) fn answers(&self, limit: Duration) -> bool {
        self.heard.is_some_and(|heard| heard <= limit)
    }

    /// Whether it has everything up to `index`.
    pub(crate) fn has(&self, index: u64) -> bool {
        self.matched.is_some_and(|matched| matched >= index)
    }
}
