//! The hand that does the harm, at the times of the plan, and takes back what is not to last. What asks a node, and so may have
//! to wait for one that is frozen, is done by a thread of its own: the plan goes on meanwhile.

use super::args::{Fault, Kind, NodeAddress, Target};
use super::cables::{Cables, Side};
use super::dev::Dev;
use super::dev_cluster::DevCluster;
use super::faults::Form;
use super::run::Shared;
use super::wire::Wire;
use crate::admin;
use beanpole_protocol::{ClientReply, Command};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a node may take to answer a question.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// How long it is tried to take a drained node back into service, and how often.
const RESUME_LIMIT: Duration = Duration::from_secs(30);
const VERB_PAUSE: Duration = Duration::from_millis(200);
/// The longest sleep before a fault in one piece.
const NAP: Duration = Duration::from_millis(20);

/// Carries out the plan, and takes back at the end what would last: frozen nodes go on, the network heals, drained nodes
/// serve.
pub fn carry_out(shared: &Shared, dev: Option<&Dev>) {
    let mut hand = Hand { shared, dev, last: None, pending: Vec::new(), verbs: Vec::new() };
    let mut plan: Vec<&Fault> = shared.settings.faults.iter().collect();
    plan.sort_by_key(|fault| fault.at);
    for fault in plan {
        if !hand.wait_until(fault.at.as_nanos() as u64) {
            break;
        }
        hand.strike(fault);
    }
    hand.wait_until(u64::MAX);
    hand.take_back(|_| true);
    for verb in std::mem::take(&mut hand.verbs) {
        hand.ended(verb);
    }
}

struct Hand<'a> {
    shared: &'a Shared,
    dev: Option<&'a Dev>,
    /// The node that was hit last.
    last: Option<u64>,
    /// What is to be taken back.
    pending: Vec<Pending>,
    /// Verbs under way.
    verbs: Vec<Verb>,
}

/// One of the program's own verbs, under way.
struct Verb {
    /// The event that it brings about.
    event: usize,
    thread: JoinHandle<Result<(), String>>,
}

/// Something that was done and does not end by itself.
#[derive(Clone, Debug)]
struct Pending {
    /// When it is taken back, in ns.
    until_ns: u64,
    /// The node's index.
    node: Option<usize>,
    how: Undo,
}

/// How something is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Undo {
    /// This process goes on.
    Cont(i32),
    /// What is cut of this node becomes whole.
    Heal(u64),
    /// This node is taken back into service.
    Resume(u64),
}

/// What a fault is to hit.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    /// The node's index.
    node: Option<usize>,
    /// The node's id.
    id: Option<u64>,
    pid: Option<i32>,
}

