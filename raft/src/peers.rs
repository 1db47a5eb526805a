//! What this node remembers of the others, so that it recognises one that has lost its memory.
//!
//! ```text
//! peers   0 magic "BEANMEET"  8 version u32  12 count u32
//!         then per node: id u64  instance u128  boots u64  boot u64  acknowledged: term u64, index u64
//!         removed u8
//!         then crc u32 of all before
//! ```
//!
//! Written under a temporary name, synced, renamed. Who a peer is becomes durable before it is let in. How far
//! it has acknowledged becomes so lazily: the instance and the boots catch most, and the leader knows the rest
//! in memory.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;

use crate::disk::{Access, Disk};
use crate::error::{Corruption, StartError};
use crate::format::{Position, VERSION, u32_at};
use crate::hello::{Facts, Reason};
use crate::message::{Take, put_position};

/// What the file is called.
pub(crate) const FILE: &str = "peers";
const MAGIC: &[u8; 8] = b"BEANMEET";
const HEAD: usize = 16;
const RECORD: usize = 57;

/// What is known of one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its data directory; 0 while it has not been met.
    pub(crate) instance: u128,
    pub(crate) boots: u64,
    /// Its last start that this node knows of.
    pub(crate) boot: u64,
    /// The last committed entry that it has acknowledged to this node.
    pub(crate) acknowledged: Option<Position>,
    /// It was a member and is one no more; its number is not used again.
    pub(crate) removed: bool,
}

/// The file and what it says.
pub(crate) struct PeerBook {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    known: Mutex<BTreeMap<u64, Known>>,
    /// One writes at a time.
    writing: Mutex<()>,
}

impl PeerBook {
    /// Reads the file; without one nobody is known.
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, StartError> {
        let known = read(&*disk, dir)?;
        Ok(Self { disk, dir: dir.to_path_buf(), known: Mutex::new(known), writing: Mutex::new(()) })
    }

    /// Makes what is known now durable. Blocks.
    pub(crate) fn save(&self) -> io::Result<()> {
        let _one = self.writing.lock();
        let bytes = encode(&self.known.lock());
        let temporary = self.dir.join("peers.tmp");
        let file = self.disk.open(&temporary, Access::Create)?;
        file.write_at(&[IoSlice::new(&bytes)], 0)?;
        file.sync_data()?;
        self.disk.rename(&temporary, &self.dir.join(FILE))?;
        self.disk.sync_dir(&self.dir)
    }

    /// What is known of a node.
    pub(crate) fn get(&self, node: u64) -> Known {
        self.known.lock().get(&node).copied().unwrap_or_default()
    }

    /// What is known of all nodes.
    pub(crate) fn all(&self) -> BTreeMap<u64, Known> {
        self.known.lock().clone()
    }

    /// Whether these facts are those of the node that was known: the reason and its description if not.
    pub(crate) fn check(&self, facts: &Facts) -> Result<(), (Reason, String)> {
        let known = self.get(facts.node);
        let node = facts.node;
        if known.removed {
            return Err((Reason::Removed, format!("node {node} was removed from the cluster")));
        }
        if known.instance != 0 && known.instance != facts.instance {
            return Err((
                Reason::OtherInstance,
                format!("node {node} was known with another data directory"),
            ));
        }
        let again = known.boots == facts.boots && known.boot != facts.boot;
        if known.instance != 0 && (known.boots > facts.boots || again) {
            let (now, before) = (facts.boots, known.boots);
            let what = format!("the data directory of node {node} is an old copy");
            return Err((Reason::OldCopy, format!("{what}: start {now} came after start {before}")));
        }
        // A process that was met has shown its log by then, and goes on acknowledging on one connection while what it
        // said of itself on another one is under way: that is late, not lost.
        let met = known.instance != 0 && known.boots == facts.boots;
        if !met && key(facts.last) < key(known.acknowledged) {
            let (now, before) = (index(facts.last), index(known.acknowledged));
            let what =
                format!("the log of node {node} ends at entry {now}, and it had acknowledged entry {before}");
            return Err((Reason::LostEntries, what));
        }
        Ok(())
    }

