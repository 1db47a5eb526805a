//! Segments of which little is live are rewritten.

use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::machine::{Seen, check_bodies, drop_body, nth, put, put_many};
use super::rig::{DIR, PATIENCE, commit, node, options, segments, within};
use super::transfer_rig::{Follower, Leader, bring_forward, inline};
use crate::disk::{Disk, FaultDisk};
use crate::{Node, Options, body_segment};

fn sparse(disk: &FaultDisk) -> Options {
    let mut options = options(disk);
    options.log_retention_bytes = 16 << 10;
    options
}

/// The paths of all body segments, in order.
fn body_segments(disk: &FaultDisk) -> Vec<std::path::PathBuf> {
    let mut names = disk.list(Path::new(DIR)).unwrap();
    names.retain(|name| name.ends_with(body_segment::SUFFIX));
    names.sort();
    names.into_iter().map(|name| Path::new(DIR).join(name)).collect()
}

/// Puts and drops enough for old segments to be purged.
async fn churn(node: &Node) {
    for _ in 0..60 {
        let index = commit(node, put(&[2; 1000])).await;
        commit(node, drop_body(index)).await;
    }
}

/// One body in each segment waits for long: the segments go, the bodies stay readable at their addresses, also after a
/// restart, and there is one file in place of many.
#[tokio::test]
async fn one_stuck_body_keeps_no_segment() {
    let disk = FaultDisk::new();
    let (first, seen) = node(sparse(&disk)).await;
    for number in 0..100_u8 {
        let index = commit(&first, put(&[number; 1500])).await;
        if number % 10 != 0 {
            commit(&first, drop_body(index)).await;
        }
    }
    churn(&first).await;
    let before = disk.used();
    within(first.snapshot_now()).await.unwrap();
    let usage = first.bodies().disk_usage();
    assert_eq!(usage.body_segments, 1, "{usage:?}");
    assert!(usage.rewritten_bytes > 0 && usage.compacted_bytes > 100_000, "{usage:?}");
    assert!(disk.used() < before / 2, "{} of {before}", disk.used());
    assert_eq!(seen.lock().live.len(), 10);
    check_bodies(&seen.lock(), &first.bodies());
    let disk = disk.kill();
    let (again, seen) = node(sparse(&disk)).await;
    assert_eq!(seen.lock().live.len(), 10);
    check_bodies(&seen.lock(), &again.bodies());
    assert_eq!(again.bodies().disk_usage().live_bytes, usage.live_bytes);
    // What is dropped at last frees the rewritten segment, too.
    let names: Vec<u64> = seen.lock().live.keys().copied().collect();
    for name in names {
        commit(&again, drop_body(name)).await;
    }
    within(again.snapshot_now()).await.unwrap();
    assert!(body_segments(&disk).is_empty());
    within(again.shutdown()).await;
}

/// Of an entry with many bodies only the live ones are kept, again and again as they become fewer.
#[tokio::test]
async fn entries_are_cut_to_pieces() {
    let disk = FaultDisk::new();
    let (node, seen) = node(sparse(&disk)).await;
    let mut entries = Vec::new();
    for entry in 0..20_u8 {
        let bodies: Vec<Vec<u8>> = (0..40_u8).map(|n| vec![entry ^ n; 200 + usize::from(n)]).collect();
        entries.push(commit(&node, put_many(&bodies)).await);
    }
    let mut last = u64::MAX;
    for keep in [[3, 17, 18], [3, 18, 18], [18, 18, 18]] {
        for index in &entries {
            for n in (0..40).filter(|n| !keep.contains(n)) {
                if seen.lock().live.contains_key(&nth(*index, n)) {
                    commit(&node, drop_body(nth(*index, n))).await;
                }
            }
        }
        churn(&node).await;
        within(node.snapshot_now()).await.unwrap();
        check_bodies(&seen.lock(), &node.bodies());
        let bytes: u64 = body_segments(&disk).iter().map(|path| disk.read(path).unwrap().len() as u64).sum();
        let live = node.bodies().disk_usage().live_bytes;
        let bodies = seen.lock().live.len() as u64;
        assert!(bytes <= last && bytes < 2 * (live + 64 * bodies), "{bytes} bytes for {live} in {bodies}");
        last = bytes;
    }
    let (live, bodies) = (seen.lock().live.clone(), node.bodies());
    let gone =
        live.values().next().map(|(addr, _)| crate::BodyAddr { offset: addr.offset - 300, ..*addr }).unwrap();
    assert!(bodies.read_blocking(gone).is_err(), "what was not kept is not found");
    within(node.shutdown()).await;
}

