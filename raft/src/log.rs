//! The log of one node, shared by everyone who touches it.
//!
//! ```text
//!   consensus core ── append, vote, truncate, purge ──> queue ──> flush thread ──> segments
//!        │                                                │            │
//!        └────────────── ring of recent entries <─────────┘            └──> completions ──> core
//!   apply, bodies ── read: ring, else segment ─────────────────────────────────^
//! ```
//!
//! One lock guards queue, ring and logical state; it is held for nanoseconds and never across IO. The logical
//! state (what the core believes) is ahead of the segments by what is queued.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot, watch};

use crate::completion::{Completions, Done};
use crate::damage::{BodyCheck, Damage};
use crate::disk::{Disk, DiskLock};
use crate::error::Fatal;
use crate::format::{Ballot, HEAD_LEN, Head, LogState, Position, RecordCrc};
use crate::ring::Ring;
use crate::scan::next_index;
use crate::segment::{Segment, SegmentTable};
use crate::space::Watch;
use crate::types::{Entry, record_entry};

/// How many bytes of entries one read answers at most, unless the first entry alone is longer.
pub(crate) const READ_BYTES_MAX: usize = 2 << 20;

/// The log of one node.
pub(crate) struct Log {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) table: SegmentTable,
    pub(crate) completions: Completions,
    inner: Mutex<Inner>,
    /// No threads: everything happens on the runtime, as a simulation wants it.
    pub(crate) inline: bool,
    /// The flush thread sleeps here.
    work: Condvar,
    /// Its stand-in without threads sleeps here.
    work_inline: Notify,
    /// Appends that wait for room in the ring sleep here.
    room: Notify,
    /// What stopped the log, once something did.
    fatal: watch::Sender<Option<Fatal>>,
    /// The purge point as far as it is durable; 0 when there is none.
    purged: watch::Sender<u64>,
    /// Bytes of records written since the start.
    written_bytes: AtomicU64,
    /// The index being applied: what is released now died at this index.
    applying: AtomicU64,
    /// The index of the newest durable snapshot; 0 when there is none.
    snapshot_index: AtomicU64,
    /// Bytes of log that call for the next snapshot: absolute, against `written_bytes`.
    snapshot_due_at: AtomicU64,
    pub(crate) snapshot_due: Notify,
    /// Held while the snapshot, or the state and with it the counts of live bodies, is being replaced: what is
    /// not referenced at such a moment may be a moment later. Taken on threads that may block.
    pub(crate) replacing: Mutex<()>,
    /// The log after these indexes is not to be purged: snapshots of them are on their way to other nodes.
    pub(crate) holds: Mutex<Vec<u64>>,
    /// Held while segments are rewritten: a node that stops waits for the step that is being done.
    pub(crate) tidying: Mutex<()>,
    /// What compaction has done since the start.
    pub(crate) compaction: Compaction,
    /// What does not check out on the disk.
    pub(crate) damage: Damage,
    /// What is taken on, by the room on the disk.
    pub(crate) space: Watch,
    /// That has changed: there may be room to be made.
    pub(crate) pressed: Notify,
    /// Bytes of bodies that were released since the start.
    freed_bytes: AtomicU64,
    /// How many of them call for a look whether there is something to compact; absolute, against `freed_bytes`.
    compaction_due_at: AtomicU64,
    pub(crate) compaction_due: Notify,
    /// How long the newest image of the state is, in bytes, as far as this life has written one.
    pub(crate) image_bytes: AtomicU64,
    /// Held while the directory is in use.
    lock: Mutex<Option<DiskLock>>,
}

/// What compaction has done since the start.
#[derive(Default)]
pub(crate) struct Compaction {
    /// Bytes of segments that it wrote.
    pub(crate) written: AtomicU64,
    /// Bytes of files that it gave back, less those.
    pub(crate) gained: AtomicU64,
}

impl Compaction {
    pub(crate) fn count(&self, written: u64, gained: u64) {
        self.written.fetch_add(written, Ordering::Relaxed);
        self.gained.fetch_add(gained, Ordering::Relaxed);
    }
}

