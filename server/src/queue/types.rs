//! The words between the engine and its callers: who asks, what came of it, and what a look at the state
//! shows.

use std::sync::Arc;

use beanpole_raft::BodyAddr;

use super::policy::Reason;

/// Priorities below this are urgent, as in beanstalkd's statistics.
pub const URGENT_BELOW: u32 = 1024;

/// A node that holds clients' connections, in one of its lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Gateway {
    /// The node's number in the cluster.
    pub node: u32,
    /// The log index of the `GatewayUp` that began this life; 0 where there is none yet.
    pub epoch: u64,
}

/// One client connection, cluster-wide and for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct SessionId {
    /// The node that holds the connection.
    pub node: u32,
    /// The life of that node's gateway.
    pub epoch: u64,
    /// The gateway's number for the connection.
    pub conn: u64,
}

impl SessionId {
    /// The gateway that holds the connection.
    #[must_use]
    pub fn gateway(&self) -> Gateway {
        Gateway { node: self.node, epoch: self.epoch }
    }
}

/// When the engine next has something to fire, in microseconds of either clock; none = nothing scheduled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Due {
    /// Stamp at which the next delay or pause ends.
    pub stamp: Option<u64>,
    /// Lease clock value at which the next reservation runs out.
    pub lease: Option<u64>,
}

/// Where a job is in its life; the protocol's four states.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum JobState {
    /// Waits for a worker.
    Ready,
    /// Held by a session.
    Reserved,
    /// Becomes ready when its delay is over.
    Delayed,
    /// Out of the way until it is kicked.
    Buried,
}

impl JobState {
    /// The word of `stats-job`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Ready => "ready",
            JobState::Reserved => "reserved",
            JobState::Delayed => "delayed",
            JobState::Buried => "buried",
        }
    }
}

/// A job as the state has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JobView<'a> {
    /// Its number: dense from 1, never used twice.
    pub id: u64,
    /// The tube it was put into.
    pub tube: &'a str,
    /// Where it is in its life.
    pub state: JobState,
    /// Smaller is handed out first.
    pub pri: u32,
    /// Seconds, of the last `put` or `release`.
    pub delay_s: u32,
    /// Seconds a worker may hold it.
    pub ttr_s: u32,
    /// Stamp of its `put`, in microseconds, rounded down to a multiple of 16.
    pub created_us: u64,
    /// Delayed: the stamp at which it becomes ready. Reserved: the lease clock value at which the reservation
    /// runs out. Else 0.
    pub due_us: u64,
    /// Its body: CRC32, bytes, CRLF.
    pub body: BodyAddr,
    /// How often it was handed out.
    pub reserves: u32,
    /// How often a reservation ran out.
    pub timeouts: u32,
    /// How often a worker released it.
    pub releases: u32,
    /// How often a worker buried it.
    pub buries: u32,
    /// How often it was kicked.
    pub kicks: u32,
    /// How many jobs it descends from: each was held by the session that put the next.
    pub hops: u8,
    /// What a policy did with it.
    pub reason: Reason,
    /// Who holds it, if it is reserved.
    pub holder: Option<SessionId>,
}

/// A tube as the state has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TubeView {
    /// Ready jobs with a priority below [`URGENT_BELOW`].
    pub urgent: u64,
    /// Ready jobs.
    pub ready: u64,
    /// Reserved jobs.
    pub reserved: u64,
    /// Delayed jobs.
    pub delayed: u64,
    /// Buried jobs.
    pub buried: u64,
    /// Jobs ever put into it, since it was created.
    pub total_jobs: u64,
    /// Jobs deleted from it.
    pub cmd_delete: u64,
    /// `pause-tube` commands for it.
    pub cmd_pause: u64,
    /// Seconds of the pause that is in force; 0 if none.
    pub pause_s: u32,
    /// Stamp at which that pause ends; 0 if none.
    pub pause_until_us: u64,
    /// Bytes of its jobs' bodies.
    pub bytes: u64,
}

impl TubeView {
    /// Jobs it holds, in whatever state.
    #[must_use]
    pub fn jobs(&self) -> u64 {
        self.ready + self.reserved + self.delayed + self.buried
    }

    /// Whether it holds no job.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.jobs() == 0
    }

    /// Microseconds until the pause ends, seen from a stamp; 0 if it is not paused.
    #[must_use]
    pub fn pause_left_us(&self, stamp: u64) -> u64 {
        self.pause_until_us.saturating_sub(stamp)
    }
}

