//! The leader's part of the data path, as a pure state machine: it puts gateways' batches, due times and offers into entries.
//!
//! ```text
//!   gateways' batches ──► Leader ──► entry: stamp, lease clock, sections, offers ──► log
//!   gateways' wants   ──►   ▲
//!                           └── effects of applied entries: what got ready, what found nothing
//! ```
//!
//! Every node may have to lead, but only the one that does has a `Leader`; it is made anew for each term, after the term's first
//! entry has applied, so that no offer of an earlier leader can still be on its way. What it knows of waiting
//! reserves and of tubes in use is
//! sent again by the gateways.

mod refs;
mod wants;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use beanpole_raft::{BodyAddr, Payload};

use crate::clock::Clocks;
use crate::queue::{BatchBuilder, Effects, Engine, Gateway, Item, SessionId, outline};
pub use refs::Clients;
use refs::Refs;
use wants::Wants;

/// Entries proposed and not yet applied, at most. While one is being synced the next can be on its way, once it is as large:
/// larger entries cost less than more of them (docs/adr/008).
pub const ENTRIES_UNDER_WAY_MAX: usize = 4;
/// Bytes of bodies in one entry beyond which no further batch is merged into it.
const ENTRY_BYTES_MAX: usize = 2 << 20;
/// A gateway that was not heard for this long is ended: its clients' jobs become ready. Longer than a gateway goes on without an
/// answer (see [`crate::gateway::lease`]), so that no job is with two workers.
pub const GATEWAY_SILENCE_MAX_US: u64 = 5_000_000;
/// While jobs are reserved the lease clock is advanced at least this often, in microseconds: half of what one step may add.
const LEASE_TICK_US: u64 = crate::clock::LEASE_STEP_MAX_US / 2;
/// Bodies that wait to be looked for, at most; what is beyond is told again when it is met again.
const DOUBTS_MAX: usize = 64;
/// Tubes ended in one entry, at most.
const TUBES_GONE_MAX: usize = 1000;

/// What a leader looks at when it decides: the state as of the last applied entry, and time.
pub struct Ground<'a> {
    /// The replicated state.
    pub engine: &'a Engine,
    /// This node's clocks.
    pub clocks: &'a mut Clocks,
    /// A quorum has confirmed not long ago that this node leads.
    pub confirmed: bool,
}

/// A message of a gateway to the leader. Order matters, and nothing may be lost in between: after a loss everything
/// that is not known to have applied is sent again.
#[derive(Debug, Clone)]
pub enum ToLeader {
    /// A closed batch.
    Batch(Payload),
    /// A session waits for a job.
    Want {
        /// Whose.
        session: SessionId,
        /// Counts the reserves of the session.
        number: u64,
        /// The tubes that the session watches.
        tubes: Vec<Arc<str>>,
        /// Its answer is due: the next entry decides.
        once: bool,
    },
    /// A session no longer waits.
    Unwant {
        /// Whose.
        session: SessionId,
        /// Which of its reserves.
        number: u64,
    },
    /// How many of the gateway's clients use and watch a tube now.
    Refers {
        /// The tube.
        tube: Arc<str>,
        /// How many.
        clients: Clients,
    },
    /// All tubes in use were told.
    Told,
    /// All voters have answered the gateway's node that they have not got a job's body.
    Lost {
        /// The job.
        job: u64,
        /// Its body.
        body: BodyAddr,
    },
}

/// What a gateway asks of other nodes' clients, together with how far the log is committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum About {
    /// Nothing.
    #[default]
    Nothing,
    /// Who refers to these tubes.
    Tubes(Vec<Arc<str>>),
    /// All tubes that somebody refers to.
    AllTubes,
}

/// A tube as other nodes' clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// Its name.
    pub tube: Arc<str>,
    /// Who refers to it.
    pub clients: Clients,
    /// How many wait for a job of it.
    pub waiting: u32,
}

/// An entry under construction.
struct Open {
    builder: BatchBuilder,
    may_ready: bool,
}

/// An entry that was proposed and has not applied.
struct UnderWay {
    may_ready: bool,
    command_bytes: usize,
}

