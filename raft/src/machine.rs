//! The state machine as openraft sees it: a shell around the one that the node was started with.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;

use crate::census::Census;
use crate::disk::Disk;
use crate::error::Fatal;
use crate::log::Log;
use crate::opening::{Opening, OpeningStep};
use crate::payload::BodyAddr;
use crate::prepare::Preparer;
use crate::snapshot::{self, SnapshotFile};
use crate::state::{SnapshotImage, StateMachine};
use crate::types::{Entry, LogId, RaftSnapshot, SnapshotMeta, StoredMembership, TypeConfig};

/// Applies entries.
pub(crate) struct Machine {
    /// Only ever reached through `&mut`; the lock makes the shell shareable, as openraft asks, and is never
    /// taken. `None` while a snapshot is being installed, when nothing else is called.
    state: Mutex<Option<Box<dyn StateMachine>>>,
    applied: Option<LogId>,
    membership: StoredMembership,
    shared: Arc<MachineShared>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // When openraft's task that applies ends by itself, nothing is applied any more. A reason that was
        // recorded before stays.
        self.shared.log.set_fatal(Fatal::Consensus("its state machine task ended".into()));
    }
}

/// What the machine, its snapshot builders and the node share.
pub(crate) struct MachineShared {
    pub(crate) log: Arc<Log>,
    pub(crate) preparer: Arc<Preparer>,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    current: Mutex<Option<SnapshotFile>>,
}

impl MachineShared {
    pub(crate) fn new(log: Arc<Log>, preparer: Arc<Preparer>, current: Option<SnapshotFile>) -> Self {
        let (disk, dir) = (log.disk.clone(), log.dir.clone());
        log.set_snapshot_index(current.as_ref().map_or(0, SnapshotFile::index));
        Self { log, preparer, disk, dir, current: Mutex::new(current) }
    }

    /// The newest durable snapshot.
    pub(crate) fn current(&self) -> Option<SnapshotFile> {
        self.current.lock().clone()
    }

    /// Replaces the state by that of `file` and counts the bodies that it references. May block.
    fn load(&self, state: &mut dyn StateMachine, file: &SnapshotFile, opening: &Opening) -> io::Result<()> {
        opening.begin(OpeningStep::State { done: 0, of: file.size()? });
        state.restore(file.index(), &mut opening.counting(file.image()?))?;
        opening.begin(OpeningStep::Bodies);
        self.log.reset_live();
        let mut missing = None;
        let mut census = Census::new(&self.log.table);
        state.for_each_live(&mut |addr| {
            if !census.count(addr) {
                missing.get_or_insert(addr);
            }
        });
        drop(census);
        let Some(addr) = missing else { return Ok(()) };
        let what = format!(
            "it references the body at entry {} offset {}, which is not here",
            addr.index, addr.offset
        );
        Err(io::Error::new(io::ErrorKind::InvalidData, what))
    }

    /// Makes a snapshot of another node the current one and its state the state. May block for long.
    ///
    /// The state goes first, because it alone knows which bodies must be there; it is volatile, and a node that
    /// fails here stops. Then the files get their names, the snapshot last: from then on the new state is in
    /// force.
    fn install(&self, state: &mut dyn StateMachine, snapshot: &SnapshotFile) -> io::Result<()> {
        let _replacing = self.log.replacing.lock();
        let Some(staged) = &snapshot.staged else {
            let known = self.current().filter(|file| file.path == snapshot.path);
            let file = match known {
                Some(file) => file,
                None => snapshot::copy(&self.disk, &self.dir, snapshot)?,
            };
            self.replace(file.clone())?;
            return self.load(state, &file, &Opening::default());
        };
        self.log.table.adopt(&staged.segments());
        self.load(state, snapshot, &Opening::default())?;
        staged.put_into_place()?;
        self.replace(snapshot.put_into_place(&self.dir)?)
    }

    /// Makes `file`, which is durable, the current snapshot, and removes the one before.
    fn replace(&self, file: SnapshotFile) -> io::Result<()> {
        self.log.set_snapshot_index(file.index());
        let before = self.current.lock().replace(file.clone());
        match before {
            Some(before) if before.path != file.path => self.disk.unlink(&before.path),
            Some(_) | None => Ok(()),
        }
    }
}

impl Machine {
    /// A machine that has applied nothing.
    pub(crate) fn new(state: Box<dyn StateMachine>, shared: Arc<MachineShared>) -> Self {
        let state = Mutex::new(Some(state));
        Self { state, applied: None, membership: StoredMembership::default(), shared }
    }

    /// What it shares with everybody who sends or receives snapshots.
    pub(crate) fn shared(&self) -> Arc<MachineShared> {
        self.shared.clone()
    }

    fn state(&mut self) -> &mut dyn StateMachine {
        let state = self.state.get_mut().as_deref_mut();
        state.expect("nothing else is called while a snapshot is installed")
    }

    /// The position of the last applied entry.
    pub(crate) fn applied(&self) -> Option<LogId> {
        self.applied
    }

    /// Replaces the state by that of the current snapshot, if there is one, and counts the bodies it
    /// references. May block.
    pub(crate) fn restore(&mut self, opening: &Opening) -> io::Result<()> {
        let Some(file) = self.shared.current() else { return Ok(()) };
        let shared = self.shared.clone();
        shared.load(self.state(), &file, opening)?;
        self.note_term(file.meta.last_log_id);
        self.applied = file.meta.last_log_id;
        self.membership = file.meta.last_membership;
        Ok(())
    }

