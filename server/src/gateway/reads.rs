//! Commands answered from the state without a log entry: `peek*`, `stats*`, `list-tubes`.
//!
//! A read waits until every batch that was open or proposed when it came has applied here, and, where there are other nodes,
//! until everything has applied that was committed when it came: the leader is asked how far that is, for all reads that came
//! meanwhile at once. As replies to changes also leave only after they applied, a client never reads an older state than one that
//! anybody has been told of.

use std::collections::{HashSet, VecDeque};

use beanpole_protocol::stats::{JobStats, ServerStats, TubeStats};
use beanpole_protocol::{JobId, Reply, stats};

use super::session::{Blocked, ConnId, ReadCommand};

use super::{Gateway, applied::Delivery};
use crate::leader::{About, Elsewhere};
use crate::queue::{JobState, JobView};

/// A read that waits for the state to be new enough.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    conn: ConnId,
    /// The question to the leader whose answer it uses; 0 if none was asked.
    barrier: u64,
    /// The batch of this gateway that must have applied.
    after: u64,
    place: Place,
}

/// How far the log must have applied for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The leader is to be asked.
    Unknown,
    /// The leader was asked under this number.
    Asked(u64),
    /// Up to this index.
    At(u64),
}

/// A question to the leader: how far everything is committed, and what is asked of other nodes' clients besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Barrier {
    /// Tells it from the others of this gateway.
    pub number: u64,
    /// What else is asked.
    pub about: About,
}

/// What the leader told of other nodes' clients.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// By the question's number, in order; kept as long as a read needs it.
    of_barriers: VecDeque<(u64, Vec<Elsewhere>)>,
}

impl Answers {
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.of_barriers.is_empty()
    }

    fn get(&self, barrier: u64) -> &[Elsewhere] {
        let answer = self.of_barriers.iter().find(|(number, _)| *number == barrier);
        answer.map_or(&[], |(_, elsewhere)| elsewhere)
    }

    /// Forgets what was answered to questions before this one.
    fn forget_before(&mut self, barrier: u64) {
        while self.of_barriers.front().is_some_and(|(number, _)| *number < barrier) {
            self.of_barriers.pop_front();
        }
    }
}

impl Gateway {
    /// Starts a read of a session that is owed nothing.
    pub(super) fn begin_read(&mut self, conn: ConnId, read: ReadCommand) {
        if self.is_cut_off() {
            return self.close(conn);
        }
        if self.reads_at_once() {
            return self.evaluate(conn, &read, 0);
        }
        if let Some(session) = self.sessions.get_mut(conn) {
            session.blocked = Blocked::Reading(read);
            self.queue_read(conn);
        }
    }

    /// Looks for ready jobs on behalf of a reserve.
    pub(super) fn begin_check(&mut self, conn: ConnId) {
        // What is under way may make a job ready, and then the next entry decides: no need to wait for it here.
        if !self.clustered {
            return self.checked(conn);
        }
        self.queue_read(conn);
    }

    /// Whether a read that starts now needs nothing that is not here.
    fn reads_at_once(&self) -> bool {
        !self.clustered && self.applied >= self.last_batch()
    }

    /// The number of the last batch that holds commands.
    fn last_batch(&self) -> u64 {
        if self.open.is_some() { self.proposed + 1 } else { self.proposed }
    }

    fn queue_read(&mut self, conn: ConnId) {
        let read = if self.clustered {
            self.unplaced += 1;
            Read { conn, barrier: 0, after: 0, place: Place::Unknown }
        } else {
            Read { conn, barrier: 0, after: self.last_batch(), place: Place::At(0) }
        };
        self.reads.push_back(read);
    }

