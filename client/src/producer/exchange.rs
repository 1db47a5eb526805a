//! What happens on a connection while it lasts: puts go out, replies come in.

use super::actor::{Actor, Message, sleep_until};
use super::counts::count;
use super::link::{Link, Sent, SentPut};
use super::put::Waiter;
use super::spooling::Spooling;
use super::{Outcome, Rejection};
use crate::ClientReply;
use crate::commands::refusal;
use crate::error::Refusal;
use tokio::time::Instant;

/// So many rounds of `OUT_OF_MEMORY` make another node worth a try.
const REFUSALS_BEFORE_LEAVING: u32 = 2;

/// How the use of a connection ended.
pub(super) enum End {
    /// The producer is to end, and everything is answered.
    Over,
    /// Another node is to be tried, and nothing is unanswered.
    Left,
    /// The connection is lost, or given up.
    Lost {
        /// Why.
        why: String,
        /// The put whose reply was awaited, and whether it certainly had no effect; those behind it are still in the link.
        oldest: Option<(SentPut, bool)>,
    },
}

impl Actor {
    /// Sends and receives until the connection ends.
    pub(super) async fn serve(&mut self, link: &mut Link) -> End {
        self.begin_replay();
        loop {
            while let Some(message) = self.waiting_message() {
                self.take(Some(message));
            }
            self.ask_spool(link.leaving);
            self.send_queued(link);
            if link.sent.is_empty() {
                if link.leaving {
                    return End::Left;
                }
                if self.is_closing() && self.queue.is_empty() {
                    return End::Over;
                }
            }
            let (now, wake) = (Instant::now(), self.next_wake(link));
            if wake.is_some_and(|at| at <= now) {
                self.expire(now);
                self.expire_sent(link, now);
                if link.oldest_since().is_some_and(|at| at + self.settings.reply_timeout <= now) {
                    let why = format!("no reply within {:?}", self.settings.reply_timeout);
                    return End::Lost { why, oldest: None };
                }
            }
            tokio::select! {
                biased;
                reply = link.next() => match reply {
                    Ok(reply) => if let Some(end) = self.replied(link, reply) { return end },
                    Err(error) => return lost(link, error.to_string(), error.had_no_effect()),
                },
                message = self.inbox.recv(), if !self.is_closing() => self.take(message),
                records = Spooling::next(&mut self.spooling) => self.replay(records),
                () = sleep_until(wake) => {}
            }
        }
    }

    fn waiting_message(&mut self) -> Option<Message> {
        if self.is_closing() { None } else { self.inbox.try_recv().ok() }
    }

    /// Sends as much of what waits as may be under way.
    fn send_queued(&mut self, link: &mut Link) {
        let now = Instant::now();
        let window = self.pace.window(now);
        while link.has_room(window) {
            let Some((number, put)) = self.queue.pop_first() else { return };
            if put.is_abandoned() {
                continue;
            }
            if put.is_doubtful && !link.knows_once && !put.is_spooled() {
                self.answer(put, Outcome::Unknown);
                continue;
            }
            // What a connection can refuse to send was looked at when the put was called.
            if let Err(error) = link.send(number, put, now) {
                tracing::error!(%error, "a put that was looked at cannot be sent");
            }
        }
    }

    /// When something is to be done though nothing happens.
    fn next_wake(&self, link: &Link) -> Option<Instant> {
        let now = Instant::now();
        let silent = link.oldest_since().map(|at| at + self.settings.reply_timeout);
        let deadline = link.puts_sent().find_map(|sent| sent.put.deadline());
        let opens = self.pace.opens_at(now).filter(|_| !self.queue.is_empty());
        let replay =
            self.spooling.as_ref().and_then(Spooling::wake).filter(|_| !link.leaving && !self.is_closing());
        [silent, deadline, opens, replay, self.next_deadline()].into_iter().flatten().min()
    }

    /// Callers of what is under way are told when their time is over: that nobody knows, or that it is in the spool, too.
    fn expire_sent(&mut self, link: &mut Link, now: Instant) {
        let mut doubtful = Vec::new();
        for sent in &mut link.sent {
            let Sent::Put(SentPut { put, once, .. }) = sent else { continue };
            if put.deadline().is_some_and(|deadline| deadline <= now) {
                let waiter = std::mem::replace(&mut put.waiter, Waiter::Nobody);
                doubtful.push((put.of_same_job(waiter), *once));
            }
        }
        for (put, once) in doubtful {
            if once && self.spooling.is_some() {
                self.spool(put);
            } else {
                self.answer(put, Outcome::Unknown);
            }
        }
    }

    /// One reply; how the connection ends by it, if it does.
    fn replied(&mut self, link: &mut Link, reply: ClientReply) -> Option<End> {
        match link.take_oldest() {
            Some(Sent::Use) if matches!(reply, ClientReply::Using(_)) => None,
            Some(Sent::Use) | None => Some(lost(link, format!("unexpected reply {}", reply.word()), false)),
            Some(Sent::Put(sent)) => self.put_replied(link, sent, &reply),
        }
    }

    fn put_replied(&mut self, link: &mut Link, sent: SentPut, reply: &ClientReply) -> Option<End> {
        if let ClientReply::Inserted(id) = reply {
            self.roster.worked(link.node);
            self.pace.accepted();
            self.spooling.iter_mut().for_each(Spooling::served);
            self.answer(sent.put, Outcome::Inserted(*id));
            return None;
        }
        match refusal(reply) {
            Some(refusal @ (Refusal::OutOfMemory | Refusal::Draining)) => {
                self.refused(link, sent, refusal);
                None
            }
            Some(Refusal::UnknownCommand) if sent.once => {
                // It was asked before and knew. Whatever this is now, its body was taken for commands.
                Some(End::Lost {
                    why: "the server no longer knows put-once".to_owned(),
                    oldest: Some((sent, true)),
                })
            }
            Some(other) => {
                self.answer(sent.put, Outcome::Rejected(Rejection::Refused(other)));
                None
            }
            None => {
                let why = format!("unexpected reply {}", reply.word());
                Some(End::Lost { why, oldest: Some((sent, false)) })
            }
        }
    }

    /// Refused for a while: it is sent again later, perhaps elsewhere.
    fn refused(&mut self, link: &mut Link, sent: SentPut, refusal: Refusal) {
        let now = Instant::now();
        count(&self.counters.refusals);
        self.note_trouble(format!("{} answered {refusal}", self.roster.address(link.node)));
        let is_useless = if refusal == Refusal::Draining {
            true
        } else {
            self.pace.refused(now, &mut self.random);
            self.spooling.iter_mut().for_each(Spooling::refused);
            self.pace.refusals() >= REFUSALS_BEFORE_LEAVING && self.roster.len() > 1
        };
        if is_useless && !link.leaving {
            link.leaving = true;
            self.roster.failed(link.node, now);
        }
        self.again(sent.number, sent.put);
    }
}

/// The connection is lost, and with it the reply to the oldest command.
fn lost(link: &mut Link, why: String, had_no_effect: bool) -> End {
    let oldest = match link.take_oldest() {
        Some(Sent::Put(sent)) => Some((sent, had_no_effect)),
        Some(Sent::Use) | None => None,
    };
    End::Lost { why, oldest }
}
