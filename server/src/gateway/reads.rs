//! Commands answered from the state without a log entry: `peek*`, `stats*`, `list-tubes`.
//!
//! A read waits until every batch that was open or proposed when it came has applied here, and is evaluated then. As replies
//! to changes also leave only after they applied, a client never reads an older state than one it has been told of.

use beanpole_protocol::stats::{JobStats, ServerStats, TubeStats};
use beanpole_protocol::{JobId, Reply, stats};

use super::session::{Blocked, ConnId, ReadCommand};
use super::{Gateway, applied::Delivery};
use crate::queue::{JobState, JobView};

impl Gateway {
    /// Starts a read of a session that is owed nothing.
    pub(super) fn begin_read(&mut self, conn: ConnId, read: ReadCommand) {
        let after = if self.open.is_some() { self.proposed + 1 } else { self.proposed };
        if self.applied >= after {
            return self.evaluate(conn, &read);
        }
        if let Some(session) = self.sessions.get_mut(conn) {
            session.blocked = Blocked::Reading(read);
            self.reads.push_back((after, conn));
        }
    }

    /// Evaluates the reads whose batches have applied.
    pub(super) fn evaluate_reads(&mut self) {
        while let Some(&(after, conn)) = self.reads.front() {
            if after > self.applied {
                return;
            }
            self.reads.pop_front();
            let Some(session) = self.sessions.get_mut(conn) else { continue };
            if let Blocked::Reading(read) = std::mem::take(&mut session.blocked) {
                self.evaluate(conn, &read);
                self.touch_session(conn, true);
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

    fn job_stats(&self, id: u64) -> Option<String> {
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
            stats.current_waiting = tube.waiting() as u64;
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
