//! Runs the nodes: starts them, says what becomes of them, and ends them.
//!
//! ```text
//!            ┌ serve n1 ┐ lines   ┌───────┐
//!   spawn ──►│ serve n2 │────────►│ lines │──► standard error
//!            └ serve n3 ┘         └───────┘
//!                 ▲  admin HTTP   ┌───────┐
//!                 └───────────────│ watch │──► "node 2 leads"        (standard output)
//!                                 └───────┘
//! ```

use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::plan::{Plan, Refusal};
use super::watch::{self, Seen};
use super::{ClusterArgs, child, lines};

/// How often the children are looked after.
const TICK: Duration = Duration::from_millis(20);
/// How long a node may take to end after SIGTERM before it is killed.
const END_MAX: Duration = Duration::from_secs(5);
/// The exit code with which a server refuses to start: starting it again would end the same way.
const REFUSED_START: i32 = 2;

/// Runs a cluster until it is told to end.
pub(super) fn run(args: &ClusterArgs) -> Result<ExitCode, Refusal> {
    let plan = Plan::make(args)?;
    let (directory, kept) = (plan.directory.clone(), plan.kept);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut cluster = Cluster {
        plan,
        program: std::env::current_exe()?,
        serve_flags: args.serve_flags.clone(),
        node_env: args.node_env.clone(),
        restart_after: args.restart_after,
        running: Vec::new(),
    };
    let result = runtime.block_on(cluster.run(args.end_with_stdin));
    if !kept {
        remove(&directory);
    }
    result
}

fn remove(directory: &Path) {
    if let Err(e) = std::fs::remove_dir_all(directory) {
        eprintln!("beanpole: cannot remove {}: {e}", directory.display());
    }
}

/// Prints a line of our own; that nobody reads it is no reason to end.
fn say(line: &str) {
    let _nobody_reads = writeln!(io::stdout(), "{line}");
}

struct Cluster {
    plan: Plan,
    program: PathBuf,
    serve_flags: Vec<String>,
    /// NAME=VALUE, with {id}.
    node_env: Vec<String>,
    restart_after: Option<Duration>,
    /// What runs of each node, in the order of the plan.
    running: Vec<Slot>,
}

enum Slot {
    Running(Child),
    /// Dead, and to be started again at this time, if ever.
    Dead(Option<Instant>),
}

/// Why the cluster ends.
enum End {
    Asked,
    /// No node is left and none will be started.
    AllDead,
}

impl Cluster {
    async fn run(&mut self, end_with_stdin: bool) -> Result<ExitCode, Refusal> {
        let mut asked = asked_to_end(end_with_stdin)?;
        // A failed start ends those that did start.
        let end = match self.start_all() {
            Ok(()) => {
                say(&self.table());
                let (tell, seen) = unbounded_channel();
                watch::start(self.plan.cluster.nodes.iter().map(|n| n.admin.clone()).collect(), tell)?;
                self.look_after(seen, &mut asked).await
            }
            Err(e) => Err(e),
        };
        self.end_all(&mut asked).await;
        Ok(match end? {
            End::Asked => ExitCode::SUCCESS,
            End::AllDead => ExitCode::FAILURE,
        })
    }

    fn start_all(&mut self) -> Result<(), Refusal> {
        for index in 0..self.plan.cluster.nodes.len() {
            let child = self.start(index)?;
            self.running.push(Slot::Running(child));
        }
        self.store()
    }

    fn start(&mut self, index: usize) -> Result<Child, Refusal> {
        let node = &self.plan.cluster.nodes[index];
        let arguments = self.plan.arguments(node, &self.serve_flags);
        let (child, pipe) = child::spawn(&self.program, &arguments, &environment(&self.node_env, node.id))?;
        lines::forward(node.id, pipe)?;
        self.plan.cluster.nodes[index].pid = Some(child.id());
        Ok(child)
    }

    fn store(&self) -> Result<(), Refusal> {
        let directory = &self.plan.directory;
        self.plan.cluster.store(directory).map_err(|e| Refusal::Directory(directory.clone(), e))
    }

    async fn look_after(
        &mut self,
        mut seen: UnboundedReceiver<Seen>,
        asked: &mut UnboundedReceiver<()>,
    ) -> Result<End, Refusal> {
        let mut tick = tokio::time::interval(TICK);
        let mut announced = None;
        loop {
            tokio::select! {
                _ = asked.recv() => return Ok(End::Asked),
                Some(now) = seen.recv() => self.announce(now, &mut announced),
                _ = tick.tick() => {
                    self.reap()?;
                    self.start_again()?;
                    if self.running.iter().all(|slot| matches!(slot, Slot::Dead(None))) {
                        say("no node is left");
                        return Ok(End::AllDead);
                    }
                }
            }
        }
    }

    /// Tells of a leader once per term, when most nodes serve under it.
    fn announce(&self, now: Seen, announced: &mut Option<(u64, u64)>) {
        let nodes = self.plan.cluster.nodes.len();
        let serving = now.ready > nodes / 2;
        let Some(leader) = now.leader.filter(|_| serving) else { return };
        if *announced == Some((leader, now.term)) {
            return;
        }
        let pid = self.plan.cluster.nodes.iter().find(|node| node.id == leader).and_then(|node| node.pid);
        let kill = pid.map_or_else(String::new, |pid| format!("; to see it die: kill -9 {pid}"));
        let what = if announced.is_none() { "ready: node" } else { "node" };
        say(&format!("{what} n{leader} leads (term {}), {} of {nodes} serve{kill}", now.term, now.ready));
        *announced = Some((leader, now.term));
    }

