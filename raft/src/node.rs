//! One member of the cluster: the handle that the rest of the product holds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::{Config, Raft, ReadPolicy, ServerState, SnapshotPolicy};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use crate::backup::{Backup, BackupError};
use crate::bodies::Bodies;
use crate::changes::Changes;
use crate::cluster::Cluster;
use crate::error::{
    Corruption, Fatal, LinkError, MembershipError, NotProposed, ReadError, SnapshotError, StartError,
    TransferError,
};
use crate::flush::Flusher;
use crate::hello::{self, MeetError, Purpose};
use crate::identity::{Identity, id_text};
use crate::keeper::{Keeper, Request};
use crate::leadership::{self, Leadership};
use crate::link::{self, Link};
use crate::log::Log;
use crate::machine::{Machine, MachineShared};
use crate::network::Network;
use crate::open::{self, Storage};
use crate::options::Options;
use crate::payload::Payload;
use crate::prepare::Preparer;
use crate::progress::{MemberStatus, Progress};
use crate::proposal::{self, Proposal};
use crate::scrub::{Scrub, ScrubStatus};
use crate::state::StateMachine;
use crate::store::Store;
use crate::types::{Member, TypeConfig};
use crate::{campaign, forming, handover, members, serve};

/// A running node. Cloning gives another handle to the same one; when the last one is dropped without
/// [`Node::shutdown`], the node stops as if it had crashed.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    raft: Raft<TypeConfig, Machine>,
    identity: Identity,
    log: Arc<Log>,
    preparer: Arc<Preparer>,
    bodies: Bodies,
    /// The newest snapshot, for whoever sends it.
    machine: Arc<MachineShared>,
    /// Bytes that may still be proposed.
    admission: Arc<Semaphore>,
    /// All bytes that may be in flight.
    max_inflight: u32,
    snapshots: mpsc::Sender<Request>,
    /// Looks for damage.
    scrub: Arc<Scrub>,
    /// Tasks that end with the node: those before the last end before the log is closed.
    tasks: [AbortHandle; 4],
    leadership: watch::Receiver<Leadership>,
    /// The peers; a lone voter has none.
    cluster: Option<Arc<Cluster>>,
    /// The means to change who they are.
    changes: Option<Arc<Changes>>,
    flusher: Mutex<Option<Flusher>>,
}

/// What a log holds in memory, for statistics and for admission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogMemory {
    /// Recent entries, kept for apply and for hot bodies.
    pub ring_bytes: u64,
    /// Payloads proposed through this node whose fate is not known; most of them are in the ring as well.
    pub proposed_bytes: u64,
}

/// What a proposal costs of the in-flight budget besides its bytes.
const PROPOSAL_COST: usize = 256;

impl Node {
    /// Opens or creates the directory, recovers its log, restores the newest snapshot into `state` and starts
    /// consensus. Without [`Options::peering`] an empty directory becomes a cluster of one voter by itself. With
    /// it this returns when the node takes part, which may be long before there is a cluster or a leader: see
    /// [`Node::watch_leadership`].
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start<M: StateMachine>(options: Options, state: M) -> Result<Self, StartError> {
        let member = options.peering.as_ref().map(|_| options.node_id);
        let started = Self::open_and_run(options, state).await;
        started.map_err(|error| match member {
            Some(id) => error.of_member(id),
            None => error,
        })
    }

    async fn open_and_run<M: StateMachine>(options: Options, state: M) -> Result<Self, StartError> {
        options.check()?;
        let state: Box<dyn StateMachine> = Box::new(state);
        if options.inline {
            let storage = open::open(&options, state)?;
            return Self::run(&options, storage).await;
        }
        let opened = tokio::task::spawn_blocking(move || {
            let storage = open::open(&options, state);
            storage.map(|storage| (options, storage))
        });
        let (options, storage) = opened.await.map_err(|error| StartError::Consensus(error.to_string()))??;
        Self::run(&options, storage).await
    }

