//! A cluster under test: real processes on free ports, killed, frozen and started again by node id.
//!
//! ```text
//!   Cluster ── n1 ── data, stderr, ports for clients, admin, peers
//!           ├─ n2
//!           └─ n3          clients: connection::Connection; load: cluster::load
//! ```
//!
//! Everything ends when the [`Cluster`] is dropped; when a test fails, the ends of all nodes' lines are printed.

pub mod load;

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::connection::Connection;
use crate::server::free_port;
use crate::{admin, cgroup, wait};

/// How long a node's admin HTTP may take to answer.
const ADMIN_LIMIT: Duration = Duration::from_millis(500);
/// How long a cluster may take to form, or to serve again: a loaded machine must not make a test fail.
pub const READY_LIMIT: Duration = Duration::from_secs(30);

/// A node's view of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// The leader it knows.
    pub leader: Option<u64>,
    /// Its term.
    pub term: u64,
}

/// Processes that are to form one cluster.
pub struct Cluster {
    nodes: Vec<Node>,
    binary: PathBuf,
    flags: Vec<String>,
    /// NAME=VALUE for every node, with {id}.
    environment: Vec<String>,
    directory: TempDir,
}

struct Node {
    clients: u16,
    admin: u16,
    peers: u16,
    /// Whether the cluster began with it; others are let in later.
    is_founder: bool,
    /// Where it keeps its data, if not beside the others.
    data: Option<PathBuf>,
    /// The directory of the cgroup that it is born in.
    cgroup: Option<PathBuf>,
    child: Option<Child>,
}

impl Node {
    fn new(is_founder: bool) -> Node {
        let (clients, admin, peers) = (free_port(), free_port(), free_port());
        Node { clients, admin, peers, is_founder, data: None, cgroup: None, child: None }
    }
}

/// What one of the program's verbs for operators did.
#[derive(Debug)]
pub struct Told {
    /// The exit code.
    pub code: Option<i32>,
    /// All that it printed.
    pub text: String,
}

impl Cluster {
    /// Starts `nodes` nodes and waits until all of them serve.
    pub fn start(binary: &str, nodes: usize) -> Cluster {
        let mut cluster = Cluster::new(binary, nodes);
        for id in cluster.ids() {
            cluster.start_node(id);
        }
        cluster.wait_until_ready(&cluster.ids());
        cluster
    }

    /// Ports and directories for `nodes` nodes, none started. The environment variable `BEANPOLE_BIN` names another binary
    /// (a release build, say).
    pub fn new(binary: &str, nodes: usize) -> Cluster {
        Cluster {
            nodes: (0..nodes).map(|_| Node::new(true)).collect(),
            binary: std::env::var_os("BEANPOLE_BIN").map_or_else(|| binary.into(), PathBuf::from),
            flags: Vec::new(),
            environment: Vec::new(),
            directory: TempDir::with_prefix("beanpole-cluster-").expect("a temporary directory can be made"),
        }
    }

    /// With more arguments for every node that is started from now on.
    pub fn flags<I: IntoIterator<Item = S>, S: Into<String>>(mut self, flags: I) -> Cluster {
        self.flags.extend(flags.into_iter().map(Into::into));
        self
    }

    /// With NAME=VALUE in the environment of every node that is started from now on; {id} in it is replaced by the node's id.
    pub fn environment<I: IntoIterator<Item = S>, S: Into<String>>(mut self, set: I) -> Cluster {
        self.environment.extend(set.into_iter().map(Into::into));
        self
    }

    /// With a node's data in this directory.
    pub fn data_at(mut self, id: u64, directory: PathBuf) -> Cluster {
        self.node_mut(id).data = Some(directory);
        self
    }

    /// With a node in this cgroup, by its directory.
    pub fn within(mut self, id: u64, cgroup: &Path) -> Cluster {
        self.node_mut(id).cgroup = Some(cgroup.to_owned());
        self
    }

    /// A node that does not belong to the cluster yet and knows nobody: its id, which was never used before.
    pub fn new_node(&mut self) -> u64 {
        self.nodes.push(Node::new(false));
        self.nodes.len() as u64
    }

    /// Where the other nodes reach a node.
    pub fn peer_address(&self, id: u64) -> String {
        format!("127.0.0.1:{}", self.node(id).peers)
    }

    /// Where a node's admin interface listens.
    pub fn admin_address(&self, id: u64) -> String {
        format!("127.0.0.1:{}", self.node(id).admin)
    }

