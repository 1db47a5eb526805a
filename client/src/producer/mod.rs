//! Putting jobs without minding which server is up.
//!
//! ```text
//!   put() ─┐                    ┌── queue, in order ──┐
//!   put() ─┼── inbox ──► task ──┤                     ├──► one connection, many puts under way ──► node 1
//!   put() ─┘      ▲             └── again after a loss ◄──────────────┘                    else    node 2 ...
//!                 └──────────── outcome, within the deadline
//! ```
//!
//! A [`Producer`] is one task with one connection, and any number of handles. Puts of all handles share the connection and
//! are pipelined. When the connection is lost it makes another one, to the next address if need be, and sends again what
//! certainly had no effect; of what may have had one, only puts with a key, which the server takes once.

mod actor;
mod counts;
mod exchange;
mod link;
mod pace;
mod put;
mod spooling;

pub use counts::ProducerCounts;

use crate::backoff::Backoff;
use crate::commands::PutOptions;
use crate::error::Refusal;
use crate::spool::{Spool, SpoolCounters, SpoolCounts, SpoolError, SpoolSettings};
use crate::stream::Address;
use crate::{JobId, PutKey, Tube};
use actor::{Actor, Message};
use bytes::Bytes;
use counts::{Counters, count};
use put::{Caller, Put, Waiter};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

/// A longer deadline is the same as this one.
const DEADLINE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Which puts get an idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Those that are put with [`Producer::put_once`]. What other puts have come to when a connection is lost is
    /// [`Outcome::Unknown`].
    Given,
    /// All: those without one get a random one. A server remembers the newest 65,536 keys for ten minutes, so with very
    /// many puts a second keys are remembered for a shorter time, also those of others.
    Random,
}

/// What a [`Producer`] is started with. [`ProducerSettings::new`] has sensible values for all but the addresses:
///
/// ```
/// use beanpole_client::{Keys, ProducerSettings};
/// let settings = ProducerSettings {
///     tube: "mail".into(),
///     keys: Keys::Random,
///     ..ProducerSettings::new(["10.0.0.1:11300", "10.0.0.2:11300", "10.0.0.3:11300"])
/// };
/// ```
#[derive(Clone, Debug)]
pub struct ProducerSettings {
    /// The nodes, the preferred one first. The next one is taken when one cannot be reached, is lost, is draining, or refuses
    /// puts for want of room twice in a row.
    pub addresses: Vec<Address>,
    /// The tube that jobs are put into; at first `default`.
    pub tube: String,
    /// How long a put may take in all; then its outcome is told, whatever it is. 30 s.
    pub deadline: Duration,
    /// How long it may take to connect to a node and hear from it. 2 s.
    pub connect_timeout: Duration,
    /// A connection on which a put is unanswered for so long is given up. 6 s: a Beanpole that is cut off from its cluster
    /// holds commands for 5 s before it answers.
    pub reply_timeout: Duration,
    /// How many puts may be unanswered at a time. 256.
    pub window: usize,
    /// How many puts the producer holds in all; beyond that [`Producer::put`] waits for a place, up to its deadline. 4,096.
    pub capacity: usize,
    /// Which puts get a key.
    pub keys: Keys,
    /// How long a node that failed is left alone: 50 ms up to 2 s.
    pub reconnect: Backoff,
    /// How long to wait after puts were refused for want of room: 50 ms up to 2 s.
    pub refused: Backoff,
    /// Where puts are kept while no node takes them; nowhere, if nothing is said. With a spool all puts have a key, as with
    /// [`Keys::Random`].
    pub spool: Option<SpoolSettings>,
    /// Makes jitter and random keys the same in every run, for tests. Never set it for two producers.
    pub seed: Option<u64>,
}

impl ProducerSettings {
    /// Settings for these addresses (`HOST:PORT` or `unix:/path`), with the defaults named at each field.
    pub fn new<A: Into<Address>>(addresses: impl IntoIterator<Item = A>) -> ProducerSettings {
        let backoff = Backoff { first: Duration::from_millis(50), max: Duration::from_secs(2) };
        ProducerSettings {
            addresses: addresses.into_iter().map(Into::into).collect(),
            tube: "default".to_owned(),
            deadline: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(2),
            reply_timeout: Duration::from_secs(6),
            window: 256,
            capacity: 4096,
            keys: Keys::Given,
            reconnect: backoff,
            refused: backoff,
            spool: None,
            seed: None,
        }
    }
}

