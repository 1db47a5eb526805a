//! What an applied entry means for this gateway's sessions: replies, hand-outs, offers that found nothing, tubes that got or
//! lost jobs.

use beanpole_protocol::{Reply, encode_found_header, encode_reserved_header};
use beanpole_raft::{BodyAddr, BodyError, Payload};
use bytes::{Bytes, BytesMut};

use super::session::{Blocked, ConnId, Session, Slot};
use super::{BodySource, ColdRead, Gateway};
use crate::leader::ToLeader;
use crate::queue::{Effects, Handout, Outcome, SessionId};

/// A stored body starts with the CRC32 of its bytes; see [`crate::queue`].
const CRC_BYTES: usize = 4;
/// ... and ends with CRLF, so that it can be sent as it lies.
const CRLF_BYTES: usize = 2;

/// For how many seconds a job whose body cannot be had is held back before it is tried again.
const GIVEN_BACK_S: u32 = 10;

/// A reply that carries a body.
#[derive(Clone, Copy, Debug)]
pub(super) enum Delivery {
    /// `RESERVED id len`, for a waiting reserve.
    Handout { id: u64, want: u64, times_out_us: Option<u64> },
    /// `RESERVED id len`, for a `reserve-job` in its turn.
    ReserveJob { id: u64 },
    /// `FOUND id len`
    Found { id: u64 },
}

impl Gateway {
    /// Applies one committed entry, and notes what the sessions of this gateway are owed by it.
    pub fn apply(&mut self, index: u64, payload: &Payload, effects: &mut Effects) {
        effects.clear();
        self.engine.apply(index, payload, effects);
        self.note_derived();
        for addr in &effects.retained {
            self.bodies.retain(*addr);
        }
        for up in &effects.gateways_up {
            if up.node == self.node && Some(up.nonce) == self.nonce {
                self.announced(up.epoch);
            }
        }
        for (session, outcome) in &effects.outcomes {
            if let Some(conn) = self.own(*session) {
                self.outcome(conn, outcome);
            }
        }
        for handout in &effects.handouts {
            if let Some(conn) = self.own(handout.session) {
                self.handed_out(conn, handout);
            }
        }
        for (session, want) in &effects.unmatched {
            if let Some(conn) = self.own(*session) {
                self.want_unmatched(conn, *want);
            }
        }
        // Only now: what was handed out or found above may be deleted by a later command of the same entry.
        for addr in &effects.released {
            self.bodies.release(*addr);
        }
        for (job, tube) in &effects.lost {
            tracing::error!(job, %tube, "no voter has the body of this job: it is buried");
        }
        self.note_applied(effects);
        if self.epoch.is_some() && self.engine.live_epoch(self.node) != self.epoch {
            self.life_ended();
        }
        if self.is_leaving() != self.turns_away() {
            self.send_off();
        }
        self.applied_up_to(index);
    }

    /// What the log holds from before this process's time is counted, and not told again.
    fn note_derived(&mut self) {
        for derived in self.engine.take_derived() {
            let suspect = self.loops.note(&derived, self.engine.stamp());
            self.suspicions.extend(suspect.filter(|_| self.epoch.is_some()));
        }
    }

    /// Everything up to this index has applied, entries that concern nobody here included.
    pub fn applied_up_to(&mut self, index: u64) {
        self.applied_index = self.applied_index.max(index);
        self.evaluate_reads();
    }

    /// The state was replaced by a snapshot of another node: what became of the batches that it covers is not known here.
    pub fn brought_forward(&mut self) {
        if self.epoch.is_none() {
            // Its announcement may be among what was skipped. Told once more it changes nothing, and is answered.
            return self.tell_announcement();
        }
        if self.engine.live_epoch(self.node) != self.epoch {
            return self.life_ended();
        }
        let last = self.engine.last_sequence(self.node).unwrap_or(0);
        while self.applied < last.min(self.proposed) {
            self.applied += 1;
            self.under_way.pop_front();
        }
        self.close_all(|session| session.is_owed() || matches!(session.blocked, Blocked::Reserving(_)));
    }

