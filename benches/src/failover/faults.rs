//! What went wrong, and when: faults that were asked for (`hand` does them), faults that clients noticed, and when a node was
//! back.

use super::account::NodeFaults;
use super::args::NodeAddress;
use super::run::Shared;
use super::wire::Wire;
use beanpole_protocol::{ClientReply, Command};
use serde::Serialize;
use std::io;
use std::time::Duration;

/// How long a frozen node's clients keep what they hold: the nodes' own lease.
const FROZEN_LEASE_NS: u64 = 3_000_000_000;
/// A reply that was under way when a node was cut off may reach its client this much later; the client may be slow to look.
const CUT_MARGIN_NS: u64 = 1_000_000_000;
/// How long a node that goes on after it was frozen or cut off may take to close what it must close.
const THAW_NS: u64 = 3_000_000_000;
/// How long a node must have been back before clients return to it.
const SOUND_NS: u64 = 500_000_000;
/// How long a node whose clients lost their connections is suspected to be dead. A dying process closes its sockets one by
/// one, so that it may still seem to listen.
const SUSPECT_NS: u64 = 1_000_000_000;
/// How long a node that was hit may take to answer before it counts as not back.
const BACK_LIMIT: Duration = Duration::from_millis(200);
/// How often it is asked.
const BACK_PERIOD: Duration = Duration::from_millis(20);

/// One thing that happened to the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// When, in nanoseconds since the beginning of the load.
    pub at_ns: u64,
    /// `kill leader`, as it was asked for; `seen` for a node that was found dead.
    pub what: String,
    /// The node's index.
    pub node: Option<usize>,
    /// When the fault was taken back (the network healed, the process went on), in nanoseconds since the beginning of the load.
    pub undone_ns: Option<u64>,
    /// When the node answered again, in nanoseconds since the beginning of the load.
    pub back_ns: Option<u64>,
    /// Why it could not be done.
    pub failed: Option<String>,
    #[serde(skip)]
    pub(super) form: Form,
    /// Whether the node has been seen not answering since.
    #[serde(skip)]
    was_away: bool,
}

/// How an event takes a node away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The process is gone at once.
    Dead,
    /// The process ends in order.
    Ending,
    /// The process does nothing, with its sockets open.
    Frozen,
    /// The process runs, and no other node hears it, or it hears none.
    CutOff,
    /// What a command does is not known.
    Any,
    /// It stays, and another one leads.
    Moved,
    /// The end of a freeze or a cut: nothing new goes wrong.
    Undone,
}

impl Event {
    /// Whether it begins a time of trouble.
    pub fn is_fault(&self) -> bool {
        self.form != Form::Undone && self.failed.is_none()
    }

    /// Whether trouble of a client of `node` at this time has this reason.
    fn explains(&self, node: usize, at_ns: u64) -> bool {
        let thaw = if matches!(self.form, Form::Frozen | Form::CutOff) { THAW_NS } else { 0 };
        let until = self.back_ns.map_or(u64::MAX, |back| back + thaw);
        self.is_fault()
            && self.form != Form::Moved
            && self.node == Some(node)
            && (self.at_ns..=until).contains(&at_ns)
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
        let of_node = self.all.iter().filter(|event| event.is_fault() && event.node == Some(node));
        let mut harmful = of_node.filter(|event| event.form != Form::Moved);
        harmful.all(|event| event.back_ns.is_some_and(|back| back + SOUND_NS <= now_ns))
    }

    /// Writes a new event down; its place among all.
    pub(super) fn add(&mut self, at_ns: u64, what: String, node: Option<usize>, form: Form) -> usize {
        let (undone_ns, back_ns, failed) = (None, None, None);
        self.all.push(Event { at_ns, what, node, undone_ns, back_ns, failed, form, was_away: false });
        self.all.len() - 1
    }

    /// An event could not be brought about.
    pub(super) fn failed(&mut self, event: usize, why: String) {
        self.all[event].failed = Some(why);
    }

    /// What of this form had happened to `node` was taken back. It may have been so short that nobody saw it away.
    pub(super) fn undone(&mut self, node: usize, form: Form, at_ns: u64) {
        let of_node = self.all.iter_mut().filter(|event| event.node == Some(node) && event.form == form);
        for event in of_node.filter(|event| event.undone_ns.is_none() && event.failed.is_none()) {
            event.undone_ns = Some(at_ns);
            event.was_away = true;
        }
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
            Form::Ending | Form::Undone | Form::Moved => None,
            // It runs, and must itself close what its clients hold in time.
            Form::CutOff => None,
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

    fn was_cut_off(&self, node: usize, at_ns: u64) -> bool {
        self.all.iter().any(|event| {
            let until = event.undone_ns.unwrap_or(u64::MAX);
            let cut = event.form == Form::CutOff && event.node == Some(node) && event.failed.is_none();
            cut && (event.at_ns + CUT_MARGIN_NS..until).contains(&at_ns)
        })
    }
}

/// Watches the nodes that were hit, until the run is over, and writes down when they serve again.
pub fn watch(shared: &Shared) {
    while !shared.is_over() {
        look_at_suspects(shared);
        let away: Vec<(usize, usize)> = {
            let events = shared.events.lock();
            let open = events.all.iter().enumerate().filter(|(_, e)| e.is_fault() && e.back_ns.is_none());
            let open = open.filter(|(_, e)| e.form != Form::CutOff || e.undone_ns.is_some());
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
    fn a_node_that_is_cut_off_may_acknowledge_nothing() {
        let mut cut = events(Form::CutOff, None);
        assert!(!cut.was_cut_off(1, 11 * S - 1) && cut.was_cut_off(1, 11 * S) && !cut.was_cut_off(0, 12 * S));
        assert_eq!(cut.ended_by_fault(1, 2 * S), None, "it closes what its clients hold, and they notice");
        cut.undone(1, Form::Frozen, 15 * S);
        assert!(cut.was_cut_off(1, 16 * S), "it goes on, and nobody hears it");
        cut.undone(1, Form::CutOff, 20 * S);
        assert!(cut.was_cut_off(1, 20 * S - 1) && !cut.was_cut_off(1, 20 * S));
        assert!(cut.excuse(1, 30 * S), "it has not been seen to serve again");
    }

    #[test]
    fn a_new_leader_excuses_nothing() {
        let moved = events(Form::Moved, None);
        assert!(!moved.excuse(1, 10 * S) && moved.is_sound(1, 10 * S) && moved.all()[0].is_fault());
    }
}
