//! The line to one peer: a connection for consensus messages, kept up as long as the peer is a member.
//!
//! ```text
//! request ──> outbox ──> writer ──> peer        urgent: votes, heartbeats, handovers; bulk: appends
//!    ^                                │
//!    └── answer of the same id <── reader      the line is down: every request under way fails at once
//! ```
//!
//! What is queued is bounded by who queues: an append stream has a budget of bytes, and everything else is small
//! and asked one at a time.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::cluster::Cluster;
use crate::frame::{FrameKind, OutFrame, Outbox, Runs};
use crate::hello::{self, Conn, MeetError, Purpose, late_refusal};

/// The line to one peer.
pub(crate) struct Line {
    pub(crate) peer: u64,
    pub(crate) address: String,
    outbox: Outbox,
    state: Mutex<State>,
    up: watch::Sender<bool>,
    retired: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    up: bool,
    next_id: u64,
    /// Who waits for an answer.
    waiting: BTreeMap<u64, oneshot::Sender<Bytes>>,
    /// Why the line is down.
    trouble: String,
}

/// The line is down, or went down before the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Down {
    pub(crate) why: String,
}

/// Why a call was not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CallError {
    Down(Down),
    /// In time.
    Late,
}

/// An answer to come. Dropping it forgets the request.
pub(crate) struct Pending {
    line: Arc<Line>,
    id: u64,
    answer: oneshot::Receiver<Bytes>,
}

impl Future for Pending {
    type Output = Result<Bytes, Down>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(cx).map(|answer| answer.map_err(|_| self.line.trouble()))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.line.state.lock().waiting.remove(&self.id);
    }
}

impl Line {
    pub(crate) fn new(peer: u64, address: String) -> Arc<Self> {
        Arc::new(Self {
            peer,
            address,
            outbox: Outbox::default(),
            state: Mutex::default(),
            up: watch::Sender::new(false),
            retired: watch::Sender::new(false),
        })
    }

    /// Ends the line for good.
    pub(crate) fn retire(&self) {
        self.retired.send_replace(true);
    }

    /// Whether there is a connection now.
    pub(crate) fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// A number that no other request or stream of this line has.
    pub(crate) fn new_id(&self) -> u64 {
        let mut state = self.state.lock();
        state.next_id += 1;
        state.next_id
    }

    fn trouble(&self) -> Down {
        Down { why: self.state.lock().trouble.clone() }
    }

    /// Waits until the line is up, but not longer than `limit`.
    pub(crate) async fn wait_up(&self, limit: Duration) -> Result<(), Down> {
        let mut up = self.up.subscribe();
        match tokio::time::timeout(limit, up.wait_for(|up| *up)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(self.trouble()),
        }
    }

    /// Sends a request. Requests of one kind arrive in the order of the calls.
    pub(crate) fn request(self: &Arc<Self>, kind: FrameKind, parts: Vec<Bytes>) -> Result<Pending, Down> {
        let (sender, answer) = oneshot::channel();
        let id = self.new_id();
        let frame = OutFrame::new(kind, id, parts);
        let mut state = self.state.lock();
        if !state.up {
            return Err(Down { why: state.trouble.clone() });
        }
        state.waiting.insert(id, sender);
        // Under the lock: a line that went down has dropped what was queued, and takes nothing new.
        if kind == FrameKind::Append {
            self.outbox.push(frame);
        } else {
            self.outbox.push_urgent(frame);
        }
        drop(state);
        Ok(Pending { line: self.clone(), id, answer })
    }

    /// Sends a small request and waits for its answer, no longer than `limit` in all.
    pub(crate) async fn call(
        self: &Arc<Self>,
        kind: FrameKind,
        body: Bytes,
        limit: Duration,
    ) -> Result<Bytes, CallError> {
        let called = async {
            self.wait_up(limit).await?;
            self.request(kind, vec![body])?.await
        };
        match tokio::time::timeout(limit, called).await {
            Ok(answered) => answered.map_err(CallError::Down),
            Err(_) => Err(CallError::Late),
        }
    }

    /// Connects, serves the connection until it breaks, and connects again.
    pub(crate) async fn run(self: Arc<Self>, cluster: Arc<Cluster>) {
        let mut retired = self.retired.subscribe();
        tokio::select! {
            () = self.keep_up(&cluster) => {}
            _ = retired.wait_for(|retired| *retired) => {}
            () = cluster.takes_no_part() => {}
        }
        self.down("the line is closed");
    }

    async fn keep_up(&self, cluster: &Cluster) {
        let timing = &cluster.timing;
        let mut pause = timing.retry_min;
        loop {
            match hello::connect(cluster, self.peer, &self.address, Purpose::Raft).await {
                Ok(conn) => {
                    pause = timing.retry_min;
                    self.note_up(cluster);
                    let error = self.serve(cluster, conn).await;
                    self.note_down(cluster, &error);
                }
                Err(error) => {
                    self.note_failure(cluster, &error);
                    pause = (pause * 2).min(timing.retry_max);
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn note_up(&self, cluster: &Cluster) {
        tracing::info!(node = cluster.node, peer = self.peer, address = self.address, "connected");
        self.state.lock().up = true;
        self.up.send_replace(true);
    }

    fn note_down(&self, cluster: &Cluster, error: &MeetError) {
        tracing::info!(node = cluster.node, peer = self.peer, %error, "disconnected");
        if let MeetError::RefusedBy(refusal) = error {
            cluster.refused_by(self.peer, refusal);
        }
        self.down(&error.to_string());
        cluster.lost(self.peer);
    }

    fn note_failure(&self, cluster: &Cluster, error: &MeetError) {
        match error {
            MeetError::RefusedBy(refusal) => cluster.refused_by(self.peer, refusal),
            MeetError::Refuses { refusal, .. } => cluster.refuses(self.peer, refusal),
            MeetError::Io(error) => {
                let (peer, address) = (self.peer, &self.address);
                tracing::debug!(node = cluster.node, peer, address, %error, "not connected");
            }
        }
        self.state.lock().trouble = error.to_string();
    }

    /// Fails every request under way.
    fn down(&self, why: &str) {
        self.up.send_replace(false);
        let mut state = self.state.lock();
        state.up = false;
        state.trouble = why.to_owned();
        self.outbox.clear();
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        drop(waiting);
    }

    async fn serve(&self, cluster: &Cluster, mut conn: Conn) -> MeetError {
        let mut runs = Runs::default();
        let read = async {
            loop {
                match conn.reader.next().await {
                    Ok(Some(frame)) if frame.kind == FrameKind::Answer => {
                        let waiting = self.state.lock().waiting.remove(&frame.id);
                        // Who asked may have given up.
                        waiting.map(|waiting| waiting.send(frame.body));
                    }
                    Ok(Some(frame)) if frame.kind == FrameKind::Alive => {}
                    Ok(Some(frame)) => return late_refusal(frame),
                    Ok(None) => return std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into(),
                    Err(error) => return error.into(),
                }
            }
        };
        tokio::select! {
            error = read => error,
            written = self.outbox.write_to(&mut runs, &mut conn.writer, cluster.timing.alive_every) => match written {
                Ok(()) => std::io::Error::from(std::io::ErrorKind::WriteZero).into(),
                Err(error) => error.into(),
            },
        }
    }
}
