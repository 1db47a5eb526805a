//! Nodes that have lost their memory, or come from elsewhere, are kept out.

use std::path::Path;
use std::time::Duration;

use super::cluster_rig::{Rack, address, until};
use super::machine::put;
use super::rig::{DIR, within};
use crate::disk::{Disk, FaultDisk};

/// A copy of everything on a disk, as `cp` makes one.
fn copied(disk: &FaultDisk) -> FaultDisk {
    let copy = FaultDisk::new();
    let dir = Path::new(DIR);
    copy.create_dir(dir).unwrap();
    for name in disk.list(dir).unwrap() {
        copy.overwrite(&dir.join(&name), disk.read(&dir.join(&name)).unwrap());
    }
    copy
}

fn others(id: u64) -> Vec<u64> {
    (1..=3).filter(|other| *other != id).collect()
}

async fn refused(rack: &Rack, id: u64, with: &str) {
    until("it is refused", || rack.node(id).status().refused.is_some()).await;
    let why = rack.node(id).status().refused.unwrap();
    assert!(why.contains(with) && why.contains(&format!("beanpole cluster replace {id}")), "{why}");
}

/// A node whose disk was wiped is refused, whichever it is, also the one with the lowest number; it gets
/// nothing, and with it alone there is no majority.
#[tokio::test(start_paused = true)]
async fn wiped() {
    for wiped in 1..=3 {
        let (mut rack, _) = Rack::formed(3).await;
        let leader = rack.leader().await;
        let index = rack.commit(leader, b"kept").await;
        rack.settled(index).await;
        rack.kill(wiped);
        rack.places.get_mut(&wiped).unwrap().disk = FaultDisk::new();
        let leader = rack.leader().await;
        rack.start(wiped).await;
        refused(&rack, wiped, "another data directory").await;
        let status = rack.node(wiped).status();
        assert_eq!((status.cluster_id, status.last_index), ("0".repeat(32), 0));
        rack.commit(leader, b"goes on").await;
        rack.kill(leader);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(rack.running().all(|(id, _)| !rack.leadership(id).ready));
        rack.start(leader).await;
        let healthy = others(wiped);
        let leader = rack.leader_of(&healthy).await;
        rack.commit(leader, b"again").await;
        assert_eq!(rack.node(wiped).status().last_index, 0);
    }
}

/// A wiped node that finds nobody begins no cluster of its own, however long it waits.
#[tokio::test(start_paused = true)]
async fn wiped_and_alone() {
    let (mut rack, _) = Rack::formed(3).await;
    for id in 1..=3 {
        rack.kill(id);
    }
    rack.places.get_mut(&1).unwrap().disk = FaultDisk::new();
    rack.start(1).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(rack.node(1).status().cluster_id, "0".repeat(32));
    rack.start(2).await;
    refused(&rack, 1, "another data directory").await;
    rack.start(3).await;
    rack.leader_of(&[2, 3]).await;
}

/// A copy of the directory is refused when the original was started after it was taken.
#[tokio::test(start_paused = true)]
async fn old_copy() {
    for starts in 1..=2 {
        let (mut rack, leader) = Rack::formed(3).await;
        let index = rack.commit(leader, b"kept").await;
        rack.settled(index).await;
        let old = leader % 3 + 1;
        rack.kill(old);
        let copy = copied(&rack.places[&old].disk);
        for _ in 0..starts {
            rack.start(old).await;
            let leader = rack.leader().await;
            let index = rack.commit(leader, b"x").await;
            rack.settled(index).await;
            rack.kill(old);
        }
        rack.places.get_mut(&old).unwrap().disk = copy;
        rack.start(old).await;
        refused(&rack, old, "old copy").await;
        let leader = rack.leader_of(&others(old)).await;
        rack.commit(leader, b"goes on").await;
    }
}

