//! The admin HTTP: health, metrics, and JSON about cluster and tubes, on a port and a thread of its own.
//!
//! | path | answers |
//! |---|---|
//! | `GET /livez` | 200 while the process runs |
//! | `GET /readyz` | 200 when commands are served, else 503 and why; how far it is while it starts |
//! | `GET /metrics` | Prometheus text |
//! | `GET /api/v1/cluster` | node, leader, term, log positions |
//! | `GET /api/v1/memory` | this node's budget, what is used of it and by what, and what puts meet |
//! | `GET /api/v1/disk` | this node's disk: what is used, damage that was found and repaired, how far looking for it is |
//! | `POST /api/v1/scrub` | everything on this node's disk is looked through for damage now |
//! | `GET /api/v1/alarms` | what is wrong on this node, or with the cluster as it sees it, and not over |
//! | `GET /api/v1/events` | what happened on this node lately |
//! | `GET /api/v1/tubes?after=NAME&limit=N` | tubes with their counts, by name |
//! | `POST /api/v1/tubes/purge?tube=NAME&states=S,S&older_ms=N&nonce=N` | deletes jobs of a tube; `dry_run=true` counts them |
//! | `POST /api/v1/tubes/move?tube=NAME&to=NAME&states=S,S&older_ms=N&nonce=N` | moves jobs to another tube |
//! | `POST /api/v1/tubes/kick?tube=NAME&limit=N&nonce=N` | kicks jobs; all without `limit` |
//! | `GET /api/v1/bulk`, `GET /api/v1/bulk/NONCE` | such operations and how far they are |
//! | `GET /api/v1/policies` | limits and rules of tubes |
//! | `PUT /api/v1/policies?pattern=P&max_jobs=N&...`, `DELETE /api/v1/policies?pattern=P` | sets or removes one, whole |
//! | `GET /api/v1/tubes/show?tube=NAME` | a tube, its policy, and what that did |
//! | `GET /api/v1/put-once`, `PUT /api/v1/put-once?window_ms=N&keys=N` | how long and how many keys of `put-once` are known |
//! | `GET /api/v1/conns?top=bytes\|rate\|reserved\|held&limit=N&sample_ms=N` | connections and addresses that do most |
//! | `DELETE /api/v1/conns?number=N`, `DELETE /api/v1/conns?address=A` | closes connections |
//! | `GET /api/v1/bans`, `DELETE /api/v1/bans?address=A` | addresses that are not let in; lets one in again, or all |
//! | `GET /api/v1/draining` | `{"draining": true}` |
//! | `PUT /api/v1/draining`, `DELETE /api/v1/draining` | set or clear the cluster's draining flag |
//! | `POST /api/v1/leader?to=ID` | another node leads; without `to` the one that is most up to date |
//! | `POST /api/v1/members?id=N&address=HOST:PORT` | lets a new node in as a learner |
//! | `POST /api/v1/members/N/promote` | a learner that has caught up votes |
//! | `DELETE /api/v1/members/N` | takes a node out |
//! | `POST /api/v1/mark?nonce=N` | marks an entry; `cluster` shows each node's hash of all history up to it |
//! | `GET /api/v1/backup` | everything as of one moment, as one stream that `beanpole backup` reads; one at a time |
//! | `PUT /api/v1/drain`, `DELETE /api/v1/drain` | this node leaves service, or is back |
//!
//! It never waits for the thread that serves clients longer than that holds the gateway's lock, and holds that lock itself
//! only to copy figures out.

mod alarms;
mod api;
mod backup;
pub(crate) mod bulk;
mod change;
pub(crate) mod conns;
pub(crate) mod disk;
mod members;
mod memory;
mod metrics;
pub(crate) mod once;
pub(crate) mod policy;

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{delete, get, post, put};
use beanpole_raft::{Node, Opening};
use tokio::sync::Semaphore;

use crate::net::{Bound, Listener};
use crate::node::Shared;

/// A handle to the admin server, to tell it what it reports.
#[derive(Clone)]
pub struct Admin(Arc<View>);

/// What the handlers look at.
pub(crate) struct View {
    shared: Arc<Shared>,
    /// Set once the log is open.
    node: OnceLock<Node>,
    /// How far that is.
    opening: Opening,
    stopping: AtomicBool,
    /// One backup at a time.
    backups: Arc<Semaphore>,
}

