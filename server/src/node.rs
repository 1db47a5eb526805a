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
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use beanpole_raft::{
    Bodies, BodyAddr, BodyError, Node, Outcome, Payload, Proposal, SnapshotImage, StateMachine,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};

use crate::admission::{Admission, Parts, Stance};
use crate::cluster::report::{Addresses, Reports};
use crate::gateway::{ColdRead, Gateway, Pair, is_intact};
use crate::leader::{About, Elsewhere, Leader, ToLeader};
use crate::net::{Door, Pool};
use crate::queue::{Effects, Engine, JobState, LEVEL, SnapshotCursor};

/// Replies written before other tasks get their turn. While the rest is written, the first clients' next commands are read and
/// proposed, so that the disk is busy meanwhile.
const REPLIES_AT_ONCE: usize = 32;

/// How long after a proposal the thread stays awake for its commit. A fast disk syncs in less; going to sleep and being woken
/// would cost about as much again, on virtual machines above all (see docs/adr).
const AWAKE_MAX: Duration = Duration::from_micros(300);

/// The same when other nodes have a say: where several nodes share processors, a thread that stays awake for longer
/// takes from them.
const AWAKE_IN_CLUSTER_MAX: Duration = Duration::from_micros(100);

/// Clients' buffers may always take this much, however small the budget.
const BUFFERS_MIN: usize = 4 << 20;

/// Who met a job without a body gives it back. For so long, ...
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(5);
/// ... and so often it is looked whether that has happened.
const GIVEN_BACK_POLL: Duration = Duration::from_millis(50);

/// How long after a refused entry its commands are proposed again.
const AGAIN_AFTER: Duration = Duration::from_millis(20);

/// What the tasks of a node share.
pub struct Shared {
    /// Sessions, open batch, engine. Locked before `leader` where both are.
    pub gateway: Mutex<Gateway>,
    /// While this node leads: what makes entries.
    pub leader: Mutex<Option<Leader>>,
    pump: Notify,
    replies: Notify,
    uplink: Notify,
    /// Another node told its wall clock.
    walls: Notify,
    /// The last leader on this node: its term, and its number.
    office: watch::Sender<(u64, u64)>,
    /// How the nodes are, for operators.
    pub reports: Reports,
    /// How this node's memory is, and what follows from it.
    pub admission: Admission,
    /// What the leader allows: while this node leads, the worst of all voters.
    word: watch::Sender<Stance>,
    /// Read buffers of clients' connections.
    pub pool: Arc<Pool>,
    /// Who of them is let in.
    pub door: Arc<Door>,
    addresses: OnceLock<Addresses>,
}

impl Shared {
    /// Wraps a gateway.
    pub fn new(gateway: Gateway) -> Arc<Self> {
        let admission = Admission::default();
        let door = Arc::new(Door::new(admission.events.clone()));
        Arc::new(Shared {
            gateway: Mutex::new(gateway),
            leader: Mutex::new(None),
            pump: Notify::new(),
            replies: Notify::new(),
            uplink: Notify::new(),
            walls: Notify::new(),
            office: watch::Sender::new((0, 0)),
            reports: Reports::default(),
            admission,
            word: watch::Sender::new(Stance::default()),
            pool: Arc::default(),
            door,
            addresses: OnceLock::new(),
        })
    }

    /// Where this process can be reached; told once.
    pub fn set_addresses(&self, addresses: Addresses) {
        let _ = self.addresses.set(addresses);
    }

    /// Where this process can be reached.
    pub fn addresses(&self) -> Addresses {
        self.addresses.get().cloned().unwrap_or_default()
    }

    // ---- admission ----

    /// This node's own memory allows something else than before.
    pub fn heed_own_stance(&self) {
        self.gateway.lock().set_own_stance(self.admission.own());
    }

    /// While this node leads: what puts meet in the whole cluster is the worst of what its voters' memory allows, as far as they
    /// have told lately.
    pub fn decide_for(&self, voters: &[u64]) {
        let stance = self.reports.stances(voters).fold(self.admission.own(), Stance::worst);
        self.hear_word(stance);
    }

    /// While this node leads: what all of these members know comes into force.
    pub fn raise_level_for(&self, members: &[u64]) {
        let Some(level) = self.reports.level(members) else { return };
        let mut gateway = self.gateway.lock();
        if let Some(leader) = &mut *self.leader.lock() {
            leader.raise_level(&mut gateway.ground(), level);
        }
        self.wake_for(&gateway);
    }

    /// The leader's word.
    pub fn hear_word(&self, stance: Stance) {
        self.gateway.lock().hear_stance(stance);
        self.word.send_if_modified(|known| std::mem::replace(known, stance) != stance);
    }

