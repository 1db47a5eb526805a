//! The shell around gateway and log: it proposes batches, applies what commits, reads cold bodies and keeps time. All that it
//! decides is when to call what.
//!
//! ```text
//!   connection tasks ─► gateway.request        pump ─► Node::propose ─► segment log, fdatasync
//!          ▲                                                                     │
//!          └── sockets ◄─ gateway.flush ◄─ Machine::applied ◄─ Machine::apply ◄──┘ committed
//! ```
//!
//! Everything here runs on one thread, so the gateway's lock is free whenever it is taken, except while the admin server or
//! a snapshot slice looks in for a moment.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use beanpole_raft::{Bodies, BodyAddr, Node, Payload, SnapshotImage, StateMachine};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::gateway::{ColdRead, Gateway};
use crate::leader::Leader;
use crate::queue::{Effects, Engine, SnapshotCursor};

/// Replies written before other tasks get their turn. While the rest is written, the first clients' next commands are read and
/// proposed, so that the disk is busy meanwhile.
const REPLIES_AT_ONCE: usize = 32;

/// How long after a proposal the thread stays awake for its commit. A fast disk syncs in less; going to sleep and being woken
/// would cost about as much again, on virtual machines above all (see docs/adr).
const AWAKE_MAX: Duration = Duration::from_micros(300);

/// What the tasks of a node share.
pub struct Shared {
    /// Sessions, open batch, engine. Locked before `leader` where both are.
    pub gateway: Mutex<Gateway>,
    /// While this node leads: what makes entries.
    pub leader: Mutex<Option<Leader>>,
    pump: Notify,
    replies: Notify,
}

impl Shared {
    /// Wraps a gateway.
    pub fn new(gateway: Gateway) -> Arc<Self> {
        Arc::new(Shared {
            gateway: Mutex::new(gateway),
            leader: Mutex::new(None),
            pump: Notify::new(),
            replies: Notify::new(),
        })
    }

    /// Wakes whoever has something to do for the gateway as it is now.
    pub fn wake_for(&self, gateway: &Gateway) {
        if self.has_work(gateway) {
            self.wake_pump();
        }
        if gateway.has_replies() {
            self.replies.notify_one();
        }
    }

    fn has_work(&self, gateway: &Gateway) -> bool {
        let leads = |leader: &Leader| leader.has_entry() || gateway.alarm_for(leader);
        gateway.has_work() || self.leader.lock().as_ref().is_some_and(leads)
    }

    /// Lets the pump look for work.
    pub fn wake_pump(&self) {
        self.pump.notify_one();
    }

    /// This node leads `term` from now on, and serves its own gateway as it serves others'.
    pub fn take_office(&self, term: u64) {
        let mut gateway = self.gateway.lock();
        let node = gateway.node();
        *self.leader.lock() = Some(Leader::new(term, node, &mut gateway.ground()));
        gateway.connect_leader();
        self.wake_pump();
    }
}

/// The log's view of the gateway.
pub struct Machine {
    shared: Arc<Shared>,
    effects: Effects,
}

impl Machine {
    /// A machine that applies to the shared gateway.
    pub fn new(shared: Arc<Shared>) -> Self {
        Machine { shared, effects: Effects::default() }
    }
}

impl StateMachine for Machine {
    fn attach(&mut self, bodies: Bodies) {
        self.shared.gateway.lock().set_bodies(Box::new(bodies));
    }

    fn apply(&mut self, index: u64, payload: &Payload) {
        let mut gateway = self.shared.gateway.lock();
        gateway.apply(index, payload, &mut self.effects);
        if let Some(leader) = &mut *self.shared.leader.lock() {
            leader.applied(&mut gateway.ground(), &self.effects);
        }
    }

    fn applied(&mut self, index: u64) {
        let mut gateway = self.shared.gateway.lock();
        gateway.applied_up_to(index);
        gateway.flush(REPLIES_AT_ONCE);
        self.shared.wake_for(&gateway);
    }

    fn snapshot(&mut self) -> Box<dyn SnapshotImage> {
        let cursor = self.shared.gateway.lock().engine_mut().begin_snapshot();
        Box::new(Image { shared: self.shared.clone(), cursor: Some(cursor) })
    }

    fn restore(&mut self, _index: u64, image: &mut dyn Read) -> std::io::Result<()> {
        let mut gateway = self.shared.gateway.lock();
        *gateway.engine_mut() = Engine::restore(image)?;
        gateway.brought_forward();
        Ok(())
    }

