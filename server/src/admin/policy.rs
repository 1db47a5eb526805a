//! Policies of tubes: limits and rules that operators set. They go through the log; any node takes them.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use beanpole_protocol::Tube;
use serde::{Deserialize, Serialize};

use super::View;
use super::change::{Refusal, gateway_for_change};
use crate::gateway::Pair;
use crate::queue::{POLICIES_MAX, Policy};

/// A policy as JSON has it; what is off is 0, empty or false.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyRow {
    /// A tube's name, or the beginning of names and `*`.
    pub pattern: String,
    /// See [`Policy`] for this and the others.
    pub max_deliveries: u32,
    /// Empty if there is none.
    pub dead_tube: String,
    /// Milliseconds.
    pub backoff_min_ms: u64,
    /// Milliseconds.
    pub backoff_max_ms: u64,
    /// Percent.
    pub backoff_jitter: u8,
    /// Jobs.
    pub max_reserved: u64,
    /// Jobs.
    pub max_jobs: u64,
    /// Bytes.
    pub max_bytes: u64,
    /// Puts a second.
    pub max_put_rate: u32,
    /// Milliseconds.
    pub max_age_ms: u64,
    /// Milliseconds.
    pub alarm_ready_age_ms: u64,
    /// Hops.
    pub max_hops: u8,
    /// Puts are refused.
    pub pause_input: bool,
    /// Nothing is handed out.
    pub pause_output: bool,
}

impl PolicyRow {
    fn new(pattern: &str, policy: &Policy) -> Self {
        PolicyRow {
            pattern: pattern.to_owned(),
            max_deliveries: policy.max_deliveries,
            dead_tube: policy.dead_tube.as_deref().unwrap_or_default().to_owned(),
            backoff_min_ms: policy.backoff_min_ms,
            backoff_max_ms: policy.backoff_max_ms,
            backoff_jitter: policy.backoff_jitter,
            max_reserved: policy.max_reserved,
            max_jobs: policy.max_jobs,
            max_bytes: policy.max_bytes,
            max_put_rate: policy.max_put_rate,
            max_age_ms: policy.max_age_ms,
            alarm_ready_age_ms: policy.alarm_ready_age_ms,
            max_hops: policy.max_hops,
            pause_input: policy.pause_input,
            pause_output: policy.pause_output,
        }
    }

    /// Why the dead tube cannot be this one, if it is. That of a pattern may be among those it means.
    pub fn own_dead_tube(&self) -> Option<String> {
        let own = self.dead_tube == self.pattern && !self.pattern.is_empty();
        own.then(|| format!("{} cannot be its own dead tube: name another one, or off", self.pattern))
    }

    fn policy(&self) -> Policy {
        Policy {
            max_deliveries: self.max_deliveries,
            dead_tube: (!self.dead_tube.is_empty()).then(|| self.dead_tube.as_str().into()),
            backoff_min_ms: self.backoff_min_ms,
            backoff_max_ms: self.backoff_max_ms,
            backoff_jitter: self.backoff_jitter,
            max_reserved: self.max_reserved,
            max_jobs: self.max_jobs,
            max_bytes: self.max_bytes,
            max_put_rate: self.max_put_rate,
            max_age_ms: self.max_age_ms,
            alarm_ready_age_ms: self.alarm_ready_age_ms,
            max_hops: self.max_hops,
            pause_input: self.pause_input,
            pause_output: self.pause_output,
        }
    }
}

/// Puts by workers that held a job of another tube, or of the same.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DerivedRow {
    /// The tube of the held jobs.
    pub from: String,
    /// Puts since the node that answers started.
    pub puts: u64,
    /// A second, of late.
    pub rate: u64,
    /// The most hops of late.
    pub hops: u8,
    /// It may be a loop.
    pub suspect: bool,
}

impl DerivedRow {
    fn new(pair: &Pair) -> Self {
        let Pair { ref from, puts, rate, hops, suspect, .. } = *pair;
        DerivedRow { from: from.to_string(), puts, rate, hops, suspect }
    }
}

