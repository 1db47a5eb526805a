//! One client's connection as the gateway sees it: what it uses and watches, what it waits for, what it is owed.
//!
//! Replies leave in the order of commands. A command whose answer comes from the log takes a [`Slot`]; an answer that is
//! known at once waits behind the slots before it, or goes straight into `out` when there are none.
//!
//! ```text
//!   commands ──► slots: [Logged][Done USING a][Logged]   ──► out ──► socket
//!                        ▲ front leaves when it is answered
//! ```

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use beanpole_protocol::{PutHeader, Reply};
use bytes::{Bytes, BytesMut};

use super::conns::Traffic;
use super::tubes::TubeRef;

/// A connection's number, never used twice in a process: the slot in the table below, a count above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

const SLOT_BITS: u32 = 24;

impl ConnId {
    fn new(slot: usize, count: u64) -> Self {
        ConnId(count << SLOT_BITS | slot as u64)
    }
    /// Counts the connections of this process from 1.
    pub fn number(self) -> u64 {
        self.0 >> SLOT_BITS
    }
    fn slot(self) -> usize {
        (self.0 & ((1 << SLOT_BITS) - 1)) as usize
    }
}

/// The way back to the client. Implemented by the connection's task, and by tests.
pub trait Outlet: Send + Sync {
    /// Writes what the transport takes now, without waiting; 0 or an error of kind `WouldBlock` when it takes
    /// nothing.
    fn try_write(&self, bytes: &[u8]) -> std::io::Result<usize>;
    /// Something changed that the connection's task waits for: it may take commands again, has bytes left to
    /// write, or should close.
    fn wake(&self);
}

/// What a reserve that waits is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// Counts the reserves of this session.
    pub number: u64,
    /// Monotonic microseconds at which `TIMED_OUT` is due; none waits for ever.
    pub times_out_us: Option<u64>,
    /// When it is looked at next, in monotonic microseconds.
    pub timer_us: Option<u64>,
    /// Where it stands.
    pub state: WantState,
}

/// Where a want stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WantState {
    /// Whether a job is ready is being found out: the answer is due, or the want is new.
    Checked,
    /// The leader knows it, and offers it when something becomes ready.
    Waiting,
    /// The leader was told to try it in the next entry, whose outcome is the answer.
    Tried,
}

/// A command that cannot run before the answers of all earlier ones are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// `reserve` and `reserve-with-timeout`; none waits for ever.
    Reserve {
        /// Seconds.
        timeout: Option<u32>,
    },
    /// A command that is answered from the state, without an entry.
    Read(ReadCommand),
    /// Close when everything owed is written.
    Quit,
}

/// The commands that only read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadCommand {
    /// `peek ID`
    Peek(u64),
    /// `peek-ready` of the used tube
    PeekReady,
    /// `peek-delayed` of the used tube
    PeekDelayed,
    /// `peek-buried` of the used tube
    PeekBuried,
    /// `stats`
    Stats,
    /// `stats-tube NAME`
    StatsTube(Box<str>),
    /// `stats-job ID`
    StatsJob(u64),
    /// `list-tubes`
    ListTubes,
    /// `pause-tube NAME DELAY` of a tube that is not known here: another node's client may use or watch it.
    PauseTube(Box<str>, u32),
}

/// Why a session takes no further command now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Blocked {
    /// It takes commands.
    #[default]
    No,
    /// Earlier commands are not answered yet.
    Held(Held),
    /// A read waits for batches that were under way when it came.
    Reading(ReadCommand),
    /// A reserve waits for a job.
    Reserving(Want),
    /// A put waits, because puts are slowed (see `pace`).
    Slowed(PutHeader, Bytes),
    /// `quit` was received; it closes once `out` is written.
    Closing,
}

/// One reply that is owed, in the order of commands.
#[derive(Debug)]
pub enum Slot {
    /// The answer comes when the command's batch applies.
    Logged {
        /// Bytes of the body, if it is a put.
        body: usize,
        /// The command is the gateway's own: its answer is dropped.
        silent: bool,
    },
    /// Answered, but something before it is not.
    Done(Bytes),
    /// The answer's body is being read from the disk.
    Cold {
        /// Finds the slot again when the body is there.
        token: u64,
        /// `RESERVED id len` or `FOUND id len`, as bytes.
        header: Bytes,
        /// The want it answers, if it is a reserve.
        want: Option<u64>,
        /// When that reserve times out, in monotonic microseconds; none waits for ever.
        times_out_us: Option<u64>,
    },
}

