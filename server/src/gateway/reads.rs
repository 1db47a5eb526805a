//! Commands answered from the state without a log entry: `peek*`, `stats*`, `list-tubes`.
//!
//! A read waits until every batch that was open or proposed when it came has applied here, and, where there are other nodes,
//! until everything has applied that was committed when it came: the leader is asked how far that is, for all reads that came
//! meanwhile at once. As replies to changes also leave only after they applied, a client never reads an older state than one that
//! anybody has been told of.

use beanpole_protocol::stats::{JobStats, ServerStats, TubeStats};
use beanpole_protocol::{JobId, Reply, stats};

use super::session::{Blocked, ConnId, ReadCommand};

use super::{Gateway, applied::Delivery};
use crate::queue::{JobState, JobView};

/// A read that waits for the state to be new enough.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    conn: ConnId,
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

impl Gateway {
    /// Starts a read of a session that is owed nothing.
    pub(super) fn begin_read(&mut self, conn: ConnId, read: ReadCommand) {
        if self.is_cut_off() {
            return self.close(conn);
        }
        if self.reads_at_once() {
            return self.evaluate(conn, &read);
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
            Read { conn, after: 0, place: Place::Unknown }
        } else {
            Read { conn, after: self.last_batch(), place: Place::At(0) }
        };
        self.reads.push_back(read);
    }

    /// The number under which the leader is to be asked how far the log was committed, if reads need it.
    pub fn take_barrier(&mut self) -> Option<u64> {
        if !self.needs_barrier() {
            return None;
        }
        self.last_barrier += 1;
        let asked = Place::Asked(self.last_barrier);
        for read in self.reads.iter_mut().rev().take_while(|read| read.place == Place::Unknown) {
            read.place = asked;
        }
        self.unplaced = 0;
        Some(self.last_barrier)
    }

    /// The leader's answer: everything that was committed when it was asked is up to `index`.
    pub fn barrier_reached(&mut self, barrier: u64, index: u64) {
        for read in &mut self.reads {
            match read.place {
                Place::Asked(asked) if asked <= barrier => read.place = Place::At(index),
                Place::Asked(_) | Place::Unknown => break,
                Place::At(_) => {}
            }
        }
        self.evaluate_reads();
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
            let conn = read.conn;
            self.reads.pop_front();
            let Some(session) = self.sessions.get_mut(conn) else { continue };
            match std::mem::take(&mut session.blocked) {
                Blocked::Reading(read) => {
                    self.evaluate(conn, &read);
                    self.touch_session(conn, true);
                }
                reserving @ Blocked::Reserving(_) => {
                    session.blocked = reserving;
                    self.checked(conn);
                }
                other @ (Blocked::No | Blocked::Held(_) | Blocked::Closing) => session.blocked = other,
            }
        }
    }

    fn evaluate(&mut self, conn: ConnId, read: &ReadCommand) {
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
                let body = self.tube_stats(name);
                self.answer_read(conn, body);
            }
            ReadCommand::StatsJob(id) => {
                let body = self.job_stats(*id);
                self.answer_read(conn, body);
            }
            ReadCommand::ListTubes => {
                let body = stats::list_body(self.list_tubes().iter().map(|name| &**name));
                self.answer_read(conn, Some(body));
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

    /// Every tube that holds jobs, or that a client uses or watches.
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
            }
            .body(),
        )
    }

    fn tube_stats(&mut self, name: &str) -> Option<String> {
        self.clocks.advance();
        let view = self.engine.tube(name.as_bytes());
        let client = self.tubes.find(name).map(|tube| self.tubes.get(tube));
        let exists =
            name == "default" || client.is_some() || view.as_ref().is_some_and(|view| !view.is_empty());
        if !exists {
            return None;
        }
        let mut stats = TubeStats { name, ..TubeStats::default() };
        if let Some(tube) = client {
            stats.current_using = u64::from(tube.using());
            stats.current_watching = u64::from(tube.watching());
            stats.current_waiting = u64::from(tube.waiting());
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
        for session in self.sessions.iter() {
            stats.current_producers += u64::from(session.producer);
            stats.current_workers += u64::from(session.worker);
            stats.current_waiting += u64::from(matches!(session.blocked, Blocked::Reserving(_)));
        }
        self.counters.fill(&mut stats);
        self.facts.fill(&mut stats);
        stats.body()
    }
}

/// Whole seconds, rounded down as beanstalkd does.
fn seconds(us: u64) -> u64 {
    us / 1_000_000
}
