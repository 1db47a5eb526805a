//! What a local cluster is made of: a directory, three ports per node (four with relays between them), and the command line
//! of each node.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use beanpole_bench::failover::dev_cluster::{DevCluster, DevNode};

use super::ClusterArgs;

/// Where the search for free ports begins: below the range that the kernel gives to outgoing connections, so that a port is
/// still free when its node is restarted.
const FIRST_PORT: u16 = 21_300;
/// Where it ends.
const LAST_PORT: u16 = 31_000;
/// Ports that each node needs: for clients, for admin HTTP, for the other nodes. A relay needs one more.
const PORTS_PER_NODE: u16 = 3;

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the directory {0} cannot be used: {1}; give another --dir")]
    Directory(PathBuf, io::Error),
    #[error("{0} holds a cluster of {1} nodes; say --nodes {1} or give another --dir")]
    OtherSize(PathBuf, usize),
    #[error("{0} holds a cluster whose ports begin at {1}; leave out --base-port or give another --dir")]
    OtherPorts(PathBuf, String),
    #[error("the ports {0} to {1} do not exist; the highest is 65535")]
    NoSuchPorts(u16, u32),
    #[error("no {0} free ports in a row between {FIRST_PORT} and {LAST_PORT}; give --base-port")]
    NoFreePorts(u16),
    #[error("the system refuses what every cluster needs: {0}")]
    System(#[from] io::Error),
}

/// A cluster that is to be run.
pub(super) struct Plan {
    /// The nodes, none running.
    pub(super) cluster: DevCluster,
    /// Holds one data directory per node, and `cluster.json`.
    pub(super) directory: PathBuf,
    /// Whether the directory stays when the cluster ends.
    pub(super) kept: bool,
}

impl Plan {
    /// Makes the directory, and chooses ports unless an earlier run in the same directory has.
    pub(super) fn make(args: &ClusterArgs) -> Result<Plan, Refusal> {
        let (directory, kept) = match &args.dir {
            Some(dir) => (dir.clone(), true),
            None => (std::env::temp_dir().join(format!("beanpole-dev-{:08x}", rand::random::<u32>())), false),
        };
        let refused = |e| Refusal::Directory(directory.clone(), e);
        std::fs::create_dir_all(&directory).map_err(refused)?;
        let directory = std::path::absolute(&directory).map_err(refused)?;
        let cluster = match DevCluster::load(&directory) {
            Ok(earlier) => same(earlier, args, &directory)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => new_cluster(args)?,
            Err(e) => return Err(Refusal::Directory(directory, e)),
        };
        Ok(Plan { cluster, directory, kept })
    }

    /// Where a node keeps its data.
    pub(super) fn data_dir(&self, node: &DevNode) -> PathBuf {
        self.directory.join(node.name())
    }

    /// The arguments of `beanpole` for one node. A node alone is a plain server.
    pub(super) fn arguments(&self, node: &DevNode, more: &[String]) -> Vec<String> {
        let mut arguments = vec!["serve".to_owned()];
        let mut flag = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        flag("--data-dir", self.data_dir(node).display().to_string());
        flag("--listen", node.clients.clone());
        flag("--admin-listen", node.admin.clone());
        if self.cluster.nodes.len() > 1 {
            let peers: Vec<String> =
                self.cluster.nodes.iter().map(|node| format!("{}={}", node.id, told(node))).collect();
            flag("--node-id", node.id.to_string());
            flag("--peer-listen", node.peers.clone());
            flag("--peers", peers.join(","));
        }
        arguments.extend_from_slice(more);
        arguments
    }
}

/// Where the other nodes are told to connect.
fn told(node: &DevNode) -> &str {
    node.relay.as_deref().unwrap_or(&node.peers)
}

/// The cluster of an earlier run, if it is the one that was asked for.
fn same(mut earlier: DevCluster, args: &ClusterArgs, directory: &Path) -> Result<DevCluster, Refusal> {
    if earlier.nodes.len() != usize::from(args.nodes) {
        return Err(Refusal::OtherSize(directory.to_owned(), earlier.nodes.len()));
    }
    let first = earlier.nodes.first().map_or("", |node| node.clients.as_str());
    if args.base_port.is_some_and(|port| first != local(port)) {
        return Err(Refusal::OtherPorts(directory.to_owned(), first.to_owned()));
    }
    for node in &mut earlier.nodes {
        node.pid = None;
    }
    Ok(earlier)
}

