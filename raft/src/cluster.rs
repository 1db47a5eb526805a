//! What everything that talks to peers shares: who this node is, whom it knows, and the ways to them.
//!
//! ```text
//! openraft ─ network.rs ─> peer.rs  (a line per peer, connecting)  ──> hello.rs ──> frame.rs ──> net.rs
//!     ^                                                                                             │
//!     └────── serve.rs (accepting) <────────────────────────────── hello.rs <───────────────────────┘
//! forming.rs: a new cluster    members.rs: who belongs to it    link.rs: the product's own messages
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::Raft;
use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::error::StartError;
use crate::format::Position;
use crate::hello::{Facts, Purpose, Reason, Refusal, cluster_text};
use crate::identity::{self, Identity, id_text};
use crate::link::Link;
use crate::log::Log;
use crate::machine::{Machine, MachineShared};
use crate::net::Net;
use crate::options::{Options, Peering};
use crate::peer::Line;
use crate::peers::PeerBook;
use crate::types::TypeConfig;

/// The consensus library's handle.
pub(crate) type RaftHandle = Raft<TypeConfig, Machine>;

/// How often what the others have acknowledged is made durable.
const BOOK_EVERY: Duration = Duration::from_secs(10);
/// Closed connections that may wait to be looked at.
const LOSSES_WAITING: usize = 64;
/// Links that may wait to be accepted.
const LINKS_WAITING: usize = 64;
/// Questions for bodies that are answered at the same time; further ones wait.
const ANSWERS_MAX: usize = 2;

/// How patient this node is with its peers. All follows from the election timeout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// An idle connection carries a sign of life this often.
    pub(crate) alive_every: Duration,
    /// A connection on which nothing arrives for this long is dead.
    pub(crate) silence: Duration,
    /// Connecting and the hellos take at most this long.
    pub(crate) meet: Duration,
    /// The first pause before connecting again; it doubles up to `retry_max`.
    pub(crate) retry_min: Duration,
    pub(crate) retry_max: Duration,
    /// The shortest election timeout.
    pub(crate) election: Duration,
}

impl Timing {
    fn new(election: Duration) -> Self {
        Self {
            alive_every: election / 4,
            silence: election * 2,
            meet: election * 2,
            retry_min: election / 16,
            retry_max: election,
            election,
        }
    }
}

/// This node among its peers.
pub(crate) struct Cluster {
    pub(crate) node: u64,
    pub(crate) net: Arc<dyn Net>,
    pub(crate) timing: Timing,
    /// Where peers reach this node.
    pub(crate) address: String,
    /// The members that a new cluster begins with.
    pub(crate) plan: BTreeMap<u64, String>,
    pub(crate) book: Arc<PeerBook>,
    pub(crate) log: Arc<Log>,
    expect_cluster: Option<String>,
    identity: Mutex<Identity>,
    /// Whether this node belongs to a cluster.
    formed: watch::Sender<bool>,
    /// One adopts or makes a cluster at a time.
    forming: tokio::sync::Mutex<()>,
    /// One notes who a peer is at a time.
    remembering: tokio::sync::Mutex<()>,
    /// Gone when the node has stopped.
    raft: Mutex<Option<RaftHandle>>,
    /// What snapshots are exported from and imported into.
    machine: Mutex<Option<Arc<MachineShared>>>,
    /// Snapshots on their way to followers: bytes sent, and of how many.
    transfers: Mutex<BTreeMap<u64, (u64, u64)>>,
    lines: Mutex<BTreeMap<u64, Arc<Line>>>,
    tasks: Tasks,
    /// Peers whose connection has closed, for who cares.
    lost: mpsc::Sender<u64>,
    losses: Mutex<Option<mpsc::Receiver<u64>>>,
    /// Links that peers have opened, to be accepted; no sender is left when the node has stopped.
    offered: Mutex<Option<mpsc::Sender<Link>>>,
    accepted: tokio::sync::Mutex<mpsc::Receiver<Link>>,
    /// Why this node takes no part.
    no_part: watch::Sender<Option<String>>,
    /// The last entry that each follower has acknowledged to this node since it started.
    acknowledged: Mutex<BTreeMap<u64, Position>>,
    /// The last refusal logged per node, so that the same is not logged again and again.
    complaints: Mutex<BTreeMap<u64, String>>,
    /// Questions for bodies that are answered at the same time.
    pub(crate) answering: Semaphore,
}

