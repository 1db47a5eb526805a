//! `/metrics`: every value is computed when it is asked for, so an idle server does nothing for it.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use super::{View, alarms, conns, disk, memory};
use crate::gateway::Gateway;

/// Tubes with values of their own, at most: those that hold most jobs. The others are in the totals only, so that 100,000
/// tubes do not make 600,000 time series.
const TUBES_MAX: usize = 100;

pub(super) type Labels = Vec<(&'static str, String)>;
pub(super) type Gauges = Family<Labels, Gauge<u64, AtomicU64>>;

pub(super) async fn metrics(State(view): State<Arc<View>>) -> impl IntoResponse {
    let mut registry = Registry::with_prefix("beanpole");
    {
        let mut gateway = view.shared.gateway.lock();
        policies(&mut registry, &mut gateway);
        jobs(&mut registry, &gateway);
        tubes(&mut registry, &gateway);
        clients(&mut registry, &gateway);
    }
    memory::metrics(&mut registry, &view);
    conns::metrics(&mut registry, &view);
    alarms::metrics(&mut registry, &view);
    log(&mut registry, &view);
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => (
            StatusCode::OK,
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            text,
        ),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], e.to_string()),
    }
}

pub(super) fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    registry.register(name, help, ConstGauge::new(value));
}

pub(super) fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    registry.register(name, help, ConstCounter::new(value));
}

fn jobs(registry: &mut Registry, gateway: &Gateway) {
    let totals = gateway.engine().totals();
    let by_state = Gauges::default();
    for (state, count) in [
        ("ready", totals.ready),
        ("reserved", totals.reserved),
        ("delayed", totals.delayed),
        ("buried", totals.buried),
    ] {
        by_state.get_or_create(&vec![("state", state.to_owned())]).set(count);
    }
    registry.register("jobs", "Jobs held, by state", by_state);
    gauge(registry, "jobs_urgent", "Ready jobs with a priority below 1024", totals.urgent);
    counter(registry, "jobs_put", "Jobs put since the cluster began", totals.total_jobs);
    counter(registry, "jobs_timed_out", "Reservations that ended by TTR", totals.timeouts);
    gauge(registry, "draining", "1 while put answers DRAINING", u64::from(gateway.engine().draining()));
}

fn policies(registry: &mut Registry, gateway: &mut Gateway) {
    let tally = gateway.engine().tally();
    counter(registry, "jobs_dead", "Jobs that a policy took out for too many deliveries", tally.dead);
    counter(registry, "jobs_expired", "Jobs that a policy took out for their age", tally.expired);
    let refused = gateway.puts_over_limit();
    counter(registry, "puts_over_limit", "Puts of this node's clients that a tube's policy refused", refused);
    let derived = Gauges::default();
    let mut suspect = 0;
    for pair in gateway.derived_puts() {
        suspect += u64::from(pair.suspect);
        derived
            .get_or_create(&vec![("from", pair.from.to_string()), ("to", pair.to.to_string())])
            .set(pair.rate);
    }
    let help = "Puts a second by workers that hold a job, by its tube and the tube that they put to";
    registry.register("derived_puts_per_second", help, derived);
    gauge(
        registry,
        "loops_suspected",
        "Pairs of tubes between which workers seem to feed themselves",
        suspect,
    );
}

fn tubes(registry: &mut Registry, gateway: &Gateway) {
    let engine = gateway.engine();
    let mut views: Vec<_> =
        engine.tube_names().filter_map(|name| Some((name, engine.tube(name.as_bytes())?))).collect();
    gauge(registry, "tubes", "Tubes the engine knows", views.len() as u64);
    views.sort_by_key(|(name, tube)| (std::cmp::Reverse(tube.jobs()), *name));
    let jobs = Gauges::default();
    for (name, tube) in views.iter().take(TUBES_MAX) {
        for (state, count) in [
            ("ready", tube.ready),
            ("reserved", tube.reserved),
            ("delayed", tube.delayed),
            ("buried", tube.buried),
        ] {
            let labels = vec![("tube", (*name).to_owned()), ("state", state.to_owned())];
            jobs.get_or_create(&labels).set(count);
        }
    }
    registry.register("tube_jobs", "Jobs by tube and state, for the 100 tubes that hold most", jobs);
}

fn clients(registry: &mut Registry, gateway: &Gateway) {
    gauge(registry, "connections", "Open client connections of this node", gateway.connections() as u64);
    counter(registry, "connections_opened", "Client connections accepted", gateway.connections_opened());
    let commands = Family::<Labels, prometheus_client::metrics::counter::Counter>::default();
    for (name, count) in gateway.counters().each() {
        commands.get_or_create(&vec![("command", name.to_owned())]).inc_by(count);
    }
    registry.register("commands", "Well-formed commands received by this node", commands);
}

fn log(registry: &mut Registry, view: &View) {
    gauge(registry, "ready", "1 while commands are served", u64::from(view.not_ready().is_none()));
    let Some(node) = view.node.get() else { return };
    let status = node.status();
    gauge(registry, "raft_term", "Current term", status.term);
    gauge(
        registry,
        "raft_is_leader",
        "1 while this node leads",
        u64::from(status.leader == Some(status.node_id)),
    );
    gauge(registry, "raft_last_index", "Index of the last log entry", status.last_index);
    gauge(registry, "raft_committed_index", "Highest committed index", status.committed);
    gauge(registry, "raft_applied_index", "Highest applied index", status.applied);
    gauge(registry, "raft_snapshot_index", "Index of the newest durable snapshot", status.snapshot_index);
    gauge(registry, "raft_purged_index", "Highest purged index", status.purged);
    disk::metrics(registry, node);
}
