//! A state machine for tests: keeps one body per entry until told to drop it, and checks the order of calls.
//!
//! A payload is `[command u8][target u64][body]`: 0 puts the body, 1 drops the body `target`, 2 puts `target` bodies, each
//! with its length u32 before it. The name of a body is its entry's index; the n-th of several has [`nth`] of it.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::{Bodies, BodyAddr, Payload, SnapshotImage, StateMachine};

/// What the machine has seen; shared with the test.
#[derive(Default)]
pub(crate) struct Seen {
    /// Live bodies by name, and their bytes' checksum.
    pub(crate) live: BTreeMap<u64, (BodyAddr, u32)>,
    pub(crate) applied: u64,
    /// How many entries were applied since the start.
    pub(crate) entries: u64,
    pub(crate) restored: Option<u64>,
    /// The terms that began, in order.
    pub(crate) terms: Vec<u64>,
    /// To where it was brought forward at run time.
    pub(crate) brought: Vec<u64>,
    /// Images that are begun now are given up after their first slice.
    pub(crate) gives_up: bool,
}

pub(crate) struct TestMachine {
    pub(crate) seen: Arc<Mutex<Seen>>,
    bodies: Option<Bodies>,
}

/// Where the body starts in a payload.
pub(crate) const BODY: u32 = 9;

pub(crate) fn put(body: &[u8]) -> Payload {
    let mut bytes = vec![0; BODY as usize];
    bytes.extend_from_slice(body);
    bytes.into()
}

/// Several bodies in one entry.
pub(crate) fn put_many(bodies: &[Vec<u8>]) -> Payload {
    let mut bytes = vec![2];
    bytes.extend_from_slice(&(bodies.len() as u64).to_le_bytes());
    for body in bodies {
        bytes.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(body);
    }
    bytes.into()
}

/// The name of the n-th body, from 0, of an entry that has several.
pub(crate) fn nth(index: u64, n: usize) -> u64 {
    index << 20 | (n as u64 + 1)
}

pub(crate) fn drop_body(index: u64) -> Payload {
    let mut bytes = vec![1];
    bytes.extend_from_slice(&index.to_le_bytes());
    bytes.into()
}

impl TestMachine {
    pub(crate) fn new() -> (Self, Arc<Mutex<Seen>>) {
        let seen = Arc::new(Mutex::new(Seen::default()));
        (Self { seen: seen.clone(), bodies: None }, seen)
    }
}

impl StateMachine for TestMachine {
    fn attach(&mut self, bodies: Bodies) {
        self.bodies = Some(bodies);
    }

    fn term_began(&mut self, term: u64) {
        self.seen.lock().terms.push(term);
    }

    fn apply(&mut self, index: u64, payload: &Payload) {
        let mut seen = self.seen.lock();
        assert!(index > seen.applied || seen.entries == 0, "entry {index} after {}", seen.applied);
        seen.applied = index;
        seen.entries += 1;
        let bytes = payload.to_bytes();
        if bytes.len() < BODY as usize {
            return;
        }
        let bodies = self.bodies.as_ref().expect("attached first");
        let target = u64::from_le_bytes(bytes[1..9].try_into().unwrap());
        let mut keep = |name, offset: usize, len: usize| {
            let range = offset..offset + len;
            let (offset, len) = (u32::try_from(offset).unwrap(), u32::try_from(len).unwrap());
            let addr = BodyAddr { index, offset, len };
            bodies.retain(addr);
            seen.live.insert(name, (addr, crc32fast::hash(&bytes[range])));
        };
        match bytes[0] {
            0 => keep(index, BODY as usize, bytes.len() - BODY as usize),
            2 => {
                let mut at = BODY as usize;
                for n in 0..usize::try_from(target).unwrap() {
                    let len = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
                    keep(nth(index, n), at + 4, len);
                    at += 4 + len;
                }
            }
            _ => {
                if let Some((addr, _)) = seen.live.remove(&target) {
                    bodies.release(addr);
                }
            }
        }
    }

    fn applied(&mut self, index: u64) {
        assert!(index >= self.seen.lock().applied);
    }

    fn snapshot(&mut self) -> Box<dyn SnapshotImage> {
        let mut bytes = Vec::new();
        let mut live = Vec::new();
        for (name, (addr, crc)) in &self.seen.lock().live {
            live.push(*addr);
            bytes.extend_from_slice(&name.to_le_bytes());
            bytes.extend_from_slice(&addr.index.to_le_bytes());
            bytes.extend_from_slice(&addr.offset.to_le_bytes());
            bytes.extend_from_slice(&addr.len.to_le_bytes());
            bytes.extend_from_slice(&crc.to_le_bytes());
        }
        Box::new(Image { bytes, live, gives_up: self.seen.lock().gives_up, begun: false })
    }

    fn restore(&mut self, index: u64, image: &mut dyn Read) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        image.read_to_end(&mut bytes)?;
        let mut seen = self.seen.lock();
        seen.live.clear();
        for record in bytes.chunks_exact(28) {
            let number = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().unwrap());
            let long = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().unwrap());
            let addr = BodyAddr { index: long(8), offset: number(16), len: number(20) };
            seen.live.insert(long(0), (addr, number(24)));
        }
        seen.applied = index;
        seen.restored = Some(index);
        Ok(())
    }

    fn brought_forward(&mut self, index: u64) {
        let mut seen = self.seen.lock();
        assert_eq!(seen.restored, Some(index));
        seen.brought.push(index);
        check_bodies(&seen, self.bodies.as_ref().expect("attached first"));
    }

    fn for_each_live(&self, f: &mut dyn FnMut(BodyAddr)) {
        for (addr, _) in self.seen.lock().live.values() {
            f(*addr);
        }
    }
}

struct Image {
    bytes: Vec<u8>,
    live: Vec<BodyAddr>,
    gives_up: bool,
    begun: bool,
}

impl SnapshotImage for Image {
    fn given_up(&self) -> bool {
        self.gives_up && self.begun
    }

    fn insist(&mut self) {
        self.gives_up = false;
    }

    fn next_slice(&mut self, out: &mut Vec<u8>, live: &mut dyn FnMut(BodyAddr)) -> bool {
        self.live.drain(..).for_each(live);
        let rest = self.bytes.split_off(self.bytes.len().min(1000));
        out.append(&mut self.bytes);
        self.bytes = rest;
        // A second slice of an image that was given up would be a mistake of whoever asks for it.
        assert!(!self.given_up(), "it was given up");
        self.begun = true;
        !self.bytes.is_empty() && !self.gives_up
    }
}

/// Every live body can be read and has the bytes that were put.
pub(crate) fn check_bodies(seen: &Seen, bodies: &Bodies) {
    for (addr, crc) in seen.live.values() {
        let bytes = bodies.read_blocking(*addr).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(crc32fast::hash(&bytes), *crc, "{addr:?}");
        let mut now = bytes::BytesMut::new();
        if bodies.read_now(*addr, &mut now).unwrap() {
            assert_eq!(now, bytes);
        }
    }
}
