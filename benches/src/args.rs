//! The command line of `beanpole bench`.

use crate::body::BodySize;
use crate::environment;
use crate::failover::FailoverArgs;
use std::path::PathBuf;
use std::time::Duration;

/// Puts load on any server of the beanstalkd protocol, measures it, and checks every job.
///
/// Exit codes: 0 all well, 1 a job was lost, doubled or corrupted (or the run did not reach its count), 2
/// usage, 3 the server cannot be reached.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    /// What kind of load.
    #[command(subcommand)]
    pub what: What,
}

/// Load on one server, or on a cluster that loses nodes.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum What {
    /// Load on one server.
    #[command(flatten)]
    Load(Mode),
    /// Steady load on all nodes of a cluster while nodes die: is a job lost, is one with two workers, how long is the pause
    Failover(FailoverArgs),
}

/// The kinds of load. All are closed loops: a connection waits for answers before it sends more.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Mode {
    /// Every connection puts jobs, with up to --pipeline of them unanswered
    Put(PutArgs),
    /// Every connection puts, reserves and deletes, one command at a time
    Cycle(CycleArgs),
    /// Producers put while workers reserve and delete; measures the time from put to receipt
    Work(WorkArgs),
}

impl Mode {
    /// The arguments all modes share.
    pub fn common(&self) -> &CommonArgs {
        match self {
            Mode::Put(put) => &put.common,
            Mode::Cycle(cycle) => &cycle.common,
            Mode::Work(work) => &work.common,
        }
    }

    /// The word on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Mode::Put(_) => "put",
            Mode::Cycle(_) => "cycle",
            Mode::Work(_) => "work",
        }
    }
}

/// Arguments of `bench put`.
#[derive(Clone, Debug, clap::Args)]
pub struct PutArgs {
    /// Connections, each a producer
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub connections: u32,
    /// Puts a connection may have unanswered
    #[arg(long, default_value_t = 1, value_name = "DEPTH", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub pipeline: u32,
    /// Put exactly this many jobs over all connections, however long it takes (then --duration and --warmup
    /// are not used)
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Leave the jobs in place and compare the tubes' counts, instead of taking out and checking every job
    #[arg(long)]
    pub keep: bool,
    /// Arguments of every mode.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Arguments of `bench cycle`.
#[derive(Clone, Debug, clap::Args)]
pub struct CycleArgs {
    /// Connections, each with a loop of its own
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub connections: u32,
    /// Arguments of every mode.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Arguments of `bench work`.
#[derive(Clone, Debug, clap::Args)]
pub struct WorkArgs {
    /// Connections that put
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub producers: u32,
    /// Connections that reserve and delete
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub workers: u32,
    /// Producers pause while this many jobs are sent and not received, so that the latency is the server's and
    /// not the length of a backlog; 0 = never [default: as many as there are workers]
    #[arg(long, value_name = "JOBS")]
    pub backlog: Option<u64>,
    /// Puts a producer may have unanswered
    #[arg(long, default_value_t = 1, value_name = "DEPTH", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub pipeline: u32,
    /// Arguments of every mode.
    #[command(flatten)]
    pub common: CommonArgs,
}

impl WorkArgs {
    /// Jobs that may be on the way before producers pause; 0 = any number.
    pub fn backlog(&self) -> u64 {
        self.backlog.unwrap_or(u64::from(self.workers))
    }
}

/// Arguments of every mode.
#[derive(Clone, Debug, clap::Args)]
pub struct CommonArgs {
    /// The server: HOST:PORT, or unix:/path; of a cluster all nodes, separated by commas: the connections are spread over them,
    /// and what is asked once is asked of the first
    #[arg(long, default_value = "127.0.0.1:11300", value_delimiter = ',')]
    pub addr: Vec<String>,
    /// Length of the bodies: 256, 4KiB, or a range 100..4KiB (at least 40 bytes)
    #[arg(long, default_value = "256", value_name = "SIZE")]
    pub body_size: BodySize,
    /// Spread the jobs over this many tubes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub tubes: u32,
    /// Use this tube (with --tubes: NAME-0, NAME-1, ...) instead of new ones named after the run; jobs of
    /// other runs found there are deleted, jobs of other programs are buried
    #[arg(long, value_name = "NAME")]
    pub tube: Option<String>,
    /// How long to measure (5s, 500ms, 2m)
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub duration: Duration,
    /// How long to run before measuring
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    pub warmup: Duration,
    /// How long to wait for missing answers and jobs at the end before they count as lost
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub grace: Duration,
    /// The jobs' time to run, whole seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub ttr: u32,
    /// What to print on standard output
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Also write the JSON report to this file
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Admin addresses of the nodes, for what they write to their disks [default: 127.0.0.1:11380 for the default server]
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub admin: Vec<String>,
    /// Measure this directory's fdatasync first, for the report
    #[arg(long, value_name = "DIR")]
    pub fsync_dir: Option<PathBuf>,
}

/// What is printed on standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs: the whole report.
    Json,
}

/// Reads `5s`, `500ms`, `2m`, `1h`; a bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no duration; write 5s, 500ms, 2m or 1h");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let scale_ms: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(scale_ms)
        .filter(|ms| *ms <= DURATION_MS_MAX)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("'{text}' is more than 30 days"))
}