/// Wants that ended without a job while a hand-out to them may still be on its way. As long as the session is there it gives such
/// a job back; its end must name them, or the job would stay with nobody until its TTR is over.
#[derive(Debug, Default)]
pub struct LooseWants {
    /// Each with the last batch that was closed before the leader was told. A batch after that one applies after everything that
    /// the leader had offered to the want.
    ended: Vec<(u64, u64)>,
}

impl LooseWants {
    /// Most wants that are remembered. The end of a session with more gives their jobs back, too, but counts a reserve.
    const MAX: usize = 16;

    /// A want ended, after `proposed` batches were closed and `applied` of them have applied.
    pub fn add(&mut self, want: u64, proposed: u64, applied: u64) {
        self.ended.retain(|(_, before)| applied <= *before);
        if self.ended.len() == Self::MAX {
            self.ended.remove(0);
        }
        self.ended.push((want, proposed));
    }

    /// Those that may still be handed a job when so many batches have applied.
    pub fn open(&self, applied: u64) -> impl Iterator<Item = u64> + '_ {
        self.ended.iter().filter(move |(_, before)| applied <= *before).map(|(want, _)| *want)
    }
}

/// One client's connection.
pub struct Session {
    /// Its number.
    pub conn: ConnId,
    /// Where `put` goes.
    pub used: TubeRef,
    /// Where `reserve` looks, in the order they were watched.
    pub watched: Vec<TubeRef>,
    /// Replies owed.
    pub slots: VecDeque<Slot>,
    /// Bytes to write.
    pub out: BytesMut,
    /// Whether it takes commands.
    pub blocked: Blocked,
    /// The way back.
    pub outlet: Arc<dyn Outlet>,
    /// Where the client is; none if it has no address.
    pub from: Option<SocketAddr>,
    /// When it connected, in monotonic microseconds.
    pub since_us: u64,
    /// What came and went.
    pub traffic: Traffic,
    /// Wants so far.
    pub wants: u64,
    /// Wants that ended without a job, though the leader may have offered them before it knew.
    pub loose: LooseWants,
    /// Bytes of bodies that were put and are not answered yet.
    pub unanswered_bytes: usize,
    /// While puts are slowed: when it may make the next, in monotonic microseconds.
    pub next_put_us: u64,
    /// Bytes of answers that wait behind others in `slots`.
    pub aside_bytes: usize,
    /// What of its replies is counted in the gateway's sum, in bytes.
    pub counted_bytes: usize,
    /// It has put a job.
    pub producer: bool,
    /// It has reserved a job.
    pub worker: bool,
    /// Its task stopped with commands at hand, until the session takes some again.
    pub stalled: bool,
    /// The client sends nothing more.
    pub input_ended: bool,
    /// It was let go: it takes no more commands, and closes when it is owed nothing.
    pub let_go: bool,
    /// It must be closed at once: its answers cannot be known, or its jobs may be others' by now.
    pub dead: bool,
    /// It is in the list of sessions with something to write or wake.
    pub dirty: bool,
    /// Its task should look again at what it may do.
    pub wake: bool,
}

impl Session {
    /// Whether a reply is to come or to be written.
    pub fn is_owed(&self) -> bool {
        !self.out.is_empty() || !self.slots.is_empty() || matches!(self.blocked, Blocked::Reading(_))
    }

    /// Appends a reply, or lets it wait behind those that are owed before it.
    pub fn reply(&mut self, reply: &Reply<'_>) {
        if self.slots.is_empty() {
            reply.encode(&mut self.out);
            return;
        }
        let mut bytes = BytesMut::new();
        reply.encode(&mut bytes);
        self.owe(Slot::Done(bytes.freeze()));
    }

    /// Appends a slot.
    pub fn owe(&mut self, slot: Slot) {
        if let Slot::Done(bytes) = &slot {
            self.aside_bytes += bytes.len();
        }
        self.slots.push_back(slot);
    }

    /// Answers the oldest command that waits for its batch, and moves what is complete to `out`.
    pub fn answer(&mut self, encode: impl FnOnce(&mut BytesMut)) {
        if let Some(Slot::Logged { body, silent }) = self.slots.front() {
            let silent = *silent;
            self.unanswered_bytes -= body;
            self.slots.pop_front();
            if !silent {
                encode(&mut self.out);
            }
            self.release_done();
            return;
        }
        let mut bytes = BytesMut::new();
        encode(&mut bytes);
        self.answer_later(Slot::Done(bytes.freeze()));
    }

