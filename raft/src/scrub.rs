//! Reading everything that is kept, slowly and now and then, so that damage is found while others still have what is
//! damaged.
//!
//! ```text
//!   once a week, or when asked ──> every sealed segment: every entry's record, the footer
//!        step: 256 KiB from the disk ──> pause as the rate says ──> step ...
//!        does not check out ──> marked, and written anew by the keeper (see `damage`)
//! ```
//!
//! Pages that nobody has mapped are dropped from the system's cache before and after they are read: it is the disk that is
//! to be looked at, and what others need is not to be pushed out. Pages that are mapped stay, and are checked as they are in
//! memory. The segment being written is not looked at. Between two passes nothing happens at all.

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::disk::{Direct, DiskFile, DiskMap};
use crate::log::Log;
use crate::scan::{self, Window};
use crate::segment::Segment;
use crate::space::Space;

/// The first pass begins so long after the start, ...
const FIRST_AFTER: Duration = Duration::from_secs(600);
/// ... and each further one so long after the one before began.
const EVERY: Duration = Duration::from_secs(7 * 24 * 3600);
/// How much is read at once.
const STEP: u64 = 256 << 10;
/// Entries looked up at once.
const PLACES_MAX: usize = 256;
/// The rate of a pass that is asked for while scrubbing is off, in bytes per second.
const ASKED_RATE: u64 = 8 << 20;
/// While disk or memory are short, how often it is looked whether they still are.
const HELD_POLL: Duration = Duration::from_secs(5);

/// What the task and whoever asks share.
pub(crate) struct Scrub {
    /// Bytes per second; 0: only when asked.
    rate: u64,
    asked: Notify,
    /// Not now: memory is short.
    held: watch::Sender<bool>,
    running: AtomicBool,
    passes: AtomicU64,
    bytes: AtomicU64,
    done: AtomicU64,
    total: AtomicU64,
}

/// How far looking for damage is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// A pass is under way.
    pub running: bool,
    /// Passes that were completed since the start.
    pub passes: u64,
    /// Bytes of records that were checked since the start.
    pub bytes: u64,
    /// Of the pass under way, or else of the last one: bytes that are done with ...
    pub done: u64,
    /// ... and how many there are, about.
    pub total: u64,
}

impl Scrub {
    pub(crate) fn new(rate: u64) -> Self {
        Self {
            rate,
            asked: Notify::new(),
            held: watch::Sender::new(false),
            running: AtomicBool::new(false),
            passes: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
        }
    }

    /// Begins a pass now, unless one is under way.
    pub(crate) fn ask(&self) {
        if !self.running.load(Ordering::Relaxed) {
            self.asked.notify_one();
        }
    }

    /// Pauses it, or lets it go on.
    pub(crate) fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    pub(crate) fn status(&self) -> ScrubStatus {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ScrubStatus {
            running: self.running.load(Ordering::Relaxed),
            passes: load(&self.passes),
            bytes: load(&self.bytes),
            done: load(&self.done),
            total: load(&self.total),
        }
    }

    /// Scrubs until the node stops.
    pub(crate) async fn run(self: Arc<Self>, log: Arc<Log>) {
        let mut next = Instant::now() + FIRST_AFTER;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next), if self.rate > 0 => {}
                () = self.asked.notified() => {}
            }
            next = Instant::now() + EVERY;
            self.running.store(true, Ordering::Relaxed);
            let completed = self.pass(&log).await;
            self.running.store(false, Ordering::Relaxed);
            match completed {
                Ok(()) => {
                    self.passes.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) if log.is_stopping() => return,
                Err(error) => tracing::warn!(%error, "the disk was not looked through for damage"),
            }
        }
    }

    /// Looks at everything once. Fails when the node stops. It takes long: what is removed meanwhile must not keep its space.
    async fn pass(&self, log: &Arc<Log>) -> io::Result<()> {
        let segments = sealed(log);
        self.done.store(0, Ordering::Relaxed);
        self.total.store(segments.iter().map(|(_, end)| end).sum(), Ordering::Relaxed);
        let (begun, found) = (Instant::now(), log.damage.totals().found);
        for (segment, end) in segments {
            let before = self.done.load(Ordering::Relaxed);
            self.segment(log, &segment).await?;
            self.done.store(before + end, Ordering::Relaxed);
        }
        let bytes = self.total.load(Ordering::Relaxed);
        let (found, s) = (log.damage.totals().found - found, begun.elapsed().as_secs());
        tracing::info!(bytes, found, s, "everything on this disk was looked at for damage");
        Ok(())
    }

    async fn segment(&self, log: &Arc<Log>, segment: &Weak<Segment>) -> io::Result<()> {
        self.wait_while_short(log).await;
        let Some(segment) = segment.upgrade() else { return Ok(()) };
        let mut reader = Reader::new(segment)?;
        loop {
            if reader.is_alone() {
                return Ok(());
            }
            let (stopping, shared) = (log.is_stopping(), log.clone());
            if stopping {
                return Err(io::Error::other("the node is stopping"));
            }
            let step = log.blocking(move || {
                let bytes = reader.step(&shared);
                Ok((reader, bytes))
            });
            let bytes;
            (reader, bytes) = step.await?;
            let Some(bytes) = bytes else { return Ok(()) };
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            self.done.fetch_add(bytes, Ordering::Relaxed);
            let rate = if self.rate > 0 { self.rate } else { ASKED_RATE };
            tokio::time::sleep(Duration::from_micros(bytes.saturating_mul(1_000_000) / rate)).await;
            self.wait_while_short(log).await;
        }
    }

    /// Others need the disk or the memory more.
    async fn wait_while_short(&self, log: &Log) {
        let mut held = self.held.subscribe();
        while *held.borrow_and_update() || log.space.space() != Space::Open {
            if log.is_stopping() {
                return;
            }
            tokio::time::timeout(HELD_POLL, held.changed()).await.ok();
        }
    }
}