    /// The cluster has ended this gateway's life: its clients' jobs are others' now. It begins another.
    fn life_ended(&mut self) {
        if !self.stopping {
            tracing::warn!(
                node = self.node,
                "the cluster took this node for dead; its clients are disconnected"
            );
        }
        self.epoch = None;
        self.nonce = self.nonce.map(|nonce| nonce.wrapping_add(1));
        self.open = None;
        self.under_way.clear();
        self.reads.clear();
        self.unplaced = 0;
        self.close_all(|_| true);
        self.tell_announcement();
    }

    fn announced(&mut self, epoch: u64) {
        if self.epoch == Some(epoch) {
            // Announced twice, because the first word of it seemed lost.
            return;
        }
        self.epoch = Some(epoch);
        (self.proposed, self.applied) = (0, 0);
        self.under_way.clear();
        // Those who came before the log was open have waited with their commands.
        let waiting: Vec<ConnId> = self.sessions.iter().map(|session| session.conn).collect();
        for conn in waiting {
            self.touch_session(conn, true);
        }
        if self.is_leaving() {
            // It was drained, stopped and started again: it is back.
            self.set_leaving(false);
        }
        if let Some(on) = self.draining_wanted.take() {
            self.set_draining(on);
        }
    }

    /// The connection behind a session id, if it is one of this gateway's.
    fn own(&self, session: SessionId) -> Option<ConnId> {
        (session.node == self.node && Some(session.epoch) == self.epoch).then_some(ConnId(session.conn))
    }

    fn note_applied(&mut self, effects: &Effects) {
        for refused in effects.refused.iter().filter(|r| r.gateway.node == self.node) {
            // Ordinary where something was told twice, to an old leader and to its successor.
            tracing::debug!(?refused, "a batch of this gateway had no effect");
        }
        for (gateway, sequence) in &effects.sequences {
            if gateway.node == self.node && Some(gateway.epoch) == self.epoch {
                debug_assert_eq!(
                    *sequence,
                    self.applied + 1,
                    "batches apply in the order they were proposed"
                );
                self.applied = *sequence;
                self.under_way.pop_front();
            }
        }
    }

    fn outcome(&mut self, conn: ConnId, outcome: &Outcome) {
        let reply = match outcome {
            Outcome::Reserved { .. } if !self.may_hand_out() => return self.close(conn),
            Outcome::Reserved { id, body } => {
                return self.deliver(conn, Delivery::ReserveJob { id: *id }, *id, *body);
            }
            Outcome::Inserted(id) => Reply::Inserted(beanpole_protocol::JobId(*id)),
            Outcome::NotFound => Reply::NotFound,
            Outcome::Deleted => Reply::Deleted,
            Outcome::Released => Reply::Released,
            Outcome::Buried => Reply::Buried,
            Outcome::Touched => Reply::Touched,
            Outcome::Kicked(count) => Reply::Kicked(*count),
            Outcome::KickedJob => Reply::KickedJob,
            Outcome::Paused => Reply::Paused,
            Outcome::Draining => Reply::Draining,
            // The gateway proposed a no-op in the place of a put that it refused.
            Outcome::Noop => Reply::OutOfMemory,
            Outcome::OverLimit => {
                self.note_over_limit();
                Reply::OutOfMemory
            }
        };
        let Some(session) = self.sessions.get_mut(conn) else { return };
        session.answer(|out| reply.encode(out));
        self.answered(conn);
    }

    /// A reply that a session was owed is decided: go on with what waited for it.
    fn answered(&mut self, conn: ConnId) {
        let Some(session) = self.sessions.get(conn) else { return };
        if session.slots.is_empty() && matches!(session.blocked, Blocked::Held(_)) {
            self.run_held(conn);
        }
        let stalled = self.sessions.get(conn).is_some_and(|s| s.blocked == Blocked::No && s.stalled);
        self.touch_session(conn, stalled);
    }

