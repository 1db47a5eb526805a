//! What a run tells: as a table for people, as JSON for programs.

use super::account::Totals;
use super::clients::Log;
use super::faults::{Event, Events};
use super::pauses::{Pause, median_and_longest};
use super::run::Shared;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

/// The undisturbed time is looked at from here on; before it, connections are made.
const SETTLED_NS: u64 = 500_000_000;

/// What the load left behind.
pub struct Outcome {
    /// Of every client.
    pub logs: Vec<Log>,
    /// When the load ended, in ns.
    pub load_ns: u64,
    /// How long the drain took.
    pub drain_ns: u64,
    /// Whether every acknowledged job was settled.
    pub drained: bool,
}

/// Everything one run found out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Nothing was lost, doubled, held by two, handed out after its deletion, gone or changed; a node that was cut off
    /// acknowledged nothing; the nodes' states are equal.
    pub ok: bool,
    /// The program's version.
    pub version: &'static str,
    /// The run's id, in hexadecimal.
    pub run: String,
    /// NAME=ADDRESS.
    pub nodes: Vec<String>,
    /// How long jobs were put, in seconds.
    pub seconds: f64,
    /// How long the drain took, in seconds.
    pub drain_s: f64,
    /// Jobs acknowledged per second.
    pub puts_per_second: f64,
    /// The account.
    pub jobs: Totals,
    /// The first things that must not happen, told.
    pub findings: Vec<String>,
    /// Faults, each with what it did to the clients of the other nodes.
    pub faults: Vec<FaultReport>,
    /// The longest pauses of puts and of reserves of the faults, and the ones in the middle.
    pub pauses: Summary,
    /// The pauses before the first fault: what the rate of the load itself makes of them.
    pub undisturbed: Effect,
    /// What all clients felt from the beginning to the end, those of the nodes that were hit included.
    pub whole: Effect,
    /// By what was seen: errors of clients of nodes that nothing had happened to.
    pub errors: BTreeMap<String, u64>,
    /// By what was seen: errors of clients of nodes that something had happened to.
    pub excused: BTreeMap<String, u64>,
    /// With `--dev`: whether all nodes had the same state at the end, and what `cluster verify` said otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub states: Option<Result<(), String>>,
    /// With `--dev`: the nodes' lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<PathBuf>,
}

/// One fault and its effect.
#[derive(Clone, Debug, Serialize)]
pub struct FaultReport {
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
    /// The node that it happened to.
    pub node_name: Option<String>,
    /// What the clients of the other nodes felt of it.
    #[serde(flatten)]
    pub effect: Effect,
}

/// What clients felt in a certain time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Effect {
    /// Of how many clients (holders not counted).
    pub clients: usize,
    /// Without an acknowledged put; none if no such client was there.
    pub put: Option<Pause>,
    /// Without a received job; none if no such client was there.
    pub reserve: Option<Pause>,
    /// The longest that a put acknowledged in this time took, in milliseconds.
    pub slowest_put_ms: f64,
    /// How many times they saw an error.
    pub errors: u64,
}

/// Over all faults, in milliseconds, of all clients of nodes that were not hit.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// The longest time without an acknowledged put.
    pub put_longest_ms: f64,
    /// The median of the faults' longest times.
    pub put_median_ms: f64,
    /// The longest time without a received job.
    pub reserve_longest_ms: f64,
    /// The median of the faults' longest times.
    pub reserve_median_ms: f64,
}

impl Report {
    /// The account and the pauses of a finished run.
    pub fn new(
        shared: &Shared,
        outcome: &Outcome,
        states: Option<Result<(), String>>,
        log: Option<PathBuf>,
    ) -> Report {
        let events = shared.events.lock().clone();
        let (jobs, findings) = shared.account.lock().judge(&events);
        let faults = fault_reports(shared, &events, outcome);
        let first = faults.first().map_or(outcome.load_ns, |fault| fault.event.at_ns);
        let all: Vec<&Log> = outcome.logs.iter().collect();
        let undisturbed = effect(&all, &events, SETTLED_NS.min(first), first);
        let whole = effect(&all, &events, SETTLED_NS.min(outcome.load_ns), outcome.load_ns);
        let (errors, excused) = errors(shared, &events, &outcome.logs);
        let seconds = outcome.load_ns as f64 / 1e9;
        let ok = jobs.ok() && outcome.drained && states.as_ref().is_none_or(Result::is_ok);
        Report {
            ok,
            version: env!("CARGO_PKG_VERSION"),
            run: format!("{:016x}", shared.run),
            nodes: shared.nodes.iter().map(|node| format!("{}={}", node.name, node.address)).collect(),
            seconds,
            drain_s: outcome.drain_ns as f64 / 1e9,
            puts_per_second: jobs.acknowledged as f64 / seconds,
            jobs,
            findings,
            pauses: summary(&faults),
            faults,
            undisturbed,
            whole,
            errors,
            excused,
            states,
            log: log.filter(|_| !ok),
        }
    }