    /// What the leader is to be asked, if reads need it.
    pub fn take_barrier(&mut self) -> Option<Barrier> {
        if !self.needs_barrier() {
            return None;
        }
        self.last_barrier += 1;
        let number = self.last_barrier;
        let mut about = About::Nothing;
        for read in self.reads.iter_mut().rev().take_while(|read| read.place == Place::Unknown) {
            read.place = Place::Asked(number);
            read.barrier = number;
            let blocked = self.sessions.get(read.conn).map(|session| &session.blocked);
            if let Some(Blocked::Reading(command)) = blocked {
                ask_for(command, &mut about);
            }
        }
        self.unplaced = 0;
        Some(Barrier { number, about })
    }

    /// The leader's answer: everything that was committed when it was asked is up to `index`, and this is what was asked of
    /// other nodes' clients.
    pub fn barrier_reached(&mut self, barrier: u64, index: u64, elsewhere: Vec<Elsewhere>) {
        for read in &mut self.reads {
            match read.place {
                Place::Asked(asked) if asked <= barrier => read.place = Place::At(index),
                Place::Asked(_) | Place::Unknown => break,
                Place::At(_) => {}
            }
        }
        if !elsewhere.is_empty() {
            self.answers.of_barriers.push_back((barrier, elsewhere));
        }
        self.evaluate_reads();
        let oldest = self.reads.iter().find(|read| read.barrier > 0).map_or(u64::MAX, |read| read.barrier);
        self.answers.forget_before(oldest);
    }

    /// What was asked will not be answered: it is asked again.
    pub fn ask_barriers_again(&mut self) {
        for read in &mut self.reads {
            if matches!(read.place, Place::Asked(_)) {
                read.place = Place::Unknown;
            }
        }
        self.unplaced = self.reads.iter().filter(|read| read.place == Place::Unknown).count();
    }

    /// Evaluates the reads that have what they wait for.
    pub(super) fn evaluate_reads(&mut self) {
        while let Some(read) = self.reads.front() {
            let reached = matches!(read.place, Place::At(index) if index <= self.applied_index);
            if !reached || read.after > self.applied {
                return;
            }
            let (conn, barrier) = (read.conn, read.barrier);
            self.reads.pop_front();
            let Some(session) = self.sessions.get_mut(conn) else { continue };
            match std::mem::take(&mut session.blocked) {
                Blocked::Reading(read) => {
                    self.evaluate(conn, &read, barrier);
                    self.touch_session(conn, true);
                }
                reserving @ Blocked::Reserving(_) => {
                    session.blocked = reserving;
                    self.checked(conn);
                }
                other @ (Blocked::No | Blocked::Held(_) | Blocked::Slowed(..) | Blocked::Closing) => {
                    session.blocked = other;
                }
            }
        }
    }

    fn evaluate(&mut self, conn: ConnId, read: &ReadCommand, barrier: u64) {
        let Some(session) = self.sessions.get(conn) else { return };
        let used = self.tubes.get(session.used).name().as_bytes();
        match read {
            ReadCommand::Peek(id) => self.found(conn, self.engine.job(*id).map(|job| job.id)),
            ReadCommand::PeekReady => self.found(conn, self.engine.peek_ready(used)),
            ReadCommand::PeekDelayed => self.found(conn, self.engine.peek_delayed(used)),
            ReadCommand::PeekBuried => self.found(conn, self.engine.peek_buried(used)),
            ReadCommand::Stats => {
                let body = self.server_stats();
                self.answer_read(conn, Some(body));
            }
            ReadCommand::StatsTube(name) => {
                let body = self.tube_stats(name, barrier);
                self.answer_read(conn, body);
            }
            ReadCommand::StatsJob(id) => {
                let body = self.job_stats(*id);
                self.answer_read(conn, body);
            }
            ReadCommand::ListTubes => {
                let body = stats::list_body(self.all_tubes(barrier).iter().map(|name| &**name));
                self.answer_read(conn, Some(body));
            }
            ReadCommand::PauseTube(name, delay) => {
                let referenced = self.tubes.find(name).is_some() || self.elsewhere(name, barrier).is_some();
                self.log_pause(conn, name, *delay, referenced);
            }
        }
    }

