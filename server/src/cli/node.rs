//! `beanpole node`: one node of a cluster, for whoever wants to reboot its machine.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use super::admin::{self, Ask, Cluster, Failure, NO, Output, REFUSED, TIMED_OUT, YES};
use super::alarms;
use super::cluster::{is_silent, silence};
use super::scrub::scrub;

/// How often a state that is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A node that is this many entries behind, or fewer, counts as caught up: under load there is always something under way.
pub const LAG_MAX: u64 = 1_000;

/// The flags of `beanpole node`.
#[derive(Args, Debug)]
pub struct NodeArgs {
    #[command(flatten)]
    ask: Ask,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Show one node
    Status {
        /// The node's number
        id: u64,
    },
    /// Show the alarms of one node: exit code 1 if one is critical
    Health {
        /// The node's number
        id: u64,
    },
    /// Is it safe to stop this node now? Exit code 0 if it is, 4 and the reason if not
    Check {
        /// The node's number
        id: u64,
    },
    /// Take a node out of service before it is stopped: it hands over leadership and lets its clients go
    Drain {
        /// The node's number
        id: u64,
        /// Wait until no client is connected
        #[arg(long)]
        wait: bool,
        /// Seconds to wait
        #[arg(long, default_value_t = 60)]
        timeout: u64,
    },
    /// Take a node back into service; a restart does that too
    Resume {
        /// The node's number
        id: u64,
    },
    /// Look through everything on a node's disk for damage now, which is done once a week anyway
    Scrub {
        /// The node's number
        id: u64,
        /// Wait until it is done: exit code 0 if no damage is left, 1 if some is
        #[arg(long)]
        wait: bool,
        /// Seconds to wait
        #[arg(long, default_value_t = 86_400)]
        timeout: u64,
    },
    /// Wait for a node
    Wait {
        /// The node's number
        id: u64,
        /// Until it serves clients and has applied what is committed
        #[arg(long, required = true)]
        caught_up: bool,
        /// Seconds to wait
        #[arg(long, default_value_t = 300)]
        timeout: u64,
    },
}

/// Runs the verb.
pub fn run(args: &NodeArgs) -> ExitCode {
    let ask = &args.ask;
    admin::finish(match &args.verb {
        Verb::Status { id } => status(ask, *id),
        Verb::Health { id } => alarms::of_node(ask, *id),
        Verb::Check { id } => check(ask, *id),
        Verb::Drain { id, wait, timeout } => drain(ask, *id, *wait, Duration::from_secs(*timeout)),
        Verb::Resume { id } => resume(ask, *id),
        Verb::Scrub { id, wait, timeout } => scrub(ask, *id, *wait, Duration::from_secs(*timeout)),
        Verb::Wait { id, timeout, .. } => wait_caught_up(ask, *id, Duration::from_secs(*timeout)),
    })
}

fn status(ask: &Ask, id: u64) -> Result<u8, Failure> {
    let (_, cluster) = admin::cluster(ask)?;
    let node = cluster.member(id)?;
    match ask.output {
        Output::Json => println!("{:#}", serde_json::to_value(node).unwrap_or_default()),
        Output::Table => {
            println!(
                "node {} at {}: {}, clients at {}",
                node.report.id, node.address, node.role, node.report.listen
            );
            println!(
                "applied {} of {}, {} connections",
                node.report.applied,
                node.report.applied + node.lag,
                node.report.connections
            );
        }
    }
    Ok(YES)
}

/// Why it would be unsafe to stop a node now; nothing if it is safe.
pub fn objections(cluster: &Cluster, id: u64) -> Vec<String> {
    let mut objections = Vec::new();
    let voters: Vec<_> = cluster.nodes.iter().filter(|node| node.voter).collect();
    if !voters.iter().any(|node| node.report.id == id) {
        return objections;
    }
    if cluster.leader_id.is_none() {
        objections.push("there is no leader now".to_owned());
    }
    let quorum = voters.len() / 2 + 1;
    let others: Vec<_> = voters.iter().filter(|node| node.report.id != id).collect();
    let sound: Vec<_> = others
        .iter()
        .filter(|node| {
            !is_silent(node)
                && !node.report.stopping
                && node.report.leaving != node.report.id
                && node.lag <= LAG_MAX
        })
        .collect();
    if sound.len() < quorum {
        objections.push(format!(
            "node {id} is needed for a quorum: {quorum} of {} voters must go on, and without it only {} would",
            voters.len(),
            sound.len()
        ));
    }
    for node in others {
        if is_silent(node) {
            objections.push(format!("node {} does not answer", node.report.id));
        } else if node.report.stopping || node.report.leaving == node.report.id {
            objections.push(format!("node {} is being stopped", node.report.id));
        } else if node.lag > LAG_MAX {
            objections.push(format!("node {} is {} entries behind", node.report.id, node.lag));
        }
    }
    objections
}

