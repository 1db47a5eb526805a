//! What goes wrong, and when: faults that were asked for, faults that clients noticed, and when a node was back.

use super::account::NodeFaults;
use super::admin;
use super::args::{Fault, Kind, NodeAddress, Target};
use super::dev::Dev;
use super::run::Shared;
use super::wire::Wire;
use beanpole_protocol::{ClientReply, Command};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use std::io;
use std::time::Duration;

/// How long a frozen node's clients keep what they hold: the nodes' own lease.
const FROZEN_LEASE_NS: u64 = 3_000_000_000;
/// How long a node that goes on after it was frozen may take to close what it must close.
const THAW_NS: u64 = 3_000_000_000;
/// How long a node must have been back before clients return to it.
const SOUND_NS: u64 = 500_000_000;
/// How long a node may take to answer a question.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// How long a node whose clients lost their connections is suspected to be dead. A dying process closes its sockets one by
/// one, so that it may still seem to listen.
const SUSPECT_NS: u64 = 1_000_000_000;
/// How long a node that was hit may take to answer before it counts as not back.
const BACK_LIMIT: Duration = Duration::from_millis(200);
/// How often it is asked.
const BACK_PERIOD: Duration = Duration::from_millis(20);
/// The longest sleep before a fault in one piece.
const NAP: Duration = Duration::from_millis(20);

/// One thing that happened to the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// When, in nanoseconds since the beginning of the load.
    pub at_ns: u64,
    /// `kill leader`, as it was asked for; `seen` for a node that was found dead.
    pub what: String,
    /// The node's index.
    pub node: Option<usize>,
    /// When the node answered again, in nanoseconds since the beginning of the load.
    pub back_ns: Option<u64>,
    /// Why it could not be done.
    pub failed: Option<String>,
    #[serde(skip)]
    form: Form,
    /// Whether the node has been seen not answering since.
    #[serde(skip)]
    was_away: bool,
}

/// How an event takes a node away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The process is gone at once.
    Dead,
    /// The process ends in order.
    Ending,
    /// The process does nothing, with its sockets open.
    Frozen,
    /// What a command does is not known.
    Any,
    /// The end of a freeze: nothing new goes wrong.
    Thawed,
}

impl Event {
    /// Whether it begins a time of trouble.
    pub fn is_fault(&self) -> bool {
        self.form != Form::Thawed && self.failed.is_none()
    }

    /// Whether trouble of a client of `node` at this time has this reason.
    fn explains(&self, node: usize, at_ns: u64) -> bool {
        let thaw = if self.form == Form::Frozen { THAW_NS } else { 0 };
        let until = self.back_ns.map_or(u64::MAX, |back| back + thaw);
        self.is_fault() && self.node == Some(node) && (self.at_ns..=until).contains(&at_ns)
    }
}

/// All that happened, in the order of time.
#[derive(Clone, Debug, Default)]
pub struct Events {
    all: Vec<Event>,
    /// Nodes whose clients lost a connection for no known reason, and when, in ns.
    suspects: Vec<(usize, u64)>,
}

impl Events {
    /// Everything.
    pub fn all(&self) -> &[Event] {
        &self.all
    }

    /// Whether a client of `node` may have had trouble at this time without that being the cluster's fault.
    pub fn excuse(&self, node: usize, at_ns: u64) -> bool {
        self.all.iter().any(|event| event.explains(node, at_ns))
    }

    /// Whether nothing has happened to `node`, or it has been back for a while.
    pub fn is_sound(&self, node: usize, now_ns: u64) -> bool {
        let mut of_node = self.all.iter().filter(|event| event.is_fault() && event.node == Some(node));
        of_node.all(|event| event.back_ns.is_some_and(|back| back + SOUND_NS <= now_ns))
    }

    fn add(&mut self, at_ns: u64, what: String, node: Option<usize>, form: Form) -> usize {
        self.all.push(Event { at_ns, what, node, back_ns: None, failed: None, form, was_away: false });
        self.all.len() - 1
    }

    /// A client of `node` lost its connection. If nothing explains that, the node is looked at: it may have died without
    /// being asked to.
    pub fn connection_lost(&mut self, node: usize, at_ns: u64) {
        if !self.excuse(node, at_ns) {
            self.suspects.push((node, at_ns));
        }
    }

    /// The suspects that nothing explains yet and that are worth a look, oldest first.
    fn open_suspects(&mut self, now_ns: u64) -> Vec<(usize, u64)> {
        let mut suspects = std::mem::take(&mut self.suspects);
        suspects.retain(|(node, at)| now_ns.saturating_sub(*at) < SUSPECT_NS && !self.excuse(*node, *at));
        suspects.sort_by_key(|(_, at)| *at);
        self.suspects.clone_from(&suspects);
        suspects
    }

    /// Nobody listens at `node`, and a client noticed that first at this time.
    fn found_dead(&mut self, node: usize, at_ns: u64) {
        if !self.excuse(node, at_ns) {
            self.add(at_ns, "seen dead".to_owned(), Some(node), Form::Dead);
        }
    }
}

