//! Two ends of a snapshot transfer: a log and a machine without consensus that play the leader, and a real
//! follower that is told what to do by calls.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use openraft::raft::AppendEntriesRequest;
use openraft::{Config, Raft};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::machine::{Seen, TestMachine};
use super::rig::{options, within};
use crate::bodies::Bodies;
use crate::compact::Round;
use crate::completion::Done;
use crate::disk::FaultDisk;
use crate::format::{Kind, Position};
use crate::keeper;
use crate::log::{Log, Op};
use crate::machine::{Machine, MachineShared};
use crate::network::Network;
use crate::open::{self, Storage};
use crate::prepare::Preparer;
use crate::snapshot::SnapshotFile;
use crate::store::Store;
use crate::transfer::{Export, FRAME_MAX, Import};
use crate::types::{
    Entry, Member, Membership, RaftSnapshot, TypeConfig, Vote, encode_membership, record_entry,
};
use crate::{Options, Payload, StartError};

/// Everything on the runtime: each run does the same in the same order.
pub(crate) fn inline(disk: &FaultDisk) -> Options {
    let mut options = options(disk);
    options.inline = true;
    options
}

/// Node 1 votes, nodes 2 and 3 listen.
fn membership() -> Entry {
    let nodes: BTreeMap<u64, Member> = (1..=3).map(|id| (id, Member::default())).collect();
    let membership = Membership::new(vec![BTreeSet::from([1])], nodes).unwrap();
    let at = Position { term: 1, index: 0 };
    record_entry(Kind::Membership, at, encode_membership(&membership).into()).unwrap()
}

pub(crate) fn normal(term: u64, index: u64, payload: &Payload) -> Entry {
    record_entry(Kind::Normal, Position { term, index }, payload.to_bytes()).unwrap()
}

/// Commits what it is given.
pub(crate) struct Leader {
    storage: Storage,
    pub(crate) shared: Arc<MachineShared>,
    pub(crate) seen: Arc<Mutex<Seen>>,
    pub(crate) term: u64,
}

impl Leader {
    pub(crate) async fn new(options: &Options) -> Self {
        let (machine, seen) = TestMachine::new();
        let storage = open::open(options, Box::new(machine)).unwrap();
        storage.log.completions.spawn();
        let shared = storage.machine.shared();
        let mut leader = Self { storage, shared, seen, term: 1 };
        leader.commit(membership()).await;
        leader
    }

    async fn commit(&mut self, entry: Entry) {
        let log = &self.shared.log;
        let (signal, durable) = oneshot::channel();
        let at = Position::from(entry.log_id);
        log.append(std::iter::once(entry.clone()), Done::Signal(signal)).await.unwrap();
        within(durable).await.unwrap().unwrap();
        log.set_committed(Some(at));
        self.storage.machine.apply_one(&entry);
        self.storage.machine.applied_run();
    }

    pub(crate) fn last(&self) -> u64 {
        self.shared.log.state().last.unwrap().index
    }

    pub(crate) async fn put(&mut self, payload: Payload) -> u64 {
        let index = self.last() + 1;
        self.commit(normal(self.term, index, &payload)).await;
        index
    }

    /// Takes a snapshot and purges the log up to `purge`, as far as that goes.
    pub(crate) async fn snapshot(&mut self, purge: u64) -> SnapshotFile {
        let log = self.shared.log.clone();
        log.flushed().await.unwrap();
        let file = self.storage.machine.builder(false).write(&mut |_| {}).unwrap().1;
        let at = log.read(purge..purge + 1).unwrap()[0].log_id;
        log.queue([Op::Purge(at.into())]).unwrap();
        log.flushed().await.unwrap();
        let gone = keeper::take_dead(&log);
        self.storage.preparer.dispose(gone).unwrap();
        file
    }

    /// Takes a snapshot, purges the log up to `purge`, and compacts what is sparse then.
    pub(crate) async fn compact(&mut self, purge: u64) {
        let log = self.shared.log.clone();
        let mut round = Round::plan(&log, purge, 16 << 10, false);
        log.flushed().await.unwrap();
        let file = self.storage.machine.builder(true).write(&mut |addr| round.note(addr)).unwrap().1;
        self.snapshot(purge).await;
        let at = file.meta.last_log_id.unwrap().into();
        round.run(&log, &self.storage.preparer, at).unwrap();
    }

    pub(crate) fn bodies(&self) -> Bodies {
        self.storage.bodies.clone()
    }

    pub(crate) fn entries(&self, range: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut next = *range.start();
        while next <= *range.end() {
            entries.extend(self.shared.log.read(next..*range.end() + 1).unwrap());
            next = entries.last().unwrap().log_id.index + 1;
        }
        entries
    }
}

