//! Working on jobs without minding which server is up.
//!
//! ```text
//!              ┌── slot 1 ── connection ── reserve ──► handler ──► delete, release or bury
//!   Worker ────┼── slot 2 ── connection ── reserve ──►    │   ◄── touch, before the time to run is over
//!              └── slot N ── connection ── reserve ──►   ...
//! ```
//!
//! **At least once.** A reservation belongs to its connection: when that is lost, the job is handed out again, to whoever asks,
//! while the handler may still be at work ([`Delivery::lost`] tells it). And when the connection is lost between a `delete` and
//! its answer, nobody knows whether the job is gone; if it is not, it comes again. Neither is an error. Handlers must
//! be able to do a job twice.

mod handling;
mod job;
mod limits;
mod retry;
mod slot;

pub use job::{Delivery, JobInfo};
pub use retry::{Ending, Retries, Verdict};

use crate::Tube;
use crate::backoff::Backoff;
use crate::producer::SettingsError;
use crate::roster::Roster;
use crate::stream::Address;
use limits::Limits;
use slot::Slot;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What a [`Worker`] is started with. [`WorkerSettings::new`] has sensible values for all but the addresses:
///
/// ```
/// use beanpole_client::WorkerSettings;
/// let settings = WorkerSettings {
///     tubes: vec!["mail".into(), "thumbnails".into()],
///     concurrency: 8,
///     limits: vec![("thumbnails".into(), 2)],
///     ..WorkerSettings::new(["10.0.0.1:11300", "10.0.0.2:11300", "10.0.0.3:11300"])
/// };
/// ```
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// The nodes, the preferred one (on the same machine, say) first. The next one serves while one does not, and the
    /// preferred one is returned to when it is there again.
    pub addresses: Vec<Address>,
    /// The tubes that jobs are taken from; `default`, if nothing else is said.
    pub tubes: Vec<String>,
    /// How many jobs are worked on at once; each has a connection of its own. 4.
    pub concurrency: usize,
    /// Tubes of which fewer jobs may be worked on at once. A place that becomes free is taken when a slot next asks for a
    /// job, within [`wait`](WorkerSettings::wait).
    pub limits: Vec<(String, usize)>,
    /// What happens to jobs that fail.
    pub retries: Retries,
    /// How long one `reserve` waits, in whole seconds and at least one, before it is sent again. 5 s. A server that does not
    /// answer within this and [`reply_timeout`](WorkerSettings::reply_timeout) is given up.
    pub wait: Duration,
    /// How long it may take to connect to a node and hear from it. 2 s.
    pub connect_timeout: Duration,
    /// A connection on which a command is unanswered for so long is given up. 6 s: a Beanpole that is cut off from its
    /// cluster holds commands for 5 s before it answers.
    pub reply_timeout: Duration,
    /// How long a node that failed is left alone: 50 ms up to 5 s.
    pub reconnect: Backoff,
    /// Learns what the worker does, for metrics and logs.
    pub hook: Hook,
    /// Makes jitter the same in every run, for tests.
    pub seed: Option<u64>,
}

impl WorkerSettings {
    /// Settings for these addresses (`HOST:PORT` or `unix:/path`), with the defaults named at each field.
    pub fn new<A: Into<Address>>(addresses: impl IntoIterator<Item = A>) -> WorkerSettings {
        WorkerSettings {
            addresses: addresses.into_iter().map(Into::into).collect(),
            tubes: vec![Tube::DEFAULT.as_str().to_owned()],
            concurrency: 4,
            limits: Vec::new(),
            retries: Retries::default(),
            wait: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            reply_timeout: Duration::from_secs(6),
            reconnect: Backoff { first: Duration::from_millis(50), max: Duration::from_secs(5) },
            hook: Hook::default(),
            seed: None,
        }
    }

    fn check(&self) -> Result<(), SettingsError> {
        if self.addresses.is_empty() {
            return Err(SettingsError::NoAddress);
        }
        for tube in self.tubes.iter().chain(self.limits.iter().map(|(tube, _)| tube)) {
            if Tube::new(tube.as_bytes()).is_none() {
                return Err(SettingsError::BadTubeName(tube.clone()));
            }
        }
        let least = self.limits.iter().map(|(_, limit)| *limit).min().unwrap_or(1);
        for (what, number) in
            [("concurrency", self.concurrency), ("tubes", self.tubes.len()), ("limits", least)]
        {
            if number == 0 {
                return Err(SettingsError::Zero(what));
            }
        }
        Ok(())
    }
}

