//! The thread that owns a spool's directory: a producer's task never waits for a disk.
//!
//! What has come meanwhile is written together and shares one fsync.

use super::record::Record;
use super::store::{NotStored, Store};
use super::{Fsync, SpoolCounters, SpoolError, SpoolSettings};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot};

/// Orders that are carried out before an fsync, at most.
const BATCH_MAX: usize = 1024;

/// What came of storing a put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// It is kept.
    Kept,
    /// There is no room.
    Full,
    /// It is not kept, and why.
    Failed(String),
    /// Nobody knows.
    Unclear,
}

/// What became of a spooled put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replayed {
    /// A server has it.
    Inserted,
    /// A server will never take it.
    Refused,
}

type Answer = Box<dyn FnOnce(Stored) + Send>;

enum Order {
    Store(Record, Answer),
    HandOut(usize),
    Done(u64, Replayed),
    Close(oneshot::Sender<()>),
}

/// A handle to the thread, which ends when this is dropped.
pub(crate) struct Spool {
    orders: Sender<Order>,
    handed_out: mpsc::UnboundedReceiver<Vec<(u64, Record)>>,
    counters: Arc<SpoolCounters>,
}

impl Spool {
    /// Opens the directory and starts the thread.
    pub(crate) fn open(settings: SpoolSettings, counters: Arc<SpoolCounters>) -> Result<Spool, SpoolError> {
        let directory = settings.directory.clone();
        let fsync = settings.fsync;
        let store = Store::open(settings, counters.clone())?;
        let (orders, incoming) = channel();
        let (hand_out, handed_out) = mpsc::unbounded_channel();
        let keeper = Keeper { store, fsync, unsynced_since: None, hand_out, counters: counters.clone() };
        std::thread::Builder::new()
            .name("spool".into())
            .spawn(move || keeper.run(&incoming))
            .map_err(|source| SpoolError::Io { directory, source })?;
        Ok(Spool { orders, handed_out, counters })
    }

    /// Stores a put; `answer` is called on the spool's thread.
    pub(crate) fn store(&self, record: Record, answer: impl FnOnce(Stored) + Send + 'static) {
        if let Err(unsent) = self.orders.send(Order::Store(record, Box::new(answer)))
            && let Order::Store(_, answer) = unsent.0
        {
            answer(Stored::Failed("the spool has ended".to_owned()));
        }
    }

    /// Asks for up to so many records; they come through [`next`](Self::next), all at once, and be it none.
    pub(crate) fn ask(&self, most: usize) {
        // The thread ends only after this handle.
        let _sent = self.orders.send(Order::HandOut(most));
    }

    /// Records that were asked for. May be cancelled and called again.
    pub(crate) async fn next(&mut self) -> Vec<(u64, Record)> {
        match self.handed_out.recv().await {
            Some(records) => records,
            None => std::future::pending().await,
        }
    }

    /// A record needs no more replaying.
    pub(crate) fn done(&self, number: u64, how: Replayed) {
        // The thread ends only after this handle.
        let _sent = self.orders.send(Order::Done(number, how));
    }

    /// Whether there are records that were not handed out.
    pub(crate) fn has_waiting(&self) -> bool {
        self.counters.waiting.load(Relaxed) > 0
    }

    /// Resolves when everything is on disk and the directory is free for another producer.
    pub(crate) async fn close(self) {
        let (done, closed) = oneshot::channel();
        if self.orders.send(Order::Close(done)).is_ok() {
            // An error means that it is closed.
            let _closed = closed.await;
        }
    }
}

struct Keeper {
    store: Store,
    fsync: Fsync,
    unsynced_since: Option<Instant>,
    hand_out: mpsc::UnboundedSender<Vec<(u64, Record)>>,
    counters: Arc<SpoolCounters>,
}

impl Keeper {
    fn run(mut self, orders: &Receiver<Order>) {
        let mut closer = None;
        while closer.is_none() {
            let first = match self.wait(orders) {
                Ok(first) => Some(first),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let batch = first.into_iter().chain(orders.try_iter()).take(BATCH_MAX);
            let mut kept = Vec::new();
            for order in batch {
                if let Order::Close(done) = order {
                    closer = Some(done);
                    break;
                }
                self.carry_out(order, &mut kept);
            }
            self.sync_if_due(kept);
            self.store.save_cursor();
            self.store.publish();
        }
        if let Err(error) = self.store.sync() {
            tracing::error!(%error, "the spool cannot be synced");
        }
        self.store.save_cursor();
        drop(self.store);
        if let Some(closer) = closer {
            // Nobody needs to listen.
            let _gone = closer.send(());
        }
    }

    fn wait(&self, orders: &Receiver<Order>) -> Result<Order, RecvTimeoutError> {
        match (self.fsync, self.unsynced_since) {
            (Fsync::Every(every), Some(since)) => orders.recv_timeout(every.saturating_sub(since.elapsed())),
            (Fsync::Every(_) | Fsync::EachPut, _) => {
                orders.recv().map_err(|_| RecvTimeoutError::Disconnected)
            }
        }
    }

    fn carry_out(&mut self, order: Order, kept: &mut Vec<Answer>) {
        match order {
            Order::Store(record, answer) => match self.store.append(&record, now_ms()) {
                Ok(()) => kept.push(answer),
                Err(NotStored::Full) => answer(Stored::Full),
                Err(NotStored::Failed(error)) => {
                    tracing::error!(%error, "a put cannot be spooled");
                    answer(Stored::Failed(error.to_string()));
                }
                Err(NotStored::Unclear(error)) => {
                    tracing::error!(%error, "a put may not have been spooled");
                    answer(Stored::Unclear);
                }
            },
            Order::HandOut(most) => {
                let records = self.store.hand_out(most, now_ms());
                // The producer that asked is gone.
                let _gone = self.hand_out.send(records);
            }
            Order::Done(number, how) => {
                self.store.done(number);
                match how {
                    Replayed::Inserted => &self.counters.replayed,
                    Replayed::Refused => &self.counters.dropped_refused,
                }
                .fetch_add(1, Relaxed);
            }
            Order::Close(_) => {}
        }
    }

    /// Makes durable what was kept, and tells those who wait for it.
    fn sync_if_due(&mut self, kept: Vec<Answer>) {
        if !kept.is_empty() {
            self.unsynced_since.get_or_insert_with(Instant::now);
        }
        let waited = self.unsynced_since.map_or(Duration::ZERO, |since| since.elapsed());
        let is_due = match self.fsync {
            Fsync::EachPut => !kept.is_empty(),
            Fsync::Every(every) => self.unsynced_since.is_some() && waited >= every,
        };
        let mut stored = Stored::Kept;
        if is_due {
            self.unsynced_since = None;
            if let Err(error) = self.store.sync() {
                tracing::error!(%error, "the spool cannot be synced");
                stored = Stored::Unclear;
            }
        }
        if stored == Stored::Kept {
            self.counters.spooled.fetch_add(kept.len() as u64, Relaxed);
        }
        // Whoever hears that a put is kept finds it counted.
        self.store.publish();
        kept.into_iter().for_each(|answer| answer(stored.clone()));
    }
}

/// Milliseconds since 1970: ages must outlive the process.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
