//! Keeping the disk bounded: takes snapshots when enough log was written, purges the log up to them, and
//! removes segments that nothing references any more.
//!
//! ```text
//! enough log ──> image of the state ──> flush of the log ──> file, durable ──> openraft learns of it
//!            ──> purge record, durable ──> dead segments are unlinked ──> sparse ones are rewritten
//! enough dead in segments that are sparse ──> the same, at most every ten seconds
//! ```
//!
//! A segment is dead when all its entries are purged and neither the state nor the newest durable snapshot
//! references a body in it. It is looked for after every purge, also after one that follows a snapshot of
//! another node. Whoever still reads a removed segment keeps its file open.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::Raft;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::compact::Round;
use crate::error::{Fatal, SnapshotError};
use crate::format::Position;
use crate::log::Log;
use crate::machine::{Builder, ImageGivenUp, Machine};
use crate::prepare::Preparer;
use crate::segment::Segment;
use crate::snapshot::SnapshotFile;
use crate::space::Space;
use crate::types::TypeConfig;

/// Somebody who asked for a snapshot.
pub(crate) type Request = oneshot::Sender<Result<u64, SnapshotError>>;

/// A round that is taken for compaction alone begins no sooner than this after the round before.
const COMPACT_EVERY: Duration = Duration::from_secs(10);

/// The same while the disk is nearly full.
const PRESSED_EVERY: Duration = Duration::from_secs(1);

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
        // A restart may find something to compact; nothing is dead by then that was released in this life.
        self.log.compaction_due.notify_one();
        let mut sparse = false;
        let mut earliest = Instant::now() + COMPACT_EVERY;
        loop {
            let mut compact = false;
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
                () = self.log.compaction_due.notified() => {
                    sparse = self.look();
                    continue;
                },
                () = self.log.pressed.notified() => {
                    earliest = earliest.min(Instant::now() + PRESSED_EVERY);
                    sparse = self.look();
                    continue;
                },
                () = tokio::time::sleep_until(earliest), if sparse => {
                    compact = self.look();
                    None
                },
            };
            sparse &= compact;
            if request.is_none() && !compact && !self.log.is_snapshot_due() {
                continue;
            }
            let result = self.round().await;
            sparse = self.look();
            earliest = Instant::now() + if self.is_pressed() { PRESSED_EVERY } else { COMPACT_EVERY };
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
        let (at, round) = self.snapshot(self.plan()).await?;
        self.purge(at.index).await?;
        self.remove_dead().await?;
        self.compact(round, at).await?;
        Ok(at.index)
    }

    /// The disk is nearly full, as of the last look.
    fn is_pressed(&self) -> bool {
        match self.log.space.space() {
            Space::Open => false,
            Space::Shedding | Space::Closed => true,
        }
    }

    /// What would be compacted by a round that begins now.
    fn plan(&self) -> Round {
        let committed = self.log.state().committed.map_or(0, |committed| committed.index);
        let purged = *self.log.watch_purged().borrow();
        let upto = self.purge_point(committed).unwrap_or(0).max(purged);
        Round::plan(&self.log, upto, self.preparer.segment_bytes())
    }

    /// Whether compaction would free more than it costs. If not, asks to be called again when more is dead.
    fn look(&self) -> bool {
        let (gain, step) = (self.plan().gain(), self.preparer.segment_bytes() / 4);
        // The image has to be written for it.
        let worth = gain >= step.max(self.log.image_bytes.load(Ordering::Relaxed));
        if !worth {
            self.log.set_compaction_due(step / 2);
        }
        worth
    }

    /// Takes a snapshot; answers where it stands, and the round with what is live noted in it.
    async fn snapshot(&self, mut round: Round) -> Result<(Position, Round), SnapshotError> {
        let anew = !round.is_empty();
        let builder = self.raft.with_state_machine(move |machine| {
            let builder = machine.applied().is_some().then(|| machine.builder(anew));
            Box::pin(async move { builder })
        });
        let builder = builder.await.map_err(|error| self.stopped(&error))?.ok_or(SnapshotError::Empty)?;
        // Bodies that the image references must be durable before it is.
        self.log.flushed().await.map_err(|error| self.stopped(&error))?;
        let file;
        (file, round) = self.write(builder, round).await?;
        let wanted = file.meta.last_log_id;
        self.raft.trigger().snapshot().await.map_err(|error| self.stopped(&error))?;
        let mut known = self.raft.watch_snapshot_progress();
        known.wait_until_ge(&wanted).await.map_err(|error| self.stopped(&error))?;
        tracing::info!(index = file.index(), file = %file.path.display(), "snapshot taken");
        let at = wanted.map_or(Position { term: 0, index: 0 }, Position::from);
        Ok((at, round))
    }

    async fn write(
        &self,
        mut builder: Builder,
        mut round: Round,
    ) -> Result<(SnapshotFile, Round), SnapshotError> {
        let written = self.log.blocking(move || {
            let (written, file) = builder.write(&mut |addr| round.note(addr))?;
            // Another one is as new or newer: what is live was not told.
            Ok((file, if written { round } else { Round::default() }))
        });
        match written.await {
            Ok(written) => {
                let bytes = written.0.size().unwrap_or(0);
                self.log.image_bytes.store(bytes, Ordering::Relaxed);
                Ok(written)
            }
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                Err(SnapshotError::NoSpace(error.to_string()))
            }
            Err(error) if error.get_ref().is_some_and(|why| why.is::<ImageGivenUp>()) => {
                Err(SnapshotError::GivenUp)
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
        // Log that is kept for others to catch up by goes first when there is no room.
        let retention = if self.is_pressed() { 0 } else { self.log_retention_bytes };
        let mut after = 0;
        let mut point = None;
        for segment in self.log.table.all().iter().rev() {
            let last = segment.range().map(|(_, last)| last);
            if after >= retention && after > 0 && last.is_some_and(|last| last <= snapshot) {
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

    /// Rewrites segments of which little is live.
    async fn compact(&self, round: Round, snapshot: Position) -> Result<(), SnapshotError> {
        if round.is_empty() {
            return Ok(());
        }
        let (log, preparer) = (self.log.clone(), self.preparer.clone());
        match self.log.blocking(move || round.run(&log, &preparer, snapshot)).await {
            Ok(()) => {
                self.preparer.retry();
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                Err(SnapshotError::NoSpace(error.to_string()))
            }
            Err(error) => {
                self.log.fail(&format!("compacting segments: {error}"), Vec::new());
                Err(self.stopped(&error))
            }
        }
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
