//! The product's own messages between two nodes: an ordered stream, reliable until it breaks.
//!
//! ```text
//! LinkSender ── room ──> outbox ──> writer ═══ connection ═══> reader ── room ──> queue ──> LinkReceiver
//! ```
//!
//! Both rooms are bounded in bytes: a receiver that does not receive stops the reader, then the network, then
//! the sender. Messages that wait go out together in one write. A peer that dies, or of which nothing is heard
//! for twice the election timeout, closes the link; what was under way then may or may not have arrived.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::cluster::Cluster;
use crate::error::LinkClosed;
use crate::frame::{FrameKind, OutFrame, Outbox, Runs};
use crate::hello::{Conn, MeetError, late_refusal};
use crate::payload::Payload;

/// Messages of one link that wait to be written, in bytes; [`LinkSender::send`] waits beyond that. A longer
/// message waits until it is alone.
const SEND_BYTES_MAX: usize = 4 << 20;
/// Messages of one link that were read and wait to be received, in bytes; nothing is read beyond that.
const RECEIVE_BYTES_MAX: usize = 4 << 20;
/// What a message costs of either besides its bytes.
const MESSAGE_COST: usize = 64;

/// An ordered stream of messages to and from another node. It closes when both halves are dropped, after what
/// was sent has been written.
#[derive(Debug)]
pub struct Link {
    sender: LinkSender,
    receiver: LinkReceiver,
}

/// The sending half of a [`Link`]. Clones send on the same link.
#[derive(Clone, Debug)]
pub struct LinkSender {
    peer: u64,
    outbox: Arc<Outbox>,
    room: Arc<Semaphore>,
    _open: Arc<Open>,
}

/// The receiving half of a [`Link`].
#[derive(Debug)]
pub struct LinkReceiver {
    peer: u64,
    queue: mpsc::UnboundedReceiver<Received>,
    _open: Arc<Open>,
}

/// A message and its share of the room.
type Received = (Bytes, OwnedSemaphorePermit);

/// The link is closed when nobody holds this any more.
#[derive(Debug)]
struct Open {
    _closing: watch::Sender<()>,
}

impl Link {
    /// The node at the other end.
    #[must_use]
    pub fn peer(&self) -> u64 {
        self.sender.peer
    }

    /// See [`LinkSender::send`].
    ///
    /// # Errors
    /// See [`LinkClosed`].
    pub async fn send(&self, message: Payload) -> Result<(), LinkClosed> {
        self.sender.send(message).await
    }

    /// See [`LinkReceiver::recv`].
    pub async fn recv(&mut self) -> Option<Bytes> {
        self.receiver.recv().await
    }

    /// Both halves, for two tasks.
    #[must_use]
    pub fn split(self) -> (LinkSender, LinkReceiver) {
        (self.sender, self.receiver)
    }
}

impl LinkSender {
    /// The node at the other end.
    #[must_use]
    pub fn peer(&self) -> u64 {
        self.peer
    }

    /// Queues a message behind those sent before. Waits for room only: that it was accepted does not mean that
    /// it will arrive. Dropped while it waits, it has sent nothing.
    ///
    /// # Errors
    /// The link has closed, or the message is longer than [`Payload::MAX_LEN`].
    pub async fn send(&self, message: Payload) -> Result<(), LinkClosed> {
        if message.len() > Payload::MAX_LEN {
            return Err(LinkClosed::TooLong { len: message.len() });
        }
        let cost = cost(message.len(), SEND_BYTES_MAX);
        let room = self.room.clone().acquire_many_owned(cost).await.map_err(|_| LinkClosed::Closed)?;
        let parts = message.parts().to_vec();
        self.outbox.push(OutFrame::new(FrameKind::Message, 0, parts).holding(room));
        Ok(())
    }

    /// Resolves when the link has closed.
    pub async fn closed(&self) {
        // Nobody ever adds permits beyond the room, so this ends with the closing only.
        let beyond = u32::try_from(SEND_BYTES_MAX + 1).expect("a small number");
        self.room.acquire_many(beyond).await.err();
    }
}

