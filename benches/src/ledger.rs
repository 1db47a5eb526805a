//! What became of every job of a run: the proof that none was lost, doubled or left over.
//!
//! A byte per job that is still open, in a window per producer: as soon as the oldest jobs of a producer are
//! settled (acknowledged and deleted, or refused) the window moves on, so a run of hours costs no more memory
//! than its backlog.

use std::collections::VecDeque;

/// Names one job of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The producer's number.
    pub producer: u32,
    /// The job's number among its producer's, from 0.
    pub sequence: u64,
}

/// At most this many single cases are described in a report; all are counted.
pub const EXAMPLES_MAX: usize = 10;

mod flag {
    /// The put was sent and not answered.
    pub const SENT: u8 = 1;
    /// The put was answered `INSERTED`.
    pub const ACKNOWLEDGED: u8 = 2;
    /// The put was refused: it must not appear.
    pub const REFUSED: u8 = 4;
    /// The connection went away before the put's answer: it may appear or not.
    pub const UNKNOWN: u8 = 8;
    /// It was received at least once.
    pub const SEEN: u8 = 16;
    /// A live connection of this run holds it.
    pub const HELD: u8 = 32;
    /// A delete was answered `DELETED`.
    pub const DELETED: u8 = 64;
    /// The connection went away before the delete's answer: it may come again or not.
    pub const DELETE_UNKNOWN: u8 = 128;
}

/// Totals of a run's jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Puts sent.
    pub sent: u64,
    /// Puts answered `INSERTED`.
    pub acknowledged: u64,
    /// Puts answered with a refusal.
    pub refused: u64,
    /// Puts without an answer: the connection was lost or the time was up.
    pub put_unknown: u64,
    /// Jobs of this run received, again ones included.
    pub received: u64,
    /// Deletes answered `DELETED`.
    pub deleted: u64,
    /// Deletes without an answer.
    pub delete_unknown: u64,
    /// Jobs received again after the connection that held them was lost: allowed by the protocol.
    pub redelivered: u64,
    /// Jobs received after their deletion or refusal was acknowledged, or while another connection held them.
    /// An error.
    pub doubled: u64,
    /// Held jobs whose delete was answered `NOT_FOUND`. An error (or a `--ttr` too short for the server's
    /// pace).
    pub vanished: u64,
    /// Bodies that failed their CRC or length. An error.
    pub corrupted: u64,
    /// Jobs of other runs of this program, found in the tube and deleted. No error.
    pub leftovers: u64,
    /// Jobs that are nothing of this program's, found in a tube given with `--tube`, and buried there. No
    /// error.
    pub foreign: u64,
}

struct Producer {
    /// The sequence number of `open[0]`; everything below is settled.
    base: u64,
    open: VecDeque<u8>,
}

/// The record of all jobs of one run.
pub struct Ledger {
    producers: Vec<Producer>,
    counts: Counts,
    /// Acknowledged jobs that no acknowledged (or unanswered) delete has ended yet.
    outstanding: u64,
    examples: Vec<String>,
}

impl Ledger {
    /// A ledger for producers `0..producers`.
    pub fn new(producers: u32) -> Ledger {
        let producers = (0..producers).map(|_| Producer { base: 0, open: VecDeque::new() }).collect();
        Ledger { producers, counts: Counts::default(), outstanding: 0, examples: Vec::new() }
    }

    /// The totals up to now.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Acknowledged jobs that are not known to be gone: what a drain still has to find.
    pub fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// The first few single cases of errors, described.
    pub fn examples(&self) -> &[String] {
        &self.examples
    }

    /// The next job of `producer` is about to be sent: gives it its name.
    pub fn send(&mut self, producer: u32) -> Key {
        let lane = &mut self.producers[producer as usize];
        let sequence = lane.base + lane.open.len() as u64;
        lane.open.push_back(flag::SENT);
        self.counts.sent += 1;
        Key { producer, sequence }
    }

    /// Its put was answered `INSERTED`.
    pub fn acknowledged(&mut self, key: Key) {
        self.counts.acknowledged += 1;
        let job = self.job(key).expect("an unanswered put is open");
        *job = *job & !flag::SENT | flag::ACKNOWLEDGED;
        if *job & (flag::DELETED | flag::DELETE_UNKNOWN) == 0 {
            self.outstanding += 1;
        }
        self.settle(key.producer);
    }

