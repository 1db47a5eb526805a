//! What a connection knows of its jobs from the replies it got.

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Waits for a worker.
    Ready,
    /// With a worker. After a restart: ready.
    Reserved,
    /// Waits for its time.
    Delayed,
    /// Put aside.
    Buried,
    /// Gone.
    Deleted,
}

impl State {
    /// The word in `stats-job` after a restart.
    pub fn word_after_restart(self) -> &'static str {
        match self {
            State::Ready | State::Reserved => "ready",
            State::Delayed => "delayed",
            State::Buried => "buried",
            State::Deleted => "deleted",
        }
    }
}

/// Everything of a job that must survive, but for its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Where it is.
    pub state: State,
    /// Its priority now.
    pub pri: u32,
    /// The delay it was given last, in seconds.
    pub delay_s: u32,
    /// Its time to run, in seconds.
    pub ttr_s: u32,
    /// How often it was handed out.
    pub reserves: u64,
    /// How often it was released.
    pub releases: u64,
    /// How often it was buried.
    pub buries: u64,
    /// How often it was kicked.
    pub kicks: u64,
}

/// A job that a connection put.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its id.
    pub id: u64,
    /// Its body.
    pub body: Vec<u8>,
    /// As acknowledged.
    pub facts: Facts,
    /// What it would be if the command on its way at the kill had happened.
    pub perhaps: Option<Facts>,
    /// Grows each time the job is buried or delayed: the order in which `kick` takes them.
    pub put_aside: u64,
    /// Restarts after which a deleted job was looked for and not found.
    pub seen_gone: u32,
}

impl Job {
    /// A job that was just put.
    pub fn new(id: u64, body: Vec<u8>, pri: u32, delay_s: u32, ttr_s: u32) -> Job {
        let state = if delay_s > 0 { State::Delayed } else { State::Ready };
        let facts = Facts { state, pri, delay_s, ttr_s, reserves: 0, releases: 0, buries: 0, kicks: 0 };
        Job { id, body, facts, perhaps: None, put_aside: 0, seen_gone: 0 }
    }

    /// All it may be.
    pub fn candidates(&self) -> impl Iterator<Item = Facts> + use<> {
        std::iter::once(self.facts).chain(self.perhaps)
    }
}
