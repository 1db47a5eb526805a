//! The gateway's way to the leader: batches, wants and references to tubes as one ordered stream of messages.
//!
//! A stream breaks when the leader dies, or when another takes its place. Then everything that is not known to have
//! applied is told again, in order, to the next one; the engine executes each batch once, by its number.

use std::sync::Arc;

use beanpole_raft::Payload;

use super::lease::Standing;
use super::session::Blocked;
use super::{BATCHES_UNDER_WAY_MAX, Gateway};
use crate::leader::{Clients, Leader, ToLeader};
use crate::queue::{self, BatchBuilder};

/// A batch that was closed and has not applied.
pub(super) struct UnderWay {
    /// It may make a job ready.
    pub may_ready: bool,
    batch: Payload,
}

impl UnderWay {
    /// What it holds.
    pub fn bytes(&self) -> usize {
        self.batch.len()
    }
}

impl Gateway {
    /// This node is one of several from now on: reads ask the leader, and the lease counts.
    pub fn join_cluster(&mut self) {
        self.clustered = true;
        self.clocks.advance();
        self.clocks.need_quorum();
        self.lease.begin(self.clocks.monotonic());
    }

    /// Whether other nodes have a say.
    pub fn is_clustered(&self) -> bool {
        self.clustered
    }

    /// Begins this process's life as a gateway, known by a random number.
    pub fn begin(&mut self, nonce: u64) {
        self.nonce = Some(nonce);
        self.tell_announcement();
    }

    /// Ends this gateway's life in order: what its clients hold becomes ready at once, not only when the cluster misses it.
    pub fn retire(&mut self) {
        if let Some(epoch) = self.epoch {
            let gateway = queue::Gateway { node: self.node, epoch };
            self.nonce = None;
            self.open_batch().builder.gateway_gone(gateway);
        }
    }

    /// A leader takes messages from now on: tells it everything that it must know.
    pub fn connect_leader(&mut self) {
        self.connected = true;
        self.outbox.clear();
        self.tubes.take_untold();
        let mut referred: Vec<_> =
            self.tubes.iter().map(|tube| (tube.shared_name(), tube.clients())).collect();
        referred.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        self.outbox.extend(referred.into_iter().map(|(tube, clients)| ToLeader::Refers { tube, clients }));
        self.tell(ToLeader::Told);
        self.tell_announcement();
        let batches = self.under_way.iter().map(|under_way| ToLeader::Batch(under_way.batch.clone()));
        self.outbox.extend(batches);
        self.tell_wants_again();
        self.ask_barriers_again();
    }

    /// No leader takes messages any longer.
    pub fn disconnect_leader(&mut self) {
        self.connected = false;
        self.outbox.clear();
        self.ask_barriers_again();
    }

    pub(super) fn tell(&mut self, message: ToLeader) {
        if self.connected {
            self.outbox.push_back(message);
        }
    }

    /// Announces the gateway's life, unless that is known to have applied.
    pub(super) fn tell_announcement(&mut self) {
        let Some(nonce) = self.nonce.filter(|_| self.epoch.is_none()) else { return };
        let mut builder = BatchBuilder::new(0, 0);
        builder.section(queue::Gateway { node: self.node, epoch: 0 }, 0);
        builder.gateway_up(nonce);
        self.tell(ToLeader::Batch(builder.finish()));
    }

    /// A client began to use or watch a tube, which may be the first to do so, and with that perhaps left another.
    pub(super) fn tell_refers(&mut self, tube: &str, known: bool, unused: Option<Arc<str>>) {
        if !known && let Some(tube) = self.tubes.find(tube) {
            let tube = self.tubes.get(tube);
            let (tube, clients) = (tube.shared_name(), tube.clients());
            self.tell(ToLeader::Refers { tube, clients });
        }
        self.tell_unused(unused);
    }

    /// Tells how many clients use and watch each tube, where that has changed. Called now and then: clients that poll
    /// change it with every command.
    pub fn tell_clients(&mut self) {
        for (tube, clients) in self.tubes.take_untold() {
            self.tell(ToLeader::Refers { tube, clients });
        }
    }

    /// Nobody here uses or watches the tube any longer.
    pub(super) fn tell_unused(&mut self, unused: Option<Arc<str>>) {
        if let Some(tube) = unused
            && self.tubes.find(&tube).is_none()
        {
            self.tell(ToLeader::Refers { tube, clients: Clients::default() });
        }
    }