/// Settings that nothing can be started with.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The list of addresses is empty.
    #[error("there is no address to connect to")]
    NoAddress,
    /// A tube's name is none.
    #[error("'{0}' is no tube name (1 to 200 of A-Za-z0-9-+/;.$_(), not beginning with '-')")]
    BadTubeName(String),
    /// A number that must be at least 1 is 0.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// The spool's directory cannot be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The system gives no thread.
    #[error("no thread can be started: {0}")]
    NoThread(std::io::Error),
}

/// What came of a put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A server has the job (and keeps it through a crash, if it is durable).
    Inserted(JobId),
    /// No node takes the job at the moment; it is in the [spool](SpoolSettings), and will be put when one does, also after this
    /// program was started again.
    Spooled,
    /// The job is certainly not in any server's queue (but see [`Refusal::Buried`]).
    Rejected(Rejection),
    /// The job may be in a queue or not: it was sent, and no answer came before the connection was lost or the deadline was
    /// over. Putting it again can make two, unless that is done with the same key.
    Unknown,
}

impl Outcome {
    /// The job's number, if it is in a server's queue.
    pub fn id(&self) -> Option<JobId> {
        match self {
            Outcome::Inserted(id) => Some(*id),
            Outcome::Spooled | Outcome::Rejected(_) | Outcome::Unknown => None,
        }
    }
}

/// Why a job was not put.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// A server refused it for a reason that will not go away, such as [`Refusal::JobTooBig`].
    #[error("the server refused: {0}")]
    Refused(Refusal),
    /// No node took it within the deadline.
    #[error("no node took it within the deadline; the last that was heard: {0}")]
    NotTaken(String),
    /// No node took it, and the spool is full.
    #[error("no node took it, and the spool is full")]
    SpoolFull,
    /// No node took it, and it cannot be spooled.
    #[error("no node took it, and it cannot be spooled: {0}")]
    NotSpooled(String),
    /// The key is none: 1 to 64 printable bytes of ASCII without a space.
    #[error("'{0}' is no key of a put (1 to 64 printable bytes of ASCII without a space)")]
    BadKey(String),
    /// The body is longer than the protocol can announce (4 GiB).
    #[error("a body of {0} bytes cannot be put")]
    BodyTooLong(usize),
    /// The producer was closed.
    #[error("the producer is closed")]
    Closed,
}

/// A handle to a producer. Clones share its connection. The producer ends when the last handle is dropped.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use beanpole_client::{Outcome, Producer, ProducerSettings, PutOptions};
///
/// let producer = Producer::start(ProducerSettings::new(["10.0.0.1:11300", "10.0.0.2:11300"]))?;
/// match producer.put("hello", PutOptions::default()).await {
///     Outcome::Inserted(id) => println!("job {id}"),
///     Outcome::Spooled => println!("kept until a server takes it"),
///     Outcome::Rejected(why) => println!("certainly not put: {why}"),
///     Outcome::Unknown => println!("perhaps put"),
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Producer {
    shared: Arc<Shared>,
    inbox: mpsc::UnboundedSender<Message>,
    tube: Arc<str>,
}

/// What all handles share.
#[derive(Debug)]
struct Shared {
    deadline: Duration,
    places: Arc<Semaphore>,
    counters: Arc<Counters>,
    spool: Option<Arc<SpoolCounters>>,
    /// How random keys begin; none when puts get no random keys.
    key_prefix: Option<u64>,
    next_key: AtomicU64,
}

impl Producer {
    /// Starts a producer's task in the current tokio runtime. It connects at once, and returns before that is done: nobody
    /// needs to be there yet.
    ///
    /// # Errors
    /// See [`SettingsError`].
    ///
    /// # Panics
    /// Outside a tokio runtime with time and IO enabled.
    pub fn start(settings: ProducerSettings) -> Result<Producer, SettingsError> {
        let tube = checked_tube(&settings.tube)?;
        if settings.addresses.is_empty() {
            return Err(SettingsError::NoAddress);
        }
        for (what, number) in [("window", settings.window), ("capacity", settings.capacity)] {
            if number == 0 {
                return Err(SettingsError::Zero(what));
            }
        }
        let mut random = crate::random(settings.seed);
        let wants_keys = settings.keys == Keys::Random || settings.spool.is_some();
        let spool_counters = settings.spool.as_ref().map(|_| Arc::new(SpoolCounters::default()));
        let patience = settings.spool.as_ref().map_or(DEADLINE_MAX, |spool| spool.patience);
        let shared = Shared {
            deadline: settings.deadline.min(patience).min(DEADLINE_MAX),
            places: Arc::new(Semaphore::new(settings.capacity)),
            counters: Arc::default(),
            spool: spool_counters.clone(),
            key_prefix: wants_keys.then(|| rand::Rng::random(&mut random)),
            next_key: AtomicU64::new(0),
        };
        let spool = match (&settings.spool, spool_counters) {
            (Some(of), Some(counters)) => Some(Spool::open(of.clone(), counters)?),
            (_, _) => None,
        };
        let (inbox, requests) = mpsc::unbounded_channel();
        tokio::spawn(Actor::new(settings, requests, shared.counters.clone(), spool, random).run());
        Ok(Producer { shared: Arc::new(shared), inbox, tube })
    }

