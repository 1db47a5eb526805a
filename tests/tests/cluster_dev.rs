//! `beanpole dev cluster`, and `bench failover` on top of it: what a newcomer does with them, and that they leave nothing
//! behind, however they end.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use beanpole_tests::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

/// A running `dev cluster` of one node, which needs no quorum.
struct Dev {
    child: Child,
    out: BufReader<ChildStdout>,
    /// What it has said so far.
    said: String,
}

impl Dev {
    fn start(flags: &[&str], temporary: &Path) -> Dev {
        let mut child = Command::new(BIN)
            .args(["dev", "cluster", "--nodes", "1"])
            .args(flags)
            .env("TMPDIR", temporary)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Dev { child, out, said: String::new() }
    }

    /// Reads on until a line has `text`; panics when the output ends before.
    fn wait_for(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.out.read_line(&mut line).unwrap() > 0, "no {text:?} in:\n{}", self.said);
            self.said += &line;
            if line.contains(text) {
                return line;
            }
        }
    }

    fn signal(&self, to: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), to).unwrap();
    }

    fn exit_code(&mut self) -> Option<i32> {
        let status = wait::until(|| self.child.try_wait().unwrap());
        status.unwrap_or_else(|| panic!("it did not end:\n{}", self.said)).code()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

/// The pid in a line that names the command to kill a node.
fn pid_in(line: &str) -> i32 {
    line.split("kill -9 ").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap()
}

fn is_gone(pid: i32) -> Option<()> {
    kill(Pid::from_raw(pid), None).is_err().then_some(())
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn one_ctrl_c_ends_all_and_leaves_nothing() {
    let temporary = TempDir::new().unwrap();
    let mut dev = Dev::start(&[], temporary.path());
    let node = pid_in(&dev.wait_for("ready: node n1 leads"));
    assert_eq!(entries(temporary.path()).len(), 1);
    dev.signal(Signal::SIGINT);
    assert_eq!(dev.exit_code(), Some(0), "{}", dev.said);
    wait::until(|| is_gone(node)).expect("the node has ended");
    assert_eq!(entries(temporary.path()), Vec::<PathBuf>::new());
}

#[test]
fn nodes_die_with_a_killed_parent() {
    let temporary = TempDir::new().unwrap();
    let mut dev = Dev::start(&[], temporary.path());
    let node = pid_in(&dev.wait_for("ready: node n1 leads"));
    dev.signal(Signal::SIGKILL);
    assert_eq!(dev.exit_code(), None);
    wait::until(|| is_gone(node)).expect("the node has died with its parent");
}

#[test]
fn a_dead_node_is_reported_and_started_again_on_its_data() {
    let temporary = TempDir::new().unwrap();
    let kept = temporary.path().join("kept");
    let flags = ["--dir", kept.to_str().unwrap(), "--restart-after", "100ms"];
    let mut dev = Dev::start(&flags, temporary.path());
    let first = pid_in(&dev.wait_for("ready: node n1 leads"));
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    dev.wait_for("was killed by SIGKILL");
    let second = pid_in(&dev.wait_for("is started again"));
    assert_ne!(first, second);
    dev.wait_for("node n1 leads (term 2)");
    // The end of standard input ends it, too, if asked for; not otherwise.
    drop(dev.child.stdin.take());
    dev.signal(Signal::SIGTERM);
    assert_eq!(dev.exit_code(), Some(0), "{}", dev.said);
    assert!(kept.join("n1").is_dir(), "--dir is kept");

    // What was kept is gone on with, on the same ports; another size is refused.
    let ports = std::fs::read_to_string(kept.join("cluster.json")).unwrap();
    let mut dev = Dev::start(&["--dir", kept.to_str().unwrap(), "--end-with-stdin"], temporary.path());
    dev.wait_for("ready: node n1 leads (term 3)");
    let again = std::fs::read_to_string(kept.join("cluster.json")).unwrap();
    let without_pid = |text: &str| text.lines().filter(|l| !l.contains("pid")).collect::<String>();
    assert_eq!(without_pid(&ports), without_pid(&again));
    drop(dev.child.stdin.take());
    assert_eq!(dev.exit_code(), Some(0), "{}", dev.said);
    let refused =
        Command::new(BIN).args(["dev", "cluster", "--nodes", "3", "--dir"]).arg(&kept).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("say --nodes 1"), "{refused:?}");
}

#[test]
fn a_cluster_whose_nodes_refuse_to_start_ends() {
    let temporary = TempDir::new().unwrap();
    let mut dev = Dev::start(&["--restart-after", "10ms", "--", "--no-such-flag"], temporary.path());
    dev.wait_for("ended with exit code 2; the others go on");
    dev.wait_for("no node is left");
    assert_eq!(dev.exit_code(), Some(1));
    assert_eq!(entries(temporary.path()), Vec::<PathBuf>::new());
}

#[test]
fn bench_failover_kills_a_leader_and_misses_nothing() {
    // The README's experiment in one command: a local cluster under load loses its leader, and a follower by SIGTERM.
    let temporary = TempDir::new().unwrap();
    let out = Command::new(BIN)
        .args([
            "bench",
            "failover",
            "--dev",
            "--duration",
            "9s",
            "--rate",
            "100",
            "--hold-long",
            "2s",
            "--json",
        ])
        .args(["--restart-after", "500ms", "--fault", "2s:kill:leader", "--fault", "6s:term:follower"])
        .env("TMPDIR", temporary.path())
        .output()
        .unwrap();
    let (json, said) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.status.code(), Some(0), "{json}{said}");
    let report: serde_json::Value = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}"));
    assert!(report["jobs"]["acknowledged"].as_u64().unwrap() > 300, "{json}");
    assert_eq!(
        report["errors"],
        serde_json::json!({}),
        "clients of nodes that were not hit saw errors: {json}"
    );
    let faults = report["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 2, "{json}");
    for fault in faults {
        assert!(fault["back_ns"].is_u64() && fault["failed"].is_null(), "{json}");
        println!("{}: put {} reserve {}", fault["what"], fault["put"], fault["reserve"]);
    }
    // A leader's death is felt: were it not, the measuring would be broken.
    let pause = faults[0]["put"]["all_ms"].as_f64().unwrap();
    assert!((200.0..5000.0).contains(&pause), "{json}");
    assert_eq!(entries(temporary.path()), Vec::<PathBuf>::new(), "nothing is left of the cluster");
}