struct Inner {
    /// What the core believes, queued operations included.
    state: LogState,
    /// The index of the first entry that was not purged.
    first: u64,
    ring: Ring,
    queue: Vec<Op>,
    /// The flush thread waits and must be woken.
    idle: bool,
    stop: bool,
    failed: Option<String>,
    /// Bodies that were retained before their entry was written (other nodes had committed it already).
    unwritten_live: HashMap<u64, (u64, u64)>,
}

/// What the flush thread is asked to do, in this order.
pub(crate) enum Op {
    /// Append one entry. `number` is what the ring calls this append.
    Append { entry: Entry, number: u64 },
    /// Save a vote.
    Vote(Ballot),
    /// Void entries from `index` on; `last` is what remains.
    Truncate { index: u64, last: Option<Position> },
    /// Raise the purge point.
    Purge(Position),
    /// Report when everything before it is durable.
    Report(Done),
}

impl Op {
    /// Who waits for it, if somebody does.
    pub(crate) fn into_done(self) -> Option<Done> {
        match self {
            Self::Report(done) => Some(done),
            Self::Append { .. } | Self::Vote(_) | Self::Truncate { .. } | Self::Purge(_) => None,
        }
    }
}

/// What the flush thread takes from the queue at once.
pub(crate) struct Work {
    pub(crate) ops: Vec<Op>,
    /// What is known to be committed now.
    pub(crate) committed: Option<Position>,
    /// Nothing follows.
    pub(crate) stop: bool,
}

/// What a log is made of.
pub(crate) struct Parts {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) table: SegmentTable,
    pub(crate) state: LogState,
    pub(crate) ring_bytes: usize,
    pub(crate) inline: bool,
    pub(crate) body_check: Option<BodyCheck>,
    pub(crate) lock: Option<DiskLock>,
}

