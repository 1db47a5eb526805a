//! `beanpole cluster roll`: takes the nodes out of service one after the other, runs a command for each (a reboot, an
//! upgrade), waits until it is back, and goes on. It stops at the first doubt, and says how to go on.

use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;

use super::admin::{self, Ask, Cluster, Failure, Member, NO, REFUSED, TIMED_OUT, YES};
use super::node;

/// How often a node that is away is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The flags of `beanpole cluster roll`.
#[derive(Args, Debug)]
pub struct RollArgs {
    /// Shell command to run for each node while it is out of service; {host}, {id} and {address} stand for the node's.
    /// It must stop and start the node, or its machine, and return
    #[arg(long)]
    exec: String,
    /// Nodes to leave out, e.g. those that are done already
    #[arg(long, value_delimiter = ',')]
    skip: Vec<u64>,
    /// Seconds to wait for a node's clients to go
    #[arg(long, default_value_t = 60)]
    drain_timeout: u64,
    /// Seconds to wait for a node to come back and catch up
    #[arg(long, default_value_t = 900)]
    timeout: u64,
}

/// Goes round.
pub fn run(ask: &Ask, args: &RollArgs) -> Result<u8, Failure> {
    let mut done = args.skip.clone();
    loop {
        let (_, cluster) = admin::cluster(ask)?;
        let Some(next) = next_node(&cluster, &done) else {
            println!("all nodes are done");
            return Ok(YES);
        };
        if let Err(failure) = one(ask, args, next) {
            let message = format!("node {}: {}\n{}", next.report.id, failure.message, how_to_go_on(&done));
            return Err(Failure::new(failure.code, message));
        }
        println!("node {} is done", next.report.id);
        done.push(next.report.id);
    }
}

/// The next node that is not done: the leader last, because each change of the lead is a short pause.
fn next_node<'c>(cluster: &'c Cluster, done: &[u64]) -> Option<&'c Member> {
    let left = cluster.nodes.iter().filter(|node| !done.contains(&node.report.id));
    left.min_by_key(|node| (Some(node.report.id) == cluster.leader_id, node.report.id))
}

fn how_to_go_on(done: &[u64]) -> String {
    if done.is_empty() {
        return "nothing was done; when the reason is gone, run the same command again".to_owned();
    }
    let ids: Vec<String> = done.iter().map(u64::to_string).collect();
    format!("when the reason is gone, go on with --skip {}", ids.join(","))
}

fn one(ask: &Ask, args: &RollArgs, next: &Member) -> Result<(), Failure> {
    println!("node {} ({}): draining", next.report.id, next.address);
    node::drain(ask, next.report.id, true, Duration::from_secs(args.drain_timeout))?;
    let before = identity(next);
    let command = filled(&args.exec, next);
    println!("node {}: {command}", next.report.id);
    let status = Command::new("sh").arg("-c").arg(&command).status();
    let status = status.map_err(|error| Failure::new(NO, format!("the command cannot be run: {error}")))?;
    if !status.success() {
        // It may not even have been stopped: back into service, as far as it can be reached.
        node::resume(ask, next.report.id).ok();
        return Err(Failure::new(NO, format!("the command failed: {status}")));
    }
    wait_back(ask, next.report.id, &before, Duration::from_secs(args.timeout))
}

/// The command with the node's names in it.
fn filled(command: &str, node: &Member) -> String {
    let host = node.address.rsplit_once(':').map_or(node.address.as_str(), |(host, _)| host);
    command
        .replace("{host}", host.trim_matches(['[', ']']))
        .replace("{id}", &node.report.id.to_string())
        .replace("{address}", &node.address)
}

/// What tells two lives of a node apart.
fn identity(node: &Member) -> u64 {
    node.report.started_ms
}

/// Waits until the node has been started anew, serves clients and has caught up, and all others are well too.
fn wait_back(ask: &Ask, id: u64, before: &u64, timeout: Duration) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        let why = match admin::cluster(ask) {
            Ok((_, cluster)) => match not_back(&cluster, id, *before)? {
                None => return Ok(()),
                Some(why) => why,
            },
            Err(failure) => failure.message,
        };
        if begun.elapsed() > timeout {
            return Err(Failure::new(
                TIMED_OUT,
                format!("it is not back after {} s: {why}", timeout.as_secs()),
            ));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Why the cluster is not as it was before; none when it is.
fn not_back(cluster: &Cluster, id: u64, before: u64) -> Result<Option<String>, Failure> {
    let node = cluster.member(id)?;
    if let Some(reason) = &cluster.refused {
        return Err(Failure::new(REFUSED, format!("node {} is refused: {reason}", cluster.node_id)));
    }
    if identity(node) == before {
        return Ok(Some("it was not started anew".to_owned()));
    }
    if !node.report.ready || node.report.leaving != 0 {
        return Ok(Some("it does not serve clients yet".to_owned()));
    }
    if node.lag > node::LAG_MAX {
        return Ok(Some(format!("it is {} entries behind", node.lag)));
    }
    Ok(super::cluster::complaints(cluster).into_iter().next())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::report::Report;

    fn node(id: u64) -> Member {
        Member {
            address: format!("10.0.0.{id}:11390"),
            seen_ms: Some(0),
            report: Report { id, ready: true, ..Report::default() },
            ..Member::default()
        }
    }

    #[test]
    fn the_leader_comes_last() {
        let nodes = vec![node(1), node(2), node(3)];
        let cluster = Cluster { leader_id: Some(1), nodes, ..Cluster::default() };
        let order = |done: &[u64]| next_node(&cluster, done).map(|node| node.report.id);
        assert_eq!(
            [order(&[]), order(&[2]), order(&[2, 3]), order(&[1, 2, 3])],
            [Some(2), Some(3), Some(1), None]
        );
    }

    #[test]
    fn a_command_names_the_node() {
        assert_eq!(
            filled("ssh {host} reboot # {id} {address}", &node(2)),
            "ssh 10.0.0.2 reboot # 2 10.0.0.2:11390"
        );
        let six = Member { address: "[::1]:7".into(), ..node(1) };
        assert_eq!(filled("{host}", &six), "::1");
    }

    #[test]
    fn a_node_that_was_not_started_anew_is_not_back() {
        let mut cluster = Cluster {
            node_id: 1,
            leader_id: Some(1),
            ready: true,
            nodes: vec![node(1), node(2)],
            ..Cluster::default()
        };
        assert!(not_back(&cluster, 2, 0).unwrap().unwrap().contains("not started anew"));
        cluster.nodes[1].report.started_ms = 5;
        assert_eq!(not_back(&cluster, 2, 0).unwrap(), None);
        cluster.nodes[1].report.ready = false;
        assert!(not_back(&cluster, 2, 0).unwrap().is_some());
    }
}