    /// Notes who a node is; answers whether that is news, which must be saved.
    pub(crate) fn meet(&self, facts: &Facts) -> bool {
        let mut all = self.known.lock();
        let known = all.entry(facts.node).or_default();
        if known.instance == facts.instance && known.boots >= facts.boots {
            return false;
        }
        (known.instance, known.boots, known.boot) = (facts.instance, facts.boots, facts.boot);
        true
    }

    /// Notes which committed entry a node has acknowledged; answers whether that is news.
    pub(crate) fn acknowledge(&self, node: u64, position: Position) -> bool {
        let mut all = self.known.lock();
        let known = all.entry(node).or_default();
        let news = key(Some(position)) > key(known.acknowledged);
        if news {
            known.acknowledged = Some(position);
        }
        news
    }

    /// Notes that a node was removed; answers whether that is news.
    pub(crate) fn remove(&self, node: u64) -> bool {
        let mut all = self.known.lock();
        let known = all.entry(node).or_default();
        !std::mem::replace(&mut known.removed, true)
    }
}

fn key(position: Option<Position>) -> Option<(u64, u64)> {
    position.map(|position| (position.term, position.index))
}

fn index(position: Option<Position>) -> u64 {
    position.map_or(0, |position| position.index)
}

fn encode(known: &BTreeMap<u64, Known>) -> Vec<u8> {
    let mut out = BytesMut::with_capacity(HEAD + RECORD * known.len() + 12);
    out.put_slice(MAGIC);
    out.put_u32_le(VERSION);
    out.put_u32_le(u32::try_from(known.len()).expect("a cluster has few nodes"));
    for (node, known) in known {
        out.put_u64_le(*node);
        out.put_u128_le(known.instance);
        out.put_u64_le(known.boots);
        out.put_u64_le(known.boot);
        put_position(&mut out, known.acknowledged);
        out.put_u8(u8::from(known.removed));
    }
    let crc = crc32fast::hash(&out);
    out.put_u32_le(crc);
    out.to_vec()
}