    /// A handle to the same producer that puts into another tube.
    ///
    /// # Errors
    /// [`SettingsError::BadTubeName`].
    pub fn in_tube(&self, tube: &str) -> Result<Producer, SettingsError> {
        Ok(Producer { tube: checked_tube(tube)?, ..self.clone() })
    }

    /// Puts a job; returns within the deadline. Servers that are away or have no room are waited for meanwhile.
    ///
    /// Dropping the future takes the job back if it was not sent yet; else it may be put.
    pub async fn put(&self, body: impl Into<Bytes>, options: PutOptions) -> Outcome {
        let key = self.shared.key_prefix.map(|prefix| {
            let number = self.shared.next_key.fetch_add(1, Ordering::Relaxed);
            format!("{prefix:016x}-{number:x}").into_boxed_str()
        });
        self.send(body.into(), options, key).await
    }

    /// As [`put`](Self::put), with an idempotency key: for as long as the server remembers it, there is one job for this key
    /// in this tube, however often this is called. Where the server does not know `put-once` (it is not a Beanpole), the key
    /// is of no effect, and the outcome of a put whose connection was lost is [`Outcome::Unknown`].
    pub async fn put_once(&self, key: &str, body: impl Into<Bytes>, options: PutOptions) -> Outcome {
        if PutKey::new(key.as_bytes()).is_none() {
            return self.rejected(Rejection::BadKey(key.to_owned()));
        }
        self.send(body.into(), options, Some(key.into())).await
    }

    async fn send(&self, body: Bytes, options: PutOptions, key: Option<Box<str>>) -> Outcome {
        if u32::try_from(body.len()).is_err() {
            return self.rejected(Rejection::BodyTooLong(body.len()));
        }
        let deadline = Instant::now() + self.shared.deadline;
        let place = self.shared.places.clone().acquire_owned();
        let Ok(place) = tokio::time::timeout_at(deadline, place).await else {
            let why = "as many puts wait as the producer holds".to_owned();
            return self.rejected(Rejection::NotTaken(why));
        };
        let Ok(place) = place else { return self.rejected(Rejection::Closed) };
        let (answer, outcome) = oneshot::channel();
        let waiter = Waiter::Caller(Caller { deadline, answer, place });
        let put = Put { tube: self.tube.clone(), body, options, key, is_doubtful: false, waiter };
        if self.inbox.send(Message::Put(put)).is_err() {
            return self.rejected(Rejection::Closed);
        }
        // The task answers every put; it ends without an answer only with its runtime.
        outcome.await.unwrap_or(Outcome::Unknown)
    }

    fn rejected(&self, why: Rejection) -> Outcome {
        count(&self.shared.counters.rejected);
        Outcome::Rejected(why)
    }

    /// What the producer has done so far, over all handles.
    pub fn counts(&self) -> ProducerCounts {
        self.shared.counters.read()
    }

    /// What its spool holds and has done so far, if it has one.
    pub fn spool_counts(&self) -> Option<SpoolCounts> {
        self.shared.spool.as_ref().map(|spool| spool.read())
    }

    /// Waits until all puts that were called before have their outcome, and ends the producer for all its handles. What is
    /// in the spool stays there, for the next producer on its directory.
    pub async fn close(self) {
        let (done, ended) = oneshot::channel();
        if self.inbox.send(Message::Close(done)).is_ok() {
            // An error means that it has ended already.
            let _ended_before = ended.await;
        }
    }
}

fn checked_tube(name: &str) -> Result<Arc<str>, SettingsError> {
    match Tube::new(name.as_bytes()) {
        Some(tube) => Ok(tube.as_str().into()),
        None => Err(SettingsError::BadTubeName(name.to_owned())),
    }
}
