//! Segments made ready before they are needed: a thread takes a file that was a segment before, or allocates one, fills it
//! with zeros and syncs it, so that appending to it changes no metadata and its fdatasync is as cheap as the disk allows.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rand::Rng;

use crate::disk::{Access, Disk, DiskFile};
use crate::format::{Contents, SegmentHeader};
use crate::log::Log;
use crate::recover::{segment_path, zero};
use crate::segment::Segment;
use crate::space::{Marks, Space};
use crate::spare::{KEPT_FOR, Spare, Spares};

/// After a failure (a full disk, above all) the thread tries again this often.
const RETRY: Duration = Duration::from_secs(1);
/// Zeros are written in pieces of this many bytes, and synced after each.
const STEP: u64 = 256 << 10;
/// The pause after each piece while nobody waits: a segment takes about half a second then, and the syncs of
/// the flush thread hardly notice.
const PAUSE: Duration = Duration::from_millis(2);

/// A blank segment file.
pub(crate) struct Prepared {
    pub(crate) header: SegmentHeader,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) capacity: u64,
}

/// Keeps one blank segment ready.
pub(crate) struct Preparer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    log: Arc<Log>,
    segment_bytes: u64,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    ready: Vec<Prepared>,
    next_id: u64,
    /// How many attempts were made.
    attempts: u64,
    /// Why the last attempt failed; cleared by the next success.
    failure: Option<io::Error>,
    /// Files that can become the next segments.
    spares: Spares,
    /// Somebody waits for the next segment.
    urgent: bool,
    stop: bool,
}

impl Preparer {
    /// Starts the thread. `blank` are segments found ready, in order.
    pub(crate) fn start(
        log: Arc<Log>,
        segment_bytes: u64,
        mut blank: Vec<Prepared>,
        next_id: u64,
    ) -> io::Result<Self> {
        blank.reverse();
        let (spares, failure) = (Spares::default(), None);
        let state = State { ready: blank, next_id, attempts: 0, failure, spares, urgent: false, stop: false };
        let state = Mutex::new(state);
        let shared = Arc::new(Shared { log, segment_bytes, state, changed: Condvar::new() });
        if shared.log.inline {
            return Ok(Self { shared, thread: Mutex::new(None) });
        }
        let thread = std::thread::Builder::new().name("bp-prepare".into()).spawn({
            let shared = shared.clone();
            move || shared.run()
        })?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// The next blank segment, of at least `capacity` bytes. Waits until it is ready, and while the disk is full until
    /// there is room: what was not written was not acknowledged either.
    ///
    /// # Errors
    /// When it cannot be made for another reason, in an attempt that began after this call; and without threads for
    /// this one as well.
    pub(crate) fn take(&self, capacity: u64) -> io::Result<Prepared> {
        if self.shared.log.inline {
            self.shared.make_one();
        }
        let mut prepared = self.wait()?;
        if prepared.capacity < capacity {
            // An entry larger than a segment gets a segment of its own size.
            self.allocate(&prepared.file, capacity)?;
            zero(&prepared.file, prepared.capacity, capacity)?;
            prepared.capacity = capacity;
        }
        Ok(prepared)
    }

    fn wait(&self) -> io::Result<Prepared> {
        let mut state = self.shared.state.lock();
        let earlier = state.attempts;
        state.urgent = true;
        self.shared.changed.notify_all();
        loop {
            if let Some(prepared) = state.ready.pop() {
                state.urgent = false;
                self.shared.changed.notify_all();
                return Ok(prepared);
            }
            if state.stop || self.shared.log.is_stopping() {
                return Err(io::Error::other("the log is closed"));
            }
            let tried = state.attempts > earlier || self.shared.log.inline;
            let last = |failure: &&io::Error| tried && self.is_final(failure);
            if let Some(failure) = state.failure.as_ref().filter(last) {
                return Err(io::Error::new(failure.kind(), failure.to_string()));
            }
            self.shared.changed.wait_for(&mut state, RETRY);
        }
    }

    /// Makes a file longer, for an entry beyond the size of segments.
    fn allocate(&self, file: &Arc<dyn DiskFile>, capacity: u64) -> io::Result<()> {
        loop {
            match file.allocate(capacity) {
                Err(error) if !self.is_final(&error) && !self.shared.log.is_stopping() => {
                    tracing::error!(bytes = capacity, %error, "no room for a large entry; it waits");
                    let mut state = self.shared.state.lock();
                    self.shared.changed.wait_for(&mut state, RETRY);
                }
                result => return result,
            }
        }
    }

    /// Whether waiting does not help. Without threads nobody else could make room meanwhile.
    fn is_final(&self, error: &io::Error) -> bool {
        error.kind() != io::ErrorKind::StorageFull || self.shared.log.inline
    }

    /// What is taken on, by the room that there is. Cheap: the disk is looked at now and then.
    pub(crate) fn space(&self) -> Space {
        let log = &*self.shared.log;
        let (space, changed) = log.space.look(self.failing(), || {
            let disk = log.disk.space(&log.dir).ok().flatten()?;
            let image = log.image_bytes.load(Ordering::Relaxed);
            Some((disk, Marks::new(disk.total, self.segment_bytes(), image)))
        });
        if changed {
            match space {
                Space::Open => tracing::info!("there is room on the disk again"),
                Space::Shedding => {
                    tracing::warn!("the disk is nearly full: room is made, and what adds to it is refused")
                }
                Space::Closed => tracing::error!("the disk is full: what adds to it is refused"),
            }
            log.pressed.notify_one();
            self.shared.changed.notify_all();
        }
        space
    }

    /// Removes the files of segments that were taken out of the table, or keeps them to serve again.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn dispose(&self, gone: Vec<Arc<Segment>>) -> io::Result<()> {
        let log = &*self.shared.log;
        for segment in gone {
            // Where something was damaged the next thing that is written may be.
            let fits = segment.capacity == self.shared.segment_bytes
                && !segment.header.contents.is_bodies()
                && !segment.is_damaged();
            let spare = Spare::of(&segment);
            let mut state = self.shared.state.lock();
            if fits && state.spares.has_room() && log.space.space() == Space::Open {
                log.disk.rename(&segment.path, &spare.path)?;
                state.spares.add(spare);
            } else {
                drop(state);
                log.disk.unlink(&segment.path)?;
            }
        }
        log.disk.sync_dir(&log.dir)?;
        self.shared.changed.notify_all();
        Ok(())
    }

