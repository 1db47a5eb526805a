//! The gateway: everything that is between clients' connections and the replicated log, as a pure state machine.
//!
//! ```text
//!            requests                    batches
//!   sessions ────────► Gateway ─────────────────────► log (fsynced) ─┐
//!      ▲                  │  ▲                                       │
//!      └──── replies ─────┘  └────────── effects ◄── Engine::apply ◄─┘
//! ```
//!
//! Commands that change jobs are appended to the open batch; the reply waits for the batch to apply. Commands that only read
//! are answered from the engine once every batch that was under way when they came has applied. `use`, `watch`, `ignore` and
//! their lists are answered at once. Nothing here does IO: sockets are behind [`Outlet`], bodies behind [`BodySource`], time
//! behind [`Clocks`], and the shell around ([`crate::node`]) proposes batches, calls back with applied entries and wakes
//! tasks. So a test or a simulation can drive it step by step.
//!
//! - `commands`: one request in
//! - `wants`: reserves that wait
//! - `uplink`: what the leader is told, and told again
//! - `farewell`: letting clients go before the node stops
//! - `pace`: puts that are slowed or refused
//! - `unread`: replies that clients do not take
//! - `conns`: what each connection does, for operators
//! - `loops`: workers that feed themselves
//! - `lease`: how long to go on without the leader
//! - `reads`: commands answered from the state
//! - `applied`: what an applied entry means for sessions
//! - `session`, `tubes`, `counters`: the state

mod applied;
mod commands;
pub mod conns;
pub mod counters;
mod farewell;
pub mod lease;
mod loops;
mod pace;
mod reads;
pub mod session;
pub mod tubes;
mod unread;
mod uplink;
mod wants;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use beanpole_raft::{BodyAddr, BodyError, LogMemory, Space};
use bytes::BytesMut;

use crate::clock::Clocks;
use crate::leader::ToLeader;
use crate::queue::{self, BatchBuilder, BulkOrder, Engine, Policy, SessionId};
pub use applied::is_intact;
use conns::Traffic;
use counters::Counters;
use farewell::Farewell;
use lease::Lease;
use loops::Loops;
pub use loops::Pair;
use pace::Pace;
use reads::{Answers, Read};
pub use reads::{Barrier, Roles};
use session::{Blocked, ConnId, Outlet, Session, Sessions, Slot};
use tubes::TubeTable;
use unread::Unread;
use uplink::UnderWay;

/// Replies one session may be owed; it takes no more commands until some are answered.
const SLOTS_MAX: usize = 2048;
/// Unwritten reply bytes at which a session takes no more commands.
const OUT_BYTES_MAX: usize = 256 << 10;
/// Bytes of unanswered puts at which a session takes no more commands.
const UNANSWERED_BYTES_MAX: usize = 1 << 20;
/// Bytes in the open batch at which no session may add to it, until it is proposed.
const BATCH_BYTES_MAX: usize = 2 << 20;
/// Batches on their way and not yet applied, at most; commands that come meanwhile gather in the open batch.
const BATCHES_UNDER_WAY_MAX: usize = crate::leader::ENTRIES_UNDER_WAY_MAX;
/// A reply buffer that grew beyond this is given back when it is empty.
const OUT_KEEP_BYTES: usize = 4 << 10;
/// `DEADLINE_SOON` is due when a reserved job has this long left, in microseconds.
const SAFETY_MARGIN_US: u64 = 1_000_000;

/// Where bodies are read.
pub trait BodySource: Send {
    /// See [`beanpole_raft::Bodies::read_now`].
    fn read_now(&self, addr: BodyAddr, out: &mut BytesMut) -> Result<bool, BodyError>;
    /// See [`beanpole_raft::Bodies::retain`].
    fn retain(&self, addr: BodyAddr);
    /// See [`beanpole_raft::Bodies::release`].
    fn release(&self, addr: BodyAddr);
    /// Whether what adds to what is kept is to be refused, see [`beanpole_raft::Bodies::space`].
    fn no_space(&self) -> bool;
}

