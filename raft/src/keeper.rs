//! Keeping the disk bounded: takes snapshots when enough log was written, purges the log up to them, and
//! removes segments that nothing references any more.
//!
//! ```text
//! enough log ──> image of the state ──> flush of the log ──> file, durable ──> openraft learns of it
//!            ──> purge record, durable ──> dead segments are unlinked
//! ```
//!
//! A segment is dead when all its entries are purged and neither the state nor the newest durable snapshot
//! references a body in it. It is looked for after every purge, also after one that follows a snapshot of
//! another node. Whoever still reads a removed segment keeps its file open.

use std::io;
use std::sync::Arc;

use openraft::Raft;
use tokio::sync::{mpsc, oneshot};

use crate::error::{Fatal, SnapshotError};
use crate::log::Log;
use crate::machine::{Builder, Machine};
use crate::prepare::Preparer;
use crate::segment::Segment;
use crate::types::TypeConfig;

/// Somebody who asked for a snapshot.
pub(crate) type Request = oneshot::Sender<Result<u64, SnapshotError>>;

/// Looks after the disk of one node.
pub(crate) struct Keeper {
    pub(crate) raft: Raft<TypeConfig, Machine>,
    pub(crate) log: Arc<Log>,
    pub(crate) preparer: Arc<Preparer>,
    /// Log written between two snapshots, in bytes.
    pub(crate) snapshot_log_bytes: u64,
    /// Log kept behind a snapshot, in bytes.
    pub(crate) log_retention_bytes: u64,
}

impl Keeper {
    /// Works until the node stops. Sleeps while there is nothing to do.
    pub(crate) async fn run(self, mut requests: mpsc::Receiver<Request>) {
        if self.remove_dead().await.is_err() {
            return;
        }
        let mut purged = self.log.watch_purged();
        loop {
            let request = tokio::select! {
                () = self.log.snapshot_due.notified() => None,
                request = requests.recv() => match request {
                    Some(request) => Some(request),
                    None => return,
                },
                changed = purged.changed() => match changed {
                    Ok(()) if self.remove_dead().await.is_ok() => continue,
                    Ok(()) | Err(_) => return,
                },
            };
            if request.is_none() && !self.log.is_snapshot_due() {
                continue;
            }
            let result = self.round().await;
            if let Err(error) = &result {
                tracing::warn!(%error, "no snapshot was taken");
            }
            let stopped = matches!(result, Err(SnapshotError::Stopped(_)));
            if let Some(request) = request {
                // Whoever asked may have gone.
                request.send(result).ok();
            }
            if stopped {
                return;
            }
        }
    }

    async fn round(&self) -> Result<u64, SnapshotError> {
        // Counted from where the image is taken; a failure is tried again after as much more.
        self.log.set_snapshot_due(self.snapshot_log_bytes);
        let index = self.snapshot().await?;
        self.purge(index).await?;
        self.remove_dead().await?;
        Ok(index)
    }

    async fn snapshot(&self) -> Result<u64, SnapshotError> {
        let builder = self.raft.with_state_machine(|machine| {
            let builder = machine.applied().is_some().then(|| machine.builder());
            Box::pin(async move { builder })
        });
        let builder = builder.await.map_err(|error| self.stopped(&error))?.ok_or(SnapshotError::Empty)?;
        // Bodies that the image references must be durable before it is.
        self.log.flushed().await.map_err(|error| self.stopped(&error))?;
        let file = self.write(builder).await?;
        let wanted = file.meta.last_log_id;
        self.raft.trigger().snapshot().await.map_err(|error| self.stopped(&error))?;
        let mut known = self.raft.watch_snapshot_progress();
        known.wait_until_ge(&wanted).await.map_err(|error| self.stopped(&error))?;
        tracing::info!(index = file.index(), file = %file.path.display(), "snapshot taken");
        Ok(file.index())
    }

