//! This node's gateway follows the leader: it takes office here, or speaks to the node that leads.

use std::sync::Arc;
use std::time::Duration;

use beanpole_raft::{Leadership, LinkReceiver, LinkSender, Node};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, timeout};

use super::message::{Down, Unreadable, Up};
use super::quorum::{Ask, Asks};
use super::report::{self, Reports};
use crate::gateway::lease::RENEW_EVERY_US;
use crate::node::Shared;

/// How long is waited before a leader that could not be reached is tried again.
const RETRY: Duration = Duration::from_millis(20);
/// How long a leader that never heard another one waits for other nodes' clocks.
const TIME_MAX: Duration = Duration::from_millis(500);
const RENEW_EVERY: Duration = Duration::from_micros(RENEW_EVERY_US);

/// Follows the leader until the node stops.
pub(super) async fn follow(shared: Arc<Shared>, node: Node, asks: Asks) {
    let mut leadership = node.watch_leadership();
    let own = node.status().node_id;
    loop {
        let now = *leadership.borrow_and_update();
        let changed = match now.leader {
            Some(leader) if leader == own && now.ready => {
                lead(&shared, &node, now, &asks, &mut leadership).await
            }
            Some(leader) if leader != own => speak_to(&shared, &node, leader, now, &mut leadership).await,
            Some(_) | None => leadership.changed().await.is_ok(),
        };
        if !changed {
            return;
        }
    }
}

/// Leads until something changes. False when the node stops.
async fn lead(
    shared: &Shared,
    node: &Node,
    now: Leadership,
    asks: &Asks,
    leadership: &mut watch::Receiver<Leadership>,
) -> bool {
    tracing::info!(term = now.term, "this node leads");
    let voters = node.status().voters.len();
    // After a restart of all nodes nobody knows the time yet: one wrong clock must not decide it.
    if timeout(TIME_MAX, shared.sure_of_time(voters)).await.is_err() {
        tracing::warn!("not all nodes told their clocks; the time is taken from those that did");
    }
    shared.take_office(now.term);
    let own = node.status().node_id;
    let mut renewals = interval(RENEW_EVERY);
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stance = shared.admission.watch_own();
    let lives = loop {
        tokio::select! {
            Ok(()) = stance.changed() => shared.decide_for(&node.status().voters),
            changed = leadership.changed() => {
                let then = *leadership.borrow_and_update();
                if changed.is_err() || (then.term, then.leader, then.ready) != (now.term, now.leader, now.ready) {
                    break changed.is_ok();
                }
            }
            _ = renewals.tick() => {
                shared.reports.set(report::own(shared, node));
                shared.decide_for(&node.status().voters);
                shared.raise_level_for(&node.status().members.iter().map(|member| member.id).collect::<Vec<_>>());
                {
                    let mut gateway = shared.gateway.lock();
                    gateway.hear_roles(shared.reports.roles_elsewhere(own));
                    gateway.tell_clients();
                }
                if shared.gateway.lock().is_leaving() {
                    hand_over(node).await;
                }
                let sent = shared.gateway.lock().now();
                if asks.send(Ask::OwnRenew(sent)).is_err() {
                    break false;
                }
            }
            () = shared.uplink_called() => {
                let barrier = shared.gateway.lock().take_barrier();
                if let Some(barrier) = barrier
                    && asks.send(Ask::OwnBarrier(barrier)).is_err()
                {
                    break false;
                }
            }
        }
    };
    shared.leave_office();
    lives
}

/// A node that leaves service lets another one lead, if there is one that can.
async fn hand_over(node: &Node) {
    if node.status().voters.len() > 1
        && let Err(error) = node.transfer_leader(None).await
    {
        tracing::warn!(%error, "this node leaves service but still leads; it is tried again");
    }
}

