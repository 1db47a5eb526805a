//! A survivor goes on alone after the majority is lost. In real time: a rescue writes with a thread of its own.

use super::cluster_rig::{Rack, until};
use super::machine::{TestMachine, check_bodies, put};
use super::rig::{DIR, commit, node, within};
use crate::disk::{Disk, FaultDisk};
use crate::rescue::{self, RescueError};
use crate::{Node, Options};
use std::path::Path;
use std::sync::Arc;

fn alone(options: &Options) -> Options {
    Options { peering: None, inline: false, ..options.clone() }
}

fn look(disk: &FaultDisk) -> Result<rescue::Outlook, RescueError> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    rescue::look(&disk, Path::new(DIR))
}

async fn rescue(options: &Options) -> Result<rescue::Rescued, RescueError> {
    let (machine, _) = TestMachine::new();
    within(rescue::go_on_alone(&alone(options), Box::new(machine))).await
}

/// Everything that the survivor has is kept, also what it does not know to be committed; it leads by itself, in a new cluster,
/// and the lost nodes are strangers to it.
#[tokio::test]
async fn a_survivor_keeps_what_it_has_and_leads_alone() {
    let (mut rack, leader) = Rack::formed(3).await;
    let mut last = 0;
    for number in 0..50 {
        last = rack.commit(leader, &[number; 700]).await;
    }
    rack.settled(last).await;
    let survivor = if leader == 1 { 2 } else { 1 };
    let before = rack.node(survivor).status();
    let live = rack.places[&survivor].seen.lock().live.clone();
    for id in 1..=3 {
        rack.kill(id);
    }
    let disk = rack.places[&survivor].disk.clone();
    let outlook = look(&disk).unwrap();
    assert_eq!((outlook.node, &outlook.cluster), (survivor, &before.cluster_id));
    assert!(outlook.last >= last && outlook.committed <= outlook.last, "{outlook:?}");
    assert_eq!(outlook.others.len(), 2);
    let options = rack.options(survivor, &disk);
    let rescued = rescue(&options).await.unwrap();
    assert_eq!((rescued.node, rescued.last), (survivor, outlook.last));
    assert_ne!(rescued.cluster, before.cluster_id);
    assert!(matches!(look(&disk), Err(RescueError::Alone(_))), "it is done once");

    rack.start(survivor).await;
    until("it leads", || rack.leadership(survivor).ready).await;
    let status = rack.node(survivor).status();
    assert_eq!((status.cluster_id, status.voters), (rescued.cluster, vec![survivor]));
    let more = rack.commit(survivor, b"more").await;
    assert!(more > last);
    let seen = rack.places[&survivor].seen.lock().live.clone();
    assert!(live.iter().all(|(index, body)| seen.get(index) == Some(body)));
    check_bodies(&rack.places[&survivor].seen.lock(), &rack.node(survivor).bodies());
    // One that was lost comes back: it belongs to another cluster, and changes nothing.
    rack.start(leader).await;
    until("it is refused", || rack.node(leader).status().leader.is_none()).await;
    rack.commit(survivor, b"still").await;
    assert_eq!(rack.node(survivor).status().voters, [survivor]);
}

/// Cut short after each step, it can be done again, and in the end the node leads with everything it had.
#[tokio::test]
async fn a_rescue_that_was_cut_short_can_be_done_again() {
    let (mut rack, leader) = Rack::formed(3).await;
    let last = rack.commit(leader, b"one").await;
    rack.settled(last).await;
    for id in 1..=3 {
        rack.kill(id);
    }
    let whole = rack.places[&1].disk.clone();
    let mut cut_short = 0;
    for changes in 0.. {
        let disk = whole.kill();
        let options = rack.options(1, &disk);
        disk.cut_after(changes);
        let failed = rescue(&options).await.is_err();
        let disk = disk.power_cut(changes);
        let options = rack.options(1, &disk);
        match rescue(&options).await {
            Ok(_) | Err(RescueError::Alone(_)) => {}
            Err(error) => panic!("after {changes} changes: {error}"),
        }
        let (machine, seen) = TestMachine::new();
        let node = within(Node::start(alone(&options), machine)).await.unwrap();
        within(node.ready()).await.unwrap();
        assert_eq!(node.status().voters, [1], "after {changes} changes");
        assert_eq!(seen.lock().live.len(), 1, "after {changes} changes");
        within(node.shutdown()).await;
        if !failed {
            break;
        }
        cut_short += 1;
    }
    assert!(cut_short > 5, "only {cut_short}");
}

#[tokio::test]
async fn a_node_that_was_never_with_others_needs_no_rescue() {
    let disk = FaultDisk::new();
    let options = super::rig::options(&disk);
    let (lone, _) = node(options.clone()).await;
    commit(&lone, put(b"x")).await;
    within(lone.shutdown()).await;
    assert!(matches!(look(&disk), Err(RescueError::Alone(_))));
    assert!(matches!(rescue(&options).await, Err(RescueError::Alone(_))));
    assert!(matches!(look(&FaultDisk::new()), Err(RescueError::NoNode(_) | RescueError::Io(_))));
}