fn new_cluster(args: &ClusterArgs) -> Result<DevCluster, Refusal> {
    let nodes = args.nodes;
    let count = nodes * (PORTS_PER_NODE + u16::from(args.relays));
    let base = match args.base_port {
        Some(base) => base,
        None => free_ports(count).ok_or(Refusal::NoFreePorts(count))?,
    };
    let last = u32::from(base) + u32::from(count) - 1;
    if last > u32::from(u16::MAX) {
        return Err(Refusal::NoSuchPorts(base, last));
    }
    let nodes = (0..nodes).map(|i| DevNode {
        id: u64::from(i) + 1,
        clients: local(base + i),
        admin: local(base + nodes + i),
        peers: local(base + 2 * nodes + i),
        relay: args.relays.then(|| local(base + 3 * nodes + i)),
        pid: None,
    });
    Ok(DevCluster { nodes: nodes.collect() })
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// The first of `count` ports in a row on which nobody listens. Processes begin their search at different places: ports are
/// taken a moment after they were found free.
fn free_ports(count: u16) -> Option<u16> {
    let blocks = (LAST_PORT - FIRST_PORT) / count;
    let start = (std::process::id() % u32::from(blocks)) as u16;
    let mut candidates = (0..blocks).map(|i| FIRST_PORT + (start + i) % blocks * count);
    candidates.find(|base| {
        // All are held at once: a port that is free twice in a row would be counted twice.
        let held: Result<Vec<_>, _> =
            (*base..base + count).map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port))).collect();
        held.is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(nodes: u16, base_port: u16) -> ClusterArgs {
        ClusterArgs {
            nodes,
            base_port: Some(base_port),
            dir: None,
            restart_after: None,
            end_with_stdin: false,
            relays: false,
            node_env: Vec::new(),
            serve_flags: Vec::new(),
        }
    }

    fn plan(args: &ClusterArgs) -> Plan {
        Plan { cluster: new_cluster(args).unwrap(), directory: "/d".into(), kept: true }
    }

    #[test]
    fn nodes_are_told_of_each_other() {
        let plan = plan(&args(3, 5000));
        let line = plan.arguments(&plan.cluster.nodes[1], &["--log-level".into(), "debug".into()]).join(" ");
        assert_eq!(
            line,
            "serve --data-dir /d/n2 --listen 127.0.0.1:5001 --admin-listen 127.0.0.1:5004 --node-id 2 \
             --peer-listen 127.0.0.1:5007 --peers 1=127.0.0.1:5006,2=127.0.0.1:5007,3=127.0.0.1:5008 \
             --log-level debug"
        );
    }

    #[test]
    fn nodes_with_relays_are_told_of_those() {
        let plan = plan(&ClusterArgs { relays: true, ..args(2, 5000) });
        let line = plan.arguments(&plan.cluster.nodes[1], &[]).join(" ");
        assert!(
            line.ends_with("--peer-listen 127.0.0.1:5005 --peers 1=127.0.0.1:5006,2=127.0.0.1:5007"),
            "{line}"
        );
    }

    #[test]
    fn a_node_alone_is_a_plain_server() {
        let plan = plan(&args(1, 5000));
        let line = plan.arguments(&plan.cluster.nodes[0], &[]).join(" ");
        assert_eq!(line, "serve --data-dir /d/n1 --listen 127.0.0.1:5000 --admin-listen 127.0.0.1:5001");
    }

    #[test]
    fn ports_that_do_not_exist_are_refused() {
        assert!(matches!(new_cluster(&args(3, 65_530)), Err(Refusal::NoSuchPorts(65_530, 65_538))));
        assert!(new_cluster(&args(3, 65_527)).is_ok());
    }

    #[test]
    fn a_taken_port_is_passed_over() {
        let free = free_ports(3).unwrap();
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, free + 1)).unwrap();
        assert_ne!(free_ports(3), Some(free));
    }
}
