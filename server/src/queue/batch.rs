//! The format of an entry, and the side that writes it. Reading is in [`super::decode`].
//!
//! Little-endian throughout. The head holds everything but bodies; bodies follow it in the order of their
//! puts.
//!
//! ```text
//! 0        1       2           4             8
//! ┌────────┬───────┬───────────┬─────────────┬──────┬────────────────────────────────┐
//! │version │ flags │ reserved  │ head length │ head │ bodies                         │
//! │ u8 = 1 │ u8 = 0│ u16 = 0   │ u32         │      │ (CRC32 u32, bytes, CR LF)*     │
//! └────────┴───────┴───────────┴─────────────┴──────┴────────────────────────────────┘
//! head:    stamp u64, lease u64, where its offers begin u32, sections u16, section*, offers u32, offer*
//! section: node u32, epoch u64, sequence u64, commands u32, command*
//! offer:   node u32, epoch u64, conn u64, want u64, tubes u16, tube*
//! tube:    length u8, bytes
//! command: tag u8, then by tag
//!    1 GatewayUp     nonce u64
//!    2 GatewayGone   node u32, epoch u64
//!    3 Put           conn u64, pri u32, delay u32, ttr u32, bytes u32, tube
//!    4 ReserveJob    conn u64, id u64
//!    5 Delete        conn u64, id u64
//!    6 Release       conn u64, id u64, pri u32, delay u32
//!    7 Bury          conn u64, id u64, pri u32
//!    8 Touch         conn u64, id u64
//!    9 Kick          conn u64, bound u32, tube
//!   10 KickJob       conn u64, id u64
//!   11 PauseTube     conn u64, delay u32, referenced u8, tube
//!   12 SessionClosed conn u64, wants u32, want u64*
//!   13 Unreserve     conn u64, want u64, id u64
//!   14 TubeGone      tube
//!   15 SetDraining   on u8
//!   16 Noop          conn u64
//!   17 Mark          nonce u64
//!   18 Leave         node u32, on u8
//!   19 BodyLost      id u64, index u64, offset u32
//!   20 Level         level u32
//!   21 Bulk          nonce u64, verb u8, states u8, older u64, limit u64, tube, to
//!   22 Policy        on u8, pattern; if on: max deliveries u32, backoff u64, u64, u8, max reserved u64,
//!                    max jobs u64, max bytes u64, max put rate u32, max age u64, alarm ready age u64,
//!                    max hops u8, pauses u8, dead tube
//!   23 PutOnce       as Put, then key (as a tube)
//!   24 OnceWindow    microseconds u64, keys u64
//! ```
//!
//! `bytes` of a put counts the job's bytes only, so its part of the bodies is 6 longer. A section of epoch 0
//! is the node's own, outside any gateway's life: it has no sequence and may carry commands 1, 2, 14, 15,
//! 17 to 22, and 24 only. A lost body is named by its address: entry and place in it.
//!
//! Commands from 21 on are proposed only once the replicated level (20) says that all members know them: see
//! [`super::level`].

use beanpole_raft::{BodyAddr, Payload};
use bytes::{BufMut, Bytes, BytesMut};

use super::bulk::BulkOrder;
use super::decode::{Batch, DecodeError};
use super::policy::Policy;
use super::types::{Gateway, SessionId};

/// Version byte of the entry format.
pub const BATCH_VERSION: u8 = 1;
/// Bytes before the head.
pub(super) const PREFIX_BYTES: usize = 8;
/// What a body occupies besides its bytes: the CRC32 before, CR LF after.
pub const BODY_OVERHEAD: usize = 6;
/// Longer bodies stay where they were read; shorter ones are gathered, because a part of its own costs more.
const COPY_MAX: usize = 4 << 10;

pub(super) mod tag {
    pub const GATEWAY_UP: u8 = 1;
    pub const GATEWAY_GONE: u8 = 2;
    pub const PUT: u8 = 3;
    pub const RESERVE_JOB: u8 = 4;
    pub const DELETE: u8 = 5;
    pub const RELEASE: u8 = 6;
    pub const BURY: u8 = 7;
    pub const TOUCH: u8 = 8;
    pub const KICK: u8 = 9;
    pub const KICK_JOB: u8 = 10;
    pub const PAUSE_TUBE: u8 = 11;
    pub const SESSION_CLOSED: u8 = 12;
    pub const UNRESERVE: u8 = 13;
    pub const TUBE_GONE: u8 = 14;
    pub const SET_DRAINING: u8 = 15;
    pub const NOOP: u8 = 16;
    pub const MARK: u8 = 17;
    pub const LEAVE: u8 = 18;
    pub const BODY_LOST: u8 = 19;
    pub const LEVEL: u8 = 20;
    pub const BULK: u8 = 21;
    pub const POLICY: u8 = 22;
    pub const PUT_ONCE: u8 = 23;
    pub const ONCE_WINDOW: u8 = 24;
}