    fn handed_out(&mut self, conn: ConnId, handout: &Handout) {
        if self.is_outstanding(conn, handout.want) {
            if !self.may_hand_out() {
                return self.close(conn);
            }
            let times_out_us = self.want_times_out(conn);
            self.end_want(conn);
            let delivery = Delivery::Handout { id: handout.id, want: handout.want, times_out_us };
            self.deliver(conn, delivery, handout.id, handout.body);
        } else if self.sessions.get(conn).is_some() {
            let (want, id) = (handout.want, handout.id);
            let open = self.open_batch();
            open.builder.unreserve(conn.0, want, id);
            open.may_ready = true;
        }
        // A session that is gone has logged its end after this batch, and named the want in it.
    }

    /// Sends a reply with a body, or has the body read first if it is not in memory.
    pub(super) fn deliver(&mut self, conn: ConnId, delivery: Delivery, job: u64, addr: BodyAddr) {
        let Gateway { sessions, bodies, .. } = self;
        let Some(session) = sessions.get_mut(conn) else { return };
        let reserve_job = matches!(delivery, Delivery::ReserveJob { .. });
        session.worker |= reserve_job;
        let in_turn = match delivery {
            Delivery::Handout { .. } | Delivery::Found { .. } => session.slots.is_empty(),
            Delivery::ReserveJob { .. } => matches!(session.slots.front(), Some(Slot::Logged { .. })),
        };
        let mut aside = BytesMut::new();
        let out = if in_turn { &mut session.out } else { &mut aside };
        let mut header = BytesMut::with_capacity(48);
        encode_header(&mut header, delivery, addr);
        match append_body(&**bodies, out, &header, addr) {
            Ok(true) => {
                if in_turn {
                    if reserve_job {
                        session.answer(|_| {});
                    }
                } else {
                    place(session, delivery, Slot::Done(aside.freeze()));
                }
            }
            // What does not check out is read again where that may take its time, or brought from elsewhere.
            Ok(false) | Err(_) => {
                let token = self.next_token;
                self.next_token += 1;
                let (want, times_out_us) = want_of(delivery);
                place(session, delivery, Slot::Cold { token, header: header.freeze(), want, times_out_us });
                self.cold.push(ColdRead { conn, token, job, addr });
            }
        }
        self.answered(conn);
        self.touch_session(conn, true);
    }

    /// The body of a cold delivery was read, or can be had from nowhere now.
    pub fn cold_done(&mut self, read: &ColdRead, result: Result<Bytes, BodyError>) {
        match result.and_then(|stored| verified(stored, read.addr)) {
            // It took longer than the job's TTR: the reserve goes on, if it can.
            Ok(_) if self.reservation_is_over(read) && self.reserve_again(read) => {}
            Ok(body) => {
                let Some(session) = self.sessions.get_mut(read.conn) else { return };
                session.fill_cold(read.token, |header| [&header[..], &body].concat().into());
            }
            Err(error) => self.body_missing(read, &error),
        }
        self.answered(read.conn);
        self.touch_session(read.conn, true);
    }

    /// A body cannot be had. The job must neither be served without it nor fail one worker after the other: it is given back
    /// for a while, and the reserve that met it goes on to other jobs.
    fn body_missing(&mut self, read: &ColdRead, error: &BodyError) {
        let ColdRead { conn, token, job, addr } = *read;
        let Some(view) = self.engine.job(job) else {
            // Deleted meanwhile, after a look at it.
            return self.answer_internal_error(conn, token);
        };
        tracing::error!(job, tube = view.tube, %error, "the body of a job cannot be had; it is not served");
        let pri = view.pri;
        if matches!(error, BodyError::Lost(_)) {
            self.tell(ToLeader::Lost { job, body: addr });
        }
        let Some(session) = self.sessions.get(conn) else { return };
        let only_peeked = session.is_cold_found(token);
        if !self.reserve_again(read) {
            self.answer_internal_error(conn, token);
        }
        if !only_peeked && let Some(session) = self.sessions.get_mut(conn) {
            session.slots.push_back(Slot::Logged { body: 0, silent: true });
            self.open_batch().builder.release(conn.0, job, pri, GIVEN_BACK_S);
        }
    }

