//! The local cluster behind `--dev`: `beanpole dev cluster` as a child, which ends when we do, however we do.

use super::args::{FailoverArgs, NodeAddress};
use super::cables::{CableEnd, Cables};
use super::dev_cluster::DevCluster;
use crate::admin;
use crate::environment::random_id;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long all nodes may take to serve.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long the cluster may take to end before it is killed; it gives its nodes 5 s.
const END_LIMIT: Duration = Duration::from_secs(8);
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(50);

/// How long the nodes may take at the end to serve again, and to tell their states, in seconds each.
const COMPARE_LIMIT_S: u64 = 60;

/// A running local cluster.
pub struct Dev {
    child: Child,
    program: PathBuf,
    /// What lies between the nodes, if any fault is to cut it.
    cables: Option<Cables>,
    directory: PathBuf,
    /// Whether the directory is left for somebody to look at.
    keep: bool,
}

impl Dev {
    /// Starts a cluster and waits until all its nodes serve.
    pub fn start(args: &FailoverArgs) -> io::Result<Dev> {
        let directory = std::env::temp_dir().join(format!("beanpole-failover-{:016x}", random_id()));
        std::fs::create_dir_all(&directory)?;
        let log = File::create(directory.join("log"))?;
        let program = args.dev_program.clone().map_or_else(std::env::current_exe, Ok)?;
        let relays = args.faults.iter().any(|fault| fault.kind.needs_relays());
        let child = Command::new(&program)
            .args(["dev", "cluster", "--end-with-stdin", "--nodes", &args.dev_nodes.to_string()])
            .args(relays.then_some("--relays"))
            .args(args.dev_env.iter().flat_map(|set| ["--node-env", set]))
            .arg("--dir")
            .arg(&directory)
            .args(["--restart-after", &format!("{}ms", args.restart_after.as_millis())])
            .arg("--")
            .args(&args.serve_flags)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut dev = Dev { child, program, cables: None, directory, keep: true };
        if relays {
            dev.lay_cables()?;
        }
        dev.wait_until_ready(usize::from(args.dev_nodes))?;
        dev.keep = false;
        Ok(dev)
    }

    /// The nodes try until their relays listen.
    fn lay_cables(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + READY_LIMIT;
        let cluster = loop {
            match self.cluster() {
                Ok(cluster) => break cluster,
                Err(e) if Instant::now() > deadline || self.child.try_wait()?.is_some() => return Err(e),
                Err(_) => std::thread::sleep(LOOK),
            }
        };
        let ends: Vec<CableEnd> = cluster.nodes.iter().filter_map(CableEnd::of).collect();
        self.cables = Some(Cables::lay(&ends)?);
        Ok(())
    }

    fn wait_until_ready(&mut self, nodes: usize) -> io::Result<()> {
        let (deadline, log) = (Instant::now() + READY_LIMIT, self.log());
        loop {
            let why =
                |what: &str| io::Error::other(format!("the local cluster {what}; see {}", log.display()));
            if let Some(status) = self.child.try_wait()? {
                return Err(why(&format!("ended with {status}")));
            }
            let ready = DevCluster::load(&self.directory).is_ok_and(|cluster| {
                cluster.nodes.len() == nodes
                    && cluster.nodes.iter().all(|node| admin::is_ready(&node.admin, ANSWER_LIMIT))
            });
            if ready {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(why(&format!("did not serve within {READY_LIMIT:?}")));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The nodes as they are now.
    pub fn cluster(&self) -> io::Result<DevCluster> {
        DevCluster::load(&self.directory)
    }

    /// Where clients connect.
    pub fn addresses(&self) -> io::Result<Vec<NodeAddress>> {
        let nodes = self.cluster()?.nodes;
        Ok(nodes.iter().map(|n| NodeAddress { name: n.name(), address: n.clients.clone() }).collect())
    }

    /// What lies between the nodes; none when no fault is to cut it.
    pub fn cables(&self) -> Option<&Cables> {
        self.cables.as_ref()
    }

    /// Where the nodes answer operators: HOST:PORT,...
    pub fn admins(&self) -> io::Result<String> {
        Ok(self.cluster()?.nodes.iter().map(|node| node.admin.as_str()).collect::<Vec<_>>().join(","))
    }

    /// One of the program's verbs for operators, asking these nodes.
    pub fn verb(&self, words: &[&str]) -> io::Result<OperatorVerb> {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        Ok(OperatorVerb { program: self.program.clone(), admins: self.admins()?, words })
    }

    /// Waits until all nodes serve and compares their states: why they are not known to be equal, if so.
    pub fn compare(&self) -> Result<(), String> {
        let limit = COMPARE_LIMIT_S.to_string();
        let healthy = ["cluster", "health", "--watch", "--exit-when-healthy", "--timeout", &limit];
        for words in [&healthy[..], &["cluster", "verify", "--timeout", &limit]] {
            self.verb(words).map_err(|e| e.to_string())?.run()?;
        }
        Ok(())
    }

    /// The lines of all nodes.
    pub fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Leaves the directory with data and log when the cluster ends.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

/// A verb of the program for operators, ready to run.
#[derive(Clone, Debug)]
pub struct OperatorVerb {
    program: PathBuf,
    /// HOST:PORT,...
    admins: String,
    words: Vec<String>,
}

impl OperatorVerb {
    /// Runs it to its end: what it says, or what it complains of.
    pub fn run(&self) -> Result<String, String> {
        let out = Command::new(&self.program).args(&self.words).env("BEANPOLE_ADMIN", &self.admins).output();
        let out = out.map_err(|e| e.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let (said, complained) = (text(&out.stdout), text(&out.stderr));
        if out.status.success() { Ok(said) } else { Err(format!("{complained} {said}").trim().to_owned()) }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // The end of its standard input is what it waits for.
        drop(self.child.stdin.take());
        let deadline = Instant::now() + END_LIMIT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
        // If it has ended, both say so.
        let _ended = self.child.kill();
        let _status = self.child.wait();
        if !self.keep {
            let _what_is_left_is_in_the_temporary_place = std::fs::remove_dir_all(&self.directory);
        }
    }
}
