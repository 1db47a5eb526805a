//! The same for programs without an async runtime. (Feature `blocking`.)
//!
//! ```text
//!   your threads ── put(), reserve(), ... ──► wait for the answer
//!                                │ ▲
//!   one thread of its own ───────┴─┴── sockets, timers, the producer's and the worker's tasks
//! ```
//!
//! Every type has a thread of its own that does its IO, and ends with it. None of this may be called from within an async
//! runtime: it blocks the thread.
//!
//! ```no_run
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use beanpole_client::blocking::Producer;
//! use beanpole_client::{ProducerSettings, PutOptions};
//!
//! let producer = Producer::start(ProducerSettings::new(["10.0.0.1:11300", "10.0.0.2:11300"]))?;
//! println!("{:?}", producer.put("hello", PutOptions::default()));
//! # Ok(()) }
//! ```

use crate::{
    Address, ConnectError, Delivery, Error, Outcome, ProducerCounts, ProducerSettings, PutOptions,
    SettingsError, SpoolCounts, Verdict, WorkerCounts, WorkerSettings,
};
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// A thread that runs what others wait for.
#[derive(Debug)]
struct Background {
    handle: Handle,
    /// Dropped, it ends the thread.
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    fn start() -> io::Result<Background> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("beanpole-client".into()).spawn(move || {
            // An error is the end, too.
            let _end = runtime.block_on(ended);
            // A handler that blocks is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Background { handle, end: Some(end), thread: Some(thread) })
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.handle.block_on(future)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.end = None;
        // A panic there was told on its own.
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

/// A [`Connection`](crate::Connection) whose commands block.
#[derive(Debug)]
pub struct Connection {
    connection: crate::Connection,
    background: Background,
}

impl Connection {
    /// Connects to `address`, waiting for at most `limit`; commands wait as long for their replies, too
    /// (see [`with_timeout`](crate::Connection::with_timeout)).
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn connect(address: impl Into<Address>, limit: Duration) -> Result<Connection, ConnectError> {
        let address = address.into();
        let started = Background::start();
        let background = started.map_err(|source| ConnectError { address: address.to_string(), source })?;
        let connected = background.wait(crate::Connection::connect_within(address, limit))?;
        Ok(Connection { connection: connected.with_timeout(limit), background })
    }

    /// Waits for whatever is done with the connection: `connection.call(async |c| c.reserve_with_timeout(5).await)`.
    ///
    /// # Errors
    /// Those of what is done.
    pub fn call<T>(
        &mut self,
        command: impl AsyncFnOnce(&mut crate::Connection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.background.wait(command(&mut self.connection))
    }
}

/// A [`Producer`](crate::Producer) whose puts block. May be shared by threads in an [`Arc`], or cloned.
#[derive(Clone, Debug)]
pub struct Producer {
    producer: crate::Producer,
    background: Arc<Background>,
}

impl Producer {
    /// As [`Producer::start`](crate::Producer::start).
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn start(settings: ProducerSettings) -> Result<Producer, SettingsError> {
        let background = Background::start().map_err(SettingsError::NoThread)?;
        let producer = background.wait(async { crate::Producer::start(settings) })?;
        Ok(Producer { producer, background: Arc::new(background) })
    }

    /// As [`Producer::put`](crate::Producer::put).
    pub fn put(&self, body: impl Into<Bytes>, options: PutOptions) -> Outcome {
        self.background.wait(self.producer.put(body, options))
    }

    /// As [`Producer::put_once`](crate::Producer::put_once).
    pub fn put_once(&self, key: &str, body: impl Into<Bytes>, options: PutOptions) -> Outcome {
        self.background.wait(self.producer.put_once(key, body, options))
    }

    /// As [`Producer::counts`](crate::Producer::counts).
    pub fn counts(&self) -> ProducerCounts {
        self.producer.counts()
    }

    /// As [`Producer::spool_counts`](crate::Producer::spool_counts).
    pub fn spool_counts(&self) -> Option<SpoolCounts> {
        self.producer.spool_counts()
    }

    /// As [`Producer::close`](crate::Producer::close).
    pub fn close(self) {
        self.background.wait(self.producer.close());
    }
}

/// A [`Worker`](crate::Worker) whose handlers block, each on a thread of its own.
#[derive(Debug)]
pub struct Worker {
    worker: Option<crate::Worker>,
    background: Background,
}

impl Worker {
    /// As [`Worker::start`](crate::Worker::start). A handler that blocks cannot be cancelled: at the end of the grace of
    /// [`stop`](Self::stop) its job is given back while it may still be at work.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn start<H, V>(settings: WorkerSettings, handler: H) -> Result<Worker, SettingsError>
    where
        H: Fn(Delivery) -> V + Send + Sync + 'static,
        V: Into<Verdict> + Send + 'static,
    {
        let background = Background::start().map_err(SettingsError::NoThread)?;
        let handler = Arc::new(handler);
        let one = move |job: Delivery| {
            let handler = handler.clone();
            async move {
                match tokio::task::spawn_blocking(move || handler(job).into()).await {
                    Ok(verdict) => verdict,
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        // Only the end of the runtime cancels it.
                        Err(_cancelled) => Verdict::Retry { after: None },
                    },
                }
            }
        };
        let worker = background.wait(async { crate::Worker::start(settings, one) })?;
        Ok(Worker { worker: Some(worker), background })
    }

    /// As [`Worker::counts`](crate::Worker::counts).
    pub fn counts(&self) -> WorkerCounts {
        self.worker.as_ref().map(crate::Worker::counts).unwrap_or_default()
    }

    /// As [`Worker::stop`](crate::Worker::stop).
    pub fn stop(mut self, grace: Duration) -> WorkerCounts {
        match self.worker.take() {
            Some(worker) => self.background.wait(worker.stop(grace)),
            None => WorkerCounts::default(),
        }
    }
}