    fn for_each_live(&self, f: &mut dyn FnMut(BodyAddr)) {
        self.shared.gateway.lock().engine().for_each_body(f);
    }
}

/// A snapshot being taken, slice by slice, while entries apply between the slices.
struct Image {
    shared: Arc<Shared>,
    cursor: Option<SnapshotCursor>,
}

impl SnapshotImage for Image {
    fn next_slice(&mut self, out: &mut Vec<u8>) -> bool {
        let Some(cursor) = &mut self.cursor else { return false };
        let more = self.shared.gateway.lock().engine_mut().snapshot_slice(cursor, out);
        if !more {
            self.finish();
        }
        more
    }
}

impl Image {
    fn finish(&mut self) {
        if let Some(cursor) = self.cursor.take() {
            self.shared.gateway.lock().engine_mut().end_snapshot(cursor);
        }
    }
}

/// A snapshot given up half-way must not leave the engine copying records for it.
impl Drop for Image {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Takes messages from the gateway to the leader, proposes entries in order, sends cold reads to the blocking pool, and calls `tick` when
/// something is due. Ends when the node no longer takes proposals.
pub async fn pump(shared: Arc<Shared>, node: Node) {
    let bodies = node.bodies();
    // On a single processor the flush thread needs the time.
    let stays_awake = std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1);
    loop {
        while let Some(entry) = next_entry(&shared) {
            if node.propose(entry).await.is_err() {
                return;
            }
        }
        let (cold, alarm) = {
            let mut gateway = shared.gateway.lock();
            let leader = shared.leader.lock();
            let due = leader.as_ref().and_then(|leader| gateway.leader_tick_in_us(leader));
            (gateway.take_cold(), gateway.set_alarm(due))
        };
        for read in cold {
            tokio::spawn(read_cold(shared.clone(), bodies.clone(), read));
        }
        if !(stays_awake && await_log(&shared).await) {
            match alarm {
                Some(us) => {
                    let _ = tokio::time::timeout(Duration::from_micros(us), shared.pump.notified()).await;
                }
                None => shared.pump.notified().await,
            }
        }
        // However busy it is: what is due is not put off.
        tick(&shared);
    }
}

fn tick(shared: &Shared) {
    let mut gateway = shared.gateway.lock();
    gateway.tick();
    if let Some(leader) = &mut *shared.leader.lock() {
        leader.tick(&mut gateway.ground());
    }
    if gateway.has_replies() {
        shared.replies.notify_one();
    }
}

/// Keeps the thread looking at sockets and completions while a batch is under way, but not for long, and gives the processor
/// to whoever else wants it. True when there is something to do for the pump.
async fn await_log(shared: &Shared) -> bool {
    let begun = Instant::now();
    loop {
        {
            let gateway = shared.gateway.lock();
            if shared.has_work(&gateway) {
                return true;
            }
            let leads = shared.leader.lock().as_ref().is_some_and(Leader::awaits_log);
            if !leads && !gateway.awaits_log() {
                return false;
            }
        }
        if begun.elapsed() > AWAKE_MAX {
            return false;
        }
        std::thread::yield_now();
        tokio::task::yield_now().await;
    }
}

/// Writes replies, a few at a time.
pub async fn reply(shared: Arc<Shared>) {
    loop {
        shared.replies.notified().await;
        while shared.gateway.lock().flush(REPLIES_AT_ONCE) {
            tokio::task::yield_now().await;
        }
    }
}

/// What this node's gateway tells a leader on this node goes straight into the open entry, which is then closed if it may be.
fn next_entry(shared: &Shared) -> Option<Payload> {
    let mut gateway = shared.gateway.lock();
    let mut leader = shared.leader.lock();
    let leader = leader.as_mut()?;
    let node = gateway.node();
    while !leader.is_full()
        && let Some(message) = gateway.next_message()
    {
        leader.message(&mut gateway.ground(), node, message);
    }
    if gateway.has_replies() {
        shared.replies.notify_one();
    }
    leader.take_entry()
}

/// Reads a body that is on the disk only, away from the thread that applies.
async fn read_cold(shared: Arc<Shared>, bodies: Bodies, read: ColdRead) {
    let result = tokio::task::spawn_blocking(move || bodies.read_blocking(read.addr)).await;
    let result = match result {
        Ok(result) => result,
        // The runtime is going down; the client goes with it.
        Err(_) => return,
    };
    let mut gateway = shared.gateway.lock();
    gateway.cold_done(&read, result);
    shared.wake_for(&gateway);
}
