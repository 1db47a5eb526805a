//! What the tests start from: options, a log without consensus, and a whole node.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::machine::{Seen, TestMachine};
use crate::completion::Done;
use crate::disk::{Disk, FaultDisk};
use crate::format::{Kind, Position};
use crate::open::{self, Storage};
use crate::recover::{self, Recovered};
use crate::types::{Entry, record_entry};
use crate::{Node, Options, Outcome, Payload, StartError};

/// The data directory on a disk in memory.
pub(crate) const DIR: &str = "d";
/// Long enough for anything that does not hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Small segments on `disk`.
pub(crate) fn options(disk: &FaultDisk) -> Options {
    let mut options = Options::new(DIR);
    options.segment_bytes = 16 << 10;
    options.disk = Arc::new(disk.clone());
    options
}

/// A node on `disk` that leads, and what its state machine has seen.
pub(crate) async fn node(options: Options) -> (Node, Arc<Mutex<Seen>>) {
    let (machine, seen) = TestMachine::new();
    let node = Node::start(options, machine).await.unwrap();
    within(node.ready()).await.unwrap();
    (node, seen)
}

/// Proposes and waits for the outcome.
pub(crate) async fn commit(node: &Node, payload: Payload) -> u64 {
    match within(node.propose(payload).await.unwrap()).await {
        Outcome::Committed { index } => index,
        other @ (Outcome::NotProposed { .. } | Outcome::Unknown) => panic!("{other:?}"),
    }
}

/// Waits, but not for ever.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it must not take this long")
}

/// Waits until the next segment is ready, after which only the flush thread uses the disk.
pub(crate) async fn prepared(disk: &FaultDisk) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while segments(disk).len() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "no second segment");
        tokio::task::yield_now().await;
    }
}

/// A log without consensus on top.
pub(crate) struct Rig {
    pub(crate) storage: Storage,
}

impl Rig {
    pub(crate) fn open(options: &Options) -> Result<Self, StartError> {
        let (machine, _) = TestMachine::new();
        let storage = open::open(options, Box::new(machine))?;
        storage.log.completions.spawn();
        Ok(Self { storage })
    }

    /// Appends entries and waits until they are durable.
    pub(crate) async fn append(&self, entries: Vec<Entry>) {
        let (signal, durable) = oneshot::channel();
        self.storage.log.append(entries.into_iter(), Done::Signal(signal)).await.unwrap();
        within(durable).await.unwrap().unwrap();
    }

    /// Ends the flush thread in good order.
    pub(crate) fn close(self) {
        self.storage.log.stop();
        self.storage.flusher.join();
        self.storage.preparer.stop();
        self.storage.log.unlock();
    }
}

/// An entry of `len` bytes, none of them zero.
pub(crate) fn entry(term: u64, index: u64, len: usize) -> Entry {
    let bytes: Vec<u8> = (0..len).map(|at| (at as u64 ^ index) as u8 | 1).collect();
    record_entry(Kind::Normal, Position { term, index }, bytes.into()).unwrap()
}

/// What a start would find in `disk`.
pub(crate) fn recover(disk: &FaultDisk) -> Result<Recovered, StartError> {
    recover::recover(disk, Path::new(DIR))
}

/// The paths of all segment files, in order.
pub(crate) fn segments(disk: &FaultDisk) -> Vec<PathBuf> {
    let mut names = disk.list(Path::new(DIR)).unwrap();
    names.retain(|name| name.ends_with(recover::SUFFIX));
    names.sort();
    names.into_iter().map(|name| Path::new(DIR).join(name)).collect()
}
