//! Looking at the state. Nothing here changes it, and all but the walks cost O(log n) at most.

use beanpole_raft::BodyAddr;

use super::batch::BODY_OVERHEAD;
use super::engine::Engine;
use super::types::{Gateway, JobState, JobView, SessionId, Totals, TubeView};

impl Engine {
    /// The index of the last entry applied; 0 before the first.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Bytes of memory that jobs, tubes and reservations hold; of trees' nodes by rule of thumb, else exact.
    #[must_use]
    pub fn index_bytes(&self) -> usize {
        let orders = self.delayed.bytes() + self.pauses.bytes() + self.reserved.bytes();
        self.jobs.bytes() + self.tubes.bytes() + orders + self.once.bytes()
    }

    /// The highest stamp of any entry so far, in microseconds. Delays and pauses follow it.
    #[must_use]
    pub fn stamp(&self) -> u64 {
        self.stamp
    }

    /// The highest lease clock value of any entry so far, in microseconds. TTR follows it.
    #[must_use]
    pub fn lease(&self) -> u64 {
        self.lease
    }

    /// The job, as the last entry left it.
    #[must_use]
    pub fn job(&self, id: u64) -> Option<JobView<'_>> {
        let slot = self.jobs.find(id)?;
        let record = self.jobs.record(slot);
        let counts = self.jobs.counts(slot);
        let state = self.jobs.state(slot);
        let (due_us, holder) = match state {
            JobState::Ready | JobState::Buried => (0, None),
            JobState::Delayed => (self.jobs.mark(slot), None),
            JobState::Reserved => {
                let hold = self.jobs.hold(slot);
                let epoch = self.gateways.of_node(hold.node).map_or(0, |life| life.epoch);
                (hold.deadline, Some(SessionId { node: hold.node, epoch, conn: hold.conn }))
            }
        };
        Some(JobView {
            id,
            tube: &self.tubes.get(record.terms.tube).name,
            state,
            pri: record.pri,
            delay_s: record.terms.delay_s,
            ttr_s: record.terms.ttr_s,
            created_us: record.created_us,
            due_us,
            body: record.body,
            reserves: counts.reserves,
            timeouts: counts.timeouts,
            releases: counts.releases,
            buries: counts.buries,
            kicks: counts.kicks,
            hops: record.terms.hops,
            reason: record.terms.reason,
            holder,
        })
    }

    /// The tube, if the engine knows it: it was put into or paused, and `TubeGone` did not end it.
    #[must_use]
    pub fn tube(&self, name: &[u8]) -> Option<TubeView> {
        let tube = self.tubes.by_name(name)?;
        Some(TubeView {
            urgent: tube.urgent,
            ready: tube.ready.len() as u64,
            reserved: tube.reserved,
            delayed: tube.delayed.len() as u64,
            buried: tube.buried.len() as u64,
            total_jobs: tube.total_jobs,
            cmd_delete: tube.cmd_delete,
            cmd_pause: tube.cmd_pause,
            pause_s: tube.pause_s,
            pause_until_us: tube.pause_until_us,
            bytes: tube.bytes - (BODY_OVERHEAD * tube.jobs() as usize) as u64,
        })
    }

    /// Sums over all tubes.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Every tube that the engine knows, in the order of creation; `default` is the first.
    pub fn tube_names(&self) -> impl Iterator<Item = &str> {
        self.tubes.born_since(0).map(|(_, tube)| &*tube.name)
    }

    /// The job that the tube would hand out next, paused or not.
    #[must_use]
    pub fn peek_ready(&self, tube: &[u8]) -> Option<u64> {
        Some(self.tubes.by_name(tube)?.ready.first()?.id())
    }

    /// The delayed job that becomes ready next.
    #[must_use]
    pub fn peek_delayed(&self, tube: &[u8]) -> Option<u64> {
        Some(self.tubes.by_name(tube)?.delayed.first()?.id)
    }

    /// The job that was buried first.
    #[must_use]
    pub fn peek_buried(&self, tube: &[u8]) -> Option<u64> {
        Some(self.tubes.by_name(tube)?.buried.first()?.id)
    }

    /// How many jobs the tube could hand out now: none while it is paused, and no more than its policy lets.
    #[must_use]
    pub fn has_ready(&self, tube: &[u8]) -> usize {
        let open = self.tubes.by_name(tube).filter(|tube| !tube.is_paused());
        open.map_or(0, |tube| tube.ready.len().min(usize::try_from(tube.room()).unwrap_or(usize::MAX)))
    }

    /// The lease clock value at which the first of the session's reservations runs out.
    #[must_use]
    pub fn session_deadline(&self, session: SessionId) -> Option<u64> {
        if !self.gateways.is_live(session.gateway()) {
            return None;
        }
        self.reserved.of_session(session.node, session.conn).next().map(|key| key.deadline())
    }

    /// The jobs that the session holds, the next to run out first.
    pub fn session_jobs(&self, session: SessionId) -> impl Iterator<Item = u64> {
        let live = self.gateways.is_live(session.gateway());
        self.reserved.of_session(session.node, session.conn).take_while(move |_| live).map(|key| key.id())
    }

    /// Whether the session holds any job.
    #[must_use]
    pub fn session_holds(&self, session: SessionId) -> bool {
        self.session_deadline(session).is_some()
    }

    /// Whether new jobs are refused.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.draining
    }

    /// The node that is leaving service, if one is.
    #[must_use]
    pub fn leaving(&self) -> Option<u32> {
        (self.leaving != 0).then_some(self.leaving)
    }

    /// The epoch of the node's gateway, while it lives.
    #[must_use]
    pub fn live_epoch(&self, node: u32) -> Option<u64> {
        self.gateways.of_node(node).filter(|life| life.live).map(|life| life.epoch)
    }

    /// The gateways that live, by node.
    pub fn live_gateways(&self) -> impl Iterator<Item = Gateway> {
        let live = self.gateways.iter().filter(|(_, life)| life.live);
        live.map(|(node, life)| Gateway { node, epoch: life.epoch })
    }

    /// The last section number that was executed for the node's live gateway: it continues with the next.
    #[must_use]
    pub fn last_sequence(&self, node: u32) -> Option<u64> {
        self.gateways.of_node(node).filter(|life| life.live).map(|life| life.sequence)
    }

    /// Passes every body that a job references to `f`, in the order of the jobs' ids.
    pub fn for_each_body(&self, f: &mut dyn FnMut(BodyAddr)) {
        self.jobs.for_each(&mut |_, slot| f(self.jobs.record(slot).body));
    }
}
