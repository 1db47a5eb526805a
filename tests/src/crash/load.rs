//! The load: owners of a tube that know every detail, and producers and workers that share one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::ledger::{Facts, Job, State};
use crate::connection::{Connection, Reply, put_request};

/// The tube of producers and workers.
pub const SHARED_TUBE: &str = "shared";
/// Above this many jobs an owner deletes more than it puts.
const MANY: usize = 60;

/// A connection with a tube of its own.
pub struct Owner {
    /// Its tube.
    pub tube: String,
    /// Every job it ever put, by id.
    pub jobs: BTreeMap<u64, Job>,
    /// Bodies of the puts that were on their way.
    pub unknown_puts: Vec<PutRequest>,
    /// Acknowledged changes: puts, deletes, others.
    pub done: Done,
    /// Replies that no healthy server gives.
    pub faults: Vec<String>,
    rng: StdRng,
    /// Makes bodies unique.
    next_body: u64,
    /// Numbers what is buried or delayed.
    next_aside: u64,
}

/// A put.
#[derive(Debug, Clone)]
pub struct PutRequest {
    /// Its body.
    pub body: Vec<u8>,
    /// Priority, delay and time to run.
    pub header: (u32, u32, u32),
}

/// Acknowledged changes.
#[derive(Debug, Default, Clone, Copy)]
pub struct Done {
    /// Puts.
    pub puts: u64,
    /// Deletes.
    pub deletes: u64,
    /// Others.
    pub changes: u64,
}

/// One command of an owner.
#[derive(Debug, Clone)]
enum Command {
    Puts(Vec<PutRequest>),
    Reserve,
    ReserveJob(u64),
    Delete(u64),
    Release(u64, u32, u32),
    Bury(u64, u32),
    KickJob(u64),
    Kick,
}

impl Owner {
    /// An owner that has done nothing yet.
    pub fn new(number: usize, seed: u64) -> Owner {
        Owner {
            tube: format!("own-{number}"),
            jobs: BTreeMap::new(),
            unknown_puts: Vec::new(),
            done: Done::default(),
            faults: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
            next_body: 0,
            next_aside: 0,
        }
    }

    /// A job is now buried or delayed, behind all others.
    pub fn put_aside(&mut self, id: u64) {
        self.next_aside += 1;
        if let Some(job) = self.jobs.get_mut(&id) {
            job.put_aside = self.next_aside;
        }
    }

    /// Works until the server is gone.
    pub fn work(&mut self, addr: SocketAddr) {
        // The server may be killed before this connects; then there was no load, and nothing is unknown.
        let Ok(mut connection) = Connection::open(addr) else { return };
        let hello = format!("use {tube}\r\nwatch {tube}\r\nignore default\r\n", tube = self.tube);
        let greeted = connection
            .send(hello.as_bytes())
            .and_then(|()| (0..3).try_for_each(|_| connection.reply().map(drop)));
        if greeted.is_err() {
            return;
        }
        loop {
            let command = self.choose();
            if let Err(_gone) = self.perform(&mut connection, &command) {
                return;
            }
        }
    }

    fn choose(&mut self) -> Command {
        let live: Vec<(u64, State)> = self
            .jobs
            .values()
            .filter(|job| job.facts.state != State::Deleted)
            .map(|job| (job.id, job.facts.state))
            .collect();
        let in_state = |state: State| -> Vec<u64> {
            live.iter().filter(|(_, s)| *s == state).map(|(id, _)| *id).collect()
        };
        let rng = &mut self.rng;
        let held = in_state(State::Reserved).choose(rng).copied();
        let any = live.choose(rng).map(|(id, _)| *id);
        let idle: Vec<u64> = live.iter().filter(|(_, s)| *s != State::Reserved).map(|(id, _)| *id).collect();
        let aside: Vec<u64> = [in_state(State::Buried), in_state(State::Delayed)].concat();
        let full = live.len() > MANY;
        let pri = rng.random_range(0..5) * 1000;
        let delay_s = *[0, 0, 50_000, 70_000].choose(rng).expect("not empty");
        match (rng.random_range(0..100), held, any) {
            (0..30, ..) if !full => self.puts(),
            (30..50, ..) => Command::Reserve,
            (50..55, ..) => match idle.choose(rng) {
                Some(id) => Command::ReserveJob(*id),
                None => self.puts(),
            },
            (55..65, Some(id), _) => Command::Release(id, pri, delay_s),
            (65..75, Some(id), _) => Command::Bury(id, pri),
            (75..82, ..) => match aside.choose(rng) {
                Some(id) => Command::KickJob(*id),
                None => Command::Kick,
            },
            (82..86, ..) => Command::Kick,
            (_, Some(id), _) | (_, None, Some(id)) => Command::Delete(id),
            (_, None, None) => self.puts(),
        }
    }