    async fn run(options: &Options, storage: Storage) -> Result<Self, StartError> {
        let Storage { identity, log, preparer, bodies, machine, flusher } = storage;
        let failed = |error: &dyn std::fmt::Display| StartError::Consensus(error.to_string());
        // Ends the threads when something below fails.
        let mut guard = StopOnDrop(Some(log.clone()));
        let completer = log.completions.spawn();
        let config = Arc::new(config(options, &identity).map_err(|error| failed(&error))?);
        let store = Store::new(log.clone());
        let shared = machine.shared();
        let peering = options.peering.as_ref();
        let cluster =
            peering.map(|peering| Cluster::open(options, peering, identity, log.clone())).transpose()?;
        let network = Network::new(cluster.clone());
        if let Some(cluster) = &cluster {
            cluster.set_machine(shared.clone());
            log.damage.set_cluster(cluster);
        }
        let raft = Raft::new(identity.node, config, network, store, machine).await;
        let raft = raft.map_err(|error| damaged_log(&log).unwrap_or_else(|| failed(&error)))?;
        let (sender, leadership) = watch::channel(Leadership::default());
        let follower = tokio::spawn(leadership::follow(identity.node, raft.clone(), sender));
        let (snapshots, requests) = mpsc::channel(1);
        let keeper = Keeper {
            raft: raft.clone(),
            log: log.clone(),
            preparer: preparer.clone(),
            snapshot_log_bytes: options.snapshot_log_bytes,
            log_retention_bytes: options.log_retention_bytes,
        };
        let keeper = tokio::spawn(keeper.run(requests));
        let scrub = Arc::new(Scrub::new(options.scrub_bytes_per_s));
        let scrubbing = tokio::spawn(scrub.clone().run(log.clone()));
        let changes = cluster.clone().map(|cluster| {
            let (raft, leadership) = (raft.clone(), leadership.clone());
            Arc::new(Changes { cluster, raft, leadership, one: tokio::sync::Mutex::default() })
        });
        let max_inflight = u32::try_from(options.max_inflight_bytes).unwrap_or(u32::MAX);
        let inner = Inner {
            raft,
            identity,
            log,
            preparer,
            bodies,
            machine: shared,
            admission: Arc::new(Semaphore::new(max_inflight as usize)),
            max_inflight,
            snapshots,
            scrub,
            tasks: [
                keeper.abort_handle(),
                follower.abort_handle(),
                scrubbing.abort_handle(),
                completer.abort_handle(),
            ],
            leadership,
            cluster,
            changes,
            flusher: Mutex::new(Some(flusher)),
        };
        let node = Self { inner: Arc::new(inner) };
        // From here on the node itself sees to it.
        guard.0 = None;
        match &node.inner.cluster {
            Some(cluster) => node.take_part(cluster),
            None => node.take_office().await.map_err(|error| node.start_error(options, error))?,
        }
        Ok(node)
    }

    /// Answers peers, looks for them, and keeps in touch with them.
    fn take_part(&self, cluster: &Arc<Cluster>) {
        let raft = &self.inner.raft;
        cluster.attach(raft.clone());
        cluster.spawn(serve::run(cluster.clone()));
        cluster.spawn(forming::run(cluster.clone(), raft.clone()));
        cluster.spawn(members::follow(cluster.clone(), raft.clone()));
        cluster.spawn(cluster.clone().keep_book());
        if let Some(losses) = cluster.take_losses() {
            let leadership = self.watch_leadership();
            cluster.spawn(campaign::run(cluster.clone(), raft.clone(), losses, leadership));
        }
        if let Some(changes) = &self.inner.changes {
            cluster.spawn(changes.clone().finish());
        }
    }

    /// Prefers what the disk said over what consensus made of it.
    fn start_error(&self, options: &Options, error: StartError) -> StartError {
        match self.stop_reason("") {
            Fatal::Storage(what) => {
                StartError::Io { file: options.data_dir.clone(), source: std::io::Error::other(what) }
            }
            Fatal::Consensus(_) | Fatal::Shutdown => error,
        }
    }

