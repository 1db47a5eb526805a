//! The clients: producers and workers, a thread and a connection each.
//!
//! A client stays at its node as long as its connection lives, and goes to another one when it breaks: that is what a
//! cluster promises to be enough. Once its own node is back it returns there between two commands, so that the load stays
//! spread over many faults. It writes down when it had success, and the account what became of every job.

use super::account::{HoldEnd, HoldRef, PutFate};
use super::run::Shared;
use super::wire::Wire;
use crate::body::{Bodies, Verdict};
use beanpole_protocol::{ClientReply, Command, Tube};
use bytes::Bytes;
use std::io;
use std::time::Duration;

/// How long a connect and the first commands may take; then the next node is tried.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// How long to wait after all nodes were tried in vain, or one let the client go at once.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How often a waiting client looks whether the run is over.
const LOOK: Duration = Duration::from_millis(20);
/// The timeout of a reserve, in seconds: long enough that workers mostly wait on the server's side.
const RESERVE_TIMEOUT_S: u32 = 10;
/// The longest sleep before a put or while a job is held in one piece, so that the end of the run is noticed.
const NAP: Duration = Duration::from_millis(20);

/// What a client is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Puts at a steady rate.
    Produce {
        /// Its number among the producers.
        producer: usize,
    },
    /// Reserves, holds for so long, and deletes.
    Work {
        /// How long it holds a job.
        hold: Duration,
        /// Whether its successes count for the pauses; a holder's are too rare.
        counted: bool,
    },
}

/// Something that a client saw and should not have seen, unless its node was in trouble.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// When, in ns.
    pub at_ns: u64,
    /// The node's index.
    pub node: usize,
    /// What it was.
    pub what: String,
    /// Whether the connection was lost.
    pub broken: bool,
}

/// What one client did.
#[derive(Debug, Default)]
pub struct Log {
    /// Its number.
    pub client: usize,
    /// From when on it was connected to which node.
    pub nodes: Vec<(u64, usize)>,
    /// When puts were acknowledged, in ns.
    pub puts: Vec<u64>,
    /// When jobs were received, in ns (not a holder's).
    pub reserves: Vec<u64>,
    /// How long each put took, with the time of its sending, in ns.
    pub put_times: Vec<(u64, u64)>,
    /// What went wrong.
    pub troubles: Vec<Trouble>,
}

impl Log {
    /// The node that the client was connected to last at this time.
    pub fn node_at(&self, at_ns: u64) -> Option<usize> {
        self.nodes.iter().take_while(|(from, _)| *from <= at_ns).last().map(|(_, node)| *node)
    }
}

/// One client.
pub struct Client<'a> {
    shared: &'a Shared,
    role: Role,
    bodies: Bodies,
    /// The node that it goes to when it can.
    home: usize,
    /// The node it is connected to, or will try first.
    node: usize,
    wire: Option<Wire>,
    log: Log,
}