/// Builds one entry: sections, each with commands in order, and offers.
pub struct BatchBuilder {
    /// Prefix, clocks and sections; lengths and counts are filled in when they are known.
    head: BytesMut,
    offers: BytesMut,
    offer_count: u32,
    section_count: u16,
    /// Where the open section's command count goes; 0 before the first section.
    count_at: usize,
    section_commands: u32,
    commands: usize,
    /// Bodies that are complete, in order.
    parts: Vec<Bytes>,
    /// The short bodies since the last long one.
    tail: BytesMut,
    body_bytes: usize,
}

impl BatchBuilder {
    /// An empty batch with the time of both clocks, in microseconds.
    #[must_use]
    pub fn new(stamp: u64, lease: u64) -> Self {
        let mut head = BytesMut::with_capacity(256);
        head.put_u8(BATCH_VERSION);
        head.put_bytes(0, PREFIX_BYTES - 1);
        head.put_u64_le(stamp);
        head.put_u64_le(lease);
        head.put_u32_le(0);
        head.put_u16_le(0);
        BatchBuilder {
            head,
            offers: BytesMut::new(),
            offer_count: 0,
            section_count: 0,
            count_at: 0,
            section_commands: 0,
            commands: 0,
            parts: Vec::new(),
            tail: BytesMut::new(),
            body_bytes: 0,
        }
    }

    /// Sets the time of both clocks anew, in microseconds: what has gathered for long happens when it is proposed.
    pub fn set_clocks(&mut self, stamp: u64, lease: u64) {
        self.head[8..16].copy_from_slice(&stamp.to_le_bytes());
        self.head[16..24].copy_from_slice(&lease.to_le_bytes());
    }

    /// Begins a gateway's section; commands go to the section begun last. `sequence` counts the gateway's
    /// sections from 1. Epoch 0 begins a section outside any gateway's life (see the module's format).
    ///
    /// # Panics
    /// At more than 65,535 sections.
    pub fn section(&mut self, gateway: Gateway, sequence: u64) {
        self.end_section();
        self.section_count = self.section_count.checked_add(1).expect("a batch has at most 65,535 sections");
        self.head.put_u32_le(gateway.node);
        self.head.put_u64_le(gateway.epoch);
        self.head.put_u64_le(sequence);
        self.count_at = self.head.len();
        self.head.put_u32_le(0);
    }

    /// Announces the gateway of this section's node. Idempotent by `nonce`, a random number.
    pub fn gateway_up(&mut self, nonce: u64) {
        self.command(tag::GATEWAY_UP);
        self.head.put_u64_le(nonce);
    }

    /// Ends a gateway's life: its sessions' jobs become ready.
    pub fn gateway_gone(&mut self, gateway: Gateway) {
        self.command(tag::GATEWAY_GONE);
        self.head.put_u32_le(gateway.node);
        self.head.put_u64_le(gateway.epoch);
    }

    /// Puts a job. `body` is its bytes and the CR LF after them; bodies over 4 KiB are not copied. Delay and
    /// TTR are in seconds.
    ///
    /// # Panics
    /// When the body does not end in CR LF, or is longer than 4 GiB.
    pub fn put(&mut self, conn: u64, tube: &[u8], pri: u32, delay_s: u32, ttr_s: u32, body: Bytes) {
        self.session_command(tag::PUT, conn);
        self.put_job(tube, [pri, delay_s, ttr_s], body);
    }

    /// Puts a job as [`BatchBuilder::put`] does, unless one was put under this key into the tube not long ago: see
    /// [`super::once`]. Delay and TTR are in seconds.
    ///
    /// # Panics
    /// As [`BatchBuilder::put`].
    pub fn put_once(&mut self, conn: u64, key: &[u8], tube: &[u8], numbers: [u32; 3], body: Bytes) {
        self.session_command(tag::PUT_ONCE, conn);
        self.put_job(tube, numbers, body);
        put_tube(&mut self.head, key);
    }