    /// A lone voter elects itself at once, and makes itself a cluster when there is none yet.
    async fn take_office(&self) -> Result<(), StartError> {
        let raft = &self.inner.raft;
        let failed = |error: &dyn std::fmt::Display| StartError::Consensus(error.to_string());
        if raft.is_initialized().await.map_err(|error| failed(&error))? {
            return raft.trigger().elect(false).await.map_err(|error| failed(&error));
        }
        let members = BTreeMap::from([(self.inner.identity.node, Member::default())]);
        raft.initialize(members).await.map_err(|error| failed(&error))
    }

    /// Resolves when this node leads, all its durable log is applied and proposals are accepted. For lone
    /// voters: a member of a cluster may never lead.
    ///
    /// # Errors
    /// When the node stopped before that.
    pub async fn ready(&self) -> Result<(), Fatal> {
        let mut metrics = self.inner.raft.metrics();
        let ready = async {
            loop {
                {
                    let now = metrics.borrow_watched();
                    // The first entry of its own term comes after everything that was there before.
                    let term = now.last_applied.map(|id| id.committed_leader_id().term);
                    if now.state == ServerState::Leader && term == Some(now.current_term) {
                        return;
                    }
                }
                if metrics.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            () = ready => Ok(()),
            fatal = self.fatal() => Err(fatal),
        }
    }

    /// Hands a payload to consensus. Calls made one after the other (each awaited before the next) keep their
    /// order in the log. Awaits admission only (see [`Options::max_inflight_bytes`]), not commitment: many can
    /// be in flight.
    ///
    /// # Errors
    /// See [`NotProposed`].
    pub async fn propose(&self, payload: Payload) -> Result<Proposal, NotProposed> {
        let inner = &*self.inner;
        let len = payload.len();
        if len > Payload::MAX_LEN {
            return Err(NotProposed::TooLong { len });
        }
        // A payload beyond the whole budget waits until it is alone.
        let cost = u32::try_from(len + PROPOSAL_COST).unwrap_or(u32::MAX).min(inner.max_inflight);
        let admitted = inner.admission.clone().acquire_many_owned(cost).await;
        let admitted = admitted.map_err(|_| self.stop_reason("the node is stopping"))?;
        let (answer, proposal) = proposal::channel(admitted);
        let sent = inner.raft.client_write_ff(payload, Some(answer)).await;
        sent.map_err(|error| self.stop_reason(&error))?;
        Ok(proposal)
    }

    /// A log index such that a state that has applied it shows everything that was committed before this call.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read_barrier(&self) -> Result<u64, ReadError> {
        match self.inner.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => {
                Err(ReadError::NotLeader { leader: to.leader_id })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(ReadError::NotLeader { leader: None })
            }
            Err(RaftError::Fatal(error)) => Err(self.stop_reason(&error).into()),
        }
    }

    /// Who leads, now and at every change. The last value stays when the node stops.
    #[must_use]
    pub fn watch_leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// Hands the lead to the voter `to`, or to the one that has caught up best; answers who leads now. That
    /// voter must answer and have everything that is in the log at the time of the call (it is given one
    /// election timeout to get there). Proposals are refused meanwhile, for a few milliseconds. Answers when
    /// the other one is known to lead.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub async fn transfer_leader(&self, to: Option<u64>) -> Result<u64, TransferError> {
        let inner = &*self.inner;
        let Some(cluster) = &inner.cluster else {
            return Err(TransferError::NotCaughtUp { node: None, lag: None });
        };
        let election = cluster.timing.election;
        handover::run(cluster.node, &inner.raft, self.watch_leadership(), to, election).await
    }

    /// Lets a node in that receives the log and has no vote. Its number must never have been used before. Adding
    /// a member again, with the same address, changes nothing. On the leader only; answers when it is committed.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn add_learner(&self, id: u64, address: String) -> Result<(), MembershipError> {
        self.changes()?.add_learner(id, address).await
    }

    /// Gives a learner a vote, once it has caught up. On the leader only; answers when it is committed.
    ///
    /// # Errors
    /// See [`MembershipError`]; `NotCaughtUp` says how far the learner is behind.
    pub async fn promote(&self, id: u64) -> Result<(), MembershipError> {
        self.changes()?.promote(id).await
    }

    /// Removes a voter or learner, for ever: its number is not used again, and it is refused when it connects. A
    /// leader that removes itself hands over a moment later. On the leader only; answers when it is committed.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn remove(&self, id: u64) -> Result<(), MembershipError> {
        self.changes()?.remove(id).await
    }

    fn changes(&self) -> Result<&Arc<Changes>, MembershipError> {
        self.inner.changes.as_ref().ok_or(MembershipError::NoPeers)
    }

    /// Opens a link to another member, for the product's own messages. There may be several at the same time.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn connect(&self, to: u64) -> Result<Link, LinkError> {
        let cluster = self.inner.cluster.as_ref().ok_or(LinkError::NoPeers)?;
        let address = cluster.members().get(&to).cloned().ok_or(LinkError::NotMember { node: to })?;
        match hello::connect(cluster, to, &address, Purpose::Link).await {
            Ok(conn) => Ok(link::open(cluster, conn)),
            Err(MeetError::RefusedBy(refusal)) => {
                cluster.refused_by(to, &refusal);
                Err(LinkError::Refused { node: to, reason: refusal.text })
            }
            Err(MeetError::Refuses { refusal, .. }) => {
                Err(LinkError::Refused { node: to, reason: refusal.text })
            }
            Err(MeetError::Io(error)) => Err(LinkError::Unreachable { node: to, reason: error.to_string() }),
        }
    }

    /// The next link that another node has opened to this one; `None` when the node stops. One task accepts.
    pub async fn accept_link(&self) -> Option<Link> {
        match &self.inner.cluster {
            Some(cluster) => cluster.accept_link().await,
            None => {
                self.fatal().await;
                None
            }
        }
    }

    /// Where this node stands now. Cheap.
    #[must_use]
    pub fn status(&self) -> Status {
        let inner = &*self.inner;
        let mut members = Progress::read(&inner.raft).members;
        if let Some(cluster) = &inner.cluster {
            for member in &mut members {
                member.receives = cluster.transfer(member.id);
                member.connected = member.id == cluster.node || cluster.is_connected(member.id);
            }
        }
        let metrics = inner.raft.metrics();
        let now = metrics.borrow_watched();
        let state = inner.log.state();
        let index = |id: Option<crate::types::LogId>| id.map_or(0, |id| id.index());
        // A node that looks for its peers gets its cluster later.
        let identity = inner.cluster.as_ref().map_or(inner.identity, |cluster| cluster.identity());
        Status {
            node_id: identity.node,
            cluster_id: id_text(identity.cluster),
            instance_id: id_text(identity.instance),
            boots: identity.boots,
            term: now.current_term,
            leader: now.current_leader,
            role: match now.state {
                ServerState::Learner => Role::Learner,
                ServerState::Follower => Role::Follower,
                ServerState::Candidate => Role::Candidate,
                ServerState::Leader => Role::Leader,
                ServerState::Shutdown => Role::Stopped,
            },
            last_index: state.last.map_or(0, |last| last.index),
            committed: index(now.local_committed),
            applied: index(now.last_applied),
            snapshot_index: inner.log.snapshot_index(),
            purged: state.purged.map_or(0, |purged| purged.index),
            voters: now.membership_config.voter_ids().collect(),
            members,
            refused: inner.cluster.as_ref().and_then(|cluster| cluster.no_part()),
        }
    }

    /// Resolves when the node can no longer work. Unless [`Node::shutdown`] was called the process must stop
    /// at once: what was not reported committed may or may not be durable.
    pub async fn fatal(&self) -> Fatal {
        let mut fatal = self.inner.log.watch_fatal();
        let reason = fatal.wait_for(Option::is_some).await;
        reason.ok().and_then(|reason| reason.clone()).unwrap_or(Fatal::Shutdown)
    }

    /// What the log holds in memory now.
    #[must_use]
    pub fn log_memory(&self) -> LogMemory {
        let inner = &*self.inner;
        let free = u64::try_from(inner.admission.available_permits()).unwrap_or(u64::MAX);
        LogMemory {
            ring_bytes: inner.log.ring_in_use() as u64,
            proposed_bytes: u64::from(inner.max_inflight).saturating_sub(free),
        }
    }

    /// The handle to read and account bodies.
    #[must_use]
    pub fn bodies(&self) -> Bodies {
        self.inner.bodies.clone()
    }

    /// Looks at everything on this node's disk for damage, from now on and at the rate of
    /// [`Options::scrub_bytes_per_s`], unless that is being done.
    pub fn scrub(&self) {
        self.inner.scrub.ask();
    }

    /// Pauses looking for damage, while memory is short, or lets it go on.
    pub fn hold_scrub(&self, held: bool) {
        self.inner.scrub.hold(held);
    }

    /// How far looking for damage is. Cheap.
    #[must_use]
    pub fn scrub_status(&self) -> ScrubStatus {
        self.inner.scrub.status()
    }

    /// Takes a snapshot now, purges what it allows and answers the index it was taken at.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub async fn snapshot_now(&self) -> Result<u64, SnapshotError> {
        let (request, answer) = oneshot::channel();
        let stopped = || SnapshotError::from(self.stop_reason("the node is stopping"));
        self.inner.snapshots.send(request).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Takes a snapshot now and gives it with all bodies that it references, as one stream. While it is read, the files that it
    /// needs stay on the disk, removed or not. `taken_at_s` is noted in it: seconds since 1970.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub async fn backup(&self, taken_at_s: u64) -> Result<Backup, BackupError> {
        self.snapshot_now().await?;
        let inner = &*self.inner;
        let identity = inner.cluster.as_ref().map_or(inner.identity, |cluster| cluster.identity());
        Backup::begin(&inner.machine, (identity.node, identity.cluster), taken_at_s).await
    }

    /// Flushes what was accepted, stops and gives the directory free. Proposals after that are refused; those
    /// in flight may end [`crate::Outcome::Unknown`], so await them before.
    pub async fn shutdown(&self) {
        let inner = &*self.inner;
        inner.admission.close();
        inner.log.set_fatal(Fatal::Shutdown);
        for task in &inner.tasks[..3] {
            task.abort();
        }
        if let Some(cluster) = &inner.cluster {
            cluster.stop();
        }
        // Its result says only whether the core's task panicked, which `fatal` has told by then.
        inner.raft.shutdown().await.ok();
        inner.log.stop();
        // The flush thread may wait for room.
        inner.preparer.retry();
        let flusher = inner.flusher.lock().take();
        let (log, preparer) = (inner.log.clone(), inner.preparer.clone());
        let flusher = match flusher {
            Some(Flusher::Task(task)) => {
                // A panic in it was reported by then.
                task.await.ok();
                None
            }
            thread => thread,
        };
        let closed = inner.log.blocking(move || {
            if let Some(flusher) = flusher {
                flusher.join();
            }
            preparer.stop();
            // What was begun in the directory ends before somebody else may open it.
            drop(log.tidying.lock());
            log.unlock();
            Ok(())
        });
        // It cannot fail.
        closed.await.ok();
        inner.tasks[3].abort();
    }

    /// The log, for tests that look inside.
    #[cfg(test)]
    pub(crate) fn log(&self) -> Arc<Log> {
        self.inner.log.clone()
    }

    fn stop_reason(&self, otherwise: impl std::fmt::Display) -> Fatal {
        let reason = self.inner.log.watch_fatal().borrow().clone();
        reason.unwrap_or_else(|| Fatal::Consensus(otherwise.to_string()))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.log.set_fatal(Fatal::Shutdown);
        for task in &self.tasks {
            task.abort();
        }
        if let Some(cluster) = &self.cluster {
            cluster.stop();
        }
        self.log.stop();
    }
}