impl Log {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { disk, dir, table, state, ring_bytes, inline, body_check, lock } = parts;
        let oldest = table.all().iter().find_map(|segment| segment.range()).map(|(first, _)| first);
        let inner = Inner {
            state,
            first: state.purged.map_or(oldest.unwrap_or(0), |purged| purged.index + 1),
            ring: Ring::new(ring_bytes),
            queue: Vec::new(),
            idle: false,
            stop: false,
            failed: None,
            unwritten_live: HashMap::new(),
        };
        Self {
            disk,
            dir,
            table,
            completions: Completions::default(),
            inner: Mutex::new(inner),
            inline,
            work: Condvar::new(),
            work_inline: Notify::new(),
            room: Notify::new(),
            fatal: watch::Sender::new(None),
            purged: watch::Sender::new(state.purged.map_or(0, |purged| purged.index)),
            written_bytes: AtomicU64::new(0),
            applying: AtomicU64::new(0),
            snapshot_index: AtomicU64::new(0),
            snapshot_due_at: AtomicU64::new(u64::MAX),
            snapshot_due: Notify::new(),
            replacing: Mutex::new(()),
            holds: Mutex::new(Vec::new()),
            tidying: Mutex::new(()),
            compaction: Compaction::default(),
            damage: Damage::new(body_check),
            space: Watch::default(),
            pressed: Notify::new(),
            freed_bytes: AtomicU64::new(0),
            compaction_due_at: AtomicU64::new(u64::MAX),
            compaction_due: Notify::new(),
            image_bytes: AtomicU64::new(0),
            lock: Mutex::new(lock),
        }
    }

    /// What the ring's entries cost, in bytes.
    pub(crate) fn ring_in_use(&self) -> usize {
        self.inner.lock().ring.bytes()
    }

    /// What the core believes.
    pub(crate) fn state(&self) -> LogState {
        self.inner.lock().state
    }

    /// Queues entries and `done`, which is reported when they are durable. Waits while the ring is full.
    pub(crate) async fn append(&self, entries: impl Iterator<Item = Entry>, done: Done) -> io::Result<()> {
        let mut entries = entries.peekable();
        loop {
            let room = self.room.notified();
            {
                let mut inner = self.lock_working()?;
                while !inner.ring.is_full() {
                    let Some(entry) = entries.next() else {
                        inner.queue.push(Op::Report(done));
                        self.wake(&mut inner);
                        return Ok(());
                    };
                    inner.push(entry);
                }
                self.wake(&mut inner);
            }
            room.await;
        }
    }

    /// Queues an operation other than an append.
    pub(crate) fn queue(&self, ops: impl IntoIterator<Item = Op>) -> io::Result<()> {
        let mut inner = self.lock_working()?;
        for op in ops {
            match &op {
                Op::Append { .. } => unreachable!("entries are queued by append"),
                Op::Vote(ballot) => inner.state.ballot = Some(*ballot),
                Op::Truncate { index, last } => {
                    inner.ring.truncate(*index);
                    inner.state.last = *last;
                }
                Op::Purge(position) => {
                    if let Some(truncate) = inner.void_unproven(*position) {
                        inner.queue.push(truncate);
                    }
                    inner.purge(*position);
                }
                Op::Report(_) => {}
            }
            inner.queue.push(op);
        }
        self.wake(&mut inner);
        Ok(())
    }

    /// Notes what is committed. It is written along with the next flush and causes none.
    pub(crate) fn set_committed(&self, committed: Option<Position>) {
        self.inner.lock().state.committed = committed;
    }

    fn lock_working(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let inner = self.inner.lock();
        match &inner.failed {
            Some(failed) => Err(io::Error::other(failed.clone())),
            None if inner.stop => Err(io::Error::other("the log is closed")),
            None => Ok(inner),
        }
    }

    fn wake(&self, inner: &mut Inner) {
        if self.inline {
            self.work_inline.notify_one();
        } else if std::mem::take(&mut inner.idle) {
            self.work.notify_one();
        }
    }

    /// Waits for work. `spent` is the vector of the last time, to be filled anew.
    pub(crate) fn take_work(&self, mut spent: Vec<Op>, limit: Option<Duration>) -> Work {
        spent.clear();
        let mut inner = self.inner.lock();
        while inner.queue.is_empty() && !inner.stop {
            inner.idle = true;
            match limit {
                None => self.work.wait(&mut inner),
                Some(limit) if self.work.wait_for(&mut inner, limit).timed_out() => break,
                Some(_) => {}
            }
        }
        inner.idle = false;
        std::mem::swap(&mut inner.queue, &mut spent);
        Work { ops: spent, committed: inner.state.committed, stop: inner.stop }
    }

    /// The same for a task. Takes as long as the disk says that it needs; what comes meanwhile is done with it.
    pub(crate) async fn take_work_inline(&self, limit: Option<Duration>) -> Work {
        let (mut slept, mut over) = (false, false);
        loop {
            let latency = if slept || !self.has_work() { Duration::ZERO } else { self.disk.latency() };
            if !latency.is_zero() {
                tokio::time::sleep(latency).await;
                slept = true;
            }
            {
                let mut inner = self.inner.lock();
                if !inner.queue.is_empty() || inner.stop || over {
                    let ops = std::mem::take(&mut inner.queue);
                    return Work { ops, committed: inner.state.committed, stop: inner.stop };
                }
            }
            let more = self.work_inline.notified();
            match limit {
                None => more.await,
                Some(limit) => over = tokio::time::timeout(limit, more).await.is_err(),
            }
        }
    }

    fn has_work(&self) -> bool {
        !self.inner.lock().queue.is_empty()
    }

    /// Runs what blocks where that disturbs nobody.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        if self.inline {
            return f();
        }
        tokio::task::spawn_blocking(f).await.map_err(io::Error::other)?
    }

    /// Says where entries lie that were written (not necessarily synced yet).
    pub(crate) fn publish(&self, segment: &Segment, placed: &Placed, bytes: u64) {
        let mut inner = self.inner.lock();
        segment.add(placed.first, &placed.offsets, placed.end);
        if !inner.unwritten_live.is_empty() {
            for index in placed.first..placed.first + placed.offsets.len() as u64 {
                if let Some((bytes, bodies)) = inner.unwritten_live.remove(&index) {
                    segment.retain(bytes, bodies);
                }
            }
        }
        let was_full = inner.ring.is_full();
        inner.ring.written(placed.number);
        if was_full && !inner.ring.is_full() {
            self.room.notify_waiters();
        }
        drop(inner);
        let written = self.written_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if written >= self.snapshot_due_at.load(Ordering::Relaxed) {
            self.snapshot_due.notify_one();
        }
    }

    /// Says that the purge point is durable.
    pub(crate) fn purge_is_durable(&self, index: u64) {
        self.purged.send_replace(index);
    }

    pub(crate) fn watch_purged(&self) -> watch::Receiver<u64> {
        self.purged.subscribe()
    }

    /// Stops the log after a failed write or sync: `waiting`, everything queued and everything to come fails.
    pub(crate) fn fail(&self, what: &str, mut waiting: Vec<Done>) {
        tracing::error!(dir = %self.dir.display(), error = what, "storage failed: the node stops");
        let mut inner = self.inner.lock();
        inner.failed.get_or_insert_with(|| what.to_owned());
        // Before anybody is told, so that who is told finds the reason.
        self.set_fatal(Fatal::Storage(what.to_owned()));
        waiting.extend(std::mem::take(&mut inner.queue).into_iter().filter_map(Op::into_done));
        drop(inner);
        self.room.notify_waiters();
        self.completions.fail(waiting, what);
    }

    /// Records why the node cannot go on; the first reason stays.
    pub(crate) fn set_fatal(&self, fatal: Fatal) {
        self.fatal.send_if_modified(|reason| {
            let first = reason.is_none();
            reason.get_or_insert(fatal);
            first
        });
    }

    pub(crate) fn watch_fatal(&self) -> watch::Receiver<Option<Fatal>> {
        self.fatal.subscribe()
    }

    /// Asks the flush thread to write what is queued and to end.
    pub(crate) fn stop(&self) {
        let mut inner = self.inner.lock();
        inner.stop = true;
        inner.idle = false;
        self.work.notify_one();
        self.work_inline.notify_one();
    }

    /// Whether it was asked to end, or has failed.
    pub(crate) fn is_stopping(&self) -> bool {
        let inner = self.inner.lock();
        inner.stop || inner.failed.is_some()
    }

    /// Gives the directory free.
    pub(crate) fn unlock(&self) {
        self.lock.lock().take();
    }

    /// The entries of `range` that the log holds, from its start on, but no more than fits
    /// [`READ_BYTES_MAX`] (the first one always does). May read from the disk.
    pub(crate) fn read(&self, range: Range<u64>) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let held = self.held(&range);
        self.read_ring(held.clone(), &mut entries);
        if entries.is_empty() {
            // What is held and no longer in the ring is written.
            self.read_segments(held, &mut entries)?;
        }
        Ok(entries)
    }

    /// The entries of `range` that are in the ring, when the first one is.
    pub(crate) fn read_ring(&self, range: Range<u64>, out: &mut Vec<Entry>) {
        let inner = self.inner.lock();
        let range = inner.held(&range);
        let mut bytes = 0;
        for index in range {
            let Some(entry) = inner.ring.get(index) else { return };
            bytes += payload_len(entry);
            if bytes > READ_BYTES_MAX && !out.is_empty() {
                return;
            }
            out.push(entry.clone());
        }
    }

    /// The part of `range` that the log holds.
    pub(crate) fn held(&self, range: &Range<u64>) -> Range<u64> {
        self.inner.lock().held(range)
    }

    /// Entries that lie in segments, from the first of `range` on, as many as one read of moderate size gives.
    fn read_segments(&self, range: Range<u64>, out: &mut Vec<Entry>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let Some((segment, _)) = self.table.find(range.start) else {
            return Err(io::Error::other(format!("entry {} is neither in memory nor on disk", range.start)));
        };
        let read = read_run(&segment, range.clone(), out);
        read.map_err(|error| {
            let (index, file) = (range.start + out.len() as u64, segment.path.display());
            let what = error.to_string();
            self.damage.note_entry(&segment, index, &what);
            let offset = segment.offset(index).unwrap_or(0);
            let unreadable = error.raw_os_error() == Some(libc::EIO);
            let kind = if unreadable { io::ErrorKind::InvalidData } else { error.kind() };
            io::Error::new(kind, format!("{file} offset {offset}: {what}"))
        })
    }

    /// Bytes of records of entries after `index`.
    pub(crate) fn bytes_after(&self, index: u64) -> u64 {
        self.table.all().iter().map(|segment| segment.bytes_after(index)).sum()
    }

    /// Appends bytes within the payload of an entry that is in the ring; `Some(false)` when there are no such
    /// bytes.
    pub(crate) fn ring_bytes(
        &self,
        index: u64,
        offset: usize,
        len: usize,
        out: &mut BytesMut,
    ) -> Option<bool> {
        let inner = self.inner.lock();
        let entry = inner.ring.get(index)?;
        let openraft::EntryPayload::Normal(payload) = &entry.payload else { return Some(false) };
        if offset + len > payload.len() {
            return Some(false);
        }
        payload.copy_to(offset, len, out);
        Some(true)
    }

    /// Counts a body as referenced.
    pub(crate) fn retain(&self, index: u64, bytes: u64) {
        if self.table.with_body(index, |segment| segment.retain(bytes, 1)).is_some() {
            return;
        }
        let mut inner = self.inner.lock();
        // It may have been published between the two looks.
        if self.table.with_body(index, |segment| segment.retain(bytes, 1)).is_none() {
            let live = inner.unwritten_live.entry(index).or_default();
            live.0 += bytes;
            live.1 += 1;
        }
    }

    /// Counts a body as no longer referenced.
    pub(crate) fn release(&self, index: u64, bytes: u64) {
        let at = self.applying.load(Ordering::Relaxed);
        let freed = self.freed_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if freed >= self.compaction_due_at.load(Ordering::Relaxed) {
            // Once, until somebody has looked.
            self.compaction_due_at.store(u64::MAX, Ordering::Relaxed);
            self.compaction_due.notify_one();
        }
        if self.table.with_body(index, |segment| segment.release(bytes, at)).is_some() {
            return;
        }
        let mut inner = self.inner.lock();
        if self.table.with_body(index, |segment| segment.release(bytes, at)).is_none() {
            let live = inner.unwritten_live.get_mut(&index);
            let live = live.expect("a body is released at most as often as it was retained");
            live.0 -= bytes;
            live.1 -= 1;
            if live.1 == 0 {
                inner.unwritten_live.remove(&index);
            }
        }
    }

    /// Forgets which bodies are referenced: the state is about to be replaced.
    pub(crate) fn reset_live(&self) {
        let mut inner = self.inner.lock();
        inner.unwritten_live.clear();
        for segment in self.table.all().into_iter().chain(self.table.bodies()) {
            segment.reset_live();
        }
    }

    /// Up to where everything that a later snapshot can reference is here: what is committed and in the log,
    /// and what this node's own snapshot covers.
    pub(crate) fn complete_upto(&self) -> u64 {
        let state = self.inner.lock().state;
        let last = state.last.map_or(0, |last| last.index);
        let committed = state.committed.map_or(0, |committed| committed.index.min(last));
        committed.max(state.purged.map_or(0, |purged| purged.index)).max(self.snapshot_index())
    }

    /// Whether what is here under an index is what was committed there.
    pub(crate) fn is_settled(&self, index: u64) -> bool {
        let state = self.inner.lock().state;
        let last = state.last.map_or(0, |last| last.index);
        let committed = state.committed.map_or(0, |committed| committed.index.min(last));
        let purged = state.purged.map_or(0, |purged| purged.index);
        index <= committed.max(purged) || self.table.in_bodies(index)
    }

    /// Waits until everything queued so far is durable.
    pub(crate) async fn flushed(&self) -> io::Result<()> {
        let (signal, durable) = oneshot::channel();
        self.queue([Op::Report(Done::Signal(signal))])?;
        durable.await.map_err(|_| io::Error::other("the log is closed"))?
    }

    /// Says which entry is being applied.
    pub(crate) fn set_applying(&self, index: u64) {
        self.applying.store(index, Ordering::Relaxed);
    }

    pub(crate) fn snapshot_index(&self) -> u64 {
        self.snapshot_index.load(Ordering::Relaxed)
    }

    pub(crate) fn set_snapshot_index(&self, index: u64) {
        self.snapshot_index.store(index, Ordering::Relaxed);
    }

    /// Asks for the next snapshot after this many more bytes of log.
    pub(crate) fn set_snapshot_due(&self, after: u64) {
        let at = self.written_bytes.load(Ordering::Relaxed).saturating_add(after);
        self.snapshot_due_at.store(at, Ordering::Relaxed);
        if after == 0 {
            self.snapshot_due.notify_one();
        }
    }

    /// Asks for a look whether there is something to compact, after this many more bytes of bodies are dead.
    pub(crate) fn set_compaction_due(&self, after: u64) {
        let at = self.freed_bytes.load(Ordering::Relaxed).saturating_add(after);
        self.compaction_due_at.store(at, Ordering::Relaxed);
    }

    /// Bytes of records written since the start.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn is_snapshot_due(&self) -> bool {
        self.written_bytes.load(Ordering::Relaxed) >= self.snapshot_due_at.load(Ordering::Relaxed)
    }
}

