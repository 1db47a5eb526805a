//! The flush thread: the only writer of segments.
//!
//! It takes all that is queued, encodes it, writes it with one `pwrite`, makes it durable with one
//! `fdatasync` and reports, in order; meanwhile the next group gathers in the queue. There is no lingering.
//! Never more than [`UNSYNCED_MAX`] bytes are written without a sync.
//!
//! When nothing came for a moment after a flush, or at the end, one more record is written (and not synced): it says up to
//! where the segment is synced, so that what lies before it cannot pass for the trace of a crash (see `scan.rs`).
//!
//! After any failed write or sync nothing is retried: every waiter fails and the node stops.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;

use crate::append::{Appender, UNSYNCED_MAX};
use crate::completion::Done;
use crate::format::{
    self, ALIGN, Footer, HEAD_LEN, HEADER_LEN, Head, Kind, LogState, Position, StateRecord, TRAILER_LEN,
    record_len,
};
use crate::log::{Log, Op, Placed, Work};
use crate::prepare::Preparer;
use crate::recover::Active;
use crate::scan::next_index;
use crate::segment::Segment;
use crate::turns::take_short_turns;
use crate::types::{Entry, entry_record};

/// A flush that nothing follows for so long gets its witness.
const IDLE: Duration = Duration::from_millis(10);
/// Segments of a size of their own are a multiple of this long, so that their last block can be written directly.
const CAPACITY_STEP: u64 = 4096;

/// The running flush thread, or the task that stands in for it.
pub(crate) enum Flusher {
    Thread(JoinHandle<()>),
    Task(tokio::task::JoinHandle<()>),
}

impl Flusher {
    /// Waits for its end. Blocks, so the task is waited for with [`Flusher::Task`]'s own handle.
    pub(crate) fn join(self) {
        match self {
            // A panic in it was reported by then.
            Self::Thread(thread) => drop(thread.join()),
            Self::Task(_) => {}
        }
    }
}

/// Starts the thread.
pub(crate) fn start(log: Arc<Log>, preparer: Arc<Preparer>, active: Option<Active>) -> io::Result<Flusher> {
    let mut writer = Writer::new(log.clone(), preparer, active, log.state())?;
    if log.inline {
        let task = tokio::spawn(async move {
            while writer.work(log.take_work_inline(writer.patience()).await).is_some() {}
        });
        return Ok(Flusher::Task(task));
    }
    let thread = std::thread::Builder::new().name("bp-flush".into()).spawn(move || run(&log, writer))?;
    Ok(Flusher::Thread(thread))
}

/// Reports a thread that ends by a panic: nothing would ever become durable any more.
struct Guard<'a>(&'a Log);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("the flush thread panicked", Vec::new());
        }
    }
}

fn run(log: &Log, mut writer: Writer) {
    take_short_turns();
    let _guard = Guard(log);
    let mut spent = Vec::new();
    while let Some(ops) = writer.work(log.take_work(spent, writer.patience())) {
        spent = ops;
    }
}

/// Where and what is being written.
struct Writer {
    log: Arc<Log>,
    preparer: Arc<Preparer>,
    /// The segment being written; `None` until the first record needs one.
    target: Option<Target>,
    /// Up to where the segment is synced.
    durable: u64,
    /// Up to where a record in the segment says that it is synced.
    witnessed: u64,
    /// The state after what is staged.
    state: LogState,
    truncated_from: Option<u64>,
    /// The index that the segment's next entry must have.
    next: u64,
    staged: Staged,
}

/// A segment being written.
struct Target {
    segment: Arc<Segment>,
    /// Its end, with the records that are staged.
    appender: Appender,
}

impl Target {
    /// Goes on at `at`.
    fn new(segment: Arc<Segment>, at: u64) -> io::Result<Self> {
        let appender = Appender::new(segment.file.clone(), at)?;
        Ok(Self { segment, appender })
    }
}