    fn put_job(&mut self, tube: &[u8], [pri, delay_s, ttr_s]: [u32; 3], body: Bytes) {
        let Some(bytes) = body.strip_suffix(b"\r\n") else { panic!("a body is kept with its CR LF") };
        let len = u32::try_from(bytes.len()).expect("the protocol's limit is far below 4 GiB");
        let crc = crc32fast::hash(bytes);
        self.head.put_u32_le(pri);
        self.head.put_u32_le(delay_s);
        self.head.put_u32_le(ttr_s);
        self.head.put_u32_le(len);
        put_tube(&mut self.head, tube);
        self.body_bytes += body.len();
        self.tail.put_u32_le(crc);
        if body.len() <= COPY_MAX {
            self.tail.extend_from_slice(&body);
        } else {
            self.parts.push(self.tail.split().freeze());
            self.parts.push(body);
        }
    }

    /// Reserves the one job, if nobody holds it.
    pub fn reserve_job(&mut self, conn: u64, id: u64) {
        self.session_command(tag::RESERVE_JOB, conn);
        self.head.put_u64_le(id);
    }

    /// Deletes a job that is the session's, or that nobody holds.
    pub fn delete(&mut self, conn: u64, id: u64) {
        self.session_command(tag::DELETE, conn);
        self.head.put_u64_le(id);
    }

    /// Gives a job back, ready after `delay_s` seconds.
    pub fn release(&mut self, conn: u64, id: u64, pri: u32, delay_s: u32) {
        self.session_command(tag::RELEASE, conn);
        self.head.put_u64_le(id);
        self.head.put_u32_le(pri);
        self.head.put_u32_le(delay_s);
    }

    /// Buries a job that the session holds.
    pub fn bury(&mut self, conn: u64, id: u64, pri: u32) {
        self.session_command(tag::BURY, conn);
        self.head.put_u64_le(id);
        self.head.put_u32_le(pri);
    }

    /// Starts the TTR of a job that the session holds anew.
    pub fn touch(&mut self, conn: u64, id: u64) {
        self.session_command(tag::TOUCH, conn);
        self.head.put_u64_le(id);
    }

    /// Kicks up to `bound` jobs of the tube.
    pub fn kick(&mut self, conn: u64, tube: &[u8], bound: u32) {
        self.session_command(tag::KICK, conn);
        self.head.put_u32_le(bound);
        put_tube(&mut self.head, tube);
    }

    /// Kicks the one job, if it is buried or delayed.
    pub fn kick_job(&mut self, conn: u64, id: u64) {
        self.session_command(tag::KICK_JOB, conn);
        self.head.put_u64_le(id);
    }

    /// Pauses a tube for `delay_s` seconds, or lifts its pause with 0. `referenced` says that a client uses
    /// or watches the tube: then it exists, and is made if the engine does not know it; if not, the answer is
    /// `NotFound`.
    pub fn pause_tube(&mut self, conn: u64, tube: &[u8], delay_s: u32, referenced: bool) {
        self.session_command(tag::PAUSE_TUBE, conn);
        self.head.put_u32_le(delay_s);
        self.head.put_u8(u8::from(referenced));
        put_tube(&mut self.head, tube);
    }

    /// The connection is gone: what it holds becomes ready at once. `undelivered` are the wants whose
    /// hand-out, if there was one, was never written to the client: those jobs get their counters back too.
    ///
    /// # Panics
    /// At more than 4 billion wants.
    pub fn session_closed(&mut self, conn: u64, undelivered: &[u64]) {
        self.session_command(tag::SESSION_CLOSED, conn);
        self.head.put_u32_le(u32::try_from(undelivered.len()).expect("a session has few wants open"));
        for want in undelivered {
            self.head.put_u64_le(*want);
        }
    }

    /// Takes back the hand-out of `id` to the session's `want`: state, order and counters as before it.
    pub fn unreserve(&mut self, conn: u64, want: u64, id: u64) {
        self.session_command(tag::UNRESERVE, conn);
        self.head.put_u64_le(want);
        self.head.put_u64_le(id);
    }

