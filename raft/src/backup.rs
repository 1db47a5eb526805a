//! Backups: a running node's state and the bodies in it, as one stream of bytes, and back.
//!
//! A backup is a snapshot on its way to a node that does not exist yet. It is made like one that is sent to another node
//! (see `transfer`): the node takes a snapshot, pins its files, and sends what they say; rewriting, purging and removing
//! segments goes on meanwhile and changes nothing in it. Nobody else reads the directory.
//!
//! ```text
//! header   0 magic "BEANBACK"  8 version u32  12 node u32  16 cluster id u128  32 taken at, s since 1970 u64
//!          40 log position: term u64, index u64  56 bytes expected u64  64 crc u32
//! frame    length u32, then a frame of a transfer: Begin, Entries..., Image..., End
//! ```
//!
//! Every frame has a CRC and a number, and the last one the totals: a stream that is cut, changed or out of order is noticed.
//! A restore receives it as a node receives a snapshot, but with a membership of its own, into a directory that gets its name
//! when it is complete.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::disk::Disk;
use crate::error::{SnapshotError, StartError};
use crate::format::{self, Position, u32_at, u64_at};
use crate::identity::id_text;
use crate::machine::MachineShared;
use crate::offline::Offline;
use crate::options::Options;
use crate::state::StateMachine;
use crate::transfer::{self, Export, FRAME_MAX, Import, Walk};
use crate::types::{Member, Membership, SnapshotMeta, StoredMembership};
use crate::{BodyAddr, snapshot};

const MAGIC: &[u8; 8] = b"BEANBACK";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 68;
/// A snapshot may be replaced by the next one before it is pinned; then that one is.
const ATTEMPTS: usize = 5;

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The number of the node that made it.
    pub node: u32,
    /// The cluster's id: 32 hexadecimal digits.
    pub cluster: String,
    /// When it was begun, in seconds since 1970 by that node's clock.
    pub taken_at_s: u64,
    /// The term of the last entry in it.
    pub term: u64,
    /// The index of the last entry in it.
    pub index: u64,
    /// How many bytes its frames have, about and at most.
    pub bytes: u64,
}

/// Why a backup cannot be made, read or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The node took no snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The bytes are no backup, or not a whole one.
    #[error("not a whole backup: {0}")]
    Damaged(String),
    /// It was made by a later version.
    #[error("format version {0} of the backup, and only {VERSION} is known")]
    Version(u32),
    /// The directory to restore into has something in it.
    #[error("{0} is not empty")]
    NotEmpty(PathBuf),
    /// The directory cannot be made.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The system said no.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for BackupError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::InvalidData {
            Self::Damaged(error.to_string())
        } else if error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Damaged("it ends too early".to_owned())
        } else {
            Self::Io(error)
        }
    }
}

impl Manifest {
    fn encode(&self, cluster: u128) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.node.to_le_bytes());
        out.extend_from_slice(&cluster.to_le_bytes());
        out.extend_from_slice(&self.taken_at_s.to_le_bytes());
        format::encode_position(Some(Position { term: self.term, index: self.index }), &mut out);
        out.extend_from_slice(&self.bytes.to_le_bytes());
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        assert_eq!(out.len(), HEADER_LEN, "the layout above");
        out
    }

    fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, BackupError> {
        let damaged = |what: &str| BackupError::Damaged(what.to_owned());
        if &bytes[..8] != MAGIC {
            return Err(damaged("it does not begin like one"));
        }
        if u32_at(bytes, 8) != VERSION {
            return Err(BackupError::Version(u32_at(bytes, 8)));
        }
        if crc32fast::hash(&bytes[..HEADER_LEN - 4]) != u32_at(bytes, HEADER_LEN - 4) {
            return Err(damaged("its header is damaged"));
        }
        let cluster = u128::from_le_bytes(bytes[16..32].try_into().expect("sixteen bytes"));
        let at = format::decode_position(bytes, 40).ok_or_else(|| damaged("its header names no entry"))?;
        Ok(Self {
            node: u32_at(bytes, 12),
            cluster: id_text(cluster),
            taken_at_s: u64_at(bytes, 32),
            term: at.term,
            index: at.index,
            bytes: u64_at(bytes, 56),
        })
    }
}

/// A backup being made. Dropping it unpins the files.
pub struct Backup {
    export: Export,
    manifest: Manifest,
    header: Option<Bytes>,
}