impl Hand<'_> {
    /// Sleeps; false when the load ends before.
    fn wait_until(&mut self, at_ns: u64) -> bool {
        loop {
            let now = self.shared.now_ns();
            self.take_back(|pending| pending.until_ns <= now);
            for verb in self.verbs.extract_if(.., |verb| verb.thread.is_finished()).collect::<Vec<_>>() {
                self.ended(verb);
            }
            if self.shared.is_draining() {
                return false;
            }
            if now >= at_ns {
                return true;
            }
            std::thread::sleep(NAP.min(Duration::from_nanos(at_ns - now)));
        }
    }

    /// Takes back what is due.
    fn take_back(&mut self, is_due: impl Fn(&Pending) -> bool) {
        let due: Vec<Pending> = self.pending.extract_if(.., |pending| is_due(pending)).collect();
        for pending in due {
            let what = match pending.how {
                Undo::Cont(pid) => format!("cont {pid}"),
                Undo::Heal(id) => format!("heal n{id}"),
                Undo::Resume(id) => format!("resume n{id}"),
            };
            let now = self.shared.now_ns();
            let event = self.shared.events.lock().add(now, what, pending.node, Form::Undone);
            let done = self.undo(event, pending.how);
            self.undone(pending.node, pending.how);
            if let Err(why) = done {
                self.shared.events.lock().failed(event, why.to_string());
            }
        }
    }

    /// A verb has ended, or is waited for.
    fn ended(&self, verb: Verb) {
        let result = verb.thread.join().expect("a verb does not panic");
        if let Err(why) = result {
            self.shared.events.lock().failed(verb.event, why);
        }
    }

    fn undo(&mut self, event: usize, how: Undo) -> io::Result<()> {
        match how {
            Undo::Cont(pid) => {
                // It may have been killed meanwhile.
                let _gone = kill(Pid::from_raw(pid), Signal::SIGCONT);
                Ok(())
            }
            Undo::Heal(id) => self.cables().map(|cables| cables.heal(id)),
            // A node that stays drained would be a fault without an end.
            Undo::Resume(id) => self.verb(event, &["node", "resume", &id.to_string()], RESUME_LIMIT),
        }
    }

    fn undone(&self, node: Option<usize>, how: Undo) {
        let form = match how {
            Undo::Cont(_) => Form::Frozen,
            Undo::Heal(_) => Form::CutOff,
            Undo::Resume(_) => Form::Ending,
        };
        if let Some(node) = node {
            self.shared.events.lock().undone(node, form, self.shared.now_ns());
        }
    }

    fn strike(&mut self, fault: &Fault) {
        let what = format!("{} {}", fault.kind.name(), fault.target);
        let found = self.find(&fault.target);
        let named =
            fault.node.as_ref().and_then(|name| self.shared.nodes.iter().position(|n| n.name == *name));
        let node = named.or(found.as_ref().ok().and_then(|found| found.node));
        // Written down first: a client must not notice the fault before it is known.
        let event = self.shared.events.lock().add(self.shared.now_ns(), what, node, form(fault.kind));
        let done = found.and_then(|found| self.act(event, fault, Found { node, ..found }));
        if let Err(e) = done {
            self.shared.events.lock().failed(event, e.to_string());
        }
    }

    fn act(&mut self, event: usize, fault: &Fault, found: Found) -> io::Result<()> {
        let id = || found.id.ok_or_else(|| io::Error::other("no node of a local cluster"));
        match fault.kind {
            Kind::Kill => signal(found, Signal::SIGKILL),
            Kind::Term => signal(found, Signal::SIGTERM),
            Kind::Stop => {
                signal(found, Signal::SIGSTOP)?;
                let pid = found.pid.expect("it was signalled");
                self.take_back_after(self.shared.settings.cont_after, found.node, Undo::Cont(pid));
                Ok(())
            }
            Kind::Cont => {
                signal(found, Signal::SIGCONT)?;
                let how = Undo::Cont(found.pid.expect("it was signalled"));
                self.pending.retain(|pending| pending.how != how);
                self.undone(found.node, how);
                Ok(())
            }
            Kind::Cut => self.cut(id()?, found.node, Side::Both),
            Kind::CutIn => self.cut(id()?, found.node, Side::Incoming),
            Kind::CutOut => self.cut(id()?, found.node, Side::Outgoing),
            Kind::Heal => self.now(event, id()?, found.node, Undo::Heal),
            Kind::Drain => {
                self.take_back_after(Duration::MAX, found.node, Undo::Resume(id()?));
                self.verb(event, &["node", "drain", &id()?.to_string()], Duration::ZERO)
            }
            Kind::Resume => self.now(event, id()?, found.node, Undo::Resume),
            Kind::Lead => {
                self.verb(event, &["cluster", "transfer-leader", &id()?.to_string()], Duration::ZERO)
            }
            Kind::Run => self.shell(&fault.target.to_string()),
        }
    }

    fn cut(&mut self, id: u64, node: Option<usize>, side: Side) -> io::Result<()> {
        self.cables()?.cut(id, side);
        self.take_back_after(self.shared.settings.heal_after, node, Undo::Heal(id));
        Ok(())
    }

    /// Takes something back before its time.
    fn now(&mut self, event: usize, id: u64, node: Option<usize>, how: fn(u64) -> Undo) -> io::Result<()> {
        self.pending.retain(|pending| pending.how != how(id));
        self.undo(event, how(id))?;
        self.undone(node, how(id));
        Ok(())
    }

    fn take_back_after(&mut self, after: Duration, node: Option<usize>, how: Undo) {
        let after = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        let until_ns = self.shared.now_ns().saturating_add(after);
        self.pending.push(Pending { until_ns, node, how });
    }

    fn cables(&self) -> io::Result<&Cables> {
        let cables = self.dev.and_then(Dev::cables);
        cables.ok_or_else(|| io::Error::other("nothing lies between these nodes that could be cut"))
    }

    /// Begins one of the program's own verbs on the local cluster; it is tried again for so long when it fails.
    fn verb(&mut self, event: usize, words: &[&str], again: Duration) -> io::Result<()> {
        let verb = self.dev.ok_or(io::ErrorKind::Unsupported)?.verb(words)?;
        let begun = Instant::now();
        let run = move || {
            loop {
                match verb.run() {
                    Err(_) if begun.elapsed() < again => std::thread::sleep(VERB_PAUSE),
                    ended => return ended.map(drop),
                }
            }
        };
        let thread = std::thread::Builder::new().name("verb".into()).spawn(run)?;
        self.verbs.push(Verb { event, thread });
        Ok(())
    }

    fn shell(&self, command: &str) -> io::Result<()> {
        let mut shell = std::process::Command::new("sh");
        if let Some(dev) = self.dev {
            shell.env("BEANPOLE_ADMIN", dev.admins()?);
        }
        let status = shell.arg("-c").arg(command).status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("{command}: {status}"))) }
    }

    fn find(&mut self, target: &Target) -> io::Result<Found> {
        let dev = |dev: Option<&Dev>| dev.map(Dev::cluster).ok_or(io::ErrorKind::Unsupported)?;
        let id = match target {
            Target::Command(_) => return Ok(Found::default()),
            Target::Pid(pid) => {
                let node = node_with_pid(&self.shared.nodes, *pid);
                return Ok(Found { node, id: None, pid: Some(*pid) });
            }
            Target::Node(id) => *id,
            Target::Last => self.last.ok_or_else(|| io::Error::other("no node was hit before"))?,
            Target::Leader => leader(&dev(self.dev)?)?,
            Target::Follower => {
                let cluster = dev(self.dev)?;
                let leader = leader(&cluster)?;
                let follower = cluster.nodes.iter().find(|n| n.id != leader && n.pid.is_some());
                follower.map(|n| n.id).ok_or_else(|| io::Error::other("no follower runs"))?
            }
        };
        self.last = Some(id);
        let cluster = dev(self.dev)?;
        let node = cluster.nodes.iter().position(|node| node.id == id);
        let pid = node.and_then(|at| cluster.nodes[at].pid).map(|pid| pid as i32);
        Ok(Found { node, id: Some(id), pid })
    }
}

