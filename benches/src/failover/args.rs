//! The command line of `beanpole bench failover`.

use crate::args::parse_duration;
use crate::body::BodySize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Arguments of `bench failover`.
#[derive(Clone, Debug, clap::Args)]
pub struct FailoverArgs {
    /// The nodes: NAME=HOST:PORT of each one's port for clients
    #[arg(
        long,
        value_delimiter = ',',
        required_unless_present = "dev",
        conflicts_with = "dev",
        value_name = "NAME=ADDR"
    )]
    pub nodes: Vec<NodeAddress>,
    /// Start a local cluster for the run; faults may then name leader, follower, nN or last
    #[arg(long)]
    pub dev: bool,
    /// With --dev: how many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub dev_nodes: u16,
    /// With --dev: the beanpole program [default: this one]
    #[arg(long, value_name = "FILE")]
    pub dev_program: Option<PathBuf>,
    /// With --dev: start a node again this long after it died
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = parse_duration)]
    pub restart_after: Duration,
    /// Let a process that was stopped go on after this long (at the latest, at the end of the load)
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = parse_duration)]
    pub cont_after: Duration,
    /// Let a node that was cut off hear and be heard again after this long (at the latest, at the end of the load)
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = parse_duration)]
    pub heal_after: Duration,
    /// What goes wrong: AT:KIND:WHAT, e.g. 5s:kill:leader, 5s:stop:1234, 9s:run@n1:CMD. KIND is kill, term, stop or cont
    /// (WHAT is a pid, or with --dev leader, follower, nN or last), with --dev also cut, cut-in, cut-out (the node hears
    /// nobody, is heard by nobody, or both), heal, drain, resume and lead (it is to lead), or run (WHAT is a shell command; with
    /// --dev BEANPOLE_ADMIN names the nodes); @NAME says which node it hits. May be repeated
    #[arg(long = "fault", value_name = "AT:KIND:WHAT")]
    pub faults: Vec<Fault>,
    /// Puts per second of all producers
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: u32,
    /// Connections that put, spread over the nodes
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub producers: u32,
    /// Connections that reserve and delete, spread over the nodes
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub workers: u32,
    /// Connections that reserve, hold the job for --hold-long, and delete: do reservations survive?
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    pub holders: u32,
    /// How long a worker holds a job
    #[arg(long, default_value = "2ms", value_name = "TIME", value_parser = parse_duration)]
    pub hold: Duration,
    /// How long a holder holds a job
    #[arg(long, default_value = "3s", value_name = "TIME", value_parser = parse_duration)]
    pub hold_long: Duration,
    /// How long to put jobs
    #[arg(long, default_value = "20s", value_name = "TIME", value_parser = parse_duration)]
    pub duration: Duration,
    /// How long to wait for missing jobs at the end before they count as lost
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = parse_duration)]
    pub grace: Duration,
    /// Length of the bodies: 256, 4KiB, or a range 100..4KiB (at least 40 bytes)
    #[arg(long, default_value = "256", value_name = "SIZE")]
    pub body_size: BodySize,
    /// The jobs' time to run, whole seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub ttr: u32,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
    /// Also write the JSON report to this file
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// With --dev: NAME=VALUE for the environment of every node; {id} in it is replaced by the node's id
    #[arg(long, hide = true, value_name = "NAME=VALUE")]
    pub dev_env: Vec<String>,
    /// With --dev: more flags for every beanpole serve
    #[arg(last = true, value_name = "SERVE FLAGS")]
    pub serve_flags: Vec<String>,
}

/// A node as it is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// Its name in the report, and in `--fault`.
    pub name: String,
    /// Where its clients connect, HOST:PORT.
    pub address: String,
}

impl FromStr for NodeAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<NodeAddress, String> {
        match text.split_once('=') {
            Some((name, address)) if !name.is_empty() && address.contains(':') => {
                Ok(NodeAddress { name: name.to_owned(), address: address.to_owned() })
            }
            _ => Err(format!("'{text}' is no node; write NAME=HOST:PORT")),
        }
    }
}

/// Something that is done to the cluster at a certain time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When, from the beginning of the load.
    pub at: Duration,
    /// What is done.
    pub kind: Kind,
    /// The name of the node that it hits, if it is given.
    pub node: Option<String>,
    /// What it is done to.
    pub target: Target,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SIGKILL.
    Kill,
    /// SIGTERM: an orderly stop.
    Term,
    /// SIGSTOP: frozen, with its sockets open.
    Stop,
    /// SIGCONT.
    Cont,
    /// The node and the others do not hear each other.
    Cut,
    /// The node hears nobody.
    CutIn,
    /// Nobody hears the node.
    CutOut,
    /// All that was cut of the node is whole again.
    Heal,
    /// The node is taken out of service.
    Drain,
    /// It is taken back.
    Resume,
    /// The node is to lead.
    Lead,
    /// A shell command.
    Run,
}

impl Kind {
    const ALL: [Kind; 12] = [
        Kind::Kill,
        Kind::Term,
        Kind::Stop,
        Kind::Cont,
        Kind::Cut,
        Kind::CutIn,
        Kind::CutOut,
        Kind::Heal,
        Kind::Drain,
        Kind::Resume,
        Kind::Lead,
        Kind::Run,
    ];