/// The segments with entries that are not being written any more, and where their records end. Nothing is kept of them.
fn sealed(log: &Log) -> Vec<(Weak<Segment>, u64)> {
    let mut segments = log.table.all();
    // The last one is being written.
    segments.pop();
    segments.extend(log.table.bodies());
    segments.retain(|segment| segment.count() > 0);
    segments.iter().map(|segment| (Arc::downgrade(segment), segment.end())).collect()
}

/// Reads one segment.
struct Reader {
    segment: Arc<Segment>,
    window: Window,
    /// The index of the next entry.
    next: u64,
}

impl Reader {
    fn new(segment: Arc<Segment>) -> io::Result<Self> {
        let window = Window::new(Arc::new(Uncached(segment.file.clone())))?;
        Ok(Self { segment, window, next: 0 })
    }

    /// Nobody else has the segment: it was removed.
    fn is_alone(&self) -> bool {
        Arc::strong_count(&self.segment) == 1
    }

    /// Checks about [`STEP`] bytes of entries, and the footer after the last one; answers how many bytes, or `None` when
    /// everything was checked before.
    fn step(&mut self, log: &Log) -> Option<u64> {
        let places = self.segment.places(&(self.next..=u64::MAX), PLACES_MAX);
        if places.is_empty() {
            if self.next < u64::MAX {
                self.next = u64::MAX;
                self.footer(log);
            }
            return None;
        }
        let mut bytes = 0;
        for (index, offset) in places {
            self.next = index + 1;
            bytes += self.entry(log, index, u64::from(offset));
            if bytes >= STEP {
                break;
            }
        }
        Some(bytes)
    }

    fn entry(&mut self, log: &Log, index: u64, offset: u64) -> u64 {
        let what = match scan::whole_record(&mut self.window, self.segment.seed, offset) {
            Ok(Some(head)) if head.index == index => return head.record_len(),
            Ok(Some(_)) => "another entry in the place of this one".to_owned(),
            Ok(None) => "the entry does not check out".to_owned(),
            Err(error) => error.to_string(),
        };
        log.damage.note_entry(&self.segment, index, &what);
        self.segment.span(index).map_or(STEP, |span| span.end - span.start)
    }

    fn footer(&self, log: &Log) {
        let what = match scan::read_footer(&self.segment.file, &self.segment.header) {
            Ok(Some(_)) => return,
            Ok(None) => "the footer does not check out".to_owned(),
            Err(error) => error.to_string(),
        };
        log.damage.note(&self.segment, None, self.segment.end(), &what);
    }
}

/// A file read past the cache, as far as the system does that.
struct Uncached(Arc<dyn DiskFile>);

impl DiskFile for Uncached {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.forget(offset, buf.len());
        let read = self.0.read_at(buf, offset);
        self.0.forget(offset, buf.len());
        read
    }

    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn write_at(&self, _parts: &[IoSlice<'_>], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn direct(&self, _offset: u64) -> Option<Direct> {
        None
    }

    fn sync_data(&self) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn allocate(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn map(&self, len: u64) -> io::Result<Arc<dyn DiskMap>> {
        self.0.map(len)
    }
}