/// The refusal to start with a log that does not check out.
fn damaged_log(log: &Log) -> Option<StartError> {
    let (file, offset, what) = log.damage.last()?;
    Some(Corruption { dir: log.dir.clone(), file, offset, what, member: None }.into())
}

/// Ends the flush thread of a node that did not get off the ground.
struct StopOnDrop(Option<Arc<Log>>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if let Some(log) = &self.0 {
            log.stop();
        }
    }
}

/// openraft's settings. Ticks are off for a lone voter: it has nobody to send heartbeats to and no election to
/// time, so an idle node does nothing at all.
fn config(options: &Options, identity: &Identity) -> Result<Config, openraft::ConfigError> {
    let election = u64::try_from(options.election_timeout_min.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: id_text(identity.cluster),
        election_timeout_min: election,
        election_timeout_max: election.saturating_mul(2),
        heartbeat_interval: election / 6,
        enable_tick: options.peering.is_some(),
        enable_pre_vote: Some(true),
        // The state is volatile: a restarted leader must learn again what is committed.
        enable_leader_restore: Some(false),
        allow_log_reversion: Some(false),
        // Snapshots are taken and logs purged by bytes, by the keeper; even with `Never` each snapshot would
        // purge the log by count.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        // Bounded by count here, by bytes in front of it.
        api_channel_size: Some(CHANNEL_LEN),
        notification_channel_size: Some(CHANNEL_LEN),
        state_machine_channel_size: Some(CHANNEL_LEN),
        api_batch_capacity: CHANNEL_LEN,
        // The log reader bounds a request in bytes.
        max_payload_entries: CHANNEL_LEN,
        ..Config::default()
    };
    config.validate()
}