/// Something that happened in a worker.
#[derive(Debug)]
pub enum WorkerEvent<'a> {
    /// A slot has a connection.
    Connected {
        /// To where.
        address: &'a Address,
    },
    /// A slot has lost its connection, or got none. It tries on, there and elsewhere.
    Disconnected {
        /// From where.
        address: &'a Address,
        /// Why.
        why: &'a str,
    },
    /// A handler begins.
    Started {
        /// Its job.
        job: &'a JobInfo,
    },
    /// A job's time to run began anew.
    Touched {
        /// The job.
        job: &'a JobInfo,
    },
    /// A handler panicked; its job is tried again, or buried.
    Panicked {
        /// Its job.
        job: &'a JobInfo,
        /// What it said.
        message: &'a str,
    },
    /// A job was dealt with, and the server has acknowledged it.
    Finished {
        /// The job.
        job: &'a JobInfo,
        /// What was done with it.
        ending: Ending,
        /// How long the handler took.
        took: Duration,
    },
    /// The worker is ending and gave the job back unfinished.
    Returned {
        /// The job.
        job: &'a JobInfo,
    },
    /// The job was no longer held when its handler came to an end, or it is not known whether it was: it may come again.
    Lost {
        /// The job.
        job: &'a JobInfo,
        /// Why.
        why: &'a str,
    },
}

/// A function that is told what happens; it must return at once.
#[derive(Clone, Default)]
pub struct Hook(Option<Arc<HookFn>>);

type HookFn = dyn Fn(&WorkerEvent<'_>) + Send + Sync;

impl Hook {
    /// A hook that calls `f`.
    pub fn new(f: impl Fn(&WorkerEvent<'_>) + Send + Sync + 'static) -> Hook {
        Hook(Some(Arc::new(f)))
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Hook(set)" } else { "Hook(none)" })
    }
}

/// What a worker is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// It takes jobs.
    Running,
    /// It takes no more jobs, and finishes those that it has.
    Quiet,
    /// It gives back what it has, and ends.
    Terminate,
}

/// What a worker has done so far. Each number only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerCounts {
    /// Handlers begun.
    pub started: u64,
    /// Jobs deleted.
    pub done: u64,
    /// Jobs released, to be tried again.
    pub retried: u64,
    /// Jobs buried.
    pub buried: u64,
    /// Handlers that panicked.
    pub panicked: u64,
    /// Jobs given back unfinished at the end.
    pub returned: u64,
    /// Jobs that were no longer held, or perhaps not, when their handler came to an end.
    pub lost: u64,
    /// Connections that were lost or did not come about.
    pub disconnects: u64,
}

#[derive(Debug, Default)]
struct Counters {
    started: AtomicU64,
    done: AtomicU64,
    retried: AtomicU64,
    buried: AtomicU64,
    panicked: AtomicU64,
    returned: AtomicU64,
    lost: AtomicU64,
    disconnects: AtomicU64,
}

impl Counters {
    fn note(&self, event: &WorkerEvent<'_>) {
        let counter = match event {
            WorkerEvent::Connected { .. } | WorkerEvent::Touched { .. } => return,
            WorkerEvent::Disconnected { .. } => &self.disconnects,
            WorkerEvent::Started { .. } => &self.started,
            WorkerEvent::Panicked { .. } => &self.panicked,
            WorkerEvent::Finished { ending: Ending::Delete, .. } => &self.done,
            WorkerEvent::Finished { ending: Ending::Release { .. }, .. } => &self.retried,
            WorkerEvent::Finished { ending: Ending::Bury, .. } => &self.buried,
            WorkerEvent::Returned { .. } => &self.returned,
            WorkerEvent::Lost { .. } => &self.lost,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> WorkerCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        WorkerCounts {
            started: get(&self.started),
            done: get(&self.done),
            retried: get(&self.retried),
            buried: get(&self.buried),
            panicked: get(&self.panicked),
            returned: get(&self.returned),
            lost: get(&self.lost),
            disconnects: get(&self.disconnects),
        }
    }
}

/// What all slots share.
struct Shared<H> {
    settings: WorkerSettings,
    roster: Mutex<Roster>,
    limits: Limits,
    handler: H,
    counters: Arc<Counters>,
    /// Jobs in handlers.
    busy: watch::Sender<usize>,
}

impl<H> Shared<H> {
    fn roster<T>(&self, look: impl FnOnce(&mut Roster) -> T) -> T {
        look(&mut self.roster.lock().expect("nothing panics while it decides about addresses"))
    }

