//! The state, and how an entry runs: first what is due, then the commands of each section, then a slice of a bulk
//! operation, then what offers are left.
//!
//! Decisions of single commands are in `commands`, moves between a job's states in `moves`.

use beanpole_raft::{BodyAddr, Payload};

use super::bulk::Bulks;
use super::decode::{Batch, ClientCommand, Command, DecodeError, NodeCommand, PolicyBytes, Section};
use super::gateways::Gateways;
use super::history::{Before, History};
use super::jobs::Jobs;
use super::offers::Offers;
use super::once::Once;
use super::policy::Policies;
use super::reserved::Reserved;
use super::runs::Runs;
use super::snapshot::Saving;
use super::tubes::{DEFAULT, TimeKey, Tube, Tubes};
use super::types::{Effects, Gateway, Mark, Outcome, Refused, RefusedWhy, SessionId, Totals};

/// The replicated state of all tubes and jobs.
pub struct Engine {
    /// Index of the last entry applied.
    pub(super) applied: u64,
    /// Highest stamp of any entry: drives delays and pauses. Microseconds.
    pub(super) stamp: u64,
    /// Highest lease clock value of any entry: drives TTR. Microseconds.
    pub(super) lease: u64,
    pub(super) draining: bool,
    /// The node that is being taken out of service, and may stop; 0 if none. Never two at once.
    pub(super) leaving: u32,
    pub(super) history: History,
    pub(super) mark: Mark,
    /// The entry being applied is to be marked with this number. Not part of the state.
    pub(super) marking: Option<u64>,
    /// The id of the last job put.
    pub(super) last_id: u64,
    /// Counts hand-outs and burials, for their order.
    pub(super) last_seq: u64,
    /// The birth number of the next tube.
    pub(super) next_born: u64,
    pub(super) totals: Totals,
    pub(super) jobs: Jobs,
    pub(super) tubes: Tubes,
    /// The first delayed job of each tube, by due stamp.
    pub(super) delayed: Runs<TimeKey>,
    /// Paused tubes by the end of their pause; the id is the tube's birth.
    pub(super) pauses: Runs<TimeKey>,
    pub(super) reserved: Reserved,
    pub(super) gateways: Gateways,
    /// What all members know to apply; see [`super::level`].
    pub(super) level: u32,
    /// Operations on many jobs, under way and done.
    pub(super) bulks: Bulks,
    pub(super) policies: Policies,
    pub(super) once: Once,
    /// The image being taken, if any. Not part of the state.
    pub(super) saving: Option<Box<Saving>>,
    /// Counts images begun. Not part of the state.
    pub(super) snapshots: u64,
    /// Counts entries since the process started. Not part of the state.
    pub(super) serial: u64,
    /// Kept for its memory between entries. Not part of the state.
    offers: Offers,
}

/// An entry being applied.
pub(super) struct Run<'a> {
    pub effects: &'a mut Effects,
    pub offers: Offers,
    index: u64,
    /// Where the next body is in the entry.
    body_at: u32,
    payload_len: usize,
}

impl Default for Engine {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine {
    /// The state before the first entry: one tube, `default`, and no job.
    #[must_use]
    pub fn new() -> Self {
        let mut engine = Self::empty();
        engine.create_tube(DEFAULT);
        engine
    }

    /// Not even the tube `default`: only for what a restore fills.
    pub(super) fn empty() -> Self {
        Engine {
            applied: 0,
            stamp: 0,
            lease: 0,
            draining: false,
            leaving: 0,
            history: History::default(),
            mark: Mark::default(),
            marking: None,
            last_id: 0,
            last_seq: 0,
            next_born: 0,
            totals: Totals::default(),
            jobs: Jobs::default(),
            tubes: Tubes::default(),
            delayed: Runs::default(),
            pauses: Runs::default(),
            reserved: Reserved::default(),
            gateways: Gateways::default(),
            level: 0,
            bulks: Bulks::default(),
            policies: Policies::default(),
            once: Once::default(),
            saving: None,
            snapshots: 0,
            serial: 0,
            offers: Offers::default(),
        }
    }