/// Makes entries while this node leads.
pub struct Leader {
    term: u64,
    node: u32,
    open: Option<Open>,
    /// Entries proposed and not applied.
    under_way: VecDeque<UnderWay>,
    wants: Wants,
    refs: Refs,
    /// The number that each node's next section must have, once it is known.
    next_section: BTreeMap<Gateway, u64>,
    /// The newest stream of messages of each other node.
    streams: BTreeMap<u32, u64>,
    last_stream: u64,
    /// When each node was heard last, in monotonic microseconds.
    heard: BTreeMap<u32, u64>,
    /// When this leader took office, in monotonic microseconds.
    since: u64,
    /// Jobs whose bodies another node could find on no voter.
    doubts: Vec<(u64, BodyAddr)>,
    /// The level that it has proposed.
    level: u32,
}

impl Leader {
    /// Takes office: this node leads `term`, and has applied an entry of it.
    pub fn new(term: u64, node: u32, ground: &mut Ground<'_>) -> Self {
        ground.clocks.take_office(term, ground.engine.stamp(), ground.engine.lease());
        Leader {
            term,
            node,
            open: None,
            under_way: VecDeque::new(),
            wants: Wants::default(),
            refs: Refs::default(),
            next_section: BTreeMap::new(),
            streams: BTreeMap::new(),
            last_stream: 0,
            heard: BTreeMap::new(),
            since: ground.clocks.monotonic(),
            doubts: Vec::new(),
            level: 0,
        }
    }

    /// The term that it leads.
    pub fn term(&self) -> u64 {
        self.term
    }

    // ---- messages of gateways ----

    /// Takes a message of a node's gateway.
    pub fn message(&mut self, ground: &mut Ground<'_>, node: u32, message: ToLeader) {
        match message {
            ToLeader::Batch(batch) => self.batch(ground, &batch),
            ToLeader::Want { session, number, tubes, once } => {
                self.want(ground, session, number, tubes, once)
            }
            ToLeader::Unwant { session, number } => self.wants.remove_number(session, number),
            ToLeader::Refers { tube, clients } => {
                let free = self.refs.set(node, &tube, clients);
                if free {
                    self.end_if_empty(ground, &tube);
                }
            }
            ToLeader::Lost { job, body } => {
                let doubt = (job, body);
                if self.doubts.len() < DOUBTS_MAX && !self.doubts.contains(&doubt) {
                    self.doubts.push(doubt);
                }
            }
            ToLeader::Told => {
                self.refs.set_told(node);
                self.end_empty_tubes(ground);
            }
        }
    }

    /// A node's stream of messages begins: what it told before is void. Answers a number for the stream.
    pub fn connected(&mut self, node: u32) -> u64 {
        self.refs.forget(node);
        self.wants.remove_node(node);
        self.last_stream += 1;
        self.streams.insert(node, self.last_stream);
        self.last_stream
    }

    /// What a node asks of other nodes' clients. Tubes that none of them refers to are left out.
    pub fn elsewhere(&self, node: u32, about: &About) -> Vec<Elsewhere> {
        let tell = |tube: &Arc<str>| {
            let clients = self.refs.elsewhere(node, tube);
            let waiting = || u32::try_from(self.wants.waiting_elsewhere(node, tube)).unwrap_or(u32::MAX);
            (!clients.is_none()).then(|| Elsewhere { tube: tube.clone(), clients, waiting: waiting() })
        };
        match about {
            About::Nothing => Vec::new(),
            About::Tubes(tubes) => tubes.iter().filter_map(tell).collect(),
            About::AllTubes => self.refs.tubes().filter_map(tell).collect(),
        }
    }

    /// Whether this is the node's newest stream.
    pub fn is_current(&self, node: u32, stream: u64) -> bool {
        self.streams.get(&node) == Some(&stream)
    }

    /// A node's stream of messages has ended: nobody answers for its clients' wants now.
    pub fn disconnected(&mut self, node: u32, stream: u64) {
        if self.is_current(node, stream) {
            self.streams.remove(&node);
            self.wants.remove_node(node);
        }
    }

    /// A sign of life of a node's gateway.
    pub fn heard(&mut self, node: u32, monotonic_us: u64) {
        self.heard.insert(node, monotonic_us);
    }

