//! The accepting side: connections that peers make to this node, and what is asked on them.
//!
//! ```text
//! accept ──> hello ──> raft:  reader ──> appends, in order ──> openraft ──> answers, in order ──┐
//!                        │       └─────> votes, heartbeats: each on its own ──> answer ─────────┤
//!                        │                                                        outbox ──> writer
//!                        ├─> link, snapshot, question for bodies: handed on
//!                        └─> probe: done
//! ```

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::unfold;
use openraft::raft::AppendEntriesRequest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::cluster::{Cluster, RaftHandle};
use crate::forward;
use crate::frame::{Frame, FrameKind, OutFrame, Outbox, Runs};
use crate::hello::{self, Conn, MeetError, Purpose, late_refusal};
use crate::link;
use crate::message;
use crate::repair;
use crate::types::TypeConfig;

/// Connections that may be in their hellos at the same time; more wait to be accepted.
const MEETING_MAX: usize = 64;
/// Bytes of appends of one connection that may wait for consensus and for the disk; nothing more is read
/// meanwhile. A longer request waits until it is alone.
const APPEND_BYTES_MAX: usize = 16 << 20;
/// Votes, heartbeats and the like of one connection that may be answered at the same time.
const SMALL_MAX: usize = 64;
/// Appends that may wait to be handed to openraft.
const APPENDS_WAITING: usize = 64;

/// Accepts connections until the node stops.
pub(crate) async fn run(cluster: Arc<Cluster>) {
    let meeting = Arc::new(Semaphore::new(MEETING_MAX));
    loop {
        let permit = meeting.clone().acquire_owned().await.expect("never closed");
        match cluster.net.accept().await {
            Ok(wire) => {
                let shared = cluster.clone();
                cluster.spawn(async move {
                    let met = hello::accept(&shared, wire).await;
                    drop(permit);
                    serve(&shared, met).await;
                });
            }
            Err(error) => {
                tracing::warn!(node = cluster.node, %error, "a connection of a peer was not accepted");
                tokio::time::sleep(cluster.timing.retry_max).await;
            }
        }
    }
}

async fn serve(cluster: &Arc<Cluster>, met: Result<(Purpose, Conn), MeetError>) {
    let (purpose, conn) = match met {
        Ok(met) => met,
        Err(MeetError::Refuses { peer, refusal }) => {
            cluster.refuses(peer, &refusal);
            return;
        }
        Err(error @ (MeetError::RefusedBy(_) | MeetError::Io(_))) => {
            tracing::debug!(node = cluster.node, %error, "a connection ended before it began");
            return;
        }
    };
    match purpose {
        Purpose::Probe => {}
        Purpose::Raft => {
            let peer = conn.peer.node;
            let error = tokio::select! {
                error = serve_raft(cluster, conn) => error,
                () = cluster.takes_no_part() => return,
            };
            if let MeetError::RefusedBy(refusal) = &error {
                cluster.refused_by(peer, refusal);
            }
            tracing::debug!(node = cluster.node, peer, %error, "a peer's connection ended");
            cluster.lost(peer);
        }
        Purpose::Snapshot => {
            let peer = conn.peer.node;
            if let Err(error) = forward::receive(cluster, conn).await {
                tracing::warn!(node = cluster.node, peer, %error, "a snapshot was not received");
            }
        }
        Purpose::Link => cluster.offer(link::open(cluster, conn)).await,
        Purpose::Ask => {
            let peer = conn.peer.node;
            if let Err(error) = repair::serve(cluster, conn).await {
                tracing::debug!(node = cluster.node, peer, %error, "a question for bodies was not answered");
            }
        }
    }
}

/// One connection with consensus messages.
struct Session {
    cluster: Arc<Cluster>,
    raft: RaftHandle,
    outbox: Arc<Outbox>,
    /// Bytes of appends that may still be taken in.
    room: Arc<Semaphore>,
    small: Arc<Semaphore>,
    /// The stream of appends under way.
    appends: Option<(u64, mpsc::Sender<Append>)>,
}

/// An append under way.
struct Append {
    id: u64,
    request: AppendEntriesRequest<TypeConfig>,
    /// Its share of the room, given back with the answer.
    room: OwnedSemaphorePermit,
}

async fn serve_raft(cluster: &Arc<Cluster>, conn: Conn) -> MeetError {
    let Some(raft) = cluster.raft() else { return io::Error::other("the node is stopping").into() };
    let Conn { mut reader, mut writer, .. } = conn;
    let outbox = Outbox::shared();
    let mut session = Session {
        cluster: cluster.clone(),
        raft,
        outbox: outbox.clone(),
        room: Arc::new(Semaphore::new(APPEND_BYTES_MAX)),
        small: Arc::new(Semaphore::new(SMALL_MAX)),
        appends: None,
    };
    let mut runs = Runs::default();
    let read = async {
        loop {
            match reader.next().await {
                Ok(Some(frame)) => {
                    if let Err(error) = session.take(frame).await {
                        return error;
                    }
                    // A pause for room was not the peer's silence.
                    reader.listen_anew();
                }
                Ok(None) => return io::Error::from(io::ErrorKind::UnexpectedEof).into(),
                Err(error) => return error.into(),
            }
        }
    };
    tokio::select! {
        error = read => error,
        written = outbox.write_to(&mut runs, &mut writer, cluster.timing.alive_every) => match written {
            Ok(()) => io::Error::from(io::ErrorKind::WriteZero).into(),
            Err(error) => error.into(),
        },
    }
}

