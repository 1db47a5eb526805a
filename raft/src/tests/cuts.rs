//! The network is cut, in both directions or in one, and healed.

use std::time::Duration;

use super::cluster_rig::{Rack, address};
use super::machine::put;
use super::rig::within;
use crate::{Outcome, ReadError};

fn others(id: u64) -> impl Iterator<Item = u64> {
    (1..=3).filter(move |other| *other != id)
}

/// The leader is cut off: the others elect one of them, the old one commits and confirms nothing, and after the
/// healing all agree.
#[tokio::test(start_paused = true)]
async fn leader_cut_off() {
    let (rack, old) = Rack::formed(3).await;
    rack.commit(old, b"before").await;
    for other in others(old) {
        rack.hub.cut(&address(old), &address(other));
    }
    let lost = rack.node(old).propose(put(b"lost")).await.unwrap();
    let rest: Vec<u64> = others(old).collect();
    let new = rack.leader_of(&rest).await;
    rack.commit(new, b"during").await;
    let barrier = within(rack.node(old).read_barrier()).await;
    assert!(matches!(barrier, Err(ReadError::NotLeader { .. })), "{barrier:?}");
    rack.hub.heal_all();
    assert_eq!(within(lost).await, Outcome::Unknown);
    let leader = rack.leader().await;
    let index = rack.commit(leader, b"after").await;
    rack.settled(index).await;
    assert_eq!(rack.places[&old].seen.lock().live.len(), 3);
}

/// What the leader sends is lost, what is sent to it arrives, and the other way round: in both cases somebody
/// leads within the usual time and goes on leading, and after the healing all agree.
#[tokio::test(start_paused = true)]
async fn one_way() {
    for outgoing in [true, false] {
        let (rack, old) = Rack::formed(3).await;
        for other in others(old) {
            let (from, to) = if outgoing { (old, other) } else { (other, old) };
            rack.hub.cut_one_way(&address(from), &address(to));
        }
        let rest: Vec<u64> = others(old).collect();
        let new = rack.leader_of(&rest).await;
        rack.commit(new, b"during").await;
        let term = rack.leadership(new).term;
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(rack.leadership(new).term, term);
        rack.hub.heal_all();
        let leader = rack.leader().await;
        let index = rack.commit(leader, b"after").await;
        rack.settled(index).await;
    }
}

/// A follower that was alone for a minute comes back without having raised the term, and disturbs nobody.
#[tokio::test(start_paused = true)]
async fn pre_vote() {
    let (rack, leader) = Rack::formed(3).await;
    let alone = leader % 3 + 1;
    let term = rack.leadership(leader).term;
    for other in others(alone) {
        rack.hub.cut(&address(alone), &address(other));
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(rack.node(alone).status().term, term);
    rack.hub.heal_all();
    let index = rack.commit(leader, b"after").await;
    rack.settled(index).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(rack.leadership(leader).term, term);
    assert_eq!(rack.leader().await, leader);
}

/// The link between two followers is no concern of the cluster's.
#[tokio::test(start_paused = true)]
async fn followers_apart() {
    let (rack, leader) = Rack::formed(3).await;
    let term = rack.leadership(leader).term;
    let apart: Vec<u64> = others(leader).collect();
    rack.hub.cut(&address(apart[0]), &address(apart[1]));
    tokio::time::sleep(Duration::from_secs(30)).await;
    let index = rack.commit(leader, b"still").await;
    rack.settled(index).await;
    assert_eq!(rack.leadership(leader).term, term);
}

/// With a delay on every write and cuts all the time, what is committed stays, and all agree in the end.
#[tokio::test(start_paused = true)]
async fn slow_and_flapping() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rack = Rack::new(3);
    rack.hub = crate::SimHub::with_delay(seed, Duration::from_millis(20));
    for id in 1..=3 {
        rack.start(id).await;
    }
    let mut committed = Vec::new();
    for round in 0..40u64 {
        let leader = rack.leader().await;
        let (a, b) = (round.wrapping_add(seed) % 3 + 1, round.wrapping_mul(seed | 1) % 3 + 1);
        if a != b {
            rack.hub.cut_one_way(&address(a), &address(b));
        }
        let proposal = rack.node(leader).propose(put(&round.to_le_bytes())).await.unwrap();
        if let Ok(Outcome::Committed { index }) = tokio::time::timeout(Duration::from_secs(3), proposal).await
        {
            committed.push(index);
        }
        rack.hub.heal_all();
    }
    let leader = rack.leader().await;
    let index = rack.commit(leader, b"end").await;
    rack.settled(index).await;
    let seen = rack.places[&1].seen.lock();
    assert!(committed.len() > 20 && committed.iter().all(|index| seen.live.contains_key(index)));
}
