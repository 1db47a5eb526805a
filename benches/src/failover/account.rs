//! The fate of every job: when its put was acknowledged, and every time a worker had it.
//!
//! ```text
//!   put ──► Sent ──► Acked | Refused | Unknown | NotSent
//!   handout:  RESERVED received ├──────── surely held ────────┤ delete sent, connection broken, TTR over, node killed
//! ```
//!
//! All times are the clients' own, on one clock. A reservation is counted as valid from the receipt of `RESERVED` (the
//! server gave it earlier) to the *earliest* moment at which it may have ended. So two that overlap here did overlap there.

use serde::Serialize;
use std::collections::HashMap;

/// Descriptions of faults that are kept; the rest is only counted.
const FINDINGS_MAX: usize = 20;
/// A reply may be this much younger than what it tells of, so a reservation may end this much before its TTR seems over.
const TTR_MARGIN_NS: u64 = 2_000_000_000;
/// A connection may have ended this long before its client noticed it.
const NOTICE_MARGIN_NS: u64 = 100_000_000;

/// What became of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutFate {
    /// On its way.
    Sent,
    /// `INSERTED` with this id came at this time.
    Acked {
        /// The job's id.
        id: u64,
        /// When, in ns.
        at_ns: u64,
    },
    /// The server said no.
    Refused,
    /// The connection was lost before the answer.
    Unknown,
    /// The connection was lost before it was sent.
    NotSent,
}

/// How a worker's hold of a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldEnd {
    /// It has not.
    Held,
    /// `delete` was sent, and not answered yet.
    Deleting {
        /// When it was sent, in ns.
        sent_ns: u64,
    },
    /// `DELETED` came.
    Deleted {
        /// When delete was sent, in ns.
        sent_ns: u64,
        /// When the answer came, in ns.
        at_ns: u64,
    },
    /// `NOT_FOUND` came as the answer to delete.
    Vanished {
        /// When delete was sent, in ns.
        sent_ns: u64,
        /// When the answer came, in ns.
        at_ns: u64,
    },
    /// The connection was lost before delete was answered: it may have happened.
    DeleteUnknown {
        /// When delete was sent, in ns.
        sent_ns: u64,
    },
    /// The connection was lost before delete was sent.
    Broken {
        /// When that was noticed, in ns.
        at_ns: u64,
    },
}

/// One time that a worker had a job.
#[derive(Clone, Copy, Debug)]
struct Hold {
    id: u64,
    client: usize,
    node: usize,
    from_ns: u64,
    end: HoldEnd,
}

/// Names a hold within the account.
#[derive(Clone, Copy, Debug)]
pub struct HoldRef {
    producer: usize,
    sequence: usize,
    hold: usize,
}

#[derive(Debug)]
struct Job {
    put: PutFate,
    /// The producer's node.
    node: usize,
    holds: Vec<Hold>,
}

impl Job {
    /// Deleted for sure, or perhaps.
    fn is_settled(&self) -> bool {
        self.holds.iter().any(|h| matches!(h.end, HoldEnd::Deleted { .. } | HoldEnd::DeleteUnknown { .. }))
    }

    fn is_acked(&self) -> bool {
        matches!(self.put, PutFate::Acked { .. })
    }
}

/// Says until when a hold on `node` that began at `from_ns` can have been valid, as far as the faults of that node go.
pub trait NodeFaults {
    /// The first moment after `from_ns` at which what the node's clients hold may have been taken from them, in ns.
    fn ended_by_fault(&self, node: usize, from_ns: u64) -> Option<u64>;
    /// Whether the node was frozen at some time within these, in ns: its workers may have lost what they hold.
    fn was_frozen(&self, node: usize, from_ns: u64, to_ns: u64) -> bool;
    /// Whether the node was surely cut off from the others then, in ns: it can carry out no change.
    fn was_cut_off(&self, node: usize, at_ns: u64) -> bool;
}