    fn answer_read(&mut self, conn: ConnId, body: Option<String>) {
        if let Some(session) = self.sessions.get_mut(conn) {
            session.reply(&body.as_ref().map_or(Reply::NotFound, |body| Reply::Ok(body.as_bytes())));
            self.touch_session(conn, false);
        }
    }

    fn found(&mut self, conn: ConnId, id: Option<u64>) {
        match id.and_then(|id| self.engine.job(id)) {
            Some(job) => {
                let (id, addr) = (job.id, job.body);
                self.deliver(conn, Delivery::Found { id }, id, addr);
            }
            None => self.answer_read(conn, None),
        }
    }

    /// What the leader told of other nodes' clients of a tube.
    fn elsewhere(&self, name: &str, barrier: u64) -> Option<&Elsewhere> {
        self.answers.get(barrier).iter().find(|elsewhere| &*elsewhere.tube == name)
    }

    /// Every tube that holds jobs, or that a client of any node uses or watches.
    fn all_tubes(&self, barrier: u64) -> Vec<Box<str>> {
        let mut names = self.list_tubes();
        let known: HashSet<&str> = names.iter().map(|name| &**name).collect();
        let elsewhere = self.answers.get(barrier).iter().map(|elsewhere| &*elsewhere.tube);
        let more: Vec<Box<str>> = elsewhere.filter(|name| !known.contains(name)).map(Into::into).collect();
        names.extend(more);
        names
    }

    /// Every tube that holds jobs, or that a client of this node uses or watches.
    pub fn list_tubes(&self) -> Vec<Box<str>> {
        let engine_has = |name: &str| self.engine.tube(name.as_bytes()).is_some();
        let held = self.engine.tube_names().filter(|name| {
            *name == "default"
                || self.tubes.find(name).is_some()
                || self.engine.tube(name.as_bytes()).is_some_and(|tube| !tube.is_empty())
        });
        let only_here = self.tubes.iter().map(super::tubes::Tube::name).filter(|name| !engine_has(name));
        held.chain(only_here).map(Into::into).collect()
    }

    fn job_stats(&mut self, id: u64) -> Option<String> {
        self.clocks.advance();
        let job: JobView<'_> = self.engine.job(id)?;
        let (stamp, lease) = (self.clocks.stamp(), self.clocks.lease());
        let left_us = match job.state {
            JobState::Ready | JobState::Buried => 0,
            JobState::Delayed => job.due_us.saturating_sub(stamp),
            JobState::Reserved => job.due_us.saturating_sub(lease),
        };
        // Without a limit the reply is beanstalkd's to the byte.
        let is_limited = self.engine.policy_of(job.tube).is_some_and(|policy| policy.max_hops > 0);
        let hops = if is_limited { job.hops } else { 0 };
        Some(
            JobStats {
                id: JobId(job.id),
                tube: job.tube,
                state: job.state.as_str(),
                pri: job.pri,
                age: seconds(stamp.saturating_sub(job.created_us)),
                delay: job.delay_s,
                ttr: job.ttr_s,
                time_left: seconds(left_us),
                file: 0,
                reserves: job.reserves,
                timeouts: job.timeouts,
                releases: job.releases,
                buries: job.buries,
                kicks: job.kicks,
                hops,
                reason: job.reason.as_str(),
            }
            .body(),
        )
    }