const DURATION_MS_MAX: u64 = 30 * 24 * 3_600_000;

/// One run, as decided from the arguments: what the load loop is told.
#[derive(Clone, Debug)]
pub struct Plan {
    /// A number no other run has: in every body and in the names of the tubes.
    pub run: u64,
    /// The tubes' names.
    pub tubes: Vec<String>,
    /// Whether the tubes are this run's alone, so that anything strange in them is an error.
    pub own_tubes: bool,
    /// The roles of the connections, in order.
    pub roles: Vec<Role>,
    /// Lengths of the bodies.
    pub body_size: BodySize,
    /// Time to run of the jobs, in seconds.
    pub ttr: u32,
    /// The number of puts to send, instead of a duration.
    pub count: Option<u64>,
    /// Jobs that may be sent and not received before producers pause.
    pub backlog: u64,
}

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Puts, with up to `pipeline` unanswered, pausing at the backlog if `paced`.
    Produce {
        /// Puts that may be unanswered.
        pipeline: u32,
        /// Whether the backlog holds it up.
        paced: bool,
    },
    /// Puts, reserves and deletes in turn.
    Cycle,
    /// Reserves (waiting) and deletes in turn.
    Work,
    /// Reserves without waiting and deletes, until the tubes are empty.
    Drain,
}

impl Plan {
    /// The plan for `mode`, under a new run id.
    pub fn new(mode: &Mode) -> Plan {
        let common = mode.common();
        let run = environment::random_id();
        let base = common.tube.clone().unwrap_or_else(|| format!("bench-{run:016x}"));
        let tubes = match common.tubes {
            1 => vec![base],
            n => (0..n).map(|i| format!("{base}-{i}")).collect(),
        };
        let (roles, count, backlog) = match mode {
            Mode::Put(put) => {
                let role = Role::Produce { pipeline: put.pipeline, paced: false };
                (vec![role; put.connections as usize], put.count, 0)
            }
            Mode::Cycle(cycle) => (vec![Role::Cycle; cycle.connections as usize], None, 0),
            Mode::Work(work) => {
                let mut roles = vec![Role::Work; work.workers as usize];
                let producer = Role::Produce { pipeline: work.pipeline, paced: work.backlog() > 0 };
                roles.resize(roles.len() + work.producers as usize, producer);
                (roles, None, work.backlog())
            }
        };
        Plan {
            run,
            tubes,
            own_tubes: common.tube.is_none(),
            roles,
            body_size: common.body_size.clone(),
            ttr: common.ttr,
            count,
            backlog,
        }
    }

    /// The tubes of the `nth` of `of` connections of one role: one of few tubes, or a share of many.
    pub fn share(&self, nth: usize, of: usize) -> Vec<u32> {
        let tubes = u32::try_from(self.tubes.len()).expect("at most a million tubes");
        if self.tubes.len() <= of {
            vec![u32::try_from(nth).expect("at most 100,000 connections") % tubes]
        } else {
            (0..tubes).skip(nth).step_by(of).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        bench: BenchArgs,
    }

    #[test]
    fn the_command_line_is_read() {
        let cli = Cli::try_parse_from([
            "bench",
            "put",
            "--pipeline",
            "100",
            "--count",
            "1000000",
            "--keep",
            "--body-size",
            "1KiB",
            "-o",
            "json",
        ])
        .unwrap();
        let What::Load(mode) = &cli.bench.what else { panic!("load") };
        let Mode::Put(put) = mode else { panic!("put") };
        assert_eq!((put.pipeline, put.count, put.keep), (100, Some(1_000_000), true));
        assert_eq!(put.common.output, Output::Json);
        let What::Load(mode) = &cli.bench.what else { panic!("load") };
        let plan = Plan::new(mode);
        assert_eq!(plan.roles, vec![Role::Produce { pipeline: 100, paced: false }; 64]);
        assert!(plan.own_tubes && plan.tubes.len() == 1 && plan.tubes[0].starts_with("bench-"));
        for bad in
            [&["bench"][..], &["bench", "put", "--body-size", "3"], &["bench", "cycle", "--duration", "1x"]]
        {
            assert!(Cli::try_parse_from(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn durations_are_read() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("7"), Ok(Duration::from_secs(7)));
        for bad in ["", "s", "-1s", "1.5s", "99999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_tube_has_a_connection_and_every_connection_a_tube() {
        let cli = Cli::try_parse_from(["bench", "cycle", "--tubes", "10"]).unwrap();
        let What::Load(mode) = &cli.bench.what else { panic!("load") };
        let plan = Plan::new(mode);
        for connections in [1, 3, 10, 64] {
            let mut seen = [false; 10];
            for nth in 0..connections {
                let share = plan.share(nth, connections);
                assert!(!share.is_empty());
                share.iter().for_each(|t| seen[*t as usize] = true);
            }
            assert!(seen.iter().all(|s| *s), "{connections}");
        }
    }
}