    /// Whether the leader has something to be told now.
    pub fn has_messages(&self) -> bool {
        self.connected && (!self.outbox.is_empty() || self.may_close_batch())
    }

    /// Whether reads wait that the leader is to be asked about.
    pub fn needs_barrier(&self) -> bool {
        self.connected && self.unplaced > 0
    }

    fn may_close_batch(&self) -> bool {
        self.open.is_some() && self.under_way.len() < BATCHES_UNDER_WAY_MAX
    }

    /// The next message for the leader. When there is none, and not too much is under way, closes the open batch and gives that.
    pub fn next_message(&mut self) -> Option<ToLeader> {
        if !self.connected {
            return None;
        }
        if let Some(message) = self.outbox.pop_front() {
            return Some(message);
        }
        if !self.may_close_batch() {
            return None;
        }
        let open = self.open.take()?;
        self.proposed += 1;
        for conn in std::mem::take(&mut self.stalled) {
            self.touch_session(conn, true);
        }
        let batch = open.builder.finish();
        self.under_way.push_back(UnderWay { may_ready: open.may_ready, batch: batch.clone() });
        Some(ToLeader::Batch(batch))
    }

    /// In how many microseconds a leader on this node is to be called.
    pub fn leader_tick_in_us(&self, leader: &Leader) -> Option<u64> {
        leader.next_tick_in_us(&self.engine, &self.clocks)
    }

    /// Whether a leader on this node must be called before the alarm.
    pub fn alarm_for(&self, leader: &Leader) -> bool {
        self.leader_tick_in_us(leader).is_some_and(|us| self.alarm_is_after(us))
    }

    // ---- the lease ----

    /// A renewal that was sent at `sent`, in monotonic microseconds, was answered by a leader that has its quorum.
    pub fn renewed(&mut self, sent: u64) {
        self.lease.renew(sent);
        self.clocks.confirm(sent);
    }

    /// Monotonic microseconds now.
    pub fn now(&mut self) -> u64 {
        self.clocks.advance();
        self.clocks.monotonic()
    }

    /// This node's own wall clock, in microseconds since the Unix epoch.
    pub fn wall(&self) -> u64 {
        self.clocks.own_wall()
    }

    /// Whether the time is known from more than this node's own wall clock.
    pub fn is_sure_of_time(&self, voters: usize) -> bool {
        self.clocks.is_sure(voters)
    }

    /// Another node's wall clock, as it told a moment ago.
    pub fn hear_wall(&mut self, node: u32, wall_us: u64) {
        self.clocks.hear_wall(node, wall_us);
    }

    /// The clocks of the leader of `term`, as it told them a moment ago.
    pub fn hear_clocks(&mut self, term: u64, stamp: u64, lease: u64) {
        self.clocks.hear(term, stamp, lease);
    }

    /// Entries of this term apply from now on.
    pub fn term_began(&mut self, term: u64) {
        self.clocks.term_began(term);
    }

    /// Another node leads, or none.
    pub fn leave_office(&mut self) {
        self.clocks.leave_office();
    }

    pub(super) fn standing(&self) -> Standing {
        self.lease.standing(self.clocks.monotonic())
    }

    /// Whether a job may be given to a client.
    pub(super) fn may_hand_out(&mut self) -> bool {
        self.clocks.advance();
        self.standing() == Standing::Good
    }

    /// Whether commands can no longer wait for an answer.
    pub fn is_cut_off(&self) -> bool {
        self.standing() == Standing::CutOff
    }

    /// Closes the connections that this node may not keep without a leader.
    pub(super) fn heed_lease(&mut self) {
        let standing = self.standing();
        if standing == Standing::Good {
            return;
        }
        let epoch = self.epoch;
        let held: Vec<_> = self
            .sessions
            .iter()
            .filter(|session| !session.dead)
            .filter(|session| {
                let id = epoch.map(|epoch| queue::SessionId { node: self.node, epoch, conn: session.conn.0 });
                let holds = id.is_some_and(|id| self.engine.session_holds(id));
                let awaits = matches!(session.blocked, Blocked::Reserving(_));
                holds || awaits || standing == Standing::CutOff && session.is_owed()
            })
            .map(|session| session.conn)
            .collect();
        if !held.is_empty() {
            tracing::warn!(
                clients = held.len(),
                ?standing,
                "no leader with a quorum answers: clients are disconnected"
            );
        }
        for conn in held {
            self.close(conn);
        }
    }
}