    /// A segment id for a file that somebody else makes.
    pub(crate) fn reserve_id(&self) -> u64 {
        let mut state = self.shared.state.lock();
        state.next_id += 1;
        state.next_id - 1
    }

    /// How long segments are, in bytes.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.shared.segment_bytes
    }

    /// Whether the last attempt to make a segment failed: the log has only the rest of the active one left.
    fn failing(&self) -> bool {
        self.shared.state.lock().failure.is_some()
    }

    /// Tells the thread that space was freed.
    pub(crate) fn retry(&self) {
        self.shared.changed.notify_all();
    }
}

impl Preparer {
    /// Ends the thread and waits for that; a segment in preparation is given up.
    pub(crate) fn stop(&self) {
        self.shared.state.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            // A panic in it was reported by then, and there is nothing left to do for it.
            thread.join().ok();
        }
    }
}

impl Drop for Preparer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            if state.stop {
                return;
            }
            if !state.ready.is_empty() {
                self.give_back(&mut state);
                if state.spares.is_empty() {
                    self.changed.wait(&mut state);
                } else {
                    self.changed.wait_for(&mut state, KEPT_FOR);
                }
                continue;
            }
            drop(state);
            let made = self.make_one();
            state = self.state.lock();
            if !made && !state.stop {
                self.changed.wait_for(&mut state, RETRY);
            }
        }
    }

    /// Makes the next segment unless one is ready; answers whether that went well.
    fn make_one(&self) -> bool {
        let mut state = self.state.lock();
        if !state.ready.is_empty() {
            return true;
        }
        let id = state.next_id;
        state.next_id += 1;
        state.attempts += 1;
        let spare = state.spares.take();
        drop(state);
        let log = &*self.log;
        let made = match spare {
            Some(spare) => reuse(&*log.disk, &log.dir, id, &spare),
            None => make_segment(&*log.disk, &log.dir, id, self.segment_bytes, &|| self.pause()),
        };
        let mut state = self.state.lock();
        self.changed.notify_all();
        match made {
            Ok(prepared) => {
                state.ready.push(prepared);
                state.failure = None;
                true
            }
            Err(_) if state.stop => false,
            Err(error) => {
                if state.next_id == id + 1 {
                    state.next_id = id;
                }
                tracing::error!(segment = id, %error, "the next segment cannot be made; is the disk full?");
                if is_media_error(&error) {
                    log.fail(&format!("preparing segment {id}: {error}"), Vec::new());
                }
                state.failure = Some(error);
                false
            }
        }
    }

    /// Unlinks spare files that are not needed. One that cannot be is removed by the next start.
    fn give_back(&self, state: &mut State) {
        let pressed = self.log.space.space() != Space::Open;
        for spare in state.spares.expired(pressed) {
            if let Err(error) = self.log.disk.unlink(&spare.path) {
                tracing::warn!(file = %spare.path.display(), %error, "a spare segment file cannot be removed");
            }
        }
    }

    /// Lets others have the disk for a moment; answers whether to give up.
    fn pause(&self) -> bool {
        let mut state = self.state.lock();
        if !state.urgent && !state.stop && !self.log.inline {
            self.changed.wait_for(&mut state, PAUSE);
        }
        state.stop
    }
}

