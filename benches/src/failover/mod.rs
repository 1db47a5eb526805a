//! `beanpole bench failover`: steady load on all nodes of a cluster while nodes die, and an account of every job.
//!
//! - [`args`] is the command line; [`run`](mod@run) carries a run out.
//! - [`clients`] are the load: a thread and a blocking connection ([`wire`]) each, few and steady.
//! - [`hand`] does the harm, [`faults`] knows which client's trouble it explains; [`dev`] is the local cluster to harm, and
//!   [`cables`] are what can be cut between its nodes.
//! - [`account`] and [`pauses`] are the judgement, [`report`] tells it.
//! - [`crate::admin`] and [`dev_cluster`] are what is asked of nodes and of a local cluster; the program that runs one uses
//!   them, too.

pub mod account;
pub mod args;
pub mod cables;
pub mod clients;
pub mod dev;
pub mod dev_cluster;
pub mod faults;
pub mod hand;
pub mod pauses;
pub mod report;
pub mod run;
pub mod wire;

pub use args::FailoverArgs;

use run::RunError;
use std::process::ExitCode;

/// Something happened that must not happen.
const EXIT_FAILED: u8 = 1;
/// The arguments make no sense.
const EXIT_USAGE: u8 = 2;
/// A node cannot be reached.
const EXIT_UNREACHABLE: u8 = 3;

/// Carries out `args`, prints the report on standard output, and says how it went: 0 all well, 1 a job was lost, doubled,
/// held by two or changed, 2 usage, 3 a node cannot be reached.
pub fn run(args: &FailoverArgs) -> ExitCode {
    let report = match run::measure(args) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("bench: {error}");
            return ExitCode::from(match error {
                RunError::Usage(_) => EXIT_USAGE,
                RunError::Dev(_) | RunError::Unreachable { .. } => EXIT_UNREACHABLE,
            });
        }
    };
    print!("{}", if args.json { report.json() } else { report.table() });
    if let Some(path) = &args.report
        && let Err(error) = std::fs::write(path, report.json())
    {
        eprintln!("bench: cannot write the report to {}: {error}", path.display());
        return ExitCode::from(EXIT_USAGE);
    }
    if report.ok { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) }
}
