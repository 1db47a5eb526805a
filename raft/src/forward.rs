//! Bringing a follower forward whose log is too far behind: a snapshot and the bodies it lacks, on a connection
//! of their own, so that neither appends nor heartbeats wait for it.
//!
//! ```text
//! leader                                             follower
//!   Snapshot 0: the leader's vote             ──>      finds out what it has
//!   <──              Snapshot 0: its index u64
//!   Snapshot 1, 2, ...: frames of the transfer ──>     writes them under temporary names
//!   Snapshot, empty: that was all             ──>      puts them into place
//!   <──    Alive, now and then, as long as it works
//!   <──                         Answer: its vote
//! ```
//!
//! The frames inside are those of `transfer`; here they are only carried.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::raft::SnapshotResponse;

use crate::cluster::Cluster;
use crate::format::u64_at;
use crate::frame::{BODY_MAX, Frame, FrameKind, OutFrame, write_frame};
use crate::hello::{self, Conn, MeetError, Purpose};
use crate::message;
use crate::snapshot::SnapshotFile;
use crate::transfer::{Export, Import};
use crate::types::{RaftSnapshot, TypeConfig, Vote};

/// How long the leader waits for a sign of life of a follower that works on what it received.
const PATIENCE: Duration = Duration::from_secs(60);
/// A follower that works says so this often.
const ALIVE_EVERY: Duration = Duration::from_secs(5);

fn garbled() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a message that makes no sense")
}

fn frame(id: u64, body: Bytes) -> OutFrame {
    OutFrame::new(FrameKind::Snapshot, id, vec![body])
}

/// Sends `snapshot` to `peer` at `address`; answers the vote that the follower has afterwards.
pub(crate) async fn send(
    cluster: &Arc<Cluster>,
    peer: u64,
    address: &str,
    vote: Vote,
    snapshot: &SnapshotFile,
) -> Result<SnapshotResponse<TypeConfig>, MeetError> {
    let shared = cluster.machine().ok_or_else(|| io::Error::other("the node is stopping"))?;
    let mut conn = hello::connect(cluster, peer, address, Purpose::Snapshot).await?;
    conn.reader.expect(BODY_MAX, PATIENCE);
    write_frame(&mut conn.writer, frame(0, message::encode_ballot(vote))).await?;
    let above = next(&mut conn, FrameKind::Snapshot).await?.body;
    let above = (above.len() == 8).then(|| u64_at(&above, 0)).ok_or_else(garbled)?;
    // Kept until the follower has installed it, so that it can go on from there by log.
    let mut export = Export::begin(&shared, snapshot, above).await?;
    let progress = export.progress();
    tracing::info!(
        node = cluster.node,
        peer,
        index = snapshot.index(),
        above,
        "a follower is brought forward by a snapshot"
    );
    let mut number = 0;
    while let Some(body) = export.next_frame().await? {
        number += 1;
        cluster.note_transfer(peer, Some((progress.done(), progress.total())));
        write_frame(&mut conn.writer, frame(number, body)).await?;
    }
    write_frame(&mut conn.writer, frame(0, Bytes::new())).await?;
    let answer = next(&mut conn, FrameKind::Answer).await?.body;
    let vote = message::decode_ballot(answer).ok_or_else(garbled)?;
    tracing::info!(node = cluster.node, peer, bytes = progress.total(), "the follower has the snapshot");
    Ok(SnapshotResponse::new(vote))
}

/// The next frame of a kind; signs of life are passed over.
async fn next(conn: &mut Conn, kind: FrameKind) -> Result<Frame, MeetError> {
    loop {
        let frame = conn.reader.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if frame.kind == kind {
            return Ok(frame);
        }
        if frame.kind != FrameKind::Alive {
            return Err(hello::late_refusal(frame));
        }
    }
}

/// Takes a snapshot from the leader.
pub(crate) async fn receive(cluster: &Arc<Cluster>, mut conn: Conn) -> Result<(), MeetError> {
    let stopping = || io::Error::other("the node is stopping");
    let shared = cluster.machine().ok_or_else(stopping)?;
    conn.reader.expect(BODY_MAX, PATIENCE);
    let vote = next(&mut conn, FrameKind::Snapshot).await?.body;
    let vote = message::decode_ballot(vote).ok_or_else(garbled)?;
    let mut import = Import::begin(&shared).await?;
    let above = Bytes::copy_from_slice(&import.above().to_le_bytes());
    write_frame(&mut conn.writer, frame(0, above)).await?;
    loop {
        let body = next(&mut conn, FrameKind::Snapshot).await?.body;
        if body.is_empty() {
            break;
        }
        import.frame(body).await?;
    }
    let peer = conn.peer.node;
    let installed = async {
        let file = import.finish().await?;
        tracing::info!(node = cluster.node, peer, index = file.index(), "received a snapshot");
        let raft = cluster.raft().ok_or_else(stopping)?;
        let snapshot = RaftSnapshot { meta: file.meta.clone(), snapshot: file };
        let response = raft.install_full_snapshot(vote, snapshot).await;
        response.map_err(|error| io::Error::other(error.to_string()))
    };
    let mut installed = std::pin::pin!(installed);
    let response = loop {
        tokio::select! {
            response = &mut installed => break response?,
            () = tokio::time::sleep(ALIVE_EVERY) => {
                write_frame(&mut conn.writer, OutFrame::new(FrameKind::Alive, 0, Vec::new())).await?;
            }
        }
    };
    let vote = message::encode_ballot(response.vote);
    write_frame(&mut conn.writer, OutFrame::new(FrameKind::Answer, 0, vec![vote])).await?;
    Ok(())
}