    /// Runs one of the program's verbs for operators, which asks the nodes that were started: `cluster verify`.
    pub fn operator(&self, words: &str) -> Told {
        let started = self.nodes.iter().filter(|node| node.child.is_some());
        let admins: Vec<String> = started.map(|node| format!("127.0.0.1:{}", node.admin)).collect();
        let out = Command::new(&self.binary)
            .args(words.split_whitespace())
            .env("BEANPOLE_ADMIN", admins.join(","))
            .output()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", self.binary.display()));
        let text = [out.stdout, out.stderr].concat();
        Told { code: out.status.code(), text: String::from_utf8_lossy(&text).into_owned() }
    }

    /// The same; panics unless it succeeds.
    pub fn operate(&self, words: &str) -> String {
        let told = self.operator(words);
        assert_eq!(told.code, Some(0), "{words}: {}", told.text);
        told.text
    }

    /// All node ids, from 1.
    pub fn ids(&self) -> Vec<u64> {
        (1..=self.nodes.len() as u64).collect()
    }

    /// All node ids but one.
    pub fn others(&self, id: u64) -> Vec<u64> {
        self.ids().into_iter().filter(|other| *other != id).collect()
    }

    /// Starts a node's process, and waits for nothing.
    pub fn start_node(&mut self, id: u64) {
        assert!(!self.is_running(id), "n{id} runs");
        let stderr = File::options().create(true).append(true).open(self.log_path(id));
        let child = cgroup::command(&self.binary, self.node(id).cgroup.as_deref())
            .args(self.arguments(id))
            .envs(
                self.environment
                    .iter()
                    .filter_map(|set| set.split_once('='))
                    .map(|(name, value)| (name.to_owned(), value.replace("{id}", &id.to_string()))),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr.expect("a file in our own directory can be opened"))
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", self.binary.display()));
        self.node_mut(id).child = Some(child);
    }

    fn arguments(&self, id: u64) -> Vec<String> {
        let local = |port: u16| format!("127.0.0.1:{port}");
        let founders = self.ids().into_iter().filter(|id| self.node(*id).is_founder);
        let peers: Vec<String> = founders.map(|id| format!("{id}={}", self.peer_address(id))).collect();
        let node = self.node(id);
        let mut arguments: Vec<String> = vec!["serve".into()];
        for (name, value) in [
            ("--node-id", id.to_string()),
            ("--data-dir", self.data_dir(id).display().to_string()),
            ("--listen", local(node.clients)),
            ("--admin-listen", local(node.admin)),
            ("--peer-listen", local(node.peers)),
        ] {
            arguments.extend([name.to_owned(), value]);
        }
        if node.is_founder {
            arguments.extend(["--peers".to_owned(), peers.join(",")]);
        }
        arguments.extend_from_slice(&self.flags);
        arguments
    }

    /// Waits until these nodes serve; panics when they do not in time.
    pub fn wait_until_ready(&self, ids: &[u64]) {
        let ready = wait::until_within(READY_LIMIT, || ids.iter().all(|id| self.is_ready(*id)).then_some(()));
        assert!(ready.is_some(), "{:?} of {ids:?} do not serve", self.not_ready(ids));
    }

    fn not_ready(&self, ids: &[u64]) -> Vec<(u64, String)> {
        let asked = |id: u64| match self.get(id, "/readyz") {
            Some((_, body)) => body.trim().to_owned(),
            None => "no answer".to_owned(),
        };
        ids.iter().filter(|id| !self.is_ready(**id)).map(|id| (*id, asked(*id))).collect()
    }

    /// Whether a node says that it serves.
    pub fn is_ready(&self, id: u64) -> bool {
        matches!(self.get(id, "/readyz"), Some((200, _)))
    }

    /// Whether a node's process answers at all.
    pub fn is_live(&self, id: u64) -> bool {
        matches!(self.get(id, "/livez"), Some((200, _)))
    }

    /// What a node knows of the cluster, if it answers.
    pub fn view(&self, id: u64) -> Option<View> {
        let (200, body) = self.get(id, "/api/v1/cluster")? else { return None };
        let json: serde_json::Value = serde_json::from_str(&body).expect("the admin interface answers JSON");
        Some(View { leader: json["leader_id"].as_u64(), term: json["term"].as_u64()? })
    }

    /// Waits until most nodes name the same leader in the same term, and gives it.
    pub fn leader(&self) -> u64 {
        let agreed = wait::until_within(READY_LIMIT, || {
            let views: Vec<View> = self.ids().iter().filter_map(|id| self.view(*id)).collect();
            let newest = views.iter().map(|view| view.term).max()?;
            let leader = views.iter().find(|view| view.term == newest)?.leader?;
            let named =
                views.iter().filter(|view| view.leader == Some(leader) && view.term == newest).count();
            (named > self.nodes.len() / 2).then_some(leader)
        });
        agreed.unwrap_or_else(|| panic!("no leader within {READY_LIMIT:?}"))
    }