/// All jobs of a run.
pub struct Account {
    /// By producer and sequence number.
    jobs: Vec<Vec<Job>>,
    ttr_ns: u64,
    /// Acknowledged and not settled.
    open: u64,
    /// When the last job was handed out, in ns.
    last_handout_ns: u64,
    /// Bodies that are not what was put.
    corrupted: u64,
}

/// The totals of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Puts that were answered `INSERTED`.
    pub acknowledged: u64,
    /// Acknowledged, and neither deleted nor perhaps deleted at the end.
    pub lost: u64,
    /// Of them, never handed out at all.
    pub never_handed_out: u64,
    /// Jobs that one put made twice.
    pub doubled: u64,
    /// Times that a job was handed out while another worker held it.
    pub overlapping: u64,
    /// Times that a job was handed out after `DELETED`.
    pub after_delete: u64,
    /// Jobs that were gone (`NOT_FOUND`) although their worker held them.
    pub vanished: u64,
    /// Puts and deletes that a node acknowledged while it was cut off from the others.
    pub acked_cut_off: u64,
    /// Bodies that came back changed, or that nobody of this run has put.
    pub corrupted: u64,
    /// Puts whose answer was lost with the connection.
    pub put_unknown: u64,
    /// Of them, those that turned out to have been carried out.
    pub put_unknown_done: u64,
    /// Deletes whose answer was lost with the connection.
    pub delete_unknown: u64,
    /// Puts that were refused.
    pub refused: u64,
    /// Of them, those that were carried out all the same.
    pub refused_done: u64,
    /// Times that a job was handed out again, because its worker's connection was lost or its answer was.
    pub handed_out_again: u64,
    /// Jobs handed out in all, times they were.
    pub handouts: u64,
}

impl Totals {
    /// Nothing happened that must not happen.
    pub fn ok(&self) -> bool {
        let must_not_be = [
            self.lost,
            self.doubled,
            self.overlapping,
            self.after_delete,
            self.vanished,
            self.corrupted,
            self.refused_done,
            self.acked_cut_off,
        ];
        must_not_be.iter().all(|n| *n == 0)
    }
}

impl Account {
    /// An empty account of `producers` producers, whose jobs have `ttr_s` seconds to run.
    pub fn new(producers: usize, ttr_s: u32) -> Account {
        Account {
            jobs: (0..producers).map(|_| Vec::new()).collect(),
            ttr_ns: u64::from(ttr_s) * 1_000_000_000,
            open: 0,
            last_handout_ns: 0,
            corrupted: 0,
        }
    }

    /// A producer is about to put its next job, on `node`; its sequence number.
    pub fn put(&mut self, producer: usize, node: usize) -> u64 {
        let jobs = &mut self.jobs[producer];
        jobs.push(Job { put: PutFate::Sent, node, holds: Vec::new() });
        jobs.len() as u64 - 1
    }

    /// What became of a put.
    pub fn put_ended(&mut self, producer: usize, sequence: u64, fate: PutFate) {
        let job = &mut self.jobs[producer][sequence as usize];
        job.put = fate;
        // A worker may have finished the job before its producer read the answer.
        if job.is_acked() && !job.is_settled() {
            self.open += 1;
        }
    }

    /// A worker has received a job. `None` if this run has put no such job, which is counted.
    pub fn handed_out(
        &mut self,
        (producer, sequence): (u32, u64),
        id: u64,
        (client, node): (usize, usize),
        at_ns: u64,
    ) -> Option<HoldRef> {
        let (producer, sequence) = (producer as usize, sequence as usize);
        let Some(job) = self.jobs.get_mut(producer).and_then(|jobs| jobs.get_mut(sequence)) else {
            self.corrupted += 1;
            return None;
        };
        job.holds.push(Hold { id, client, node, from_ns: at_ns, end: HoldEnd::Held });
        self.last_handout_ns = self.last_handout_ns.max(at_ns);
        Some(HoldRef { producer, sequence, hold: job.holds.len() - 1 })
    }