/// How many messages each of openraft's channels holds.
const CHANNEL_LEN: u64 = 4096;

impl Options {
    /// Refuses what could not work.
    fn check(&self) -> Result<(), StartError> {
        let bad = |option, reason: &str| Err(StartError::Option { option, reason: reason.to_owned() });
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes) {
            return bad("segment_bytes", "must be between 16 KiB and 1 GiB");
        }
        if self.max_inflight_bytes == 0 || self.max_inflight_bytes > MAX_INFLIGHT_BYTES {
            return bad("max_inflight_bytes", "must be between 1 byte and 1 GiB");
        }
        if self.election_timeout_min < Duration::from_millis(50) {
            return bad("election_timeout_min", "must be at least 50 ms");
        }
        if self.peering.as_ref().is_some_and(|peering| peering.address.is_empty()) {
            return bad("peering", "the address where peers reach this node is missing");
        }
        Ok(())
    }
}

/// The smallest segment.
const SEGMENT_BYTES_MIN: u64 = 16 << 10;
/// The largest segment; offsets in it are 32 bits.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// The largest in-flight budget.
const MAX_INFLIGHT_BYTES: usize = 1 << 30;

/// What this node does in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Receives entries, has no vote.
    Learner,
    /// Votes and follows.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
    /// Stopped.
    Stopped,
}