/// A node with consensus that never campaigns.
pub(crate) struct Follower {
    pub(crate) raft: Raft<TypeConfig, Machine>,
    pub(crate) log: Arc<Log>,
    pub(crate) preparer: Arc<Preparer>,
    pub(crate) shared: Arc<MachineShared>,
    pub(crate) seen: Arc<Mutex<Seen>>,
    bodies: Bodies,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.log.stop();
        self.log.unlock();
    }
}

impl Follower {
    pub(crate) async fn start(disk: &FaultDisk) -> Result<Self, StartError> {
        Self::open(&inline(disk)).await
    }

    pub(crate) async fn open(options: &Options) -> Result<Self, StartError> {
        let (machine, seen) = TestMachine::new();
        let storage = open::open(options, Box::new(machine))?;
        let Storage { log, preparer, bodies, machine, .. } = storage;
        log.completions.spawn();
        let config =
            Config { enable_tick: false, max_in_snapshot_log_to_keep: u64::MAX, ..Config::default() };
        let shared = machine.shared();
        let raft = Raft::new(
            2,
            Arc::new(config.validate().unwrap()),
            Network::new(None),
            Store::new(log.clone()),
            machine,
        );
        let raft = raft.await.map_err(|error| StartError::Consensus(error.to_string()))?;
        Ok(Self { raft, log, preparer, shared, seen, bodies })
    }

    /// Starts to look after its disk.
    pub(crate) fn keep(&self) -> mpsc::Sender<keeper::Request> {
        let (requests, received) = mpsc::channel(1);
        let keeper = keeper::Keeper {
            raft: self.raft.clone(),
            log: self.log.clone(),
            preparer: self.preparer.clone(),
            snapshot_log_bytes: u64::MAX,
            log_retention_bytes: 0,
        };
        tokio::spawn(keeper.run(received));
        requests
    }

    pub(crate) fn bodies(&self) -> Bodies {
        self.bodies.clone()
    }

    /// Receives entries of the leader of `term`, which says that those up to `committed` are committed, and
    /// waits until these are applied.
    pub(crate) async fn receive(
        &self,
        term: u64,
        prev: Option<Position>,
        entries: Vec<Entry>,
        committed: Position,
    ) {
        let request = AppendEntriesRequest {
            vote: Vote::new_committed(term, if term == 2 { 3 } else { 1 }),
            prev_log_id: prev.map(Into::into),
            entries,
            leader_commit: Some(committed.into()),
        };
        let answer = within(self.raft.append_entries(request)).await.unwrap();
        assert!(answer.is_success(), "{answer:?}");
        self.applied(committed.index).await;
    }

    pub(crate) async fn applied(&self, index: u64) {
        let wait = self.raft.wait(Some(super::rig::PATIENCE));
        wait.applied_index_at_least(Some(index), "applied").await.unwrap();
        self.log.flushed().await.unwrap();
    }

    /// Installs what was received, as the leader of `term` asks for it.
    pub(crate) async fn install(&self, term: u64, file: SnapshotFile) -> io::Result<()> {
        let snapshot = RaftSnapshot { meta: file.meta.clone(), snapshot: file };
        let vote = Vote::new_committed(term, 1);
        let installed = within(self.raft.install_full_snapshot(vote, snapshot)).await;
        installed.map(|_| ()).map_err(io::Error::other)
    }

    /// Waits until the log is purged up to `index`, durably, or has failed.
    pub(crate) async fn purged(&self, index: u64) -> io::Result<()> {
        let (mut purged, mut fatal) = (self.log.watch_purged(), self.log.watch_fatal());
        let purged = within(async {
            tokio::select! {
                purged = purged.wait_for(|upto| *upto >= index) => purged.is_ok(),
                _ = fatal.wait_for(Option::is_some) => false,
            }
        });
        if purged.await { Ok(()) } else { Err(io::Error::other("the log has failed")) }
    }
}

/// All frames of an export of the current snapshot to a node that has everything up to `above`.
pub(crate) async fn frames(from: &Arc<MachineShared>, above: u64) -> Vec<Bytes> {
    let mut export = Export::begin(from, &from.current().unwrap(), above).await.unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = export.next_frame().await.unwrap() {
        assert!(frame.len() <= FRAME_MAX);
        assert!(export.progress().done() <= export.progress().total());
        frames.push(frame);
    }
    assert_eq!(export.progress().done(), export.progress().total());
    frames
}

/// Receives frames.
pub(crate) async fn import(to: &Arc<MachineShared>, frames: &[Bytes]) -> io::Result<SnapshotFile> {
    let mut import = Import::begin(to).await?;
    for frame in frames {
        import.frame(frame.clone()).await?;
    }
    import.finish().await
}

/// Brings a follower forward by the current snapshot of `from`, in the leader's `term`.
pub(crate) async fn bring_forward(from: &Arc<MachineShared>, to: &Follower, term: u64) -> io::Result<()> {
    let frames = frames(from, to.log.complete_upto()).await;
    let file = import(&to.shared, &frames).await?;
    let index = file.index();
    to.install(term, file).await?;
    to.purged(index).await
}
