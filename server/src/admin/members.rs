//! Changes of who leads and who belongs to the cluster. They are made on the leader's node; another one says which that is.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::Deserialize;

use super::View;

/// What a change answers: a line of text, with a status that says whose fault a refusal is.
type Answer = (StatusCode, String);

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

