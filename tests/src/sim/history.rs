//! What clients did and were told, and what must never be: the oracle.
//!
//! It knows only what clients know, and when. A worker's claim to a job begins when it is told `RESERVED`, and lasts
//! for certain until the reserve was *sent* plus the TTR: the reservation cannot be older than the question. It ends
//! earlier when the worker gives the job up, or its connection closes.

use std::collections::BTreeMap;
use std::time::Duration;

use beanpole::embedded::Probe;
use tokio::time::Instant;

/// Clocks of nodes may run this much faster than others', and timers have a grain of a millisecond.
const CLOCK_SLACK: Duration = Duration::from_millis(150);

/// A client's connection.
pub type ConnId = u64;

/// A put that was sent.
#[derive(Clone, Debug)]
pub struct Put {
    /// When it was sent.
    pub sent: Instant,
    /// Its delay.
    pub delay: Duration,
    /// Its TTR.
    pub ttr: Duration,
    /// The job that carries its body, once somebody has seen it.
    pub job: Option<u64>,
}

/// A job as clients know it.
#[derive(Clone, Debug)]
struct Job {
    /// Whose put it is.
    body: String,
    ttr: Duration,
    /// When its producer was told its id.
    inserted: Option<Instant>,
    /// When the first delete of it was sent.
    delete_sent: Option<Instant>,
    deleted: Option<Instant>,
    claim: Option<Claim>,
    handed_out: u64,
}

/// A worker's claim.
#[derive(Clone)]
struct Claim {
    conn: ConnId,
    since: Instant,
    until: Instant,
    probe: Probe,
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "of connection {}", self.conn)
    }
}

impl Claim {
    /// Whether it holds for certain, now.
    fn holds(&self) -> bool {
        Instant::now() < self.until && !self.probe.is_closed()
    }
}

/// All that clients did, and everything wrong with it.
#[derive(Default)]
pub struct History {
    puts: BTreeMap<String, Put>,
    jobs: BTreeMap<u64, Job>,
    /// Somebody kicks: delayed jobs may be ready before their time.
    pub kicks: bool,
    /// What must not be, in words.
    pub violations: Vec<String>,
    /// Figures of the run.
    pub counts: Counts,
}

/// Figures of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Commands that were answered.
    pub answered: u64,
    /// Commands whose connection closed first.
    pub unknown: u64,
    /// Puts that were acknowledged.
    pub inserted: u64,
    /// Jobs handed out.
    pub handed_out: u64,
    /// Deletes that were acknowledged.
    pub deleted: u64,
}

impl History {
    /// Something is wrong.
    pub fn violate(&mut self, what: String) {
        self.violations.push(what);
    }

    /// A put leaves for the server. Its body is its own.
    pub fn put_sent(&mut self, body: &str, delay: Duration, ttr: Duration) {
        let put = Put { sent: Instant::now(), delay, ttr, job: None };
        let before = self.puts.insert(body.to_owned(), put);
        assert!(before.is_none(), "body {body} is put twice");
    }

    /// `INSERTED id`.
    pub fn inserted(&mut self, body: &str, id: u64) {
        self.counts.inserted += 1;
        let Some(job) = self.seen(id, body) else { return };
        if job.inserted.is_some() {
            self.violate(format!("id {id} was given to two puts, the second one {body}"));
        } else {
            job.inserted = Some(Instant::now());
        }
    }

    /// Job `id` was seen with this body.
    fn seen(&mut self, id: u64, body: &str) -> Option<&mut Job> {
        let Some(put) = self.puts.get_mut(body) else {
            self.violate(format!("job {id} has a body that nobody put: {body:?}"));
            return None;
        };
        let other = put.job.replace(id).filter(|other| *other != id);
        let ttr = put.ttr;
        if let Some(other) = other {
            self.violate(format!("put {body} became job {other} and job {id}"));
        }
        let job = self.jobs.entry(id).or_insert_with(|| Job {
            body: body.to_owned(),
            ttr,
            inserted: None,
            delete_sent: None,
            deleted: None,
            claim: None,
            handed_out: 0,
        });
        if job.body != body {
            self.violations.push(format!("job {id} had body {} and has body {body}", job.body));
            return None;
        }
        Some(job)
    }