fn check(ask: &Ask, id: u64) -> Result<u8, Failure> {
    let (_, cluster) = admin::cluster(ask)?;
    cluster.member(id)?;
    let objections = objections(&cluster, id);
    let safe = objections.is_empty();
    match ask.output {
        Output::Json => {
            println!("{}", serde_json::json!({ "node": id, "safe": safe, "reasons": objections }))
        }
        Output::Table if safe => println!("node {id} may be stopped"),
        Output::Table => println!("node {id} must not be stopped now: {}", objections.join("; ")),
    }
    Ok(if safe { YES } else { REFUSED })
}

/// The admin address of a node.
pub(super) fn address_of(ask: &Ask, id: u64) -> Result<String, Failure> {
    let (asked, cluster) = admin::cluster(ask)?;
    let node = cluster.member(id)?;
    if cluster.node_id == id {
        return Ok(asked);
    }
    if node.report.admin.is_empty() {
        return Err(Failure::new(
            admin::UNREACHABLE,
            format!("the admin address of node {id} is not known here; ask the node itself with --admin"),
        ));
    }
    Ok(node.report.admin.clone())
}

/// Takes a node out of service.
pub fn drain(ask: &Ask, id: u64, wait: bool, timeout: Duration) -> Result<u8, Failure> {
    let (_, cluster) = admin::cluster(ask)?;
    cluster.member(id)?;
    let objections = objections(&cluster, id);
    if !objections.is_empty() {
        return Err(Failure::new(
            REFUSED,
            format!("node {id} must not be drained now: {}", objections.join("; ")),
        ));
    }
    let address = address_of(ask, id)?;
    println!("{}", admin::change("PUT", &address, "/api/v1/drain")?);
    if !wait {
        return Ok(YES);
    }
    let begun = Instant::now();
    loop {
        let cluster: Cluster = admin::get(&address, "/api/v1/cluster")?;
        let node = cluster.member(id)?;
        let done = node.report.leaving == id
            && node.report.connections == 0
            && cluster.leader_id.is_some_and(|leader| leader != id);
        if done || cluster.nodes.len() == 1 && node.report.connections == 0 {
            println!("node {id} is drained and may be stopped");
            return Ok(YES);
        }
        if begun.elapsed() > timeout {
            let left = node.report.connections;
            return Err(Failure::new(
                TIMED_OUT,
                format!("node {id} still has {left} connections after {} s", timeout.as_secs()),
            ));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Takes a node back into service.
pub fn resume(ask: &Ask, id: u64) -> Result<u8, Failure> {
    println!("{}", admin::change("DELETE", &address_of(ask, id)?, "/api/v1/drain")?);
    Ok(YES)
}

fn wait_caught_up(ask: &Ask, id: u64, timeout: Duration) -> Result<u8, Failure> {
    let begun = Instant::now();
    loop {
        let why = match admin::cluster(ask) {
            Ok((_, cluster)) => {
                let node = cluster.member(id)?;
                match silence(node) {
                    Some(silence) => format!("it is {silence}"),
                    None if !node.report.ready => "it does not serve clients".to_owned(),
                    None if node.lag > LAG_MAX => format!("it is {} entries behind", node.lag),
                    None => {
                        println!("node {id} has caught up");
                        return Ok(YES);
                    }
                }
            }
            Err(failure) => failure.message,
        };
        if begun.elapsed() > timeout {
            println!("node {id} has not caught up: {why}");
            return Ok(if timeout.is_zero() { NO } else { TIMED_OUT });
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::admin::Member;
    use crate::cluster::report::Report;

    fn cluster(lags: &[(u64, Option<u64>)]) -> Cluster {
        let nodes = lags.iter().enumerate().map(|(at, (lag, seen_ms))| Member {
            voter: true,
            report: Report { id: at as u64 + 1, ready: true, ..Report::default() },
            lag: *lag,
            seen_ms: *seen_ms,
            ..Member::default()
        });
        Cluster { node_id: 1, leader_id: Some(1), ready: true, nodes: nodes.collect(), ..Cluster::default() }
    }

    #[test]
    fn one_of_three_sound_nodes_may_stop() {
        assert_eq!(
            objections(&cluster(&[(0, Some(0)), (5, Some(100)), (0, Some(100))]), 1),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_node_that_the_quorum_needs_may_not_stop() {
        for two_left in
            [[(0, Some(0)), (0, Some(9_000)), (0, Some(0))], [(0, Some(0)), (50_000, Some(0)), (0, Some(0))]]
        {
            let objections = objections(&cluster(&two_left), 3);
            assert!(objections[0].contains("needed for a quorum"), "{objections:?}");
        }
    }

    #[test]
    fn nobody_may_stop_while_another_leaves() {
        let mut cluster = cluster(&[(0, Some(0)); 3]);
        for node in &mut cluster.nodes {
            node.report.leaving = 2;
        }
        assert!(objections(&cluster, 3).iter().any(|why| why.contains("node 2 is being stopped")));
    }
}
