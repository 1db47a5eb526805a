//! Members come and go.

use std::time::Duration;

use super::cluster_rig::{Place, Rack, address, until};
use super::machine::put;
use super::rig::{commit, node as lone_node, options, within};
use crate::disk::FaultDisk;
use crate::{MembershipError, Node, Outcome, Role};

/// Adds node `id`, waits until it has caught up, and gives it a vote.
async fn grow(rack: &mut Rack, leader: u64, id: u64) {
    rack.start(id).await;
    within(rack.node(leader).add_learner(id, address(id))).await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        match within(rack.node(leader).promote(id)).await {
            Ok(()) => return,
            Err(MembershipError::NotCaughtUp { .. }) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Proposes until told to stop; answers what was committed.
fn keep_proposing(node: Node) -> (tokio::sync::oneshot::Sender<()>, tokio::task::JoinHandle<Vec<u64>>) {
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(async move {
        let mut committed = Vec::new();
        while stopped.try_recv().is_err() {
            let Ok(proposal) = node.propose(put(&[7; 100])).await else { break };
            if let Outcome::Committed { index } = proposal.await {
                committed.push(index);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        committed
    });
    (stop, task)
}

/// From one node to three, to five and back to three, under proposals: nothing is lost, everybody left agrees.
#[tokio::test(start_paused = true)]
async fn one_three_five_three() {
    let (mut rack, _) = Rack::formed(1).await;
    let (stop, proposals) = keep_proposing(rack.node(1).clone());
    for id in 2..=5 {
        grow(&mut rack, 1, id).await;
        assert_eq!(rack.node(1).status().voters, (1..=id).collect::<Vec<u64>>());
        for number in 0..10 {
            rack.commit(1, &[number]).await;
        }
    }
    for id in [2, 4] {
        within(rack.node(1).remove(id)).await.unwrap();
        rack.kill(id);
        rack.places.remove(&id);
    }
    assert_eq!(rack.node(1).status().voters, [1, 3, 5]);
    stop.send(()).unwrap();
    let committed = within(proposals).await.unwrap();
    let index = rack.commit(1, b"last").await;
    rack.settled(index).await;
    let live = rack.places[&5].seen.lock().live.clone();
    assert!(!committed.is_empty() && committed.iter().all(|index| live.contains_key(index)));
    // The three are a cluster of their own: one of them may die.
    rack.kill(1);
    let leader = rack.leader().await;
    rack.commit(leader, b"without node 1").await;
}

/// What status says of the members: who votes, how far they are and when they answered, on the leader only.
#[tokio::test(start_paused = true)]
async fn status() {
    let (mut rack, leader) = Rack::formed(3).await;
    rack.start(4).await;
    assert_eq!(rack.node(4).status().members, vec![]);
    within(rack.node(leader).add_learner(4, address(4))).await.unwrap();
    within(rack.node(leader).add_learner(4, address(4))).await.unwrap();
    let index = rack.commit(leader, b"one").await;
    rack.settled(index).await;
    let last = || rack.node(leader).status().last_index;
    until("all have matched", || {
        rack.node(leader).status().members.iter().all(|member| member.matched == Some(last()))
    })
    .await;
    let members = rack.node(leader).status().members;
    let shown: Vec<(u64, String, bool)> =
        members.iter().map(|member| (member.id, member.address.clone(), member.voter)).collect();
    assert_eq!(shown, (1..=4).map(|id| (id, address(id), id < 4)).collect::<Vec<_>>());
    let others = members.iter().filter(|member| member.id != leader);
    assert!(
        others.into_iter().all(|member| member.heard.is_some_and(|heard| heard < Duration::from_secs(1)))
    );
    let follower = rack.node(4).status();
    assert_eq!(follower.role, Role::Learner);
    assert!(follower.members.iter().all(|member| member.matched.is_none() && member.heard.is_none()));
}

/// What is refused: on a follower, of a learner that is not there, an unknown node, without a majority of the
/// rest, the last voter, and a number that was used before.
#[tokio::test(start_paused = true)]
async fn refused() {
    let (mut rack, leader) = Rack::formed(3).await;
    let other = leader % 3 + 1;
    let not_leader = Err(MembershipError::NotLeader { leader: Some(leader) });
    assert_eq!(within(rack.node(other).add_learner(4, address(4))).await, not_leader);
    assert_eq!(within(rack.node(other).remove(leader)).await, not_leader);
    let node = rack.node(leader);
    assert_eq!(within(node.promote(9)).await, Err(MembershipError::NotMember { node: 9 }));
    assert_eq!(within(node.remove(9)).await, Err(MembershipError::NotMember { node: 9 }));
    let elsewhere = within(node.add_learner(other, "elsewhere:1".into())).await;
    assert_eq!(elsewhere, Err(MembershipError::OtherAddress { node: other }));
    within(node.add_learner(4, address(4))).await.unwrap();
    let absent = within(node.promote(4)).await;
    assert!(matches!(absent, Err(MembershipError::NotCaughtUp { node: 4, .. })), "{absent:?}");
    within(node.remove(4)).await.unwrap();
    until("the removal is noted", || rack.node(leader).status().members.len() == 3).await;
    rack.commit(leader, b"x").await;
    assert_eq!(
        within(rack.node(leader).add_learner(4, address(4))).await,
        Err(MembershipError::WasRemoved { node: 4 })
    );
    let third = (1..=3).find(|id| *id != leader && *id != other).unwrap();
    within(rack.node(leader).remove(other)).await.unwrap();
    rack.kill(third);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let lost = within(rack.node(leader).remove(leader)).await;
    assert!(matches!(lost, Err(MembershipError::WouldLoseQuorum { .. })), "{lost:?}");
}

/// A leader that removes itself hands over, and is refused when it comes back.
#[tokio::test(start_paused = true)]
async fn leader_leaves() {
    let (mut rack, leader) = Rack::formed(3).await;
    within(rack.node(leader).remove(leader)).await.unwrap();
    let rest: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    until("another one leads", || {
        rest.iter().any(|id| rack.leadership(*id).ready && rack.node(*id).status().voters == rest)
    })
    .await;
    let next = rack.leader_of(&rest).await;
    rack.kill(leader);
    rack.start(leader).await;
    until("it is refused", || rack.node(leader).status().refused.is_some()).await;
    let index = rack.commit(next, b"after").await;
    until("the others go on", || rest.iter().all(|id| rack.node(*id).status().applied >= index)).await;
}

/// The leader dies at any moment of a change of voters: the change is finished or undone, never half, and the
/// cluster goes on.
#[tokio::test(start_paused = true)]
async fn leader_dies_during_a_change() {
    for micros in (0..6_000).step_by(500) {
        let (mut rack, leader) = Rack::formed(3).await;
        rack.start(4).await;
        within(rack.node(leader).add_learner(4, address(4))).await.unwrap();
        let index = rack.commit(leader, b"x").await;
        rack.settled(index).await;
        let node = rack.node(leader).clone();
        let change = tokio::spawn(async move { node.promote(4).await });
        tokio::time::sleep(Duration::from_micros(micros)).await;
        change.abort();
        change.await.ok();
        rack.kill(leader);
        let rest: Vec<u64> = (1..=4).filter(|id| *id != leader).collect();
        let leads = || rest.iter().copied().find(|id| rack.leadership(*id).ready);
        until("another one leads", || leads().is_some()).await;
        let next = leads().unwrap();
        let index = rack.commit(next, b"after").await;
        rack.settled(index).await;
        let whole = [vec![1, 2, 3], vec![1, 2, 3, 4]];
        until("the change is whole", || whole.contains(&rack.node(next).status().voters)).await;
        rack.start(leader).await;
        let index = rack.commit(rack.leader().await, b"all").await;
        rack.settled(index).await;
    }
}

/// A node that was a lone voter, with what it holds, becomes the first of a cluster.
#[tokio::test(start_paused = true)]
async fn from_a_lone_voter() {
    let mut rack = Rack::new(1);
    let disk = FaultDisk::new();
    let mut lone = options(&disk);
    lone.inline = true;
    let (node, seen) = lone_node(lone).await;
    commit(&node, put(b"old")).await;
    let cluster = node.status().cluster_id;
    within(node.shutdown()).await;
    rack.places.insert(1, Place { disk: disk.kill(), node: None, seen });
    rack.start(1).await;
    rack.leader().await;
    until("its address is known", || rack.node(1).status().members[0].address == address(1)).await;
    for id in 2..=3 {
        grow(&mut rack, 1, id).await;
    }
    assert!(rack.running().all(|(_, node)| node.status().cluster_id == cluster));
    rack.kill(1);
    let leader = rack.leader().await;
    rack.start(1).await;
    let index = rack.commit(leader, b"new").await;
    rack.settled(index).await;
    assert_eq!(rack.places[&3].seen.lock().live.len(), 2);
}