impl Inner {
    fn push(&mut self, entry: Entry) {
        if self.state.last.is_none() {
            self.first = entry.log_id.index;
        }
        self.state.last = Some(entry.log_id.into());
        let number = self.ring.push(entry.clone());
        self.queue.push(Op::Append { entry, number });
    }

    /// A purge point beyond the end replaces the log: entries of which it is not known that they are committed
    /// may be other ones than those that it stands for, and are voided before.
    fn void_unproven(&mut self, purged: Position) -> Option<Op> {
        let last = self.state.last.filter(|last| last.index < purged.index)?;
        let by_index = |position: &Position| position.index;
        let kept = [self.state.committed, self.state.purged].into_iter().flatten().max_by_key(by_index);
        let index = kept.map_or(0, |kept| kept.index + 1).max(self.first);
        if index > last.index {
            return None;
        }
        self.ring.truncate(index);
        self.state.last = kept;
        Some(Op::Truncate { index, last: kept })
    }

    fn purge(&mut self, position: Position) {
        self.state.purged = Some(position);
        self.first = position.index + 1;
        if self.state.last.is_none_or(|last| last.index < position.index) {
            // The purge point jumped over the end, after a snapshot of another node.
            self.ring.clear();
            self.state.last = Some(position);
        }
    }

    fn held(&self, range: &Range<u64>) -> Range<u64> {
        let start = range.start.max(self.first);
        start..range.end.min(next_index(&self.state)).max(start)
    }
}

