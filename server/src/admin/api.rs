//! `/api/v1`: what the console and scripts read, as JSON.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use beanpole_raft::{MemberStatus, Role, Status};
use serde::{Deserialize, Serialize};

use super::View;
use crate::cluster::report::{self, Cluster, Member, Report};

/// Tubes in one answer when the request does not say.
const TUBES_DEFAULT: usize = 1000;
/// Tubes in one answer, at most.
const TUBES_MAX: usize = 10_000;

/// A member that has not answered the leader for so long counts as gone; it is asked several times a second.
const UNHEARD_MAX: Duration = Duration::from_secs(1);

/// The text of an answer while the log is not open.
pub(super) const RECOVERING: (StatusCode, &str) =
    (StatusCode::SERVICE_UNAVAILABLE, "recovering the log; try again\n");

pub(super) async fn cluster(
    State(view): State<Arc<View>>,
) -> Result<Json<Cluster>, (StatusCode, &'static str)> {
    let node = view.node.get().ok_or(RECOVERING)?;
    let status = node.status();
    let own = report::own(&view.shared, node);
    let mut reports: BTreeMap<u64, (Report, u64)> =
        view.shared.reports.all().into_iter().map(|(report, age_ms)| (report.id, (report, age_ms))).collect();
    reports.insert(own.id, (own, 0));
    let committed = reports.values().map(|(report, _)| report.committed).max().unwrap_or(0);
    let nodes = status.members.iter().map(|member| {
        let told = reports.remove(&member.id);
        let seen_ms = told.as_ref().map(|(_, age_ms)| *age_ms);
        let mut report = told.map(|(report, _)| report).unwrap_or_default();
        report.id = member.id;
        Member {
            role: role_of(&status, member).to_owned(),
            address: member.address.clone(),
            voter: member.voter,
            lag: committed.saturating_sub(report.applied),
            receives: member.receives,
            seen_ms,
            unreachable: is_unreachable(&status, member),
            report,
        }
    });
    Ok(Json(Cluster {
        nodes: nodes.collect(),
        cluster_id: status.cluster_id.clone(),
        node_id: status.node_id,
        leader_id: status.leader,
        term: status.term,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ready: view.not_ready().is_none(),
        draining: view.shared.gateway.lock().engine().draining(),
        refused: status.refused.clone(),
    }))
}

/// Whether a member is gone, as far as this node can tell now: reports are up to half a second old, and a dead node's stay.
fn is_unreachable(status: &Status, member: &MemberStatus) -> bool {
    let is_unheard = || member.heard.is_some_and(|heard| heard > UNHEARD_MAX);
    member.id != status.node_id && (!member.connected || is_unheard())
}

fn role_of(status: &Status, member: &MemberStatus) -> &'static str {
    if member.id == status.node_id {
        return role_name(status.role);
    }
    match (status.leader == Some(member.id), member.voter) {
        (true, _) => "leader",
        (false, true) => "follower",
        (false, false) => "learner",
    }
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
