//! Disks that fail, and directories that must not be used.

use std::sync::Arc;
use std::time::Duration;

use super::machine::{TestMachine, drop_body, put};
use super::rig::{PATIENCE, commit, node, options, prepared, within};
use crate::disk::{FaultDisk, RealDisk};
use crate::{Fatal, Node, Options, Outcome, Space, StartError};

/// After a failed write or sync, at whichever of the next ones, nothing is reported committed, the node says
/// so, and what had been reported before is there after a restart.
#[tokio::test]
async fn failed_io_is_fatal() {
    for (sync, after) in (0..6).flat_map(|after| [(true, after), (false, after)]) {
        let disk = FaultDisk::new();
        let (failing, _) = node(options(&disk)).await;
        let mut acknowledged = vec![commit(&failing, put(b"before")).await];
        prepared(&disk).await;
        if sync {
            disk.fail_sync_after(after);
        } else {
            disk.fail_write_after(after);
        }
        let mut refused = false;
        for _ in 0..20 {
            let outcome = match failing.propose(put(&[7; 500])).await {
                Ok(proposal) => within(proposal).await,
                Err(_) => Outcome::NotProposed { leader: None },
            };
            match outcome {
                Outcome::Committed { index } => {
                    assert!(!refused, "success after a failure");
                    acknowledged.push(index);
                }
                Outcome::Unknown | Outcome::NotProposed { .. } => refused = true,
            }
        }
        assert!(refused);
        assert!(matches!(within(failing.fatal()).await, Fatal::Storage(_)));
        let (_, seen) = node(options(&disk.power_cut(after))).await;
        for index in acknowledged {
            assert!(seen.lock().live.contains_key(&index), "sync {sync} after {after}");
        }
    }
}

/// A process that ended because a sync failed is started again, finds in the system's cache what that sync did not write, and
/// goes on behind it. A power cut takes none of what it acknowledges from then on.
#[tokio::test]
async fn what_a_failed_sync_left_unwritten_is_written_by_the_next_start() {
    for after in 0..4 {
        let disk = FaultDisk::new();
        let (failing, _) = node(options(&disk)).await;
        commit(&failing, put(b"before")).await;
        prepared(&disk).await;
        disk.fail_sync_after(after);
        while let Ok(proposal) = failing.propose(put(&[7; 500])).await
            && matches!(within(proposal).await, Outcome::Committed { .. })
        {}
        assert!(matches!(within(failing.fatal()).await, Fatal::Storage(_)));
        let disk = disk.kill();
        let (again, _) = node(options(&disk)).await;
        let acknowledged = commit(&again, put(b"after")).await;
        let (_, seen) = node(options(&disk.power_cut(after))).await;
        assert!(seen.lock().live.contains_key(&acknowledged), "after {after}");
    }
}

/// A full disk shows before the next segment cannot be made, and leaves the rest of the active one. When that is used
/// up nothing more is acknowledged, and once there is room everything goes on by itself.
#[tokio::test]
async fn full_disk() {
    let disk = FaultDisk::new();
    let (full, _) = node(options(&disk)).await;
    commit(&full, put(b"before")).await;
    prepared(&disk).await;
    disk.set_space(Some(disk.used()));
    assert_eq!(full.bodies().space(), Space::Shedding);
    let mut committed = 0;
    let held = loop {
        let mut proposal = full.propose(put(&[7; 1000])).await.unwrap();
        // Long enough for anything that does not wait for room.
        match tokio::time::timeout(Duration::from_secs(3), &mut proposal).await {
            Ok(outcome) => assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}"),
            Err(_) => break proposal,
        }
        committed += 1;
        assert!(committed < 100, "there is room for all of them");
    };
    assert!(committed >= 14, "only {committed} in what was left of the segment");
    assert_eq!(full.bodies().space(), Space::Closed);
    disk.set_space(None);
    assert!(matches!(within(held).await, Outcome::Committed { .. }));
    assert_eq!(full.bodies().space(), Space::Open);
    within(full.shutdown()).await;
    let (again, seen) = node(options(&disk)).await;
    assert_eq!(seen.lock().live.len(), committed + 2);
    within(again.shutdown()).await;
}

