//! A data directory of a node that does not run, opened for a change: what [`crate::backup`] and [`crate::rescue`] share.

use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use tokio::task::AbortHandle;

use crate::completion::Done;
use crate::error::StartError;
use crate::flush::Flusher;
use crate::format::{Ballot, Position};
use crate::identity::Identity;
use crate::log::{Log, Op};
use crate::machine::{Machine, MachineShared};
use crate::open::{self, Storage};
use crate::options::Options;
use crate::prepare::Preparer;
use crate::snapshot::SnapshotFile;
use crate::state::StateMachine;
use crate::types::Entry;

/// An open directory without consensus.
pub(crate) struct Offline {
    pub(crate) identity: Identity,
    pub(crate) log: Arc<Log>,
    pub(crate) machine: Machine,
    preparer: Arc<Preparer>,
    flusher: Option<Flusher>,
    /// Tells those who wait for the disk.
    completer: AbortHandle,
}

impl Offline {
    /// Opens the directory as a start does; creates it when absent. It is locked until [`Offline::close`].
    pub(crate) async fn open(options: Options, state: Box<dyn StateMachine>) -> Result<Self, StartError> {
        let opened = tokio::task::spawn_blocking(move || open::open(&options, state));
        let storage = opened.await.map_err(|error| StartError::Consensus(error.to_string()))??;
        let Storage { identity, log, preparer, bodies: _, machine, flusher } = storage;
        let completer = log.completions.spawn().abort_handle();
        Ok(Self { identity, log, machine, preparer, flusher: Some(flusher), completer })
    }

    pub(crate) fn shared(&self) -> Arc<MachineShared> {
        self.machine.shared()
    }

    /// Makes a received snapshot the state, and the log a log that goes on after it in its term.
    pub(crate) async fn install(&mut self, file: SnapshotFile, at: Position) -> std::io::Result<()> {
        let meta = file.meta.clone();
        self.machine.install_snapshot(&meta, file).await?;
        let ballot = Ballot { term: at.term, node: self.identity.node, committed: true };
        self.log.queue([Op::Vote(ballot), Op::Purge(at)])?;
        self.log.flushed().await
    }

    /// Appends an entry that this node alone decides on, as the leader of the entry's term.
    pub(crate) async fn append_alone(&self, entry: Entry) -> std::io::Result<()> {
        let term = Position::from(entry.log_id).term;
        self.log.queue([Op::Vote(Ballot { term, node: self.identity.node, committed: true })])?;
        let (signal, durable) = tokio::sync::oneshot::channel();
        self.log.append(std::iter::once(entry), Done::Signal(signal)).await?;
        durable.await.map_err(|_| std::io::Error::other("the log is closed"))?
    }

    /// Gives the directory free. What was awaited is durable.
    pub(crate) async fn close(mut self) {
        self.log.stop();
        let (log, preparer, flusher) = (self.log.clone(), self.preparer.clone(), self.flusher.take());
        let closed = tokio::task::spawn_blocking(move || {
            if let Some(flusher) = flusher {
                flusher.join();
            }
            preparer.stop();
            log.unlock();
        });
        // A panic in the flush thread was reported by then, and what was awaited is durable.
        closed.await.ok();
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        self.log.stop();
        self.completer.abort();
    }
}