    /// How a hold ended, or goes on.
    pub fn hold_ended(&mut self, hold: HoldRef, end: HoldEnd) {
        let job = &mut self.jobs[hold.producer][hold.sequence];
        let before = job.is_settled();
        job.holds[hold.hold].end = end;
        if job.is_acked() && !before && job.is_settled() {
            self.open -= 1;
        }
    }

    /// A body came that is not what was put.
    pub fn corrupted(&mut self) {
        self.corrupted += 1;
    }

    /// Acknowledged jobs that are still to be handed out and deleted.
    pub fn open(&self) -> u64 {
        self.open
    }

    /// When the last job was handed out, in ns; 0 before the first.
    pub fn last_handout_ns(&self) -> u64 {
        self.last_handout_ns
    }

    /// The totals, and the first faults described.
    pub fn judge(&self, faults: &impl NodeFaults) -> (Totals, Vec<String>) {
        let mut judge = Judge { account: self, faults, totals: Totals::default(), findings: Vec::new() };
        judge.totals.corrupted = self.corrupted;
        for (producer, jobs) in self.jobs.iter().enumerate() {
            for (sequence, job) in jobs.iter().enumerate() {
                judge.job(&format!("producer {producer}, job {sequence}"), job);
            }
        }
        (judge.totals, judge.findings)
    }
}

struct Judge<'a, F> {
    account: &'a Account,
    faults: &'a F,
    totals: Totals,
    findings: Vec<String>,
}

