//! What is left after a restart, compared with what the ledgers allow.

use std::collections::BTreeMap;

use super::ledger::{Facts, Job, State};
use super::load::{Owner, PutRequest, SHARED_TUBE, Shared, SharedKnown};
use super::{PAUSED, Summary};
use crate::connection::{Connection, Reply};
use crate::server::Server;

/// Commands in one write: enough to be fast, few enough for the socket buffers.
const AT_ONCE: usize = 200;
/// A deleted job is looked for after so many restarts, then forgotten.
const LOOK_FOR_DELETED: u32 = 2;
/// Faults told in full; the first ones tell the story.
const FAULTS_MAX: usize = 20;

/// One look at a restarted server.
pub struct Audit {
    connection: Connection,
    /// Ids below were accounted for after the last restart.
    first_id: u64,
    /// Ids from here on were not given yet.
    next_id: u64,
    faults: Vec<String>,
}

/// What the server says of a job: its stats and its body, or nothing.
type Found = Option<(Reply, Vec<u8>)>;

impl Audit {
    /// Connects, and finds out which ids were given: a fresh job gets the next one.
    pub fn new(server: &Server, first_id: u64) -> Audit {
        let mut connection = server.connect();
        let probe = connection.put(0, 0, 60, b"probe").expect("a restarted server answers");
        let id = probe.number();
        let gone = connection.command(&format!("delete {id}")).expect("a restarted server answers");
        let mut faults = Vec::new();
        if gone.line != "DELETED" {
            faults.push(format!("a fresh job cannot be deleted: {}", gone.line));
        }
        if id < first_id {
            faults.push(format!("id {id} was given again"));
        }
        Audit { connection, first_id, next_id: id, faults }
    }

    /// The first id that the next round may see.
    pub fn next_id(&self) -> u64 {
        self.next_id + 1
    }

    /// Everything that is wrong, the first ones.
    pub fn faults(mut self) -> Vec<String> {
        self.faults.truncate(FAULTS_MAX);
        self.faults
    }

    /// Compares everything and settles what was unknown.
    pub fn all(&mut self, owners: &mut [Owner], shared: &Shared, summary: &mut Summary) {
        let mut known = shared.known.lock().expect("no thread panics with it");
        for done in owners.iter_mut().map(|owner| &mut owner.done).chain([&mut known.done]) {
            summary.puts += done.puts;
            summary.deletes += done.deletes;
            summary.changes += done.changes;
            *done = Default::default();
        }
        summary.unknown += (known.put_unknown.len() + known.delete_unknown.len()) as u64;
        // First, so that many faults of jobs cannot crowd it out.
        self.paused();
        self.faults.append(&mut known.faults);
        owners.iter_mut().for_each(|owner| self.faults.append(&mut owner.faults));
        self.unknown_ids(owners, &mut known, summary);
        for owner in owners.iter_mut() {
            self.owner(owner, summary);
        }
        self.shared(&mut known, summary);
    }

    /// Ids that nobody was told: puts that were on their way may have happened, once.
    fn unknown_ids(&mut self, owners: &mut [Owner], known: &mut SharedKnown, summary: &mut Summary) {
        let told = |id: &u64| known.put.contains_key(id) || owners.iter().any(|o| o.jobs.contains_key(id));
        let untold: Vec<u64> = (self.first_id..self.next_id).filter(|id| !told(id)).collect();
        let mut unknown: BTreeMap<Vec<u8>, (usize, PutRequest)> = BTreeMap::new();
        for (number, owner) in owners.iter_mut().enumerate() {
            for put in std::mem::take(&mut owner.unknown_puts) {
                summary.unknown += 1;
                unknown.insert(put.body.clone(), (number, put));
            }
        }
        for (id, found) in self.look(&untold) {
            let Some((_, body)) = found else { continue };
            if let Some((number, put)) = unknown.remove(&body) {
                let (pri, delay_s, ttr_s) = put.header;
                owners[number].jobs.insert(id, Job::new(id, body, pri, delay_s, ttr_s));
                owners[number].put_aside(id);
            } else if known.put_unknown.remove(&body) {
                known.put.insert(id, body);
            } else {
                let text = body[..body.len().min(40)].escape_ascii().to_string();
                self.faults
                    .push(format!("job {id} is there, but nobody put it, or put it once more: {text}"));
            }
        }
        known.put_unknown.clear();
    }