    /// The job whose body is read is the session's no longer.
    fn reservation_is_over(&self, read: &ColdRead) -> bool {
        let holder = self.engine.job(read.job).and_then(|view| view.holder);
        holder.is_none() || holder != self.session_id(read.conn)
    }

    /// Lets the reserve go on that a body was read for; answers whether that can be.
    fn reserve_again(&mut self, read: &ColdRead) -> bool {
        self.clocks.advance();
        let now = self.clocks.monotonic();
        self.sessions.get_mut(read.conn).is_some_and(|session| session.reserve_again(read.token, now))
    }

    fn answer_internal_error(&mut self, conn: ConnId, token: u64) {
        let Some(session) = self.sessions.get_mut(conn) else { return };
        let mut reply = BytesMut::new();
        Reply::InternalError.encode(&mut reply);
        session.fill_cold(token, |_| reply.freeze());
    }
}

/// The want that it answers, and when that times out.
fn want_of(delivery: Delivery) -> (Option<u64>, Option<u64>) {
    match delivery {
        Delivery::Handout { want, times_out_us, .. } => (Some(want), times_out_us),
        Delivery::ReserveJob { .. } | Delivery::Found { .. } => (None, None),
    }
}

/// Puts an answer where its command stands in the order of replies.
fn place(session: &mut Session, delivery: Delivery, slot: Slot) {
    match delivery {
        Delivery::Handout { .. } | Delivery::Found { .. } => session.owe(slot),
        Delivery::ReserveJob { .. } => session.answer_later(slot),
    }
}

fn encode_header(header: &mut BytesMut, delivery: Delivery, addr: BodyAddr) {
    let len = addr.len - (CRC_BYTES + CRLF_BYTES) as u32;
    match delivery {
        Delivery::Handout { id, .. } | Delivery::ReserveJob { id } => {
            encode_reserved_header(header, beanpole_protocol::JobId(id), len);
        }
        Delivery::Found { id } => encode_found_header(header, beanpole_protocol::JobId(id), len),
    }
}

/// Appends header and body to `out` with one copy: the stored CRC lands where the header's last four bytes belong, is
/// checked there, and overwritten. Leaves `out` as it was when the body is cold or damaged.
fn append_body(
    bodies: &dyn BodySource,
    out: &mut BytesMut,
    header: &[u8],
    addr: BodyAddr,
) -> Result<bool, BodyError> {
    let start = out.len();
    let (head, tail) = header.split_at(header.len() - CRC_BYTES);
    out.extend_from_slice(head);
    let read = bodies.read_now(addr, out);
    let stored = start + head.len();
    let good = matches!(read, Ok(true)) && is_intact(&out[stored..]);
    if !good {
        out.truncate(start);
        return match read {
            Ok(true) => Err(damaged(addr)),
            other => other,
        };
    }
    out[stored..stored + CRC_BYTES].copy_from_slice(tail);
    Ok(true)
}

/// Whether a stored body (CRC, bytes, CRLF) is what was put.
pub fn is_intact(stored: &[u8]) -> bool {
    if stored.len() < CRC_BYTES + CRLF_BYTES {
        return false;
    }
    let (crc, rest) = stored.split_at(CRC_BYTES);
    let body = &rest[..rest.len() - CRLF_BYTES];
    crc == crc32fast::hash(body).to_le_bytes() && rest.ends_with(b"\r\n")
}

fn verified(stored: Bytes, addr: BodyAddr) -> Result<Bytes, BodyError> {
    if is_intact(&stored) { Ok(stored.slice(CRC_BYTES..)) } else { Err(damaged(addr)) }
}

fn damaged(addr: BodyAddr) -> BodyError {
    let source = std::io::Error::new(std::io::ErrorKind::InvalidData, "its CRC does not match");
    BodyError::Io { addr, source }
}