impl Cluster {
    pub(crate) fn open(
        options: &Options,
        peering: &Peering,
        identity: Identity,
        log: Arc<Log>,
    ) -> Result<Arc<Self>, StartError> {
        let book = PeerBook::open(options.disk.clone(), &options.data_dir)?;
        let (lost, losses) = mpsc::channel(LOSSES_WAITING);
        let (offered, accepted) = mpsc::channel(LINKS_WAITING);
        Ok(Arc::new(Self {
            node: identity.node,
            net: peering.net.clone(),
            timing: Timing::new(options.election_timeout_min),
            address: peering.address.clone(),
            plan: peering.peers.clone(),
            book: Arc::new(book),
            log,
            expect_cluster: options.expect_cluster.clone(),
            identity: Mutex::new(identity),
            formed: watch::Sender::new(identity.cluster != 0),
            forming: tokio::sync::Mutex::default(),
            remembering: tokio::sync::Mutex::default(),
            raft: Mutex::new(None),
            machine: Mutex::new(None),
            transfers: Mutex::default(),
            lines: Mutex::default(),
            tasks: Tasks::default(),
            lost,
            losses: Mutex::new(Some(losses)),
            offered: Mutex::new(Some(offered)),
            accepted: tokio::sync::Mutex::new(accepted),
            no_part: watch::Sender::new(None),
            acknowledged: Mutex::default(),
            complaints: Mutex::default(),
            answering: Semaphore::new(ANSWERS_MAX),
        }))
    }

    /// Hands over the means to consensus, once it runs.
    pub(crate) fn attach(&self, raft: RaftHandle) {
        *self.raft.lock() = Some(raft);
    }

    /// Hands over what snapshots are exported from and imported into.
    pub(crate) fn set_machine(&self, machine: Arc<MachineShared>) {
        *self.machine.lock() = Some(machine);
    }

    /// What snapshots are exported from and imported into, unless the node has stopped.
    pub(crate) fn machine(&self) -> Option<Arc<MachineShared>> {
        self.machine.lock().clone()
    }

    /// How far a snapshot is on its way to a follower; `None` when it has ended.
    pub(crate) fn note_transfer(&self, peer: u64, progress: Option<(u64, u64)>) {
        let mut transfers = self.transfers.lock();
        match progress {
            Some(progress) => transfers.insert(peer, progress),
            None => transfers.remove(&peer),
        };
    }

    /// How far a snapshot is on its way to a follower, if one is.
    pub(crate) fn transfer(&self, peer: u64) -> Option<(u64, u64)> {
        self.transfers.lock().get(&peer).copied()
    }

    /// Consensus, unless the node has stopped.
    pub(crate) fn raft(&self) -> Option<RaftHandle> {
        self.raft.lock().clone()
    }

    /// Ends every task and connection, at once.
    pub(crate) fn stop(&self) {
        self.tasks.stop();
        self.lines.lock().clear();
        self.raft.lock().take();
        self.machine.lock().take();
        self.offered.lock().take();
    }

    /// Notes that a connection with a peer has closed.
    pub(crate) fn lost(&self, peer: u64) {
        // When many wait to be looked at, this one makes no difference.
        self.lost.try_send(peer).ok();
    }

    /// Whose connections close; to be taken once.
    pub(crate) fn take_losses(&self) -> Option<mpsc::Receiver<u64>> {
        self.losses.lock().take()
    }

    /// Puts a link that a peer has opened before who accepts them. Waits while too many wait there.
    pub(crate) async fn offer(&self, link: Link) {
        let offered = self.offered.lock().clone();
        if let Some(offered) = offered {
            // It cannot fail before the node stops, and then the link is dropped.
            offered.send(link).await.ok();
        }
    }

    /// The next link that a peer has opened; `None` when the node has stopped.
    pub(crate) async fn accept_link(&self) -> Option<Link> {
        self.accepted.lock().await.recv().await
    }

