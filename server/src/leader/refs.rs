//! Which tubes some gateway's clients use or watch, and how many. A tube that nobody refers to and that holds nothing is ended
//! by the leader; as long as a live gateway has not told which tubes it refers to, none is.
//!
//! That a node refers to a tube is told at once; how many of its clients do, within half a second.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::queue::Engine;

/// How many of a node's clients use and watch a tube.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    /// Their `put` goes there.
    pub using: u32,
    /// Their `reserve` looks there.
    pub watching: u32,
}

impl Clients {
    /// Whether there are none.
    pub fn is_none(self) -> bool {
        self.using == 0 && self.watching == 0
    }
}

/// Gateways' references to tubes.
#[derive(Default)]
pub(super) struct Refs {
    nodes: HashMap<Arc<str>, Vec<(u32, Clients)>>,
    /// Nodes that have told all their references.
    told: BTreeSet<u32>,
}

impl Refs {
    /// So many of a node's clients refer to the tube from now on. Answers whether nobody does now.
    pub fn set(&mut self, node: u32, tube: &Arc<str>, clients: Clients) -> bool {
        if clients.is_none() {
            return self.remove(node, tube);
        }
        let nodes = self.nodes.entry(tube.clone()).or_default();
        match nodes.iter_mut().find(|(other, _)| *other == node) {
            Some((_, known)) => *known = clients,
            None => nodes.push((node, clients)),
        }
        false
    }

    fn remove(&mut self, node: u32, tube: &str) -> bool {
        let Some(nodes) = self.nodes.get_mut(tube) else { return true };
        nodes.retain(|(other, _)| *other != node);
        let free = nodes.is_empty();
        if free {
            self.nodes.remove(tube);
        }
        free
    }

    /// The clients of all nodes but this one that refer to the tube.
    pub fn elsewhere(&self, node: u32, tube: &str) -> Clients {
        let others = self.nodes.get(tube).into_iter().flatten().filter(|(other, _)| *other != node);
        others.fold(Clients::default(), |sum, (_, clients)| Clients {
            using: sum.using.saturating_add(clients.using),
            watching: sum.watching.saturating_add(clients.watching),
        })
    }

    /// All tubes that some client refers to, in no particular order.
    pub fn tubes(&self) -> impl Iterator<Item = &Arc<str>> {
        self.nodes.keys()
    }

    /// The node has told all tubes that its clients refer to.
    pub fn set_told(&mut self, node: u32) {
        self.told.insert(node);
    }

    /// Forgets what a node told.
    pub fn forget(&mut self, node: u32) {
        self.told.remove(&node);
        self.nodes.retain(|_, nodes| {
            nodes.retain(|(other, _)| *other != node);
            !nodes.is_empty()
        });
    }

    /// Whether it is certain that nobody refers to the tube.
    pub fn is_free(&self, engine: &Engine, tube: &str) -> bool {
        tube != "default" && !self.nodes.contains_key(tube) && self.all_told(engine)
    }

    /// Whether every live gateway has told its references.
    pub fn all_told(&self, engine: &Engine) -> bool {
        engine.live_gateways().all(|gateway| self.told.contains(&gateway.node))
    }
}
