//! After a majority of the nodes is lost for good: the data directory of one that is left becomes a new cluster of its own.
//!
//! What this node has is kept, also what it does not know to be committed: whoever was told that a job is safe was told so by a
//! majority, and this node may be the only one left of it. What it never received is lost. So that the lost nodes, should they
//! come back, are strangers to it, the cluster gets a new id.
//!
//! ```text
//! identity with a new cluster id ──> entry, in a new term: this node is the only voter ──> what was known of peers is forgotten
//! ```
//!
//! The order makes it safe to be cut short: with the new id and the old members the node can reach nobody, and the same
//! is done again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::EntryPayload;

use crate::disk::{Access, Disk};
use crate::error::StartError;
use crate::format::{LogState, Position};
use crate::identity::{self, id_text};
use crate::offline::Offline;
use crate::options::Options;
use crate::peers::{self, PeerBook};
use crate::recover;
use crate::scan;
use crate::snapshot;
use crate::state::StateMachine;
use crate::types::{Entry, Member, Membership};

/// What is known about a directory, and about what the others had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// The node's number.
    pub node: u64,
    /// The cluster's id: 32 hexadecimal digits.
    pub cluster: String,
    /// The index of the last entry here.
    pub last: u64,
    /// The term of the last entry here.
    pub last_term: u64,
    /// The last entry that is known here to be committed: acknowledged by a majority.
    pub committed: u64,
    /// For each other node that was met, the last entry that it is known here to have acknowledged; 0 for none.
    pub others: BTreeMap<u64, u64>,
}

impl Outlook {
    /// The last entry that is known to have been committed somewhere and is not here. None means that nothing is known to be
    /// missing; not that nothing is.
    #[must_use]
    pub fn known_missing(&self) -> Option<u64> {
        self.others.values().copied().max().filter(|other| *other > self.last)
    }
}

/// Why a directory cannot be rescued.
#[derive(Debug, thiserror::Error)]
pub enum RescueError {
    /// There is no node in it.
    #[error("{0}: this is not the data directory of a node")]
    NoNode(PathBuf),
    /// Nobody else belongs to its cluster.
    #[error("{0}: this node was never with others, or is rescued already; it starts as it is")]
    Alone(PathBuf),
    /// It cannot be opened.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The system said no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Looks at a directory; changes nothing.
///
/// # Errors
/// See [`RescueError`].
pub fn look(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Outlook, RescueError> {
    let identity = identity::read(&**disk, dir)?.ok_or_else(|| RescueError::NoNode(dir.to_path_buf()))?;
    let book = PeerBook::open(disk.clone(), dir)?;
    let others: BTreeMap<u64, u64> = book
        .all()
        .into_iter()
        .filter(|(node, known)| *node != identity.node && !known.removed)
        .map(|(node, known)| (node, known.acknowledged.map_or(0, |position| position.index)))
        .collect();
    if others.is_empty() {
        return Err(RescueError::Alone(dir.to_path_buf()));
    }
    let state = log_state(&**disk, dir)?;
    // A snapshot of another node that was installed just before the end may be ahead of the log.
    let mut snapshot = None;
    for path in snapshot::paths(&**disk, dir)? {
        snapshot =
            snapshot.max(snapshot::open(disk, dir, &path)?.meta.last_log_id.map(Position::from).map(key));
    }
    let (last_term, last) = state.last.map(key).max(snapshot).unwrap_or_default();
    let committed = state.committed.map(key).max(snapshot).map_or(0, |(_, index)| index.min(last));
    Ok(Outlook {
        node: identity.node,
        cluster: id_text(identity.cluster),
        last,
        last_term,
        committed,
        others,
    })
}

fn key(position: Position) -> (u64, u64) {
    (position.term, position.index)
}

/// The state of the log after its last record.
fn log_state(disk: &dyn Disk, dir: &Path) -> Result<LogState, RescueError> {
    for opened in recover::open_all(disk, dir, Access::Read)?.into_iter().rev() {
        let scan = scan::scan(&opened.file, &opened.header, &mut |_, _| {})?;
        if scan.records > 0 {
            return Ok(scan.summary.state);
        }
    }
    Ok(LogState::default())
}

/// What was made of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rescued {
    /// The node's number, now the only voter.
    pub node: u64,
    /// The new cluster's id.
    pub cluster: String,
    /// The index of the last entry that was kept.
    pub last: u64,
}

/// Makes the node in `options.data_dir` a cluster of its own; `options.node_id` must be its number. `state` is loaded on the
/// way: a directory that could not start is refused, and nothing is changed.
///
/// # Errors
/// See [`RescueError`].
pub async fn go_on_alone(options: &Options, state: Box<dyn StateMachine>) -> Result<Rescued, RescueError> {
    let (disk, dir) = (options.disk.clone(), options.data_dir.clone());
    look(&disk, &dir)?;
    let offline = Offline::open(Options { peering: None, ..options.clone() }, state).await?;
    let changed = change(&disk, &dir, &offline).await;
    offline.close().await;
    Ok(changed?)
}

async fn change(disk: &Arc<dyn Disk>, dir: &Path, offline: &Offline) -> io::Result<Rescued> {
    let identity = identity::Identity { cluster: identity::draw_id(), ..offline.identity };
    identity::write(&**disk, dir, &identity)?;
    let state = offline.log.state();
    let applied = offline.machine.applied().map(Position::from);
    let last = [state.last, state.purged, applied].into_iter().flatten().max_by_key(|at| at.index);
    let last = last.unwrap_or(Position { term: 0, index: 0 });
    let term = state.ballot.map_or(0, |ballot| ballot.term).max(last.term) + 1;
    let node = identity.node;
    // Where it is reached it says itself when it has peers again.
    let membership =
        Membership::new(vec![BTreeSet::from([node])], BTreeMap::from([(node, Member::default())]));
    let membership = membership.map_err(|error| io::Error::other(error.to_string()))?;
    let log_id = Position { term, index: last.index + 1 }.into();
    offline.append_alone(Entry { log_id, payload: EntryPayload::Membership(membership) }).await?;
    disk.unlink(&dir.join(peers::FILE))?;
    disk.sync_dir(dir)?;
    Ok(Rescued { node, cluster: id_text(identity.cluster), last: last.index })
}
