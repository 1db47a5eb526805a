//! Snapshots, purges and the life of segments.

use std::path::Path;

use openraft::storage::RaftSnapshotBuilder;

use super::machine::{TestMachine, check_bodies, drop_body, put};
use super::rig::{
    DIR, PATIENCE, Rig, commit, entry, node, node as start, options, prepared, segments, within,
};
use crate::disk::{Disk, FaultDisk};
use crate::{Options, SnapshotError, open};

fn bounded(disk: &FaultDisk) -> Options {
    let mut options = options(disk);
    options.log_retention_bytes = 16 << 10;
    options
}

/// A snapshot purges the log; after a restart the state comes from the snapshot and the entries after it.
#[tokio::test]
async fn snapshot_purge_restart() {
    let disk = FaultDisk::new();
    let (first, seen) = node(bounded(&disk)).await;
    for number in 0..100 {
        let index = commit(&first, put(&[number; 1000])).await;
        if number % 3 != 0 {
            commit(&first, drop_body(index)).await;
        }
    }
    let index = within(first.snapshot_now()).await.unwrap();
    let status = first.status();
    assert_eq!(status.snapshot_index, index);
    assert!(status.purged > 0 && status.purged < index, "{status:?}");
    for number in 0..10 {
        commit(&first, put(&[number; 50])).await;
    }
    check_bodies(&seen.lock(), &first.bodies());
    let usage = first.bodies().disk_usage();
    let expected = seen.lock().live.clone();
    let disk = disk.kill();
    let (again, seen) = node(bounded(&disk)).await;
    assert_eq!(seen.lock().live, expected);
    assert_eq!(seen.lock().restored, Some(index));
    assert_eq!(seen.lock().entries, 10);
    assert_eq!(again.status().purged, status.purged);
    assert_eq!(again.bodies().disk_usage().live_bytes, usage.live_bytes);
    check_bodies(&seen.lock(), &again.bodies());
    within(again.shutdown()).await;
}

/// A segment that is mostly live stays while a body in it is referenced by the state, and after that while the newest snapshot
/// references it; then it goes.
#[tokio::test]
async fn segments_live_as_long_as_needed() {
    let disk = FaultDisk::new();
    let (node, seen) = node(bounded(&disk)).await;
    let stuck = commit(&node, put(&[1; 10_000])).await;
    let home = segments(&disk)[0].clone();
    let churn = async || {
        for _ in 0..60 {
            let index = commit(&node, put(&[2; 1000])).await;
            commit(&node, drop_body(index)).await;
        }
    };
    churn().await;
    within(node.snapshot_now()).await.unwrap();
    assert!(node.status().purged > stuck, "the log was purged beyond it");
    assert!(segments(&disk).contains(&home), "a live body is in it");
    check_bodies(&seen.lock(), &node.bodies());
    commit(&node, drop_body(stuck)).await;
    churn().await;
    assert!(segments(&disk).contains(&home), "the newest snapshot still references it");
    within(node.snapshot_now()).await.unwrap();
    assert!(!segments(&disk).contains(&home), "nothing references it");
    within(node.shutdown()).await;
}

/// In steady flow snapshots are taken by themselves and disk use stays bounded.
#[tokio::test]
async fn steady_flow_is_bounded() {
    let disk = FaultDisk::new();
    let mut options = bounded(&disk);
    options.snapshot_log_bytes = 64 << 10;
    // How far the keeper is behind must not depend on what else the machine does.
    options.inline = true;
    let (node, _) = node(options).await;
    let mut most = 0;
    for _ in 0..800 {
        let index = commit(&node, put(&[3; 2000])).await;
        commit(&node, drop_body(index)).await;
        most = most.max(disk.used());
    }
    assert!(disk.bytes_written() > 2_000_000);
    assert!(most < 500_000, "used up to {most} bytes");
    assert!(node.status().snapshot_index > 0);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while node.bodies().disk_usage().pinned_deleted > 0 {
        assert!(tokio::time::Instant::now() < deadline, "somebody keeps deleted segments mapped");
        tokio::task::yield_now().await;
    }
    within(node.shutdown()).await;
}

/// A snapshot that finds no space fails without harm and leaves nothing behind.
#[tokio::test]
async fn snapshot_without_space() {
    let disk = FaultDisk::new();
    let (node, _) = node(bounded(&disk)).await;
    for _ in 0..5 {
        commit(&node, put(&[1; 100])).await;
    }
    prepared(&disk).await;
    let used = disk.used();
    disk.set_space(Some(used));
    assert!(matches!(within(node.snapshot_now()).await, Err(SnapshotError::NoSpace(_))));
    assert_eq!(disk.used(), used);
    commit(&node, put(b"goes on")).await;
    disk.set_space(None);
    within(node.snapshot_now()).await.unwrap();
    within(node.shutdown()).await;
}

/// An image that takes too much memory is given up: there is no snapshot then, the one before stays, nothing is left over,
/// and the node goes on and takes the next one.
#[tokio::test]
async fn an_image_that_is_given_up_is_no_snapshot() {
    let disk = FaultDisk::new();
    let (node, seen) = node(options(&disk)).await;
    commit(&node, put(&[1; 300])).await;
    let first = within(node.snapshot_now()).await.unwrap();
    let files = disk.list(Path::new(DIR)).unwrap();
    seen.lock().gives_up = true;
    commit(&node, put(&[2; 300])).await;
    assert_eq!(within(node.snapshot_now()).await, Err(SnapshotError::GivenUp));
    assert_eq!(disk.list(Path::new(DIR)).unwrap(), files);
    assert_eq!(node.status().snapshot_index, first);
    seen.lock().gives_up = false;
    commit(&node, put(&[3; 300])).await;
    assert!(within(node.snapshot_now()).await.unwrap() > first);
    check_bodies(&seen.lock(), &node.bodies());
    let (again, seen) = start(options(&disk.kill())).await;
    assert_eq!(seen.lock().live.len(), 3);
    within(again.shutdown()).await;
}

/// Consensus itself is not refused a snapshot: its failing would end the node.
#[tokio::test]
async fn what_consensus_asks_for_is_not_given_up() {
    let (machine, seen) = TestMachine::new();
    let storage = open::open(&options(&FaultDisk::new()), Box::new(machine)).unwrap();
    storage.log.completions.spawn();
    let mut rig = Rig { storage };
    rig.append(vec![entry(1, 1, 300)]).await;
    rig.storage.machine.apply_one(&entry(1, 1, 300));
    seen.lock().gives_up = true;
    let built = rig.storage.machine.builder(false).build_snapshot().await.unwrap();
    assert_eq!(built.snapshot.index(), 1);
    rig.close();
}