    /// Forgets a tube that nobody uses or watches, if it holds nothing.
    pub fn tube_gone(&mut self, tube: &[u8]) {
        self.command(tag::TUBE_GONE);
        put_tube(&mut self.head, tube);
    }

    /// Sets whether the cluster refuses new jobs.
    pub fn set_draining(&mut self, on: bool) {
        self.command(tag::SET_DRAINING);
        self.head.put_u8(u8::from(on));
    }

    /// Marks this entry: its number and the hash of all history up to it can be read on every node.
    pub fn mark(&mut self, nonce: u64) {
        self.command(tag::MARK);
        self.head.put_u64_le(nonce);
    }

    /// Notes that a node is about to leave service, unless another one is, or that it is back.
    pub fn leave(&mut self, node: u32, on: bool) {
        self.command(tag::LEAVE);
        self.head.put_u32_le(node);
        self.head.put_u8(u8::from(on));
    }

    /// Buries a job whose body no voter has, unless somebody holds it or it has another body by then.
    pub fn body_lost(&mut self, id: u64, body: BodyAddr) {
        self.command(tag::BODY_LOST);
        self.head.put_u64_le(id);
        self.head.put_u64_le(body.index);
        self.head.put_u32_le(body.offset);
    }

    /// Raises the level of what entries may hold; see [`super::level`].
    pub fn raise_level(&mut self, level: u32) {
        self.command(tag::LEVEL);
        self.head.put_u32_le(level);
    }

    /// Begins a bulk operation, unless one with this nonce is known already.
    pub fn bulk(&mut self, order: &BulkOrder<'_>) {
        self.command(tag::BULK);
        self.head.put_u64_le(order.nonce);
        self.head.put_u8(order.verb.code());
        self.head.put_u8(order.states.bits());
        self.head.put_u64_le(order.older_us);
        self.head.put_u64_le(order.limit);
        put_tube(&mut self.head, order.tube.as_bytes());
        put_tube(&mut self.head, order.to.as_bytes());
    }

    /// Sets the policy of a tube, or of all whose names begin as a pattern that ends in `*`; none removes it.
    pub fn set_policy(&mut self, pattern: &str, policy: Option<&Policy>) {
        self.command(tag::POLICY);
        self.head.put_u8(u8::from(policy.is_some()));
        put_tube(&mut self.head, pattern.as_bytes());
        if let Some(policy) = policy {
            put_policy(&mut self.head, policy);
        }
    }

    /// Sets how long, in microseconds, and how many keys of `put-once` are known.
    pub fn set_once_window(&mut self, window_us: u64, keys: u64) {
        self.command(tag::ONCE_WINDOW);
        self.head.put_u64_le(window_us);
        self.head.put_u64_le(keys);
    }

    /// Keeps the place of a command that was taken back.
    pub fn noop(&mut self, conn: u64) {
        self.session_command(tag::NOOP, conn);
    }