    /// Applies one entry and appends what came of it to `effects`.
    ///
    /// # Panics
    /// When the entry cannot be read: a newer release wrote it, and a node that skipped it would not be equal
    /// to the others any more. Also when `index` does not rise.
    pub fn apply(&mut self, index: u64, payload: &Payload, effects: &mut Effects) {
        assert!(index > self.applied, "entry {index} comes after entry {}", self.applied);
        self.applied = index;
        self.serial += 1;
        if let Err(error) = self.run(index, payload, effects) {
            panic!("entry {index} cannot be applied: {error}");
        }
    }

    fn run(&mut self, index: u64, payload: &Payload, effects: &mut Effects) -> Result<(), DecodeError> {
        let batch = Batch::open(payload)?;
        self.stamp = self.stamp.max(batch.stamp);
        self.lease = self.lease.max(batch.lease);
        let offers = std::mem::take(&mut self.offers);
        let before = Before::of(effects);
        let (body_at, payload_len) = (batch.bodies_at, payload.len());
        let mut run = Run { effects, offers, index, body_at, payload_len };
        self.take_offers(&mut run, &batch)?;
        self.fire_due(&mut run);
        self.serve_freed(&mut run);
        let mut reader = batch.commands;
        for _ in 0..batch.sections {
            let section = reader.section()?;
            let mut live = self.admit(&mut run, &section);
            for _ in 0..section.commands {
                let command = reader.command()?;
                live = self.execute(&mut run, &section, live, command)?;
                self.serve_freed(&mut run);
            }
        }
        reader.end()?;
        match payload.len() - run.body_at as usize {
            0 => {}
            left => return Err(DecodeError::LeftOver(left)),
        }
        self.work_on_bulks(&mut run);
        self.end_offers(&mut run);
        self.note_tubes(&mut run);
        let Run { mut offers, effects, .. } = run;
        self.note_history(effects, before);
        offers.clear();
        self.offers = offers;
        Ok(())
    }

    /// Whether a section is to be executed; if it is, its sequence number is taken.
    fn admit(&mut self, run: &mut Run<'_>, section: &Section) -> bool {
        let Section { gateway, sequence, .. } = *section;
        if gateway.epoch == 0 {
            return true;
        }
        let refuse = |last, why| Refused { gateway, sequence, last, why };
        let refused = match self.gateways.live_mut(gateway) {
            None => refuse(0, RefusedWhy::NotLive),
            Some(life) if sequence <= life.sequence => refuse(life.sequence, RefusedWhy::Duplicate),
            Some(life) if sequence > life.sequence + 1 => refuse(life.sequence, RefusedWhy::Gap),
            Some(life) => {
                life.sequence = sequence;
                run.effects.sequences.push((gateway, sequence));
                return true;
            }
        };
        run.effects.refused.push(refused);
        false
    }

    /// Runs one command, if its section is live; answers whether it still is afterwards.
    fn execute(
        &mut self,
        run: &mut Run<'_>,
        section: &Section,
        live: bool,
        command: Command<'_>,
    ) -> Result<bool, DecodeError> {
        let gateway = section.gateway;
        match command {
            Command::Client(_, _) if gateway.epoch == 0 => Err(DecodeError::OutsideLife),
            Command::Client(conn, command) => {
                // Also if it has no effect, the body is there and must be passed by.
                let body = run.next_body(&command)?;
                if live {
                    let session = SessionId { node: gateway.node, epoch: gateway.epoch, conn };
                    let outcome = self.client_command(run, session, command, body);
                    run.effects.outcomes.extend(outcome.map(|outcome| (session, outcome)));
                }
                Ok(live)
            }
            Command::Node(command) if live => {
                self.node_command(run, gateway, command);
                Ok(gateway.epoch == 0 || self.gateways.is_live(gateway))
            }
            Command::Node(_) => Ok(false),
        }
    }

