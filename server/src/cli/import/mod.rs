//! `beanpole import`: brings the jobs of a beanstalkd into a running Beanpole.
//!
//! ```text
//! binlog DIR     ──> binlog.rs: which jobs there are ──┐
//!                                                      ├──> target.rs: put, await INSERTED, bury what was buried
//! live HOST:PORT ──> source.rs: reserve, a batch ──────┘          │
//!                        └────────── delete, there <──────────────┘
//! ```
//!
//! Both go in batches: a batch is put and acknowledged as a whole before the next one begins, so that a run that is
//! interrupted can say where to go on. Job ids cannot be kept: the server gives new ones, in the order of the old.

mod account;
mod binlog;
mod from_binlog;
mod live;
mod source;
mod target;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, Subcommand};

use super::admin::{self, Failure, NO, Output};
use super::client::address;

/// The flags of `beanpole import`.
#[derive(Args, Debug)]
pub struct ImportArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Read the binlog of a stopped beanstalkd (format version 7) and put its jobs; changes nothing there
    Binlog(from_binlog::BinlogArgs),
    /// Drain a running beanstalkd: reserve there, put here, delete there; run it again to go on
    Live(live::LiveArgs),
}

/// What both verbs know.
#[derive(Args, Debug)]
struct Common {
    /// The Beanpole to put the jobs into
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:11300", value_parser = address)]
    to: String,
    /// Only look and report: put nothing, change nothing
    #[arg(long)]
    dry_run: bool,
    /// Form of the report
    #[arg(short, long, default_value = "table", value_name = "FORM")]
    output: Output,
}

/// Runs the verb.
pub fn run(args: &ImportArgs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result =
        runtime.map_err(|error| Failure::new(NO, format!("cannot start: {error}"))).and_then(|runtime| {
            runtime.block_on(async {
                let interrupt = Interrupt::listen();
                match &args.verb {
                    Verb::Binlog(args) => from_binlog::run(args, &interrupt).await,
                    Verb::Live(args) => live::run(args, &interrupt).await,
                }
            })
        });
    admin::finish(result)
}

/// Exit code of a process that the user ended.
const INTERRUPTED: i32 = 130;

/// Whether the user wants an end. The batch under way is still finished; a second Ctrl-C ends the process at once.
#[derive(Clone)]
struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    fn listen() -> Interrupt {
        let wanted = Arc::new(AtomicBool::new(false));
        let set = wanted.clone();
        tokio::spawn(async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                if set.swap(true, Ordering::Relaxed) {
                    std::process::exit(INTERRUPTED);
                }
            }
        });
        Interrupt(wanted)
    }

    fn wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