    /// The leader's word, now and at each change.
    pub fn watch_word(&self) -> watch::Receiver<Stance> {
        self.word.subscribe()
    }

    /// Workers seem to feed themselves: a line and an event.
    fn suspect_loop(&self, pair: &Pair) {
        let Pair { from, to, rate, hops, .. } = pair;
        let text = format!(
            "a loop is suspected: workers that hold jobs of {from} put into {to}, {hops} hops deep, {rate} a second; \
             look at what these workers put, and limit it with `beanpole tube policy set {to} --max-hops N`"
        );
        tracing::warn!("{text}");
        self.admission.events.note("loop", text);
    }

    /// How much may be used for what clients send and do not complete, and for replies that they do not take, of a budget.
    pub fn set_buffer_limits(&self, budget: u64) {
        let part = |of: u64| usize::try_from(budget / of).unwrap_or(usize::MAX).max(BUFFERS_MIN);
        self.pool.set_limit(part(8));
        self.gateway.lock().set_reply_limit(part(16));
    }

    /// What grows with what clients do, by our own counters.
    pub fn memory_parts(&self) -> Parts {
        let gateway = self.gateway.lock();
        let log = gateway.log_memory();
        Parts {
            index: gateway.engine().index_bytes() as u64,
            snapshot: gateway.engine().saving_bytes() as u64,
            batches: gateway.batch_bytes() as u64,
            reads: self.pool.used() as u64,
            replies: gateway.unread_replies().0 as u64,
            ring: log.ring_bytes,
            proposed: log.proposed_bytes,
        }
    }

    /// Wakes whoever has something to do for the gateway as it is now.
    pub fn wake_for(&self, gateway: &Gateway) {
        if self.has_work(gateway) {
            self.wake_pump();
        }
        self.wake_uplink(gateway);
        self.wake_for_replies(gateway);
    }

    /// Wakes who asks the leader's node and the quorum, if there is something to ask.
    fn wake_uplink(&self, gateway: &Gateway) {
        if gateway.needs_barrier() || self.leader.lock().is_none() && gateway.has_messages() {
            self.uplink.notify_one();
        }
    }

    /// Wakes who writes replies, if there are any.
    pub fn wake_for_replies(&self, gateway: &Gateway) {
        if gateway.has_replies() {
            self.replies.notify_one();
        }
    }

    /// Whether there is something to do for the pump.
    fn has_work(&self, gateway: &Gateway) -> bool {
        let leads = |leader: &Leader| {
            gateway.has_messages() || leader.has_entry() || leader.has_doubts() || gateway.alarm_for(leader)
        };
        gateway.has_chores() || self.leader.lock().as_ref().is_some_and(leads)
    }

    /// Lets the pump look for work.
    pub fn wake_pump(&self) {
        self.pump.notify_one();
    }

    /// Resolves when the gateway may have something for the leader's node, or a question that needs a quorum.
    pub async fn uplink_called(&self) {
        self.uplink.notified().await;
    }

    /// This node leads `term` from now on, and serves its own gateway as it serves others'.
    pub fn take_office(&self, term: u64) {
        let mut gateway = self.gateway.lock();
        let node = gateway.node();
        let mut leader = Leader::new(term, node, &mut gateway.ground());
        if !gateway.is_clustered() {
            leader.raise_level(&mut gateway.ground(), LEVEL);
        }
        *self.leader.lock() = Some(leader);
        gateway.connect_leader();
        self.office.send_modify(|office| *office = (term, office.1 + 1));
        self.wake_for(&gateway);
        self.wake_pump();
    }

    /// An entry of this leader was lost: what it held is told again by all gateways, so that their sequences have no gap.
    pub fn take_office_again(&self, office: (u64, u64)) {
        if self.leader.lock().is_some() && *self.office.borrow() == office {
            tracing::warn!(
                term = office.0,
                "an entry was not taken by the log; gateways send again what has not applied"
            );
            self.take_office(office.0);
        }
    }

    /// The last leader on this node: its term, and a number that tells it from others of the same term.
    pub fn office(&self) -> watch::Receiver<(u64, u64)> {
        self.office.subscribe()
    }

    /// This node leads no longer.
    pub fn leave_office(&self) {
        let mut gateway = self.gateway.lock();
        *self.leader.lock() = None;
        gateway.disconnect_leader();
        gateway.leave_office();
    }

    /// Another node's gateway speaks to the leader of `term` on this node: a number for this conversation, once that leader
    /// is in office; none if it no longer is.
    pub async fn gateway_connected(&self, node: u32, term: u64) -> Option<u64> {
        self.office.subscribe().wait_for(|office| office.0 >= term).await.ok()?;
        let now = self.gateway.lock().now();
        let mut leader = self.leader.lock();
        let leader = leader.as_mut().filter(|leader| leader.term() == term)?;
        leader.heard(node, now);
        Some(leader.connected(node))
    }

