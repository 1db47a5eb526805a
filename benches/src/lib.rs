//! The load generator behind `beanpole bench`: drives any server of the beanstalkd protocol, measures it, and
//! proves that no job was lost, doubled or corrupted.
//!
//! - [`args`] is the command line and the plan made of it; [`session`] carries a plan out.
//! - [`load`] is the loop over all connections ([`link`](mod@link)), on one thread and without an allocation
//!   per operation: the generator shares the machine with the server it measures.
//! - [`body`] and [`ledger`] are the proof: every body says what it is, every job's fate is written down.
//! - [`meter`], [`environment`] and [`report`] are what is told at the end.
//! - [`disk`] asks the nodes, over [`admin`], what they wrote to their disks meanwhile.
//! - [`failover`] is another kind of run: steady load on a cluster while its nodes die.

pub mod admin;
pub mod args;
pub mod body;
pub mod disk;
pub mod environment;
pub mod failover;
pub mod ledger;
pub mod link;
pub mod load;
pub mod meter;
pub mod report;
pub mod session;

pub use args::BenchArgs;
pub use report::Report;

use args::{Output, What};
use session::RunError;
use std::process::ExitCode;

/// A job was lost, doubled or corrupted, or the run fell short of its count.
const EXIT_FAILED: u8 = 1;
/// The arguments make no sense.
const EXIT_USAGE: u8 = 2;
/// The server cannot be reached.
const EXIT_UNREACHABLE: u8 = 3;

/// Carries out `args`, prints the report on standard output, and says how it went: 0 all well, 1 a job was
/// lost, doubled or corrupted, 2 usage, 3 the server cannot be reached.
///
/// Runs on the calling thread until the load is over. Must not be called from within a tokio runtime.
pub fn run(args: BenchArgs) -> ExitCode {
    let mode = match args.what {
        What::Load(mode) => mode,
        What::Failover(args) => return failover::run(&args),
    };
    let common = mode.common();
    let report = match session::measure(&mode) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("bench: {error}");
            return ExitCode::from(exit_code(&error));
        }
    };
    match common.output {
        Output::Table => print!("{}", report.table()),
        Output::Json => print!("{}", report.json()),
    }
    if let Some(path) = &common.report
        && let Err(error) = std::fs::write(path, report.json())
    {
        eprintln!("bench: cannot write the report to {}: {error}", path.display());
        return ExitCode::from(EXIT_USAGE);
    }
    if report.verification.ok { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) }
}

fn exit_code(error: &RunError) -> u8 {
    match error {
        RunError::Usage(_) | RunError::Fsync { .. } | RunError::Runtime(_) => EXIT_USAGE,
        RunError::Load(_) | RunError::Connect(_) | RunError::Stats(_) => EXIT_UNREACHABLE,
    }
}
