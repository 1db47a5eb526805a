//! How a new cluster comes into being by itself, whatever the order and the delay of the starts.
//!
//! ```text
//! every node: asks all peers who they are, again and again
//!   one of them belongs to a cluster and knows me as a member  -> I belong to it
//!   one of them belongs to a cluster and does not know me      -> I wait to be let in
//!   all of them are there, empty, with the same plan, and my id is the lowest
//!        -> I make the cluster's id, note who the others are, and begin its log; they are let in on contact
//! ```
//!
//! Only the lowest id ever begins a log, and only when it has seen everybody empty: so there is one log. When it
//! dies in between, it finds its cluster's id at the next start, asks everybody again, and goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::cluster::{Cluster, RaftHandle};
use crate::hello::{self, Facts, MeetError, Purpose, cluster_text};
use crate::identity::id_text;
use crate::types::Member;

/// Asks around until this node belongs to a cluster that has a log.
pub(crate) async fn run(cluster: Arc<Cluster>, raft: RaftHandle) {
    let mut pause = cluster.timing.election / 4;
    let mut heard = Heard::default();
    while !is_done(&cluster, &raft).await && cluster.no_part().is_none() {
        let facts = ask_all(&cluster).await;
        heard.log_news(&cluster, &facts);
        if may_begin(&cluster, &facts) {
            begin(&cluster, &raft, &facts).await;
            continue;
        }
        // Somebody may just have let this node in.
        tokio::time::sleep(pause).await;
        pause = (pause * 5 / 4).min(cluster.timing.election * 2);
    }
}

async fn is_done(cluster: &Cluster, raft: &RaftHandle) -> bool {
    // Let in: the log comes from the leader. The lowest id may have been stopped before it began the log.
    let let_in = cluster.id() != 0 && !is_lowest(cluster);
    let_in || raft.is_initialized().await.unwrap_or(true)
}

fn is_lowest(cluster: &Cluster) -> bool {
    cluster.plan.keys().next() == Some(&cluster.node)
}

/// What everybody else in the plan says of itself; who did not answer is absent.
async fn ask_all(cluster: &Cluster) -> BTreeMap<u64, Facts> {
    let others = cluster.plan.iter().filter(|(id, _)| **id != cluster.node);
    let asked = others.map(|(id, address)| async move {
        match hello::connect(cluster, *id, address, Purpose::Probe).await {
            Ok(conn) => Some((*id, conn.peer)),
            Err(MeetError::RefusedBy(refusal)) => {
                cluster.refused_by(*id, &refusal);
                None
            }
            Err(MeetError::Refuses { refusal, .. }) => {
                cluster.refuses(*id, &refusal);
                None
            }
            Err(MeetError::Io(_)) => None,
        }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

fn may_begin(cluster: &Cluster, facts: &BTreeMap<u64, Facts>) -> bool {
    let plan = cluster.plan_checksum();
    let ours = cluster.id();
    let empty = |facts: &Facts| {
        let free = facts.cluster == 0 || facts.cluster == ours;
        free && facts.last.is_none() && facts.plan == plan
    };
    is_lowest(cluster) && facts.len() + 1 == cluster.plan.len() && facts.values().all(empty)
}

async fn begin(cluster: &Cluster, raft: &RaftHandle, facts: &BTreeMap<u64, Facts>) {
    let id = cluster.found().await;
    for facts in facts.values() {
        cluster.book.meet(facts);
    }
    cluster.save_book().await;
    let member = |address: &String| Member { address: address.clone() };
    let members: BTreeMap<u64, Member> =
        cluster.plan.iter().map(|(id, address)| (*id, member(address))).collect();
    tracing::info!(node = cluster.node, cluster = %id_text(id), members = members.len(), "a new cluster begins");
    if let Err(error) = raft.initialize(members).await {
        tracing::error!(node = cluster.node, %error, "the new cluster did not begin");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// What was logged already.
#[derive(Default)]
struct Heard {
    last: BTreeMap<u64, String>,
}

impl Heard {
    fn log_news(&mut self, cluster: &Cluster, facts: &BTreeMap<u64, Facts>) {
        for (peer, facts) in facts {
            let says = describe(cluster, facts);
            if self.last.get(peer) != Some(&says) {
                tracing::info!(node = cluster.node, peer, says, "met a peer");
                self.last.insert(*peer, says);
            }
        }
    }
}

fn describe(cluster: &Cluster, facts: &Facts) -> String {
    let mut says = cluster_text(facts.cluster);
    if facts.cluster != 0 && !facts.member {
        says.push_str("; this node is not a member and waits to be let in");
    }
    if facts.cluster == 0 && facts.plan != cluster.plan_checksum() {
        says.push_str("; it was told other peers than this node: start all with the same ones");
    }
    says
}
