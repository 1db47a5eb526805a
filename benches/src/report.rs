//! The report of a run: as JSON for programs, as a table for people.

use crate::disk::DiskWrites;
use crate::environment::Environment;
use crate::ledger::Counts;
use crate::meter::Summary;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Everything one run found out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The program's version.
    pub version: &'static str,
    /// `put`, `cycle` or `work`.
    pub mode: &'static str,
    /// How the load was applied, in words: these are closed loops.
    pub load: String,
    /// The run's id, in hexadecimal: part of its tubes' names and of every body.
    pub run: String,
    /// The server's address.
    pub address: String,
    /// When the run began, in seconds since 1970.
    pub started_unix_s: u64,
    /// What was asked for.
    pub settings: Settings,
    /// The length of the measured window, in seconds.
    pub seconds: f64,
    /// By command (and `cycle`, `end_to_end`): rates and latencies within the window.
    pub operations: BTreeMap<&'static str, Summary>,
    /// Replies that are no success, and lost connections, of the whole run.
    pub errors: BTreeMap<String, u64>,
    /// What the measuring itself cost, within the window.
    pub client: ClientCost,
    /// What the server says of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerFacts>,
    /// What the servers wrote to their disks within the window, where they tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskWrites>,
    /// Whether every job was accounted for.
    pub verification: Verification,
    /// The machine.
    pub environment: Environment,
}

/// What was asked for.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// Connections of all roles.
    pub connections: usize,
    /// Of them, connections that put.
    pub producers: usize,
    /// Of them, connections that reserve.
    pub workers: usize,
    /// Puts a producer may have unanswered.
    pub pipeline: u32,
    /// Lengths of the bodies, in bytes.
    pub body_size: String,
    /// Number of tubes.
    pub tubes: usize,
    /// The first tube's name.
    pub tube: String,
    /// Seconds to measure (not used with a count).
    pub duration_s: f64,
    /// Seconds before measuring (not used with a count).
    pub warmup_s: f64,
    /// The exact number of puts, if given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The jobs' time to run, in seconds.
    pub ttr_s: u32,
    /// Jobs that may be on the way before producers pause; 0 = no bound.
    pub backlog: u64,
    /// Whether the jobs were left in place.
    pub keep: bool,
}

/// The load generator's own cost within the measured window.
#[derive(Clone, Debug, Serialize)]
pub struct ClientCost {
    /// Seconds of processor time in its own code.
    pub cpu_user_s: f64,
    /// Seconds of processor time in the kernel for it.
    pub cpu_system_s: f64,
    /// Replies read.
    pub round_trips: u64,
    /// Processor time per reply, in microseconds.
    pub cpu_us_per_round_trip: f64,
}

/// From the server's `stats`, before and after the run.
#[derive(Clone, Debug, Serialize)]
pub struct ServerFacts {
    /// Its version.
    pub version: String,
    /// Its process id (of another machine perhaps).
    pub pid: u64,
    /// Processor time it used during the whole run, drain included, in seconds; from `rusage-utime` and
    /// `-stime`.
    pub cpu_s: f64,
}

/// The account of all jobs.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    /// Some jobs were put, none was lost, doubled or corrupted, none vanished from its holder, and a count was reached.
    pub ok: bool,
    /// How it was checked: by taking every job out, or by the tubes' counts.
    pub method: String,
    /// Acknowledged jobs that never came.
    pub lost: u64,
    /// All totals.
    #[serde(flatten)]
    pub counts: Counts,
    /// Seconds the final drain took.
    pub drain_s: f64,
    /// The first few errors, described; and why the account could not be made, if so.
    pub findings: Vec<String>,
}

impl Report {
    /// The report as indented JSON with a final newline.
    pub fn json(&self) -> String {
        let mut text =
            serde_json::to_string_pretty(self).expect("a report holds no map with keys that are not text");
        text.push('\n');
        text
    }

    /// The report for people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        self.write_table(&mut out).expect("writing to a string does not fail");
        out
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        let s = &self.settings;
        writeln!(out, "bench {}  {}  run {}", self.mode, self.address, self.run)?;
        writeln!(out, "  load    {}", self.load)?;
        writeln!(
            out,
            "          {} connections, bodies of {} bytes, {} tube(s), {:.2} s measured",
            s.connections, s.body_size, s.tubes, self.seconds
        )?;
        let env = &self.environment;
        writeln!(out, "  here    {} x {}, {}", env.cpus, env.cpu, env.kernel)?;
        if let Some(sync) = &env.fdatasync {
            let (p50, p99) = (sync.p50_us, sync.p99_us);
            writeln!(out, "  disk    fdatasync in {}: p50 {p50:.0} us, p99 {p99:.0} us", sync.directory)?;
        }
        writeln!(out)?;
        self.write_operations(out)?;
        let c = &self.client;
        writeln!(
            out,
            "\n  client  {:.2} s user + {:.2} s system for {} round trips: {:.2} us each",
            c.cpu_user_s, c.cpu_system_s, c.round_trips, c.cpu_us_per_round_trip
        )?;
        if let Some(server) = &self.server {
            writeln!(
                out,
                "  server  version {}, {:.2} s of processor time in all",
                server.version, server.cpu_s
            )?;
        }
        if let Some(disk) = &self.disk {
            let megabytes = |bytes: u64| bytes as f64 / 1e6;
            writeln!(
                out,
                "  disk    {:.1} MB written for {:.1} MB of log, {:.2} bytes for each ({} node(s))",
                megabytes(disk.written_bytes),
                megabytes(disk.logged_bytes),
                disk.amplification,
                disk.nodes
            )?;
        }
        for (name, count) in &self.errors {
            writeln!(out, "  error   {name}: {count}")?;
        }
        self.write_verification(out)
    }

    fn write_operations(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "  {:<11} {:>11} {:>10} | us: {:>8} {:>8} {:>8} {:>9} {:>9}",
            "", "count", "per s", "p50", "p90", "p99", "p99.9", "max"
        )?;
        for (name, summary) in &self.operations {
            let l = &summary.latency_us;
            writeln!(
                out,
                "  {:<11} {:>11} {:>10.0} | {:>12.1} {:>8.1} {:>8.1} {:>9.1} {:>9.1}",
                name, summary.count, summary.per_second, l.p50, l.p90, l.p99, l.p999, l.max
            )?;
        }
        Ok(())
    }

    fn write_verification(&self, out: &mut String) -> std::fmt::Result {
        let v = &self.verification;
        let c = &v.counts;
        let verdict = if v.ok { "ok" } else { "FAILED" };
        writeln!(
            out,
            "  jobs    {verdict}: {} acknowledged, {} lost, {} doubled, {} corrupted, {} vanished ({})",
            c.acknowledged, v.lost, c.doubled, c.corrupted, c.vanished, v.method
        )?;
        let rare = [
            ("refused", c.refused),
            ("put outcome unknown", c.put_unknown),
            ("delete outcome unknown", c.delete_unknown),
            ("redelivered after a lost connection", c.redelivered),
            ("of other runs, deleted", c.leftovers),
            ("of other programs, buried", c.foreign),
        ];
        for (name, count) in rare.iter().filter(|(_, count)| *count > 0) {
            writeln!(out, "          {count} {name}")?;
        }
        for finding in &v.findings {
            writeln!(out, "          {finding}")?;
        }
        Ok(())
    }
}
