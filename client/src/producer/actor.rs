//! The producer's task: what waits, and what happens while there is no connection.

use super::counts::{Counters, count};
use super::exchange::End;
use super::link::{Link, SentPut};
use super::pace::Pace;
use super::put::{Put, Waiter};
use super::spooling::Spooling;
use super::{Outcome, ProducerSettings, Rejection};
use crate::roster::{Pick, Roster};
use crate::spool::{Replayed, Spool};
use rand::rngs::SmallRng;
use std::collections::BTreeMap;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// What handles say to the task.
pub(super) enum Message {
    /// A job to be put.
    Put(Put),
    /// Finish what there is and end.
    Close(oneshot::Sender<()>),
}

pub(super) struct Actor {
    pub(super) settings: ProducerSettings,
    pub(super) inbox: mpsc::UnboundedReceiver<Message>,
    /// What is to be sent, by its number: the order in which it came.
    pub(super) queue: BTreeMap<u64, Put>,
    next_number: u64,
    pub(super) roster: Roster,
    pub(super) pace: Pace,
    pub(super) random: SmallRng,
    pub(super) counters: Arc<Counters>,
    pub(super) spooling: Option<Spooling>,
    /// The last thing that went wrong, for those whose deadline passes.
    trouble: String,
    /// No more puts are taken; the task ends when all that it has are answered.
    is_closing: bool,
    closers: Vec<oneshot::Sender<()>>,
}

impl Actor {
    pub(super) fn new(
        settings: ProducerSettings,
        inbox: mpsc::UnboundedReceiver<Message>,
        counters: Arc<Counters>,
        spool: Option<Spool>,
        mut random: SmallRng,
    ) -> Actor {
        let for_roster = rand::SeedableRng::from_rng(&mut random);
        let roster = Roster::new(settings.addresses.clone(), settings.reconnect, for_roster);
        let of_spool = settings.spool.clone();
        let spooling = spool.zip(of_spool).map(|(spool, settings)| Spooling::new(spool, &settings));
        let pace = Pace::new(settings.window, settings.refused);
        Actor {
            inbox,
            queue: BTreeMap::new(),
            next_number: 0,
            roster,
            pace,
            random,
            counters,
            spooling,
            trouble: "no node was reached yet".to_owned(),
            is_closing: false,
            closers: Vec::new(),
            settings,
        }
    }

    pub(super) async fn run(mut self) {
        while let Some(mut link) = self.connect().await {
            match self.serve(&mut link).await {
                End::Over => break,
                End::Left => {}
                End::Lost { why, oldest } => self.leave(link, &why, oldest),
            }
        }
        if let Some(spooling) = self.spooling {
            spooling.close().await;
        }
        for closer in self.closers {
            // Nobody needs to listen any more.
            let _gone = closer.send(());
        }
    }

    /// Connects to one node or another, for as long as it takes. None when the producer is to end.
    async fn connect(&mut self) -> Option<Link> {
        loop {
            match self.roster.pick(Instant::now()) {
                Pick::Connect(node) => {
                    let address = self.roster.address(node).clone();
                    let attempt = Link::open(node, address, self.settings.connect_timeout);
                    match self.meanwhile(attempt).await? {
                        Ok(link) => {
                            tracing::debug!(address = %self.roster.address(node), "connected");
                            count(&self.counters.connects);
                            return Some(link);
                        }
                        Err(why) => {
                            tracing::debug!(%why, "cannot connect");
                            self.roster.failed(node, Instant::now());
                            self.trouble = why;
                        }
                    }
                }
                Pick::WaitUntil(at) => self.meanwhile(tokio::time::sleep_until(at)).await?,
            }
        }
    }

    /// Waits for `event`; meanwhile takes what is to be put and answers those whose deadline passes. None when the producer is
    /// to end.
    async fn meanwhile<T>(&mut self, event: impl Future<Output = T>) -> Option<T> {
        let mut event = pin!(event);
        loop {
            if self.is_closing && self.queue.is_empty() {
                return None;
            }
            let deadline = self.next_deadline();
            tokio::select! {
                value = &mut event => return Some(value),
                message = self.inbox.recv(), if !self.is_closing => self.take(message),
                records = Spooling::next(&mut self.spooling) => self.replay(records),
                () = sleep_until(deadline) => self.expire(Instant::now()),
            }
        }
    }

