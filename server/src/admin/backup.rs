//! `GET /api/v1/backup`: a consistent copy of everything, as one stream, while the node works on.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use beanpole_raft::backup::{Backup, BackupError};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::View;

/// Pieces of at most 256 KiB that wait for the reader.
const PIECES_AHEAD: usize = 4;
/// A reader that takes nothing for so long is given up: the files that it needs take up disk.
const STALL_MAX: Duration = Duration::from_secs(60);

pub(super) async fn backup(State(view): State<Arc<View>>) -> Response {
    let refuse = |status, text: String| (status, text).into_response();
    let Some(node) = view.node.get() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "recovering the log; try again\n".to_owned());
    };
    let Ok(permit) = view.backups.clone().try_acquire_owned() else {
        return refuse(StatusCode::CONFLICT, "another backup of this node is under way\n".to_owned());
    };
    let taken_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    match node.backup(taken_at).await {
        Ok(backup) => {
            let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
            tokio::spawn(send(backup, sender, permit));
            let pieces = stream::unfold(receiver, async |mut receiver| {
                receiver.recv().await.map(|piece: io::Result<Bytes>| (piece, receiver))
            });
            Body::from_stream(pieces).into_response()
        }
        Err(error) => refuse(status(&error), format!("{error}\n")),
    }
}

fn status(error: &BackupError) -> StatusCode {
    match error {
        BackupError::Snapshot(_) | BackupError::Io(_) => StatusCode::SERVICE_UNAVAILABLE,
        BackupError::Damaged(_)
        | BackupError::Version(_)
        | BackupError::NotEmpty(_)
        | BackupError::Start(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

async fn send(mut backup: Backup, pieces: mpsc::Sender<io::Result<Bytes>>, _one: OwnedSemaphorePermit) {
    let index = backup.manifest().index;
    tracing::info!(index, bytes = backup.manifest().bytes, "a backup begins");
    loop {
        let piece = match backup.next().await {
            Ok(Some(piece)) => Ok(piece),
            Ok(None) => {
                tracing::info!(index, "a backup was read to its end");
                return;
            }
            Err(error) => {
                tracing::error!(index, %error, "a backup failed");
                Err(error)
            }
        };
        let failed = piece.is_err();
        match pieces.send_timeout(piece, STALL_MAX).await {
            Ok(()) if !failed => {}
            Ok(()) => return,
            Err(_) => {
                tracing::warn!(
                    index,
                    "a backup was given up: its reader went away, or took nothing for a minute"
                );
                return;
            }
        }
    }
}