    fn batch(&mut self, ground: &mut Ground<'_>, batch: &Payload) {
        let mut items = Vec::new();
        if let Err(error) = outline(batch, |item| items.push(item)) {
            tracing::error!(%error, "a gateway's batch cannot be read; it is dropped");
            return;
        }
        if !self.is_next(ground.engine, &items) {
            return;
        }
        let open = self.open(ground);
        open.builder.merge(batch).expect("it was read a moment ago");
        for item in items {
            self.note(ground, item);
        }
    }

    /// Whether the batch continues its gateway's sequence. What was sent before is not proposed twice; the engine would
    /// give a repetition no effect, and neither a section with a gap before it.
    fn is_next(&mut self, engine: &Engine, items: &[Item<'_>]) -> bool {
        let Some(Item::Section(gateway, sequence)) = items.first().copied() else { return false };
        if gateway.epoch == 0 {
            return true;
        }
        let next = match self.next_section.get(&gateway) {
            Some(next) => *next,
            None if engine.live_epoch(gateway.node) == Some(gateway.epoch) => {
                engine.last_sequence(gateway.node).map_or(1, |last| last + 1)
            }
            // Its life is over: the entry would have no effect.
            None => return false,
        };
        if sequence != next {
            tracing::debug!(?gateway, sequence, next, "a batch out of sequence is not proposed");
            return false;
        }
        self.next_section.insert(gateway, next + 1);
        true
    }

    /// Offers those who wait what a command is about to make ready.
    fn note(&mut self, ground: &mut Ground<'_>, item: Item<'_>) {
        match item {
            Item::Section(..) => return,
            Item::ReadyIn(tube) => self.offer_waiting(ground, tube, 1),
            Item::Kick(tube, bound) => {
                // As in beanstalkd, each kicked job goes to who waits for it before the next one is kicked.
                let view = ground.engine.tube(tube.as_bytes()).unwrap_or_default();
                let most = u64::from(bound).min(view.buried.max(view.delayed));
                self.offer_waiting(ground, tube, usize::try_from(most).unwrap_or(usize::MAX));
            }
            Item::ReadyJob(id) => self.offer_for_job(ground, id),
            Item::Closed(session) => {
                self.wants.remove(session);
                let held: Vec<u64> = ground.engine.session_jobs(session).collect();
                for id in held {
                    self.offer_for_job(ground, id);
                }
            }
            Item::MayReady => {}
        }
        self.open(ground).may_ready = true;
    }

    // ---- wants ----

    fn want(
        &mut self,
        ground: &mut Ground<'_>,
        session: SessionId,
        number: u64,
        tubes: Vec<Arc<str>>,
        once: bool,
    ) {
        let ready = tubes.iter().any(|tube| ground.engine.has_ready(tube.as_bytes()) > 0);
        let waits = self.wants.add(session, number, tubes, once);
        if waits && (once || ready || self.may_become_ready()) {
            self.offer(ground, session);
        }
    }

    /// Whether an entry that has not applied may make a job ready.
    fn may_become_ready(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.may_ready)
            || self.under_way.iter().any(|entry| entry.may_ready)
    }

    /// Puts the session's want into the open entry.
    fn offer(&mut self, ground: &mut Ground<'_>, session: SessionId) {
        self.open(ground);
        let Leader { open, wants, .. } = self;
        let (Some(open), Some(want)) = (open.as_mut(), wants.offer(session)) else { return };
        open.builder.offer(session, want.number, want.tubes.iter().map(|tube| tube.as_bytes()));
    }

    /// Offers up to `most` of the wants that have waited longest for a tube.
    fn offer_waiting(&mut self, ground: &mut Ground<'_>, tube: &str, most: usize) {
        for _ in 0..most {
            let Some(session) = self.wants.longest_waiting(tube) else { return };
            self.offer(ground, session);
        }
    }

    fn offer_for_job(&mut self, ground: &mut Ground<'_>, id: u64) {
        if self.wants.nobody_waits() {
            return;
        }
        if let Some(tube) = ground.engine.job(id).map(|job| job.tube.to_owned()) {
            self.offer_waiting(ground, &tube, 1);
        }
    }

    // ---- entries ----