impl<'a> Client<'a> {
    /// A client whose first node is `node`.
    pub fn new(shared: &'a Shared, client: usize, role: Role, node: usize) -> Client<'a> {
        let bodies = Bodies::new(shared.run, shared.settings.body_size.clone());
        Client { shared, role, bodies, home: node, node, wire: None, log: Log { client, ..Log::default() } }
    }

    /// Works until the run is over.
    pub fn run(mut self) -> Log {
        match self.role {
            Role::Produce { producer } => self.produce(producer),
            Role::Work { hold, counted } => self.work(hold, counted),
        }
        self.log
    }

    /// Connects to the next node that takes the client; false when the run is over before one does.
    fn connect(&mut self, over: fn(&Shared) -> bool) -> bool {
        let nodes = self.shared.nodes.len();
        let mut tried = 0;
        while !over(self.shared) {
            let opened = self.open();
            if let Ok(wire) = opened {
                self.wire = Some(wire);
                self.log.nodes.push((self.shared.now_ns(), self.node));
                return true;
            }
            self.node = (self.node + 1) % nodes;
            tried += 1;
            if tried % nodes == 0 {
                std::thread::sleep(RETRY_PAUSE);
            }
        }
        false
    }

    fn open(&self) -> io::Result<Wire> {
        let mut wire = Wire::open(&self.shared.nodes[self.node].address, CONNECT_LIMIT)?;
        let tube = Tube::new(self.shared.tube.as_bytes()).expect("the tube's name is made by this program");
        let commands: &[Command<'_>] = match self.role {
            Role::Produce { .. } => &[Command::Use(tube)],
            Role::Work { .. } => &[Command::Watch(tube), Command::Ignore(Tube::DEFAULT)],
        };
        for command in commands {
            let reply = wire.ask(command, CONNECT_LIMIT)?;
            if !matches!(reply, ClientReply::Using(_) | ClientReply::Watching(_)) {
                return Err(io::Error::other(reply.word()));
            }
        }
        Ok(wire)
    }

    /// The connection is lost: the next one is made to another node.
    fn broken(&mut self, during: &str, error: &io::Error) {
        let at_ns = self.shared.now_ns();
        self.wire = None;
        let what = format!("connection lost during {during}: {error}");
        self.log.troubles.push(Trouble { at_ns, node: self.node, what, broken: true });
        self.shared.events.lock().connection_lost(self.node, at_ns);
        self.node = self.elsewhere();
        // Where no node has a majority, each takes a client and lets it go: as a real client, this one does not hammer at them.
        let connected_ns = self.log.nodes.last().map_or(0, |(from, _)| *from);
        if at_ns.saturating_sub(connected_ns) < RETRY_PAUSE.as_nanos() as u64 {
            std::thread::sleep(RETRY_PAUSE);
        }
    }

    /// Another node than this one, such that the clients of a dead node spread over the others.
    fn elsewhere(&self) -> usize {
        let nodes = self.shared.nodes.len();
        let others = nodes.saturating_sub(1).max(1);
        (self.node + 1 + self.log.client % others) % nodes
    }

    /// Between two commands, holding nothing: back to the own node, if that is sound again.
    fn return_home(&mut self) {
        if self.node != self.home && self.shared.events.lock().is_sound(self.home, self.shared.now_ns()) {
            self.wire = None;
            self.node = self.home;
        }
    }

    fn refused(&mut self, during: &str, reply: &ClientReply) {
        let (at_ns, what) = (self.shared.now_ns(), format!("{} to {during}", reply.word()));
        self.log.troubles.push(Trouble { at_ns, node: self.node, what, broken: false });
    }

    fn wire(&mut self) -> &mut Wire {
        self.wire.as_mut().expect("a connected client")
    }

    /// Waits for a reply until the run is over; `None` then.
    fn reply(&mut self) -> io::Result<Option<ClientReply>> {
        loop {
            if let Some(reply) = self.wire().receive(LOOK)? {
                return Ok(Some(reply));
            }
            if self.shared.is_over() {
                return Ok(None);
            }
        }
    }

    /// Waits until `due_ns` or until `over`, and notices meanwhile if the connection is lost.
    fn idle_until(&mut self, due_ns: u64, over: fn(&Shared) -> bool) -> io::Result<()> {
        loop {
            let now = self.shared.now_ns();
            if now >= due_ns || over(self.shared) {
                return Ok(());
            }
            let wait = Duration::from_nanos(due_ns - now).min(NAP);
            if let Some(reply) = self.wire().receive(wait)? {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("unasked {}", reply.word())));
            }
        }
    }

    fn produce(&mut self, producer: usize) {
        let producers = u64::from(self.shared.settings.producers);
        let interval = 1_000_000_000 * producers / u64::from(self.shared.settings.rate);
        let mut due = self.shared.now_ns() + interval * producer as u64 / producers;
        while !self.shared.is_draining() {
            self.return_home();
            if self.wire.is_none() && !self.connect(Shared::is_draining) {
                return;
            }
            if let Err(e) = self.idle_until(due, Shared::is_draining) {
                self.broken("a rest", &e);
                continue;
            }
            if self.shared.is_draining() {
                return;
            }
            self.put(producer);
            // Turns missed in a pause are not made up for, and the next ones come at the same beat as before: the rate stays
            // steady, and the producers stay spread over it.
            let late = self.shared.now_ns().saturating_sub(due);
            due += (late / interval + 1) * interval;
        }
    }

    fn put(&mut self, producer: usize) {
        let sent_ns = self.shared.now_ns();
        let sequence = self.shared.account.lock().put(producer, self.node);
        let ttr = self.shared.settings.ttr;
        let wire = self.wire.as_mut().expect("a connected client");
        let body = self.bodies.stamp(producer as u32, sequence, sent_ns);
        let fate = match wire.send_put(ttr, body) {
            Err(e) => {
                self.broken("put", &e);
                PutFate::NotSent
            }
            Ok(()) => self.put_fate(sent_ns),
        };
        self.shared.account.lock().put_ended(producer, sequence, fate);
    }

    fn put_fate(&mut self, sent_ns: u64) -> PutFate {
        match self.reply() {
            Ok(Some(ClientReply::Inserted(id))) => {
                let at_ns = self.shared.now_ns();
                self.log.puts.push(at_ns);
                self.log.put_times.push((sent_ns, at_ns - sent_ns));
                PutFate::Acked { id: id.0, at_ns }
            }
            Ok(Some(other)) => {
                self.refused("put", &other);
                // A queue that refuses is not asked again at once.
                std::thread::sleep(RETRY_PAUSE);
                PutFate::Refused
            }
            Ok(None) => PutFate::Unknown,
            Err(e) => {
                self.broken("put", &e);
                PutFate::Unknown
            }
        }
    }

    fn work(&mut self, hold: Duration, counted: bool) {
        while !self.shared.is_over() {
            self.return_home();
            if self.wire.is_none() && !self.connect(Shared::is_over) {
                return;
            }
            if let Err(e) = self.wire().send(&Command::ReserveWithTimeout(RESERVE_TIMEOUT_S)) {
                self.broken("reserve", &e);
                continue;
            }
            match self.reply() {
                Ok(Some(ClientReply::Reserved { id, data })) => self.received(id, &data, hold, counted),
                Ok(Some(ClientReply::TimedOut | ClientReply::DeadlineSoon)) => {}
                Ok(Some(other)) => {
                    self.refused("reserve", &other);
                    std::thread::sleep(RETRY_PAUSE);
                }
                // A job that comes now goes back with the connection.
                Ok(None) => return,
                Err(e) => self.broken("reserve", &e),
            }
        }
    }

    fn received(&mut self, id: beanpole_protocol::JobId, data: &Bytes, hold: Duration, counted: bool) {
        let at_ns = self.shared.now_ns();
        if counted {
            self.log.reserves.push(at_ns);
        }
        let Verdict::Ours(stamp) = self.bodies.judge(data) else {
            self.shared.account.lock().corrupted();
            return self.broken("a corrupted job", &io::ErrorKind::InvalidData.into());
        };
        let job = (stamp.producer, stamp.sequence);
        let at = (self.log.client, self.node);
        let Some(held) = self.shared.account.lock().handed_out(job, id.0, at, at_ns) else { return };
        let due = at_ns + hold.as_nanos() as u64;
        // Draining, nothing is held for longer than it must be.
        if let Err(e) = self.idle_until(due, Shared::is_draining) {
            self.hold_ended(held, HoldEnd::Broken { at_ns: self.shared.now_ns() });
            return self.broken("a held job", &e);
        }
        self.delete(id, held);
    }

    fn delete(&mut self, id: beanpole_protocol::JobId, held: HoldRef) {
        let sent_ns = self.shared.now_ns();
        self.hold_ended(held, HoldEnd::Deleting { sent_ns });
        if let Err(e) = self.wire().send(&Command::Delete(id)) {
            self.hold_ended(held, HoldEnd::Broken { at_ns: sent_ns });
            return self.broken("delete", &e);
        }
        let reply = self.reply();
        let at_ns = self.shared.now_ns();
        let end = match &reply {
            Ok(Some(ClientReply::Deleted)) => HoldEnd::Deleted { sent_ns, at_ns },
            Ok(Some(ClientReply::NotFound)) => HoldEnd::Vanished { sent_ns, at_ns },
            Ok(Some(_) | None) | Err(_) => HoldEnd::DeleteUnknown { sent_ns },
        };
        self.hold_ended(held, end);
        match reply {
            Ok(Some(ClientReply::Deleted | ClientReply::NotFound) | None) => {}
            Ok(Some(other)) => self.refused("delete", &other),
            Err(e) => self.broken("delete", &e),
        }
    }

    fn hold_ended(&self, held: HoldRef, end: HoldEnd) {
        self.shared.account.lock().hold_ended(held, end);
    }
}
