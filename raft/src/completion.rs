//! Telling the consensus core what the flush thread finished.
//!
//! The flush thread does not call openraft's callbacks itself: it hands them to a task, which calls them on
//! the runtime. That costs one task switch and saves a trap: openraft's forwarder of completed IO sleeps (a
//! whole millisecond, on tokio's timer) when a completion arrives while it forwards the one before, and from
//! another thread that can happen at any time.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::types::IOFlushed;

/// Somebody who waits until operations are durable.
pub(crate) enum Done {
    /// openraft, for appended entries.
    Flushed(IOFlushed),
    /// Anybody else.
    Signal(oneshot::Sender<io::Result<()>>),
}

impl Done {
    pub(crate) fn complete(self, result: io::Result<()>) {
        match self {
            Self::Flushed(callback) => callback.io_completed(result),
            // Nobody may be waiting any more.
            Self::Signal(signal) => drop(signal.send(result)),
        }
    }

    /// Whether a later one of the same kind says all that this one does: openraft keeps only the highest
    /// position that it is told.
    fn is_watermark(&self) -> bool {
        match self {
            Self::Flushed(IOFlushed::Notify(_)) => true,
            Self::Flushed(IOFlushed::Signal(_) | IOFlushed::Noop) | Self::Signal(_) => false,
        }
    }
}

/// A mailbox from the flush thread to the task that completes.
#[derive(Default)]
pub(crate) struct Completions {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    mailbox: Mutex<Mailbox>,
    filled: Notify,
}

#[derive(Default)]
struct Mailbox {
    finished: Vec<Done>,
    failed: Vec<Done>,
    failure: String,
}

impl Completions {
    /// Reports everything in `done` as durable, in order.
    pub(crate) fn succeed(&self, done: &mut Vec<Done>) {
        if done.is_empty() {
            return;
        }
        self.shared.mailbox.lock().finished.append(done);
        self.shared.filled.notify_one();
    }

    /// Reports everything in `done` as failed.
    pub(crate) fn fail(&self, mut done: Vec<Done>, failure: &str) {
        let mut mailbox = self.shared.mailbox.lock();
        mailbox.failed.append(&mut done);
        mailbox.failure = failure.to_owned();
        drop(mailbox);
        self.shared.filled.notify_one();
    }

    /// Starts the task on the current runtime.
    pub(crate) fn spawn(&self) -> tokio::task::JoinHandle<()> {
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let mut spare = Vec::new();
            loop {
                shared.filled.notified().await;
                shared.deliver(&mut spare);
            }
        })
    }
}

impl Shared {
    fn deliver(&self, spare: &mut Vec<Done>) {
        let (failed, failure) = {
            let mut mailbox = self.mailbox.lock();
            std::mem::swap(&mut mailbox.finished, spare);
            (std::mem::take(&mut mailbox.failed), mailbox.failure.clone())
        };
        let newest = spare.iter().rposition(Done::is_watermark);
        for (at, done) in spare.drain(..).enumerate() {
            if !done.is_watermark() || Some(at) == newest {
                done.complete(Ok(()));
            }
        }
        for done in failed {
            done.complete(Err(io::Error::other(failure.clone())));
        }
    }
}