impl NodeFaults for Events {
    fn ended_by_fault(&self, node: usize, from_ns: u64) -> Option<u64> {
        let of_node = self.all.iter().filter(|e| e.is_fault() && e.node == Some(node));
        let ends = of_node.filter_map(|event| match event.form {
            // An orderly end lets workers go one by one, which they notice themselves.
            Form::Ending | Form::Thawed => None,
            Form::Dead | Form::Any => (event.at_ns >= from_ns).then_some(event.at_ns),
            Form::Frozen => {
                let end = event.at_ns + FROZEN_LEASE_NS;
                let thawed = event.back_ns.is_some_and(|back| back < end);
                (end >= from_ns && !thawed).then_some(end)
            }
        });
        ends.min()
    }

    fn was_frozen(&self, node: usize, from_ns: u64, to_ns: u64) -> bool {
        self.all.iter().any(|event| {
            let until = event.back_ns.map_or(u64::MAX, |back| back + THAW_NS);
            event.form == Form::Frozen && event.node == Some(node) && event.at_ns <= to_ns && until >= from_ns
        })
    }
}

/// Carries out the plan, and lets everything it has stopped go on at the end.
pub fn carry_out(shared: &Shared, dev: Option<&Dev>, plan: &[Fault], cont_after: Duration) {
    let mut hand = Hand { shared, dev, last: None, stopped: Vec::new() };
    let mut plan: Vec<&Fault> = plan.iter().collect();
    plan.sort_by_key(|fault| fault.at);
    for fault in plan {
        if !hand.wait_until(fault.at.as_nanos() as u64) {
            break;
        }
        hand.strike(fault, cont_after);
    }
    hand.wait_until(u64::MAX);
    hand.thaw(u64::MAX);
}

/// What does the harm.
struct Hand<'a> {
    shared: &'a Shared,
    dev: Option<&'a Dev>,
    /// The node that was hit last.
    last: Option<u64>,
    /// What is stopped, and until when.
    stopped: Vec<(u64, i32, Option<usize>)>,
}