/// A reader that has a segment before it is rewritten goes on reading it.
#[tokio::test]
async fn readers_are_not_disturbed() {
    let disk = FaultDisk::new();
    let (node, seen) = node(sparse(&disk)).await;
    let stuck = commit(&node, put(&[9; 3000])).await;
    let log = node.log();
    let pinned = log.table.with_body(stuck, Arc::clone).unwrap();
    churn(&node).await;
    within(node.snapshot_now()).await.unwrap();
    let now = log.table.with_body(stuck, Arc::clone).unwrap();
    assert!(!Arc::ptr_eq(&pinned, &now), "it was rewritten");
    assert!(!segments(&disk).contains(&pinned.path));
    assert_eq!(node.bodies().disk_usage().pinned_deleted, pinned.capacity);
    let mut bytes = bytes::BytesMut::new();
    let span = pinned.span(stuck).unwrap();
    pinned.map.copy(span.start, 3000, &mut bytes);
    assert_eq!(bytes[100..], [9; 2900]);
    drop(pinned);
    assert_eq!(node.bodies().disk_usage().pinned_deleted, 0);
    check_bodies(&seen.lock(), &node.bodies());
    within(node.shutdown()).await;
}

/// A damaged record is not copied: its segment stays, is counted, and everything else is compacted.
#[tokio::test]
async fn damage_is_not_rewritten() {
    let disk = FaultDisk::new();
    // Its log is not purged, so nothing is compacted; and what is damaged below is not replayed.
    let (first, _) = node(options(&disk)).await;
    let mut stuck = Vec::new();
    for number in 0..3_u8 {
        stuck.push(commit(&first, put(&[number + 100; 1500])).await);
        churn(&first).await;
    }
    within(first.snapshot_now()).await.unwrap();
    within(first.shutdown()).await;
    drop(first);
    let place = |file: &std::path::PathBuf| {
        let bytes = disk.read(file).unwrap();
        bytes.windows(50).position(|window| window == [101; 50])
    };
    let file = segments(&disk).into_iter().find(|file| place(file).is_some()).unwrap();
    let (at, mut bytes) = (place(&file).unwrap(), disk.read(&file).unwrap());
    bytes[at] ^= 1;
    disk.overwrite(&file, bytes);
    let (again, seen) = node(sparse(&disk)).await;
    within(again.snapshot_now()).await.unwrap();
    let usage = again.bodies().disk_usage();
    assert_eq!((usage.damaged_segments, seen.lock().live.len()), (1, 3), "{usage:?}");
    assert!(segments(&disk).contains(&file));
    within(again.snapshot_now()).await.unwrap();
    let bodies = again.bodies();
    for index in [&stuck[0], &stuck[2]] {
        let (addr, crc) = seen.lock().live[index];
        assert_eq!(crc32fast::hash(&bodies.read_blocking(addr).unwrap()), crc);
    }
    within(again.shutdown()).await;
}