    /// Hands a message of another node's gateway to the leader. False when it leads no longer, or the node has a
    /// newer conversation.
    pub fn tell_leader(&self, node: u32, term: u64, conversation: u64, message: ToLeader) -> bool {
        let mut gateway = self.gateway.lock();
        {
            let mut leader = self.leader.lock();
            let current =
                |leader: &&mut Leader| leader.term() == term && leader.is_current(node, conversation);
            let Some(leader) = leader.as_mut().filter(current) else { return false };
            leader.message(&mut gateway.ground(), node, message);
        }
        self.wake_for(&gateway);
        true
    }

    /// What a node asks of other nodes' clients; nothing when this one leads no longer.
    pub fn elsewhere(&self, node: u32, about: &About) -> Vec<Elsewhere> {
        self.leader.lock().as_ref().map(|leader| leader.elsewhere(node, about)).unwrap_or_default()
    }

    /// Another node's wall clock, as it told a moment ago.
    pub fn hear_wall(&self, node: u32, wall_us: u64) {
        self.gateway.lock().hear_wall(node, wall_us);
        self.walls.notify_waiters();
    }

    /// Resolves when the time is known from more than this node's own wall clock.
    pub async fn sure_of_time(&self, voters: usize) {
        loop {
            let told = self.walls.notified();
            if self.gateway.lock().is_sure_of_time(voters) {
                return;
            }
            told.await;
        }
    }

    /// Notes a sign of life of another node's gateway, and its wall clock. False when this node leads that term no longer.
    pub fn heard_gateway(&self, node: u32, term: u64, wall_us: u64) -> bool {
        let now = {
            let mut gateway = self.gateway.lock();
            gateway.hear_wall(node, wall_us);
            gateway.now()
        };
        let mut leader = self.leader.lock();
        let Some(leader) = leader.as_mut().filter(|leader| leader.term() == term) else { return false };
        leader.heard(node, now);
        true
    }

    /// Stamp and lease clock now, while this node leads.
    pub fn leaders_clocks(&self) -> Option<(u64, u64)> {
        let mut gateway = self.gateway.lock();
        self.leader.lock().is_some().then(|| gateway.clocks_now())
    }

    /// Buries a job whose body no voter has, if the leader of that office still leads. Answers whether there is nothing left to
    /// do: a job that somebody holds is left alone.
    fn bury_lost(&self, office: (u64, u64), job: u64, body: BodyAddr) -> bool {
        let mut gateway = self.gateway.lock();
        {
            let mut leader = self.leader.lock();
            let Some(leader) = leader.as_mut().filter(|_| *self.office.borrow() == office) else {
                return true;
            };
            match gateway.engine().job(job).map(|view| view.state) {
                None | Some(JobState::Buried) => return true,
                Some(JobState::Reserved) => return false,
                Some(JobState::Ready | JobState::Delayed) => {}
            }
            leader.body_lost(&mut gateway.ground(), job, body);
        }
        self.wake_for(&gateway);
        true
    }

    /// Another node's conversation with the leader has ended.
    pub fn gateway_disconnected(&self, node: u32, term: u64, conversation: u64) {
        let mut leader = self.leader.lock();
        if let Some(leader) = leader.as_mut().filter(|leader| leader.term() == term) {
            leader.disconnected(node, conversation);
        }
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

    fn term_began(&mut self, term: u64) {
        self.shared.gateway.lock().term_began(term);
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
        for pair in gateway.take_suspicions() {
            self.shared.suspect_loop(&pair);
        }
        self.shared.wake_for(&gateway);
    }

    fn snapshot(&mut self) -> Box<dyn SnapshotImage> {
        let cursor = self.shared.gateway.lock().engine_mut().begin_snapshot();
        Box::new(Image { shared: self.shared.clone(), cursor: Some(cursor), given_up: false })
    }

    fn restore(&mut self, _index: u64, image: &mut dyn Read) -> std::io::Result<()> {
        // Read without the lock: it takes as long as the image is large.
        let engine = Engine::restore(image)?;
        *self.shared.gateway.lock().engine_mut() = engine;
        Ok(())
    }

    fn brought_forward(&mut self, index: u64) {
        let mut gateway = self.shared.gateway.lock();
        gateway.brought_forward();
        gateway.applied_up_to(index);
        self.shared.wake_for(&gateway);
    }

    fn for_each_live(&self, f: &mut dyn FnMut(BodyAddr)) {
        self.shared.gateway.lock().engine().for_each_body(f);
    }
}

/// A snapshot being taken, slice by slice, while entries apply between the slices.
struct Image {
    shared: Arc<Shared>,
    cursor: Option<SnapshotCursor>,
    given_up: bool,
}

impl SnapshotImage for Image {
    fn next_slice(&mut self, out: &mut Vec<u8>, live: &mut dyn FnMut(BodyAddr)) -> bool {
        let Some(cursor) = &mut self.cursor else { return false };
        let mut gateway = self.shared.gateway.lock();
        let more = gateway.engine_mut().snapshot_slice(cursor, out, live);
        self.given_up = gateway.engine().snapshot_given_up();
        drop(gateway);
        if !more {
            self.finish();
        }
        more
    }