/// Entries that were written one after the other.
#[derive(Default)]
pub(crate) struct Placed {
    /// The index of the first one.
    pub(crate) first: u64,
    /// Where each starts.
    pub(crate) offsets: Vec<u32>,
    /// Where the last record ends.
    pub(crate) end: u64,
    /// The ring's number of the newest one.
    pub(crate) number: u64,
}

fn payload_len(entry: &Entry) -> usize {
    match &entry.payload {
        openraft::EntryPayload::Normal(payload) => payload.len(),
        openraft::EntryPayload::Blank | openraft::EntryPayload::Membership(_) => 0,
    }
}

/// Reads entries of `range`, the first of which the segment holds: as many as one read of moderate size gives.
/// Through the file, not the map: a media error is an error then and not a signal.
pub(crate) fn read_run(segment: &Segment, range: Range<u64>, out: &mut Vec<Entry>) -> io::Result<()> {
    let (offsets, end) = segment.run(range.clone(), READ_BYTES_MAX as u64);
    let start = u64::from(offsets[0]);
    let len = usize::try_from(end - start).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = vec![0; len];
    let read = segment.file.read_at(&mut bytes, start)?;
    bytes.truncate(read);
    let bytes = Bytes::from(bytes);
    for (offset, index) in offsets.into_iter().zip(range.start..) {
        let at = usize::try_from(u64::from(offset) - start).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let entry = parse_entry(segment.seed, &bytes.slice(at.min(bytes.len())..));
        match entry {
            Ok(entry) if entry.log_id.index == index => out.push(entry),
            Ok(entry) => return Err(damaged(&format!("entry {}", entry.log_id.index))),
            Err(what) => return Err(damaged(what)),
        }
    }
    Ok(())
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} in place of an entry"))
}

/// The entry whose record `bytes` start with.
fn parse_entry(seed: u32, bytes: &Bytes) -> Result<Entry, &'static str> {
    let head_bytes: &[u8; HEAD_LEN] = bytes.first_chunk().ok_or("the end of the file")?;
    let head = Head::parse(head_bytes).filter(|head| head.kind.is_entry()).ok_or("something else")?;
    let end = HEAD_LEN + head.len as usize;
    if end > bytes.len() {
        return Err("the end of the file");
    }
    let mut crc = RecordCrc::new(seed, head_bytes);
    crc.update(&bytes[HEAD_LEN..end]);
    if !crc.matches() {
        return Err("a record with a wrong checksum");
    }
    let position = Position { term: head.term, index: head.index };
    record_entry(head.kind, position, bytes.slice(HEAD_LEN..end)).ok_or("a record that cannot be read")
}