    /// The entry that things go to, opened if there is none.
    fn open(&mut self, ground: &mut Ground<'_>) -> &mut Open {
        self.open.get_or_insert_with(|| {
            ground.clocks.advance();
            let builder = BatchBuilder::new(ground.clocks.stamp(), ground.clocks.lease());
            Open { builder, may_ready: false }
        })
    }

    /// Whether the open entry, if there is one, goes now: nothing is under way, or it has gathered as many commands
    /// as the newest one.
    fn may_propose(&self) -> bool {
        let (Some(newest), Some(open)) = (self.under_way.back(), &self.open) else { return true };
        self.under_way.len() < ENTRIES_UNDER_WAY_MAX && open.builder.command_bytes() >= newest.command_bytes
    }

    /// Whether further batches should wait for the next entry.
    pub fn is_full(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.builder.body_bytes() >= ENTRY_BYTES_MAX)
    }

    /// Whether an entry waits to be proposed.
    pub fn has_entry(&self) -> bool {
        self.open.is_some() && self.may_propose()
    }

    /// Whether an entry was proposed that has not applied yet.
    pub fn awaits_log(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Closes the open entry and hands it out to be proposed, unless enough are under way. It is stamped here, for it may
    /// have been open for long: a TTR or a delay counts from when the log is offered it.
    pub fn take_entry(&mut self, ground: &mut Ground<'_>) -> Option<Payload> {
        if !self.may_propose() {
            return None;
        }
        let mut open = self.open.take()?;
        ground.clocks.advance();
        open.builder.set_clocks(ground.clocks.stamp(), ground.clocks.lease());
        self.under_way
            .push_back(UnderWay { may_ready: open.may_ready, command_bytes: open.builder.command_bytes() });
        Some(open.builder.finish())
    }

    /// One of its entries has applied (`own`), or one of an earlier leader.
    pub fn applied(&mut self, ground: &mut Ground<'_>, effects: &Effects) {
        self.under_way.pop_front();
        for up in &effects.gateways_up {
            self.wants.keep_only(&ground.engine.live_gateways().collect::<Vec<_>>());
            self.heard.insert(up.node, ground.clocks.monotonic());
        }
        for handout in &effects.handouts {
            self.wants.remove_number(handout.session, handout.want);
        }
        for (session, number) in &effects.unmatched {
            let ready = match self.wants.unmatched(*session, *number) {
                Some(tubes) => tubes.iter().any(|tube| ground.engine.has_ready(tube.as_bytes()) > 0),
                None => false,
            };
            if ready {
                self.offer(ground, *session);
            }
        }
        for tube in &effects.ready_tubes {
            if !self.wants.nobody_waits() {
                let ready = ground.engine.has_ready(tube.as_bytes());
                self.offer_waiting(ground, tube, ready);
            }
        }
        for tube in &effects.emptied {
            self.end_if_empty(ground, tube);
        }
    }

    // ---- time ----

    /// Proposes what is due: delays, pauses and reservations that end, and gateways that were silent for too long.
    pub fn tick(&mut self, ground: &mut Ground<'_>) {
        ground.clocks.advance();
        self.end_silent_gateways(ground);
        let idle = self.open.is_none() && self.under_way.is_empty();
        if idle && ground.engine.due_now(ground.clocks.stamp(), ground.clocks.lease()) > 0 {
            self.open(ground).may_ready = true;
        }
    }

    /// In how many microseconds [`Leader::tick`] is next needed.
    pub fn next_tick_in_us(&self, engine: &Engine, clocks: &Clocks) -> Option<u64> {
        // What is under way fires what is due when it applies, and this is asked again then.
        let idle = self.open.is_none() && self.under_way.is_empty();
        let due = idle.then(|| next_due_in_us(engine, clocks)).flatten();
        let silent = self.first_silent_at(engine).map(|at| at.saturating_sub(clocks.monotonic()));
        let lease = (engine.totals().reserved > 0).then_some(LEASE_TICK_US);
        due.into_iter().chain(silent).chain(lease).min()
    }

    /// When the first of the other nodes' gateways will have been silent for too long.
    fn first_silent_at(&self, engine: &Engine) -> Option<u64> {
        let others = engine.live_gateways().filter(|gateway| gateway.node != self.node);
        others.map(|gateway| self.last_heard(gateway.node) + GATEWAY_SILENCE_MAX_US).min()
    }

    fn last_heard(&self, node: u32) -> u64 {
        self.heard.get(&node).copied().unwrap_or(0).max(self.since)
    }

    fn end_silent_gateways(&mut self, ground: &mut Ground<'_>) {
        let now = ground.clocks.monotonic();
        if !ground.confirmed {
            // It may be this node that nobody hears: others' time begins when it is heard again.
            self.since = now;
            return;
        }
        let silent: Vec<Gateway> = ground
            .engine
            .live_gateways()
            .filter(|gateway| gateway.node != self.node)
            .filter(|gateway| self.last_heard(gateway.node) + GATEWAY_SILENCE_MAX_US <= now)
            .collect();
        for gateway in silent {
            tracing::warn!(
                node = gateway.node,
                epoch = gateway.epoch,
                "a node was silent for too long: its clients' jobs become ready"
            );
            // Asked again only after as long once more, should this entry be lost.
            self.heard.insert(gateway.node, now);
            let node = self.node;
            let open = self.open(ground);
            open.builder.section(Gateway { node, epoch: 0 }, 0);
            open.builder.gateway_gone(gateway);
            open.may_ready = true;
        }
    }

    // ---- bodies that nobody has ----

    /// Whether bodies are to be looked for before their jobs are given up.
    pub fn has_doubts(&self) -> bool {
        !self.doubts.is_empty()
    }

    /// Takes out jobs whose bodies another node could find on no voter: the leader's node asks all of them itself.
    pub fn take_doubts(&mut self) -> Vec<(u64, BodyAddr)> {
        std::mem::take(&mut self.doubts)
    }

    /// Every voter has answered this node that it has not got the body: the job is buried.
    pub fn body_lost(&mut self, ground: &mut Ground<'_>, job: u64, body: BodyAddr) {
        let node = self.node;
        let open = self.open(ground);
        open.builder.section(Gateway { node, epoch: 0 }, 0);
        open.builder.body_lost(job, body);
    }

    // ---- what entries may hold ----

    /// All members know this level: it is proposed once, if it is not in force.
    pub fn raise_level(&mut self, ground: &mut Ground<'_>, level: u32) {
        if level <= self.level.max(ground.engine.level()) {
            return;
        }
        tracing::info!(level, "all members know this level; it comes into force");
        self.level = level;
        let node = self.node;
        let open = self.open(ground);
        open.builder.section(Gateway { node, epoch: 0 }, 0);
        open.builder.raise_level(level);
    }

    // ---- tubes that nobody needs ----

    fn end_if_empty(&mut self, ground: &mut Ground<'_>, tube: &str) {
        let empty = ground.engine.tube(tube.as_bytes()).is_some_and(|view| view.is_empty());
        if empty && self.refs.is_free(ground.engine, tube) {
            self.end_tube(ground, tube);
        }
    }

    fn end_tube(&mut self, ground: &mut Ground<'_>, tube: &str) {
        let node = self.node;
        let open = self.open(ground);
        open.builder.section(Gateway { node, epoch: 0 }, 0);
        open.builder.tube_gone(tube.as_bytes());
    }

    /// Ends tubes that were left over by clients of an earlier time.
    fn end_empty_tubes(&mut self, ground: &mut Ground<'_>) {
        if !self.refs.all_told(ground.engine) {
            return;
        }
        let is_free = |name: &&str| {
            let empty = ground.engine.tube(name.as_bytes()).is_some_and(|view| view.is_empty());
            empty && self.refs.is_free(ground.engine, name)
        };
        let free: Vec<String> =
            ground.engine.tube_names().filter(is_free).take(TUBES_GONE_MAX).map(str::to_owned).collect();
        for tube in free {
            self.end_tube(ground, &tube);
        }
    }
}

/// In how many microseconds the engine has something to fire.
fn next_due_in_us(engine: &Engine, clocks: &Clocks) -> Option<u64> {
    let due = engine.next_due();
    let stamp = due.stamp.map(|at| at.saturating_sub(clocks.stamp()));
    let lease = due.lease.map(|at| at.saturating_sub(clocks.lease()));
    stamp.into_iter().chain(lease).min()
}