    fn tell(&self, event: &WorkerEvent<'_>) {
        self.counters.note(event);
        if let Some(hook) = &self.settings.hook.0 {
            hook(event);
        }
    }
}

/// A running worker. Dropping it ends it at once: handlers are cancelled and connections closed, so that servers hand out
/// their jobs again.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use beanpole_client::{Delivery, Verdict, Worker, WorkerSettings};
/// use std::time::Duration;
///
/// let settings = WorkerSettings { tubes: vec!["mail".into()], ..WorkerSettings::new(["10.0.0.1:11300", "10.0.0.2:11300"]) };
/// let worker = Worker::start(settings, async |job: Delivery| {
///     println!("job {} of {}, attempt {}: {} bytes", job.info.id, job.info.tube, job.info.attempt, job.body.len());
///     Verdict::Done
/// })?;
/// tokio::signal::ctrl_c().await?;
/// worker.stop(Duration::from_secs(30)).await;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Worker {
    state: watch::Sender<WorkerState>,
    busy: watch::Receiver<usize>,
    slots: JoinSet<()>,
    counters: Arc<Counters>,
}

impl Worker {
    /// Starts a worker in the current tokio runtime. It connects by itself, and nobody needs to be there yet: no
    /// failure of a server ever ends it.
    ///
    /// A handler that blocks its thread keeps others from running; give it a thread of its own with
    /// `tokio::task::spawn_blocking`.
    ///
    /// # Errors
    /// See [`SettingsError`].
    ///
    /// # Panics
    /// Outside a tokio runtime with time and IO enabled.
    pub fn start<H, F, V>(settings: WorkerSettings, handler: H) -> Result<Worker, SettingsError>
    where
        H: Fn(Delivery) -> F + Send + Sync + 'static,
        F: Future<Output = V> + Send + 'static,
        V: Into<Verdict> + Send + 'static,
    {
        settings.check()?;
        let mut random = crate::random(settings.seed);
        let for_roster = rand::SeedableRng::from_rng(&mut random);
        let counters = Arc::new(Counters::default());
        let (state, _) = watch::channel(WorkerState::Running);
        let (busy_now, busy) = watch::channel(0);
        let shared = Arc::new(Shared {
            roster: Mutex::new(Roster::new(settings.addresses.clone(), settings.reconnect, for_roster)),
            limits: Limits::new(&settings.tubes, &settings.limits),
            handler,
            counters: counters.clone(),
            busy: busy_now,
            settings,
        });
        let mut slots = JoinSet::new();
        for _ in 0..shared.settings.concurrency {
            let random = rand::SeedableRng::from_rng(&mut random);
            slots.spawn(Slot::new(shared.clone(), state.subscribe(), random).run());
        }
        Ok(Worker { state, busy, slots, counters })
    }

    /// What it is to do at the moment.
    pub fn state(&self) -> WorkerState {
        *self.state.borrow()
    }

    /// Takes no more jobs; those that it has are finished.
    pub fn quiet(&self) {
        self.state.send_replace(WorkerState::Quiet);
    }

    /// Takes jobs again after [`quiet`](Self::quiet).
    pub fn resume(&self) {
        self.state.send_replace(WorkerState::Running);
    }

    /// How many jobs are being worked on.
    pub fn busy(&self) -> usize {
        *self.busy.borrow()
    }

    /// Waits until no job is being worked on.
    pub async fn idle(&self) {
        // An error means that all slots have ended, and with them their handlers.
        let mut busy = self.busy.clone();
        let _ended = busy.wait_for(|busy| *busy == 0).await;
    }

    /// Ends in an orderly way: takes no more jobs, gives handlers `grace` to finish, then cancels those that have not and
    /// gives their jobs back, to be handed out at once.
    pub async fn stop(mut self, grace: Duration) -> WorkerCounts {
        self.quiet();
        let _still_busy = tokio::time::timeout(grace, self.idle()).await;
        self.state.send_replace(WorkerState::Terminate);
        while self.slots.join_next().await.is_some() {}
        self.counters.read()
    }

    /// What it has done so far.
    pub fn counts(&self) -> WorkerCounts {
        self.counters.read()
    }
}