/// What comes with the records that are encoded and not yet written.
#[derive(Default)]
struct Staged {
    placed: Placed,
    done: Vec<Done>,
    /// The purge point in it.
    purged: Option<u64>,
}

impl Writer {
    fn new(
        log: Arc<Log>,
        preparer: Arc<Preparer>,
        active: Option<Active>,
        state: LogState,
    ) -> io::Result<Self> {
        let start = HEADER_LEN as u64;
        let (durable, truncated_from) =
            active.as_ref().map_or((start, None), |active| (active.end, active.truncated_from));
        // Not the log's next one when the purge point has jumped beyond the end.
        let end = active.as_ref().and_then(|active| active.segment.range()).map(|(_, last)| last + 1);
        let next = end.unwrap_or_else(|| next_index(&state));
        let target = active.map(|active| Target::new(active.segment, active.end)).transpose()?;
        let staged = Staged::default();
        let witnessed = durable;
        let mut writer =
            Self { log, preparer, target, durable, witnessed, state, truncated_from, next, staged };
        if writer.target.is_some() && durable == start {
            // A crash took even its state record.
            let before = writer.log.table.all().into_iter().rev().nth(1);
            writer.stage_state(before.as_deref());
        }
        Ok(writer)
    }

    /// Does what was taken from the queue; answers the spent vector, or `None` when this was the end.
    fn work(&mut self, mut work: Work) -> Option<Vec<Op>> {
        let idle = work.ops.is_empty();
        let mut ops = work.ops.drain(..);
        let result = if idle { self.witness(work.committed) } else { self.run(&mut ops, work.committed) };
        let result = result.and_then(|()| if work.stop { self.witness(work.committed) } else { Ok(()) });
        let left: Vec<Op> = ops.collect();
        if let Err(error) = result {
            self.fail(left, &error);
            return None;
        }
        (!work.stop).then_some(work.ops)
    }

    /// Writes and syncs all of `ops`, reporting on the way.
    fn run(&mut self, ops: &mut impl Iterator<Item = Op>, committed: Option<Position>) -> io::Result<()> {
        for op in ops {
            self.stage_op(op)?;
            if self.waiting() >= UNSYNCED_MAX {
                self.flush()?;
            }
        }
        if committed != self.state.committed {
            if let Some(position) = committed {
                self.stage(Kind::Committed, position, &[])?;
            }
            self.state.committed = committed;
        }
        self.flush()
    }

    /// How long to wait for more work; for ever unless a witness is due.
    fn patience(&self) -> Option<Duration> {
        (self.witnessed < self.durable && self.state.committed.is_some()).then_some(IDLE)
    }

    /// Writes a record that says up to where the segment is synced, when the last one does not, and there is room for it.
    /// What it says besides is known; it need not be durable.
    fn witness(&mut self, committed: Option<Position>) -> io::Result<()> {
        let Some(position) = committed.filter(|_| self.patience().is_some()) else { return Ok(()) };
        self.state.committed = committed;
        let closing = closing_len(self.entries());
        let fits =
            |target: &&mut Target| target.appender.at() + record_len(0) + closing <= target.segment.capacity;
        if self.target.as_mut().filter(fits).is_some() {
            self.push(Kind::Committed, position, &[], 0);
            self.write()?;
        }
        self.witnessed = self.durable;
        Ok(())
    }

    fn stage_op(&mut self, op: Op) -> io::Result<()> {
        match op {
            Op::Append { entry, number } => self.stage_entry(&entry, number)?,
            Op::Vote(ballot) => {
                let payload = Bytes::copy_from_slice(&format::encode_ballot(&ballot));
                self.stage(Kind::Vote, NOWHERE, &[payload])?;
                self.state.ballot = Some(ballot);
            }
            Op::Truncate { index, last } => self.stage_truncate(index, last)?,
            Op::Purge(position) => {
                self.stage(Kind::Purge, position, &[])?;
                self.state.purged = Some(position);
                if self.state.last.is_none_or(|last| last.index < position.index) {
                    self.state.last = Some(position);
                }
                self.staged.purged = Some(position.index);
            }
            Op::Report(done) => self.staged.done.push(done),
        }
        Ok(())
    }