/// Sums over all tubes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Ready jobs with a priority below [`URGENT_BELOW`].
    pub urgent: u64,
    /// Ready jobs, in paused tubes too.
    pub ready: u64,
    /// Reserved jobs.
    pub reserved: u64,
    /// Delayed jobs.
    pub delayed: u64,
    /// Buried jobs.
    pub buried: u64,
    /// Jobs ever put.
    pub total_jobs: u64,
    /// Reservations that ever ran out.
    pub timeouts: u64,
    /// Tubes that the engine knows.
    pub tubes: u64,
}

impl Totals {
    /// Jobs held, in whatever state.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.ready + self.reserved + self.delayed + self.buried
    }
}

/// What a command answers its client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The job has this id.
    Inserted(u64),
    /// No such job or tube, or not the session's to change.
    NotFound,
    /// The job is gone for good.
    Deleted,
    /// The job is ready or delayed again.
    Released,
    /// The job is buried.
    Buried,
    /// The reservation runs for a whole TTR from now.
    Touched,
    /// So many jobs became ready.
    Kicked(u64),
    /// The one job became ready.
    KickedJob,
    /// The tube is paused, or its pause is lifted.
    Paused,
    /// `reserve-job` got it.
    Reserved {
        /// Which job.
        id: u64,
        /// Its body: CRC32, bytes, CRLF.
        body: BodyAddr,
    },
    /// The place of a command that its gateway took back.
    Noop,
    /// The cluster takes no new jobs.
    Draining,
    /// The tube's policy refuses the put.
    OverLimit,
}

/// A job given to a session that waited for one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handout {
    /// Who holds it now.
    pub session: SessionId,
    /// The session's want that it answers.
    pub want: u64,
    /// Which job.
    pub id: u64,
    /// Its body: CRC32, bytes, CRLF.
    pub body: BodyAddr,
}

/// A gateway's life began, or was found to have begun already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GatewayUp {
    /// Which node.
    pub node: u32,
    /// The random number it announced itself with.
    pub nonce: u64,
    /// The epoch of that life: live, unless it was ended since (see [`super::Engine::live_epoch`]).
    pub epoch: u64,
}

/// A marked entry, and the hash of all history up to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mark {
    /// The random number that it was marked with; 0 before the first mark.
    pub nonce: u64,
    /// Its index.
    pub index: u64,
    /// The hash.
    pub hash: u64,
}

/// Why a section had no effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusedWhy {
    /// Its sequence number was applied before.
    Duplicate,
    /// Sections before it are missing.
    Gap,
    /// That life of the gateway has not begun or is over.
    NotLive,
}

/// A section of a batch that had no effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Whose section.
    pub gateway: Gateway,
    /// The number it carried.
    pub sequence: u64,
    /// The last number that was applied for that node's live epoch; 0 if there is none.
    pub last: u64,
    /// The reason.
    pub why: RefusedWhy,
}

/// What applying one entry did. Reuse one for all entries: [`super::Engine::apply`] appends, the caller
/// clears.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Effects {
    /// Answers, in the order of the commands that a client awaits.
    pub outcomes: Vec<(SessionId, Outcome)>,
    /// Offers that were served, in the order they were.
    pub handouts: Vec<Handout>,
    /// Offers that found nothing, in the order they were made.
    pub unmatched: Vec<(SessionId, u64)>,
    /// Bodies that a job references from now on.
    pub retained: Vec<BodyAddr>,
    /// Bodies that no job references any longer.
    pub released: Vec<BodyAddr>,
    /// Tubes in which a job became ready or a pause ended, and that have jobs to hand out at the end.
    pub ready_tubes: Vec<Arc<str>>,
    /// Tubes that lost a job and hold none at the end; never `default`.
    pub emptied: Vec<Arc<str>>,
    /// Lives of gateways that began, or were found to have begun already.
    pub gateways_up: Vec<GatewayUp>,
    /// Sections that were executed: whose, and their numbers.
    pub sequences: Vec<(Gateway, u64)>,
    /// Sections that had no effect.
    pub refused: Vec<Refused>,
    /// Jobs that were buried because no voter has their bodies, and their tubes.
    pub lost: Vec<(u64, Arc<str>)>,
}

impl Effects {
    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.outcomes.clear();
        self.handouts.clear();
        self.unmatched.clear();
        self.retained.clear();
        self.released.clear();
        self.ready_tubes.clear();
        self.emptied.clear();
        self.gateways_up.clear();
        self.sequences.clear();
        self.refused.clear();
        self.lost.clear();
    }
}