    /// Waits until these nodes agree on a leader other than `old`.
    pub fn leader_after(&self, old: u64) -> u64 {
        let next = wait::until_within(READY_LIMIT, || Some(self.leader()).filter(|leader| *leader != old));
        next.unwrap_or_else(|| panic!("n{old} is still named as the leader"))
    }

    /// Sends a signal to a node's process.
    pub fn signal(&self, id: u64, signal: Signal) {
        let pid = i32::try_from(self.pid(id)).expect("a pid fits in i32");
        nix::sys::signal::kill(Pid::from_raw(pid), signal).expect("our own child can be signalled");
    }

    /// `kill -9`, and waits until the process is gone.
    pub fn kill(&mut self, id: u64) {
        if let Some(mut child) = self.node_mut(id).child.take() {
            // An error means that it has ended by itself, which `wait` sees as well.
            let _gone_already = child.kill();
            child.wait().expect("our own child can be waited for");
        }
    }

    /// `kill -9` of all nodes, none of which sees another one die and has time to do something about it.
    pub fn kill_all(&mut self) {
        let running: Vec<u64> = self.ids().into_iter().filter(|id| self.is_running(*id)).collect();
        running.iter().for_each(|id| self.signal(*id, Signal::SIGKILL));
        running.iter().for_each(|id| self.kill(*id));
    }

    /// SIGTERM; the exit status and how long it took. Panics when the process does not end.
    pub fn terminate(&mut self, id: u64) -> (ExitStatus, Duration) {
        let begun = Instant::now();
        self.signal(id, Signal::SIGTERM);
        let status = self.wait_for_exit(id).unwrap_or_else(|| panic!("n{id} did not end after SIGTERM"));
        (status, begun.elapsed())
    }

    /// Waits until a node's process ends by itself; `None` when it does not.
    pub fn wait_for_exit(&mut self, id: u64) -> Option<ExitStatus> {
        let child = self.node_mut(id).child.as_mut().unwrap_or_else(|| panic!("n{id} does not run"));
        let ended = wait::until(|| child.try_wait().expect("our own child can be waited for"));
        if ended.is_some() {
            self.node_mut(id).child = None;
        }
        ended
    }

    /// Whether a node's process runs.
    pub fn is_running(&mut self, id: u64) -> bool {
        let child = self.node_mut(id).child.as_mut();
        child.is_some_and(|c| c.try_wait().expect("our own child can be waited for").is_none())
    }

    /// A running node's process.
    pub fn pid(&self, id: u64) -> u32 {
        self.node(id).child.as_ref().unwrap_or_else(|| panic!("n{id} does not run")).id()
    }

    /// Removes a stopped node's data.
    pub fn wipe(&mut self, id: u64) {
        assert!(!self.is_running(id), "n{id} runs");
        fs::remove_dir_all(self.data_dir(id)).expect("our own directory can be removed");
    }

    /// A new client connection to a node.
    pub fn connect(&self, id: u64) -> Connection {
        Connection::open(self.addr(id)).unwrap_or_else(|e| panic!("cannot connect to n{id}: {e}"))
    }

    /// Where a node's clients connect.
    pub fn addr(&self, id: u64) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.node(id).clients).into()
    }

    /// Where a node keeps its data.
    pub fn data_dir(&self, id: u64) -> PathBuf {
        let beside = || self.directory.path().join(format!("n{id}"));
        self.node(id).data.clone().unwrap_or_else(beside)
    }

    /// The end of what a node wrote to stderr, over all its starts.
    pub fn log(&self, id: u64) -> String {
        const TAIL: usize = 6000;
        let bytes = fs::read(self.log_path(id)).unwrap_or_default();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL)..]).into_owned()
    }

    fn log_path(&self, id: u64) -> PathBuf {
        self.directory.path().join(format!("n{id}.stderr"))
    }

    fn node(&self, id: u64) -> &Node {
        &self.nodes[id as usize - 1]
    }

    fn node_mut(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    /// One request to a node's admin HTTP: the status and the body; `None` without an answer.
    pub fn get(&self, id: u64, path: &str) -> Option<(u16, String)> {
        admin::get((Ipv4Addr::LOCALHOST, self.node(id).admin).into(), path, ADMIN_LIMIT)
    }

    /// The directory of everything.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill_all();
        if std::thread::panicking() {
            for id in self.ids() {
                eprintln!("--- n{id}, the end of its lines ---\n{}", self.log(id));
            }
        }
    }
}