    fn stage_entry(&mut self, entry: &Entry, number: u64) -> io::Result<()> {
        let position = Position::from(entry.log_id);
        let (kind, payload) = entry_record(entry);
        if position.index != self.next && self.entries() > 0 {
            // The log goes on after a purge beyond its end: a segment's entries are consecutive.
            self.rotate(payload.len())?;
        }
        let offset = self.stage(kind, position, payload.parts())?;
        self.state.last = Some(position);
        self.next = position.index + 1;
        let placed = &mut self.staged.placed;
        if placed.offsets.is_empty() {
            placed.first = position.index;
        }
        placed.offsets.push(u32::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?);
        placed.number = number;
        Ok(())
    }

    /// Entries before it in the same group were staged in vain: they are written first, which keeps the order
    /// of the tables simple, and truncations are rare.
    fn stage_truncate(&mut self, index: u64, last: Option<Position>) -> io::Result<()> {
        self.flush()?;
        let mut payload = Vec::new();
        format::encode_position(last, &mut payload);
        self.stage(Kind::Truncate, Position { term: 0, index }, &[payload.into()])?;
        self.log.table.truncate(index);
        self.truncated_from = Some(self.truncated_from.unwrap_or(index).min(index));
        self.state.last = last;
        self.next = index;
        Ok(())
    }

    /// How many entries the segment holds, staged ones included.
    fn entries(&self) -> usize {
        self.target.as_ref().map_or(0, |target| target.segment.count()) + self.staged.placed.offsets.len()
    }

    /// How many bytes are staged.
    fn waiting(&self) -> usize {
        self.target.as_ref().map_or(0, |target| target.appender.waiting())
    }

    /// Encodes a record; answers where it will start. Moves on to the next segment when it does not fit.
    fn stage(&mut self, kind: Kind, position: Position, parts: &[Bytes]) -> io::Result<u64> {
        let len: usize = parts.iter().map(Bytes::len).sum();
        let closing = closing_len(self.entries() + 1);
        let fits = self.target.as_ref().is_some_and(|target| {
            target.appender.at() + record_len(len) + closing <= target.segment.capacity
        });
        if !fits {
            self.rotate(len)?;
        }
        Ok(self.push(kind, position, parts, len))
    }

    fn push(&mut self, kind: Kind, position: Position, parts: &[Bytes], len: usize) -> u64 {
        let Target { segment, appender } = self.target.as_mut().expect("records are staged for a segment");
        let head = Head {
            kind,
            len: u32::try_from(len).expect("payloads are bounded"),
            durable: u32::try_from(self.durable).expect("segments are below 4 GiB"),
            index: position.index,
            term: position.term,
        };
        self.witnessed = self.durable;
        let offset = appender.at();
        appender.push(&head.encode(segment.seed, parts.iter().map(|part| &part[..])));
        parts.iter().for_each(|part| appender.push(part));
        let total = usize::try_from(record_len(len)).expect("a record fits memory");
        appender.push(&[0; ALIGN][..total - HEAD_LEN - len]);
        offset
    }

    fn stage_state(&mut self, previous: Option<&Segment>) {
        let (previous_id, previous_end) =
            previous.map_or((0, 0), |segment| (segment.header.id, segment.end()));
        let payload = StateRecord { state: self.state, previous_id, previous_end }.encode();
        let len = payload.len();
        self.push(Kind::State, NOWHERE, &[payload.into()], len);
    }

