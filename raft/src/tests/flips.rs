//! Single bits of a data directory change: never is a wrong body handed out, and never is anything silently gone.
//!
//! A body carries its own CRC, as the server's do: what is read and does not match is reported, not handed out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::machine::{TestMachine, drop_body, nth, put_many};
use super::rig::{DIR, commit, options, within};
use crate::disk::{Disk, FaultDisk};
use crate::{BodyAddr, Node, Options};

fn small(disk: &FaultDisk) -> Options {
    let mut options = options(disk);
    options.log_retention_bytes = 32 << 10;
    options.inline = true;
    options
}

/// Bytes with their CRC before them.
pub(crate) fn sealed(bytes: &[u8]) -> Vec<u8> {
    [&crc32fast::hash(bytes).to_le_bytes(), bytes].concat()
}

/// The bytes, when they match their CRC.
pub(crate) fn opened(body: &[u8]) -> Option<&[u8]> {
    let (crc, bytes) = body.split_at_checked(4)?;
    (crc32fast::hash(bytes).to_le_bytes() == crc).then_some(bytes)
}

/// A directory as a stop leaves it, with segments of the log, whole and compacted bodies and a snapshot; and what every
/// live body is.
async fn directory() -> (BTreeMap<PathBuf, Vec<u8>>, BTreeMap<u64, Vec<u8>>) {
    let disk = FaultDisk::new();
    let (node, seen) = super::rig::node(small(&disk)).await;
    let mut bytes = BTreeMap::new();
    for entry in 0..60_u64 {
        // All of one length, so that one could be taken for another.
        let bodies: Vec<Vec<u8>> =
            (0..16).map(|n| format!("{entry:05} {n:05}").repeat(20).into_bytes()).collect();
        let stored: Vec<Vec<u8>> = bodies.iter().map(|body| sealed(body)).collect();
        let index = commit(&node, put_many(&stored)).await;
        for (n, body) in bodies.into_iter().enumerate() {
            if n % 5 == 1 {
                bytes.insert(nth(index, n), body);
            } else {
                commit(&node, drop_body(nth(index, n))).await;
            }
        }
        if entry == 50 {
            within(node.snapshot_now()).await.unwrap();
        }
    }
    let usage = node.bodies().disk_usage();
    assert!(usage.body_segments > 0 && usage.segments > usage.body_segments + 2, "{usage:?}");
    assert_eq!(seen.lock().live.len(), bytes.len());
    within(node.shutdown()).await;
    let names = disk.list(Path::new(DIR)).unwrap();
    let paths = names.iter().map(|name| Path::new(DIR).join(name));
    (paths.map(|path| (path.clone(), disk.read(&path).unwrap())).collect(), bytes)
}

/// A thousand places. Of what is found depends only how it is reported: the start is refused, or the body is.
#[tokio::test]
async fn one_bit_anywhere() {
    let seed: u64 =
        std::env::var("BEANPOLE_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("BEANPOLE_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let (files, expected) = directory().await;
    let paths: Vec<&PathBuf> = files.keys().collect();
    let (mut refused, mut reported, mut without) = (0, 0, 0);
    for round in 0..1000 {
        let path = paths[rng.random_range(0..paths.len())];
        if files[path].is_empty() {
            continue;
        }
        let bit = rng.random_range(0..files[path].len() * 8);
        let what = format!("seed {seed} round {round}: bit {bit} of {}", path.display());
        let disk = FaultDisk::new();
        disk.create_dir(Path::new(DIR)).unwrap();
        for (name, bytes) in &files {
            let mut bytes = bytes.clone();
            if name == path {
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            disk.overwrite(name, bytes);
        }
        let (machine, seen) = TestMachine::new();
        let Ok(node) = Node::start(small(&disk), machine).await else {
            refused += 1;
            continue;
        };
        within(node.ready()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let live: BTreeMap<u64, BodyAddr> =
            seen.lock().live.iter().map(|(name, (addr, _))| (*name, *addr)).collect();
        assert!(live.keys().eq(expected.keys()), "{what}: {} of {} bodies", live.len(), expected.len());
        let mut damaged = 0;
        for (name, addr) in &live {
            match node.bodies().read_blocking(*addr) {
                Ok(body) => match opened(&body) {
                    Some(bytes) => assert!(bytes == expected[name], "{what}: another body"),
                    None => damaged += 1,
                },
                Err(_) => damaged += 1,
            }
        }
        reported += i32::from(damaged > 0);
        without += i32::from(damaged == 0);
        within(node.shutdown()).await;
    }
    println!("{refused} starts refused, {reported} with bodies reported, {without} without effect");
    assert!(refused > 100 && reported > 20, "{refused} refused, {reported} reported");
}
