//! Questions that only a leader with a quorum may answer: how far the log is committed, and whether a gateway's lease goes on.
//! All that came while one confirmation was under way share the next.

use std::sync::Arc;
use std::time::Duration;

use beanpole_raft::{LinkSender, Node};
use tokio::sync::mpsc;

use super::message::Down;
use crate::gateway::Barrier;
use crate::node::Shared;

/// How long is waited after a confirmation failed.
const PAUSE: Duration = Duration::from_millis(50);

/// One question, and who asks.
pub(super) enum Ask {
    /// This node's gateway, how far the log is committed.
    OwnBarrier(Barrier),
    /// This node's gateway, whether its lease goes on.
    OwnRenew(u64),
    /// Another node.
    Barrier(LinkSender, u32, Barrier),
    /// Another node.
    Renew(LinkSender, u64),
}

/// Where questions go. Unbounded, but every asker has few under way: a barrier per round trip, a renewal per half second.
pub(super) type Asks = mpsc::UnboundedSender<Ask>;

/// Answers questions until the node stops.
pub(super) async fn answer(shared: Arc<Shared>, node: Node, mut asks: mpsc::UnboundedReceiver<Ask>) {
    let mut asked = Vec::new();
    while asks.recv_many(&mut asked, usize::MAX >> 1).await > 0 {
        match node.read_barrier().await {
            Ok(index) => {
                for ask in asked.drain(..) {
                    say(&shared, ask, index).await;
                }
            }
            Err(error) => {
                tracing::debug!(%error, asks = asked.len(), "no quorum confirmed");
                tokio::time::sleep(PAUSE).await;
                for ask in asked.drain(..) {
                    unsaid(&shared, ask).await;
                }
            }
        }
    }
}

async fn say(shared: &Shared, ask: Ask, index: u64) {
    match ask {
        Ask::OwnBarrier(Barrier { number, about }) => {
            let mut gateway = shared.gateway.lock();
            let elsewhere = shared.elsewhere(gateway.node(), &about);
            gateway.barrier_reached(number, index, elsewhere);
            shared.wake_for(&gateway);
        }
        Ask::OwnRenew(sent) => shared.gateway.lock().renewed(sent),
        Ask::Barrier(link, node, Barrier { number, about }) => {
            let elsewhere = shared.elsewhere(node, &about);
            // A link that broke is noticed where it is read.
            link.send(Down::Reached { barrier: number, index, elsewhere }.encode()).await.ok();
        }
        Ask::Renew(link, sent) => {
            // Clocks that nobody leads by are nobody's to tell.
            let Some((stamp, lease)) = shared.leaders_clocks() else { return };
            link.send(Down::Renewed { sent, stamp, lease }.encode()).await.ok();
            link.send(Down::Reports(shared.reports.encode()).encode()).await.ok();
        }
    }
}

async fn unsaid(shared: &Shared, ask: Ask) {
    match ask {
        Ask::OwnBarrier(_) => {
            let mut gateway = shared.gateway.lock();
            gateway.ask_barriers_again();
            shared.wake_for(&gateway);
        }
        Ask::Barrier(link, ..) => {
            link.send(Down::Again.encode()).await.ok();
        }
        // The next renewal is sent anyway.
        Ask::OwnRenew(_) | Ask::Renew(..) => {}
    }
}