impl BodySource for beanpole_raft::Bodies {
    fn read_now(&self, addr: BodyAddr, out: &mut BytesMut) -> Result<bool, BodyError> {
        beanpole_raft::Bodies::read_now(self, addr, out)
    }
    fn retain(&self, addr: BodyAddr) {
        beanpole_raft::Bodies::retain(self, addr);
    }
    fn release(&self, addr: BodyAddr) {
        beanpole_raft::Bodies::release(self, addr);
    }
    fn no_space(&self) -> bool {
        match self.space() {
            Space::Open => false,
            Space::Shedding | Space::Closed => true,
        }
    }
}

/// A body that must be read from the disk before it can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColdRead {
    /// The session that is owed it.
    pub conn: ConnId,
    /// Finds the slot again.
    pub token: u64,
    /// Which job it belongs to.
    pub job: u64,
    /// What to read.
    pub addr: BodyAddr,
}

/// Facts for `stats` that only the process knows.
pub trait Facts: Send {
    /// Fills in what the gateway does not know: uptime, resource usage, names, log figures.
    fn fill<'a>(&'a self, stats: &mut beanpole_protocol::stats::ServerStats<'a>);
    /// Anonymous memory of the process, in bytes; 0 where the system does not tell.
    fn memory_bytes(&self) -> u64;
    /// What the log holds in memory.
    fn log_memory(&self) -> LogMemory {
        LogMemory::default()
    }
}

/// All soft state of one node's clients, and the engine that answers them.
pub struct Gateway {
    engine: Engine,
    clocks: Clocks,
    bodies: Box<dyn BodySource>,
    facts: Box<dyn Facts>,
    node: u32,
    /// The log index of this gateway's `GatewayUp`; none until that has applied.
    epoch: Option<u64>,
    /// What it was announced with: the announcements of earlier lives are in the log too, and are replayed at a start.
    nonce: Option<u64>,
    sessions: Sessions,
    tubes: TubeTable,
    counters: Counters,
    /// The batch that commands are appended to.
    open: Option<OpenBatch>,
    /// The sequence number of the last batch that was closed.
    proposed: u64,
    /// The sequence number of the last batch that has applied.
    applied: u64,
    /// Each batch between the two.
    under_way: VecDeque<UnderWay>,
    /// The highest index applied here.
    applied_index: u64,
    /// There are other nodes: what is committed, and who leads, is not known here alone.
    clustered: bool,
    /// A leader takes messages.
    connected: bool,
    /// Messages for it, oldest first.
    outbox: VecDeque<ToLeader>,
    lease: Lease,
    farewell: Option<Farewell>,
    pace: Pace,
    unread: Unread,
    loops: Loops,
    /// Pairs of tubes that became suspect, until the shell has told of them.
    suspicions: Vec<Pair>,
    /// Reads that wait, oldest first.
    reads: VecDeque<Read>,
    /// How many of them the leader is still to be asked about.
    unplaced: usize,
    last_barrier: u64,
    answers: Answers,
    roles_elsewhere: Roles,
    /// When a waiting reserve must be looked at, in monotonic microseconds.
    timers: BTreeSet<(u64, ConnId)>,
    /// When the shell will call `tick`, in monotonic microseconds.
    alarm_us: u64,
    next_token: u64,
    /// Sessions with bytes to write or something to tell their task.
    dirty: VecDeque<ConnId>,
    /// Bodies to read on the blocking pool.
    cold: Vec<ColdRead>,
    /// Sessions that wait for the open batch to be proposed.
    stalled: Vec<ConnId>,
    /// The process is going down: no new commands are taken.
    stopping: bool,
    /// The draining flag was asked for before there was a log to set it in.
    draining_wanted: Option<bool>,
}

/// A batch under construction.
struct OpenBatch {
    builder: BatchBuilder,
    may_ready: bool,
    bytes: usize,
}

