//! Changing who belongs to the cluster: one change at a time, on the leader.
//!
//! ```text
//! add_learner ──> receives the log ──> promote ──> votes          remove ──> neither
//! ```
//!
//! A change of voters is two entries: a joint membership, in which both the old and the new voters must agree,
//! and then the new one. A leader that dies between them leaves the joint one behind, which is as safe as any;
//! the next leader finishes it. Every change names the membership that it was decided on, so that two that did
//! not know of each other cannot both happen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::Precondition;
use tokio::sync::watch;

use crate::cluster::{Cluster, RaftHandle};
use crate::error::MembershipError;
use crate::leadership::Leadership;
use crate::progress::{MemberStatus, Progress};
use crate::types::Member;

/// A learner may be promoted when it lacks at most this many entries: it has them in a moment.
const PROMOTE_LAG_MAX: u64 = 1000;

/// Changes the membership.
pub(crate) struct Changes {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) raft: RaftHandle,
    pub(crate) leadership: watch::Receiver<Leadership>,
    /// Held during a change.
    pub(crate) one: tokio::sync::Mutex<()>,
}

type Change = ChangeMembers<u64, Member>;

impl Changes {
    pub(crate) async fn add_learner(&self, id: u64, address: String) -> Result<(), MembershipError> {
        let _one = self.one.lock().await;
        let progress = self.lead()?;
        if let Some(member) = progress.member(id) {
            let same = member.address == address;
            return if same { Ok(()) } else { Err(MembershipError::OtherAddress { node: id }) };
        }
        if self.cluster.book.get(id).removed {
            return Err(MembershipError::WasRemoved { node: id });
        }
        if address.is_empty() {
            return Err(MembershipError::OtherAddress { node: id });
        }
        self.apply(ChangeMembers::AddNodes(BTreeMap::from([(id, Member { address })]))).await
    }

    pub(crate) async fn promote(&self, id: u64) -> Result<(), MembershipError> {
        let _one = self.one.lock().await;
        let progress = self.lead()?;
        let member = progress.member(id).ok_or(MembershipError::NotMember { node: id })?;
        if member.voter {
            return Ok(());
        }
        let lag = progress.last.saturating_sub(member.matched.unwrap_or(0));
        if lag > PROMOTE_LAG_MAX || member.matched.is_none() || !member.answers(self.patience()) {
            return Err(MembershipError::NotCaughtUp { node: id, lag });
        }
        self.apply(ChangeMembers::AddVoterIds(BTreeSet::from([id]))).await
    }

    pub(crate) async fn remove(&self, id: u64) -> Result<(), MembershipError> {
        let _one = self.one.lock().await;
        let progress = self.lead()?;
        let member = progress.member(id).ok_or(MembershipError::NotMember { node: id })?;
        if !member.voter {
            return self.apply(ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await;
        }
        let rest: Vec<&MemberStatus> =
            progress.members.iter().filter(|member| member.voter && member.id != id).collect();
        let answers =
            |member: &&&MemberStatus| member.id == self.cluster.node || member.answers(self.patience());
        let reached = rest.iter().filter(answers).count();
        if reached * 2 <= rest.len() {
            return Err(MembershipError::WouldLoseQuorum { node: id, reached, voters: rest.len() });
        }
        self.apply(ChangeMembers::RemoveVoters(BTreeSet::from([id]))).await
    }

    /// Finishes what a leader before left unfinished, and sees to it that the others know where this node is
    /// reached, whenever it comes to lead; until the node stops.
    pub(crate) async fn finish(self: Arc<Self>) {
        let mut leadership = self.leadership.clone();
        loop {
            if leadership.wait_for(|view| view.ready).await.is_err() {
                return;
            }
            if !self.finish_now().await {
                tokio::time::sleep(self.patience()).await;
                continue;
            }
            let term = leadership.borrow_and_update().term;
            if leadership.wait_for(|view| view.term != term).await.is_err() {
                return;
            }
        }
    }

    async fn finish_now(&self) -> bool {
        let _one = self.one.lock().await;
        if self.is_joint() {
            let node = self.cluster.node;
            tracing::info!(node, "a change of members is finished for an earlier leader");
            if !self.attempt(ChangeMembers::AddVoterIds(BTreeSet::new())).await {
                return false;
            }
        }
        self.is_reached_as_stated() || self.attempt(self.own_address()).await
    }

    async fn attempt(&self, change: Change) -> bool {
        let made = self.apply(change).await;
        if let Err(error) = &made {
            tracing::warn!(node = self.cluster.node, %error, "the members were not put in order");
        }
        made.is_ok()
    }

    /// Whether the membership has the address that this node was started with. It has not when the node was a
    /// lone voter before, or has moved.
    fn is_reached_as_stated(&self) -> bool {
        let members = self.cluster.members();
        members.get(&self.cluster.node).is_none_or(|address| *address == self.cluster.address)
    }

    fn own_address(&self) -> Change {
        let member = Member { address: self.cluster.address.clone() };
        ChangeMembers::SetNodes(BTreeMap::from([(self.cluster.node, member)]))
    }

    fn is_joint(&self) -> bool {
        let metrics = self.raft.server_metrics();
        let now = metrics.borrow_watched();
        now.membership_config.membership().get_joint_config().len() > 1
    }

    /// Who answered this long ago is there.
    fn patience(&self) -> Duration {
        self.cluster.timing.election * 2
    }

    fn lead(&self) -> Result<Progress, MembershipError> {
        let view = *self.leadership.borrow();
        if !view.ready {
            let leader = view.leader.filter(|leader| *leader != self.cluster.node);
            return Err(MembershipError::NotLeader { leader });
        }
        Ok(Progress::read(&self.raft))
    }

    async fn apply(&self, change: Change) -> Result<(), MembershipError> {
        let based_on = *self.raft.server_metrics().borrow_watched().membership_config.log_id();
        let precondition = Precondition::LastMembershipLogId { last_membership_log_id: based_on };
        // What leaves the voters leaves the cluster.
        let changed = self.raft.change_membership_if(change, false, [precondition]);
        match tokio::time::timeout(self.cluster.timing.election * 20, changed).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(translate(error)),
            Err(_) => Err(MembershipError::Unknown),
        }
    }
}

type WriteError = RaftError<crate::types::TypeConfig, ClientWriteError<crate::types::TypeConfig>>;

fn translate(error: WriteError) -> MembershipError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
            MembershipError::NotLeader { leader: to.leader_id }
        }
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => MembershipError::Unknown,
        RaftError::APIError(ClientWriteError::PreconditionFailed(_)) => MembershipError::Busy,
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => match error {
            ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_) => {
                MembershipError::Busy
            }
            ChangeMembershipError::EmptyMembership(_) => MembershipError::LastVoter,
            ChangeMembershipError::LearnerNotFound(error) => {
                MembershipError::NotMember { node: error.node_id }
            }
            ChangeMembershipError::UnsupportedMembershipTransition(_)
            | ChangeMembershipError::NodeMetadataChanged(_) => MembershipError::Busy,
        },
        RaftError::Fatal(error) => MembershipError::Stopped(error.to_string()),
    }
}