fn garbled() -> MeetError {
    io::Error::new(io::ErrorKind::InvalidData, "a message that makes no sense").into()
}

impl Session {
    async fn take(&mut self, frame: Frame) -> Result<(), MeetError> {
        match frame.kind {
            FrameKind::Alive => Ok(()),
            FrameKind::Append => self.append(frame).await,
            FrameKind::Heartbeat | FrameKind::Vote | FrameKind::PreVote | FrameKind::Handover => {
                self.small(frame).await
            }
            FrameKind::Hello
            | FrameKind::Welcome
            | FrameKind::Refused
            | FrameKind::Answer
            | FrameKind::Message
            | FrameKind::Snapshot
            | FrameKind::Ask => Err(late_refusal(frame)),
        }
    }

    /// Puts an append behind those before it. Waits for room.
    async fn append(&mut self, frame: Frame) -> Result<(), MeetError> {
        let cost = frame.body.len().min(APPEND_BYTES_MAX);
        let cost = u32::try_from(cost).expect("the room is smaller than that");
        let room = self.room.clone().acquire_many_owned(cost).await.expect("never closed");
        let (stream, request) = message::decode_append(frame.body).ok_or_else(garbled)?;
        let sender = match &self.appends {
            Some((current, sender)) if *current == stream => sender.clone(),
            Some(_) | None => {
                // What is left of the stream before is void: its sender has seen it end.
                let sender = self.start_stream();
                self.appends = Some((stream, sender.clone()));
                sender
            }
        };
        // A stream that ended on a conflict takes no more; who sent this will see the conflict.
        sender.send(Append { id: frame.id, request, room }).await.ok();
        Ok(())
    }

    fn start_stream(&self) -> mpsc::Sender<Append> {
        let (sender, requests) = mpsc::channel(APPENDS_WAITING);
        let (raft, outbox) = (self.raft.clone(), self.outbox.clone());
        self.cluster.spawn(answer_appends(raft, requests, outbox));
        sender
    }

    /// Answers a small request on its own.
    async fn small(&mut self, frame: Frame) -> Result<(), MeetError> {
        let permit = self.small.clone().acquire_owned().await.expect("never closed");
        let (raft, outbox) = (self.raft.clone(), self.outbox.clone());
        let Frame { kind, id, body } = frame;
        self.cluster.spawn(async move {
            // When consensus has stopped, the connection goes with the node.
            if let Some(answer) = answer_small(&raft, kind, body).await {
                outbox.push_urgent(OutFrame::new(FrameKind::Answer, id, vec![answer]));
            }
            drop(permit);
        });
        Ok(())
    }
}

/// Feeds appends to openraft and sends its answers, in order, until one of them is no success.
async fn answer_appends(raft: RaftHandle, requests: mpsc::Receiver<Append>, outbox: Arc<Outbox>) {
    let (ids, mut answered) = mpsc::unbounded_channel();
    let input = unfold((requests, ids), |(mut requests, ids)| async {
        let Append { id, request, room } = requests.recv().await?;
        // Bounded by the room. When nobody takes the answers any more, the stream is over.
        ids.send((id, room)).ok()?;
        Some((request, (requests, ids)))
    });
    let mut results = std::pin::pin!(raft.stream_append(input));
    while let Some(Ok(result)) = results.next().await {
        let Some((id, room)) = answered.recv().await else { return };
        outbox.push(OutFrame::new(FrameKind::Answer, id, vec![message::encode_appended(&result)]));
        drop(room);
    }
}

async fn answer_small(raft: &RaftHandle, kind: FrameKind, body: Bytes) -> Option<Bytes> {
    match kind {
        FrameKind::Vote => {
            let response = raft.vote(message::decode_vote(body)?).await.ok()?;
            Some(message::encode_voted(&response))
        }
        FrameKind::PreVote => {
            let response = raft.pre_vote(message::decode_vote(body)?).await.ok()?;
            Some(message::encode_voted(&response))
        }
        FrameKind::Handover => {
            let response = raft.handle_transfer_leader(message::decode_handover(body)?).await.ok()?;
            Some(message::encode_taken(&response))
        }
        FrameKind::Heartbeat => {
            let (_, request) = message::decode_append(body)?;
            let (prev, last) = (request.prev_log_id, request.entries.last().map(|entry| entry.log_id));
            let response = raft.append_entries(request).await.ok()?;
            Some(message::encode_appended(&response.into_stream_result(prev, last.or(prev))))
        }
        FrameKind::Hello
        | FrameKind::Welcome
        | FrameKind::Refused
        | FrameKind::Alive
        | FrameKind::Append
        | FrameKind::Answer
        | FrameKind::Message
        | FrameKind::Snapshot
        | FrameKind::Ask => None,
    }
}
