//! What a run of random faults amounts to, in a few lines.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

/// Figures that must be 0.
const MUST_BE_ZERO: [&str; 8] = [
    "lost",
    "doubled",
    "overlapping",
    "after_delete",
    "vanished",
    "corrupted",
    "refused_done",
    "acked_cut_off",
];
/// Figures that tell how much was done, and how much of it remained unknown.
const FIGURES: [&str; 6] =
    ["acknowledged", "handouts", "handed_out_again", "put_unknown", "delete_unknown", "refused"];

/// The report of `bench failover`, and what was found in it.
#[derive(Debug)]
pub struct Summary {
    report: Value,
    clocks: bool,
}

impl Summary {
    /// Of a report. `clocks` says whether clocks could jump.
    pub fn of(report: &Value, clocks: bool) -> Summary {
        Summary { report: report.clone(), clocks }
    }

    /// Whether nothing happened that must not happen.
    pub fn is_ok(&self) -> bool {
        self.report["ok"] == true && self.wrong().is_empty() && self.states_are_equal()
    }

    fn states_are_equal(&self) -> bool {
        self.report["states"]["Ok"].is_null() && self.report["states"].get("Ok").is_some()
    }

    /// The figures that must be 0 and are not.
    fn wrong(&self) -> Vec<&'static str> {
        MUST_BE_ZERO.into_iter().filter(|name| self.report["jobs"][name] != 0).collect()
    }

    /// Of each kind of fault: how many, and the pauses of puts at the other nodes in ms, sorted.
    fn pauses(&self) -> BTreeMap<String, (usize, Vec<u64>)> {
        let mut kinds: BTreeMap<String, (usize, Vec<u64>)> = BTreeMap::new();
        for fault in self.report["faults"].as_array().into_iter().flatten() {
            let what = fault["what"].as_str().unwrap_or_default();
            let kind = match what.split_once(' ') {
                Some(("run", _)) => "clock",
                Some((kind, "leader")) if kind == "kill" || kind == "term" => &format!("{kind} leader"),
                Some((kind, _)) => kind,
                None => what,
            };
            let kind = if fault["failed"].is_null() { kind.to_owned() } else { format!("{kind}, not done") };
            let (count, pauses) = kinds.entry(kind).or_default();
            *count += 1;
            pauses.extend(fault["put"]["all_ms"].as_f64().map(|ms| ms as u64));
        }
        kinds.values_mut().for_each(|(_, pauses)| pauses.sort_unstable());
        kinds
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (report, jobs) = (&self.report, &self.report["jobs"]);
        let verdict = if self.is_ok() { "ok" } else { "VIOLATED" };
        let seconds = report["seconds"].as_f64().unwrap_or(0.0);
        writeln!(f, "chaos: {verdict} after {seconds:.0} s")?;
        for names in [&FIGURES[..], &MUST_BE_ZERO] {
            let told: Vec<String> = names.iter().map(|name| format!("{name} {}", jobs[name])).collect();
            writeln!(f, "  jobs      {}", told.join(", "))?;
        }
        let states = if self.states_are_equal() {
            "equal on all nodes".to_owned()
        } else {
            report["states"].to_string()
        };
        writeln!(f, "  states    {states}")?;
        if !self.clocks {
            writeln!(f, "  SKIPPED clock jumps: libfaketime is not installed")?;
        }
        for (kind, (count, pauses)) in self.pauses() {
            let at = |i: usize| pauses.get(i).map_or_else(|| "-".to_owned(), u64::to_string);
            let (median, longest) = (at(pauses.len() / 2), at(pauses.len().saturating_sub(1)));
            writeln!(
                f,
                "  {count:>4} x {kind:<18} put pause until the next fault: median {median} ms, longest {longest} ms"
            )?;
        }
        for (name, which) in [("errors", "not hit"), ("excused", "hit")] {
            for (what, count) in report[name].as_object().into_iter().flatten() {
                writeln!(f, "  {count:>4} x {what} ({which})")?;
            }
        }
        for finding in report["findings"].as_array().into_iter().flatten() {
            writeln!(f, "  {}", finding.as_str().unwrap_or_default())?;
        }
        match report["log"].as_str() {
            Some(log) => writeln!(f, "  log       {log}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lost: u64, states: Value) -> Value {
        let mut jobs: serde_json::Map<String, Value> =
            MUST_BE_ZERO.into_iter().map(|name| (name.to_owned(), 0.into())).collect();
        jobs.insert("lost".into(), lost.into());
        let pause = |ms: u64| serde_json::json!({ "all_ms": ms });
        serde_json::json!({
            "ok": lost == 0, "jobs": jobs, "states": states, "seconds": 10.0,
            "faults": [
                { "what": "kill leader", "failed": null, "put": pause(600) },
                { "what": "kill n1", "failed": "the node does not run", "put": pause(1) },
                { "what": "run echo +3600 > x", "failed": null, "put": pause(2) },
            ],
        })
    }

    #[test]
    fn what_must_not_be_is_a_violation() {
        let equal = || serde_json::json!({ "Ok": null });
        assert!(Summary::of(&report(0, equal()), true).is_ok());
        let lost = Summary::of(&report(1, equal()), true);
        assert!(
            !lost.is_ok() && lost.to_string().contains("VIOLATED") && lost.to_string().contains("lost 1")
        );
        for unequal in [serde_json::json!({ "Err": "differ" }), Value::Null] {
            assert!(!Summary::of(&report(0, unequal), true).is_ok());
        }
    }

    #[test]
    fn faults_are_told_by_kind() {
        let told = Summary::of(&report(0, serde_json::json!({ "Ok": null })), false).to_string();
        for line in
            ["1 x kill leader ", "1 x kill, not done", "1 x clock ", "SKIPPED clock jumps", "longest 600 ms"]
        {
            assert!(told.contains(line), "{line:?} in {told}");
        }
    }
}