impl Gateway {
    /// A gateway without clients, in front of an empty engine.
    pub fn new(node: u32, clocks: Clocks, bodies: Box<dyn BodySource>, facts: Box<dyn Facts>) -> Self {
        Gateway {
            engine: Engine::new(),
            clocks,
            bodies,
            facts,
            node,
            epoch: None,
            nonce: None,
            sessions: Sessions::default(),
            tubes: TubeTable::default(),
            counters: Counters::default(),
            open: None,
            proposed: 0,
            applied: 0,
            under_way: VecDeque::new(),
            applied_index: 0,
            clustered: false,
            connected: false,
            outbox: VecDeque::new(),
            lease: Lease::default(),
            farewell: None,
            pace: Pace::default(),
            unread: Unread::default(),
            loops: Loops::default(),
            suspicions: Vec::new(),
            reads: VecDeque::new(),
            unplaced: 0,
            last_barrier: 0,
            answers: Answers::default(),
            roles_elsewhere: Roles::default(),
            timers: BTreeSet::new(),
            alarm_us: u64::MAX,
            next_token: 0,
            dirty: VecDeque::new(),
            cold: Vec::new(),
            stalled: Vec::new(),
            stopping: false,
            draining_wanted: None,
        }
    }

    /// The number of the node.
    pub fn node(&self) -> u32 {
        self.node
    }

    /// The engine, for reading.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The engine, for replacing it from a snapshot and for taking one.
    pub fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// Clients' tubes.
    pub fn tubes(&self) -> &TubeTable {
        &self.tubes
    }

    /// Commands received.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Connections ever opened.
    pub fn connections_opened(&self) -> u64 {
        self.sessions.opened()
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.sessions.len()
    }

    /// Anonymous memory of the process, in bytes; 0 where the system does not tell.
    pub fn memory_bytes(&self) -> u64 {
        self.facts.memory_bytes()
    }

    /// What the log holds in memory.
    pub fn log_memory(&self) -> LogMemory {
        self.facts.log_memory()
    }

    /// Bytes of bodies in the open batch, and of batches that have not applied.
    pub fn batch_bytes(&self) -> usize {
        let open = self.open.as_ref().map_or(0, |open| open.bytes);
        open + self.under_way.iter().map(UnderWay::bytes).sum::<usize>()
    }

    /// What jobs were put by workers that held one: pairs of tubes, and whether they may be loops.
    pub fn derived_puts(&mut self) -> Vec<Pair> {
        self.clocks.advance();
        self.loops.pass(self.clocks.stamp());
        self.loops.pairs().collect()
    }

    /// Pairs of tubes that became suspect of a loop since this was asked last.
    pub fn take_suspicions(&mut self) -> Vec<Pair> {
        std::mem::take(&mut self.suspicions)
    }

    /// Where bodies are read from now on (the log is opened after the gateway is made).
    pub fn set_bodies(&mut self, bodies: Box<dyn BodySource>) {
        self.bodies = bodies;
    }

    // ---- its life ----

    /// Whether commands are taken: the gateway is announced and not stopping.
    pub fn is_serving(&self) -> bool {
        self.epoch.is_some() && !self.stopping
    }

    /// Whether commands are answered now: it is serving, and has a leader with a quorum.
    pub fn is_ready(&self) -> bool {
        self.is_serving() && self.connected && !self.is_leaving() && self.standing() == lease::Standing::Good
    }

    /// Whether the process is going down.
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Takes no more commands; what is under way is finished.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Whether nothing is under way: no batch is open or proposed, and every reply is written.
    pub fn is_settled(&self) -> bool {
        self.open.is_none()
            && self.applied == self.proposed
            && self.cold.is_empty()
            && self.sessions.iter().all(|s| s.out.is_empty() && s.slots.is_empty())
    }

    // ---- connections ----

    /// A client connected, from this address if it has one.
    pub fn connect(&mut self, outlet: Arc<dyn Outlet>, from: Option<SocketAddr>) -> ConnId {
        self.clocks.advance();
        let since_us = self.clocks.monotonic();
        let default = beanpole_protocol::Tube::DEFAULT.as_str();
        let used = self.tubes.add_using(default);
        let watched = vec![self.tubes.add_watching(default)];
        self.sessions.insert(|conn| Session {
            conn,
            used,
            watched,
            slots: VecDeque::new(),
            out: BytesMut::new(),
            blocked: Blocked::No,
            outlet,
            from,
            since_us,
            traffic: Traffic::default(),
            wants: 0,
            loose: session::LooseWants::default(),
            unanswered_bytes: 0,
            next_put_us: 0,
            aside_bytes: 0,
            counted_bytes: 0,
            producer: false,
            worker: false,
            stalled: false,
            input_ended: false,
            let_go: false,
            dead: false,
            dirty: false,
            wake: false,
        })
    }

