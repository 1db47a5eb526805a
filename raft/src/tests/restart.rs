//! Stopping and starting: what was committed is there again.

use std::collections::BTreeMap;

use openraft::storage::RaftLogStorage;

use super::machine::{check_bodies, drop_body, put};
use super::rig::{Rig, commit, entry, node, options, prepared, recover, within};
use crate::completion::Done;
use crate::disk::FaultDisk;
use crate::format::{Ballot, Position};
use crate::log::Op;
use crate::store::Store;
use crate::types::IOFlushed;
use crate::{Fatal, NotProposed, Outcome, Payload, Role};

/// Bodies of all sizes, over many segments and larger than one, survive shutdown and kill; the term rises, the
/// cluster stays the same.
#[tokio::test]
async fn committed_entries_survive() {
    let disk = FaultDisk::new();
    let (first, seen) = node(options(&disk)).await;
    let status = first.status();
    assert_eq!(
        (status.role, status.leader, status.voters, status.boots),
        (Role::Leader, Some(1), vec![1], 1)
    );
    for len in [0, 1, 100, 5_000, 40_000, 300, 3_000_000, 17] {
        commit(&first, put(&vec![len as u8; len])).await;
    }
    commit(&first, drop_body(3)).await;
    check_bodies(&seen.lock(), &first.bodies());
    let expected = seen.lock().live.clone();
    let applied = seen.lock().applied;
    within(first.shutdown()).await;
    assert_eq!(within(first.fatal()).await, Fatal::Shutdown);
    let refused = first.propose(put(b"late")).await.map(|_| ());
    assert_eq!(refused, Err(NotProposed::Stopped(Fatal::Shutdown)));
    let mut disk = disk;
    for boot in 2..5 {
        let (again, seen) = node(options(&disk)).await;
        assert_eq!((again.status().cluster_id, again.status().boots), (status.cluster_id.clone(), boot));
        let seen = seen.lock();
        assert_eq!((&seen.live, seen.applied), (&expected, applied));
        assert!(again.status().term >= boot && again.status().committed > applied);
        check_bodies(&seen, &again.bodies());
        disk = disk.kill();
    }
}

/// Many proposals in flight are committed in the order of the calls, and a barrier covers all of them.
#[tokio::test]
async fn order_is_kept() {
    let (node, seen) = node(options(&FaultDisk::new())).await;
    let mut proposals = Vec::new();
    for number in 0..500u32 {
        proposals.push(node.propose(put(&number.to_le_bytes())).await.unwrap());
    }
    let mut last = 0;
    for proposal in proposals {
        let Outcome::Committed { index } = within(proposal).await else { panic!("not committed") };
        assert!(index > last);
        last = index;
    }
    assert!(within(node.read_barrier()).await.unwrap() >= last);
    assert_eq!(seen.lock().applied, last);
    let numbers: Vec<u32> = seen.lock().live.values().map(|(_, crc)| *crc).collect();
    let expected: Vec<u32> = (0..500u32).map(|number| crc32fast::hash(&number.to_le_bytes())).collect();
    assert_eq!(numbers, expected);
    within(node.shutdown()).await;
}

/// The budget of bytes in flight holds proposals back without losing or reordering them, also one that is
/// larger than the budget, and a tiny ring only slows things down.
#[tokio::test]
async fn admission_and_small_ring() {
    let mut small = options(&FaultDisk::new());
    small.max_inflight_bytes = 1000;
    small.ring_bytes = 1;
    let (node, seen) = node(small).await;
    let mut proposals = BTreeMap::new();
    for number in 0..40u32 {
        let proposal = within(node.propose(put(&vec![1; 100 * number as usize]))).await.unwrap();
        proposals.insert(number, tokio::spawn(proposal));
    }
    for (_, proposal) in proposals {
        assert!(matches!(within(proposal).await.unwrap(), Outcome::Committed { .. }));
    }
    check_bodies(&seen.lock(), &node.bodies());
    let too_long = Payload::from_parts(vec![vec![0; 1 << 20].into(); 1089]);
    assert!(matches!(node.propose(too_long).await, Err(NotProposed::TooLong { .. })));
    within(node.shutdown()).await;
}