    fn given_up(&self) -> bool {
        self.given_up
    }

    fn insist(&mut self) {
        self.shared.gateway.lock().engine_mut().insist_on_snapshot();
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

/// Whether the thread may stay awake for a commit: on a single processor the flush thread needs the time.
pub fn may_stay_awake() -> bool {
    std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1)
}

/// Takes messages from the gateway to the leader, proposes entries in order, sends cold reads to the blocking pool, and
/// calls `tick` when something is due. Ends when the node no longer takes proposals. `stays_awake`: see [`may_stay_awake`].
pub async fn pump(shared: Arc<Shared>, node: Node, stays_awake: bool) {
    let bodies = node.bodies();
    let (fates, fate) = mpsc::unbounded_channel();
    tokio::spawn(watch_fates(shared.clone(), fate));
    loop {
        while let Some((entry, office)) = next_entry(&shared) {
            let Ok(proposal) = node.propose(entry).await else { return };
            // Bounded by the entries under way.
            if fates.send((proposal, office)).is_err() {
                return;
            }
        }
        let (cold, doubts, alarm) = {
            let mut gateway = shared.gateway.lock();
            let mut leader = shared.leader.lock();
            let doubts = leader.as_mut().map(Leader::take_doubts).unwrap_or_default();
            let due = leader.as_ref().and_then(|leader| gateway.leader_tick_in_us(leader));
            (gateway.take_cold(), doubts, gateway.set_alarm(due))
        };
        for (job, body) in doubts {
            let office = *shared.office.borrow();
            tokio::spawn(confirm_loss(shared.clone(), bodies.clone(), office, job, body));
        }
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
    // A reserve whose time is over is a question to the quorum, which nobody else asks on an idle node.
    shared.wake_uplink(&gateway);
    shared.wake_for_replies(&gateway);
}

/// Keeps the thread looking at sockets and completions while a batch is under way, but not for long, and gives the processor
/// to whoever else wants it. True when there is something to do for the pump.
async fn await_log(shared: &Shared) -> bool {
    let begun = Instant::now();
    let limit = if shared.gateway.lock().is_clustered() { AWAKE_IN_CLUSTER_MAX } else { AWAKE_MAX };
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
        if begun.elapsed() > limit {
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
fn next_entry(shared: &Shared) -> Option<(Payload, (u64, u64))> {
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
    leader.take_entry(&mut gateway.ground()).map(|entry| (entry, *shared.office.borrow()))
}

/// Notices entries that the log did not take, though this node leads on.
async fn watch_fates(shared: Arc<Shared>, mut fates: mpsc::UnboundedReceiver<(Proposal, (u64, u64))>) {
    while let Some((proposal, office)) = fates.recv().await {
        match proposal.await {
            Outcome::Committed { .. } => {}
            Outcome::NotProposed { .. } | Outcome::Unknown => {
                // A leader that is being replaced refuses too: its successor is known a moment later.
                tokio::time::sleep(AGAIN_AFTER).await;
                shared.take_office_again(office);
            }
        }
    }
}

/// Reads a body that is on the disk only, away from the thread that applies.
async fn read_cold(shared: Arc<Shared>, bodies: Bodies, read: ColdRead) {
    let mut result = bodies.read(read.addr).await;
    if !result.as_ref().is_ok_and(|stored| is_intact(stored)) {
        // This disk's copy is damaged, or cannot be read.
        result = bodies.recover(read.addr).await;
    }
    let mut gateway = shared.gateway.lock();
    gateway.cold_done(&read, result);
    shared.wake_for(&gateway);
}

/// Another node could find a job's body on no voter: asks all of them from here, and has the job buried if that is so.
async fn confirm_loss(shared: Arc<Shared>, bodies: Bodies, office: (u64, u64), job: u64, body: BodyAddr) {
    match bodies.recover(body).await {
        Err(BodyError::Lost(_)) => {}
        Ok(_) => return tracing::info!(job, "the body of a job that was missed is here"),
        Err(error) => {
            return tracing::warn!(job, %error, "whether the body of a job is lost cannot be told yet");
        }
    }
    let deadline = tokio::time::Instant::now() + GIVEN_BACK_WITHIN;
    while !shared.bury_lost(office, job, body) && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(GIVEN_BACK_POLL).await;
    }
}
