//! What a start does before consensus runs: open the directory, recover the log, restore the snapshot and
//! apply what was known to be committed. All of it blocks, off the async threads.

use std::sync::Arc;

use crate::bodies::Bodies;
use crate::body_segment;
use crate::error::{Corruption, StartError};
use crate::flush::{self, Flusher};
use crate::format::Position;
use crate::identity::{self, Identity};
use crate::log::{Log, Op, Parts};
use crate::machine::{Machine, MachineShared};
use crate::opening::{Opening, OpeningStep};
use crate::options::Options;
use crate::prepare::{Preparer, make_segment};
use crate::recover::{self, Recovered};
use crate::snapshot::{self, SnapshotFile};
use crate::state::StateMachine;

/// A brand-new directory begins with a segment of this size, so that the first start need not wait for a
/// large one to be filled with zeros.
const FIRST_SEGMENT_BYTES: u64 = 4 << 20;

/// A node's storage, ready for consensus.
pub(crate) struct Storage {
    pub(crate) identity: Identity,
    pub(crate) log: Arc<Log>,
    pub(crate) preparer: Arc<Preparer>,
    pub(crate) bodies: Bodies,
    pub(crate) machine: Machine,
    pub(crate) flusher: Flusher,
}

/// Opens or creates everything in the data directory.
pub(crate) fn open(options: &Options, mut state: Box<dyn StateMachine>) -> Result<Storage, StartError> {
    let (dir, disk) = (&options.data_dir, &options.disk);
    let io_error = |source| StartError::Io { file: dir.clone(), source };
    let (lock, identity) = identity::open(options)?;
    let Recovered { table, state: log_state, active, mut blank, mut next_id } =
        recover::recover(&**disk, dir)?;
    let snapshot = snapshot::open_newest(disk, dir)?;
    check_reach(options, log_state.purged.map_or(0, |purged| purged.index), snapshot.as_ref())?;
    next_id = next_id.max(body_segment::last_id(&**disk, dir).map_err(io_error)? + 1);
    let covered = snapshot.as_ref().map_or(0, SnapshotFile::index);
    table.adopt(&body_segment::recover(&**disk, dir, covered)?);
    if active.is_none() && blank.is_empty() {
        let bytes = options.segment_bytes.min(FIRST_SEGMENT_BYTES);
        blank.push(make_segment(&**disk, dir, next_id, bytes, &|| false).map_err(io_error)?);
        next_id += 1;
    }
    let log = Arc::new(Log::new(Parts {
        disk: disk.clone(),
        dir: dir.clone(),
        table,
        state: log_state,
        ring_bytes: options.ring_bytes,
        inline: options.inline,
        body_check: options.body_check,
        lock: Some(lock),
    }));
    let preparer = Preparer::start(log.clone(), options.segment_bytes, blank, next_id);
    let preparer = Arc::new(preparer.map_err(io_error)?);
    let bodies = Bodies::new(log.clone(), preparer.clone());
    state.attach(bodies.clone());
    discard_replaced(options, &log, snapshot.as_ref())?;
    let shared = MachineShared::new(log.clone(), preparer.clone(), snapshot);
    let machine = restore(options, &log, state, Arc::new(shared))?;
    let flusher = flush::start(log.clone(), preparer.clone(), active).map_err(io_error)?;
    options.opening.begin(OpeningStep::Open);
    Ok(Storage { identity, log, preparer, bodies, machine, flusher })
}

/// A log that was purged beyond the newest snapshot cannot rebuild the state.
fn check_reach(options: &Options, purged: u64, snapshot: Option<&SnapshotFile>) -> Result<(), StartError> {
    let reached = snapshot.map_or(0, SnapshotFile::index);
    if purged <= reached {
        return Ok(());
    }
    let what = format!("the log starts after entry {purged}, but the newest snapshot is of entry {reached}");
    let dir = options.data_dir.clone();
    Err(Corruption { file: dir.clone(), dir, offset: 0, what, member: None }.into())
}

/// A snapshot of another node that was installed while the log was behind it, or differed from it: the log is
/// purged up to it. Here that is made up for when a crash came in between.
fn discard_replaced(options: &Options, log: &Log, snapshot: Option<&SnapshotFile>) -> Result<(), StartError> {
    let dir = &options.data_dir;
    let failed = |source| StartError::Io { file: dir.clone(), source };
    let Some(at) = snapshot.and_then(|file| file.meta.last_log_id) else { return Ok(()) };
    let (at, state) = (Position::from(at), log.state());
    if state.purged.is_some_and(|purged| purged.index >= at.index) {
        return Ok(());
    }
    if state.last.is_some_and(|last| last.index >= at.index) {
        let held = log.read(at.index..at.index + 1).map_err(failed)?;
        if held.first().is_some_and(|entry| Position::from(entry.log_id) == at) {
            return Ok(());
        }
        let committed = state.committed.map_or(0, |committed| committed.index);
        if committed >= at.index {
            let what =
                format!("the log is committed up to {committed} and differs from the snapshot at {at:?}");
            return Err(
                Corruption { file: dir.clone(), dir: dir.clone(), offset: 0, what, member: None }.into()
            );
        }
        let last = [state.committed, state.purged].into_iter().flatten().max_by_key(|kept| kept.index);
        let index = log.held(&(last.map_or(0, |last| last.index + 1)..at.index)).start;
        log.queue([Op::Truncate { index, last }]).map_err(failed)?;
    }
    tracing::info!(upto = at.index, "the log before a snapshot of another node is discarded");
    log.queue([Op::Purge(at)]).map_err(failed)
}

/// Brings the state to where it was known to be committed.
fn restore(
    options: &Options,
    log: &Arc<Log>,
    state: Box<dyn StateMachine>,
    shared: Arc<MachineShared>,
) -> Result<Machine, StartError> {
    let dir = &options.data_dir;
    let snapshot = shared.current();
    let file = snapshot.as_ref().map(|file| file.path.clone());
    let index = snapshot.as_ref().map_or(0, SnapshotFile::index);
    let mut machine = Machine::new(state, shared);
    machine.restore(&options.opening).map_err(|error| {
        let file = file.as_deref().unwrap_or(dir);
        snapshot::corrupt(dir, file, &format!("the snapshot cannot be restored: {error}"))
    })?;
    replay(log, &mut machine, &options.opening).map_err(|error| {
        let what = format!("the log cannot be read: {error}");
        let (file, offset, what) = log.damage.last().unwrap_or((dir.clone(), 0, what));
        StartError::from(Corruption { dir: dir.clone(), file, offset, what, member: None })
    })?;
    log.set_snapshot_due(options.snapshot_log_bytes.saturating_sub(log.bytes_after(index)));
    Ok(machine)
}

/// Applies the entries between the snapshot and what was known to be committed. What follows in the log is
/// applied once consensus says that it is committed.
fn replay(log: &Log, machine: &mut Machine, opening: &Opening) -> std::io::Result<()> {
    let state = log.state();
    let (Some(committed), Some(last)) = (state.committed, state.last) else { return Ok(()) };
    let end = committed.index.min(last.index) + 1;
    let next = machine.applied().map_or(0, |applied| applied.index + 1);
    // That nothing is missing between the snapshot and the log was checked.
    let mut next = log.held(&(next..end)).start;
    opening.begin(OpeningStep::Replay { done: 0, of: end.saturating_sub(next) });
    while next < end {
        let entries = log.read(next..end)?;
        for entry in &entries {
            machine.apply_one(entry);
        }
        next += entries.len() as u64;
        opening.advance(entries.len() as u64);
    }
    machine.applied_run();
    Ok(())
}