    /// Offers that a session's want may be served by this batch. Wants of a session are numbered from 1.
    /// Offers are tried in the order they are made here, whenever a command makes a job ready, and once more
    /// at the end of the batch.
    ///
    /// # Panics
    /// At more than 65,535 tubes.
    pub fn offer<'t>(&mut self, session: SessionId, want: u64, tubes: impl IntoIterator<Item = &'t [u8]>) {
        debug_assert!(want != 0, "want 0 is that of reserve-job");
        self.offer_count += 1;
        self.offers.put_u32_le(session.node);
        self.offers.put_u64_le(session.epoch);
        self.offers.put_u64_le(session.conn);
        self.offers.put_u64_le(want);
        let count_at = self.offers.len();
        self.offers.put_u16_le(0);
        let mut count = 0u16;
        for tube in tubes {
            put_tube(&mut self.offers, tube);
            count = count.checked_add(1).expect("a session watches at most 65,535 tubes");
        }
        self.offers[count_at..count_at + 2].copy_from_slice(&count.to_le_bytes());
    }

    /// Appends all sections of a batch that a gateway built, bodies included; its clocks and offers are not taken
    /// over. Bodies over 4 KiB are not copied.
    ///
    /// # Errors
    /// When the batch cannot be read; nothing was appended then.
    ///
    /// # Panics
    /// At more than 65,535 sections.
    pub fn merge(&mut self, batch: &Payload) -> Result<(), DecodeError> {
        let read = Batch::open(batch)?;
        let sections = read.commands.rest();
        self.end_section();
        self.count_at = 0;
        let count = self.section_count.checked_add(read.sections);
        self.section_count = count.expect("a batch has at most 65,535 sections");
        self.head.extend_from_slice(sections);
        let mut skip = read.bodies_at as usize;
        for part in batch.parts() {
            let bodies = part.slice(skip.min(part.len())..);
            skip = skip.saturating_sub(part.len());
            self.append_bodies(bodies);
        }
        Ok(())
    }

    /// Bodies as they lie in another batch, each with its CRC and CR LF.
    fn append_bodies(&mut self, bodies: Bytes) {
        self.body_bytes += bodies.len();
        if bodies.len() <= COPY_MAX {
            self.tail.extend_from_slice(&bodies);
        } else {
            self.parts.push(self.tail.split().freeze());
            self.parts.push(bodies);
        }
    }

    /// Whether there is neither a section nor an offer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.section_count == 0 && self.offer_count == 0
    }

    /// Commands so far, of all sections.
    #[must_use]
    pub fn command_count(&self) -> usize {
        self.commands
    }

    /// Offers so far.
    #[must_use]
    pub fn offer_count(&self) -> usize {
        self.offer_count as usize
    }

    /// Bytes of commands so far, without offers and bodies: a measure of how much work it is.
    #[must_use]
    pub fn command_bytes(&self) -> usize {
        self.head.len()
    }

    /// Bytes of bodies so far, their CR LF included.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        self.body_bytes
    }

    /// The entry.
    ///
    /// # Panics
    /// When the head grew over 4 GiB.
    #[must_use]
    pub fn finish(mut self) -> Payload {
        self.end_section();
        let offers_at = self.head.len() - PREFIX_BYTES;
        self.head.put_u32_le(self.offer_count);
        let len = u32::try_from(offers_at + 4 + self.offers.len());
        let len = len.expect("a batch's head is far below 4 GiB");
        self.head[4..8].copy_from_slice(&len.to_le_bytes());
        self.head[24..28].copy_from_slice(&(offers_at as u32).to_le_bytes());
        self.head[28..30].copy_from_slice(&self.section_count.to_le_bytes());
        self.head.extend_from_slice(&self.offers);
        let mut parts = Vec::with_capacity(self.parts.len() + 2);
        if self.parts.is_empty() && self.tail.len() <= COPY_MAX {
            self.head.extend_from_slice(&self.tail);
            self.tail.clear();
        }
        parts.push(self.head.freeze());
        parts.append(&mut self.parts);
        parts.push(self.tail.freeze());
        Payload::from_parts(parts)
    }

    fn session_command(&mut self, tag: u8, conn: u64) {
        self.command(tag);
        self.head.put_u64_le(conn);
    }

    fn command(&mut self, tag: u8) {
        assert!(self.section_count > 0, "commands belong to a section");
        self.commands += 1;
        self.section_commands += 1;
        self.head.put_u8(tag);
    }

    fn end_section(&mut self) {
        if self.count_at > 0 {
            let at = self.count_at;
            self.head[at..at + 4].copy_from_slice(&self.section_commands.to_le_bytes());
        }
        self.section_commands = 0;
    }
}

pub(super) fn put_policy(out: &mut impl BufMut, policy: &Policy) {
    out.put_u32_le(policy.max_deliveries);
    out.put_u64_le(policy.backoff_min_ms);
    out.put_u64_le(policy.backoff_max_ms);
    out.put_u8(policy.backoff_jitter);
    out.put_u64_le(policy.max_reserved);
    out.put_u64_le(policy.max_jobs);
    out.put_u64_le(policy.max_bytes);
    out.put_u32_le(policy.max_put_rate);
    out.put_u64_le(policy.max_age_ms);
    out.put_u64_le(policy.alarm_ready_age_ms);
    out.put_u8(policy.max_hops);
    out.put_u8(u8::from(policy.pause_input) | u8::from(policy.pause_output) << 1);
    put_tube(out, policy.dead_tube.as_deref().unwrap_or_default().as_bytes());
}

/// Names are validated where they enter the process; here only their length matters.
fn put_tube(out: &mut impl BufMut, tube: &[u8]) {
    out.put_u8(u8::try_from(tube.len()).expect("a tube's name has at most 200 bytes"));
    out.put_slice(tube);
}