    /// The client sends nothing more. A reserve that waits ends as `reserve-with-timeout 0` would.
    pub fn end_input(&mut self, conn: ConnId) {
        if let Some(session) = self.sessions.get_mut(conn) {
            session.input_ended = true;
            self.check_want(conn);
        }
    }

    /// Whether the session takes a command now. If not, its task is woken when that may have changed.
    pub fn may_take(&mut self, conn: ConnId) -> bool {
        if !self.is_serving() && (self.stopping || !self.is_cut_off()) {
            return false;
        }
        let full = self.open.as_ref().is_some_and(|open| open.bytes >= BATCH_BYTES_MAX);
        let share = self.reply_share();
        let Some(session) = self.sessions.get_mut(conn) else { return false };
        let takes = session.blocked == Blocked::No
            && !session.dead
            && !session.let_go
            && session.slots.len() < SLOTS_MAX
            && session.out.len() + session.aside_bytes < share
            && session.unanswered_bytes < UNANSWERED_BYTES_MAX;
        session.stalled = full || !takes;
        if full {
            self.stalled.push(conn);
        }
        takes && !full
    }

    /// What the connection's task should do next.
    pub fn outlook(&self, conn: ConnId) -> Outlook {
        let Some(session) = self.sessions.get(conn) else {
            return Outlook { next: Next::Close, unwritten: false };
        };
        if session.dead {
            return Outlook { next: Next::Close, unwritten: false };
        }
        let owed = session.is_owed();
        let done = match &session.blocked {
            Blocked::Closing => !owed,
            Blocked::No => session.input_ended && !owed,
            Blocked::Held(_) | Blocked::Reading(_) | Blocked::Reserving(_) | Blocked::Slowed(..) => false,
        };
        let next = match done {
            true => Next::Close,
            false if session.let_go && !owed && session.blocked == Blocked::No => Next::Goodbye,
            false => Next::Listen,
        };
        Outlook { next, unwritten: !session.out.is_empty() }
    }

    /// The connection is gone. Jobs it holds return to ready.
    pub fn disconnect(&mut self, conn: ConnId) {
        let undelivered = self.undelivered(conn);
        self.untell_want(conn);
        self.end_want(conn);
        let Some(session) = self.sessions.remove(conn) else { return };
        self.unread.forget(&session);
        let may_hold = session.slots.iter().any(|slot| matches!(slot, Slot::Logged { .. }))
            || self.session_id(conn).is_some_and(|id| self.engine.session_holds(id))
            || !undelivered.is_empty();
        if may_hold && self.epoch.is_some() {
            let open = self.open_batch();
            open.builder.session_closed(conn.0, &undelivered);
            open.may_ready = true;
        }
        let unused = self.tubes.drop_using(session.used);
        self.tell_unused(unused);
        for tube in session.watched {
            let unused = self.tubes.drop_watching(tube);
            self.tell_unused(unused);
        }
    }

    /// The wants whose hand-out, if there was one, has not been written to the client.
    fn undelivered(&self, conn: ConnId) -> Vec<u64> {
        let Some(session) = self.sessions.get(conn) else { return Vec::new() };
        let mut wants: Vec<u64> = session.loose.open(self.applied).collect();
        match &session.blocked {
            Blocked::Reserving(want) => wants.push(want.number),
            Blocked::No | Blocked::Held(_) | Blocked::Reading(_) | Blocked::Slowed(..) | Blocked::Closing => {
                wants.extend(session.slots.iter().filter_map(cold_want));
            }
        }
        wants
    }

    /// Closes a connection at once: what it is owed cannot be known, or what it holds is others' by now.
    fn close(&mut self, conn: ConnId) {
        if let Some(session) = self.sessions.get_mut(conn) {
            session.dead = true;
            self.touch_session(conn, true);
        }
    }

    fn close_all(&mut self, which: impl Fn(&Session) -> bool) {
        let conns: Vec<ConnId> =
            self.sessions.iter().filter(|session| which(session)).map(|session| session.conn).collect();
        for conn in conns {
            self.close(conn);
        }
    }

    fn session_id(&self, conn: ConnId) -> Option<SessionId> {
        self.epoch.map(|epoch| SessionId { node: self.node, epoch, conn: conn.0 })
    }

    // ---- batches ----