    /// One put, or several in one write.
    fn puts(&mut self) -> Command {
        let count = if self.rng.random_bool(0.1) { self.rng.random_range(2..20) } else { 1 };
        let puts = (0..count).map(|_| {
            self.next_body += 1;
            let mut body = format!("{} {} ", self.tube, self.next_body).into_bytes();
            let padding = if self.rng.random_bool(0.05) { 20_000 } else { 200 };
            body.resize(body.len() + self.rng.random_range(0..padding), b'.');
            let delay_s = *[0, 0, 0, 50_000].choose(&mut self.rng).expect("not empty");
            PutRequest { body, header: (self.rng.random_range(0..5) * 1000, delay_s, 100_000) }
        });
        Command::Puts(puts.collect())
    }

    /// Sends a command and learns from its reply; an error means that its outcome is unknown.
    fn perform(&mut self, connection: &mut Connection, command: &Command) -> io::Result<()> {
        let outcome = match command {
            Command::Puts(puts) => return self.perform_puts(connection, puts),
            Command::Reserve => connection.command("reserve-with-timeout 0"),
            Command::ReserveJob(id) => connection.command(&format!("reserve-job {id}")),
            Command::Delete(id) => connection.command(&format!("delete {id}")),
            Command::Release(id, pri, delay) => connection.command(&format!("release {id} {pri} {delay}")),
            Command::Bury(id, pri) => connection.command(&format!("bury {id} {pri}")),
            Command::KickJob(id) => connection.command(&format!("kick-job {id}")),
            Command::Kick => connection.command("kick 1"),
        };
        match outcome {
            Ok(reply) => {
                self.learn(command, &reply);
                Ok(())
            }
            Err(error) => {
                self.doubt(command);
                Err(error)
            }
        }
    }

