//! What each connection does, for operators. The counts are plain numbers that a session keeps anyway; everything else is
//! looked up when somebody asks, a part of the sessions at a time.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use beanpole_protocol::Request;

use super::Gateway;
use super::session::{Blocked, ConnId, Session};
use crate::net::Address;

/// Tubes named of those that a connection watches.
const WATCHED_MAX: usize = 8;
/// Jobs counted of those that a connection holds.
const RESERVED_MAX: usize = 10_000;

/// What came and went on a connection, since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests, those that cannot be understood included.
    pub commands: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Bytes of the buffer with what was received and is not decoded.
    pub held: usize,
    /// The last command's word; empty before the first.
    pub last: &'static str,
}

/// One connection.
#[derive(Clone, Debug)]
pub struct Conn {
    /// Counts the connections of this process from 1.
    pub number: u64,
    /// Where the client is; none if it has no address.
    pub from: Option<SocketAddr>,
    /// How long it has been open, in microseconds.
    pub age_us: u64,
    /// Where its puts go.
    pub used: Arc<str>,
    /// The first few tubes that it watches.
    pub watched: Vec<Arc<str>>,
    /// How many it watches.
    pub watching: usize,
    /// Jobs that it holds.
    pub reserved: u64,
    /// It waits for a job.
    pub waiting: bool,
    /// Bytes of memory that its buffers take: what it sent and is not decoded, puts that are not answered, replies that it
    /// has not taken.
    pub buffers: usize,
    /// What came and went.
    pub traffic: Traffic,
}

/// Which connections are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one with this number.
    Number(u64),
    /// All from this very address, or, of an IPv6 network, from any in it.
    Ip(IpAddr),
    /// All from this address as limits see it.
    Address(Address),
}

impl Which {
    fn is_meant(self, session: &Session) -> bool {
        let ip = session.from.map(|from| from.ip().to_canonical());
        match self {
            Which::Number(number) => session.conn.number() == number,
            Which::Ip(wanted) => ip == Some(wanted.to_canonical()),
            Which::Address(address) => ip.map(Address::of) == Some(address),
        }
    }
}

impl Gateway {
    pub(super) fn note_request(&mut self, conn: ConnId, request: &Request<'_>) {
        if let Some(session) = self.sessions.get_mut(conn) {
            session.traffic.commands += 1;
            session.traffic.last = word(request);
        }
    }

    /// So many bytes came on a connection since this was told last; `held`: bytes of the buffer with what is not decoded yet.
    pub fn note_input(&mut self, conn: ConnId, bytes: usize, held: usize) {
        if let Some(session) = self.sessions.get_mut(conn) {
            session.traffic.bytes_in += bytes as u64;
            session.traffic.held = held;
        }
    }

    /// What came and went on the connections of the next so many places; answers the place to go on from.
    pub fn traffic_from(
        &self,
        place: usize,
        places: usize,
        found: &mut Vec<(u64, Traffic)>,
    ) -> Option<usize> {
        let (some, next) = self.sessions.some_from(place, places);
        found.extend(some.map(|session| (session.conn.number(), session.traffic)));
        next
    }

    /// The connections of the next so many places; answers the place to go on from.
    pub fn conns_from(&mut self, place: usize, places: usize, found: &mut Vec<Conn>) -> Option<usize> {
        self.clocks.advance();
        let (some, next) = self.sessions.some_from(place, places);
        found.extend(some.map(|session| self.conn_view(session)));
        next
    }

    fn conn_view(&self, session: &Session) -> Conn {
        let held = self.session_id(session.conn).map_or(0, |id| {
            let jobs = self.engine.session_jobs(id).take(RESERVED_MAX);
            jobs.count() as u64
        });
        let watched = session.watched.iter().take(WATCHED_MAX);
        Conn {
            number: session.conn.number(),
            from: session.from,
            age_us: self.clocks.monotonic().saturating_sub(session.since_us),
            used: self.tubes.get(session.used).shared_name(),
            watched: watched.map(|tube| self.tubes.get(*tube).shared_name()).collect(),
            watching: session.watched.len(),
            reserved: held,
            waiting: matches!(session.blocked, Blocked::Reserving(_)),
            buffers: session.counted_bytes + session.unanswered_bytes + session.traffic.held,
            traffic: session.traffic,
        }
    }

    /// Closes connections at once; jobs that they hold are ready again. Answers how many there were.
    pub fn kill(&mut self, which: Which) -> usize {
        let meant = self.sessions.iter().filter(|session| !session.dead && which.is_meant(session)).count();
        self.close_all(|session| !session.dead && which.is_meant(session));
        meant
    }
}

/// The first word of a request, as clients write it.
fn word(request: &Request<'_>) -> &'static str {
    match request {
        Request::Put { header, .. } if header.key.is_some() => "put-once",
        Request::Put { .. } => "put",
        Request::Bad(_) => "(bad)",
        Request::Command(command) => command.word(),
    }
}
