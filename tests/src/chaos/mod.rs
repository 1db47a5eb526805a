//! Random faults on a local cluster under load, for as long as wanted, from a seed.
//!
//! ```text
//!   seed ──► plan ──► beanpole bench failover --dev --fault ... --fault ...  ──► report ──► summary
//!                     (load on all nodes, the account of every job, states compared at the end)
//! ```
//!
//! The plan is the same for the same seed; what the threads of four processes make of it is not, so a repetition shows a rare
//! fault again often, not always.

pub mod plan;
pub mod summary;

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::extra;
use summary::Summary;

/// How long jobs may be missing at the end before they count as lost.
const GRACE: &str = "60s";
/// How long a dead node stays dead.
const RESTART_AFTER: &str = "1s";
/// How long a fault lasts that the plan does not end earlier.
const LONGEST: &str = "10s";

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How long the load and the faults go on.
    pub seconds: u64,
    /// Decides which faults, when, and whom they hit.
    pub seed: u64,
    /// Puts per second of all producers.
    pub rate: u32,
    /// Where the whole report is to be written, as JSON.
    pub report: Option<PathBuf>,
}

/// Runs `program` (the server, with all its verbs) through the faults of a seed.
///
/// # Errors
/// The program cannot be run, or does not report.
pub fn run(program: &Path, options: &Options) -> io::Result<Summary> {
    let clocks = Clocks::find()?;
    let plan = plan::make(options, clocks.as_ref().map(|clocks| clocks.directory.path()));
    let seconds = options.seconds;
    let mut command = Command::new(program);
    command
        .args(["bench", "failover", "--dev", "--json", "--grace", GRACE, "--restart-after", RESTART_AFTER])
        .args(["--cont-after", LONGEST, "--heal-after", LONGEST])
        .args(["--duration", &format!("{seconds}s"), "--rate", &options.rate.to_string()])
        .args(options.report.iter().flat_map(|file| [OsStr::new("--report"), file.as_os_str()]))
        .args(plan.iter().flat_map(|fault| ["--fault", fault]))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    if let Some(clocks) = &clocks {
        command.args(clocks.environment().iter().flat_map(|set| ["--dev-env", set]));
    }
    let out = command.output()?;
    let report = serde_json::from_slice(&out.stdout).map_err(|e| {
        let printed = String::from_utf8_lossy(&out.stdout);
        io::Error::other(format!("no report ({}): {e}: {printed}", out.status))
    })?;
    Ok(Summary::of(&report, clocks.is_some()))
}

/// Wall clocks that can be moved: each node reads how wrong its clock is from a file of its own.
pub struct Clocks {
    library: String,
    directory: TempDir,
}

impl Clocks {
    /// Clocks that are right at first; none where libfaketime is not installed.
    pub fn find() -> io::Result<Option<Clocks>> {
        let Some(library) = extra::libfaketime() else { return Ok(None) };
        let directory = TempDir::with_prefix("beanpole-clocks-")?;
        for id in 1..=9 {
            std::fs::write(directory.path().join(format!("n{id}")), "+0\n")?;
        }
        Ok(Some(Clocks { library: library.display().to_string(), directory }))
    }

    /// NAME=VALUE for every node, with {id}. Only the wall clock is moved, and the file is looked at every second.
    pub fn environment(&self) -> [String; 5] {
        let file = self.directory.path().join("n{id}").display().to_string();
        [
            format!("LD_PRELOAD={}", self.library),
            format!("FAKETIME_TIMESTAMP_FILE={file}"),
            "FAKETIME_CACHE_DURATION=1".to_owned(),
            "DONT_FAKE_MONOTONIC=1".to_owned(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        ]
    }

    /// Makes a node's wall clock wrong by so much from now on. Replaced as a whole, so that no half of a number is read.
    pub fn shift(&self, node: u64, seconds: i64) -> io::Result<()> {
        let beside = self.directory.path().join(format!("n{node}.new"));
        std::fs::write(&beside, format!("{seconds:+}\n"))?;
        std::fs::rename(beside, self.directory.path().join(format!("n{node}")))
    }
}
