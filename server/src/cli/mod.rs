//! The command line: one enum, one arm per verb.

mod admin;
mod alarms;
mod backup;
mod client;
mod cluster;
mod conns;
mod dev;
mod import;
mod jobs;
mod node;
mod once;
mod policy;
mod progress;
mod put;
mod recover;
mod roll;
mod scrub;
mod segment;
mod tube;
mod work;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::ServeArgs;
use jobs::Words;

/// A durable job queue that speaks the beanstalkd protocol.
#[derive(Parser, Debug)]
#[command(name = "beanpole", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Run a server: one durable node, no configuration needed
    Serve(ServeArgs),
    /// Put load on any server of the beanstalkd protocol and verify that no job is lost, doubled or altered
    Bench(beanpole_bench::BenchArgs),
    /// Look at a cluster, and change who belongs to it
    Cluster(cluster::ClusterArgs),
    /// One node of a cluster: is it safe to stop, drain, resume, wait
    Node(node::NodeArgs),
    /// Put jobs: one for each line of standard input, or a file
    Put(put::PutArgs),
    /// Take a job and print it
    Reserve(jobs::ReserveArgs),
    /// Delete jobs by their numbers
    Delete(jobs::DeleteArgs),
    /// Make buried or delayed jobs ready
    Kick(jobs::KickArgs),
    /// Put a job aside until it is kicked
    Bury(jobs::BuryArgs),
    /// Print a job and leave it where it is
    Peek(jobs::PeekArgs),
    /// Counters of the server, a tube or a job
    Stats(jobs::StatsArgs),
    /// Run a command for each job: its exit code says whether the job is deleted, tried again or buried
    Work(work::WorkArgs),
    /// Tubes: list, show, pause; many jobs at once: purge, move, kick; limits and rules
    Tube(tube::TubeArgs),
    /// Who is connected and who does most, in the whole cluster; close connections; bans
    Conns(conns::ConnsArgs),
    /// Look at the log of a stopped server
    Segment(segment::SegmentArgs),
    /// A consistent copy of a running node in one file, its check, and a new node made from it
    Backup(backup::BackupArgs),
    /// Bring the jobs of a beanstalkd into a running Beanpole
    Import(import::ImportArgs),
    /// Try things out on one machine: a throw-away cluster
    Dev(dev::DevArgs),
}

/// Parses the process's arguments and runs the verb.
pub fn main() -> ExitCode {
    match Cli::parse().verb {
        Verb::Serve(args) => crate::serve::main(&args),
        Verb::Bench(args) => beanpole_bench::run(args),
        Verb::Cluster(args) => {
            end_with_the_reader();
            cluster::run(&args)
        }
        Verb::Node(args) => {
            end_with_the_reader();
            node::run(&args)
        }
        Verb::Tube(args) => {
            end_with_the_reader();
            tube::run(&args)
        }
        Verb::Conns(args) => {
            end_with_the_reader();
            conns::run(&args)
        }
        Verb::Put(args) => put::run(&args),
        Verb::Reserve(args) => jobs::run(&Words::Reserve(&args)),
        Verb::Delete(args) => jobs::run(&Words::Delete(&args)),
        Verb::Kick(args) => jobs::run(&Words::Kick(&args)),
        Verb::Bury(args) => jobs::run(&Words::Bury(&args)),
        Verb::Peek(args) => jobs::run(&Words::Peek(&args)),
        Verb::Stats(args) => {
            end_with_the_reader();
            jobs::run(&Words::Stats(&args))
        }
        Verb::Work(args) => work::run(&args),
        Verb::Segment(args) => segment::run(&args),
        Verb::Backup(args) => backup::run(&args),
        Verb::Import(args) => import::run(&args),
        Verb::Dev(args) => dev::run(&args),
    }
}

/// What only prints ends quietly when nobody reads on, as in `beanpole cluster status | head`.
fn end_with_the_reader() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: no handler is installed, only the system's own reaction restored, before any other thread runs.
    // It cannot fail for a signal that exists.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    /// clap checks its own rules (no short flag twice, and so on) only in debug builds, when a command line is parsed.
    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn beanstalkd_flags_are_understood() {
        use clap::Parser;
        let line =
            ["beanpole", "serve", "-l", "0.0.0.0", "-p", "11301", "-z", "1MiB", "-b", "/tmp/x", "-V", "-V"];
        let super::Verb::Serve(args) = super::Cli::try_parse_from(line).unwrap().verb else {
            panic!("serve")
        };
        assert_eq!((args.port, args.verbose), (Some(11301), 2));
    }
}
