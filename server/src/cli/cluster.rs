//! `beanpole cluster`: what the cluster is, and who belongs to it.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use super::admin::{self, Ask, Cluster, Failure, Member, NO, Output, REFUSED, TIMED_OUT, YES};
use super::alarms::Raised;
use super::once::{self, OnceArgs};
use super::recover::{self, RecoverArgs};
use super::roll::{self, RollArgs};
use crate::admission::State;
use crate::cluster::report::Report;
use crate::units::{Size, mib};

/// How often a state that is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A node that was not heard for longer is called silent.
pub const SILENT_MS: u64 = 3_000;

/// The flags of `beanpole cluster`.
#[derive(Args, Debug)]
pub struct ClusterArgs {
    #[command(flatten)]
    ask: Ask,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Show all nodes: role, log positions, lag, memory, disk, connections
    Status,
    /// Say whether the cluster is healthy: exit code 0 if it is, 1 if not, and why; a critical alarm is a reason
    Health {
        /// Look again and again
        #[arg(long)]
        watch: bool,
        /// With --watch: end as soon as the cluster is healthy
        #[arg(long)]
        exit_when_healthy: bool,
        /// With --exit-when-healthy: give up after this many seconds, with exit code 5
        #[arg(long, default_value_t = 300)]
        timeout: u64,
    },
    /// List the members and their addresses
    Members,
    /// Let a new node in: it copies the data, and votes once it has caught up
    Add {
        /// The new node's number, never used before
        id: u64,
        /// Where the other nodes reach it: its --peer-listen
        address: String,
        /// Leave it a learner: it copies the data but does not vote
        #[arg(long)]
        learner: bool,
        /// Seconds to wait for it to catch up
        #[arg(long, default_value_t = 600)]
        timeout: u64,
    },
    /// Take a node out for good; its number is not used again
    Remove {
        /// The node's number
        id: u64,
    },
    /// Put a new node in the place of one whose disk is lost: lets the new one in, waits until it has caught up,
    /// takes the old one out
    Replace {
        /// The lost node's number
        id: u64,
        /// The new node's number, never used before
        new_id: u64,
        /// Where the other nodes reach the new node: its --peer-listen
        address: String,
        /// Seconds to wait for it to catch up
        #[arg(long, default_value_t = 600)]
        timeout: u64,
    },
    /// Compare all nodes' states at one entry of the log: exit code 0 if they are equal, 1 if not
    Verify {
        /// Seconds to wait for all nodes
        #[arg(long, default_value_t = 30)]
        timeout: u64,
    },
    /// Reboot or upgrade all nodes, one after the other, the leader last
    Roll(RollArgs),
    /// After the majority is lost for good: one stopped node that is left goes on alone, in a new cluster
    Recover(RecoverArgs),
    /// Show, or set, how long and how many keys of put-once are known
    PutOnce(OnceArgs),
    /// Let another node lead
    TransferLeader {
        /// Which; else the one that is most up to date
        to: Option<u64>,
    },
}

/// Runs the verb.
pub fn run(args: &ClusterArgs) -> ExitCode {
    admin::finish(verb(&args.ask, &args.verb))
}

fn verb(ask: &Ask, verb: &Verb) -> Result<u8, Failure> {
    match verb {
        Verb::Status => status(ask),
        Verb::Health { watch, exit_when_healthy, timeout } => {
            health(ask, *watch, *exit_when_healthy, Duration::from_secs(*timeout))
        }
        Verb::Members => members(ask),
        Verb::Add { id, address, learner, timeout } => {
            add(ask, *id, address, *learner, Duration::from_secs(*timeout))
        }
        Verb::Remove { id } => remove(ask, *id),
        Verb::Replace { id, new_id, address, timeout } => {
            replace(ask, *id, *new_id, address, Duration::from_secs(*timeout))
        }
        Verb::Verify { timeout } => verify(ask, Duration::from_secs(*timeout)),
        Verb::Roll(args) => roll::run(ask, args),
        Verb::Recover(args) => recover::run(args),
        Verb::PutOnce(args) => once::run(ask, args),
        Verb::TransferLeader { to } => {
            let path = to.map_or("/api/v1/leader".to_owned(), |to| format!("/api/v1/leader?to={to}"));
            println!("{}", on_leader(ask, "POST", &path)?);
            Ok(YES)
        }
    }
}

