//! The nodes, their disks, clocks and network, and what is known of them all.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use beanpole::embedded::{Client, Embedded, Parts, TimeSource, Witness};
use beanpole_raft::{FaultDisk, Options, Peering, SimHub};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::history::History;
use super::plan::Plan;
use super::trace::Trace;

/// Every node's data directory, on its own disk.
pub const DIR: &str = "data";
/// Where all wall clocks begin, in microseconds since the Unix epoch.
const WALL_BEGIN_US: i64 = 1_700_000_000_000_000;

/// How a node dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// Its process is killed: what it wrote stays.
    Kill,
    /// Its power goes: of what it had not synced some is lost, by this seed.
    Power(u64),
}

/// Everything that a run consists of, besides its clients.
pub struct World {
    /// The network.
    pub hub: SimHub,
    /// What happened.
    pub trace: Trace,
    /// What clients did.
    pub history: Mutex<History>,
    /// What the seed has drawn.
    pub plan: Plan,
    begun: Instant,
    places: Mutex<BTreeMap<u64, Place>>,
    chronicle: Arc<Mutex<Chronicle>>,
    /// Nodes that ended by themselves: number and life.
    ends: mpsc::UnboundedSender<(u64, u64)>,
}

/// Where a node lives.
struct Place {
    disk: FaultDisk,
    /// How far its wall clock is ahead, in microseconds.
    ahead: Arc<AtomicI64>,
    node: Option<Arc<Embedded>>,
    life: u64,
    watching: Option<AbortHandle>,
}

/// What must be the same on all nodes, as far as it was seen.
#[derive(Default)]
struct Chronicle {
    /// The hash of all history by entry.
    hashes: BTreeMap<u64, (u64, u64)>,
    /// The leader of each term.
    leaders: BTreeMap<u64, u64>,
    wrong: Vec<String>,
}

/// One node's clocks.
struct Time {
    begun: Instant,
    ahead: Arc<AtomicI64>,
}

impl TimeSource for Time {
    fn monotonic_us(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).expect("a run is short")
    }

    fn wall_us(&self) -> u64 {
        let elapsed = i64::try_from(self.begun.elapsed().as_micros()).expect("a run is short");
        u64::try_from(WALL_BEGIN_US + elapsed + self.ahead.load(Relaxed))
            .expect("clocks do not go that far back")
    }
}

/// Compares a node's states with those of the others.
struct Onlooker {
    node: u64,
    chronicle: Arc<Mutex<Chronicle>>,
    trace: Trace,
}

impl Witness for Onlooker {
    fn state(&self, index: u64, history: u64) {
        self.trace.note(format_args!("node {} applied {index} {history:016x}", self.node));
        let mut chronicle = self.chronicle.lock();
        let (first, hash) = *chronicle.hashes.entry(index).or_insert((self.node, history));
        if hash != history {
            let node = self.node;
            chronicle.wrong.push(format!("nodes {first} and {node} differ after entry {index}"));
        }
    }
}

impl Chronicle {
    /// A node believes that `leader` leads `term`.
    fn leads(&mut self, term: u64, leader: u64) {
        let known = *self.leaders.entry(term).or_insert(leader);
        if known != leader {
            self.wrong.push(format!("term {term} has two leaders, {known} and {leader}"));
        }
    }
}

/// The address of a node among its peers.
#[must_use]
pub fn address(id: u64) -> String {
    format!("node{id}:1")
}

impl World {
    /// Nodes that do not run yet. Those that end by themselves are told through the receiver.
    #[must_use]
    pub fn new(plan: Plan, trace: Trace) -> (Arc<Self>, mpsc::UnboundedReceiver<(u64, u64)>) {
        let (ends, ended) = mpsc::unbounded_channel();
        let hub = SimHub::with_delay(plan.network_seed, plan.delay_max);
        hub.set_weather(plan.delay_max, plan.loss);
        let place = |id: u64| {
            let disk = FaultDisk::with_sector(plan.sector);
            disk.slow_down(plan.disk_latency, plan.network_seed ^ id);
            (id, Place { disk, ahead: Arc::default(), node: None, life: 0, watching: None })
        };
        let places = (1..=plan.nodes).map(place).collect();
        let world = Self {
            hub,
            trace,
            history: Mutex::default(),
            plan,
            begun: Instant::now(),
            places: Mutex::new(places),
            chronicle: Arc::default(),
            ends,
        };
        (Arc::new(world), ended)
    }

    fn options(&self, id: u64, disk: FaultDisk) -> Options {
        let plan = &self.plan;
        let mut options = Options::new(PathBuf::from(DIR));
        options.node_id = id;
        options.disk = Arc::new(disk);
        options.inline = true;
        options.segment_bytes = plan.segment_bytes;
        options.snapshot_log_bytes = plan.snapshot_log_bytes;
        options.log_retention_bytes = plan.log_retention_bytes;
        options.ring_bytes = plan.ring_bytes;
        options.peering = Some(Peering {
            net: self.hub.net(&address(id)),
            address: address(id),
            peers: (1..=plan.nodes).map(|id| (id, address(id))).collect(),
        });
        options
    }