/// A copy that was taken while the node ran is recognised by what the node has acknowledged since; also by a
/// leader that was itself restarted, a while after.
#[tokio::test(start_paused = true)]
async fn lost_entries() {
    for restarted in [false, true] {
        let (mut rack, leader) = Rack::formed(3).await;
        let index = rack.commit(leader, b"before").await;
        rack.settled(index).await;
        let old = leader % 3 + 1;
        let copy = copied(&rack.places[&old].disk);
        let index = rack.commit(leader, b"acknowledged").await;
        rack.settled(index).await;
        tokio::time::sleep(Duration::from_secs(15)).await;
        rack.kill(old);
        rack.places.get_mut(&old).unwrap().disk = copy;
        if restarted {
            rack.kill(leader);
            rack.start(leader).await;
        }
        rack.start(old).await;
        refused(&rack, old, "had acknowledged").await;
        let leader = rack.leader_of(&others(old)).await;
        rack.commit(leader, b"goes on").await;
    }
}

/// A node whose power was cut lost only what it had not acknowledged: it is let in, however often.
#[tokio::test(start_paused = true)]
async fn crashes_are_not_amnesia() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let (mut rack, _) = Rack::formed(3).await;
    for round in 0..30u64 {
        let leader = rack.leader().await;
        let mut open = Vec::new();
        for number in 0..30u8 {
            open.push(rack.node(leader).propose(put(&[number; 3000])).await.unwrap());
            if number % 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
        let id = round % 3 + 1;
        rack.cut_power(id, seed.wrapping_add(round));
        drop(open);
        rack.start(id).await;
        let leader = rack.leader().await;
        let index = rack.commit(leader, b"x").await;
        rack.settled(index).await;
        assert!(rack.running().all(|(_, node)| node.status().refused.is_none()));
    }
}

/// A node of another cluster is refused by both sides; neither cluster is disturbed.
#[tokio::test(start_paused = true)]
async fn other_cluster() {
    let (mut rack, leader) = Rack::formed(3).await;
    let stranger = leader % 3 + 1;
    rack.kill(stranger);
    let plan = std::mem::take(&mut rack.plan);
    rack.plan.insert(stranger, address(stranger));
    rack.places.get_mut(&stranger).unwrap().disk = FaultDisk::new();
    rack.start(stranger).await;
    until("a cluster of its own", || rack.leadership(stranger).ready).await;
    let theirs = rack.node(stranger).status().cluster_id;
    rack.kill(stranger);
    rack.plan = plan;
    rack.start(stranger).await;
    let index = rack.commit(leader, b"undisturbed").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let status = rack.node(stranger).status();
    assert_eq!((status.cluster_id, status.voters), (theirs, vec![stranger]));
    assert!(rack.leadership(stranger).ready && rack.leadership(leader).ready);
    assert!(status.applied < index + 10 && rack.places[&stranger].seen.lock().live.is_empty());
    let refused = within(rack.node(leader).connect(stranger)).await.unwrap_err();
    assert!(matches!(refused, crate::LinkError::Refused { .. }), "{refused:?}");
}

/// A wiped node is replaced: removed, and a new one with a new number let in. The old number stays refused.
#[tokio::test(start_paused = true)]
async fn replaced() {
    let (mut rack, leader) = Rack::formed(3).await;
    let index = rack.commit(leader, b"kept").await;
    rack.settled(index).await;
    let wiped = leader % 3 + 1;
    rack.kill(wiped);
    rack.places.get_mut(&wiped).unwrap().disk = FaultDisk::new();
    rack.start(wiped).await;
    refused(&rack, wiped, "another data directory").await;
    within(rack.node(leader).remove(wiped)).await.unwrap();
    rack.kill(wiped);
    rack.places.remove(&wiped);
    rack.start(4).await;
    within(rack.node(leader).add_learner(4, address(4))).await.unwrap();
    let index = rack.commit(leader, b"new").await;
    rack.settled(index).await;
    within(rack.node(leader).promote(4)).await.unwrap();
    rack.kill(leader);
    let leader = rack.leader().await;
    let index = rack.commit(leader, b"with the new one").await;
    rack.settled(index).await;
    let seen = rack.places[&4].seen.lock();
    assert_eq!(seen.live.len(), 3);
}