    /// Its put was refused.
    pub fn refused(&mut self, key: Key) {
        self.counts.refused += 1;
        let job = self.job(key).expect("an unanswered put is open");
        *job = *job & !flag::SENT | flag::REFUSED;
        if *job & flag::SEEN != 0 {
            self.counts.doubled += 1;
            self.example(format!("{} was received, yet its put was refused", name(key)));
        }
        self.settle(key.producer);
    }

    /// Its put's answer will never come.
    pub fn put_unknown(&mut self, key: Key) {
        self.counts.put_unknown += 1;
        let job = self.job(key).expect("an unanswered put is open");
        *job = *job & !flag::SENT | flag::UNKNOWN;
        self.settle(key.producer);
    }

    /// It was received, whole.
    pub fn received(&mut self, key: Key) {
        self.counts.received += 1;
        let Some(job) = self.job(key) else {
            self.counts.doubled += 1;
            self.example(format!(
                "{} was received after its end (deleted or refused), or was never sent",
                name(key)
            ));
            return;
        };
        let before = *job;
        *job |= flag::SEEN | flag::HELD;
        if before & (flag::DELETED | flag::REFUSED | flag::HELD) != 0 {
            self.counts.doubled += 1;
            let why =
                if before & flag::HELD != 0 { "while a live connection held it" } else { "after its end" };
            self.example(format!("{} was received {why}", name(key)));
        } else if before & flag::SEEN != 0 {
            self.counts.redelivered += 1;
        }
    }

    /// Its delete was answered `DELETED`.
    pub fn deleted(&mut self, key: Key) {
        self.counts.deleted += 1;
        self.end(key, flag::DELETED);
    }

    /// Its delete's answer will never come.
    pub fn delete_unknown(&mut self, key: Key) {
        self.counts.delete_unknown += 1;
        self.end(key, flag::DELETE_UNKNOWN);
    }

    /// Its delete was answered `NOT_FOUND`, though it was held.
    pub fn vanished(&mut self, key: Key) {
        // A delete that was sent before over a lost connection may have worked: then this is its echo.
        if self.job(key).is_some_and(|job| *job & flag::DELETE_UNKNOWN != 0) {
            self.end(key, flag::DELETED);
            return;
        }
        self.counts.vanished += 1;
        self.example(format!("{} was held, yet its delete found nothing", name(key)));
        self.end(key, flag::DELETE_UNKNOWN);
    }

    /// A body of this run failed its CRC or length. `id` is what the server called the job.
    pub fn corrupted(&mut self, id: u64) {
        self.counts.corrupted += 1;
        self.example(format!("job {id}: the body is not what was sent"));
    }

    /// A whole job of another run was found.
    pub fn leftover(&mut self) {
        self.counts.leftovers += 1;
    }

    /// A job that is nothing of this program's was found.
    pub fn foreign(&mut self) {
        self.counts.foreign += 1;
    }

    /// The jobs that were acknowledged and never came, described up to the limit of examples: to be called
    /// once, after everything that can be received has been.
    pub fn close(&mut self) -> u64 {
        let mut lost = 0;
        for producer in 0..self.producers.len() {
            for at in 0..self.producers[producer].open.len() {
                let lane = &self.producers[producer];
                let job = lane.open[at];
                if job & flag::ACKNOWLEDGED != 0 && job & (flag::DELETED | flag::DELETE_UNKNOWN) == 0 {
                    lost += 1;
                    let producer = u32::try_from(producer).expect("producers are numbered by a u32");
                    let key = Key { producer, sequence: lane.base + at as u64 };
                    self.example(format!("{} was acknowledged and never came", name(key)));
                }
            }
        }
        lost
    }

    fn end(&mut self, key: Key, how: u8) {
        let Some(job) = self.job(key) else { return };
        let before = *job;
        *job = before & !flag::HELD | how;
        if before & flag::ACKNOWLEDGED != 0 && before & (flag::DELETED | flag::DELETE_UNKNOWN) == 0 {
            self.outstanding -= 1;
        }
        self.settle(key.producer);
    }