    fn tube_stats(&mut self, name: &str, barrier: u64) -> Option<String> {
        self.clocks.advance();
        let view = self.engine.tube(name.as_bytes());
        let client = self.tubes.find(name).map(|tube| self.tubes.get(tube));
        let elsewhere = self.elsewhere(name, barrier);
        let referenced = name == "default" || client.is_some() || elsewhere.is_some();
        if !referenced && view.as_ref().is_none_or(|view| view.is_empty()) {
            return None;
        }
        let mut stats = TubeStats { name, ..TubeStats::default() };
        if let Some(tube) = client {
            stats.current_using = u64::from(tube.using());
            stats.current_watching = u64::from(tube.watching());
            stats.current_waiting = u64::from(tube.waiting());
        }
        if let Some(elsewhere) = elsewhere {
            stats.current_using += u64::from(elsewhere.clients.using);
            stats.current_watching += u64::from(elsewhere.clients.watching);
            stats.current_waiting += u64::from(elsewhere.waiting);
        }
        if let Some(view) = view {
            stats.current_jobs_urgent = view.urgent;
            stats.current_jobs_ready = view.ready;
            stats.current_jobs_reserved = view.reserved;
            stats.current_jobs_delayed = view.delayed;
            stats.current_jobs_buried = view.buried;
            stats.total_jobs = view.total_jobs;
            stats.cmd_delete = view.cmd_delete;
            stats.cmd_pause_tube = view.cmd_pause;
            let left = view.pause_left_us(self.clocks.stamp());
            stats.pause = if left > 0 { u64::from(view.pause_s) } else { 0 };
            stats.pause_time_left = seconds(left);
        }
        Some(stats.body())
    }

    /// What this gateway's clients do.
    pub fn roles(&self) -> Roles {
        self.sessions.iter().fold(Roles::default(), |sum, session| Roles {
            producers: sum.producers + u64::from(session.producer),
            workers: sum.workers + u64::from(session.worker),
            waiting: sum.waiting + u64::from(matches!(session.blocked, Blocked::Reserving(_))),
        })
    }

    /// What other nodes' clients do, as far as is known.
    pub fn hear_roles(&mut self, elsewhere: Roles) {
        self.roles_elsewhere = elsewhere;
    }

    fn server_stats(&self) -> String {
        let totals = self.engine.totals();
        let mut stats = ServerStats {
            current_jobs_urgent: totals.urgent,
            current_jobs_ready: totals.ready,
            current_jobs_reserved: totals.reserved,
            current_jobs_delayed: totals.delayed,
            current_jobs_buried: totals.buried,
            job_timeouts: totals.timeouts,
            total_jobs: totals.total_jobs,
            current_tubes: self.list_tubes().len() as u64,
            current_connections: self.sessions.len() as u64,
            total_connections: self.sessions.opened(),
            draining: self.engine.draining(),
            ..ServerStats::default()
        };
        let (here, elsewhere) = (self.roles(), self.roles_elsewhere);
        stats.current_producers = here.producers + elsewhere.producers;
        stats.current_workers = here.workers + elsewhere.workers;
        stats.current_waiting = here.waiting + elsewhere.waiting;
        self.counters.fill(&mut stats);
        self.facts.fill(&mut stats);
        stats.body()
    }
}

/// Clients by what they have done on their connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// They have put.
    pub producers: u64,
    /// They have reserved.
    pub workers: u64,
    /// They wait for a job.
    pub waiting: u64,
}

/// Adds to what is asked of other nodes' clients what a command needs.
fn ask_for(command: &ReadCommand, about: &mut About) {
    match command {
        ReadCommand::ListTubes => *about = About::AllTubes,
        ReadCommand::StatsTube(name) | ReadCommand::PauseTube(name, _) => match about {
            About::AllTubes => {}
            About::Nothing => *about = About::Tubes(vec![name.as_ref().into()]),
            About::Tubes(tubes) => tubes.push(name.as_ref().into()),
        },
        ReadCommand::Peek(_)
        | ReadCommand::PeekReady
        | ReadCommand::PeekDelayed
        | ReadCommand::PeekBuried
        | ReadCommand::Stats
        | ReadCommand::StatsJob(_) => {}
    }
}

/// Whole seconds, rounded down as beanstalkd does.
fn seconds(us: u64) -> u64 {
    us / 1_000_000
}
