//! Entries as plain data: what the tests generate, what the model applies, and what becomes a batch for the
//! engine.

use beanpole::queue::{
    BODY_OVERHEAD, BatchBuilder, BulkOrder, BulkVerb, Gateway, JobState, Policy, SessionId, States,
};
use beanpole_raft::{BodyAddr, Payload};
use bytes::Bytes;

/// One command, as the batch builder takes it.
#[derive(Clone, Debug)]
pub enum Cmd {
    Up { nonce: u64 },
    Gone { gateway: Gateway },
    Put { conn: u64, tube: String, pri: u32, delay: u32, ttr: u32, bytes: usize },
    ReserveJob { conn: u64, id: u64 },
    Delete { conn: u64, id: u64 },
    Release { conn: u64, id: u64, pri: u32, delay: u32 },
    Bury { conn: u64, id: u64, pri: u32 },
    Touch { conn: u64, id: u64 },
    Kick { conn: u64, tube: String, bound: u32 },
    KickJob { conn: u64, id: u64 },
    Pause { conn: u64, tube: String, delay: u32, referenced: bool },
    Closed { conn: u64, undelivered: Vec<u64> },
    Unreserve { conn: u64, want: u64, id: u64 },
    TubeGone { tube: String },
    Draining { on: bool },
    Level { level: u32 },
    Bulk(Bulk),
    PutOnce { conn: u64, key: String, tube: String, bytes: usize },
    OnceWindow { window_us: u64, keys: u64 },
    Policy { pattern: String, policy: Option<Policy> },
    Noop { conn: u64 },
    Lost { id: u64, body: BodyAddr },
}

/// An operation on many jobs.
#[derive(Clone, Debug)]
pub struct Bulk {
    pub nonce: u64,
    pub verb: BulkVerb,
    pub states: Vec<JobState>,
    pub older_us: u64,
    pub limit: u64,
    pub tube: String,
    pub to: String,
}

impl Bulk {
    /// All jobs of a tube.
    pub fn all(nonce: u64, verb: BulkVerb, tube: &str, to: &str) -> Self {
        let states = vec![JobState::Ready, JobState::Delayed, JobState::Buried];
        Bulk { nonce, verb, states, older_us: 0, limit: u64::MAX, tube: tube.into(), to: to.into() }
    }

    fn order(&self) -> BulkOrder<'_> {
        let states = self.states.iter().fold(States::default(), |all, state| all.and(States::only(*state)));
        let Bulk { nonce, verb, older_us, limit, .. } = *self;
        BulkOrder { nonce, verb, states, older_us, limit, tube: &self.tube, to: &self.to }
    }
}

/// A gateway's section.
#[derive(Clone, Debug)]
pub struct Sect {
    pub gateway: Gateway,
    pub sequence: u64,
    pub commands: Vec<Cmd>,
}

/// A want that may be served.
#[derive(Clone, Debug)]
pub struct Offered {
    pub session: SessionId,
    pub want: u64,
    pub tubes: Vec<String>,
}

/// One entry.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    pub stamp: u64,
    pub lease: u64,
    pub sections: Vec<Sect>,
    pub offers: Vec<Offered>,
}

impl Entry {
    /// As the log would carry it.
    pub fn payload(&self) -> Payload {
        let mut batch = BatchBuilder::new(self.stamp, self.lease);
        for section in &self.sections {
            batch.section(section.gateway, section.sequence);
            for command in &section.commands {
                append(&mut batch, command);
            }
        }
        for offer in &self.offers {
            batch.offer(offer.session, offer.want, offer.tubes.iter().map(String::as_bytes));
        }
        batch.finish()
    }

    /// Where the bodies of its puts are, worked out apart from the engine.
    pub fn bodies(&self, index: u64, payload: &Payload) -> Vec<BodyAddr> {
        let prefix = payload.slice(4, 4);
        let mut offset = 8 + u32::from_le_bytes(prefix.as_ref().try_into().unwrap());
        let mut bodies = Vec::new();
        for command in self.sections.iter().flat_map(|section| &section.commands) {
            if let Cmd::Put { bytes, .. } = command {
                let len = (bytes + BODY_OVERHEAD) as u32;
                bodies.push(BodyAddr { index, offset, len });
                offset += len;
            }
        }
        bodies
    }
}

/// A body whose bytes tell its length.
pub fn body(bytes: usize) -> Bytes {
    let mut body: Vec<u8> = (0..bytes).map(|at| b'a' + ((at + bytes) % 26) as u8).collect();
    body.extend_from_slice(b"\r\n");
    body.into()
}

fn append(batch: &mut BatchBuilder, command: &Cmd) {
    match command {
        Cmd::Up { nonce } => batch.gateway_up(*nonce),
        Cmd::Gone { gateway } => batch.gateway_gone(*gateway),
        Cmd::Put { conn, tube, pri, delay, ttr, bytes } => {
            batch.put(*conn, tube.as_bytes(), *pri, *delay, *ttr, body(*bytes));
        }
        Cmd::ReserveJob { conn, id } => batch.reserve_job(*conn, *id),
        Cmd::Delete { conn, id } => batch.delete(*conn, *id),
        Cmd::Release { conn, id, pri, delay } => batch.release(*conn, *id, *pri, *delay),
        Cmd::Bury { conn, id, pri } => batch.bury(*conn, *id, *pri),
        Cmd::Touch { conn, id } => batch.touch(*conn, *id),
        Cmd::Kick { conn, tube, bound } => batch.kick(*conn, tube.as_bytes(), *bound),
        Cmd::KickJob { conn, id } => batch.kick_job(*conn, *id),
        Cmd::Pause { conn, tube, delay, referenced } => {
            batch.pause_tube(*conn, tube.as_bytes(), *delay, *referenced);
        }
        Cmd::Closed { conn, undelivered } => batch.session_closed(*conn, undelivered),
        Cmd::Unreserve { conn, want, id } => batch.unreserve(*conn, *want, *id),
        Cmd::TubeGone { tube } => batch.tube_gone(tube.as_bytes()),
        Cmd::Draining { on } => batch.set_draining(*on),
        Cmd::Level { level } => batch.raise_level(*level),
        Cmd::PutOnce { conn, key, tube, bytes } => {
            batch.put_once(*conn, key.as_bytes(), tube.as_bytes(), [1024, 0, 60], body(*bytes));
        }
        Cmd::OnceWindow { window_us, keys } => batch.set_once_window(*window_us, *keys),
        Cmd::Policy { pattern, policy } => batch.set_policy(pattern, policy.as_ref()),
        Cmd::Bulk(bulk) => batch.bulk(&bulk.order()),
        Cmd::Noop { conn } => batch.noop(*conn),
        Cmd::Lost { id, body } => batch.body_lost(*id, *body),
    }
}
