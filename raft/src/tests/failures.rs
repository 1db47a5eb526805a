//! Disks that fail, and directories that must not be used.

use std::sync::Arc;

use super::machine::{TestMachine, put};
use super::rig::{commit, node, options, prepared, within};
use crate::disk::{FaultDisk, RealDisk};
use crate::{Fatal, Node, Options, Outcome, StartError};

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

/// A full disk shows as soon as the next segment cannot be made, leaves the rest of the active one, and is
/// fatal only when that is used up. Once there is room, a restart goes on.
#[tokio::test]
async fn full_disk() {
    let disk = FaultDisk::new();
    let (full, _) = node(options(&disk)).await;
    commit(&full, put(b"before")).await;
    disk.set_space(Some(disk.used()));
    let mut committed = 0;
    let mut warned = false;
    for _ in 0..100 {
        let Ok(proposal) = full.propose(put(&[7; 1000])).await else { break };
        match within(proposal).await {
            Outcome::Committed { .. } => committed += 1,
            Outcome::Unknown | Outcome::NotProposed { .. } => break,
        }
        warned |= full.bodies().disk_usage().no_space;
    }
    assert!(warned && committed >= 14, "warned {warned}, committed {committed}");
    assert!(matches!(within(full.fatal()).await, Fatal::Storage(what) if what.contains("space")));
    drop(full);
    let disk = disk.kill();
    let (again, seen) = node(options(&disk)).await;
    assert_eq!(seen.lock().live.len(), committed + 1);
    commit(&again, put(b"after")).await;
    within(again.shutdown()).await;
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
