//! The lead is given away.

use std::time::Duration;

use tokio::time::Instant;

use super::cluster_rig::{Rack, address, until};
use super::machine::put;
use super::rig::within;
use crate::{Outcome, TransferError};

/// With proposals under way all the time the lead goes round, to a named voter or to any, within a moment each
/// time; nothing that was committed is lost, and what is refused was not proposed.
#[tokio::test(start_paused = true)]
async fn round_robin() {
    let (rack, mut leader) = Rack::formed(3).await;
    let mut committed = Vec::new();
    for round in 0..12u8 {
        let mut open = Vec::new();
        for number in 0..50u8 {
            open.push(rack.node(leader).propose(put(&[round, number])).await.unwrap());
        }
        let to = (round % 2 == 0).then_some(leader % 3 + 1);
        let start = Instant::now();
        let next = within(rack.node(leader).transfer_leader(to)).await.unwrap();
        assert!(next != leader && to.is_none_or(|to| to == next));
        assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
        for proposal in open {
            if let Outcome::Committed { index } = within(proposal).await {
                committed.push(index);
            }
        }
        assert_eq!(rack.leader().await, next);
        leader = next;
    }
    let index = rack.commit(leader, b"last").await;
    rack.settled(index).await;
    let seen = rack.places[&1].seen.lock();
    assert!(committed.len() > 300 && committed.iter().all(|index| seen.live.contains_key(index)));
}

/// Only a leader hands over, only to a voter, and only to one that answers; when there is none, it leads on.
#[tokio::test(start_paused = true)]
async fn refused() {
    let (mut rack, leader) = Rack::formed(3).await;
    let other = leader % 3 + 1;
    let error = within(rack.node(other).transfer_leader(None)).await.unwrap_err();
    assert_eq!(error, TransferError::NotLeader { leader: Some(leader) });
    assert_eq!(within(rack.node(leader).transfer_leader(Some(leader))).await, Ok(leader));
    let error = within(rack.node(leader).transfer_leader(Some(9))).await.unwrap_err();
    assert_eq!(error, TransferError::NotVoter { node: 9 });
    rack.kill(other);
    for number in 0..20 {
        rack.commit(leader, &[number]).await;
    }
    let error = within(rack.node(leader).transfer_leader(Some(other))).await.unwrap_err();
    assert!(matches!(error, TransferError::NotCaughtUp { node: Some(node), lag: Some(_) } if node == other));
    rack.commit(leader, b"leads on").await;
    let third = (1..=3).find(|id| *id != leader && *id != other).unwrap();
    assert_eq!(within(rack.node(leader).transfer_leader(None)).await, Ok(third));
}

/// The chosen one cannot be reached at the last moment: the error says so, and somebody leads soon.
#[tokio::test(start_paused = true)]
async fn fails() {
    let (rack, leader) = Rack::formed(3).await;
    let to = leader % 3 + 1;
    rack.hub.cut(&address(leader), &address(to));
    let error = within(rack.node(leader).transfer_leader(Some(to))).await.unwrap_err();
    let failed = matches!(error, TransferError::Failed { node, .. } if node == to);
    assert!(failed || matches!(error, TransferError::NotCaughtUp { .. }), "{error:?}");
    rack.hub.heal_all();
    let leader = rack.leader().await;
    let index = rack.commit(leader, b"after").await;
    rack.settled(index).await;
    until("all followers answer", || {
        rack.node(leader).status().members.iter().filter(|member| member.heard.is_some()).count() >= 2
    })
    .await;
}