/// What compaction left of entries travels to a node that lacks it, and is compacted again there and here.
#[tokio::test]
async fn pieces_travel() {
    let mut leader = Leader::new(&inline(&FaultDisk::new())).await;
    for entry in 0..30_u8 {
        let bodies: Vec<Vec<u8>> = (0..20_u8).map(|n| vec![entry ^ n; 300]).collect();
        let index = leader.put(put_many(&bodies)).await;
        for n in (0..20).filter(|n| n % 7 != 3) {
            leader.put(drop_body(nth(index, n))).await;
        }
    }
    for _ in 0..60 {
        let index = leader.put(put(&[1; 1000])).await;
        leader.put(drop_body(index)).await;
    }
    leader.compact(leader.last() - 10).await;
    let usage = leader.bodies().disk_usage();
    assert!(usage.body_segments > 0 && usage.rewritten_bytes > 0, "{usage:?}");
    let follower = Follower::start(&FaultDisk::new()).await.unwrap();
    bring_forward(&leader.shared, &follower, leader.term).await.unwrap();
    assert_eq!(follower.seen.lock().live, leader.seen.lock().live);
    check_bodies(&follower.seen.lock(), &follower.bodies());
    let names: Vec<u64> = leader.seen.lock().live.keys().copied().collect();
    for name in names.into_iter().filter(|name| name % 3 != 0) {
        leader.put(drop_body(name)).await;
    }
    leader.compact(leader.last() - 10).await;
    check_bodies(&leader.seen.lock(), &leader.bodies());
    bring_forward(&leader.shared, &follower, leader.term).await.unwrap();
    assert_eq!(follower.seen.lock().live, leader.seen.lock().live);
    check_bodies(&follower.seen.lock(), &follower.bodies());
}

/// Enough that is dead calls for a round by itself, with the log far from the next snapshot.
#[tokio::test(start_paused = true)]
async fn dead_bodies_call_for_it() {
    let disk = FaultDisk::new();
    let mut options = sparse(&disk);
    options.inline = true;
    options.log_retention_bytes = 1;
    let (node, seen) = node(options).await;
    let mut names = Vec::new();
    for number in 0..100_u8 {
        names.push(commit(&node, put(&[number; 1500])).await);
    }
    within(node.snapshot_now()).await.unwrap();
    for name in names.iter().filter(|name| **name % 20 != 0) {
        commit(&node, drop_body(*name)).await;
    }
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while node.bodies().disk_usage().rewritten_bytes == 0 {
        assert!(tokio::time::Instant::now() < deadline, "nothing was compacted");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    check_bodies(&seen.lock(), &node.bodies());
    within(node.shutdown()).await;
}

/// Random puts and drops, snapshots and restarts: every body stays what it was, the counts of live bytes are those that
/// a restart finds, and disk use follows what is live.
#[tokio::test]
async fn random_histories() {
    let seed: u64 =
        std::env::var("BEANPOLE_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("BEANPOLE_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut disk = FaultDisk::new();
    for _ in 0..5 {
        let (node, seen) = node(sparse(&disk)).await;
        for _ in 0..4 {
            steps(&node, &seen, &mut rng).await;
            within(node.snapshot_now()).await.unwrap();
            check_bodies(&seen.lock(), &node.bodies());
        }
        let usage = node.bodies().disk_usage();
        disk = disk.kill();
        let (again, seen) = super::rig::node(sparse(&disk)).await;
        check_bodies(&seen.lock(), &again.bodies());
        assert_eq!(again.bodies().disk_usage().live_bytes, usage.live_bytes);
        within(again.shutdown()).await;
    }
}

async fn steps(node: &Node, seen: &parking_lot::Mutex<Seen>, rng: &mut StdRng) {
    for _ in 0..120 {
        let live: Vec<u64> = seen.lock().live.keys().copied().collect();
        if rng.random_bool(0.3) {
            let bodies = (0..rng.random_range(1..30)).map(|_| vec![rng.random(); rng.random_range(0..300)]);
            commit(node, put_many(&bodies.collect::<Vec<_>>())).await;
        } else if let Some(name) = live.get(rng.random_range(0..=live.len())) {
            commit(node, drop_body(*name)).await;
        }
        let mut some: Vec<u64> = live.into_iter().filter(|_| rng.random_bool(0.1)).collect();
        some.dedup();
        for name in some {
            commit(node, drop_body(name)).await;
        }
    }
}
