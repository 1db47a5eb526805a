//! The report of an import: what came over, what did not, and why.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::json;

use super::super::admin::Output;
use super::super::progress::short;

/// Where a job waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// For a worker.
    Ready,
    /// For its time.
    Delayed,
    /// For somebody to kick it.
    Buried,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Ready => "ready",
            State::Delayed => "delayed",
            State::Buried => "buried",
        })
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    jobs: u64,
    bytes: u64,
}

/// Jobs by tube and state, and everything else that is to be said at the end.
#[derive(Debug, Default)]
pub struct Account {
    rows: BTreeMap<(String, State), Sum>,
    total: Sum,
    /// Jobs that were not brought over, by reason.
    skipped: BTreeMap<String, u64>,
    /// What a person should know.
    notes: Vec<String>,
}

impl Account {
    /// One job came over (or would).
    pub fn add(&mut self, tube: &str, state: State, bytes: u64) {
        self.add_many(tube, state, 1, bytes);
    }

    /// Some jobs of a kind.
    pub fn add_many(&mut self, tube: &str, state: State, jobs: u64, bytes: u64) {
        if jobs == 0 {
            return;
        }
        let row = self.rows.entry((tube.to_owned(), state)).or_default();
        for sum in [row, &mut self.total] {
            sum.jobs += jobs;
            sum.bytes += bytes;
        }
    }

    /// Jobs that stay where they are.
    pub fn skip(&mut self, why: impl Into<String>, jobs: u64) {
        if jobs > 0 {
            *self.skipped.entry(why.into()).or_default() += jobs;
        }
    }

    /// Something to be said.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// How many jobs came over.
    pub fn jobs(&self) -> u64 {
        self.total.jobs
    }

    /// How many bytes their bodies have.
    pub fn bytes(&self) -> u64 {
        self.total.bytes
    }

    /// Whether every job came over.
    pub fn is_complete(&self) -> bool {
        self.skipped.is_empty()
    }

    /// Prints the report on standard output.
    pub fn print(&self, output: Output, dry_run: bool) {
        match output {
            Output::Json => println!("{:#}", self.to_json(dry_run)),
            Output::Table => print!("{}", self.to_text(dry_run)),
        }
    }

    fn to_json(&self, dry_run: bool) -> serde_json::Value {
        let rows = self.rows.iter().map(|((tube, state), sum)| {
            json!({"tube": tube, "state": state.to_string(), "jobs": sum.jobs, "bytes": sum.bytes})
        });
        let skipped = self.skipped.iter().map(|(why, jobs)| json!({"reason": why, "jobs": jobs}));
        json!({
            "dry_run": dry_run, "jobs": self.total.jobs, "bytes": self.total.bytes,
            "tubes": rows.collect::<Vec<_>>(), "skipped": skipped.collect::<Vec<_>>(), "notes": self.notes,
        })
    }

    fn to_text(&self, dry_run: bool) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        let width = self.rows.keys().map(|(tube, _)| tube.len()).max().unwrap_or(0).max("TUBE".len());
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<width$}  {:<8}  {:>10}  {:>12}", "TUBE", "STATE", "JOBS", "BYTES");
        for ((tube, state), sum) in &self.rows {
            let state = state.to_string();
            let _ = writeln!(text, "{tube:<width$}  {state:<8}  {:>10}  {:>12}", sum.jobs, sum.bytes);
        }
        let did = if dry_run { "to import" } else { "imported" };
        let _ = writeln!(text, "{did}: {} jobs, {}", self.total.jobs, short(self.total.bytes));
        for (why, jobs) in &self.skipped {
            let _ = writeln!(text, "not imported: {jobs} jobs: {why}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_counts_by_tube_and_state() {
        let mut account = Account::default();
        account.add("mail", State::Ready, 10);
        account.add("mail", State::Ready, 20);
        account.add("mail", State::Buried, 1);
        account.add_many("a", State::Delayed, 0, 0);
        assert!(account.is_complete());
        account.skip("too big", 2);
        assert!(!account.is_complete());
        let json = account.to_json(true);
        assert_eq!((json["jobs"].as_u64(), json["bytes"].as_u64()), (Some(3), Some(31)));
        assert_eq!(json["tubes"][0], json!({"tube": "mail", "state": "ready", "jobs": 2, "bytes": 30}));
        assert_eq!(json["skipped"][0]["jobs"], 2);
        let text = account.to_text(false);
        assert!(
            text.contains("imported: 3 jobs") && text.contains("not imported: 2 jobs: too big"),
            "{text}"
        );
        assert!(!text.contains("delayed"), "{text}");
    }
}