impl LinkReceiver {
    /// The node at the other end.
    #[must_use]
    pub fn peer(&self) -> u64 {
        self.peer
    }

    /// The next message; `None` when the link has closed and everything that arrived was received. May be
    /// dropped while it waits without losing a message.
    pub async fn recv(&mut self) -> Option<Bytes> {
        let (message, _room) = self.queue.recv().await?;
        Some(message)
    }
}

fn cost(len: usize, max: usize) -> u32 {
    u32::try_from((len + MESSAGE_COST).min(max)).expect("the room is smaller than that")
}

/// Makes a link of a connection, served until the node stops.
pub(crate) fn open(cluster: &Arc<Cluster>, conn: Conn) -> Link {
    let outbox = Outbox::shared();
    let room = Arc::new(Semaphore::new(SEND_BYTES_MAX));
    let (received, queue) = mpsc::unbounded_channel();
    let (closing, closed) = watch::channel(());
    let held = Arc::new(Open { _closing: closing });
    let peer = conn.peer.node;
    let task =
        Task { cluster: cluster.clone(), outbox: outbox.clone(), room: room.clone(), received, closed };
    cluster.spawn(task.run(conn));
    Link {
        sender: LinkSender { peer, outbox, room, _open: held.clone() },
        receiver: LinkReceiver { peer, queue, _open: held },
    }
}

/// What serves one link.
struct Task {
    cluster: Arc<Cluster>,
    outbox: Arc<Outbox>,
    room: Arc<Semaphore>,
    received: mpsc::UnboundedSender<Received>,
    closed: watch::Receiver<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.room.close();
        self.outbox.clear();
    }
}

impl Task {
    async fn run(self, conn: Conn) {
        let peer = conn.peer.node;
        let Conn { mut reader, mut writer, .. } = conn;
        let mut closed = self.closed.clone();
        let mut runs = Runs::default();
        let alive_every = self.cluster.timing.alive_every;
        let outbox = self.outbox.clone();
        let error: MeetError = tokio::select! {
            error = self.read(&mut reader) => error,
            written = outbox.write_to(&mut runs, &mut writer, alive_every) => match written {
                Ok(()) => io::Error::from(io::ErrorKind::WriteZero).into(),
                Err(error) => error.into(),
            },
            () = self.cluster.takes_no_part() => io::Error::other("this node takes no part").into(),
            // Nobody ever sends on it: it ends when both halves are dropped.
            _ = closed.changed() => {
                let patience = self.cluster.timing.silence;
                let flushed = outbox.flush_to(&mut runs, &mut writer);
                tokio::time::timeout(patience, flushed).await.ok();
                return;
            }
        };
        if let MeetError::RefusedBy(refusal) = &error {
            self.cluster.refused_by(peer, refusal);
        }
        tracing::debug!(node = self.cluster.node, peer, %error, "a link broke");
    }

    /// Receives until the connection breaks.
    async fn read<R: tokio::io::AsyncRead + Unpin>(
        &self,
        reader: &mut crate::frame::FrameReader<R>,
    ) -> MeetError {
        let room = Arc::new(Semaphore::new(RECEIVE_BYTES_MAX));
        loop {
            let frame = match reader.next().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return io::ErrorKind::UnexpectedEof.into(),
                Err(error) => return error.into(),
            };
            match frame.kind {
                FrameKind::Alive => continue,
                FrameKind::Message => {}
                FrameKind::Hello
                | FrameKind::Welcome
                | FrameKind::Refused
                | FrameKind::Append
                | FrameKind::Heartbeat
                | FrameKind::Vote
                | FrameKind::PreVote
                | FrameKind::Handover
                | FrameKind::Answer
                | FrameKind::Snapshot
                | FrameKind::Ask => return late_refusal(frame),
            }
            let cost = cost(frame.body.len(), RECEIVE_BYTES_MAX);
            let share = room.clone().acquire_many_owned(cost).await.expect("never closed");
            // Who only sends has dropped the receiver.
            self.received.send((frame.body, share)).ok();
            // A pause for room was not the peer's silence.
            reader.listen_anew();
        }
    }
}
