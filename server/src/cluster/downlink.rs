//! Other nodes' gateways: while this node leads, it takes their messages and answers their questions.

use std::sync::Arc;

use beanpole_raft::{Link, Node};

use super::message::{Down, Up};
use super::quorum::{Ask, Asks};
use crate::node::Shared;

/// Takes other nodes' links until the node stops.
pub(super) async fn serve(shared: Arc<Shared>, node: Node, asks: Asks) {
    while let Some(link) = node.accept_link().await {
        tokio::spawn(serve_link(shared.clone(), node.clone(), link, asks.clone()));
    }
}

/// Serves one node's gateway until the link breaks, or this node no longer leads the term that is meant.
async fn serve_link(shared: Arc<Shared>, own: Node, link: Link, asks: Asks) {
    let mut leadership = own.watch_leadership();
    let Ok(node) = u32::try_from(link.peer()) else { return };
    let (sender, mut receiver) = link.split();
    let Some(hello) = receiver.recv().await else { return };
    let Ok(Up::Hello { term, wall }) = Up::decode(node, hello) else { return };
    shared.hear_wall(node, wall);
    // The other node may know of this one's election before it has applied its own first entry.
    let ready = leadership.wait_for(|now| now.term > term || now.term == term && now.ready).await;
    if !ready.is_ok_and(|now| now.term == term) {
        return;
    }
    let Some(connection) = shared.gateway_connected(node, term).await else { return };
    let mut office = shared.office();
    let leader = *office.borrow_and_update();
    tracing::debug!(node, term, "a gateway speaks to this leader");
    let mut word = shared.watch_word();
    word.mark_changed();
    loop {
        let message = tokio::select! {
            message = receiver.recv() => Some(message),
            changed = word.changed() => changed.err().map(|_| None),
            other = office.wait_for(|now| *now != leader) => {
                drop(other);
                break;
            }
            over = leadership.wait_for(|now| now.term != term || !now.ready) => {
                drop(over);
                break;
            }
        };
        let Some(message) = message else {
            let stance = *word.borrow_and_update();
            if sender.send(Down::Word(stance).encode()).await.is_err() {
                break;
            }
            continue;
        };
        let Some(message) = message else { break };
        let taken = match Up::decode(node, message) {
            Ok(Up::Tell(message)) => shared.tell_leader(node, term, connection, message),
            Ok(Up::Barrier(barrier)) => asks.send(Ask::Barrier(sender.clone(), node, barrier)).is_ok(),
            Ok(Up::Renew { sent, wall, report }) => {
                shared.reports.take(node, &report);
                shared.decide_for(&own.status().voters);
                shared.heard_gateway(node, term, wall) && asks.send(Ask::Renew(sender.clone(), sent)).is_ok()
            }
            Ok(Up::Hello { .. }) => false,
            Err(error) => {
                tracing::error!(node, %error, "the link to a node is closed");
                false
            }
        };
        if !taken {
            break;
        }
    }
    shared.gateway_disconnected(node, term, connection);
}