    /// `RESERVED id`, asked for at `sent`.
    pub fn reserved(&mut self, conn: ConnId, probe: Probe, id: u64, body: &str, sent: Instant) {
        self.counts.handed_out += 1;
        let now = Instant::now();
        let put = self.puts.get(body).cloned();
        let kicks = self.kicks;
        let Some(job) = self.seen(id, body) else { return };
        let mut wrong = Vec::new();
        // The node may have learnt late of its own hand-out, when the TTR was over and the job another's: the worker can
        // tell, as it knows when it asked. It has no claim then, and who has one keeps it.
        let over_by = sent + job.ttr;
        if job.deleted.is_some_and(|deleted| deleted < over_by) {
            wrong.push(format!("job {id} was handed out after its delete was acknowledged"));
        }
        let holder = job.claim.as_ref().filter(|claim| claim.holds());
        if holder.is_some_and(|claim| over_by <= claim.since) {
            return;
        }
        if let Some(claim) = holder {
            wrong.push(format!(
                "job {id} was handed to connection {conn} while connection {} holds it, for {:?} more",
                claim.conn,
                claim.until - now
            ));
        }
        if let Some(put) = put
            && job.handed_out == 0
            && !kicks
            && now + CLOCK_SLACK < put.sent + put.delay
        {
            let early = put.sent + put.delay - now;
            wrong.push(format!("job {id} was handed out {early:?} before its delay was over"));
        }
        job.handed_out += 1;
        let until = sent + job.ttr.saturating_sub(CLOCK_SLACK);
        job.claim = Some(Claim { conn, since: now, until, probe });
        self.violations.append(&mut wrong);
    }

    /// The worker is about to release, bury or delete a job that it holds: from here on others may have it.
    pub fn gives_up(&mut self, conn: ConnId, id: u64) -> Option<Instant> {
        let job = self.jobs.get_mut(&id)?;
        let claim = job.claim.take_if(|claim| claim.conn == conn)?;
        Some(claim.until)
    }

    /// A delete leaves for the server.
    pub fn delete_sent(&mut self, id: u64) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.delete_sent.get_or_insert_with(Instant::now);
        }
    }

    /// `DELETED`.
    pub fn deleted(&mut self, conn: ConnId, id: u64, sent: Instant) {
        self.counts.deleted += 1;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.deleted.is_some() {
            self.violations.push(format!("job {id} was deleted twice"));
        }
        if let Some(claim) = &job.claim
            && claim.conn != conn
            && claim.since <= sent
            && claim.holds()
        {
            let holder = claim.conn;
            self.violations
                .push(format!("job {id} was deleted by {conn} while connection {holder} holds it"));
        }
        job.deleted.get_or_insert_with(Instant::now);
    }

    /// `TOUCHED`: the TTR begins anew, not before the touch was sent.
    pub fn touched(&mut self, conn: ConnId, id: u64, sent: Instant) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let until = sent + job.ttr.saturating_sub(CLOCK_SLACK);
        if let Some(claim) = job.claim.as_mut().filter(|claim| claim.conn == conn) {
            claim.until = claim.until.max(until);
        }
    }

    /// `NOT_FOUND` to a worker that holds the job for certain until `until`.
    pub fn lost_by_holder(&mut self, conn: ConnId, id: u64, verb: &str, until: Instant) {
        if Instant::now() < until {
            let left = until - Instant::now();
            self.violate(format!("{verb} {id} by its holder {conn} found nothing, {left:?} before its TTR"));
        }
    }

    /// The end of a claim that holds for certain, if the connection has one.
    #[must_use]
    pub fn claim(&self, conn: ConnId, id: u64) -> Option<Instant> {
        let claim = self.jobs.get(&id)?.claim.as_ref()?;
        (claim.conn == conn).then_some(claim.until)
    }

    /// `FOUND id` to a peek that was sent at `sent`.
    pub fn found(&mut self, id: u64, body: &str, sent: Instant) {
        let Some(job) = self.seen(id, body) else { return };
        if job.deleted.is_some_and(|deleted| deleted < sent) {
            self.violate(format!("job {id} was found after its delete was acknowledged"));
        }
    }

    /// `NOT_FOUND` to a peek that was sent at `sent`.
    pub fn missing(&mut self, id: u64, sent: Instant) {
        let Some(job) = self.jobs.get(&id) else { return };
        if job.inserted.is_some_and(|inserted| inserted < sent) && job.delete_sent.is_none() {
            self.violate(format!("job {id} was acknowledged and is not found"));
        }
    }

    /// An id that a producer was told, for others to try things on: the `nth`, counted round and round.
    #[must_use]
    pub fn known_id(&self, nth: usize) -> Option<u64> {
        let count = self.jobs.len();
        (count > 0).then(|| self.jobs.keys().nth(nth % count).copied()).flatten()
    }

    /// The cluster is empty: every acknowledged job must have been deleted by somebody.
    pub fn check_drained(&mut self) {
        let lost = |job: &Job| job.inserted.is_some() && job.delete_sent.is_none();
        let lost: Vec<u64> = self.jobs.iter().filter(|(_, job)| lost(job)).map(|(id, _)| *id).collect();
        if !lost.is_empty() {
            self.violate(format!("{} acknowledged jobs are gone: {lost:?}", lost.len()));
        }
    }
}
