//! Backups: what is in them, that damage is noticed anywhere, and that a node made from one goes on.

use tempfile::TempDir;

use super::machine::{TestMachine, check_bodies, drop_body, put};
use super::rig::{commit, node, options, within};
use crate::backup::{self, BackupError, Reader};
use crate::disk::FaultDisk;
use crate::{Node, Options};

/// All bytes of a backup of the node.
async fn bytes_of(node: &Node) -> Vec<u8> {
    let mut backup = within(node.backup(1_700_000_000)).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = within(backup.next()).await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    bytes
}

fn verify(bytes: &[u8]) -> Result<backup::Contents, BackupError> {
    let (mut machine, _) = TestMachine::new();
    backup::verify(&mut Reader::open(bytes)?, &mut machine, &mut |_| {})
}

async fn restore(bytes: &[u8], dir: &TempDir, id: u64) -> Result<(Options, backup::Restored), BackupError> {
    let mut options = Options::new(dir.path().join("new"));
    options.node_id = id;
    options.segment_bytes = 16 << 10;
    let (machine, _) = TestMachine::new();
    let mut reader = Reader::open(bytes)?;
    let restored = within(backup::restore(&mut reader, &options, Box::new(machine), &mut |_| {})).await?;
    Ok((options, restored))
}

/// A node with bodies in several segments, of which some were purged and some dropped.
async fn filled(disk: &FaultDisk) -> (Node, std::sync::Arc<parking_lot::Mutex<super::machine::Seen>>) {
    let mut options = options(disk);
    options.log_retention_bytes = 16 << 10;
    let (node, seen) = node(options).await;
    for number in 0..60 {
        let index = commit(&node, put(&[number; 1000])).await;
        if number % 3 == 0 {
            commit(&node, drop_body(index)).await;
        }
        if number == 30 {
            within(node.snapshot_now()).await.unwrap();
        }
    }
    (node, seen)
}

/// A node made from a backup has the same bodies, is a new cluster, commits on its own, and survives its next starts.
#[tokio::test]
async fn a_node_made_from_a_backup_goes_on_with_the_same_state() {
    let (source, seen) = filled(&FaultDisk::new()).await;
    let bytes = bytes_of(&source).await;
    let manifest = Reader::open(&bytes[..]).unwrap().manifest().clone();
    assert_eq!(
        (manifest.node, manifest.taken_at_s, manifest.cluster),
        (1, 1_700_000_000, source.status().cluster_id)
    );
    let contents = verify(&bytes).unwrap();
    assert_eq!(contents.bodies, 40);
    let dir = TempDir::new().unwrap();
    let (options, restored) = restore(&bytes, &dir, 7).await.unwrap();
    assert_eq!((restored.node, restored.index), (7, manifest.index));
    assert_ne!(restored.cluster, source.status().cluster_id);
    for start in 0..3 {
        let (node, copied) = node(options.clone()).await;
        let status = node.status();
        assert_eq!((status.cluster_id, status.voters), (restored.cluster.clone(), vec![7]));
        assert_eq!(copied.lock().live.len(), 40 + start);
        check_bodies(&copied.lock(), &node.bodies());
        for (index, body) in &seen.lock().live {
            assert_eq!(copied.lock().live.get(index), Some(body));
        }
        assert!(commit(&node, put(b"more")).await > manifest.index);
        if start == 1 {
            within(node.snapshot_now()).await.unwrap();
        }
        within(node.shutdown()).await;
    }
}

/// What is committed while the backup is read is not in it, and purges meanwhile take nothing from it.
#[tokio::test]
async fn a_backup_shows_one_moment_while_the_node_works_on() {
    let (source, seen) = filled(&FaultDisk::new()).await;
    let before = seen.lock().live.clone();
    let mut backup = within(source.backup(1)).await.unwrap();
    for index in before.keys() {
        commit(&source, drop_body(*index)).await;
        commit(&source, put(&[9; 1000])).await;
    }
    within(source.snapshot_now()).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = within(backup.next()).await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    let dir = TempDir::new().unwrap();
    let (options, _) = restore(&bytes, &dir, 1).await.unwrap();
    let (again, copied) = node(options).await;
    assert_eq!(copied.lock().live, before);
    check_bodies(&copied.lock(), &again.bodies());
    within(again.shutdown()).await;
}

/// A byte that changed, a stream that was cut, and more bytes behind the end: all of it is noticed, and a restore leaves nothing.
#[tokio::test]
async fn damage_anywhere_is_noticed() {
    let (source, _) = filled(&FaultDisk::new()).await;
    let bytes = bytes_of(&source).await;
    verify(&bytes).unwrap();
    let seed: u64 = rand::random();
    println!("seed {seed}");
    for step in 0..400 {
        let at = (seed.wrapping_mul(step + 1) % bytes.len() as u64) as usize;
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (step % 8);
        assert!(verify(&changed).is_err(), "byte {at}");
        if step % 16 == 0 {
            assert!(verify(&bytes[..at]).is_err(), "cut at {at}");
        }
    }
    assert!(verify(&[&bytes[..], b"x"].concat()).is_err());
    let dir = TempDir::new().unwrap();
    for cut in [bytes.len() - 1, bytes.len() / 2, 100] {
        assert!(
            matches!(restore(&bytes[..cut], &dir, 1).await, Err(BackupError::Damaged(_))),
            "cut at {cut}"
        );
        assert!(!dir.path().join("new").exists());
        std::fs::remove_dir(dir.path().join("new.restoring")).unwrap();
    }
}

#[tokio::test]
async fn a_directory_with_something_in_it_is_refused() {
    let (source, _) = filled(&FaultDisk::new()).await;
    let bytes = bytes_of(&source).await;
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("new")).unwrap();
    restore(&bytes, &dir, 1).await.unwrap();
    assert!(matches!(restore(&bytes, &dir, 1).await, Err(BackupError::NotEmpty(_))));
}