impl<F: NodeFaults> Judge<'_, F> {
    fn job(&mut self, name: &str, job: &Job) {
        let totals = &mut self.totals;
        totals.handouts += job.holds.len() as u64;
        totals.handed_out_again += job.holds.len().saturating_sub(1) as u64;
        match job.put {
            PutFate::Acked { .. } => totals.acknowledged += 1,
            PutFate::Refused => {
                totals.refused += 1;
                totals.refused_done += u64::from(!job.holds.is_empty());
            }
            PutFate::Unknown => {
                totals.put_unknown += 1;
                totals.put_unknown_done += u64::from(!job.holds.is_empty());
            }
            PutFate::Sent | PutFate::NotSent => {}
        }
        let unknown = job.holds.iter().filter(|h| matches!(h.end, HoldEnd::DeleteUnknown { .. })).count();
        totals.delete_unknown += unknown as u64;
        if job.is_acked() && !job.is_settled() {
            totals.lost += 1;
            totals.never_handed_out += u64::from(job.holds.is_empty());
            self.find(format!("lost: {name}: {}", tell(job)));
        }
        if job.put == PutFate::Refused && !job.holds.is_empty() {
            self.find(format!("refused and carried out: {name}: {}", tell(job)));
        }
        self.doubled(name, job);
        self.holds(name, job);
        self.acknowledged_cut_off(name, job);
    }

    fn acknowledged_cut_off(&mut self, name: &str, job: &Job) {
        let put = match job.put {
            PutFate::Acked { at_ns, .. } => Some((job.node, at_ns)),
            PutFate::Sent | PutFate::Refused | PutFate::Unknown | PutFate::NotSent => None,
        };
        let deletes = job.holds.iter().filter_map(|hold| match hold.end {
            HoldEnd::Deleted { at_ns, .. } => Some((hold.node, at_ns)),
            HoldEnd::Held
            | HoldEnd::Deleting { .. }
            | HoldEnd::Vanished { .. }
            | HoldEnd::DeleteUnknown { .. }
            | HoldEnd::Broken { .. } => None,
        });
        let wrong = put.into_iter().chain(deletes).filter(|(node, at)| self.faults.was_cut_off(*node, *at));
        let wrong = wrong.count() as u64;
        if wrong > 0 {
            self.totals.acked_cut_off += wrong;
            self.find(format!("acknowledged by a node that was cut off: {name}: {}", tell(job)));
        }
    }

    fn doubled(&mut self, name: &str, job: &Job) {
        let mut ids: Vec<u64> = job.holds.iter().map(|hold| hold.id).collect();
        if let PutFate::Acked { id, .. } = job.put {
            ids.push(id);
        }
        ids.sort_unstable();
        ids.dedup();
        if ids.len() > 1 {
            self.totals.doubled += ids.len() as u64 - 1;
            self.find(format!("doubled, as ids {ids:?}: {name}: {}", tell(job)));
        }
    }

    /// Looks at the holds of each id in the order of their receipt.
    fn holds(&mut self, name: &str, job: &Job) {
        let mut by_id: HashMap<u64, Vec<&Hold>> = HashMap::new();
        for hold in &job.holds {
            by_id.entry(hold.id).or_default().push(hold);
        }
        for holds in by_id.values_mut() {
            holds.sort_by_key(|hold| hold.from_ns);
            for (n, hold) in holds.iter().enumerate() {
                self.vanished(name, job, hold);
                for later in &holds[n + 1..] {
                    self.pair(name, job, hold, later);
                }
            }
        }
    }

    fn pair(&mut self, name: &str, job: &Job, hold: &Hold, later: &Hold) {
        if let HoldEnd::Deleted { at_ns, .. } = hold.end
            && later.from_ns > at_ns
        {
            self.totals.after_delete += 1;
            self.find(format!("handed out after DELETED: {name}: {}", tell(job)));
        } else if later.from_ns < self.valid_until(hold) {
            self.totals.overlapping += 1;
            self.find(format!("held by two: {name}: {}", tell(job)));
        }
    }

    fn vanished(&mut self, name: &str, job: &Job, hold: &Hold) {
        let HoldEnd::Vanished { sent_ns, at_ns } = hold.end else { return };
        let expired = at_ns >= self.ttr_over(hold);
        if !expired && !self.faults.was_frozen(hold.node, hold.from_ns, at_ns) {
            self.totals.vanished += 1;
            self.find(format!("vanished at {} from its worker: {name}: {}", seconds(sent_ns), tell(job)));
        }
    }

    fn ttr_over(&self, hold: &Hold) -> u64 {
        hold.from_ns + self.account.ttr_ns.saturating_sub(TTR_MARGIN_NS)
    }

    /// The earliest moment at which the reservation may have ended.
    fn valid_until(&self, hold: &Hold) -> u64 {
        let by_client = match hold.end {
            HoldEnd::Held => u64::MAX,
            HoldEnd::Deleting { sent_ns }
            | HoldEnd::Deleted { sent_ns, .. }
            | HoldEnd::Vanished { sent_ns, .. }
            | HoldEnd::DeleteUnknown { sent_ns } => sent_ns,
            HoldEnd::Broken { at_ns } => at_ns.saturating_sub(NOTICE_MARGIN_NS),
        };
        let by_fault = self.faults.ended_by_fault(hold.node, hold.from_ns).unwrap_or(u64::MAX);
        by_client.min(by_fault).min(self.ttr_over(hold))
    }

    fn find(&mut self, what: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(what);
        }
    }
}

fn seconds(ns: u64) -> String {
    format!("{:.3} s", ns as f64 / 1e9)
}