    /// Takes what a handle said; none when the last one is gone.
    pub(super) fn take(&mut self, message: Option<Message>) {
        match message {
            Some(Message::Put(put)) => match &self.spooling {
                Some(spooling) if spooling.is_away() => self.spool(put),
                Some(_) | None => self.enqueue(put),
            },
            Some(Message::Close(done)) => {
                self.close();
                self.closers.push(done);
                self.inbox.close();
                // What was sent before the end of the inbox is still answered.
                while let Ok(Message::Put(put)) = self.inbox.try_recv() {
                    self.answer(put, Outcome::Rejected(Rejection::Closed));
                }
            }
            None => self.close(),
        }
    }

    pub(super) fn enqueue(&mut self, put: Put) {
        self.queue.insert(self.next_number, put);
        self.next_number += 1;
    }

    fn close(&mut self) {
        self.is_closing = true;
        self.queue.retain(|_, put| !put.is_spooled());
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing
    }

    /// Those that wait for their turn to be sent and may no longer.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((number, _)) = self.first_deadline().filter(|(_, deadline)| *deadline <= now) {
            let Some(put) = self.queue.remove(&number) else { return };
            if self.spooling.is_some() {
                self.spool(put);
                continue;
            }
            let outcome = if put.is_doubtful {
                Outcome::Unknown
            } else {
                Outcome::Rejected(Rejection::NotTaken(self.trouble.clone()))
            };
            self.answer(put, outcome);
        }
    }

    /// All calls have the same time, so the first in the queue is the first that has none left.
    fn first_deadline(&self) -> Option<(u64, Instant)> {
        self.queue.iter().find_map(|(number, put)| Some((*number, put.deadline()?)))
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.first_deadline().map(|(_, deadline)| deadline)
    }

    /// Tells whoever waits.
    pub(super) fn answer(&mut self, put: Put, outcome: Outcome) {
        let caller = match put.waiter {
            Waiter::Caller(caller) => caller,
            Waiter::Spool(number) => return self.replayed(number, &outcome),
            Waiter::Nobody => return,
        };
        count(match &outcome {
            Outcome::Inserted(_) => &self.counters.inserted,
            Outcome::Spooled => &self.counters.spooled,
            Outcome::Rejected(_) => &self.counters.rejected,
            Outcome::Unknown => &self.counters.unknown,
        });
        drop(caller.place);
        // A caller that is gone does not want to know.
        let _gone = caller.answer.send(outcome);
    }

    /// What came of a put that lies in the spool.
    fn replayed(&mut self, number: u64, outcome: &Outcome) {
        let Some(spooling) = &mut self.spooling else { return };
        match outcome {
            Outcome::Inserted(_) => spooling.done(number, Replayed::Inserted),
            Outcome::Rejected(why) => {
                tracing::error!(%why, "a spooled put is dropped");
                spooling.done(number, Replayed::Refused);
            }
            Outcome::Spooled | Outcome::Unknown => {}
        }
    }

    /// Puts a put back where it was in the order, to be sent again.
    pub(super) fn again(&mut self, number: u64, put: Put) {
        if self.is_closing && put.is_spooled() {
            return;
        }
        count(&self.counters.retries);
        self.queue.insert(number, put);
    }

    /// Notes what went wrong, for those whose deadline passes.
    pub(super) fn note_trouble(&mut self, what: String) {
        self.trouble = what;
    }

    /// A connection is of no more use: what was under way is sent again where that is safe.
    fn leave(&mut self, mut link: Link, why: &str, oldest: Option<(SentPut, bool)>) {
        count(&self.counters.losses);
        self.note_trouble(format!("{}: {why}", self.roster.address(link.node)));
        tracing::debug!(why = self.trouble, "connection lost");
        self.roster.failed(link.node, Instant::now());
        let rest = link.abandon(io::Error::other(why.to_owned()));
        for (sent, had_no_effect) in oldest.into_iter().chain(rest) {
            self.settle(sent, had_no_effect);
        }
    }

    /// A put that was sent and will not be answered.
    fn settle(&mut self, sent: SentPut, had_no_effect: bool) {
        let SentPut { number, mut put, once, .. } = sent;
        if had_no_effect {
            self.again(number, put);
        } else if once || put.is_spooled() {
            put.is_doubtful = true;
            self.again(number, put);
        } else {
            self.answer(put, Outcome::Unknown);
        }
    }
}

/// Sleeps until then, or for ever.
pub(super) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
