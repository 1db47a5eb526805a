//! `beanpole bench failover --dev` as a test runs it: a local cluster, steady load, faults at given times, and the report to
//! look into.

use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

/// The report of a finished run.
#[derive(Debug)]
pub struct Report {
    json: Value,
    /// The exit code.
    code: Option<i32>,
    /// The report as it was printed, and what was said beside it.
    pub text: String,
}

/// Runs `bench failover --dev --json` with more arguments, separated by spaces. `BEANPOLE_BIN` names another binary.
pub fn run(binary: &str, arguments: &str) -> Report {
    let temporary = TempDir::new().expect("a temporary directory can be made");
    let binary = std::env::var("BEANPOLE_BIN").unwrap_or_else(|_| binary.to_owned());
    let mut bench = Command::new(&binary);
    bench.args(["bench", "failover", "--dev", "--json"]).args(arguments.split_whitespace());
    report_of(bench.env("TMPDIR", temporary.path()))
}

/// The report that a command ends with.
pub fn report_of(bench: &mut Command) -> Report {
    let out = bench.output().unwrap_or_else(|e| panic!("cannot start {bench:?}: {e}"));
    let (printed, said) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let json = serde_json::from_str(&printed).unwrap_or_else(|e| panic!("{e}: {printed}{said}"));
    let report = Report { json, code: out.status.code(), text: format!("{printed}{said}") };
    if report.code != Some(0) {
        // The lines of the nodes go with the temporary directory, so what matters of them is shown here.
        let log = report.json["log"].as_str().and_then(|path| std::fs::read_to_string(path).ok());
        eprintln!("{}", log.unwrap_or_default());
    }
    report
}

impl Report {
    /// Panics unless the run went well and the nodes' states were equal at the end: nothing lost, doubled, held by two workers
    /// or acknowledged by a node that was cut off.
    pub fn expect_nothing_wrong(&self) {
        self.expect_no_loss();
        assert_eq!(self.json["states"], serde_json::json!({ "Ok": null }), "{}", self.text);
    }

    /// Panics unless nothing was lost, doubled, held by two workers or acknowledged by a node that was cut off.
    pub fn expect_no_loss(&self) {
        assert_eq!(self.code, Some(0), "{}", self.text);
        assert_eq!(self.json["ok"], true, "{}", self.text);
    }

    /// Panics unless clients of nodes that were not hit saw no error.
    pub fn expect_no_errors_elsewhere(&self) {
        assert_eq!(self.json["errors"], serde_json::json!({}), "{}", self.text);
    }

    /// Panics unless every fault could be brought about, and was over at the end.
    pub fn expect_faults_done(&self, count: usize) {
        let faults = self.json["faults"].as_array().expect("faults are a list");
        assert_eq!(faults.len(), count, "{}", self.text);
        assert!(faults.iter().all(|fault| fault["failed"].is_null()), "{}", self.text);
    }

    /// A figure by its place, `/jobs/acknowledged`.
    pub fn figure(&self, place: &str) -> f64 {
        let value = self.json.pointer(place).and_then(Value::as_f64);
        value.unwrap_or_else(|| panic!("no figure at {place}: {}", self.text))
    }

    /// What clients of nodes that were hit saw, and how often.
    pub fn excused(&self) -> Vec<(String, u64)> {
        let seen = self.json["excused"].as_object().expect("errors are counted by what they are");
        seen.iter().map(|(what, count)| (what.clone(), count.as_u64().unwrap_or(0))).collect()
    }
}
