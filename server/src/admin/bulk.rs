//! Operations on many jobs of a tube: `POST` asks for one, `GET` tells how far it is. Any node takes them; they go through
//! the log as commands do.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use beanpole_protocol::Tube;
use serde::{Deserialize, Serialize};

use super::View;
use super::change::{Refusal, gateway_for_change};
use crate::queue::{BULKS_MAX, BulkCount, BulkOrder, BulkVerb, BulkView, JobState, States};

/// Why something is not done.

#[derive(Deserialize)]
pub(super) struct Asked {
    tube: String,
    #[serde(default)]
    to: String,
    /// `ready`, `delayed`, `buried`, with commas between; else all three.
    states: Option<String>,
    /// Only jobs that were put so many milliseconds ago, or before.
    #[serde(default)]
    older_ms: u64,
    limit: Option<u64>,
    /// A random number: asked for again with the same, it is done once.
    nonce: Option<u64>,
    #[serde(default)]
    dry_run: bool,
}

/// How an operation is getting on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bulk {
    /// The number it was asked for with.
    pub nonce: u64,
    /// `purge`, `move` or `kick`.
    pub verb: String,
    /// The tube.
    pub tube: String,
    /// Where the jobs go; empty for all but moves.
    pub to: String,
    /// Jobs done.
    pub done: u64,
    /// Jobs looked at.
    pub looked: u64,
    /// About as many will be looked at.
    pub total: u64,
    /// It is not through yet.
    pub running: bool,
}

/// What a dry run found.
#[derive(Debug, Serialize, Deserialize)]
pub struct Counted {
    /// So many jobs would be concerned.
    pub jobs: u64,
}

/// Accepted with how it stands, or what a dry run found.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Answer {
    Begun(Bulk),
    Counted(Counted),
}

impl From<&BulkView> for Bulk {
    fn from(view: &BulkView) -> Self {
        Bulk {
            nonce: view.nonce,
            verb: view.verb.as_str().to_owned(),
            tube: view.tube.to_string(),
            to: view.to.to_string(),
            done: view.done,
            looked: view.looked,
            total: view.total,
            running: view.running,
        }
    }
}

pub(super) async fn purge(
    State(view): State<Arc<View>>,
    Query(asked): Query<Asked>,
) -> Result<(StatusCode, Json<Answer>), Refusal> {
    if asked.dry_run { count(&view, &asked).await } else { begin(&view, BulkVerb::Purge, &asked) }
}

pub(super) async fn move_jobs(
    State(view): State<Arc<View>>,
    Query(asked): Query<Asked>,
) -> Result<(StatusCode, Json<Answer>), Refusal> {
    tube(&asked.to)?;
    if asked.to == asked.tube {
        return Err((StatusCode::BAD_REQUEST, "both tubes are the same\n".to_owned()));
    }
    begin(&view, BulkVerb::Move, &asked)
}

pub(super) async fn kick(
    State(view): State<Arc<View>>,
    Query(asked): Query<Asked>,
) -> Result<(StatusCode, Json<Answer>), Refusal> {
    begin(&view, BulkVerb::Kick, &asked)
}

pub(super) async fn list(State(view): State<Arc<View>>) -> Json<Vec<Bulk>> {
    Json(view.shared.gateway.lock().engine().bulks().map(Bulk::from).collect())
}

pub(super) async fn one(
    State(view): State<Arc<View>>,
    Path(nonce): Path<u64>,
) -> Result<Json<Bulk>, Refusal> {
    let gateway = view.shared.gateway.lock();
    let known = gateway.engine().bulk(nonce);
    let unknown = || (StatusCode::NOT_FOUND, format!("there is no operation {nonce}\n"));
    known.map(|known| Json(Bulk::from(known))).ok_or_else(unknown)
}

fn tube(name: &str) -> Result<(), Refusal> {
    let bad = || (StatusCode::BAD_REQUEST, format!("{name:?} is not a tube's name\n"));
    Tube::new(name.as_bytes()).map(|_| ()).ok_or_else(bad)
}

fn states(asked: &Asked) -> Result<States, Refusal> {
    let Some(words) = &asked.states else { return Ok(States::ALL) };
    words.split(',').try_fold(States::default(), |states, word| match word {
        "all" => Ok(States::ALL),
        "ready" => Ok(states.and(States::only(JobState::Ready))),
        "delayed" => Ok(states.and(States::only(JobState::Delayed))),
        "buried" => Ok(states.and(States::only(JobState::Buried))),
        _ => Err((StatusCode::BAD_REQUEST, format!("{word:?} is not ready, delayed, buried or all\n"))),
    })
}

/// Accepted: it is known to every node once its entry has applied there. Asked for again it is answered as it stands.
fn begin(view: &View, verb: BulkVerb, asked: &Asked) -> Result<(StatusCode, Json<Answer>), Refusal> {
    tube(&asked.tube)?;
    let order = BulkOrder {
        nonce: asked.nonce.unwrap_or_else(|| rand::random::<u64>() >> 11 | 1),
        verb,
        states: states(asked)?,
        older_us: asked.older_ms.saturating_mul(1000),
        limit: asked.limit.unwrap_or(u64::MAX),
        tube: &asked.tube,
        to: if verb == BulkVerb::Move { &asked.to } else { "" },
    };
    let mut gateway = gateway_for_change(view)?;
    let engine = gateway.engine();
    if let Some(known) = engine.bulk(order.nonce) {
        return Ok((StatusCode::OK, Json(Answer::Begun(known.into()))));
    }
    if engine.bulks().filter(|bulk| bulk.running).count() >= BULKS_MAX {
        let why = format!("{BULKS_MAX} such operations are under way: wait for one to end\n");
        return Err((StatusCode::CONFLICT, why));
    }
    gateway.bulk(&order);
    view.shared.wake_for(&gateway);
    let (tube, to) = (order.tube.into(), order.to.into());
    let begun = BulkView { nonce: order.nonce, verb, tube, to, done: 0, looked: 0, total: 0, running: true };
    Ok((StatusCode::ACCEPTED, Json(Answer::Begun(Bulk::from(&begun)))))
}

/// Counts part by part: between two parts clients are served.
async fn count(view: &View, asked: &Asked) -> Result<(StatusCode, Json<Answer>), Refusal> {
    tube(&asked.tube)?;
    let (now, _) = view.shared.gateway.lock().clocks_now();
    let until_us = now.saturating_sub(asked.older_ms.saturating_mul(1000));
    let mut count = BulkCount::new(&asked.tube, states(asked)?, until_us);
    while view.shared.gateway.lock().engine().count_some(&mut count) {
        tokio::task::yield_now().await;
    }
    Ok((StatusCode::OK, Json(Answer::Counted(Counted { jobs: count.jobs }))))
}