    /// Whether it takes relays between the nodes.
    pub fn needs_relays(self) -> bool {
        matches!(self, Kind::Cut | Kind::CutIn | Kind::CutOut | Kind::Heal)
    }

    /// The word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Kill => "kill",
            Kind::Term => "term",
            Kind::Stop => "stop",
            Kind::Cont => "cont",
            Kind::Cut => "cut",
            Kind::CutIn => "cut-in",
            Kind::CutOut => "cut-out",
            Kind::Heal => "heal",
            Kind::Drain => "drain",
            Kind::Resume => "resume",
            Kind::Lead => "lead",
            Kind::Run => "run",
        }
    }
}

/// What it is done to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// This process.
    Pid(i32),
    /// Whoever leads then.
    Leader,
    /// The running node with the lowest id that does not lead then.
    Follower,
    /// The node with this id.
    Node(u64),
    /// The node that the fault before this one hit.
    Last,
    /// The shell.
    Command(String),
}

impl Target {
    /// Whether the cluster must be one that `--dev` started.
    pub fn needs_dev(&self) -> bool {
        match self {
            Target::Leader | Target::Follower | Target::Node(_) | Target::Last => true,
            Target::Pid(_) | Target::Command(_) => false,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Pid(pid) => write!(f, "{pid}"),
            Target::Leader => write!(f, "leader"),
            Target::Follower => write!(f, "follower"),
            Target::Node(id) => write!(f, "n{id}"),
            Target::Last => write!(f, "last"),
            Target::Command(command) => write!(f, "{command}"),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let wrong = || format!("'{text}' is no fault; write AT:KIND:WHAT, e.g. 5s:kill:leader");
        let mut parts = text.splitn(3, ':');
        let (Some(at), Some(kind), Some(what)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong());
        };
        let (kind, node) = match kind.split_once('@') {
            Some((kind, node)) => (kind, Some(node.to_owned())),
            None => (kind, None),
        };
        let kind = Kind::ALL.into_iter().find(|known| known.name() == kind).ok_or_else(wrong)?;
        let target = match kind {
            Kind::Run => Some(Target::Command(what.to_owned())),
            Kind::Kill | Kind::Term | Kind::Stop | Kind::Cont => parse_target(what),
            // Who is cut off, drained or to lead is a node that is known by more than its process.
            Kind::Cut | Kind::CutIn | Kind::CutOut | Kind::Heal | Kind::Drain | Kind::Resume | Kind::Lead => {
                parse_target(what).filter(Target::needs_dev)
            }
        };
        let target = target.ok_or_else(wrong)?;
        Ok(Fault { at: parse_duration(at)?, kind, node, target })
    }
}

fn parse_target(what: &str) -> Option<Target> {
    match what {
        "leader" => Some(Target::Leader),
        "follower" => Some(Target::Follower),
        "last" => Some(Target::Last),
        _ => match what.strip_prefix("node").or_else(|| what.strip_prefix('n')) {
            Some(id) => id.parse().ok().map(Target::Node),
            // Neither 0 nor a negative number: kill(2) would signal a whole group, or everything.
            None => what.parse().ok().filter(|pid| *pid > 1).map(Target::Pid),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        failover: FailoverArgs,
    }

    #[test]
    fn faults_are_read() {
        let fault = |text: &str| text.parse::<Fault>().unwrap();
        let seconds = Duration::from_secs;
        let kill = Fault { at: seconds(5), kind: Kind::Kill, node: None, target: Target::Leader };
        assert_eq!(fault("5s:kill:leader"), kill);
        assert_eq!(fault("1500ms:stop:node2").target, Target::Node(2));
        assert_eq!(fault("7:cont:last").target, Target::Last);
        assert_eq!(
            (fault("7:cut-in:leader").kind, fault("7:heal:n3").target),
            (Kind::CutIn, Target::Node(3))
        );
        assert_eq!(fault("7:term@a:4711").node.as_deref(), Some("a"));
        assert_eq!(fault("7:term@a:4711").target, Target::Pid(4711));
        let run = fault("1m:run:ssh a 'echo x:y'");
        assert_eq!((run.at, run.target), (seconds(60), Target::Command("ssh a 'echo x:y'".into())));
        for bad in [
            "",
            "5s",
            "5s:kill",
            "5s:hit:leader",
            "x:kill:leader",
            "5s:kill:-1",
            "5s:kill:0",
            "5s:kill:nx",
            "5s:cut:4711",
        ] {
            assert!(bad.parse::<Fault>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_nodes_are_given_or_started() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        let cli = parse("failover --nodes a=h:1,b=h:2 --fault 5s:kill:123 --fault 9s:run:true").unwrap();
        assert_eq!(cli.failover.nodes.len(), 2);
        assert_eq!(cli.failover.nodes[1], NodeAddress { name: "b".into(), address: "h:2".into() });
        assert_eq!(cli.failover.faults.len(), 2);
        assert!(parse("failover --dev").unwrap().failover.nodes.is_empty());
        for bad in ["failover", "failover --dev --nodes a=h:1", "failover --nodes h:1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