/// How it takes a node away.
fn form(kind: Kind) -> Form {
    match kind {
        Kind::Kill => Form::Dead,
        Kind::Term | Kind::Drain => Form::Ending,
        Kind::Stop => Form::Frozen,
        Kind::Cut | Kind::CutIn | Kind::CutOut => Form::CutOff,
        Kind::Cont | Kind::Heal | Kind::Resume => Form::Undone,
        Kind::Lead => Form::Moved,
        Kind::Run => Form::Any,
    }
}

fn signal(found: Found, signal: Signal) -> io::Result<()> {
    let pid = found.pid.ok_or_else(|| io::Error::other("the node does not run"))?;
    kill(Pid::from_raw(pid), signal).map_err(io::Error::from)
}

/// The node that leads, as one of the highest term says.
fn leader(cluster: &DevCluster) -> io::Result<u64> {
    let views = cluster.nodes.iter().filter_map(|node| admin::cluster(&node.admin, ANSWER_LIMIT));
    let newest = views.filter(|view| view.leader_id.is_some()).max_by_key(|view| view.term);
    newest.and_then(|view| view.leader_id).ok_or_else(|| io::Error::other("no node knows a leader"))
}

/// Finds a node by what its `stats` tell of its process.
fn node_with_pid(nodes: &[NodeAddress], pid: i32) -> Option<usize> {
    nodes.iter().position(|node| {
        let asked = Wire::open(&node.address, ANSWER_LIMIT)
            .and_then(|mut wire| wire.ask(&Command::Stats, ANSWER_LIMIT));
        match asked {
            Ok(ClientReply::Ok(body)) => stats_pid(&body) == Some(pid),
            Ok(_) | Err(_) => false,
        }
    })
}

fn stats_pid(body: &[u8]) -> Option<i32> {
    let text = std::str::from_utf8(body).ok()?;
    text.lines().find_map(|line| line.strip_prefix("pid: ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_tell_the_process() {
        assert_eq!(stats_pid(b"---\ncurrent-jobs-urgent: 0\npid: 4711\nversion: \"x\"\n"), Some(4711));
        assert_eq!(stats_pid(b"---\n"), None);
    }
}