/// Speaks to the leader on another node until something changes. False when this node stops.
async fn speak_to(
    shared: &Shared,
    node: &Node,
    leader: u64,
    now: Leadership,
    leadership: &mut watch::Receiver<Leadership>,
) -> bool {
    let link = tokio::select! {
        changed = leadership.changed() => return changed.is_ok(),
        link = node.connect(leader) => link,
    };
    match link {
        Ok(link) => {
            let (sender, receiver) = link.split();
            let conversation = async {
                let ended = converse(shared, node, sender, receiver, now.term).await;
                tracing::debug!(leader, term = now.term, ?ended, "the way to the leader ended");
            };
            let lives = tokio::select! {
                changed = changed_from(leadership, now) => Some(changed),
                () = conversation => None,
            };
            shared.gateway.lock().disconnect_leader();
            if let Some(lives) = lives {
                return lives;
            }
        }
        Err(error) => tracing::debug!(leader, %error, "the leader cannot be reached"),
    }
    tokio::select! {
        changed = leadership.changed() => changed.is_ok(),
        () = tokio::time::sleep(RETRY) => true,
    }
}

/// Resolves when another leader or term is known; false when the node stops.
async fn changed_from(leadership: &mut watch::Receiver<Leadership>, now: Leadership) -> bool {
    let is_other = |then: &Leadership| (then.term, then.leader) != (now.term, now.leader);
    leadership.wait_for(is_other).await.is_ok()
}

/// Why a conversation with the leader ended.
#[derive(Debug)]
enum Ended {
    Broken,
    Unreadable(#[allow(dead_code, reason = "shown in the log")] Unreadable),
}

/// Tells the leader everything, and goes on telling; takes its answers.
async fn converse(
    shared: &Shared,
    node: &Node,
    sender: LinkSender,
    mut receiver: LinkReceiver,
    term: u64,
) -> Ended {
    let wall = shared.gateway.lock().wall();
    if sender.send(Up::Hello { term, wall }.encode()).await.is_err() {
        return Ended::Broken;
    }
    shared.gateway.lock().connect_leader();
    let told = tell(shared, node, &sender);
    let heard = async {
        while let Some(message) = receiver.recv().await {
            match Down::decode(&message) {
                Ok(down) => hear(shared, term, down),
                Err(error) => return Ended::Unreadable(error),
            }
        }
        Ended::Broken
    };
    tokio::select! {
        () = told => Ended::Broken,
        ended = heard => ended,
    }
}

/// Sends what the gateway has for the leader, until the link breaks.
async fn tell(shared: &Shared, node: &Node, sender: &LinkSender) {
    let mut renewals = interval_at(Instant::now(), RENEW_EVERY);
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stance = shared.admission.watch_own();
    loop {
        while let Some(up) = next_up(shared) {
            if sender.send(up.encode()).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = shared.uplink_called() => {}
            // The leader decides for all: it must not learn only half a second later that this node has no room.
            Ok(()) = stance.changed() => renewals.reset_immediately(),
            _ = renewals.tick() => {
                let own = report::own(shared, node);
                let report = Reports::encode_one(&own);
                shared.reports.set(own);
                let (sent, wall) = {
                    let mut gateway = shared.gateway.lock();
                    gateway.tell_clients();
                    (gateway.now(), gateway.wall())
                };
                if sender.send(Up::Renew { sent, wall, report }.encode()).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// The next message for the leader: what changes something first, then the question how far everything is committed.
fn next_up(shared: &Shared) -> Option<Up> {
    let mut gateway = shared.gateway.lock();
    let message = gateway.next_message().map(Up::Tell);
    let up = message.or_else(|| gateway.take_barrier().map(Up::Barrier));
    shared.wake_for_replies(&gateway);
    up
}

fn hear(shared: &Shared, term: u64, down: Down) {
    let mut gateway = shared.gateway.lock();
    match down {
        Down::Reached { barrier, index, elsewhere } => gateway.barrier_reached(barrier, index, elsewhere),
        Down::Renewed { sent, stamp, lease } => {
            gateway.renewed(sent);
            gateway.hear_clocks(term, stamp, lease);
        }
        Down::Again => gateway.ask_barriers_again(),
        Down::Word(stance) => {
            drop(gateway);
            return shared.hear_word(stance);
        }
        Down::Reports(reports) => {
            shared.reports.merge(&reports);
            let own = u64::from(gateway.node());
            gateway.hear_roles(shared.reports.roles_elsewhere(own));
        }
    }
    shared.wake_for(&gateway);
}