/// A node that waits for room can be stopped, and one whose disk fills up under an entry beyond the size of a segment
/// waits as well.
#[tokio::test]
async fn waits_for_room_and_can_be_stopped() {
    let disk = FaultDisk::new();
    let (full, _) = node(options(&disk)).await;
    prepared(&disk).await;
    disk.set_space(Some(disk.used()));
    let large = full.propose(put(&vec![7; 100_000])).await.unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while full.bodies().space() == Space::Open {
        assert!(tokio::time::Instant::now() < deadline, "it does not show");
        tokio::task::yield_now().await;
    }
    within(full.shutdown()).await;
    assert!(!matches!(within(large).await, Outcome::Committed { .. }));
    disk.set_space(None);
    let (again, _) = node(options(&disk)).await;
    commit(&again, put(&vec![7; 100_000])).await;
    within(again.shutdown()).await;
}

/// Bodies go on being dropped on a disk that is nearly full, the log that is kept for others goes, room is made, and
/// puts are taken again without a restart.
#[tokio::test(start_paused = true)]
async fn room_is_made() {
    let disk = FaultDisk::new();
    let mut options = options(&disk);
    options.inline = true;
    options.log_retention_bytes = 1 << 30;
    disk.set_space(Some(600 << 10));
    let (node, seen) = node(options).await;
    let mut names = Vec::new();
    while node.bodies().space() == Space::Open {
        names.push(commit(&node, put(&[7; 1500])).await);
        tokio::time::sleep(Duration::from_millis(210)).await;
    }
    assert!(names.len() > 200, "only {} fit", names.len());
    for name in &names[3..] {
        commit(&node, drop_body(*name)).await;
    }
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while node.bodies().space() != Space::Open {
        assert!(tokio::time::Instant::now() < deadline, "no room is made: {:?}", node.bodies().disk_usage());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    commit(&node, put(&[7; 1500])).await;
    super::machine::check_bodies(&seen.lock(), &node.bodies());
    assert!(disk.used() < 300 << 10, "{}", disk.used());
    within(node.shutdown()).await;
}

async fn start_error(options: Options) -> StartError {
    Node::start(options, TestMachine::new().0).await.map(|_| ()).expect_err("a refusal")
}

/// In use, another cluster's, another node's, damaged, or not a directory at all: one clear message each, and
/// the directory works afterwards.
#[tokio::test]
async fn wrong_directories() {
    let temporary = tempfile::TempDir::new().unwrap();
    let dir = temporary.path().join("data");
    let real = || {
        let mut options = Options::new(&dir);
        options.segment_bytes = 16 << 10;
        options.disk = Arc::new(RealDisk);
        options
    };
    let (first, _) = node(real()).await;
    commit(&first, put(b"x")).await;
    let in_use = start_error(real()).await;
    let holder = Some(std::process::id());
    assert!(matches!(&in_use, StartError::InUse { holder: found, .. } if *found == holder), "{in_use}");
    let cluster = first.status().cluster_id;
    within(first.shutdown()).await;

    let mut other = real();
    other.expect_cluster = Some("0123456789abcdef0123456789abcdef".into());
    assert!(start_error(other).await.to_string().contains(&cluster));
    let mut other = real();
    other.node_id = 2;
    assert!(matches!(start_error(other).await, StartError::OtherNode { found: 1, expected: 2, .. }));
    let mut other = real();
    other.segment_bytes = 1;
    assert!(start_error(other).await.to_string().contains("segment_bytes"));

    let file = temporary.path().join("file");
    std::fs::write(&file, b"").unwrap();
    assert!(matches!(start_error(Options::new(file.join("data"))).await, StartError::NotWritable { .. }));

    let identity = std::fs::read(dir.join("identity")).unwrap();
    std::fs::write(dir.join("identity"), &identity[..60]).unwrap();
    assert!(start_error(real()).await.to_string().contains("identity"));
    std::fs::remove_file(dir.join("identity")).unwrap();
    assert!(start_error(real()).await.to_string().contains("no identity"));
    std::fs::write(dir.join("identity"), identity).unwrap();
    let mut right = real();
    right.expect_cluster = Some(cluster);
    let (again, seen) = node(right).await;
    assert_eq!(seen.lock().live.len(), 1);
    within(again.shutdown()).await;
}