    /// The batch that commands go to, opened if there is none.
    fn open_batch(&mut self) -> &mut OpenBatch {
        let Gateway { open, node, epoch, proposed, .. } = self;
        open.get_or_insert_with(|| {
            // The leader puts its own clocks into the entry.
            let mut builder = BatchBuilder::new(0, 0);
            let epoch = epoch.expect("commands are taken only once the gateway is announced");
            builder.section(queue::Gateway { node: *node, epoch }, *proposed + 1);
            OpenBatch { builder, may_ready: false, bytes: 0 }
        })
    }

    /// Whether the shell has something to do on this node: bodies to read, or an earlier time to wake up at.
    pub fn has_chores(&self) -> bool {
        !self.cold.is_empty() || self.next_tick_in_us().is_some_and(|us| self.alarm_is_after(us))
    }

    /// Whether a batch is on its way that has not applied yet.
    pub fn awaits_log(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Whether a batch that has not applied may make a job ready.
    fn may_become_ready(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.may_ready)
            || self.under_way.iter().any(|batch| batch.may_ready)
    }

    /// Sets the cluster's draining flag: `put` answers `DRAINING`.
    pub fn set_draining(&mut self, on: bool) {
        if self.epoch.is_some() {
            self.open_batch().builder.set_draining(on);
        } else {
            self.draining_wanted = Some(on);
        }
    }

    /// Marks an entry, to compare nodes' states by.
    pub fn mark(&mut self, nonce: u64) {
        self.open_batch().builder.mark(nonce);
    }

    /// Begins an operation on many jobs of a tube.
    pub fn bulk(&mut self, order: &BulkOrder<'_>) {
        let open = self.open_batch();
        open.builder.bulk(order);
        open.may_ready = true;
    }

    /// Sets how long, in microseconds, and how many keys of `put-once` are known.
    pub fn set_once_window(&mut self, window_us: u64, keys: u64) {
        self.open_batch().builder.set_once_window(window_us, keys);
    }

    /// Sets or removes the policy of tubes; see [`queue::Policy`].
    pub fn set_policy(&mut self, pattern: &str, policy: Option<&Policy>) {
        let open = self.open_batch();
        open.builder.set_policy(pattern, policy);
        open.may_ready = true;
    }

    /// Notes in the log that this node leaves service, or is back.
    pub fn set_leaving(&mut self, on: bool) {
        let node = self.node;
        self.open_batch().builder.leave(node, on);
    }

    /// Whether this node is leaving service.
    pub fn is_leaving(&self) -> bool {
        self.engine.leaving() == Some(self.node)
    }

    // ---- time ----

    /// Does what is due now: reserves that time out, and connections that this node may no longer keep.
    pub fn tick(&mut self) {
        self.clocks.advance();
        let now = self.clocks.monotonic();
        while let Some(&(at, conn)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.remove(&(at, conn));
            self.timer_fired(conn);
        }
        self.close_stuck(now);
        self.heed_lease();
        self.send_off();
    }

    /// Sets the alarm: how many microseconds from now [`Gateway::tick`] should be called, if nothing happens before;
    /// `other` is when the
    /// shell has something else to do. Until then [`Gateway::has_chores`] tells when something earlier comes up.
    pub fn set_alarm(&mut self, other: Option<u64>) -> Option<u64> {
        self.clocks.advance();
        let next = self.next_tick_in_us().into_iter().chain(other).min();
        self.alarm_us = next.map_or(u64::MAX, |us| self.clocks.monotonic() + us);
        next
    }

    /// Whether the alarm is set later than this.
    pub fn alarm_is_after(&self, us: u64) -> bool {
        self.clocks.monotonic() + us < self.alarm_us
    }

    fn next_tick_in_us(&self) -> Option<u64> {
        let now = self.clocks.monotonic();
        let want = self.timers.first().map(|(at, _)| *at);
        let lease = if self.sessions.len() > 0 { self.lease.changes_at(now) } else { None };
        let soonest = want.into_iter().chain(lease).min().map(|at| at.saturating_sub(now));
        soonest.into_iter().chain(self.next_send_off_in_us()).chain(self.unread.next_look_in_us(now)).min()
    }