/// Where a node stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This node's number.
    pub node_id: u64,
    /// The cluster's id: 32 hexadecimal digits, made when the cluster was; zeros while there is none.
    pub cluster_id: String,
    /// This data directory's id: 32 hexadecimal digits, made when it was.
    pub instance_id: String,
    /// How often this data directory was opened.
    pub boots: u64,
    /// The current term.
    pub term: u64,
    /// The leader as far as is known.
    pub leader: Option<u64>,
    /// What this node does.
    pub role: Role,
    /// The index of the last entry in the log, durable or not; 0 when there is none.
    pub last_index: u64,
    /// The highest index known to be committed; 0 when there is none.
    pub committed: u64,
    /// The highest index applied; 0 when there is none.
    pub applied: u64,
    /// The index of the newest durable snapshot; 0 when there is none.
    pub snapshot_index: u64,
    /// The highest purged index; 0 when there is none.
    pub purged: u64,
    /// The voters' numbers.
    pub voters: Vec<u64>,
    /// All members of the newest membership, in the order of their numbers.
    pub members: Vec<MemberStatus>,
    /// Why this node takes no part, when a peer that knows better has refused it: its disk was wiped, or is an
    /// old copy, or it was removed. Names the command to run. It neither votes nor receives entries.
    pub refused: Option<String>,
}