    /// Indented JSON with a final newline.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report is plain data") + "\n"
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_head(&mut out).and_then(|()| self.write_jobs(&mut out));
        out
    }

    fn write_head(&self, out: &mut String) -> std::fmt::Result {
        let (nodes, seconds, rate) = (self.nodes.join(" "), self.seconds, self.puts_per_second);
        writeln!(out, "failover: {nodes}, {seconds:.1} s, {rate:.0} puts/s\n")?;
        writeln!(
            out,
            "  {:<18} {:>8} {:<5} {:>9} | {:>9} {:>9} {:>9} | {:>9} {:>9} {:>9} | {:>9} {:>6}",
            "ms",
            "at s",
            "node",
            "back",
            "put: all",
            "worst",
            "median",
            "res.: all",
            "worst",
            "median",
            "1 put max",
            "errors"
        )?;
        write_row(out, "undisturbed", "", "", "", &self.undisturbed)?;
        for fault in &self.faults {
            let at = format!("{:.2}", fault.event.at_ns as f64 / 1e9);
            let back = fault.event.back_ns.map_or_else(
                || "-".to_owned(),
                |back| format!("{:.0}", (back - fault.event.at_ns) as f64 / 1e6),
            );
            let node = fault.node_name.as_deref().unwrap_or("-");
            write_row(out, &fault.event.what, &at, node, &back, &fault.effect)?;
            if let Some(why) = &fault.event.failed {
                writeln!(out, "  {:<18} it could not be done: {why}", "")?;
            }
        }
        write_row(out, "all, whole run", "", "", "", &self.whole)?;
        let s = &self.pauses;
        writeln!(
            out,
            "\n  pauses   put longest {:.0} ms, median {:.0} ms; reserve longest {:.0} ms, median {:.0} ms \
             (clients of nodes that were not hit)",
            s.put_longest_ms, s.put_median_ms, s.reserve_longest_ms, s.reserve_median_ms
        )
    }

    fn write_jobs(&self, out: &mut String) -> std::fmt::Result {
        let j = &self.jobs;
        let verdict = if self.ok { "ok" } else { "FAILED" };
        writeln!(
            out,
            "  jobs     {verdict}: {} acknowledged, {} lost, {} doubled, {} held by two, {} handed out after \
             DELETED, {} vanished, {} corrupted, {} acknowledged by a node that was cut off",
            j.acknowledged,
            j.lost,
            j.doubled,
            j.overlapping,
            j.after_delete,
            j.vanished,
            j.corrupted,
            j.acked_cut_off
        )?;
        writeln!(
            out,
            "           {} puts unknown ({} had happened), {} refused ({} had happened), {} deletes unknown, {} handed out \
             again; drained in {:.1} s",
            j.put_unknown,
            j.put_unknown_done,
            j.refused,
            j.refused_done,
            j.delete_unknown,
            j.handed_out_again,
            self.drain_s
        )?;
        let total = |errors: &BTreeMap<String, u64>| errors.values().sum::<u64>();
        writeln!(
            out,
            "  clients  {} errors at nodes that were not hit, {} at nodes that were",
            total(&self.errors),
            total(&self.excused)
        )?;
        for (what, count) in &self.errors {
            writeln!(out, "           {count} x {what}")?;
        }
        for finding in &self.findings {
            writeln!(out, "           {finding}")?;
        }
        match &self.states {
            None => {}
            Some(Ok(())) => writeln!(out, "  states   equal on all nodes")?,
            Some(Err(why)) => writeln!(out, "  states   NOT EQUAL: {why}")?,
        }
        match &self.log {
            Some(log) => writeln!(out, "  log      {}", log.display()),
            None => Ok(()),
        }
    }
}