/// Asks the leader's node for a change.
pub fn on_leader(ask: &Ask, method: &str, path: &str) -> Result<String, Failure> {
    let (asked, cluster) = admin::cluster(ask)?;
    let leader =
        cluster.leader().ok_or_else(|| Failure::new(NO, "there is no leader now; try again in a moment"))?;
    let address = if leader.report.id == cluster.node_id { &asked } else { &leader.report.admin };
    if address.is_empty() {
        let message = format!(
            "node {} leads, and has no admin address that is known here; give it with --admin",
            leader.report.id
        );
        return Err(Failure::new(admin::UNREACHABLE, message));
    }
    admin::change(method, address, path)
}

fn status(ask: &Ask) -> Result<u8, Failure> {
    let (address, cluster) = admin::cluster(ask)?;
    if ask.output == Output::Json {
        let json: serde_json::Value = admin::get(&address, "/api/v1/cluster")?;
        println!("{json:#}");
        return Ok(YES);
    }
    println!("cluster {}  term {}", cluster.cluster_id, cluster.term);
    if let Some(reason) = &cluster.refused {
        println!("node {} is refused: {reason}", cluster.node_id);
    }
    let head = [
        "node", "address", "role", "last", "commit", "applied", "lag", "memory", "disk", "conns", "version",
        "note",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(cluster.nodes.iter().map(|node| row(&cluster, node)));
    print_table(&rows);
    Ok(YES)
}

fn row(cluster: &Cluster, node: &Member) -> [String; 12] {
    [
        node.report.id.to_string(),
        node.address.clone(),
        node.role.clone(),
        node.report.last.to_string(),
        node.report.committed.to_string(),
        node.report.applied.to_string(),
        node.lag.to_string(),
        memory(node),
        Size(node.report.disk_bytes).to_string(),
        node.report.connections.to_string(),
        node.report.version.clone(),
        note(cluster, node),
    ]
}

/// What is used of what it may use.
fn memory(node: &Member) -> String {
    match node.report.memory_budget {
        0 => mib(node.report.memory_bytes),
        budget => format!("{} of {}", mib(node.report.memory_used), mib(budget)),
    }
}

fn note(cluster: &Cluster, node: &Member) -> String {
    if let Some((sent, total)) = node.receives {
        return format!("receives a snapshot: {} of {}", Size(sent), Size(total));
    }
    if let Some(silence) = silence(node) {
        return silence;
    }
    match &node.report {
        report if report.stopping => "stopping".to_owned(),
        report if report.leaving == report.id => "draining".to_owned(),
        report if !report.ready => "not ready".to_owned(),
        report if report.no_space => "disk full: refuses puts".to_owned(),
        report if report.damaged_segments > 0 => {
            format!("damage on its disk: {} segments to be repaired", report.damaged_segments)
        }
        report if report.stance.state == State::Closed => "no memory: puts are refused".to_owned(),
        report if report.stance.state == State::Shedding => "little memory: puts are slowed".to_owned(),
        report if report.id == cluster.node_id => "asked".to_owned(),
        _ => String::new(),
    }
}

/// Columns as wide as their widest cell; the last one is not padded.
pub fn print_table<const N: usize>(rows: &[[String; N]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

fn members(ask: &Ask) -> Result<u8, Failure> {
    let (_, cluster) = admin::cluster(ask)?;
    if ask.output == Output::Json {
        let list = cluster.nodes.iter().map(|node| {
            serde_json::json!({ "id": node.report.id, "address": node.address, "voter": node.voter, "role": node.role })
        });
        println!("{:#}", serde_json::Value::from(list.collect::<Vec<_>>()));
        return Ok(YES);
    }
    let mut rows = vec![["node", "address", "votes", "role"].map(str::to_owned)];
    for node in &cluster.nodes {
        let votes = if node.voter { "yes" } else { "no" };
        rows.push([node.report.id.to_string(), node.address.clone(), votes.to_owned(), node.role.clone()]);
    }
    print_table(&rows);
    Ok(YES)
}

/// Whether a node is not there: it cannot be reached, or nothing was heard of it for too long.
pub fn is_silent(node: &Member) -> bool {
    silence(node).is_some()
}

/// In which way a node is not there, if it is not.
pub fn silence(node: &Member) -> Option<String> {
    match node.seen_ms {
        None => Some("never seen".to_owned()),
        Some(ms) if ms > SILENT_MS => Some(format!("silent for {} s", ms / 1000)),
        Some(_) if node.unreachable => Some("not reachable".to_owned()),
        Some(_) => None,
    }
}

/// What keeps the cluster from being healthy; nothing if it is.
pub fn complaints(cluster: &Cluster) -> Vec<String> {
    let mut complaints = Vec::new();
    if let Some(reason) = &cluster.refused {
        complaints.push(format!("node {} is refused: {reason}", cluster.node_id));
    }
    if cluster.leader_id.is_none() {
        complaints.push("there is no leader".to_owned());
    } else if !cluster.ready {
        complaints.push(format!("node {} does not serve commands", cluster.node_id));
    }
    for node in cluster.nodes.iter().filter(|node| node.report.id != cluster.node_id) {
        match silence(node) {
            Some(silence) => complaints.push(format!("node {} is {silence}", node.report.id)),
            None if !node.report.ready => complaints.push(format!("node {} is not ready", node.report.id)),
            None => {}
        }
    }
    for node in cluster.nodes.iter().filter(|node| node.report.stance.state != State::Open) {
        let Report { id, memory_used, memory_budget, stance, .. } = &node.report;
        let (used, budget, state) = (mib(*memory_used), mib(*memory_budget), stance.state.as_str());
        complaints.push(format!("node {id} is {state} for puts: {used} of {budget} in use"));
    }
    complaints
}

fn health(ask: &Ask, watch: bool, exit_when_healthy: bool, timeout: Duration) -> Result<u8, Failure> {
    let begun = Instant::now();
    let mut shown = None;
    loop {
        let (complaints, alarms) = match admin::cluster(ask) {
            Ok((_, cluster)) => (complaints(&cluster), Raised::of(&cluster)),
            Err(failure) if !watch => return Err(failure),
            Err(failure) => (vec![failure.message], Raised::default()),
        };
        let healthy = complaints.is_empty() && !alarms.any_critical();
        let text = match (healthy, complaints.join("; ")) {
            (true, _) => "healthy".to_owned(),
            (false, why) if why.is_empty() => "unhealthy".to_owned(),
            (false, why) => format!("unhealthy: {why}"),
        };
        let text = std::iter::once(text).chain(alarms.lines()).collect::<Vec<_>>().join("\n");
        if shown.as_ref() != Some(&text) {
            match ask.output {
                Output::Table => println!("{text}"),
                Output::Json => {
                    let rows = serde_json::to_value(&alarms).unwrap_or_default();
                    let all =
                        serde_json::json!({ "healthy": healthy, "complaints": complaints, "alarms": rows });
                    println!("{all}");
                }
            }
            shown = Some(text);
        }
        if !watch || exit_when_healthy && healthy {
            return Ok(if healthy { YES } else { NO });
        }
        if exit_when_healthy && begun.elapsed() > timeout {
            return Err(Failure::new(TIMED_OUT, format!("still unhealthy after {} s", timeout.as_secs())));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn add(ask: &Ask, id: u64, address: &str, learner: bool, timeout: Duration) -> Result<u8, Failure> {
    println!("{}", on_leader(ask, "POST", &format!("/api/v1/members?id={id}&address={address}"))?);
    if learner {
        return Ok(YES);
    }
    promote(ask, id, timeout)
}

/// Makes a learner a voter as soon as it has caught up.
fn promote(ask: &Ask, id: u64, timeout: Duration) -> Result<u8, Failure> {
    let begun = Instant::now();
    loop {
        match on_leader(ask, "POST", &format!("/api/v1/members/{id}/promote")) {
            Ok(text) => {
                println!("{text}");
                return Ok(YES);
            }
            Err(failure) if failure.code == admin::USAGE => return Err(failure),
            Err(failure) if begun.elapsed() > timeout => {
                let message = format!("node {id} was let in, but does not vote yet: {}", failure.message);
                return Err(Failure::new(TIMED_OUT, message));
            }
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

fn remove(ask: &Ask, id: u64) -> Result<u8, Failure> {
    println!("{}", on_leader(ask, "DELETE", &format!("/api/v1/members/{id}"))?);
    Ok(YES)
}

fn replace(ask: &Ask, id: u64, new_id: u64, address: &str, timeout: Duration) -> Result<u8, Failure> {
    let (_, cluster) = admin::cluster(ask)?;
    let old = cluster.member(id)?;
    if !is_silent(old) && cluster.refused.is_none() && old.report.ready {
        let message =
            format!("node {id} is alive and well; stop it first, or use `cluster add` and `cluster remove`");
        return Err(Failure::new(REFUSED, message));
    }
    let new = cluster.nodes.iter().find(|node| node.report.id == new_id);
    if new.is_some_and(|new| new.voter) {
        // Perhaps a typo, which would only make the cluster smaller; perhaps the rest of a replacement that was interrupted.
        let message = format!(
            "node {new_id} votes already: NEW is a node that is no member yet; if it has taken the place of node {id} before, \
             what is left to do is `beanpole cluster remove {id}`"
        );
        return Err(Failure::new(REFUSED, message));
    }
    if new.is_none() {
        println!("{}", on_leader(ask, "POST", &format!("/api/v1/members?id={new_id}&address={address}"))?);
    }
    promote(ask, new_id, timeout)?;
    remove(ask, id)
}

fn verify(ask: &Ask, timeout: Duration) -> Result<u8, Failure> {
    let (address, _) = admin::cluster(ask)?;
    // Any number that was not used before; JSON readers keep 53 bits.
    let nonce = rand::random::<u64>() >> 11 | 1;
    admin::change("POST", &address, &format!("/api/v1/mark?nonce={nonce}"))?;
    let begun = Instant::now();
    loop {
        let cluster: Cluster = admin::get(&address, "/api/v1/cluster")?;
        let (marked, missing): (Vec<&Member>, Vec<&Member>) =
            cluster.nodes.iter().partition(|node| node.report.mark_nonce == nonce);
        if missing.is_empty() {
            return Ok(compare(&marked));
        }
        if begun.elapsed() > timeout {
            let ids: Vec<String> = missing.iter().map(|node| node.report.id.to_string()).collect();
            return Err(Failure::new(TIMED_OUT, format!("no answer from node {}", ids.join(", "))));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn compare(nodes: &[&Member]) -> u8 {
    for node in nodes {
        println!("node {}  entry {}  {}", node.report.id, node.report.mark_index, node.report.mark_hash);
    }
    let equal = nodes.windows(2).all(|pair| {
        (pair[0].report.mark_index, &pair[0].report.mark_hash)
            == (pair[1].report.mark_index, &pair[1].report.mark_hash)
    });
    if equal {
        println!("all nodes have the same state");
        YES
    } else {
        println!(
            "the nodes' states differ: take a backup, and replace the node that differs from the others"
        );
        NO
    }
}