    fn job(&mut self, key: Key) -> Option<&mut u8> {
        let lane = self.producers.get_mut(key.producer as usize)?;
        let at = key.sequence.checked_sub(lane.base)?;
        lane.open.get_mut(usize::try_from(at).ok()?)
    }

    /// Moves the window past what is settled: deleted or refused, with its put answered.
    fn settle(&mut self, producer: u32) {
        let lane = &mut self.producers[producer as usize];
        while let Some(job) = lane.open.front() {
            let ended = job & (flag::DELETED | flag::REFUSED) != 0;
            if !ended || job & (flag::SENT | flag::HELD) != 0 {
                break;
            }
            lane.open.pop_front();
            lane.base += 1;
        }
    }

    fn example(&mut self, text: String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(text);
        }
    }
}

fn name(key: Key) -> String {
    format!("job {} of producer {}", key.sequence, key.producer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_run_leaves_nothing_open() {
        let mut ledger = Ledger::new(2);
        for round in 0..100 {
            let key = ledger.send(round % 2);
            if round % 3 == 0 {
                // The worker may see the job before the producer reads its INSERTED.
                ledger.received(key);
                ledger.acknowledged(key);
            } else {
                ledger.acknowledged(key);
                ledger.received(key);
            }
            ledger.deleted(key);
        }
        assert_eq!(ledger.outstanding(), 0);
        assert!(ledger.producers.iter().all(|p| p.open.is_empty() && p.base == 50));
        let counts = ledger.counts();
        assert_eq!((counts.sent, counts.acknowledged, counts.received, counts.deleted), (100, 100, 100, 100));
        assert_eq!((counts.doubled, counts.redelivered, counts.vanished), (0, 0, 0));
        assert_eq!(ledger.close(), 0);
    }

    #[test]
    fn a_job_that_never_comes_is_lost() {
        let mut ledger = Ledger::new(1);
        let (first, second) = (ledger.send(0), ledger.send(0));
        ledger.acknowledged(first);
        ledger.acknowledged(second);
        ledger.received(second);
        ledger.deleted(second);
        assert_eq!(ledger.outstanding(), 1);
        assert_eq!(ledger.close(), 1);
        assert_eq!(ledger.examples(), ["job 0 of producer 0 was acknowledged and never came"]);
    }

    #[test]
    fn doubles_are_told_from_redeliveries() {
        let mut ledger = Ledger::new(1);
        let key = ledger.send(0);
        ledger.acknowledged(key);
        ledger.received(key);
        ledger.received(key);
        assert_eq!(ledger.counts().doubled, 1, "held by a live connection");
        ledger.deleted(key);
        ledger.received(key);
        assert_eq!(ledger.counts().doubled, 2, "after its delete");

        let key = ledger.send(0);
        ledger.acknowledged(key);
        ledger.received(key);
        ledger.delete_unknown(key);
        ledger.received(key);
        assert_eq!(ledger.counts().redelivered, 1);
        ledger.vanished(key);
        assert_eq!(ledger.counts().vanished, 0, "the echo of a delete that had worked");
        assert_eq!((ledger.counts().doubled, ledger.close()), (2, 0));
    }

    #[test]
    fn a_refused_put_must_not_appear_and_an_unknown_one_may() {
        let mut ledger = Ledger::new(1);
        let refused = ledger.send(0);
        ledger.refused(refused);
        ledger.received(refused);
        assert_eq!(ledger.counts().doubled, 1);

        let (there, not_there) = (ledger.send(0), ledger.send(0));
        ledger.put_unknown(there);
        ledger.put_unknown(not_there);
        ledger.received(there);
        ledger.deleted(there);
        assert_eq!((ledger.counts().doubled, ledger.outstanding(), ledger.close()), (1, 0, 0));
    }

    #[test]
    fn a_made_up_job_is_an_error() {
        let mut ledger = Ledger::new(1);
        ledger.received(Key { producer: 0, sequence: 5 });
        ledger.received(Key { producer: 9, sequence: 0 });
        assert_eq!(ledger.counts().doubled, 2);
        ledger.deleted(Key { producer: 9, sequence: 0 });
    }
}
