//! Leaders die and come back.

use std::time::Duration;

use tokio::time::Instant;

use super::cluster_rig::Rack;
use super::machine::put;
use super::rig::within;
use crate::Outcome;

/// Ten leaders are killed, one after the other, each with proposals under way: another one leads, what was
/// committed is there, and the old one comes back and catches up.
#[tokio::test(start_paused = true)]
async fn leaders_die() {
    let (mut rack, mut leader) = Rack::formed(3).await;
    let mut committed = Vec::new();
    for round in 0..10u8 {
        for number in 0..20 {
            committed.push(rack.commit(leader, &[round, number]).await);
        }
        let mut open = Vec::new();
        for number in 20..40 {
            open.push(rack.node(leader).propose(put(&[round, number])).await.unwrap());
        }
        let before = rack.leadership(leader).term;
        rack.kill(leader);
        let next = rack.leader().await;
        assert!(next != leader && rack.leadership(next).term > before);
        for proposal in open {
            let outcome = proposal.await;
            assert!(matches!(outcome, Outcome::Committed { .. } | Outcome::Unknown), "{outcome:?}");
        }
        let index = rack.commit(next, b"after").await;
        rack.start(leader).await;
        rack.settled(index).await;
        let seen = rack.places[&leader].seen.lock();
        assert!(committed.iter().all(|index| seen.live.contains_key(index)));
        drop(seen);
        leader = next;
    }
}

/// Whoever leads, its state knows that its term began, and every term before it that has an entry, in order; so does a node
/// that starts from a snapshot.
#[tokio::test(start_paused = true)]
async fn terms_are_told() {
    let (mut rack, first) = Rack::formed(3).await;
    let told = |rack: &Rack, id: u64| rack.places[&id].seen.lock().terms.clone();
    let before = rack.leadership(first).term;
    assert_eq!(told(&rack, first).last(), Some(&before));
    rack.commit(first, b"one").await;
    within(rack.node(first).snapshot_now()).await.unwrap();
    rack.kill(first);
    let second = rack.leader().await;
    let after = rack.leadership(second).term;
    let terms = told(&rack, second);
    assert!(terms.ends_with(&[before, after]) && terms.is_sorted_by(|a, b| a < b), "{terms:?}");
    rack.start(first).await;
    let index = rack.commit(second, b"two").await;
    rack.settled(index).await;
    assert_eq!(told(&rack, first), [before, after]);
}

/// A follower that was away for longer than its log's ring and segments catches up by log; all three at once
/// come back with everything.
#[tokio::test(start_paused = true)]
async fn catching_up() {
    let (mut rack, leader) = Rack::formed(3).await;
    let away = leader % 3 + 1;
    rack.kill(away);
    for number in 0..200u8 {
        rack.commit(leader, &vec![number; 60_000]).await;
    }
    rack.start(away).await;
    let index = rack.commit(leader, b"last").await;
    rack.settled(index).await;
    for id in 1..=3 {
        rack.kill(id);
    }
    for id in 1..=3 {
        rack.start(id).await;
    }
    rack.leader().await;
    rack.settled(index).await;
    assert_eq!(rack.places[&1].seen.lock().live.len(), 201);
}

/// Without a majority nothing is committed and nobody leads for long; a dead majority that comes back finds
/// everything.
#[tokio::test(start_paused = true)]
async fn majority_lost() {
    let (mut rack, leader) = Rack::formed(3).await;
    let index = rack.commit(leader, b"kept").await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    for id in &others {
        rack.kill(*id);
    }
    let open = rack.node(leader).propose(put(b"alone")).await.unwrap();
    let outcome = tokio::time::timeout(Duration::from_secs(5), open).await;
    assert!(!matches!(outcome, Ok(Outcome::Committed { .. })), "{outcome:?}");
    for id in &others {
        rack.start(*id).await;
    }
    let leader = rack.leader().await;
    let index = index.max(rack.commit(leader, b"again").await);
    rack.settled(index).await;
}

/// A follower was away while the log that it lacks was purged: it is brought forward by a snapshot and the bodies
/// it needs, goes on by log from there, and has it all after a restart too.
#[tokio::test(start_paused = true)]
async fn brought_forward_by_a_snapshot() {
    let mut rack = Rack::new(3);
    rack.retention = Some(0);
    for id in 1..=3 {
        rack.start(id).await;
    }
    let leader = rack.leader().await;
    let away = leader % 3 + 1;
    for number in 0..30u8 {
        rack.commit(leader, &vec![number; 40_000]).await;
    }
    rack.kill(away);
    for number in 30..90u8 {
        rack.commit(leader, &vec![number; 40_000]).await;
    }
    let index = within(rack.node(leader).snapshot_now()).await.unwrap();
    assert!(rack.node(leader).status().purged > 60, "the follower's place in the log is gone");
    rack.commit(leader, b"after the snapshot").await;
    rack.start(away).await;
    let last = rack.commit(leader, b"after the return").await;
    rack.settled(last).await;
    assert!(rack.node(away).status().snapshot_index >= index);
    assert_eq!(rack.places[&away].seen.lock().live.len(), 92);
    rack.kill(away);
    rack.start(away).await;
    rack.settled(last).await;
}

/// A leader whose process dies is followed by another one right after its lease has ended, not a random time
/// later, and never before.
#[tokio::test(start_paused = true)]
async fn speed() {
    let (mut rack, mut leader) = Rack::formed(3).await;
    let lease = Duration::from_millis(600);
    for _ in 0..20 {
        rack.commit(leader, b"x").await;
        // At least one heartbeat has renewed the lease since the commit, at most one was just due.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let start = Instant::now();
        rack.kill(leader);
        let next = rack.leader().await;
        let took = start.elapsed();
        assert!(took > lease - Duration::from_millis(80), "before the lease ended: {took:?}");
        assert!(took < lease + Duration::from_millis(150), "{took:?}");
        rack.start(leader).await;
        let index = rack.commit(next, b"y").await;
        rack.settled(index).await;
        leader = next;
    }
}