    fn node_command(&mut self, run: &mut Run<'_>, gateway: Gateway, command: NodeCommand<'_>) {
        match command {
            NodeCommand::GatewayUp { nonce } => self.gateway_up(run, gateway.node, nonce),
            NodeCommand::GatewayGone { gateway } => self.gateway_gone(run, gateway),
            NodeCommand::TubeGone { tube } => self.tube_gone(run, tube),
            NodeCommand::SetDraining { on } => self.draining = on,
            NodeCommand::Mark { nonce } => self.marking = Some(nonce),
            NodeCommand::Leave { node, on } => self.leave(node, on),
            NodeCommand::BodyLost { id, index, offset } => self.body_lost(run, id, (index, offset)),
            NodeCommand::Level { level } => self.raise_level(level),
            NodeCommand::Bulk(order) => self.begin_bulk(&order),
            NodeCommand::OnceWindow { window_us, keys } => self.set_once(window_us, keys),
            NodeCommand::Policy { pattern, policy } => {
                self.set_policy(run, pattern, policy.map(PolicyBytes::read));
            }
        }
    }

    fn client_command(
        &mut self,
        run: &mut Run<'_>,
        session: SessionId,
        command: ClientCommand<'_>,
        body: BodyAddr,
    ) -> Option<Outcome> {
        Some(match command {
            ClientCommand::Put(put) => self.put(run, session, &put, body),
            ClientCommand::ReserveJob { id } => self.reserve_job(run, session, id),
            ClientCommand::Delete { id } => self.delete(run, session, id),
            ClientCommand::Release { id, pri, delay_s } => self.release(run, session, id, pri, delay_s),
            ClientCommand::Bury { id, pri } => self.bury(run, session, id, pri),
            ClientCommand::Touch { id } => self.touch(run, session, id),
            ClientCommand::Kick { tube, bound } => self.kick(run, tube, bound),
            ClientCommand::KickJob { id } => self.kick_job(run, id),
            ClientCommand::PauseTube { tube, delay_s, referenced } => {
                self.pause_tube(run, tube, delay_s, referenced)
            }
            ClientCommand::Noop => Outcome::Noop,
            ClientCommand::SessionClosed { undelivered } => {
                self.session_closed(run, session, undelivered);
                return None;
            }
            ClientCommand::Unreserve { want, id } => {
                self.unreserve(run, session, want, id);
                return None;
            }
        })
    }

    /// A node is about to leave service, or is back. While one is leaving no other may.
    fn leave(&mut self, node: u32, on: bool) {
        if on && self.leaving == 0 {
            self.leaving = node;
        } else if !on && self.leaving == node {
            self.leaving = 0;
        }
    }

    /// Reports tubes that got ready jobs or lost their last one, as they are at the end of the entry.
    fn note_tubes(&mut self, run: &mut Run<'_>) {
        for slot in run.offers.ready_tubes.drain(..) {
            if let Some(tube) = self.tubes.if_there(slot)
                && tube.next_ready().is_some()
            {
                run.effects.ready_tubes.push(tube.name.clone());
            }
        }
        for slot in run.offers.lost_tubes.drain(..) {
            if let Some(tube) = self.tubes.if_there(slot)
                && tube.jobs() == 0
                && &*tube.name != DEFAULT
            {
                run.effects.emptied.push(tube.name.clone());
            }
        }
    }

    /// A new tube, with the next birth number.
    pub(super) fn create_tube(&mut self, name: &str) -> u32 {
        let born = self.next_born;
        self.next_born += 1;
        self.totals.tubes += 1;
        let policy = self.policies.of(name);
        self.tubes.insert(Tube { name: name.into(), born, policy, ..Tube::default() })
    }

    /// The tube of that name, made if there is none; offers that wait for it find it from now on.
    pub(super) fn tube_for(&mut self, run: &mut Run<'_>, name: &str) -> u32 {
        if let Some(slot) = self.tubes.find(name) {
            return slot;
        }
        let slot = self.create_tube(name);
        self.resolve_offers(run, name, slot);
        slot
    }
}

impl Run<'_> {
    /// The address of the command's body, which is empty for all but puts.
    fn next_body(&mut self, command: &ClientCommand<'_>) -> Result<BodyAddr, DecodeError> {
        let offset = self.body_at;
        let len = if let ClientCommand::Put(put) = command { put.body_len } else { 0 };
        let end = offset.checked_add(len).ok_or(DecodeError::Body)?;
        if end as usize > self.payload_len {
            return Err(DecodeError::Body);
        }
        self.body_at = end;
        Ok(BodyAddr { index: self.index, offset, len })
    }
}
