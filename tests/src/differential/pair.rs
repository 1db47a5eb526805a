//! Two servers side by side, with an observer connection to each.

use std::io;

use super::step::MISCOUNTED;
use crate::connection::{Connection, Reply};
use crate::server::{Kind, Server, Setup, StartError};

/// Starts a fresh pair.
pub type OpenPair<'a> = dyn Fn() -> Result<Pair, StartError> + Sync + 'a;

/// Jobs up to this size are accepted by both servers; small, so that too big ones are cheap.
pub const MAX_JOB_SIZE: usize = 1000;

/// One of the two servers.
pub struct Side {
    /// "left" or "right".
    pub name: &'static str,
    /// Where its clients connect: the server itself, or a proxy in front of it.
    pub addr: std::net::SocketAddr,
    /// A connection that takes no part in the sequence.
    observer: Connection,
    /// Commands that the observer has sent, by the key of `stats` that counts them.
    observed: [(&'static str, u64); 3],
    /// Malformed lines that the server has counted as if they were commands, by the key that counts them.
    miscounted: Vec<(&'static str, u64)>,
    /// Kept alive; killed when dropped.
    server: Server,
}

impl Side {
    /// Starts a server as `setup` says.
    pub fn start(name: &'static str, setup: &Setup) -> Result<Side, StartError> {
        let setup = setup.clone().in_memory().flags(["-z", &MAX_JOB_SIZE.to_string()]);
        let server = Server::try_start(&setup)?;
        let addr = server.addr();
        Ok(Side::with_server(name, server, addr))
    }

    /// A side whose clients connect to `addr`, in front of `server`.
    pub fn with_server(name: &'static str, server: Server, addr: std::net::SocketAddr) -> Side {
        let observer = server.connect();
        let observed = [("cmd-stats", 0), ("cmd-stats-job", 0), ("cmd-stats-tube", 0)];
        Side { name, addr, observer, observed, miscounted: Vec::new(), server }
    }

    /// A new connection that takes part.
    pub fn connect(&self) -> io::Result<Connection> {
        Connection::open(self.addr)
    }

    /// Asks something on the observer's connection.
    pub fn observe(&mut self, command: &str) -> io::Result<Reply> {
        let word = command.split(' ').next().unwrap_or_default();
        for (key, count) in &mut self.observed {
            if key.strip_prefix("cmd-") == Some(word) {
                *count += 1;
            }
        }
        self.observer.command(command)
    }

    /// Takes note of a malformed line that was sent.
    ///
    /// beanstalkd counts a command before it has validated all of it in two places only: `cmd-pause-tube`
    /// before the tube's name is looked at, and `cmd-put` before garbage at the line's end is. Beanpole
    /// counts well-formed commands. Exactly these lines are set aside, on a side that is beanstalkd; every
    /// other malformed line must leave all counters alone on both sides.
    pub fn sent_malformed(&mut self, line: &str) {
        let Some((_, key)) = MISCOUNTED.iter().find(|(miscounted, _)| *miscounted == line) else { return };
        if self.server.kind() != Kind::Beanstalkd {
            return;
        }
        match self.miscounted.iter_mut().find(|(name, _)| name == key) {
            Some((_, count)) => *count += 1,
            None => self.miscounted.push((key, 1)),
        }
    }

    /// What the counter `key` of `stats` has counted that is no well-formed command of a sequence: the
    /// observer's own commands and malformed lines.
    pub fn counted_aside(&self, key: &str) -> u64 {
        let aside = self.observed.iter().chain(&self.miscounted);
        aside.filter(|(name, _)| *name == key).map(|(_, count)| count).sum()
    }

    /// A value of `stats`, read by the observer.
    pub fn stat(&mut self, key: &str) -> io::Result<u64> {
        let reply = self.observe("stats")?;
        let value = reply.stat(key).and_then(|value| value.parse().ok());
        value.ok_or_else(|| io::Error::other(format!("stats of the {} side has no {key}", self.name)))
    }

    /// Deletes jobs that a sequence left, many in one write. Gives those that could not be deleted yet.
    pub fn delete_all(&mut self, ids: &[u64]) -> io::Result<Vec<u64>> {
        let mut left = Vec::new();
        for chunk in ids.chunks(100) {
            let request: String = chunk.iter().map(|id| format!("delete {id}\r\n")).collect();
            self.observer.send(request.as_bytes())?;
            for id in chunk {
                if self.observer.reply()?.line != "DELETED" {
                    left.push(*id);
                }
            }
        }
        Ok(left)
    }
}

/// The two servers under comparison.
pub struct Pair {
    /// The oracle.
    pub left: Side,
    /// The one under test.
    pub right: Side,
    /// Sequences run so far: makes tube names unique.
    pub sequences: u64,
}

impl Pair {
    /// Two sides, ready for sequences.
    pub fn new(left: Side, right: Side) -> Pair {
        Pair { left, right, sequences: 0 }
    }

    /// Starts both servers.
    pub fn start(left: &Setup, right: &Setup) -> Result<Pair, StartError> {
        Ok(Pair::new(Side::start("left", left)?, Side::start("right", right)?))
    }
}
