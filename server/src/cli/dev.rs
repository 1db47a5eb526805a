//! `beanpole dev`: tools for trying things out on one machine. Nothing here is for production.

mod child;
mod cluster;
mod lines;
mod plan;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

/// Exit code of a cluster that could not be started.
const EXIT_REFUSED: u8 = 2;

/// What to try.
#[derive(Args, Debug)]
pub struct DevArgs {
    #[command(subcommand)]
    verb: DevVerb,
}

#[derive(Subcommand, Debug)]
enum DevVerb {
    /// Run a throw-away cluster of local processes until Ctrl-C, e.g. to see what happens when a node dies
    Cluster(ClusterArgs),
    /// Become a server that dies with the process that started it
    #[command(hide = true)]
    Child(child::ChildArgs),
}

/// Arguments of `beanpole dev cluster`.
#[derive(Args, Debug)]
struct ClusterArgs {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// First of 3 ports per node: those for clients, then those for admin HTTP, then those between nodes [default: free
    /// ones between 21300 and 31000]
    #[arg(long, value_name = "PORT")]
    base_port: Option<u16>,
    /// Keep the data here, and go on with what is here from an earlier run [default: a new directory that is removed at the
    /// end]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Start a node again this long after it died (e.g. 3s) [default: never]
    #[arg(long, value_name = "TIME", value_parser = beanpole_bench::args::parse_duration)]
    restart_after: Option<Duration>,
    /// End when standard input is closed, so that the cluster does not outlive a program that runs it
    #[arg(long, hide = true)]
    end_with_stdin: bool,
    /// Tell the nodes to connect to each other at another port each, at which somebody else is to listen and to pass on to the
    /// node's own
    #[arg(long, hide = true)]
    relays: bool,
    /// NAME=VALUE for the environment of every node; {id} in it is replaced by the node's id
    #[arg(long, hide = true, value_name = "NAME=VALUE")]
    node_env: Vec<String>,
    /// More flags for every `beanpole serve`
    #[arg(last = true, value_name = "SERVE FLAGS")]
    serve_flags: Vec<String>,
}

/// Runs one of the verbs.
pub fn run(args: &DevArgs) -> ExitCode {
    match &args.verb {
        DevVerb::Cluster(args) => match cluster::run(args) {
            Ok(code) => code,
            Err(refusal) => {
                eprintln!("beanpole: {refusal}");
                ExitCode::from(EXIT_REFUSED)
            }
        },
        DevVerb::Child(args) => child::become_server(args),
    }
}
