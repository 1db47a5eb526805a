//! Nodes find each other and become one cluster.

use std::time::Duration;

use super::cluster_rig::{Rack, address, until};
use super::machine::{check_bodies, put};
use super::rig::within;
use crate::{Outcome, ReadError, Role};

/// In whatever order and however far apart three nodes start, they become one cluster with one leader, in which
/// an entry reaches everybody.
#[tokio::test(start_paused = true)]
async fn any_order_of_starts() {
    for order in [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]] {
        for delay in [Duration::ZERO, Duration::from_millis(130), Duration::from_secs(7)] {
            let mut rack = Rack::new(3);
            for id in order {
                assert!(rack.running().all(|(_, node)| node.status().voters.is_empty()));
                rack.start(id).await;
                tokio::time::sleep(delay).await;
            }
            let leader = rack.leader().await;
            let index = rack.commit(leader, b"first").await;
            rack.settled(index).await;
            let cluster = rack.node(1).status().cluster_id;
            assert_ne!(cluster, "0".repeat(32));
            for (_, node) in rack.running() {
                let status = node.status();
                assert_eq!((status.cluster_id, status.voters), (cluster.clone(), vec![1, 2, 3]));
            }
        }
    }
}

/// The node that makes the cluster dies at some point of it; whatever the moment, one cluster comes of it.
#[tokio::test(start_paused = true)]
async fn the_founder_dies() {
    for millis in 0..60 {
        let mut rack = Rack::new(3);
        for id in [2, 3, 1] {
            rack.start(id).await;
        }
        tokio::time::sleep(Duration::from_millis(5 * millis)).await;
        rack.kill(1);
        rack.start(1).await;
        let leader = rack.leader().await;
        let index = rack.commit(leader, b"first").await;
        rack.settled(index).await;
    }
}

/// Nodes that were told different peers do not begin a cluster; two of three do not either.
#[tokio::test(start_paused = true)]
async fn no_cluster_without_agreement() {
    let mut rack = Rack::new(3);
    rack.start(1).await;
    rack.start(2).await;
    rack.plan.insert(4, address(4));
    rack.start(3).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(rack.running().all(|(_, node)| node.status().cluster_id == "0".repeat(32)));
    rack.plan.remove(&4);
    rack.kill(3);
    rack.start(3).await;
    rack.leader().await;
}

/// A cluster of one, with a network, leads at once and after every restart.
#[tokio::test(start_paused = true)]
async fn a_cluster_of_one() {
    let (mut rack, leader) = Rack::formed(1).await;
    assert_eq!(leader, 1);
    let index = rack.commit(1, b"alone").await;
    rack.kill(1);
    rack.start(1).await;
    rack.leader().await;
    rack.settled(index).await;
    assert_eq!(rack.places[&1].seen.lock().live.len(), 1);
}

/// Many entries, small and of several MiB, reach everybody in order; a barrier works on the leader only, and
/// followers name the leader.
#[tokio::test(start_paused = true)]
async fn entries_reach_everybody() {
    let (rack, leader) = Rack::formed(3).await;
    let mut proposals = Vec::new();
    for number in 0..500u32 {
        let len = if number % 100 == 99 { 5 << 20 } else { number as usize };
        proposals.push(rack.node(leader).propose(put(&vec![number as u8; len])).await.unwrap());
    }
    let mut last = 0;
    for proposal in proposals {
        let Outcome::Committed { index } = within(proposal).await else { panic!("not committed") };
        assert!(index > last);
        last = index;
    }
    rack.settled(last).await;
    for (id, place) in &rack.places {
        check_bodies(&place.seen.lock(), &rack.node(*id).bodies());
    }
    assert!(within(rack.node(leader).read_barrier()).await.unwrap() >= last);
    for (id, node) in rack.running().filter(|(id, _)| *id != leader) {
        assert_eq!(within(node.read_barrier()).await, Err(ReadError::NotLeader { leader: Some(leader) }));
        let refused = within(node.propose(put(b"no")).await.unwrap()).await;
        assert_eq!(refused, Outcome::NotProposed { leader: Some(leader) });
        assert_eq!((node.status().role, node.status().node_id), (Role::Follower, id));
    }
    until("everybody knows what is committed", || {
        rack.running().all(|(_, node)| node.status().committed == rack.node(leader).status().committed)
    })
    .await;
}
