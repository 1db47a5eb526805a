//! Changes of who leads and who belongs to the cluster. They are made on the leader's node; another one says which that is.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use beanpole_raft::{MembershipError, Node, TransferError};
use serde::Deserialize;

use super::View;

/// What a change answers: a line of text, with a status that says whose fault a refusal is.
type Answer = (StatusCode, String);

#[derive(Deserialize)]
pub(super) struct Transfer {
    to: Option<u64>,
}

#[derive(Deserialize)]
pub(super) struct NewMember {
    id: u64,
    address: String,
}

pub(super) async fn transfer_leader(
    State(view): State<Arc<View>>,
    Query(transfer): Query<Transfer>,
) -> Answer {
    with_node(&view, async |node| match node.transfer_leader(transfer.to).await {
        Ok(leader) => (StatusCode::OK, format!("node {leader} leads\n")),
        Err(error) => (transfer_status(&error), format!("{error}\n")),
    })
    .await
}

pub(super) async fn add(State(view): State<Arc<View>>, Query(new): Query<NewMember>) -> Answer {
    if new.id == 0 || u32::try_from(new.id).is_err() {
        return (
            StatusCode::BAD_REQUEST,
            format!("{} is not a node's number: use 1 to {}\n", new.id, u32::MAX),
        );
    }
    if !is_address(&new.address) {
        return (
            StatusCode::BAD_REQUEST,
            format!(
                "{:?} is not where a node is reached: give HOST:PORT of its --peer-listen\n",
                new.address
            ),
        );
    }
    let done = format!("node {} is let in as a learner", new.id);
    with_node(&view, async |node| changed(node.add_learner(new.id, new.address).await, &done)).await
}

/// Whether it names a host and a port. That somebody is there is seen by who promotes it.
fn is_address(text: &str) -> bool {
    let port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    text.rsplit_once(':').is_some_and(|(host, number)| !host.is_empty() && port(number))
}

pub(super) async fn promote(State(view): State<Arc<View>>, Path(id): Path<u64>) -> Answer {
    with_node(&view, async |node| changed(node.promote(id).await, &format!("node {id} votes"))).await
}

pub(super) async fn remove(State(view): State<Arc<View>>, Path(id): Path<u64>) -> Answer {
    with_node(&view, async |node| changed(node.remove(id).await, &format!("node {id} is no longer a member")))
        .await
}

#[derive(Deserialize)]
pub(super) struct Marking {
    nonce: u64,
}

/// Accepted: every node shows the mark in its report when it has applied the entry.
pub(super) async fn mark(State(view): State<Arc<View>>, Query(marking): Query<Marking>) -> Answer {
    let mut gateway = view.shared.gateway.lock();
    if !gateway.is_ready() {
        return (StatusCode::SERVICE_UNAVAILABLE, "this node does not serve commands now\n".to_owned());
    }
    gateway.mark(marking.nonce);
    view.shared.wake_for(&gateway);
    (StatusCode::ACCEPTED, "marked\n".to_owned())
}

/// Accepted: the node leaves service when the entry applies, unless another one is leaving.
pub(super) async fn drain(State(view): State<Arc<View>>) -> Answer {
    leave(&view, true)
}

pub(super) async fn resume(State(view): State<Arc<View>>) -> Answer {
    leave(&view, false)
}

fn leave(view: &View, on: bool) -> Answer {
    let mut gateway = view.shared.gateway.lock();
    let node = gateway.node();
    match gateway.engine().leaving() {
        Some(other) if on && other != node => {
            return (StatusCode::CONFLICT, format!("node {other} is leaving service; one at a time\n"));
        }
        Some(_) | None => {}
    }
    if !gateway.is_serving() {
        return (StatusCode::SERVICE_UNAVAILABLE, "this node does not serve commands now\n".to_owned());
    }
    gateway.set_leaving(on);
    view.shared.wake_for(&gateway);
    let what = if on { "leaves service" } else { "is back in service" };
    (StatusCode::ACCEPTED, format!("node {node} {what}\n"))
}

async fn with_node(view: &View, change: impl AsyncFnOnce(&Node) -> Answer) -> Answer {
    match view.node.get() {
        Some(node) => change(node).await,
        None => (StatusCode::SERVICE_UNAVAILABLE, "recovering the log; try again\n".to_owned()),
    }
}

fn changed(result: Result<(), MembershipError>, done: &str) -> Answer {
    match result {
        Ok(()) => (StatusCode::OK, format!("{done}\n")),
        Err(error) => (membership_status(&error), format!("{error}\n")),
    }
}

fn membership_status(error: &MembershipError) -> StatusCode {
    match error {
        MembershipError::NotLeader { .. } => StatusCode::MISDIRECTED_REQUEST,
        MembershipError::Stopped(_) => StatusCode::SERVICE_UNAVAILABLE,
        MembershipError::NotMember { .. } => StatusCode::NOT_FOUND,
        MembershipError::NoPeers
        | MembershipError::Busy
        | MembershipError::WasRemoved { .. }
        | MembershipError::OtherAddress { .. }
        | MembershipError::NotCaughtUp { .. }
        | MembershipError::WouldLoseQuorum { .. }
        | MembershipError::LastVoter
        | MembershipError::Unknown => StatusCode::CONFLICT,
    }
}

fn transfer_status(error: &TransferError) -> StatusCode {
    match error {
        TransferError::NotLeader { .. } => StatusCode::MISDIRECTED_REQUEST,
        TransferError::Stopped(_) => StatusCode::SERVICE_UNAVAILABLE,
        TransferError::NotVoter { .. } | TransferError::NotCaughtUp { .. } | TransferError::Failed { .. } => {
            StatusCode::CONFLICT
        }
    }
}
