//! One connection of a producer: what was sent over it and is unanswered, in the order in which the replies will come.

use super::put::Put;
use crate::connection::Connection;
use crate::error::Error;
use crate::stream::Address;
use crate::{ClientReply, Command, Tube};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of puts that are unanswered; beyond that nothing is added. One put of any size always may.
const UNANSWERED_BYTES_MAX: usize = 4 << 20;

/// What was sent and awaits its reply.
pub(super) enum Sent {
    /// A `use`.
    Use,
    /// A put.
    Put(SentPut),
}

/// A put that is under way.
pub(super) struct SentPut {
    /// Its place in the order of puts.
    pub(super) number: u64,
    pub(super) put: Put,
    /// When it was sent.
    pub(super) at: Instant,
    /// Whether it went with its key, so that it may be sent again.
    pub(super) once: bool,
}

pub(super) struct Link {
    /// Which of the addresses.
    pub(super) node: usize,
    pub(super) connection: Connection,
    /// Whether the server knows `put-once`.
    pub(super) knows_once: bool,
    /// Nothing more is sent: what is under way is still answered, then another node is tried.
    pub(super) leaving: bool,
    pub(super) sent: VecDeque<Sent>,
    tube: Option<Arc<str>>,
    puts: usize,
    bytes: usize,
}

impl Link {
    /// Connects and asks what the server can do, within `limit` in all.
    pub(super) async fn open(node: usize, address: Address, limit: Duration) -> Result<Link, String> {
        let begun = Instant::now();
        let connected = Connection::connect_within(address.clone(), limit).await;
        let mut connection = connected.map_err(|error| error.to_string())?;
        connection.set_timeout(Some(limit.saturating_sub(begun.elapsed())));
        let knows_once = connection.knows_put_once().await.map_err(|error| format!("{address}: {error}"))?;
        connection.set_timeout(None);
        let sent = VecDeque::new();
        Ok(Link { node, connection, knows_once, leaving: false, sent, tube: None, puts: 0, bytes: 0 })
    }

    /// Whether one more put may be sent when `window` may be unanswered.
    pub(super) fn has_room(&self, window: usize) -> bool {
        !self.leaving && self.puts < window && (self.puts == 0 || self.bytes < UNANSWERED_BYTES_MAX)
    }

    /// Appends a put, behind a `use` if it is for another tube than the last one.
    pub(super) fn send(&mut self, number: u64, put: Put, now: Instant) -> Result<(), Error> {
        if self.tube.as_ref() != Some(&put.tube) {
            let tube =
                Tube::new(put.tube.as_bytes()).ok_or_else(|| Error::BadTubeName(put.tube.to_string()))?;
            self.connection.send(&Command::Use(tube));
            self.sent.push_back(Sent::Use);
            self.tube = Some(put.tube.clone());
        }
        let once = match &put.key {
            Some(key) if self.knows_once => {
                self.connection.send_put_once(key, &put.body, put.options)?;
                true
            }
            Some(_) | None => {
                self.connection.send_put(&put.body, put.options)?;
                false
            }
        };
        self.puts += 1;
        self.bytes += put.body.len();
        self.sent.push_back(Sent::Put(SentPut { number, put, at: now, once }));
        Ok(())
    }

    /// The next reply; or how the connection ended, also while nothing is unanswered. May be cancelled and called again.
    pub(super) async fn next(&mut self) -> Result<ClientReply, Error> {
        if self.connection.unanswered() > 0 {
            self.connection.recv().await
        } else {
            Err(Error::NotSent { verb: "put", source: self.connection.closed().await })
        }
    }

    /// What the oldest reply is for.
    pub(super) fn take_oldest(&mut self) -> Option<Sent> {
        let oldest = self.sent.pop_front()?;
        if let Sent::Put(sent) = &oldest {
            self.puts -= 1;
            self.bytes -= sent.put.body.len();
        }
        Some(oldest)
    }

    /// When the oldest unanswered put was sent.
    pub(super) fn oldest_since(&self) -> Option<Instant> {
        self.puts_sent().next().map(|sent| sent.at)
    }

    /// The puts that are unanswered, the oldest first.
    pub(super) fn puts_sent(&self) -> impl Iterator<Item = &SentPut> {
        self.sent.iter().filter_map(|sent| match sent {
            Sent::Put(put) => Some(put),
            Sent::Use => None,
        })
    }

    /// Gives the connection up; takes what was unanswered, with whether it certainly had no effect.
    pub(super) fn abandon(&mut self, why: io::Error) -> Vec<(SentPut, bool)> {
        self.connection.give_up(why);
        let mut left = Vec::new();
        while let Some(oldest) = self.take_oldest() {
            let is_certain = self.connection.take_lost().is_some_and(|error| error.had_no_effect());
            if let Sent::Put(put) = oldest {
                left.push((put, is_certain));
            }
        }
        left
    }
}