impl Backup {
    /// Pins the node's newest snapshot.
    pub(crate) async fn begin(
        shared: &Arc<MachineShared>,
        (node, cluster): (u64, u128),
        taken_at_s: u64,
    ) -> Result<Self, BackupError> {
        let mut failed = io::Error::other("there is no snapshot");
        for _ in 0..ATTEMPTS {
            let Some(file) = shared.current() else { break };
            match Export::begin(shared, &file, 0).await {
                Ok(export) => {
                    let at = file.meta.last_log_id.map_or(Position { term: 0, index: 0 }, Position::from);
                    let manifest = Manifest {
                        node: u32::try_from(node).unwrap_or(u32::MAX),
                        cluster: id_text(cluster),
                        taken_at_s,
                        term: at.term,
                        index: at.index,
                        bytes: export.progress().total(),
                    };
                    let header = Some(manifest.encode(cluster).into());
                    return Ok(Self { export, manifest, header });
                }
                Err(error) => failed = error,
            }
        }
        Err(BackupError::Io(failed))
    }

    /// What it says of itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The next bytes, at most about 256 KiB; `None` after the last ones. A stream that ends without that is not whole.
    ///
    /// # Errors
    /// When a segment or the image cannot be read or is damaged.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if let Some(header) = self.header.take() {
            return Ok(Some(header));
        }
        let Some(frame) = self.export.next_frame().await? else { return Ok(None) };
        let mut out = BytesMut::with_capacity(4 + frame.len());
        out.extend_from_slice(&u32::try_from(frame.len()).expect("frames are bounded").to_le_bytes());
        out.extend_from_slice(&frame);
        Ok(Some(out.freeze()))
    }
}

/// A backup being read, frame by frame.
pub struct Reader<R> {
    input: R,
    manifest: Manifest,
    done: u64,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// When it is not that of a backup.
    pub fn open(mut input: R) -> Result<Self, BackupError> {
        let mut bytes = [0; HEADER_LEN];
        input.read_exact(&mut bytes)?;
        let manifest = Manifest::decode(&bytes)?;
        Ok(Self { input, manifest, done: 0, ended: false })
    }

    /// What the backup says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Bytes of frames read so far.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// The next frame, unchecked; `None` at the end of the input, between two frames.
    fn frame(&mut self) -> io::Result<Option<Bytes>> {
        let mut len = [0; 4];
        let read = self.input.read(&mut len[..1])?;
        if read == 0 {
            return Ok(None);
        }
        self.input.read_exact(&mut len[1..])?;
        let len = u32::from_le_bytes(len) as usize;
        if len > FRAME_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {len} bytes")));
        }
        let mut frame = vec![0; len];
        self.input.read_exact(&mut frame)?;
        self.done += len as u64;
        Ok(Some(frame.into()))
    }
}

/// What a whole backup has in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Entries of the log.
    pub entries: u64,
    /// Bytes of their payloads.
    pub entry_bytes: u64,
    /// Bytes of the image of the state.
    pub image_bytes: u64,
    /// Bodies that the state references; all of them are there.
    pub bodies: u64,
}

/// Checks a backup as a restore does, and writes nothing: every CRC, the order, the totals, that `state` understands the
/// image, and that every body which that references is there. `progress` is told the bytes read.
///
/// # Errors
/// [`BackupError::Damaged`] says what is wrong.
pub fn verify<R: Read>(
    reader: &mut Reader<R>,
    state: &mut dyn StateMachine,
    progress: &mut dyn FnMut(u64),
) -> Result<Contents, BackupError> {
    let mut walk = Walk::default();
    let mut image = ImageOf { reader, walk: &mut walk, progress, piece: Bytes::new() };
    // The entries come first; it stops at the first piece of the image.
    image.fill()?;
    state.restore(image.reader.manifest.index, &mut image)?;
    io::copy(&mut image, &mut io::sink())?;
    let at = walk.snapshot.ok_or_else(|| BackupError::Damaged("it has no beginning".to_owned()))?;
    if !walk.ended || (at.term, at.index) != (reader.manifest.term, reader.manifest.index) {
        return Err(BackupError::Damaged("it ends too early".to_owned()));
    }
    let mut contents = Contents {
        entries: walk.totals.entries,
        entry_bytes: walk.totals.entry_bytes,
        image_bytes: walk.totals.image_bytes,
        bodies: 0,
    };
    let mut missing = None;
    state.for_each_live(&mut |addr: BodyAddr| {
        contents.bodies += 1;
        let end = u64::from(addr.offset) + u64::from(addr.len);
        if walk.len_of(addr.index).is_none_or(|len| end > u64::from(len)) {
            missing.get_or_insert(addr);
        }
    });
    match missing {
        None => Ok(contents),
        Some(addr) => Err(BackupError::Damaged(format!(
            "the body at entry {} offset {} is missing",
            addr.index, addr.offset
        ))),
    }
}

/// The image within the frames.
struct ImageOf<'a, R> {
    reader: &'a mut Reader<R>,
    walk: &'a mut Walk,
    progress: &'a mut dyn FnMut(u64),
    piece: Bytes,
}