    fn perform_puts(&mut self, connection: &mut Connection, puts: &[PutRequest]) -> io::Result<()> {
        let mut request = Vec::new();
        for PutRequest { body, header: (pri, delay_s, ttr_s) } in puts {
            request.extend(put_request(*pri, *delay_s, *ttr_s, body));
        }
        let sent = connection.send(&request);
        for (at, put) in puts.iter().enumerate() {
            let reply = match &sent {
                Ok(()) => connection.reply(),
                Err(error) => Err(error.kind().into()),
            };
            match reply {
                Ok(reply) => self.learn_put(put, &reply),
                Err(error) => {
                    self.unknown_puts.extend_from_slice(&puts[at..]);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn learn_put(&mut self, put: &PutRequest, reply: &Reply) {
        if reply.word() != "INSERTED" {
            return self.faults.push(format!("{}: a put got {}", self.tube, reply.line));
        }
        let (pri, delay_s, ttr_s) = put.header;
        let job = Job::new(reply.number(), put.body.clone(), pri, delay_s, ttr_s);
        if self.jobs.insert(job.id, job).is_some() {
            self.faults.push(format!("id {} was given twice", reply.number()));
        }
        self.put_aside(reply.number());
        self.done.puts += 1;
    }

    fn learn(&mut self, command: &Command, reply: &Reply) {
        if reply.line == "TIMED_OUT" || reply.line == "KICKED 0" {
            return;
        }
        let id = match command {
            Command::Reserve => self.next_to_reserve(),
            Command::Kick => self.next_to_kick(),
            Command::ReserveJob(id) | Command::Delete(id) | Command::KickJob(id) => Some(*id),
            Command::Release(id, ..) | Command::Bury(id, _) => Some(*id),
            Command::Puts(_) => None,
        };
        let names_another = reply.word() == "RESERVED" && id != Some(reply.number());
        let job = id.and_then(|id| self.jobs.get_mut(&id));
        let (Some(id), Some(job), false) = (id, job, reply.word() == "NOT_FOUND" || names_another) else {
            let fault = format!("{}: {command:?} got {}, expected was job {id:?}", self.tube, reply.line);
            return self.faults.push(fault);
        };
        job.facts = after(command, job.facts);
        let is_aside = matches!(job.facts.state, State::Buried | State::Delayed);
        if matches!(command, Command::Delete(_)) {
            self.done.deletes += 1;
        } else {
            self.done.changes += 1;
        }
        if is_aside {
            self.put_aside(id);
        }
    }

    /// The server died before it replied: what the command concerns may have changed, or not.
    fn doubt(&mut self, command: &Command) {
        let concerned = match command {
            Command::Reserve => self.next_to_reserve(),
            Command::Kick => self.next_to_kick(),
            Command::ReserveJob(id) | Command::Delete(id) | Command::KickJob(id) => Some(*id),
            Command::Release(id, ..) | Command::Bury(id, _) => Some(*id),
            Command::Puts(_) => None,
        };
        if let Some(job) = concerned.and_then(|id| self.jobs.get_mut(&id)) {
            job.perhaps = Some(after(command, job.facts));
        }
    }

    fn next_to_reserve(&self) -> Option<u64> {
        let ready = self.jobs.values().filter(|job| job.facts.state == State::Ready);
        ready.min_by_key(|job| (job.facts.pri, job.id)).map(|job| job.id)
    }

    /// Buried ones first, in the order of burying; else the delayed one whose time comes first. The
    /// delays are so far apart that only equal ones are ordered by when they began.
    fn next_to_kick(&self) -> Option<u64> {
        let in_state = |state| self.jobs.values().filter(move |job| job.facts.state == state);
        let buried = in_state(State::Buried).min_by_key(|job| job.put_aside);
        let delayed = || in_state(State::Delayed).min_by_key(|job| (job.facts.delay_s, job.put_aside));
        buried.or_else(delayed).map(|job| job.id)
    }
}

/// What a job is after a command that found it.
fn after(command: &Command, mut facts: Facts) -> Facts {
    match command {
        Command::Puts(_) => {}
        Command::Reserve | Command::ReserveJob(_) => {
            facts.state = State::Reserved;
            facts.reserves += 1;
        }
        Command::Delete(_) => facts.state = State::Deleted,
        Command::Release(_, pri, delay_s) => {
            facts.state = if *delay_s > 0 { State::Delayed } else { State::Ready };
            facts.pri = *pri;
            facts.delay_s = *delay_s;
            facts.releases += 1;
        }
        Command::Bury(_, pri) => {
            facts.state = State::Buried;
            facts.pri = *pri;
            facts.buries += 1;
        }
        Command::KickJob(_) | Command::Kick => {
            facts.state = State::Ready;
            facts.kicks += 1;
        }
    }
    facts
}

/// What producers and workers of the shared tube know together.
#[derive(Default)]
pub struct Shared {
    /// Guarded together: the workers learn of ids that producers were told.
    pub known: Mutex<SharedKnown>,
}

/// The fate of the jobs of the shared tube.
#[derive(Default)]
pub struct SharedKnown {
    /// Acknowledged puts: id and body.
    pub put: BTreeMap<u64, Vec<u8>>,
    /// Bodies of puts that were on their way.
    pub put_unknown: BTreeSet<Vec<u8>>,
    /// Acknowledged deletes.
    pub deleted: BTreeSet<u64>,
    /// Deletes that were on their way.
    pub delete_unknown: BTreeSet<u64>,
    /// Acknowledged reserves per id.
    pub reserves: BTreeMap<u64, u64>,
    /// Acknowledged changes that were not counted yet.
    pub done: Done,
    /// Replies that no healthy server gives.
    pub faults: Vec<String>,
    next_body: u64,
}

impl Shared {
    /// Nothing known yet.
    pub fn new() -> Shared {
        Shared::default()
    }

    /// Puts jobs until the server is gone.
    pub fn produce(&self, addr: SocketAddr, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let Ok(mut connection) = Connection::open(addr) else { return };
        if connection.command(&format!("use {SHARED_TUBE}")).is_err() {
            return;
        }
        loop {
            let body = {
                let mut known = self.known.lock().expect("no thread panics with it");
                known.next_body += 1;
                let mut body = format!("{SHARED_TUBE} {} ", known.next_body).into_bytes();
                body.resize(body.len() + rng.random_range(0..500), b'+');
                known.put_unknown.insert(body.clone());
                body
            };
            let Ok(reply) = connection.put(rng.random_range(0..3), 0, 100_000, &body) else { return };
            let mut known = self.known.lock().expect("no thread panics with it");
            known.put_unknown.remove(&body);
            if reply.word() != "INSERTED" || known.put.insert(reply.number(), body).is_some() {
                known.faults.push(format!("a put got {}, which is no news", reply.line));
                return;
            }
            known.done.puts += 1;
        }
    }

    /// Reserves and deletes until the server is gone.
    pub fn consume(&self, addr: SocketAddr, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let Ok(mut connection) = Connection::open(addr) else { return };
        if connection.command(&format!("watch {SHARED_TUBE}")).is_err() {
            return;
        }
        loop {
            let Ok(reply) = connection.command("reserve-with-timeout 1") else { return };
            if reply.word() != "RESERVED" {
                continue;
            }
            let id = reply.number();
            let mut known = self.known.lock().expect("no thread panics with it");
            *known.reserves.entry(id).or_default() += 1;
            known.done.changes += 1;
            drop(known);
            if rng.random_bool(0.2) {
                // Given back: somebody else may have it.
                let Ok(_reply) = connection.command(&format!("release {id} 1 0")) else { return };
                continue;
            }
            self.known.lock().expect("no thread panics with it").delete_unknown.insert(id);
            let Ok(reply) = connection.command(&format!("delete {id}")) else { return };
            let mut known = self.known.lock().expect("no thread panics with it");
            known.delete_unknown.remove(&id);
            if reply.line != "DELETED" {
                known.faults.push(format!("delete {id}, which this worker holds, got {}", reply.line));
                return;
            }
            known.deleted.insert(id);
            known.done.deletes += 1;
        }
    }
}