/// Whether the disk itself failed: trying again might seem to work and lose data. Everything else, a full disk
/// or too many open files, may pass.
pub(crate) fn is_media_error(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EROFS | libc::ENXIO | libc::ENODEV | libc::EUCLEAN))
}

/// Makes a blank segment file of `capacity` bytes, complete and durable, header included. `pause` is called
/// between pieces and answers whether to give up.
pub(crate) fn make_segment(
    disk: &dyn Disk,
    dir: &Path,
    id: u64,
    capacity: u64,
    pause: &dyn Fn() -> bool,
) -> io::Result<Prepared> {
    let path = segment_path(dir, id);
    let temporary = path.with_extension("seg.tmp");
    let header = SegmentHeader { id, epoch: rand::rng().random(), contents: Contents::Log };
    let result = fill(disk, &temporary, &header, capacity, pause);
    let file = match result {
        Ok(file) => file,
        Err(error) => {
            // Gives its space back; the next start would remove it as well.
            disk.unlink(&temporary).ok();
            return Err(error);
        }
    };
    disk.rename(&temporary, &path)?;
    disk.sync_dir(dir)?;
    Ok(Prepared { header, path, file, capacity })
}

/// Makes a segment of a file that was one before, complete and durable, header included.
fn reuse(disk: &dyn Disk, dir: &Path, id: u64, spare: &Spare) -> io::Result<Prepared> {
    let path = segment_path(dir, id);
    let contents = Contents::LogInReused { old_seed: spare.seed };
    let header = SegmentHeader { id, epoch: rand::rng().random(), contents };
    let written = disk.open(&spare.path, Access::Write).and_then(|file| {
        file.write_at(&[IoSlice::new(&header.encode())], 0)?;
        file.sync_data()?;
        Ok(file)
    });
    let file = match written {
        Ok(file) => file,
        Err(error) => {
            // The next attempt makes one from nothing; the next start would remove this one as well.
            disk.unlink(&spare.path).ok();
            return Err(error);
        }
    };
    disk.rename(&spare.path, &path)?;
    disk.sync_dir(dir)?;
    let capacity = file.size()?;
    Ok(Prepared { header, path, file, capacity })
}

fn fill(
    disk: &dyn Disk,
    path: &Path,
    header: &SegmentHeader,
    capacity: u64,
    pause: &dyn Fn() -> bool,
) -> io::Result<Arc<dyn DiskFile>> {
    let file = disk.open(path, Access::Create)?;
    file.allocate(capacity)?;
    let mut at = 0;
    while at < capacity {
        let to = (at + STEP).min(capacity);
        zero(&file, at, to)?;
        at = to;
        if at < capacity && pause() {
            return Err(io::Error::from(io::ErrorKind::Interrupted));
        }
    }
    file.write_at(&[IoSlice::new(&header.encode())], 0)?;
    file.sync_data()?;
    Ok(file)
}