fn write_row(
    out: &mut String,
    what: &str,
    at: &str,
    node: &str,
    back: &str,
    effect: &Effect,
) -> std::fmt::Result {
    let (put, reserve) = (cells(effect.put.as_ref()), cells(effect.reserve.as_ref()));
    let (slowest, errors) = (effect.slowest_put_ms, effect.errors);
    writeln!(out, "  {what:<18} {at:>8} {node:<5} {back:>9} | {put} | {reserve} | {slowest:>9.0} {errors:>6}")
}

fn cells(pause: Option<&Pause>) -> String {
    match pause {
        Some(p) => format!("{:>9.0} {:>9.0} {:>9.0}", p.all_ms, p.client_longest_ms, p.client_median_ms),
        None => format!("{:>9} {:>9} {:>9}", "-", "-", "-"),
    }
}

fn fault_reports(shared: &Shared, events: &Events, outcome: &Outcome) -> Vec<FaultReport> {
    let mut all: Vec<&Event> = events.all().iter().filter(|e| e.is_fault() || e.failed.is_some()).collect();
    all.sort_by_key(|event| event.at_ns);
    // A fault's effect is looked for until the next one, or until no more jobs are put.
    let ends = all.iter().skip(1).map(|next| next.at_ns).chain([outcome.load_ns]);
    let windows: Vec<u64> = ends.collect();
    all.iter()
        .zip(windows)
        .map(|(event, to_ns)| {
            // Those whose node was in trouble already are no witnesses either.
            let sound = |node: usize| Some(node) != event.node && !events.excuse(node, event.at_ns);
            let elsewhere = |log: &&Log| log.node_at(event.at_ns).is_some_and(sound);
            let logs: Vec<&Log> = outcome.logs.iter().filter(elsewhere).collect();
            FaultReport {
                event: (*event).clone(),
                node_name: event.node.map(|node| shared.nodes[node].name.clone()),
                effect: effect(&logs, events, event.at_ns, to_ns),
            }
        })
        .collect()
}

/// What these clients felt within `from_ns..to_ns`.
fn effect(logs: &[&Log], events: &Events, from_ns: u64, to_ns: u64) -> Effect {
    let puts: Vec<&[u64]> = logs.iter().map(|log| &log.puts[..]).filter(|times| !times.is_empty()).collect();
    let reserves: Vec<&[u64]> =
        logs.iter().map(|log| &log.reserves[..]).filter(|times| !times.is_empty()).collect();
    let within = |at: &u64| (from_ns..to_ns).contains(at);
    let answered = logs.iter().flat_map(|log| &log.put_times).filter(|(sent, took)| within(&(sent + took)));
    let slowest = answered.map(|(_, took)| *took).max();
    let troubles = logs.iter().flat_map(|log| &log.troubles);
    let errors = troubles.filter(|t| within(&t.at_ns) && !events.excuse(t.node, t.at_ns)).count();
    Effect {
        clients: puts.len() + reserves.len(),
        put: Pause::of(&puts, from_ns, to_ns),
        reserve: Pause::of(&reserves, from_ns, to_ns),
        slowest_put_ms: slowest.unwrap_or(0) as f64 / 1e6,
        errors: errors as u64,
    }
}

fn summary(faults: &[FaultReport]) -> Summary {
    let hit = || faults.iter().filter(|fault| fault.event.failed.is_none());
    let (put_median_ms, put_longest_ms) =
        median_and_longest(hit().filter_map(|f| Some(f.effect.put.as_ref()?.all_ms)));
    let (reserve_median_ms, reserve_longest_ms) =
        median_and_longest(hit().filter_map(|f| Some(f.effect.reserve.as_ref()?.all_ms)));
    Summary { put_longest_ms, put_median_ms, reserve_longest_ms, reserve_median_ms }
}

type ErrorCounts = BTreeMap<String, u64>;

/// What clients saw, apart by whether their node was in trouble.
fn errors(shared: &Shared, events: &Events, logs: &[Log]) -> (ErrorCounts, ErrorCounts) {
    let (mut errors, mut excused) = (ErrorCounts::new(), ErrorCounts::new());
    for trouble in logs.iter().flat_map(|log| &log.troubles) {
        let name = format!("{} at {}", trouble.what, shared.nodes[trouble.node].name);
        let counts = if events.excuse(trouble.node, trouble.at_ns) { &mut excused } else { &mut errors };
        *counts.entry(name).or_default() += 1;
    }
    (errors, excused)
}
