//! Cut networks once more, with real packets that are really dropped: no handshake, no reset, no acknowledgement of TCP's comes
//! through. `partition.rs` tells what must hold. Needs root, `ip` and `nft`.

use std::fs;
use std::process::{Child, Stdio};

use beanpole_tests::namespaces::{Cut, Network};
use beanpole_tests::{extra, failover};
use tempfile::TempDir;

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

const NODES: u64 = 3;
/// The longest that clients of the other nodes may go without an acknowledged put, in ms.
const PAUSE_MAX_MS: f64 = 1_500.0;

/// Nodes that end with this.
struct Nodes {
    children: Vec<Child>,
    network: Network,
    binary: String,
    directory: TempDir,
}

impl Nodes {
    fn start(network: Network) -> Nodes {
        let binary = std::env::var("BEANPOLE_BIN").unwrap_or_else(|_| BIN.to_owned());
        let directory = TempDir::with_prefix("beanpole-namespaces-").unwrap();
        let peers: Vec<String> =
            (1..=NODES).map(|id| format!("{id}={}:11390", network.address(id))).collect();
        let mut nodes = Nodes { children: Vec::new(), network, binary, directory };
        for id in 1..=NODES {
            let address = nodes.network.address(id);
            let at = |name: &str| nodes.directory.path().join(format!("n{id}.{name}"));
            let child = nodes
                .network
                .on_node(id, &nodes.binary)
                .args(["serve", "--node-id", &id.to_string(), "--peers", &peers.join(",")])
                .args([
                    "--listen",
                    &format!("{address}:11300"),
                    "--admin-listen",
                    &format!("{address}:11380"),
                ])
                .args(["--peer-listen", &format!("{address}:11390")])
                .arg("--data-dir")
                .arg(at("data"))
                .stderr(fs::File::create(at("stderr")).unwrap())
                .stdin(Stdio::null())
                .spawn()
                .unwrap();
            nodes.children.push(child);
        }
        nodes.operate("cluster health --watch --exit-when-healthy --timeout 30");
        nodes
    }

    /// One of the program's verbs for operators; panics unless it succeeds.
    fn operate(&self, words: &str) -> String {
        let admins: Vec<String> =
            (1..=NODES).map(|id| format!("{}:11380", self.network.address(id))).collect();
        let mut verb = self.network.on_hub(&self.binary);
        let out = verb.args(words.split(' ')).env("BEANPOLE_ADMIN", admins.join(",")).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{words}: {said}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn leader(&self) -> u64 {
        let status: serde_json::Value =
            serde_json::from_str(&self.operate("cluster -o json status")).unwrap();
        status["leader_id"].as_u64().expect("a healthy cluster has a leader")
    }

    /// Load on all nodes while this one is cut off for ten seconds.
    fn cut(&self, node: u64, cut: Cut) -> failover::Report {
        let script = |name: &str, commands: String| {
            let path = self.directory.path().join(name);
            fs::write(&path, format!("set -e\n{commands}")).unwrap();
            path.display().to_string()
        };
        let (cut, heal) = (script("cut", self.network.cut(node, cut)), script("heal", self.network.heal()));
        let nodes: Vec<String> =
            (1..=NODES).map(|id| format!("n{id}={}:11300", self.network.address(id))).collect();
        let mut bench = self.network.on_hub(&self.binary);
        bench
            .args(["bench", "failover", "--json", "--duration", "20s", "--rate", "200"])
            .args(["--nodes", &nodes.join(",")])
            .args(["--fault", &format!("4s:run@n{node}:sh {cut}"), "--fault", &format!("14s:run:sh {heal}")]);
        failover::report_of(&mut bench)
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ended_already = child.kill();
            let _status = child.wait();
        }
        if std::thread::panicking() {
            for id in 1..=NODES {
                let path = self.directory.path().join(format!("n{id}.stderr"));
                eprintln!("--- n{id} ---\n{}", fs::read_to_string(path).unwrap_or_default());
            }
        }
    }
}

#[test]
fn a_leader_whose_packets_are_dropped_is_replaced_within_a_second_and_a_half() {
    let name = "a_leader_whose_packets_are_dropped_is_replaced_within_a_second_and_a_half";
    if extra::skip_unless_wanted(name) {
        return;
    }
    let network = match Network::make(NODES) {
        Ok(network) => network,
        Err(why) => return extra::skipped(name, &why),
    };
    let nodes = Nodes::start(network);
    for cut in [Cut::Both, Cut::Incoming, Cut::Outgoing] {
        let leader = nodes.leader();
        let report = nodes.cut(leader, cut);
        report.expect_no_loss();
        report.expect_faults_done(2);
        report.expect_no_errors_elsewhere();
        let pause = report.figure("/faults/0/put/all_ms");
        println!("{cut:?} of n{leader}: put pause {pause} ms; {:?}", report.excused());
        assert!((200.0..=PAUSE_MAX_MS).contains(&pause), "{}", report.text);
        nodes.operate("cluster health --watch --exit-when-healthy --timeout 30");
        let told = nodes.operate("cluster verify --timeout 30");
        assert!(told.contains("all nodes have the same state"), "{told}");
    }
}
