//! `/api/v1`: what the console and scripts read, as JSON.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use beanpole_raft::Role;
use serde::{Deserialize, Serialize};

use super::View;

/// Tubes in one answer when the request does not say.
const TUBES_DEFAULT: usize = 1000;
/// Tubes in one answer, at most.
const TUBES_MAX: usize = 10_000;

/// The cluster as this node sees it.
#[derive(Serialize)]
pub(super) struct Cluster {
    cluster_id: String,
    node_id: u64,
    leader_id: Option<u64>,
    term: u64,
    version: &'static str,
    ready: bool,
    draining: bool,
    nodes: Vec<Member>,
}

#[derive(Serialize)]
struct Member {
    id: u64,
    role: &'static str,
    last: u64,
    committed: u64,
    applied: u64,
    /// Committed entries that this node has not applied.
    lag: u64,
    snapshot: u64,
    purged: u64,
    connections: usize,
    disk_bytes: u64,
    live_bytes: u64,
    version: &'static str,
}

/// The text of an answer while the log is not open.
const RECOVERING: (StatusCode, &str) = (StatusCode::SERVICE_UNAVAILABLE, "recovering the log; try again\n");

pub(super) async fn cluster(
    State(view): State<Arc<View>>,
) -> Result<Json<Cluster>, (StatusCode, &'static str)> {
    let node = view.node.get().ok_or(RECOVERING)?;
    let status = node.status();
    let disk = node.bodies().disk_usage();
    let (connections, draining) = {
        let gateway = view.shared.gateway.lock();
        (gateway.connections(), gateway.engine().draining())
    };
    let version = env!("CARGO_PKG_VERSION");
    let member = Member {
        id: status.node_id,
        role: role_name(status.role),
        last: status.last_index,
        committed: status.committed,
        applied: status.applied,
        lag: status.committed.saturating_sub(status.applied),
        snapshot: status.snapshot_index,
        purged: status.purged,
        connections,
        disk_bytes: disk.log_bytes,
        live_bytes: disk.live_bytes,
        version,
    };
    Ok(Json(Cluster {
        cluster_id: status.cluster_id,
        node_id: status.node_id,
        leader_id: status.leader,
        term: status.term,
        version,
        ready: view.not_ready().is_none(),
        draining,
        nodes: vec![member],
    }))
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Learner => "learner",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
        Role::Stopped => "stopped",
    }
}

#[derive(Deserialize)]
pub(super) struct Page {
    /// Only tubes whose names sort after this one.
    after: Option<String>,
    limit: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct Tubes {
    tubes: Vec<TubeRow>,
    /// Pass it as `after` for the next page; absent on the last one.
    next: Option<String>,
}

#[derive(Serialize)]
struct TubeRow {
    name: String,
    urgent: u64,
    ready: u64,
    reserved: u64,
    delayed: u64,
    buried: u64,
    total_jobs: u64,
    using: u32,
    watching: u32,
    waiting: u32,
    paused: bool,
}

pub(super) async fn tubes(State(view): State<Arc<View>>, Query(page): Query<Page>) -> Json<Tubes> {
    let limit = page.limit.unwrap_or(TUBES_DEFAULT).clamp(1, TUBES_MAX);
    let gateway = view.shared.gateway.lock();
    let mut names = gateway.list_tubes();
    names.sort_unstable();
    let start = page.after.map_or(0, |after| names.partition_point(|name| **name <= *after));
    let end = names.len().min(start + limit);
    let next = (end < names.len()).then(|| names[end - 1].to_string());
    let tubes = names[start..end].iter().map(|name| row(&gateway, name)).collect();
    Json(Tubes { tubes, next })
}

fn row(gateway: &crate::gateway::Gateway, name: &str) -> TubeRow {
    let engine = gateway.engine();
    let jobs = engine.tube(name.as_bytes());
    let clients = gateway.tubes().find(name).map(|tube| gateway.tubes().get(tube));
    let count = |f: fn(&crate::queue::TubeView) -> u64| jobs.as_ref().map_or(0, f);
    TubeRow {
        name: name.to_owned(),
        urgent: count(|t| t.urgent),
        ready: count(|t| t.ready),
        reserved: count(|t| t.reserved),
        delayed: count(|t| t.delayed),
        buried: count(|t| t.buried),
        total_jobs: count(|t| t.total_jobs),
        using: clients.map_or(0, |t| t.using()),
        watching: clients.map_or(0, |t| t.watching()),
        waiting: clients.map_or(0, |t| t.waiting()),
        paused: jobs.as_ref().is_some_and(|t| t.pause_left_us(engine.stamp()) > 0),
    }
}

#[derive(Serialize)]
pub(super) struct Draining {
    draining: bool,
}

pub(super) async fn draining(State(view): State<Arc<View>>) -> Json<Draining> {
    Json(Draining { draining: view.shared.gateway.lock().engine().draining() })
}

pub(super) async fn set_draining(State(view): State<Arc<View>>) -> StatusCode {
    change_draining(&view, true)
}

pub(super) async fn clear_draining(State(view): State<Arc<View>>) -> StatusCode {
    change_draining(&view, false)
}

/// Accepted: the flag is set when its log entry applies, which `GET` then shows.
fn change_draining(view: &View, on: bool) -> StatusCode {
    view.shared.gateway.lock().set_draining(on);
    view.shared.wake_pump();
    StatusCode::ACCEPTED
}