impl Admin {
    /// Serves on a thread of its own, or nowhere if no address is given.
    pub fn start(bound: Option<Bound>, shared: Arc<Shared>, opening: Opening) -> std::io::Result<Self> {
        let view = Arc::new(View {
            shared,
            node: OnceLock::new(),
            opening,
            stopping: AtomicBool::new(false),
            backups: Arc::new(Semaphore::new(1)),
        });
        if let Some(bound) = bound {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let app = router(view.clone());
            std::thread::Builder::new()
                .name("admin".into())
                .spawn(move || runtime.block_on(serve(bound, app)))?;
        }
        Ok(Admin(view))
    }

    /// The log is open.
    pub fn set_node(&self, node: Node) {
        // It is set once per process; a second call would be the same node.
        let _ = self.0.node.set(node);
    }

    /// `/readyz` says no from now on.
    pub fn set_stopping(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
    }
}

async fn serve(bound: Bound, app: Router) {
    let result = match bound.into_listener() {
        Ok(Listener::Tcp(listener)) => axum::serve(listener, app).await,
        Ok(Listener::Unix(listener, _file)) => axum::serve(listener, app).await,
        Err(e) => Err(e),
    };
    if let Err(error) = result {
        tracing::error!(%error, "the admin server ended; clients are served on");
    }
}

fn router(view: Arc<View>) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics::metrics))
        .route("/api/v1/cluster", get(api::cluster))
        .route("/api/v1/memory", get(memory::memory))
        .route("/api/v1/disk", get(disk::disk))
        .route("/api/v1/scrub", post(disk::scrub))
        .route("/api/v1/alarms", get(alarms::list))
        .route("/api/v1/events", get(memory::events))
        .route("/api/v1/tubes", get(api::tubes))
        .route("/api/v1/tubes/purge", post(bulk::purge))
        .route("/api/v1/tubes/move", post(bulk::move_jobs))
        .route("/api/v1/tubes/kick", post(bulk::kick))
        .route("/api/v1/tubes/show", get(policy::show))
        .route("/api/v1/policies", get(policy::list).put(policy::set).delete(policy::remove))
        .route("/api/v1/put-once", get(once::get).put(once::set))
        .route("/api/v1/bulk", get(bulk::list))
        .route("/api/v1/bulk/{nonce}", get(bulk::one))
        .route("/api/v1/conns", get(conns::list).delete(conns::kill))
        .route("/api/v1/bans", get(conns::bans).delete(conns::clear_bans))
        .route("/api/v1/draining", get(api::draining).put(api::set_draining).delete(api::clear_draining))
        .route("/api/v1/leader", post(members::transfer_leader))
        .route("/api/v1/members", post(members::add))
        .route("/api/v1/members/{id}", delete(members::remove))
        .route("/api/v1/members/{id}/promote", post(members::promote))
        .route("/api/v1/backup", get(backup::backup))
        .route("/api/v1/mark", post(members::mark))
        .route("/api/v1/drain", put(members::drain).delete(members::resume))
        .with_state(view)
}

/// Ready: the log is recovered, there is a leader, and commands are taken.
async fn readyz(State(view): State<Arc<View>>) -> (StatusCode, String) {
    match view.not_ready() {
        None => (StatusCode::OK, "ready\n".into()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

impl View {
    fn not_ready(&self) -> Option<Cow<'static, str>> {
        let Some(node) = self.node.get() else {
            return Some(format!("starting: {}", self.opening.step()).into());
        };
        self.not_serving(node).map(Cow::Borrowed)
    }

    fn not_serving(&self, node: &Node) -> Option<&'static str> {
        if self.stopping.load(Ordering::Relaxed) {
            return Some("stopping");
        }
        if node.status().leader.is_none() {
            return Some("no leader");
        }
        let gateway = self.shared.gateway.lock();
        if !gateway.is_serving() {
            return Some("taking office");
        }
        if !gateway.is_ready() {
            return Some("no leader with a quorum answers");
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clocks, SystemTimeSource};
    use crate::gateway::Gateway;
    use crate::serve::{NoBodies, ProcessFacts};

    #[tokio::test]
    async fn a_node_that_starts_is_not_ready_and_says_how_far_it_is() {
        let clocks = Clocks::new(Box::new(SystemTimeSource::default()));
        let facts = ProcessFacts::gather(65_535, 1 << 20);
        let shared = Shared::new(Gateway::new(1, clocks, Box::new(NoBodies), Box::new(facts)));
        let admin = Admin::start(None, shared, Opening::default()).unwrap();
        let (status, text) = readyz(State(admin.0)).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(text, "not ready: starting: reading the log\n");
    }
}