    fn owner(&mut self, owner: &mut Owner, summary: &mut Summary) {
        let ids: Vec<u64> = owner.jobs.keys().copied().collect();
        for (id, found) in self.look(&ids) {
            let job = owner.jobs.get_mut(&id).expect("it was asked for by this id");
            summary.checked += 1;
            summary.unknown += u64::from(job.perhaps.is_some());
            let fits = |facts: &Facts| matches_facts(facts, found.as_ref().map(|(stats, _)| stats));
            let Some(mut facts) = job.candidates().find(fits) else {
                let what = found.map_or("gone".into(), |(stats, _)| stats.text().replace('\n', ", "));
                let fault = format!(
                    "job {id} of {}: {:?} or {:?}, but is {what}",
                    owner.tube, job.facts, job.perhaps
                );
                self.faults.push(fault);
                continue;
            };
            if let Some((_, body)) = found
                && body != job.body
            {
                self.faults.push(format!("job {id} of {} has another body", owner.tube));
            }
            if facts.state == State::Reserved {
                facts.state = State::Ready;
            }
            let newly_aside = facts != job.facts && matches!(facts.state, State::Buried | State::Delayed);
            job.facts = facts;
            job.perhaps = None;
            job.seen_gone += u32::from(facts.state == State::Deleted);
            if newly_aside {
                owner.put_aside(id);
            }
        }
        owner.jobs.retain(|_, job| job.seen_gone < LOOK_FOR_DELETED);
        let expected = owner.jobs.values().filter(|job| job.facts.state != State::Deleted).count();
        self.count(&owner.tube, expected);
    }

    fn shared(&mut self, known: &mut SharedKnown, summary: &mut Summary) {
        let ids: Vec<u64> = known.put.keys().copied().collect();
        let mut gone = Vec::new();
        for (id, found) in self.look(&ids) {
            summary.checked += 1;
            let deleted = known.deleted.contains(&id);
            match found {
                Some(_) if deleted => self.faults.push(format!("job {id} was deleted and is back")),
                Some((stats, body)) => {
                    if body != known.put[&id] {
                        self.faults.push(format!("job {id} has another body"));
                    }
                    let reserves: u64 = stats.stat("reserves").and_then(|v| v.parse().ok()).unwrap_or(0);
                    let acknowledged = known.reserves.get(&id).copied().unwrap_or(0);
                    if reserves < acknowledged {
                        self.faults.push(format!("job {id}: reserves {reserves} of {acknowledged}"));
                    }
                }
                None if deleted || known.delete_unknown.contains(&id) => gone.push(id),
                None => self.faults.push(format!("job {id} was put and is gone")),
            }
        }
        // What was seen gone once stays gone: its id is below the range of unknown ones from now on.
        for id in gone {
            known.put.remove(&id);
            known.reserves.remove(&id);
            known.deleted.remove(&id);
        }
        known.delete_unknown.clear();
        self.count(SHARED_TUBE, known.put.len());
    }

    fn count(&mut self, tube: &str, expected: usize) {
        let reply = self.ask(&format!("stats-tube {tube}"));
        let number = |state: &str| -> usize {
            reply.stat(&format!("current-jobs-{state}")).and_then(|v| v.parse().ok()).unwrap_or(0)
        };
        let jobs = number("ready") + number("reserved") + number("delayed") + number("buried");
        if jobs != expected {
            self.faults.push(format!("tube {tube} has {jobs} jobs, not {expected}"));
        }
    }

    fn paused(&mut self) {
        let (tube, seconds) = PAUSED;
        let reply = self.ask(&format!("stats-tube {tube}"));
        let left: u64 = reply.stat("pause-time-left").and_then(|v| v.parse().ok()).unwrap_or(0);
        if reply.stat("pause") != Some(seconds.to_string()) || left == 0 || left > seconds {
            self.faults.push(format!("tube {tube} is no longer paused as it was: {}", reply.text()));
        }
    }

    fn ask(&mut self, command: &str) -> Reply {
        self.connection.command(command).expect("a restarted server answers")
    }

    /// `stats-job` and `peek` of many jobs.
    fn look(&mut self, ids: &[u64]) -> Vec<(u64, Found)> {
        let mut found = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(AT_ONCE) {
            let request: String = chunk.iter().map(|id| format!("stats-job {id}\r\npeek {id}\r\n")).collect();
            self.connection.send(request.as_bytes()).expect("a restarted server reads");
            for id in chunk {
                let stats = self.connection.reply().expect("a restarted server answers");
                let peeked = self.connection.reply().expect("a restarted server answers");
                let both = (stats.word() == "OK").then_some(stats).zip(peeked.body);
                found.push((*id, both));
            }
        }
        found
    }
}

/// Whether what the server says (nothing: the job is gone) is what the facts demand.
fn matches_facts(facts: &Facts, stats: Option<&Reply>) -> bool {
    let Some(stats) = stats else { return facts.state == State::Deleted };
    if facts.state == State::Deleted {
        return false;
    }
    let is = |key: &str, wanted: u64| stats.stat(key) == Some(wanted.to_string());
    stats.stat("state").as_deref() == Some(facts.state.word_after_restart())
        && is("pri", facts.pri.into())
        && is("delay", facts.delay_s.into())
        && is("ttr", facts.ttr_s.into())
        && is("reserves", facts.reserves)
        && is("timeouts", 0)
        && is("releases", facts.releases)
        && is("buries", facts.buries)
        && is("kicks", facts.kicks)
}