    /// Both clocks now: stamp and lease, in microseconds.
    pub fn clocks_now(&mut self) -> (u64, u64) {
        self.clocks.advance();
        (self.clocks.stamp(), self.clocks.lease())
    }

    /// What a leader on this node looks at.
    pub fn ground(&mut self) -> crate::leader::Ground<'_> {
        let confirmed = self.standing() == lease::Standing::Good;
        crate::leader::Ground { engine: &self.engine, clocks: &mut self.clocks, confirmed }
    }

    // ---- towards sockets ----

    /// Notes that a session has bytes to write, and that its task should look again if `wake`.
    fn touch_session(&mut self, conn: ConnId, wake: bool) {
        if let Some(session) = self.sessions.get_mut(conn) {
            session.wake |= wake;
            if !session.dirty {
                session.dirty = true;
                self.dirty.push_back(conn);
            }
            self.unread.count(session);
        }
    }

    /// Writes what up to `most` sessions are owed, as far as their sockets take it, and wakes tasks that have something to do.
    /// True if more sessions wait for it.
    pub fn flush(&mut self, most: usize) -> bool {
        for _ in 0..most {
            let Some(conn) = self.dirty.pop_front() else { return false };
            self.flush_session(conn);
        }
        !self.dirty.is_empty()
    }

    /// Writes what one session is owed at once: the answers to commands that need no entry.
    pub fn flush_session(&mut self, conn: ConnId) {
        let Some(session) = self.sessions.get_mut(conn) else { return };
        if !session.dirty {
            return;
        }
        session.dirty = false;
        let woken = std::mem::take(&mut session.wake);
        let before = session.out.len();
        if session.dead || !write_out(session) || woken || session.input_ended || session.let_go {
            session.outlet.wake();
        }
        self.unread.wrote(session, before, self.clocks.monotonic());
    }

    /// Whether sessions wait for [`Gateway::flush`].
    pub fn has_replies(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Writes what one session is owed; its task calls this when the socket takes bytes again. An error means that the
    /// connection is broken.
    pub fn write(&mut self, conn: ConnId) -> std::io::Result<()> {
        self.clocks.advance();
        let Some(session) = self.sessions.get_mut(conn) else { return Ok(()) };
        let before = session.out.len();
        let written = write_all(session);
        self.unread.wrote(session, before, self.clocks.monotonic());
        written
    }

    /// Bodies to be read on the blocking pool; [`Gateway::cold_done`] takes each result.
    pub fn take_cold(&mut self) -> Vec<ColdRead> {
        std::mem::take(&mut self.cold)
    }
}

/// What a connection's task should do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// Listen on, or end.
    pub next: Next,
    /// Bytes wait for the socket.
    pub unwritten: bool,
}

/// Whether a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Take commands.
    Listen,
    /// Everything owed is written and nothing more will come, or the client must not get any more: close.
    Close,
    /// Everything owed is written and no more commands are taken: close without destroying what is on its way.
    Goodbye,
}

fn cold_want(slot: &Slot) -> Option<u64> {
    match slot {
        Slot::Cold { want, .. } => *want,
        Slot::Logged { .. } | Slot::Done(_) => None,
    }
}

/// Writes a session's replies; false when its task has to go on with it (the socket is full or broken).
fn write_out(session: &mut Session) -> bool {
    if session.out.is_empty() {
        return true;
    }
    match session.outlet.try_write(&session.out) {
        Ok(n) if n == session.out.len() => {
            session.traffic.bytes_out += n as u64;
            session.out.clear();
            give_back(&mut session.out);
            true
        }
        Ok(n) => {
            session.traffic.bytes_out += n as u64;
            bytes::Buf::advance(&mut session.out, n);
            false
        }
        Err(_) => false,
    }
}

/// Writes a session's replies as far as its socket takes them.
fn write_all(session: &mut Session) -> std::io::Result<()> {
    while !session.out.is_empty() {
        match session.outlet.try_write(&session.out) {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                session.traffic.bytes_out += n as u64;
                bytes::Buf::advance(&mut session.out, n);
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    give_back(&mut session.out);
    Ok(())
}

/// An idle connection keeps no large buffer.
fn give_back(out: &mut BytesMut) {
    if out.capacity() > OUT_KEEP_BYTES {
        *out = BytesMut::new();
    }
}