impl Hand<'_> {
    /// Sleeps; false when the load ends before.
    fn wait_until(&mut self, at_ns: u64) -> bool {
        loop {
            let now = self.shared.now_ns();
            self.thaw(now);
            if self.shared.is_draining() {
                return false;
            }
            if now >= at_ns {
                return true;
            }
            std::thread::sleep(NAP.min(Duration::from_nanos(at_ns - now)));
        }
    }

    /// Lets go on what has been stopped for long enough.
    fn thaw(&mut self, now_ns: u64) {
        let shared = self.shared;
        self.stopped.retain(|(until, pid, node)| {
            if *until > now_ns {
                return true;
            }
            // It may have been killed meanwhile.
            let _gone = kill(Pid::from_raw(*pid), Signal::SIGCONT);
            let what = format!("cont {pid}");
            shared.events.lock().add(shared.now_ns(), what, *node, Form::Thawed);
            false
        });
    }

    fn strike(&mut self, fault: &Fault, cont_after: Duration) {
        let what = format!("{} {}", fault.kind.name(), fault.target);
        let (form, signal) = match fault.kind {
            Kind::Kill => (Form::Dead, Signal::SIGKILL),
            Kind::Term => (Form::Ending, Signal::SIGTERM),
            Kind::Stop => (Form::Frozen, Signal::SIGSTOP),
            Kind::Cont => (Form::Thawed, Signal::SIGCONT),
            Kind::Run => (Form::Any, Signal::SIGCONT),
        };
        let found = self.find(&fault.target);
        let named =
            fault.node.as_ref().and_then(|name| self.shared.nodes.iter().position(|n| n.name == *name));
        let node = named.or(found.as_ref().ok().and_then(|found| found.node));
        // Written down first: a client must not notice the fault before it is known.
        let at_ns = self.shared.now_ns();
        let event = self.shared.events.lock().add(at_ns, what, node, form);
        let done = found.and_then(|found| match (&fault.target, found.pid) {
            (Target::Command(command), _) => shell(command),
            (_, Some(pid)) => kill(Pid::from_raw(pid), signal).map(|()| pid).map_err(io::Error::from),
            (_, None) => Err(io::Error::other("the node does not run")),
        });
        match done {
            Ok(pid) if fault.kind == Kind::Stop => {
                self.stopped.push((at_ns + cont_after.as_nanos() as u64, pid, node));
            }
            Ok(pid) => {
                if fault.kind == Kind::Cont {
                    self.stopped.retain(|(_, stopped, _)| *stopped != pid);
                }
            }
            Err(e) => self.shared.events.lock().all[event].failed = Some(e.to_string()),
        }
    }

    fn find(&mut self, target: &Target) -> io::Result<Found> {
        let dev = |dev: Option<&Dev>| dev.map(Dev::cluster).ok_or(io::ErrorKind::Unsupported)?;
        let id = match target {
            Target::Command(_) => return Ok(Found { node: None, pid: None }),
            Target::Pid(pid) => {
                return Ok(Found { node: node_with_pid(&self.shared.nodes, *pid), pid: Some(*pid) });
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
        Ok(Found { node, pid })
    }
}

/// What a fault is to hit.
struct Found {
    /// The node's index.
    node: Option<usize>,
    pid: Option<i32>,
}

/// The node that leads, as one of the highest term says.
fn leader(cluster: &super::dev_cluster::DevCluster) -> io::Result<u64> {
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

fn shell(command: &str) -> io::Result<i32> {
    let status = std::process::Command::new("sh").arg("-c").arg(command).status()?;
    if status.success() { Ok(0) } else { Err(io::Error::other(format!("{command}: {status}"))) }
}

/// Watches the nodes that were hit, until the run is over, and writes down when they serve again.
pub fn watch(shared: &Shared) {
    while !shared.is_over() {
        look_at_suspects(shared);
        let away: Vec<(usize, usize)> = {
            let events = shared.events.lock();
            let open = events.all.iter().enumerate().filter(|(_, e)| e.is_fault() && e.back_ns.is_none());
            open.filter_map(|(at, event)| Some((at, event.node?))).collect()
        };
        for (event, node) in away {
            let serves = serves(&shared.nodes[node]);
            let now = shared.now_ns();
            let event = &mut shared.events.lock().all[event];
            if !serves {
                event.was_away = true;
            } else if event.was_away {
                event.back_ns = Some(now);
            }
        }
        std::thread::sleep(BACK_PERIOD);
    }
}

fn look_at_suspects(shared: &Shared) {
    let suspects = shared.events.lock().open_suspects(shared.now_ns());
    for (node, at_ns) in suspects {
        if is_dead(&shared.nodes[node]) {
            shared.events.lock().found_dead(node, at_ns);
        }
    }
}

/// Whether a node answers a command that it can only answer as a part of the cluster.
fn serves(node: &NodeAddress) -> bool {
    let asked =
        Wire::open(&node.address, BACK_LIMIT).and_then(|mut wire| wire.ask(&Command::ListTubes, BACK_LIMIT));
    matches!(asked, Ok(ClientReply::Ok(_)))
}

/// Whether nobody listens at a node's port.
fn is_dead(node: &NodeAddress) -> bool {
    matches!(Wire::open(&node.address, BACK_LIMIT), Err(e) if e.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn events(form: Form, back_ns: Option<u64>) -> Events {
        let mut events = Events::default();
        let event = events.add(10 * S, "x".into(), Some(1), form);
        events.all[event].back_ns = back_ns;
        events
    }

    #[test]
    fn a_fault_excuses_its_own_node_until_it_is_back() {
        let killed = events(Form::Dead, Some(12 * S));
        assert!(killed.excuse(1, 10 * S) && killed.excuse(1, 12 * S));
        assert!(!killed.is_sound(1, 12 * S) && killed.is_sound(1, 13 * S) && killed.is_sound(0, 11 * S));
        assert!(!killed.excuse(1, 9 * S) && !killed.excuse(1, 13 * S) && !killed.excuse(0, 11 * S));
        let frozen = events(Form::Frozen, Some(20 * S));
        assert!(frozen.excuse(1, 22 * S), "what a frozen node's clients held is gone when it goes on");
        let mut failed = events(Form::Dead, None);
        failed.all[0].failed = Some("no such process".into());
        assert!(!failed.excuse(1, 11 * S) && failed.ended_by_fault(1, 0).is_none());
    }

    #[test]
    fn holds_end_with_their_node() {
        assert_eq!(events(Form::Dead, None).ended_by_fault(1, 2 * S), Some(10 * S));
        assert_eq!(events(Form::Dead, None).ended_by_fault(1, 11 * S), None);
        assert_eq!(events(Form::Dead, None).ended_by_fault(0, 2 * S), None);
        assert_eq!(events(Form::Frozen, None).ended_by_fault(1, 2 * S), Some(13 * S));
        assert_eq!(events(Form::Frozen, Some(11 * S)).ended_by_fault(1, 2 * S), None, "a short freeze");
        assert_eq!(events(Form::Ending, None).ended_by_fault(1, 2 * S), None);
        assert!(events(Form::Frozen, None).was_frozen(1, 9 * S, 11 * S));
        assert!(!events(Form::Frozen, None).was_frozen(1, 8 * S, 9 * S));
    }

    #[test]
    fn a_node_found_dead_is_written_down_once() {
        let mut events = Events::default();
        events.found_dead(1, 5 * S);
        events.found_dead(1, 6 * S);
        assert_eq!(events.all().len(), 1);
        events.connection_lost(1, 7 * S);
        assert_eq!(events.open_suspects(7 * S), [], "its death explains that");
        events.connection_lost(0, 7 * S);
        events.connection_lost(0, 6 * S);
        assert_eq!(events.open_suspects(7 * S - 1), [(0, 6 * S), (0, 7 * S)]);
        assert_eq!(events.open_suspects(7 * S), [(0, 7 * S)], "the other was looked at for long enough");
        assert!(events.excuse(1, 5 * S));
    }

    #[test]
    fn stats_tell_the_process() {
        assert_eq!(stats_pid(b"---\ncurrent-jobs-urgent: 0\npid: 4711\nversion: \"x\"\n"), Some(4711));
        assert_eq!(stats_pid(b"---\n"), None);
    }
}