impl<R: Read> ImageOf<'_, R> {
    /// Reads up to the next piece of the image; leaves it empty at the end.
    fn fill(&mut self) -> io::Result<()> {
        while self.piece.is_empty() {
            let Some(frame) = self.reader.frame()? else { return Ok(()) };
            if let Some(data) = self.walk.frame(&frame)? {
                self.piece = frame.slice_ref(data);
            }
            (self.progress)(self.reader.done);
        }
        Ok(())
    }
}

impl<R: Read> Read for ImageOf<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.fill()?;
        let len = out.len().min(self.piece.len());
        out[..len].copy_from_slice(&self.piece.split_to(len));
        Ok(len)
    }
}

/// What a restored directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The new cluster's id.
    pub cluster: String,
    /// The node's number, the only member.
    pub node: u64,
    /// The index of the last entry that is in it.
    pub index: u64,
}

/// Makes a new data directory from a backup: a new cluster with `options.node_id` as its only voter. `state` is loaded on the
/// way, which checks that it is understood and that no body is missing. Until it is complete the directory has another name,
/// ending in `.restoring`; a failure removes that, a crash leaves it.
///
/// # Errors
/// [`BackupError::NotEmpty`] when there is something in the directory already, or under that other name.
pub async fn restore<R: Read>(
    reader: &mut Reader<R>,
    options: &Options,
    state: Box<dyn StateMachine>,
    progress: &mut dyn FnMut(u64),
) -> Result<Restored, BackupError> {
    let disk = options.disk.clone();
    let dir = options.data_dir.clone();
    refuse_unless_empty(&*disk, &dir)?;
    let staging = staging_of(&dir)?;
    refuse_unless_empty(&*disk, &staging)?;
    let mut offline =
        Offline::open(Options { data_dir: staging.clone(), peering: None, ..options.clone() }, state).await?;
    let received = receive(reader, &mut offline, progress).await;
    let identity = offline.identity;
    offline.close().await;
    if let Err(error) = received {
        remove_remains(&*disk, &staging)?;
        return Err(error);
    }
    disk.rename(&staging, &dir)?;
    if let Some(parent) = dir.parent() {
        disk.sync_dir(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
    }
    let (cluster, node) = (id_text(identity.cluster), identity.node);
    Ok(Restored { cluster, node, index: reader.manifest.index })
}

async fn receive<R: Read>(
    reader: &mut Reader<R>,
    offline: &mut Offline,
    progress: &mut dyn FnMut(u64),
) -> Result<(), BackupError> {
    let node = offline.identity.node;
    let at = Position { term: reader.manifest.term, index: reader.manifest.index };
    let mut import = Import::begin(&offline.shared()).await?;
    let mut first = true;
    while let Some(frame) = reader.frame()? {
        let frame = if std::mem::take(&mut first) { with_one_member(&frame, node)? } else { frame };
        import.frame(frame).await?;
        progress(reader.done);
    }
    let file = import.finish().await?;
    if file.meta.last_log_id.map(Position::from) != Some(at) {
        return Err(BackupError::Damaged("its header and its snapshot differ".to_owned()));
    }
    offline.install(file, at).await?;
    reader.ended = true;
    Ok(())
}

/// The first frame, with `node` as the only member. Where the node is reached it says itself when it has peers.
fn with_one_member(frame: &Bytes, node: u64) -> io::Result<Bytes> {
    transfer::with_snapshot_header(frame, |header| {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "its beginning is damaged");
        let meta = snapshot::decode_header(header).map_err(|_| damaged())?;
        let membership = Membership::new(
            vec![std::collections::BTreeSet::from([node])],
            BTreeMap::from([(node, Member::default())]),
        );
        let membership = membership.map_err(|error| io::Error::other(error.to_string()))?;
        let last_membership = StoredMembership::new(meta.last_log_id, membership);
        Ok(snapshot::encode_header(&SnapshotMeta { last_membership, ..meta }))
    })
}

fn refuse_unless_empty(disk: &dyn Disk, dir: &Path) -> Result<(), BackupError> {
    match disk.list(dir) {
        Ok(names) if names.is_empty() => Ok(()),
        Ok(_) => Err(BackupError::NotEmpty(dir.to_path_buf())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(BackupError::Io(error)),
    }
}

fn staging_of(dir: &Path) -> Result<PathBuf, BackupError> {
    let name = dir.file_name().ok_or_else(|| BackupError::NotEmpty(dir.to_path_buf()))?;
    let mut staging = name.to_os_string();
    staging.push(".restoring");
    Ok(dir.with_file_name(staging))
}

/// Removes the files of a restore that did not come to its end.
fn remove_remains(disk: &dyn Disk, staging: &Path) -> Result<(), BackupError> {
    for name in disk.list(staging)? {
        disk.unlink(&staging.join(name))?;
    }
    Ok(())
}
