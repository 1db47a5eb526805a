//! Gateways' lives, and the end of sessions.

use std::collections::BTreeMap;

use super::decode::Wants;
use super::engine::{Engine, Run};
use super::types::{Gateway, GatewayUp, SessionId};

/// What the state knows of one node's gateway.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Life {
    /// Log index of the `GatewayUp`.
    pub epoch: u64,
    /// What it announced itself with.
    pub nonce: u64,
    /// The last section executed.
    pub sequence: u64,
    /// Its sessions may act.
    pub live: bool,
}

/// One life for each node that ever announced itself: the last.
#[derive(Default)]
pub(super) struct Gateways {
    lives: BTreeMap<u32, Life>,
}

impl Gateways {
    pub fn of_node(&self, node: u32) -> Option<&Life> {
        self.lives.get(&node)
    }

    pub fn live_mut(&mut self, gateway: Gateway) -> Option<&mut Life> {
        self.lives.get_mut(&gateway.node).filter(|life| life.live && life.epoch == gateway.epoch)
    }

    pub fn is_live(&self, gateway: Gateway) -> bool {
        self.lives.get(&gateway.node).is_some_and(|life| life.live && life.epoch == gateway.epoch)
    }

    pub fn set(&mut self, node: u32, life: Life) {
        self.lives.insert(node, life);
    }

    /// By node.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Life)> {
        self.lives.iter().map(|(node, life)| (*node, life))
    }
}

impl Engine {
    /// Begins a life of the node's gateway, unless this nonce did so before.
    pub(super) fn gateway_up(&mut self, run: &mut Run<'_>, node: u32, nonce: u64) {
        let before = self.gateways.of_node(node).copied();
        let epoch = match before {
            Some(life) if life.nonce == nonce => life.epoch,
            Some(_) | None => {
                let epoch = self.applied;
                if let Some(life) = before {
                    self.gateway_gone(run, Gateway { node, epoch: life.epoch });
                }
                self.gateways.set(node, Life { epoch, nonce, sequence: 0, live: true });
                epoch
            }
        };
        run.effects.gateways_up.push(GatewayUp { node, nonce, epoch });
    }

    /// Ends a gateway's life: what its sessions hold becomes ready, as when they disconnect.
    pub(super) fn gateway_gone(&mut self, run: &mut Run<'_>, gateway: Gateway) {
        let Some(life) = self.gateways.live_mut(gateway) else { return };
        life.live = false;
        run.offers.close_gateway(gateway);
        let held = self.reserved.of_node(gateway.node).map(|key| key.id()).collect();
        self.give_back(run, held, None);
    }

    /// Ends a session: what it holds becomes ready at once. No counter changes, except that hand-outs which
    /// never reached the client never happened.
    pub(super) fn session_closed(&mut self, run: &mut Run<'_>, session: SessionId, undelivered: Wants<'_>) {
        run.offers.close_session(session);
        let held = self.reserved.of_session(session.node, session.conn).map(|key| key.id()).collect();
        self.give_back(run, held, Some(undelivered));
    }

    /// In the order in which the sessions got them, as beanstalkd does.
    fn give_back(&mut self, run: &mut Run<'_>, ids: Vec<u64>, undelivered: Option<Wants<'_>>) {
        let found = ids.into_iter().map(|id| (id, self.jobs.find(id).expect("a held job is there")));
        let mut held: Vec<(u64, u64, u32)> =
            found.map(|(id, slot)| (self.jobs.hold(slot).seq, id, slot)).collect();
        held.sort_unstable();
        for (_, id, slot) in held {
            let hold = *self.jobs.hold(slot);
            if hold.deadline <= self.lease {
                // It has timed out, though that is not fired yet.
                self.expire(run, id, slot);
                continue;
            }
            let undone = undelivered.is_some_and(|wants| hold.want != 0 && wants.contains(hold.want));
            self.return_to_ready(run, id, slot, undone);
        }
    }
}