    /// Puts another slot in the place of the oldest command that waits for its batch.
    pub fn answer_later(&mut self, answer: Slot) {
        for slot in &mut self.slots {
            if let Slot::Logged { body, silent } = slot {
                self.unanswered_bytes -= *body;
                let answer = if *silent { Slot::Done(Bytes::new()) } else { answer };
                if let Slot::Done(bytes) = &answer {
                    self.aside_bytes += bytes.len();
                }
                *slot = answer;
                return;
            }
        }
        unreachable!("an outcome answers a logged command");
    }

    /// The body of a cold slot has come (or its replacement, a whole reply, in case of damage).
    pub fn fill_cold(&mut self, token: u64, fill: impl FnOnce(Bytes) -> Bytes) {
        for slot in &mut self.slots {
            match slot {
                Slot::Cold { token: t, header, .. } if *t == token => {
                    let answer = fill(std::mem::take(header));
                    self.aside_bytes += answer.len();
                    *slot = Slot::Done(answer);
                    break;
                }
                Slot::Cold { .. } | Slot::Logged { .. } | Slot::Done(_) => {}
            }
        }
        self.release_done();
    }

    /// The body for a reserve's answer cannot be had: the reserve goes on, as far as its time is not over, unless answers of
    /// later commands wait behind it. Answers whether it does.
    pub fn reserve_again(&mut self, token: u64, now_us: u64) -> bool {
        let left_s = match self.slots.back() {
            Some(Slot::Cold { token: t, want: Some(_), times_out_us, .. }) if *t == token => {
                times_out_us.map(|at| at.saturating_sub(now_us) / 1_000_000)
            }
            Some(Slot::Cold { .. } | Slot::Logged { .. } | Slot::Done(_)) | None => return false,
        };
        if self.blocked != Blocked::No {
            return false;
        }
        self.slots.pop_back();
        let timeout = left_s.map(|left| u32::try_from(left).unwrap_or(u32::MAX));
        self.blocked = Blocked::Held(Held::Reserve { timeout });
        true
    }

    /// Whether a cold slot answers a `peek`, and not a reserve.
    pub fn is_cold_found(&self, token: u64) -> bool {
        self.slots.iter().any(|slot| match slot {
            Slot::Cold { token: t, header, .. } => *t == token && header.starts_with(b"FOUND"),
            Slot::Logged { .. } | Slot::Done(_) => false,
        })
    }

    /// Moves answered slots at the front to `out`.
    pub fn release_done(&mut self) {
        while let Some(Slot::Done(bytes)) = self.slots.front() {
            self.out.extend_from_slice(bytes);
            self.aside_bytes -= bytes.len();
            self.slots.pop_front();
        }
    }
}

/// All connections of this gateway.
#[derive(Default)]
pub struct Sessions {
    table: Vec<Option<Box<Session>>>,
    free: Vec<usize>,
    opened: u64,
    open: usize,
}

impl Sessions {
    /// Makes room for a connection and lets `make` fill it.
    pub fn insert(&mut self, make: impl FnOnce(ConnId) -> Session) -> ConnId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.table.push(None);
            self.table.len() - 1
        });
        assert!(slot < 1 << SLOT_BITS, "file descriptors run out long before");
        self.opened += 1;
        self.open += 1;
        let conn = ConnId::new(slot, self.opened);
        self.table[slot] = Some(Box::new(make(conn)));
        conn
    }

    /// The session of a connection that may be gone.
    pub fn get_mut(&mut self, conn: ConnId) -> Option<&mut Session> {
        self.table.get_mut(conn.slot())?.as_deref_mut().filter(|s| s.conn == conn)
    }

    /// The session of a connection that may be gone.
    pub fn get(&self, conn: ConnId) -> Option<&Session> {
        self.table.get(conn.slot())?.as_deref().filter(|s| s.conn == conn)
    }

    /// Forgets a connection.
    pub fn remove(&mut self, conn: ConnId) -> Option<Box<Session>> {
        self.get(conn)?;
        self.free.push(conn.slot());
        self.open -= 1;
        self.table[conn.slot()].take()
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open
    }

    /// How many were ever opened.
    pub fn opened(&self) -> u64 {
        self.opened
    }

    /// The open sessions of the next so many places from this one on, and the place behind them; none at the end.
    pub fn some_from(&self, place: usize, places: usize) -> (impl Iterator<Item = &Session>, Option<usize>) {
        let end = self.table.len().min(place.saturating_add(places));
        let some = &self.table[place.min(end)..end];
        (some.iter().flatten().map(|s| &**s), (end < self.table.len()).then_some(end))
    }

    /// Every open session.
    pub fn iter(&self) -> impl Iterator<Item = &Session> {
        self.table.iter().flatten().map(|s| &**s)
    }
}