    /// Tells the state of the term that ends at `next`, unless what was applied before is of that term too.
    fn note_term(&mut self, next: Option<LogId>) {
        let term = |id: LogId| id.committed_leader_id().term;
        if let Some(next) = next.map(term)
            && self.applied.map(term) != Some(next)
        {
            self.state().term_began(next);
        }
    }

    /// Applies one entry.
    pub(crate) fn apply_one(&mut self, entry: &Entry) {
        let index = entry.log_id.index;
        self.note_term(Some(entry.log_id));
        match &entry.payload {
            EntryPayload::Normal(payload) => {
                self.shared.log.set_applying(index);
                self.state().apply(index, payload);
            }
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
            }
            EntryPayload::Blank => {}
        }
        self.applied = Some(entry.log_id);
    }

    /// Says that no further committed entry is at hand.
    pub(crate) fn applied_run(&mut self) {
        if let Some(applied) = self.applied {
            self.state().applied(applied.index);
        }
    }

    /// A builder of a snapshot of what is applied now. It writes nothing when the current one is as new, unless it is
    /// to be written `anew`.
    pub(crate) fn builder(&mut self, anew: bool) -> Builder {
        let meta = SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        let current = self.shared.current.lock().as_ref().is_some_and(|file| file.meta == meta);
        let image = (anew || !current).then(|| Mutex::new(self.state().snapshot()));
        Builder { meta, image, shared: self.shared.clone() }
    }
}

/// Writes one snapshot.
pub(crate) struct Builder {
    meta: SnapshotMeta,
    /// `None` when the current snapshot is as new.
    image: Option<Mutex<Box<dyn SnapshotImage>>>,
    shared: Arc<MachineShared>,
}

impl Builder {
    /// Writes the snapshot and makes it the current one, unless a newer one was installed since the image was
    /// begun: the state that it shows is gone then. Every body that the image references is passed to `live`. Answers
    /// whether it was written, and what is current now. Blocks. The error is [`ImageGivenUp`] when the image was.
    pub(crate) fn write(&mut self, live: &mut dyn FnMut(BodyAddr)) -> io::Result<(bool, SnapshotFile)> {
        let log = self.shared.log.clone();
        let _replacing = log.replacing.lock();
        let index = self.meta.last_log_id.map_or(0, |id| id.index());
        let overtaken = self.shared.current().is_some_and(|file| file.index() > index);
        let image = self.image.take().filter(|_| !overtaken);
        let written = image.is_some();
        if let Some(image) = image {
            let mut image = image.into_inner();
            let next: snapshot::NextSlice<'_> = &mut |out| {
                let more = image.next_slice(out, live);
                if image.given_up() { Err(io::Error::other(ImageGivenUp)) } else { Ok(more) }
            };
            let file = snapshot::write(&self.shared.disk, &self.shared.dir, &self.meta, next)?;
            self.shared.replace(file)?;
        }
        let current = self.shared.current().ok_or_else(|| io::Error::other("there is no snapshot"))?;
        Ok((written, current))
    }
}

/// Why nothing was written: see [`SnapshotImage::given_up`].
#[derive(Debug, thiserror::Error)]
#[error("the image of the state was given up")]
pub(crate) struct ImageGivenUp;

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<RaftSnapshot> {
        let mut image = self.image.take();
        if let Some(image) = &mut image {
            // An error would end the node.
            image.get_mut().insist();
        }
        let mut builder = Self { meta: self.meta.clone(), image, shared: self.shared.clone() };
        let (_, file) = self.shared.log.blocking(move || builder.write(&mut |_| {})).await?;
        Ok(RaftSnapshot { meta: file.meta.clone(), snapshot: file })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            self.apply_one(&entry);
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        self.applied_run();
        Ok(())
    }

    /// Snapshots are written by the node itself, which can bear a failure; openraft is told afterwards and
    /// given the one that is there, unless it insists.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        let current = self.shared.current.lock().as_ref().map(|file| file.meta.clone());
        match current.filter(|_| !force) {
            Some(meta) => Some(Builder { meta, image: None, shared: self.shared.clone() }),
            None => Some(self.builder(false)),
        }
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.builder(false)
    }

    /// An error ends the consensus core and with it the node, whatever the reason.
    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> io::Result<()> {
        let shared = self.shared.clone();
        let lost = || io::Error::other("an installation was given up before");
        let mut state = self.state.get_mut().take().ok_or_else(lost)?;
        let log = shared.log.clone();
        let installed = log.blocking(move || {
            let installed = shared.install(&mut *state, &snapshot);
            Ok((state, installed))
        });
        let (state, installed) = installed.await?;
        *self.state.get_mut() = Some(state);
        if let Err(error) = installed {
            log.fail(&format!("installing a snapshot: {error}"), Vec::new());
            return Err(error);
        }
        self.note_term(meta.last_log_id);
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        let index = meta.last_log_id.map_or(0, |id| id.index());
        tracing::info!(index, "brought forward by a snapshot");
        self.state().brought_forward(index);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<RaftSnapshot>> {
        Ok(self.shared.current().map(|file| RaftSnapshot { meta: file.meta.clone(), snapshot: file }))
    }
}
