//! Which tubes some gateway's clients use or watch. A tube that nobody refers to and that holds nothing is ended by the
//! leader; as long as a live gateway has not told which tubes it refers to, none is.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::queue::Engine;

/// Gateways' references to tubes.
#[derive(Default)]
pub(super) struct Refs {
    nodes: HashMap<Arc<str>, Vec<u32>>,
    /// Nodes that have told all their references.
    told: BTreeSet<u32>,
}

impl Refs {
    /// A node's clients refer to the tube from now on, or do no longer. Answers whether nobody does now.
    pub fn set(&mut self, node: u32, tube: &str, refers: bool) -> bool {
        if refers {
            let nodes = match self.nodes.get_mut(tube) {
                Some(nodes) => nodes,
                None => self.nodes.entry(tube.into()).or_default(),
            };
            if !nodes.contains(&node) {
                nodes.push(node);
            }
            return false;
        }
        if let Some(nodes) = self.nodes.get_mut(tube) {
            nodes.retain(|other| *other != node);
            if nodes.is_empty() {
                self.nodes.remove(tube);
            }
        }
        !self.nodes.contains_key(tube)
    }

    /// The node has told all tubes that its clients refer to.
    pub fn set_told(&mut self, node: u32) {
        self.told.insert(node);
    }

    /// Forgets what a node told.
    pub fn forget(&mut self, node: u32) {
        self.told.remove(&node);
        self.nodes.retain(|_, nodes| {
            nodes.retain(|other| *other != node);
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