/// A job's story in one line. Nodes and clients are counted from 1 and 0, as in the report.
fn tell(job: &Job) -> String {
    use std::fmt::Write;
    let mut story = match job.put {
        PutFate::Acked { id, at_ns } => format!("id {id} acknowledged at {}", seconds(at_ns)),
        PutFate::Sent | PutFate::Unknown => "put with unknown outcome".to_owned(),
        PutFate::Refused => "refused".to_owned(),
        PutFate::NotSent => "not sent".to_owned(),
    };
    let _ = write!(story, " by node {}", job.node + 1);
    for hold in &job.holds {
        let end = match hold.end {
            HoldEnd::Held => "still held".to_owned(),
            HoldEnd::Deleting { sent_ns } => format!("deleting since {}", seconds(sent_ns)),
            HoldEnd::Deleted { sent_ns, at_ns } => {
                format!("deleted, asked at {} and told at {}", seconds(sent_ns), seconds(at_ns))
            }
            HoldEnd::Vanished { at_ns, .. } => format!("NOT_FOUND at {}", seconds(at_ns)),
            HoldEnd::DeleteUnknown { sent_ns } => {
                format!("delete sent at {} and never answered", seconds(sent_ns))
            }
            HoldEnd::Broken { at_ns } => format!("connection broke at {}", seconds(at_ns)),
        };
        let (id, node, client) = (hold.id, hold.node + 1, hold.client);
        let _ =
            write!(story, "; id {id} to client {client} of node {node} at {}: {end}", seconds(hold.from_ns));
    }
    story
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    /// Node 0 is killed at 10 s; node 1 is frozen at 10 s, for more than its lease of 3 s; node 3 is cut off from 10 s to 20 s.
    struct Faults;

    impl NodeFaults for Faults {
        fn ended_by_fault(&self, node: usize, from_ns: u64) -> Option<u64> {
            let at = [10 * S, 13 * S].get(node).copied()?;
            (from_ns < at).then_some(at)
        }
        fn was_frozen(&self, node: usize, from_ns: u64, to_ns: u64) -> bool {
            node == 1 && from_ns < 20 * S && to_ns > 10 * S
        }
        fn was_cut_off(&self, node: usize, at_ns: u64) -> bool {
            node == 3 && (10 * S..20 * S).contains(&at_ns)
        }
    }

    /// One acknowledged job, id 7.
    fn one() -> Account {
        let mut account = Account::new(1, 120);
        let sequence = account.put(0, 2);
        account.put_ended(0, sequence, PutFate::Acked { id: 7, at_ns: S });
        account
    }

    fn hold(account: &mut Account, id: u64, node: usize, from_ns: u64, end: HoldEnd) {
        let hold = account.handed_out((0, 0), id, (0, node), from_ns).unwrap();
        account.hold_ended(hold, end);
    }

    fn totals(account: &Account) -> Totals {
        account.judge(&Faults).0
    }

    #[test]
    fn a_deleted_job_is_settled_and_one_that_never_came_is_lost() {
        let mut account = one();
        assert_eq!(account.open(), 1);
        let lost = totals(&account);
        assert_eq!((lost.lost, lost.never_handed_out, lost.ok()), (1, 1, false));
        hold(&mut account, 7, 2, 2 * S, HoldEnd::Deleted { sent_ns: 3 * S, at_ns: 4 * S });
        assert_eq!(account.open(), 0);
        assert!(totals(&account).ok());
    }

    #[test]
    fn a_job_deleted_before_its_put_was_answered_is_settled_once() {
        let mut account = Account::new(1, 120);
        let sequence = account.put(0, 0);
        hold(&mut account, 7, 2, 2 * S, HoldEnd::Deleted { sent_ns: 3 * S, at_ns: 4 * S });
        account.put_ended(0, sequence, PutFate::Acked { id: 7, at_ns: 5 * S });
        assert_eq!(account.open(), 0);
        assert!(totals(&account).ok());
    }

    #[test]
    fn a_delete_without_an_answer_is_unknown_and_not_lost() {
        let mut account = one();
        hold(&mut account, 7, 2, 2 * S, HoldEnd::DeleteUnknown { sent_ns: 3 * S });
        let t = totals(&account);
        assert_eq!((t.lost, t.delete_unknown, t.ok()), (0, 1, true));
        // It had not happened after all: another worker may get the job, even at once.
        hold(&mut account, 7, 2, 3 * S + 1, HoldEnd::Deleted { sent_ns: 4 * S, at_ns: 5 * S });
        assert!(totals(&account).ok());
    }

    #[test]
    fn a_job_whose_worker_was_lost_must_come_again() {
        let mut account = one();
        hold(&mut account, 7, 2, 2 * S, HoldEnd::Broken { at_ns: 3 * S });
        let t = totals(&account);
        assert_eq!((t.lost, t.never_handed_out), (1, 0));
    }

    #[test]
    fn two_workers_at_a_time_are_seen() {
        let deleted = HoldEnd::Deleted { sent_ns: 8 * S, at_ns: 9 * S };
        for (first_end, from_ns, overlapping) in [
            (HoldEnd::Broken { at_ns: 6 * S }, 5 * S, 1),
            (HoldEnd::Broken { at_ns: 6 * S }, 6 * S, 0),
            (HoldEnd::DeleteUnknown { sent_ns: 6 * S }, 5 * S, 1),
            (HoldEnd::Held, 7 * S, 1),
        ] {
            let mut account = one();
            hold(&mut account, 7, 2, 2 * S, first_end);
            hold(&mut account, 7, 2, from_ns, deleted);
            assert_eq!(totals(&account).overlapping, overlapping, "{first_end:?} {from_ns}");
        }
    }

    #[test]
    fn what_a_dead_or_frozen_node_held_is_free() {
        for (node, free_from) in [(0, 10 * S), (1, 13 * S)] {
            for (from_ns, overlapping) in [(free_from - 1, 1), (free_from, 0)] {
                let mut account = one();
                hold(&mut account, 7, node, 9 * S, HoldEnd::Broken { at_ns: 30 * S });
                let end = HoldEnd::Deleted { sent_ns: 31 * S, at_ns: 31 * S };
                hold(&mut account, 7, 2, from_ns, end);
                assert_eq!(totals(&account).overlapping, overlapping, "node {node} {from_ns}");
            }
        }
    }

    #[test]
    fn nothing_is_acknowledged_without_the_others() {
        for (at_ns, wrong) in [(9 * S, 0), (15 * S, 2), (20 * S, 0)] {
            let mut account = Account::new(1, 120);
            let sequence = account.put(0, 3);
            account.put_ended(0, sequence, PutFate::Acked { id: 7, at_ns });
            hold(&mut account, 7, 3, 9 * S, HoldEnd::Deleted { sent_ns: 9 * S, at_ns });
            let t = totals(&account);
            assert_eq!((t.acked_cut_off, t.ok()), (wrong, wrong == 0), "{at_ns}");
        }
    }

    #[test]
    fn a_deleted_job_must_not_come_back() {
        let mut account = one();
        hold(&mut account, 7, 2, 2 * S, HoldEnd::Deleted { sent_ns: 3 * S, at_ns: 4 * S });
        hold(&mut account, 7, 2, 4 * S + 1, HoldEnd::Deleted { sent_ns: 5 * S, at_ns: 6 * S });
        let t = totals(&account);
        assert_eq!((t.after_delete, t.overlapping, t.ok()), (1, 0, false));
    }

    #[test]
    fn one_put_is_one_job() {
        let mut account = one();
        let deleted = HoldEnd::Deleted { sent_ns: 3 * S, at_ns: 4 * S };
        hold(&mut account, 7, 2, 2 * S, deleted);
        hold(&mut account, 8, 2, 2 * S, deleted);
        let t = totals(&account);
        assert_eq!((t.doubled, t.overlapping, t.ok()), (1, 0, false));
    }

    #[test]
    fn a_job_that_vanishes_from_its_worker_is_a_fault_unless_its_time_was_over() {
        let vanished = |node, from_ns, at_ns| {
            let mut account = one();
            hold(&mut account, 7, node, from_ns, HoldEnd::Vanished { sent_ns: at_ns, at_ns });
            totals(&account).vanished
        };
        assert_eq!(vanished(2, 2 * S, 3 * S), 1);
        assert_eq!(vanished(2, 2 * S, 121 * S), 0, "after its time to run");
        assert_eq!(vanished(1, 9 * S, 15 * S), 0, "the node was frozen meanwhile");
        assert_eq!(vanished(1, 2 * S, 3 * S), 1, "and not before");
    }

    #[test]
    fn a_job_that_nobody_has_put_is_corrupt() {
        let mut account = one();
        assert!(account.handed_out((0, 1), 9, (0, 0), S).is_none());
        assert!(account.handed_out((4, 0), 9, (0, 0), S).is_none());
        assert_eq!(totals(&account).corrupted, 2);
    }
}
