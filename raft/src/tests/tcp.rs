//! Three nodes on real sockets and real time.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;

use super::machine::{TestMachine, put};
use super::rig::{PATIENCE, options, within};
use crate::disk::FaultDisk;
use crate::{Node, Outcome, Peering, TcpNet};

/// They form a cluster, commit entries of all sizes, and go on when the leader is shut down.
#[tokio::test]
async fn three_nodes() {
    let listeners: BTreeMap<u64, TcpListener> =
        (1..=3).map(|id| (id, TcpListener::bind("127.0.0.1:0").unwrap())).collect();
    let peers: BTreeMap<u64, String> =
        listeners.iter().map(|(id, listener)| (*id, listener.local_addr().unwrap().to_string())).collect();
    let mut nodes = BTreeMap::new();
    for (id, listener) in listeners {
        let mut options = options(&FaultDisk::new());
        options.node_id = id;
        let net = Arc::new(TcpNet::from_std(listener).unwrap());
        options.peering = Some(Peering { net, address: peers[&id].clone(), peers: peers.clone() });
        let (machine, seen) = TestMachine::new();
        nodes.insert(id, (within(Node::start(options, machine)).await.unwrap(), seen));
    }
    for _ in 0..2 {
        let leader = ready(&nodes).await;
        let mut last = 0;
        for len in [10, 0, 3_000_000, 500] {
            let proposal = nodes[&leader].0.propose(put(&vec![7; len])).await.unwrap();
            let Outcome::Committed { index } = within(proposal).await else { panic!("not committed") };
            last = index;
        }
        for (node, _) in nodes.values() {
            let applied = async {
                while node.status().applied < last {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(PATIENCE, applied).await.expect("everybody applies");
        }
        let (node, _) = nodes.remove(&leader).unwrap();
        within(node.shutdown()).await;
    }
}

async fn ready(nodes: &BTreeMap<u64, (Node, Arc<parking_lot::Mutex<super::machine::Seen>>)>) -> u64 {
    let all = nodes.iter().map(|(id, (node, _))| {
        let mut watched = node.watch_leadership();
        Box::pin(async move {
            watched.wait_for(|view| view.ready).await.unwrap();
            *id
        })
    });
    within(futures_util::future::select_all(all)).await.0
}