    /// Runs something until the node stops.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    pub(crate) fn identity(&self) -> Identity {
        *self.identity.lock()
    }

    /// The cluster's id; 0 while there is none.
    pub(crate) fn id(&self) -> u128 {
        self.identity.lock().cluster
    }

    /// Becomes true when this node belongs to a cluster.
    pub(crate) fn watch_formed(&self) -> watch::Receiver<bool> {
        self.formed.subscribe()
    }

    /// Why this node takes no part, when it does not.
    pub(crate) fn no_part(&self) -> Option<String> {
        self.no_part.borrow().clone()
    }

    /// Resolves when this node takes no part any more.
    pub(crate) async fn takes_no_part(&self) {
        // The sender is a field next to this.
        self.no_part.subscribe().wait_for(Option::is_some).await.ok();
    }

    /// The address of each member as the newest membership says, this node included.
    pub(crate) fn members(&self) -> BTreeMap<u64, String> {
        let Some(raft) = self.raft() else { return BTreeMap::new() };
        let metrics = raft.metrics();
        let now = metrics.borrow_watched();
        let nodes = now.membership_config.membership().nodes();
        nodes.map(|(id, member)| (*id, member.address.clone())).collect()
    }

    /// Who votes, as the newest membership says; nobody while that is not known.
    pub(crate) fn voters(&self) -> BTreeSet<u64> {
        let Some(raft) = self.raft() else { return BTreeSet::new() };
        let metrics = raft.metrics();
        let now = metrics.borrow_watched();
        now.membership_config.voter_ids().collect()
    }

    /// What this node says of itself to node `to`.
    pub(crate) fn facts(&self, to: u64) -> Facts {
        let identity = self.identity();
        Facts {
            cluster: identity.cluster,
            node: identity.node,
            instance: identity.instance,
            boots: identity.boots,
            boot: identity.boot,
            last: self.log.state().last,
            plan: self.plan_checksum(),
            member: self.members().contains_key(&to),
            address: self.address.clone(),
        }
    }

    /// A checksum of the ids that a new cluster begins with.
    pub(crate) fn plan_checksum(&self) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        for id in self.plan.keys() {
            crc.update(&id.to_le_bytes());
        }
        crc.finalize()
    }

    /// Whether to talk to a node that says this of itself. May make this node a member of the other one's
    /// cluster. What is learnt is durable when this returns.
    pub(crate) async fn admit(&self, peer: &Facts, purpose: Purpose) -> Result<(), Refusal> {
        let refuse = |reason, text: String| Err(Refusal { reason, cluster: self.id(), text });
        if let Some(why) = self.no_part() {
            return refuse(Reason::NoPart, format!("node {} takes no part: {why}", self.node));
        }
        if peer.node == self.node {
            return refuse(Reason::OtherNode, format!("both call themselves node {}", self.node));
        }
        if self.id() == 0 && peer.cluster != 0 && peer.member {
            self.adopt(peer).await?;
        }
        let (ours, theirs) = (self.id(), peer.cluster);
        if ours != 0 && theirs != 0 && ours != theirs {
            let text = format!(
                "node {} belongs to {}, node {} to {}",
                peer.node,
                cluster_text(theirs),
                self.node,
                cluster_text(ours)
            );
            return refuse(Reason::OtherCluster, text);
        }
        self.note_committed(peer.node);
        if ours != 0
            && let Err((reason, what)) = self.book.check(peer)
        {
            let text = format!("{what}; replace it: `beanpole cluster replace {}`", peer.node);
            return refuse(reason, text);
        }
        if ours != 0 && theirs != 0 {
            self.remember(peer).await;
            return Ok(());
        }
        match purpose {
            Purpose::Probe => Ok(()),
            Purpose::Raft | Purpose::Snapshot | Purpose::Link | Purpose::Ask => {
                let unformed = if ours == 0 { self.node } else { peer.node };
                refuse(Reason::Unformed, format!("node {unformed} belongs to no cluster yet"))
            }
        }
    }

    async fn remember(&self, peer: &Facts) {
        // Who comes second waits until what the first one brought is durable.
        let _one = self.remembering.lock().await;
        if self.book.meet(peer) {
            self.save_book().await;
        }
    }

    /// Makes what is known of the peers durable.
    pub(crate) async fn save_book(&self) {
        let book = self.book.clone();
        if let Err(error) = self.log.blocking(move || book.save()).await {
            self.log.fail(&format!("writing what is known of the peers: {error}"), Vec::new());
        }
    }

    /// Becomes a member of the cluster of a node that says that this one is.
    async fn adopt(&self, peer: &Facts) -> Result<(), Refusal> {
        let _one = self.forming.lock().await;
        if self.id() != 0 {
            return Ok(());
        }
        let found = id_text(peer.cluster);
        if let Some(expected) = self.expect_cluster.as_ref().filter(|expected| **expected != found) {
            let text = format!("node {} expects cluster {expected}, not {found}", self.node);
            return Err(Refusal { reason: Reason::OtherCluster, cluster: 0, text });
        }
        self.belong_to(peer.cluster);
        tracing::info!(node = self.node, cluster = %found, by = peer.node, "let into a cluster");
        Ok(())
    }

    /// Makes a new cluster, unless this node belongs to one; answers its id.
    pub(crate) async fn found(&self) -> u128 {
        let _one = self.forming.lock().await;
        if self.id() == 0 {
            let wanted = self.expect_cluster.as_ref().and_then(|id| u128::from_str_radix(id, 16).ok());
            self.belong_to(wanted.unwrap_or_else(identity::draw_id));
        }
        self.id()
    }

    fn belong_to(&self, cluster: u128) {
        let identity = Identity { cluster, ..self.identity() };
        // Durable before anybody is told.
        if let Err(error) = identity::write(&*self.log.disk, &self.log.dir, &identity) {
            self.log.fail(&format!("writing the identity file: {error}"), Vec::new());
            return;
        }
        *self.identity.lock() = identity;
        self.formed.send_replace(true);
    }

    /// Notes that another node refuses this one. When that is because this node has forgotten something, it
    /// takes no part from now on.
    pub(crate) fn refused_by(&self, peer: u64, refusal: &Refusal) {
        self.complain(
            peer,
            || {
                tracing::warn!(node = self.node, peer, reason = %refusal, "refused by a peer");
            },
            &refusal.text,
        );
        let ours = self.id();
        let same_cluster = ours == 0 || refusal.cluster == ours;
        if !refusal.reason.is_about_identity() || !same_cluster {
            return;
        }
        let first = self.no_part.send_if_modified(|why| {
            let first = why.is_none();
            why.get_or_insert_with(|| refusal.text.clone());
            first
        });
        if first {
            tracing::error!(node = self.node, by = peer, reason = %refusal, "this node takes no part any more");
            if let Some(raft) = self.raft() {
                raft.runtime_config().elect(false);
            }
        }
    }

    /// Notes that this node refuses another one.
    pub(crate) fn refuses(&self, peer: u64, refusal: &Refusal) {
        self.complain(
            peer,
            || {
                tracing::warn!(node = self.node, peer, reason = %refusal, "a peer is refused");
            },
            &refusal.text,
        );
    }

    fn complain(&self, peer: u64, log: impl FnOnce(), text: &str) {
        let mut complaints = self.complaints.lock();
        if complaints.get(&peer).is_none_or(|last| last != text) {
            complaints.insert(peer, text.to_owned());
            log();
        }
    }

    /// The line to a peer, made when there is none or its address is another.
    pub(crate) fn line(self: &Arc<Self>, peer: u64, address: &str) -> Arc<Line> {
        let mut lines = self.lines.lock();
        if let Some(line) = lines.get(&peer).filter(|line| line.address == address) {
            return line.clone();
        }
        let line = Line::new(peer, address.to_owned());
        let replaced = lines.insert(peer, line.clone());
        drop(lines);
        if let Some(replaced) = replaced {
            replaced.retire();
        }
        self.spawn(line.clone().run(self.clone()));
        line
    }

    /// Whether the line to a peer is up. A process that dies closes it at once.
    pub(crate) fn is_connected(&self, peer: u64) -> bool {
        self.lines.lock().get(&peer).is_some_and(|line| line.is_up())
    }

    /// Keeps lines to exactly these nodes.
    pub(crate) fn keep_lines(self: &Arc<Self>, members: &BTreeMap<u64, String>) {
        let mut gone = Vec::new();
        self.lines.lock().retain(|peer, line| {
            let kept = members.contains_key(peer);
            if !kept {
                gone.push(line.clone());
            }
            kept
        });
        for line in gone {
            line.retire();
        }
        for (peer, address) in members.iter().filter(|(peer, _)| **peer != self.node) {
            self.line(*peer, address);
        }
    }

    /// Notes what a follower has acknowledged to this node.
    pub(crate) fn acknowledged(&self, peer: u64, position: Position) {
        self.acknowledged.lock().insert(peer, position);
    }

    /// Enters in the book what `peer` has acknowledged and is committed; answers whether that is news.
    ///
    /// Only what is committed counts: a follower may lose uncommitted entries lawfully. Entries that were
    /// acknowledged in an older term than the newest commit may have been replaced, and say nothing.
    pub(crate) fn note_committed(&self, peer: u64) -> bool {
        let committed = self.committed();
        let acknowledged = self.acknowledged.lock().get(&peer).copied();
        let (Some(committed), Some(acknowledged)) = (committed, acknowledged) else { return false };
        if committed.term > acknowledged.term {
            return false;
        }
        let both = if committed.index < acknowledged.index { committed } else { acknowledged };
        self.book.acknowledge(peer, both)
    }

    /// Makes durable, now and then, how far the others have acknowledged; until the node stops. An idle cluster
    /// writes nothing.
    pub(crate) async fn keep_book(self: Arc<Self>) {
        loop {
            tokio::time::sleep(BOOK_EVERY).await;
            let peers: Vec<u64> = self.acknowledged.lock().keys().copied().collect();
            let mut news = false;
            for peer in peers {
                news |= self.note_committed(peer);
            }
            if news {
                self.save_book().await;
            }
        }
    }

    fn committed(&self) -> Option<Position> {
        let raft = self.raft()?;
        let metrics = raft.metrics();
        let now = metrics.borrow_watched();
        now.local_committed.map(Into::into)
    }
}

/// Tasks that end with the node.
#[derive(Default)]
struct Tasks {
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    set: JoinSet<()>,
    stopped: bool,
}

impl Tasks {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut running = self.running.lock();
        while running.set.try_join_next().is_some() {}
        if !running.stopped {
            running.set.spawn(task);
        }
    }

    fn stop(&self) {
        let mut running = self.running.lock();
        running.stopped = true;
        running.set.abort_all();
    }
}