/// One tube, for people.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Shown {
    /// Its name.
    pub tube: String,
    /// Jobs by state.
    pub ready: u64,
    /// Jobs by state.
    pub reserved: u64,
    /// Jobs by state.
    pub delayed: u64,
    /// Jobs by state.
    pub buried: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Puts that its policy refused, as far as they came into the log.
    pub refused: u64,
    /// Jobs that were delivered too often.
    pub dead: u64,
    /// Jobs that were too old.
    pub expired: u64,
    /// Puts into it by workers that held a job, of late: from where, how many a second, how many hops, and whether that
    /// may be a loop.
    pub derived: Vec<DerivedRow>,
    /// The policy in force, with the tube's name as its pattern.
    pub policy: Option<PolicyRow>,
}

#[derive(Deserialize)]
pub(super) struct One {
    tube: String,
}

pub(super) async fn show(
    State(view): State<Arc<View>>,
    Query(one): Query<One>,
) -> Result<Json<Shown>, Refusal> {
    name(&one.tube)?;
    let mut gateway = view.shared.gateway.lock();
    let pairs = gateway.derived_puts();
    let into = pairs.iter().filter(|pair| *pair.to == *one.tube);
    let derived = into.map(DerivedRow::new).collect();
    let engine = gateway.engine();
    let jobs = engine.tube(one.tube.as_bytes()).unwrap_or_default();
    let tally = engine.tally_of(one.tube.as_bytes());
    Ok(Json(Shown {
        ready: jobs.ready,
        reserved: jobs.reserved,
        delayed: jobs.delayed,
        buried: jobs.buried,
        bytes: jobs.bytes,
        refused: tally.refused,
        dead: tally.dead,
        expired: tally.expired,
        derived,
        policy: engine.policy_of(&one.tube).map(|policy| PolicyRow::new(&one.tube, &policy)),
        tube: one.tube,
    }))
}

#[derive(Deserialize)]
pub(super) struct Which {
    pattern: String,
}

pub(super) async fn list(State(view): State<Arc<View>>) -> Json<Vec<PolicyRow>> {
    let gateway = view.shared.gateway.lock();
    Json(gateway.engine().policies().map(|(pattern, policy)| PolicyRow::new(&pattern, policy)).collect())
}

/// Accepted: it is in force, and shown, when its entry has applied. What the query leaves out is off.
pub(super) async fn set(
    State(view): State<Arc<View>>,
    Query(row): Query<PolicyRow>,
) -> Result<StatusCode, Refusal> {
    let policy = row.policy();
    if let Some(dead) = &policy.dead_tube {
        name(dead)?;
    }
    if let Some(why) = row.own_dead_tube() {
        return Err((StatusCode::BAD_REQUEST, format!("{why}\n")));
    }
    if policy == Policy::default() {
        return Err((StatusCode::BAD_REQUEST, "a policy that sets nothing is none: remove it\n".to_owned()));
    }
    change(&view, &row.pattern, Some(&policy))
}

pub(super) async fn remove(
    State(view): State<Arc<View>>,
    Query(which): Query<Which>,
) -> Result<StatusCode, Refusal> {
    change(&view, &which.pattern, None)
}

fn name(name: &str) -> Result<(), Refusal> {
    let bad = || (StatusCode::BAD_REQUEST, format!("{name:?} is not a tube's name\n"));
    Tube::new(name.as_bytes()).map(|_| ()).ok_or_else(bad)
}

fn change(view: &View, pattern: &str, policy: Option<&Policy>) -> Result<StatusCode, Refusal> {
    if pattern != "*" {
        name(pattern.strip_suffix('*').unwrap_or(pattern))?;
    }
    let mut gateway = gateway_for_change(view)?;
    let engine = gateway.engine();
    let known = engine.policies().any(|(other, _)| other == pattern);
    if policy.is_some() && !known && engine.policies().count() >= POLICIES_MAX {
        return Err((StatusCode::CONFLICT, format!("there are {POLICIES_MAX} policies: remove one first\n")));
    }
    if policy.is_none() && !known {
        return Err((StatusCode::NOT_FOUND, format!("there is no policy for {pattern}\n")));
    }
    gateway.set_policy(pattern, policy);
    view.shared.wake_for(&gateway);
    Ok(StatusCode::ACCEPTED)
}