    async fn write(&self, mut builder: Builder) -> Result<crate::snapshot::SnapshotFile, SnapshotError> {
        match self.log.blocking(move || builder.write()).await {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                Err(SnapshotError::NoSpace(error.to_string()))
            }
            Err(error) => {
                self.log.fail(&format!("writing a snapshot: {error}"), Vec::new());
                Err(self.stopped(&error))
            }
        }
    }

    /// Purges what the snapshot at `snapshot` replaces, but for the newest part.
    async fn purge(&self, snapshot: u64) -> Result<(), SnapshotError> {
        let mut purged = self.log.watch_purged();
        let before = *purged.borrow_and_update();
        let Some(upto) = self.purge_point(snapshot).filter(|upto| *upto > before) else { return Ok(()) };
        self.raft.trigger().purge_log(upto).await.map_err(|error| self.stopped(&error))?;
        let mut fatal = self.log.watch_fatal();
        tokio::select! {
            durable = purged.wait_for(|durable| *durable >= upto) => {
                durable.map_err(|error| self.stopped(&error))?;
            }
            reason = fatal.wait_for(Option::is_some) => {
                return Err(self.stopped(&reason.map(|_| ()).err().map_or_else(String::new, |e| e.to_string())));
            }
        }
        tracing::info!(upto, "log purged");
        Ok(())
    }

    /// The last index of the newest segment that has enough log after it and that the snapshot covers.
    fn purge_point(&self, snapshot: u64) -> Option<u64> {
        let snapshot = snapshot.min(held_after(&self.log).unwrap_or(snapshot));
        let mut after = 0;
        let mut point = None;
        for segment in self.log.table.all().iter().rev() {
            let last = segment.range().map(|(_, last)| last);
            if after >= self.log_retention_bytes && after > 0 && last.is_some_and(|last| last <= snapshot) {
                point = last;
                break;
            }
            after += segment.end();
        }
        point
    }

    /// Unlinks segments that nothing references.
    async fn remove_dead(&self) -> Result<(), SnapshotError> {
        let gone = take_dead(&self.log);
        let segments = gone.len();
        if segments == 0 {
            return Ok(());
        }
        let log = self.log.clone();
        let removed = self.log.blocking(move || unlink(&log, &gone));
        if let Err(error) = removed.await {
            self.log.fail(&format!("removing dead segments: {error}"), Vec::new());
            return Err(self.stopped(&error));
        }
        self.preparer.retry();
        tracing::info!(segments, "dead segments removed");
        Ok(())
    }

    /// The error of a node that cannot go on; `why` is used when no better reason is known.
    fn stopped(&self, why: &dyn std::fmt::Display) -> SnapshotError {
        let reason = self.log.watch_fatal().borrow().clone();
        reason.unwrap_or_else(|| Fatal::Consensus(why.to_string())).into()
    }
}

/// Log kept for nodes that a snapshot is on its way to, in bytes. One that is so slow that more was written
/// meanwhile needs another snapshot afterwards: it must not fill this disk.
const HELD_BYTES_MAX: u64 = 1 << 30;

/// The lowest index after which the log is to be kept for another node.
fn held_after(log: &Log) -> Option<u64> {
    let mut holds = log.holds.lock().clone();
    holds.retain(|after| log.bytes_after(*after) <= HELD_BYTES_MAX);
    holds.into_iter().min()
}

/// Takes segments that nothing references out of the table.
pub(crate) fn take_dead(log: &Log) -> Vec<Arc<Segment>> {
    // While a snapshot is installed nothing seems to be referenced. The purge that follows it comes here.
    let Some(_settled) = log.replacing.try_lock() else { return Vec::new() };
    let purged = *log.watch_purged().borrow();
    let snapshot = log.snapshot_index();
    let mut segments = log.table.all();
    // The last one is being written.
    segments.pop();
    segments.extend(log.table.bodies());
    let dead: Vec<u64> = segments
        .iter()
        .filter(|segment| segment.range().is_none_or(|(_, last)| last <= purged && purged > 0))
        .filter(|segment| segment.dead_at(snapshot))
        .map(|segment| segment.header.id)
        .collect();
    if dead.is_empty() { Vec::new() } else { log.table.remove(&dead) }
}

/// Removes the files of segments that were taken out of the table.
pub(crate) fn unlink(log: &Log, gone: &[Arc<Segment>]) -> io::Result<()> {
    for segment in gone {
        log.disk.unlink(&segment.path)?;
    }
    log.disk.sync_dir(&log.dir)
}