/// An idle node neither writes nor syncs.
#[tokio::test]
async fn idle_is_idle() {
    let disk = FaultDisk::new();
    let (node, _) = node(options(&disk)).await;
    commit(&node, put(b"x")).await;
    prepared(&disk).await;
    // The last flush gets its witness, unless it has it; after that there is nothing.
    let (writes, syncs) = (disk.writes(), disk.syncs());
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(disk.writes() <= writes + 1 && disk.syncs() == syncs);
    let before = (disk.writes(), disk.syncs());
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!((disk.writes(), disk.syncs()), before);
    within(node.shutdown()).await;
}

/// Votes, truncations over several segments, purges and the commit point come back as they were.
#[tokio::test]
async fn log_state_survives() {
    let disk = FaultDisk::new();
    let rig = Rig::open(&options(&disk)).unwrap();
    rig.append((1..=100).map(|index| entry(1, index, 900)).collect()).await;
    let log = rig.storage.log.clone();
    let last = Some(Position { term: 1, index: 40 });
    log.queue([Op::Truncate { index: 41, last }]).unwrap();
    rig.append((41..=50).map(|index| entry(3, index, 900)).collect()).await;
    log.queue([Op::Vote(Ballot { term: 4, node: 9, committed: false })]).unwrap();
    log.set_committed(Some(Position { term: 3, index: 45 }));
    log.queue([Op::Truncate { index: 49, last: Some(Position { term: 3, index: 48 }) }]).unwrap();
    log.queue([Op::Purge(Position { term: 1, index: 20 })]).unwrap();
    rig.append(vec![entry(4, 49, 10)]).await;
    let state = log.state();
    assert_eq!(log.read(0..100).unwrap()[0].log_id.index, 21);
    rig.close();
    let disk = disk.kill();
    let found = recover(&disk).unwrap();
    assert_eq!(found.state, state);
    assert_eq!(state.ballot, Some(Ballot { term: 4, node: 9, committed: false }));
    for (index, term) in [(40, 1), (41, 3), (48, 3), (49, 4)] {
        let (segment, _) = found.table.find(index).unwrap();
        let mut entries = Vec::new();
        crate::log::read_run(&segment, index..index + 1, &mut entries).unwrap();
        assert_eq!(Position::from(entries[0].log_id), Position { term, index });
    }
    assert!(found.table.find(50).is_none());
}

/// Without threads everything works the same.
#[tokio::test]
async fn inline() {
    let mut disk = FaultDisk::new();
    for life in 0..3 {
        let mut inline = options(&disk);
        inline.inline = true;
        inline.snapshot_log_bytes = 50 << 10;
        let (node, seen) = node(inline).await;
        assert_eq!(seen.lock().live.len(), 50 * life);
        for number in 0..50 {
            commit(&node, put(&[number; 1500])).await;
        }
        within(node.snapshot_now()).await.unwrap();
        check_bodies(&seen.lock(), &node.bodies());
        if life == 1 {
            within(node.shutdown()).await;
        }
        disk = disk.kill();
    }
}

/// A node comes back with entries that were never committed, and the leader puts others in their place: whoever reads
/// from before them on is given those, also while the disk is still busy with voiding the old ones.
#[tokio::test(start_paused = true)]
async fn a_void_entry_is_not_read_in_place_of_its_successor() {
    let disk = FaultDisk::new();
    let mut slow = options(&disk);
    slow.inline = true;
    let rig = Rig::open(&slow).unwrap();
    rig.append((1..=5).map(|index| entry(1, index, 100)).collect()).await;
    drop(rig);
    let disk = disk.kill();
    slow.disk = std::sync::Arc::new(disk.clone());
    let rig = Rig::open(&slow).unwrap();
    disk.slow_down(std::time::Duration::from_secs(5), 1);
    let log = rig.storage.log.clone();
    let kept = entry(1, 3, 0).log_id;
    Store::new(log.clone()).truncate_after(Some(kept)).await.unwrap();
    let appended = log.append([entry(2, 4, 100)].into_iter(), Done::Flushed(IOFlushed::noop()));
    appended.await.unwrap();
    let read = log.read(2..6).unwrap();
    let terms = read.iter().map(|entry| (entry.log_id.index, entry.log_id.committed_leader_id().term));
    let truth = [(2, 1), (3, 1), (4, 2)];
    assert!(terms.eq(truth[..read.len()].iter().copied()), "{read:?}");
}
