//! The Beanpole server: a durable job queue that speaks the beanstalkd protocol.
//!
//! `ARCHITECTURE.md` at the top of the repository is the map. The way of a command: [`net`] reads it, [`gateway`] appends it
//! to a batch, [`leader`] (on this node or another) merges batches into an entry, [`node`] proposes it to the log,
//! [`queue`] applies it
//! when it is committed, and the gateway replies.

use std::process::ExitCode;

mod admin;
mod admission;
mod cli;
mod clock;
mod cluster;
mod config;
pub mod embedded;
mod gateway;
mod leader;
mod net;
mod node;
mod offline;
pub mod queue;
mod serve;
mod units;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Runs the command line of the process and answers its exit code: 0 yes, 1 no or failed, 2 usage or refused start, 3
/// unreachable, 4 refused because unsafe, 5 timed out.
pub fn main() -> ExitCode {
    cli::main()
}