    /// Reports those that have ended since the last look.
    fn reap(&mut self) -> Result<(), Refusal> {
        let mut changed = false;
        for (slot, node) in self.running.iter_mut().zip(&mut self.plan.cluster.nodes) {
            let Slot::Running(child) = slot else { continue };
            let Some(status) = child.try_wait()? else { continue };
            let again = self.restart_after.filter(|_| status.code() != Some(REFUSED_START));
            let what = match again {
                Some(after) => format!("it is started again in {after:?}"),
                None => "the others go on".to_owned(),
            };
            say(&format!("node {} (pid {}) {}; {what}", node.name(), child.id(), describe(status)));
            node.pid = None;
            *slot = Slot::Dead(again.map(|after| Instant::now() + after));
            changed = true;
        }
        if changed { self.store() } else { Ok(()) }
    }

    fn start_again(&mut self) -> Result<(), Refusal> {
        for index in 0..self.running.len() {
            if !matches!(self.running[index], Slot::Dead(Some(at)) if Instant::now() >= at) {
                continue;
            }
            let child = self.start(index)?;
            let name = self.plan.cluster.nodes[index].name();
            say(&format!("node {name} is started again: kill -9 {}", child.id()));
            self.running[index] = Slot::Running(child);
            self.store()?;
        }
        Ok(())
    }

    /// SIGTERM to all, SIGKILL to those that do not end in time, or at once when asked again.
    async fn end_all(&mut self, asked: &mut UnboundedReceiver<()>) {
        self.signal(Signal::SIGTERM);
        // A stopped process takes no SIGTERM.
        self.signal(Signal::SIGCONT);
        let all_ended = async {
            let mut tick = tokio::time::interval(TICK);
            while !self.all_ended() {
                tick.tick().await;
            }
        };
        let ended = tokio::select! {
            ended = tokio::time::timeout(END_MAX, all_ended) => ended.is_ok(),
            Some(()) = asked.recv() => false,
        };
        if !ended {
            self.signal(Signal::SIGKILL);
        }
        for slot in &mut self.running {
            if let Slot::Running(child) = slot {
                // An error would mean that it was waited for already.
                let _ended = child.wait();
            }
        }
    }

    fn all_ended(&mut self) -> bool {
        self.running.iter_mut().all(|slot| match slot {
            Slot::Running(child) => matches!(child.try_wait(), Ok(Some(_)) | Err(_)),
            Slot::Dead(_) => true,
        })
    }

    /// Signals every child that has not been waited for.
    fn signal(&mut self, signal: Signal) {
        for slot in &mut self.running {
            if let Slot::Running(child) = slot
                && let Ok(None) = child.try_wait()
            {
                let pid = i32::try_from(child.id()).expect("a pid fits in i32");
                // It may end between the look and the signal; its pid is ours until it is waited for.
                let _ended = kill(Pid::from_raw(pid), signal);
            }
        }
    }

    fn table(&self) -> String {
        let directory = self.plan.directory.display();
        let fate = if self.plan.kept { "kept" } else { "removed at the end" };
        let nodes = &self.plan.cluster.nodes;
        let mut table = format!("nodes: {}, in {directory} ({fate}); Ctrl-C ends them\n\n", nodes.len());
        let mut row = |cells: [&str; 6]| {
            let [node, clients, admin, pid, kill, data] = cells;
            table += &format!("  {node:<5} {clients:<16} {admin:<16} {pid:<8} {kill:<16} {data}\n");
        };
        row(["NODE", "CLIENTS", "ADMIN", "PID", "TO KILL IT", "DATA"]);
        for node in nodes {
            let pid = node.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            let data = self.plan.data_dir(node).display().to_string();
            row([&node.name(), &node.clients, &node.admin, &pid, &format!("kill -9 {pid}"), &data]);
        }
        let clients: Vec<String> =
            nodes.iter().map(|node| format!("{}={}", node.name(), node.clients)).collect();
        table += &format!("\nload for it: beanpole bench failover --nodes {}\n", clients.join(","));
        table
    }
}

/// What is added to a node's environment. A text without `=` is a name with an empty value.
fn environment(wanted: &[String], id: u64) -> Vec<(String, String)> {
    let named = wanted.iter().map(|text| text.split_once('=').unwrap_or((text, "")));
    named.map(|(name, value)| (name.to_owned(), value.replace("{id}", &id.to_string()))).collect()
}

fn describe(status: ExitStatus) -> String {
    let name = |signal: i32| Signal::try_from(signal).map_or_else(|_| signal.to_string(), |s| s.to_string());
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was killed by {}", name(signal)),
        (None, None) => format!("ended: {status}"),
    }
}

/// A message for each SIGINT or SIGTERM, and, if asked for, one when standard input ends.
fn asked_to_end(with_stdin: bool) -> io::Result<UnboundedReceiver<()>> {
    let (tell, asked) = unbounded_channel();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let (mut signals, tell) = (signal(kind)?, tell.clone());
        tokio::spawn(async move { while signals.recv().await.is_some() && tell.send(()).is_ok() {} });
    }
    if with_stdin {
        std::thread::Builder::new().name("stdin".into()).spawn(move || {
            // What is written there does not matter, only its end.
            let _end = io::stdin().read_to_end(&mut Vec::new());
            let _ending_already = tell.send(());
        })?;
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_its_own_environment() {
        let wanted = ["FILE=/x/n{id}".to_owned(), "FLAG=1".to_owned()];
        let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(environment(&wanted, 2), [set("FILE", "/x/n2"), set("FLAG", "1")]);
    }

    #[test]
    fn the_end_of_a_node_is_described() {
        assert_eq!(describe(ExitStatus::from_raw(9)), "was killed by SIGKILL");
        assert_eq!(describe(ExitStatus::from_raw(2 << 8)), "ended with exit code 2");
    }
}
