//! Who belongs to the cluster, as the newest membership in the log says.

use std::collections::BTreeSet;
use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver;

use crate::cluster::{Cluster, RaftHandle};

/// Keeps a line to every member and none to anybody else, and notes who was removed, until the node stops.
pub(crate) async fn follow(cluster: Arc<Cluster>, raft: RaftHandle) {
    let mut formed = cluster.watch_formed();
    if formed.wait_for(|formed| *formed).await.is_err() {
        return;
    }
    let mut server = raft.server_metrics();
    let mut effective = None;
    let mut members = BTreeSet::new();
    loop {
        let (newest, committed) = {
            let metrics = server.borrow_and_update();
            (metrics.membership_config.clone(), metrics.committed_membership_config.clone())
        };
        if effective != Some(*newest.log_id()) {
            effective = Some(*newest.log_id());
            let nodes = newest.membership().nodes();
            cluster.keep_lines(&nodes.map(|(id, member)| (*id, member.address.clone())).collect());
        }
        // A removal counts when it is committed: before that it can still be undone.
        let now: BTreeSet<u64> = committed.membership().nodes().map(|(id, _)| *id).collect();
        note_removed(&cluster, members.difference(&now).copied().collect()).await;
        members = now;
        if server.changed().await.is_err() {
            return;
        }
    }
}

async fn note_removed(cluster: &Cluster, gone: Vec<u64>) {
    let mut news = false;
    for node in gone {
        tracing::info!(node = cluster.node, removed = node, "a node was removed from the cluster");
        news |= cluster.book.remove(node);
    }
    if news {
        cluster.save_book().await;
    }
}