    /// Writes what is staged, makes it durable and reports it.
    fn flush(&mut self) -> io::Result<()> {
        if self.waiting() > 0 {
            self.write()?;
            if let Some(Target { segment, appender }) = &self.target {
                segment.file.sync_data()?;
                self.durable = appender.at();
            }
        }
        if let Some(index) = self.staged.purged.take() {
            self.log.purge_is_durable(index);
        }
        self.log.completions.succeed(&mut self.staged.done);
        Ok(())
    }

    /// Writes what is staged and says where it lies.
    fn write(&mut self) -> io::Result<()> {
        let Some(Target { segment, appender }) = &mut self.target else { return Ok(()) };
        let len = appender.waiting() as u64;
        appender.write()?;
        let placed = &mut self.staged.placed;
        placed.end = appender.at();
        self.log.publish(segment, placed, len);
        placed.offsets.clear();
        Ok(())
    }

    /// Seals the segment, if there is one, and begins the next, with room for a payload of `len` bytes.
    fn rotate(&mut self, len: usize) -> io::Result<()> {
        self.flush()?;
        let previous = self.target.take().map(|target| self.seal(target)).transpose()?;
        // After a crash between a seal and the next segment there is none to seal, but still one to follow.
        let previous = previous.or_else(|| self.log.table.all().pop());
        let start = HEADER_LEN as u64;
        let capacity = start + record_len(format::STATE_LEN + 16) + record_len(len) + closing_len(1);
        let prepared = self.preparer.take(capacity.next_multiple_of(CAPACITY_STEP))?;
        let segment = Arc::new(Segment::new(
            prepared.header,
            prepared.path,
            prepared.file,
            prepared.capacity,
            next_index(&self.state),
        )?);
        self.log.table.push(segment.clone());
        self.target = Some(Target::new(segment, start)?);
        (self.durable, self.witnessed) = (start, start);
        self.truncated_from = None;
        self.next = next_index(&self.state);
        self.stage_state(previous.as_deref());
        Ok(())
    }

    /// Writes footer and trailer and syncs them, before anything is written to the next segment: so only the
    /// last segment can ever be torn.
    fn seal(&mut self, target: Target) -> io::Result<Arc<Segment>> {
        let Target { segment, mut appender } = target;
        let (first, offsets) = segment.entries();
        let (state, truncated_from, indexes) = (self.state, self.truncated_from, Vec::new());
        let footer = Footer { state, truncated_from, first, offsets, indexes };
        let payload = footer.encode();
        let head = Head {
            kind: Kind::Footer,
            len: u32::try_from(payload.len()).expect("a table of a segment is below 4 GiB"),
            durable: u32::try_from(self.durable).expect("segments are below 4 GiB"),
            index: first,
            term: 0,
        };
        let at = appender.at();
        appender.push(&head.encode(segment.seed, std::iter::once(&payload[..])));
        appender.push(&payload);
        appender.write()?;
        segment.file.sync_data()?;
        let trailer = format::encode_trailer(&segment.header, at);
        segment.file.write_at(&[IoSlice::new(&trailer)], segment.capacity - TRAILER_LEN as u64)?;
        segment.file.sync_data()?;
        segment.shrink();
        tracing::debug!(segment = segment.header.id, first, entries = footer.offsets.len(), "segment sealed");
        Ok(segment)
    }

    /// Fails everybody who waits.
    fn fail(&mut self, left: Vec<Op>, error: &io::Error) {
        let file =
            self.target.as_ref().map_or_else(|| self.log.dir.clone(), |target| target.segment.path.clone());
        let what = format!("writing {}: {error}", file.display());
        let mut waiting = std::mem::take(&mut self.staged.done);
        waiting.extend(left.into_iter().filter_map(Op::into_done));
        self.log.fail(&what, waiting);
    }
}

/// The position of records that have none.
const NOWHERE: Position = Position { term: 0, index: 0 };

/// What sealing a segment of `entries` entries takes.
fn closing_len(entries: usize) -> u64 {
    record_len(Footer::len(entries)) + TRAILER_LEN as u64
}
