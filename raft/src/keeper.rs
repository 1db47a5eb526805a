//! Keeping the disk bounded: takes snapshots when enough log was written, purges the log up to them, and
//! removes segments that nothing references any more.
//!
//! ```text
//! enough log ──> image of the state ──> flush of the log ──> file, durable ──> openraft learns of it
//!            ──> purge record, durable ──> dead segments are unlinked ──> sparse ones are rewritten
//! enough dead in segments that are sparse ──> the same, at most every ten seconds
//! a damaged segment ──> the same, and it is written anew, with bodies from peers
//! ```
//!
//! A segment is dead when all its entries are purged and neither the state nor the newest durable snapshot
//! references a body in it. It is looked for after every purge, also after one that follows a snapshot of
//! another node. Whoever still reads a removed segment keeps its file open.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::Raft;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::compact::{Failure, Healing, Job, Round, Step};
use crate::error::{Fatal, SnapshotError};
use crate::format::Position;
use crate::log::Log;
use crate::machine::{Builder, ImageGivenUp, Machine};
use crate::prepare::Preparer;
use crate::repair;
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

/// A damaged segment is written anew so long after it was found, so that damage nearby is found with it, ...
const HEAL_AFTER: Duration = Duration::from_secs(1);
/// ... or so long after the round before, while that could not be done for all; doubled each time, up to ...
const HEAL_AGAIN: Duration = Duration::from_secs(10);
/// ... this.
const HEAL_AGAIN_MAX: Duration = Duration::from_secs(3600);

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
        let mut ward = Ward::default();
        loop {
            let (mut compact, mut heal) = (false, false);
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
                () = self.log.damage.due.notified() => {
                    ward.found();
                    continue;
                },
                () = ward.due() => {
                    heal = true;
                    None
                },
            };
            sparse &= compact;
            if request.is_none() && !compact && !heal && !self.log.is_snapshot_due() {
                continue;
            }
            let result = self.round(heal).await;
            if heal {
                ward.healed(self.log.table.damaged() == 0);
            }
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

    async fn round(&self, heal: bool) -> Result<u64, SnapshotError> {
        // Counted from where the image is taken; a failure is tried again after as much more.
        self.log.set_snapshot_due(self.snapshot_log_bytes);
        let (at, mut round) = self.snapshot(self.plan(heal)).await?;
        self.purge(at.index).await?;
        self.remove_dead().await?;
        let damaged = round.take_damaged();
        self.compact(round, at).await?;
        for job in damaged {
            self.heal(job, at).await?;
        }
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
    fn plan(&self, heal: bool) -> Round {
        let committed = self.log.state().committed.map_or(0, |committed| committed.index);
        let purged = *self.log.watch_purged().borrow();
        let upto = self.purge_point(committed).unwrap_or(0).max(purged);
        Round::plan(&self.log, upto, self.preparer.segment_bytes(), heal)
    }

    /// Whether compaction would free more than it costs. If not, asks to be called again when more is dead.
    fn look(&self) -> bool {
        let (gain, step) = (self.plan(false).gain(), self.preparer.segment_bytes() / 4);
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
            // Damaged log is no good for others to catch up by either, and only what is purged is written anew.
            let retention = if segment.is_damaged() { 0 } else { retention };
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
        let preparer = self.preparer.clone();
        let removed = self.log.blocking(move || preparer.dispose(gone));
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

    /// Writes a damaged segment anew. What cannot be done now is left for a later round.
    async fn heal(&self, job: Job, snapshot: Position) -> Result<(), SnapshotError> {
        if job.last() > *self.log.watch_purged().borrow() {
            return Ok(());
        }
        let mut healing = Healing::new(self.log.clone(), self.preparer.clone(), job, snapshot);
        let file = healing.segment().path.display().to_string();
        let (mut brought, mut fetched, mut from) = (None, 0, BTreeSet::new());
        loop {
            let run = self.log.blocking(move || {
                let step = healing.run(brought);
                Ok((healing, step))
            });
            let step;
            (healing, step) = run.await.map_err(|error| self.stopped(&error))?;
            match step {
                Ok(Step::Wanted { index, bodies }) => match repair::fetch(&self.log, index, &bodies).await {
                    Ok(of_peers) => {
                        fetched += bodies.len();
                        from.extend(of_peers.from.iter().copied());
                        brought = Some(of_peers);
                    }
                    Err(why) => {
                        tracing::warn!(file, why, "a damaged segment cannot be repaired now; it is kept");
                        return Ok(());
                    }
                },
                Ok(Step::Done) => {
                    tracing::warn!(
                        file,
                        bodies_from_peers = fetched,
                        ?from,
                        "a damaged segment was repaired"
                    );
                    return Ok(());
                }
                Ok(Step::Void) | Err(Failure::Stopping) => return Ok(()),
                Err(Failure::Damaged { what, .. }) => {
                    tracing::warn!(file, what, "a damaged segment cannot be repaired now; it is kept");
                    return Ok(());
                }
                Err(Failure::Disk(error)) if error.kind() == io::ErrorKind::StorageFull => {
                    return Err(SnapshotError::NoSpace(error.to_string()));
                }
                Err(Failure::Disk(error)) => {
                    self.log.fail(&format!("repairing a segment: {error}"), Vec::new());
                    return Err(self.stopped(&error));
                }
            }
        }
    }

    /// The error of a node that cannot go on; `why` is used when no better reason is known.
    fn stopped(&self, why: &dyn std::fmt::Display) -> SnapshotError {
        let reason = self.log.watch_fatal().borrow().clone();
        reason.unwrap_or_else(|| Fatal::Consensus(why.to_string())).into()
    }
}

/// When damaged segments are written anew.
struct Ward {
    next: Option<Instant>,
    /// Not before this: a disk that goes on going bad must not have snapshots taken all the time.
    earliest: Instant,
    pause: Duration,
}

impl Default for Ward {
    fn default() -> Self {
        Self { next: None, earliest: Instant::now(), pause: HEAL_AGAIN }
    }
}

impl Ward {
    /// A segment was found damaged.
    fn found(&mut self) {
        let soon = (Instant::now() + HEAL_AFTER).max(self.earliest);
        self.next = Some(self.next.map_or(soon, |next| next.min(soon)));
    }

    /// Resolves when there is something to do, if ever.
    async fn due(&self) {
        match self.next {
            Some(next) => tokio::time::sleep_until(next).await,
            None => std::future::pending().await,
        }
    }

    /// A round is over.
    fn healed(&mut self, all: bool) {
        self.earliest = Instant::now() + HEAL_AGAIN;
        if all {
            (self.next, self.pause) = (None, HEAL_AGAIN);
            return;
        }
        self.next = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(HEAL_AGAIN_MAX);
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