fn decode(bytes: &[u8]) -> Option<BTreeMap<u64, Known>> {
    let (body, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    if crc32fast::hash(body) != u32_at(crc, 0) {
        return None;
    }
    let mut take = Take(Bytes::copy_from_slice(body.get(HEAD..)?));
    let mut known = BTreeMap::new();
    for _ in 0..u32_at(body, 12) {
        let node = take.u64()?;
        let (instance, boots, boot) = (take.u128()?, take.u64()?, take.u64()?);
        let acknowledged = take.position()?;
        known.insert(node, Known { instance, boots, boot, acknowledged, removed: take.flag()? });
    }
    take.end()?;
    Some(known)
}

fn read(disk: &dyn Disk, dir: &Path) -> Result<BTreeMap<u64, Known>, StartError> {
    let path = dir.join(FILE);
    let failed = |source| StartError::Io { file: path.clone(), source };
    let file = match disk.open(&path, Access::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(failed(error)),
    };
    let len = usize::try_from(file.size().map_err(failed)?.min(1 << 20)).expect("at most 1 MiB");
    let mut bytes = vec![0; len];
    let read = file.read_at(&mut bytes, 0).map_err(failed)?;
    bytes.truncate(read);
    if bytes.len() >= HEAD && &bytes[..8] == MAGIC && u32_at(&bytes, 8) != VERSION {
        return Err(StartError::Version { file: path, found: u32_at(&bytes, 8), supported: VERSION });
    }
    let known = if bytes.starts_with(MAGIC) { decode(&bytes) } else { None };
    known.ok_or_else(|| {
        let what = "the file of known peers is damaged".to_owned();
        Corruption { dir: dir.to_path_buf(), file: path, offset: 0, what, member: None }.into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FaultDisk;

    fn facts(instance: u128, boots: u64, last: Option<Position>) -> Facts {
        let address = "host:1".to_owned();
        Facts { cluster: 1, node: 2, instance, boots, boot: boots, last, plan: 0, member: true, address }
    }

    /// What was saved is there after a crash, and any damage is noticed.
    #[test]
    fn round_trip() {
        let disk = FaultDisk::new();
        let dir = Path::new("d");
        disk.create_dir(dir).unwrap();
        let book = PeerBook::open(Arc::new(disk.clone()), dir).unwrap();
        let meet = |boots| book.meet(&facts(77, boots, None));
        assert!(meet(3) && !meet(3) && meet(4));
        assert!(book.acknowledge(2, Position { term: 1, index: 9 }));
        assert!(!book.acknowledge(2, Position { term: 1, index: 8 }));
        assert!(book.remove(3) && !book.remove(3));
        book.save().unwrap();
        let disk = disk.kill();
        let again = PeerBook::open(Arc::new(disk.clone()), dir).unwrap();
        assert_eq!((again.get(2), again.get(3)), (book.get(2), book.get(3)));
        assert_eq!(again.get(9), Known::default());
        let whole = disk.read(&dir.join(FILE)).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            disk.overwrite(&dir.join(FILE), bytes);
            assert!(PeerBook::open(Arc::new(disk.clone()), dir).is_err(), "byte {at}");
        }
    }

    /// What a node said of its log can be older than what it has acknowledged since; only a new start can have lost
    /// entries.
    #[test]
    fn a_hello_that_arrives_after_later_acknowledgements_is_believed() {
        let disk = FaultDisk::new();
        disk.create_dir(Path::new("d")).unwrap();
        let book = PeerBook::open(Arc::new(disk), Path::new("d")).unwrap();
        let at = |index| Some(Position { term: 4, index });
        let reason = |facts| book.check(&facts).map_err(|(reason, _)| reason);
        assert_eq!(reason(facts(5, 3, at(90))), Ok(()));
        book.meet(&facts(5, 3, at(90)));
        book.acknowledge(2, Position { term: 4, index: 100 });
        assert_eq!(reason(facts(5, 3, at(95))), Ok(()));
        assert_eq!(reason(facts(5, 4, at(95))), Err(Reason::LostEntries));
    }

    /// Another instance, fewer boots, a shorter log and a removed number are recognised; an unknown node is not
    /// suspected.
    #[test]
    fn amnesia() {
        let disk = FaultDisk::new();
        disk.create_dir(Path::new("d")).unwrap();
        let book = PeerBook::open(Arc::new(disk), Path::new("d")).unwrap();
        let at = |term, index| Some(Position { term, index });
        assert!(book.check(&facts(5, 1, None)).is_ok());
        book.meet(&facts(5, 3, None));
        book.acknowledge(2, Position { term: 4, index: 100 });
        let reason = |facts| book.check(&facts).map_err(|(reason, _)| reason);
        assert_eq!(reason(facts(5, 3, at(4, 100))), Ok(()));
        assert_eq!(reason(facts(5, 4, at(5, 90))), Ok(()));
        assert_eq!(reason(facts(6, 9, at(9, 900))), Err(Reason::OtherInstance));
        assert_eq!(reason(facts(5, 2, at(9, 900))), Err(Reason::OldCopy));
        let copy = Facts { boot: 77, ..facts(5, 3, at(9, 900)) };
        assert_eq!(reason(copy), Err(Reason::OldCopy));
        assert_eq!(reason(facts(5, 4, at(4, 99))), Err(Reason::LostEntries));
        assert_eq!(reason(facts(5, 4, None)), Err(Reason::LostEntries));
        book.remove(2);
        assert_eq!(reason(facts(5, 4, at(9, 900))), Err(Reason::Removed));
    }
}