    /// Starts a node, unless it runs. False when its disk failed meanwhile: its process has ended, and it is to be started
    /// again.
    pub async fn start(self: &Arc<Self>, id: u64) -> bool {
        let (disk, ahead) = {
            let places = self.places.lock();
            let place = &places[&id];
            if place.node.is_some() {
                return true;
            }
            (place.disk.clone(), place.ahead.clone())
        };
        let witness = Onlooker { node: id, chronicle: self.chronicle.clone(), trace: self.trace.clone() };
        let parts = Parts {
            options: self.options(id, disk.clone()),
            time: Box::new(Time { begun: self.begun, ahead }),
            witness: Arc::new(witness),
            max_job_size: 65_535,
        };
        match Embedded::start(parts).await {
            Ok(node) => {
                self.trace.note(format_args!("node {id} started"));
                self.moved_in(id, Arc::new(node));
                true
            }
            Err(error) if disk.has_failed() => {
                self.trace.note(format_args!("node {id} does not start: {error}"));
                self.hub.crash(&address(id));
                let seed = self.plan.network_seed.wrapping_add(disk.changes());
                self.places.lock().get_mut(&id).expect("a node of the plan").disk = disk.power_cut(seed);
                false
            }
            Err(error) => {
                self.history.lock().violate(format!("node {id} does not start: {error}"));
                true
            }
        }
    }

    fn moved_in(self: &Arc<Self>, id: u64, node: Arc<Embedded>) {
        let mut places = self.places.lock();
        let place = places.get_mut(&id).expect("a node of the plan");
        place.life += 1;
        let watch = watch(self.clone(), id, place.life, node.node().clone());
        place.watching = Some(tokio::spawn(watch).abort_handle());
        place.node = Some(node);
    }

    /// Ends a node's life at once, if it has one; answers whether it had.
    pub fn crash(&self, id: u64, death: Death) -> bool {
        let mut places = self.places.lock();
        let place = places.get_mut(&id).expect("a node of the plan");
        let Some(node) = place.node.take() else { return false };
        self.trace.note(format_args!("node {id} dies: {death:?}"));
        self.hub.crash(&address(id));
        place.disk = match death {
            Death::Kill => place.disk.kill(),
            Death::Power(seed) => place.disk.power_cut(seed),
        };
        place.disk.slow_down(self.plan.disk_latency, self.plan.network_seed ^ place.life);
        place.bury(node);
        true
    }

    /// Ends a node in an orderly way; answers whether it ran.
    pub async fn stop(&self, id: u64) -> bool {
        let Some(node) = self.node(id) else { return false };
        self.trace.note(format_args!("node {id} is asked to stop"));
        node.stop().await;
        drop(node);
        // Its process ends, whatever is not done by then.
        self.crash(id, Death::Kill)
    }

    /// A node, while it runs.
    #[must_use]
    pub fn node(&self, id: u64) -> Option<Arc<Embedded>> {
        self.places.lock()[&id].node.clone()
    }

    /// All nodes that run.
    #[must_use]
    pub fn running(&self) -> Vec<(u64, Arc<Embedded>)> {
        let places = self.places.lock();
        places.iter().filter_map(|(id, place)| Some((*id, place.node.clone()?))).collect()
    }

    /// How often a node has been started.
    #[must_use]
    pub fn life(&self, id: u64) -> u64 {
        self.places.lock()[&id].life
    }

    /// The disk of a node.
    #[must_use]
    pub fn disk(&self, id: u64) -> FaultDisk {
        self.places.lock()[&id].disk.clone()
    }

    /// Sets a node's wall clock to be so far ahead of the others', in microseconds.
    pub fn set_clock(&self, id: u64, ahead_us: i64) {
        self.places.lock()[&id].ahead.store(ahead_us, Relaxed);
    }

    /// A client connects to a node.
    #[must_use]
    pub fn connect(&self, id: u64) -> Option<Client> {
        self.node(id)?.connect()
    }

    /// What was found wrong with the nodes, together with what clients found.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        let mut all = self.history.lock().violations.clone();
        all.extend(self.chronicle.lock().wrong.iter().cloned());
        all
    }

    /// Time since the beginning.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}

impl Place {
    fn bury(&mut self, node: Arc<Embedded>) {
        if let Some(watching) = self.watching.take() {
            watching.abort();
        }
        drop(node);
    }
}

/// Notes whom a node believes to lead, and when the node ends by itself.
async fn watch(world: Arc<World>, id: u64, life: u64, node: beanpole_raft::Node) {
    let mut leadership = node.watch_leadership();
    loop {
        let now = *leadership.borrow_and_update();
        if let Some(leader) = now.leader {
            let (term, ready) = (now.term, now.ready);
            world.trace.note(format_args!("node {id} follows {leader} in term {term}, ready {ready}"));
            world.chronicle.lock().leads(term, leader);
        }
        tokio::select! {
            biased;
            fatal = node.fatal() => {
                world.trace.note(format_args!("node {id} ends: {fatal}"));
                // The run may be over.
                world.ends.send((id, life)).ok();
                return;
            }
            changed = leadership.changed() => if changed.is_err() {
                return;
            },
        }
    }
}
