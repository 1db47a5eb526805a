//! Who a data directory belongs to: the lock that keeps other processes out, and the identity file.
//!
//! ```text
//! identity   0 magic "BEANNODE"  8 version u32  12 zero u32  16 node id u64  24 boots u64
//!            32 cluster id u128  48 instance id u128  64 crc u32
//! ```
//!
//! The cluster id is 0 while the node belongs to none: one that looks for its peers is let in, or makes one.
//!
//! The instance id is drawn when the directory is made: a node whose disk was wiped, or replaced by an older
//! copy, is not the node its peers voted with. The boot counter is synced at each start for the same reason.

use std::io::{self, IoSlice};
use std::path::Path;

use rand::Rng;

use crate::disk::{Access, Disk, DiskLock};
use crate::error::{Corruption, StartError};
use crate::format::{VERSION, u32_at, u64_at};
use crate::options::Options;
use crate::recover::SUFFIX;

const FILE: &str = "identity";
const LOCK: &str = "lock";
const MAGIC: &[u8; 8] = b"BEANNODE";
const LEN: usize = 68;

/// What the identity file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) node: u64,
    pub(crate) boots: u64,
    pub(crate) cluster: u128,
    pub(crate) instance: u128,
    /// Drawn at each start and not written: tells two starts from the same copy apart.
    pub(crate) boot: u64,
}

/// An id as it is shown: 32 hexadecimal digits.
pub(crate) fn id_text(id: u128) -> String {
    format!("{id:032x}")
}

/// Creates the directory when absent, locks it, checks that it is the expected one and counts the boot.
pub(crate) fn open(options: &Options) -> Result<(DiskLock, Identity), StartError> {
    let dir = &options.data_dir;
    let disk = &*options.disk;
    let not_writable = |source| StartError::NotWritable { dir: dir.clone(), source };
    disk.create_dir(dir).map_err(not_writable)?;
    let lock_path = dir.join(LOCK);
    let Some(lock) = disk.lock(&lock_path).map_err(not_writable)? else {
        return Err(StartError::InUse { dir: dir.clone(), holder: holder(disk, &lock_path) });
    };
    let identity = match read(disk, dir)? {
        Some(found) => check(options, found)?,
        None => create(options)?,
    };
    write(disk, dir, &identity).map_err(not_writable)?;
    Ok((lock, identity))
}

/// The process id in the lock file.
fn holder(disk: &dyn Disk, lock: &Path) -> Option<u32> {
    let mut bytes = [0; 16];
    let read = disk.open(lock, Access::Read).ok()?.read_at(&mut bytes, 0).ok()?;
    std::str::from_utf8(&bytes[..read]).ok()?.trim().parse().ok()
}

/// The identity of a directory; `None` when it has none.
pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>, StartError> {
    let path = dir.join(FILE);
    let failed = |source| StartError::Io { file: path.clone(), source };
    let file = match disk.open(&path, Access::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = [0; LEN];
    let read = file.read_at(&mut bytes, 0).map_err(failed)?;
    if read < LEN || &bytes[..8] != MAGIC || crc32fast::hash(&bytes[..64]) != u32_at(&bytes, 64) {
        let what = "the identity file is damaged".to_owned();
        return Err(Corruption { dir: dir.to_path_buf(), file: path, offset: 0, what, member: None }.into());
    }
    let found = u32_at(&bytes, 8);
    if found != VERSION {
        return Err(StartError::Version { file: path, found, supported: VERSION });
    }
    let id = |at| u128::from_le_bytes(bytes[at..at + 16].try_into().expect("sixteen bytes"));
    let (node, boots) = (u64_at(&bytes, 16), u64_at(&bytes, 24));
    Ok(Some(Identity { node, boots, cluster: id(32), instance: id(48), boot: rand::rng().random() }))
}

/// A new id, random.
pub(crate) fn draw_id() -> u128 {
    rand::rng().random()
}

fn check(options: &Options, mut found: Identity) -> Result<Identity, StartError> {
    if found.cluster == 0 {
        found.cluster = first_cluster(options)?;
    }
    if let Some(expected) = &options.expect_cluster
        && found.cluster != 0
        && *expected != id_text(found.cluster)
    {
        return Err(StartError::OtherCluster {
            dir: options.data_dir.clone(),
            found: id_text(found.cluster),
            expected: expected.clone(),
        });
    }
    if found.node != options.node_id {
        return Err(StartError::OtherNode {
            dir: options.data_dir.clone(),
            found: found.node,
            expected: options.node_id,
        });
    }
    Ok(Identity { boots: found.boots + 1, ..found })
}

fn create(options: &Options) -> Result<Identity, StartError> {
    let dir = &options.data_dir;
    let names = options.disk.list(dir).map_err(|source| StartError::Io { file: dir.clone(), source })?;
    if let Some(segment) = names.iter().find(|name| name.ends_with(SUFFIX)) {
        let what = format!("there are segments ({segment}) but no identity file");
        return Err(
            Corruption { dir: dir.clone(), file: dir.join(FILE), offset: 0, what, member: None }.into()
        );
    }
    let cluster = first_cluster(options)?;
    Ok(Identity { node: options.node_id, boots: 1, cluster, instance: draw_id(), boot: rand::rng().random() })
}

/// The cluster of a directory that belongs to none: a lone voter makes one at once.
fn first_cluster(options: &Options) -> Result<u128, StartError> {
    let expected = match &options.expect_cluster {
        None => None,
        Some(expected) if expected.len() == 32 => {
            Some(u128::from_str_radix(expected, 16).map_err(|_| bad_cluster(expected))?)
        }
        Some(expected) => return Err(bad_cluster(expected)),
    };
    match options.peering {
        Some(_) => Ok(0),
        None => Ok(expected.unwrap_or_else(draw_id)),
    }
}

fn bad_cluster(expected: &str) -> StartError {
    StartError::Option {
        option: "expect_cluster",
        reason: format!("{expected:?} is not a cluster id of 32 hexadecimal digits"),
    }
}

/// Makes an identity durable. Blocks.
pub(crate) fn write(disk: &dyn Disk, dir: &Path, identity: &Identity) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(LEN);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&identity.node.to_le_bytes());
    bytes.extend_from_slice(&identity.boots.to_le_bytes());
    bytes.extend_from_slice(&identity.cluster.to_le_bytes());
    bytes.extend_from_slice(&identity.instance.to_le_bytes());
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    let temporary = dir.join("identity.tmp");
    let file = disk.open(&temporary, Access::Create)?;
    file.write_at(&[IoSlice::new(&bytes)], 0)?;
    file.sync_data()?;
    disk.rename(&temporary, &dir.join(FILE))?;
    disk.sync_dir(dir)
}
