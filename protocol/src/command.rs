//! What a client may ask.

use bytes::Bytes;

use crate::values::{JobId, Priority, PutKey, Tube};

/// What a `put` or `put-once` line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutHeader {
    /// Smaller is handed out first.
    pub pri: u32,
    /// Seconds until the job becomes ready.
    pub delay: u32,
    /// Seconds a worker may hold it; a 0 was made 1.
    pub ttr: u32,
    /// Bytes of the body, without its CRLF.
    pub bytes: u32,
    /// Of a `put-once`: puts nothing if a put with this key was taken not long ago.
    pub key: Option<PutKey>,
}

/// A well-formed command other than `put`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// `use TUBE`: where this connection's puts go.
    Use(Tube<'a>),
    /// `reserve`: waits for a job.
    Reserve,
    /// `reserve-with-timeout SECONDS`: waits no longer than that, 0 to 2147483647.
    ReserveWithTimeout(u32),
    /// `reserve-job ID`: this job, if it is ready, delayed or buried.
    ReserveJob(JobId),
    /// `delete ID`
    Delete(JobId),
    /// `release ID PRI DELAY`
    Release {
        /// Which job.
        id: JobId,
        /// Its new priority.
        pri: Priority,
        /// Seconds until it is ready again.
        delay: u32,
    },
    /// `bury ID PRI`
    Bury {
        /// Which job.
        id: JobId,
        /// Its new priority.
        pri: Priority,
    },
    /// `touch ID`: a whole TTR from now.
    Touch(JobId),
    /// `watch TUBE`
    Watch(Tube<'a>),
    /// `ignore TUBE`
    Ignore(Tube<'a>),
    /// `peek ID`
    Peek(JobId),
    /// `peek-ready`
    PeekReady,
    /// `peek-delayed`
    PeekDelayed,
    /// `peek-buried`
    PeekBuried,
    /// `kick BOUND`: at most that many.
    Kick(u32),
    /// `kick-job ID`
    KickJob(JobId),
    /// `stats`
    Stats,
    /// `stats-tube TUBE`
    StatsTube(Tube<'a>),
    /// `stats-job ID`
    StatsJob(JobId),
    /// `list-tubes`
    ListTubes,
    /// `list-tube-used`
    ListTubeUsed,
    /// `list-tubes-watched`
    ListTubesWatched,
    /// `pause-tube TUBE SECONDS`
    PauseTube {
        /// Which tube.
        tube: Tube<'a>,
        /// For how long no job of it is handed out; 0 ends a pause.
        delay: u32,
    },
    /// `quit`
    Quit,
}

impl Command<'_> {
    /// The command's word on the wire: `put` is none of these, for its body follows it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Use(_) => "use",
            Self::Reserve => "reserve",
            Self::ReserveWithTimeout(_) => "reserve-with-timeout",
            Self::ReserveJob(_) => "reserve-job",
            Self::Delete(_) => "delete",
            Self::Release { .. } => "release",
            Self::Bury { .. } => "bury",
            Self::Touch(_) => "touch",
            Self::Watch(_) => "watch",
            Self::Ignore(_) => "ignore",
            Self::Peek(_) => "peek",
            Self::PeekReady => "peek-ready",
            Self::PeekDelayed => "peek-delayed",
            Self::PeekBuried => "peek-buried",
            Self::Kick(_) => "kick",
            Self::KickJob(_) => "kick-job",
            Self::Stats => "stats",
            Self::StatsTube(_) => "stats-tube",
            Self::StatsJob(_) => "stats-job",
            Self::ListTubes => "list-tubes",
            Self::ListTubeUsed => "list-tube-used",
            Self::ListTubesWatched => "list-tubes-watched",
            Self::PauseTube { .. } => "pause-tube",
            Self::Quit => "quit",
        }
    }
}

/// A whole request, as the decoder hands it out. It borrows from the read buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// A command of one line.
    Command(Command<'a>),
    /// A `put` with its body.
    Put {
        /// The numbers of its line.
        header: PutHeader,
        /// The body and its CRLF: `header.bytes + 2` bytes, cut from the read buffer.
        body: Bytes,
    },
    /// Something that has an error as its only answer.
    Bad(BadRequest),
}

/// Why a request is only answered by an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRequest {
    /// `BAD_FORMAT`
    BadFormat,
    /// `UNKNOWN_COMMAND`
    UnknownCommand,
    /// `JOB_TOO_BIG`, after the body was swallowed.
    JobTooBig,
    /// `EXPECTED_CRLF`, after the body and two bytes were swallowed.
    ExpectedCrlf,
    /// `OUT_OF_MEMORY`, after the body was swallowed: the server takes no bodies now.
    NoRoom,
}
