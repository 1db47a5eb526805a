//! This node among others: its gateway speaks to the leader wherever that is, and while it leads itself, others'
//! gateways speak to it.
//!
//! ```text
//!   gateway here ── messages ──► uplink ── link ──► downlink on the leader's node ──► Leader ──► log
//!        ▲                                                                                    │
//!        └──────────────────────── entries that apply here ◄──────────────────────────────────┘
//! ```
//!
//! Replies need no way back: every node applies every entry, and the one that holds the connection answers.

mod downlink;
mod message;
mod quorum;
pub mod report;
mod uplink;

use std::sync::Arc;

use beanpole_raft::Node;
use tokio::sync::mpsc;

use crate::node::Shared;

/// Does a member's part until the node stops.
pub async fn run(shared: Arc<Shared>, node: Node) {
    let (asks, asked) = mpsc::unbounded_channel();
    tokio::join!(
        uplink::follow(shared.clone(), node.clone(), asks.clone()),
        downlink::serve(shared.clone(), node.clone(), asks),
        quorum::answer(shared, node, asked),
    );
}
