//! Several nodes in one thread, on disks and a network in memory, by a paused clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::machine::{Seen, TestMachine, put};
use super::rig::{PATIENCE, options, within};
use crate::disk::FaultDisk;
use crate::{BodyCheck, Leadership, Node, Options, Outcome, Peering, SimHub};

/// A node that can be started and killed.
pub(crate) struct Place {
    pub(crate) disk: FaultDisk,
    pub(crate) node: Option<Node>,
    pub(crate) seen: Arc<Mutex<Seen>>,
}

/// The nodes and their network.
pub(crate) struct Rack {
    pub(crate) hub: SimHub,
    pub(crate) places: BTreeMap<u64, Place>,
    /// What every node is told to begin with.
    pub(crate) plan: BTreeMap<u64, String>,
    /// Log kept behind a snapshot, in bytes, when it is not as usual.
    pub(crate) retention: Option<u64>,
    /// How bodies are told to be whole.
    pub(crate) check: Option<BodyCheck>,
}

pub(crate) fn address(id: u64) -> String {
    format!("node{id}:1")
}

/// Waits until something holds, but not for ever.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

impl Rack {
    /// A plan of nodes 1 to `count`, none of them started.
    pub(crate) fn new(count: u64) -> Self {
        let plan = (1..=count).map(|id| (id, address(id))).collect();
        Self { hub: SimHub::new(), places: BTreeMap::new(), plan, retention: None, check: None }
    }

    /// Nodes 1 to `count`, started, with a leader that is ready.
    pub(crate) async fn formed(count: u64) -> (Self, u64) {
        let mut rack = Self::new(count);
        for id in 1..=count {
            rack.start(id).await;
        }
        let leader = rack.leader().await;
        (rack, leader)
    }

    pub(crate) fn options(&self, id: u64, disk: &FaultDisk) -> Options {
        let mut options = options(disk);
        options.node_id = id;
        options.inline = true;
        options.segment_bytes = 256 << 10;
        if let Some(retention) = self.retention {
            options.log_retention_bytes = retention;
        }
        options.body_check = self.check;
        let net = self.hub.net(&address(id));
        options.peering = Some(Peering { net, address: address(id), peers: self.plan.clone() });
        options
    }

    /// Starts a node, on the disk it had if it had one.
    pub(crate) async fn start(&mut self, id: u64) {
        let disk = self.places.get(&id).map_or_else(FaultDisk::new, |place| place.disk.clone());
        let options = self.options(id, &disk);
        let (machine, seen) = TestMachine::new();
        let node = within(Node::start(options, machine)).await.unwrap();
        self.places.insert(id, Place { disk, node: Some(node), seen });
    }

    /// Kills a node: its connections close, what it wrote stays.
    pub(crate) fn kill(&mut self, id: u64) {
        let place = self.places.get_mut(&id).unwrap();
        self.hub.crash(&address(id));
        place.node = None;
        place.disk = place.disk.kill();
    }

    /// Cuts a node's power: its connections close, and of what it had not synced some is lost, by `seed`.
    pub(crate) fn cut_power(&mut self, id: u64, seed: u64) {
        let place = self.places.get_mut(&id).unwrap();
        self.hub.crash(&address(id));
        place.disk = place.disk.power_cut(seed);
        place.node = None;
    }

    pub(crate) fn node(&self, id: u64) -> &Node {
        self.places[&id].node.as_ref().unwrap()
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = (u64, &Node)> {
        self.places.iter().filter_map(|(id, place)| Some((*id, place.node.as_ref()?)))
    }

    pub(crate) fn leadership(&self, id: u64) -> Leadership {
        *self.node(id).watch_leadership().borrow()
    }

    /// Waits for a leader that all running nodes agree on.
    pub(crate) async fn leader(&self) -> u64 {
        let running: Vec<u64> = self.running().map(|(id, _)| id).collect();
        self.leader_of(&running).await
    }

    /// Waits for a leader that these nodes agree on.
    pub(crate) async fn leader_of(&self, ids: &[u64]) -> u64 {
        let agreed = || {
            let leader = ids.iter().copied().find(|id| self.leadership(*id).ready)?;
            let term = self.leadership(leader).term;
            let agrees = |view: Leadership| view.leader == Some(leader) && view.term == term;
            ids.iter().all(|id| agrees(self.leadership(*id))).then_some(leader)
        };
        until("a leader that is agreed on", || agreed().is_some()).await;
        agreed().unwrap()
    }

    /// Proposes a body and waits until it is committed. A leader that has just lost touch with its followers
    /// refuses for a moment: then it is proposed again.
    pub(crate) async fn commit(&self, id: u64, body: &[u8]) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match within(self.node(id).propose(put(body)).await.unwrap()).await {
                Outcome::Committed { index } => return index,
                Outcome::NotProposed { .. } if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                other @ (Outcome::NotProposed { .. } | Outcome::Unknown) => panic!("{other:?}"),
            }
        }
    }

    /// Waits until all running nodes have applied `index` and asserts that their states are equal.
    pub(crate) async fn settled(&self, index: u64) {
        let running: Vec<u64> = self.running().map(|(id, _)| id).collect();
        let applied = |id: &u64| self.node(*id).status().applied >= index;
        until("everybody has applied", || running.iter().all(applied)).await;
        let live = |id: &u64| self.places[id].seen.lock().live.clone();
        for id in &running {
            assert_eq!(live(id), live(&running[0]), "node {id} differs");
        }
    }
}
