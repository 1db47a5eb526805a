//! The other files of a data directory: snapshots, who the node is, whom it knows, and what a crash left.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Check, Finding};
use crate::disk::{Access, Disk};
use crate::error::StartError;
use crate::format::{Kind, Position};
use crate::identity::{self, id_text};
use crate::peers::{self, PeerBook};
use crate::recover;
use crate::scan;
use crate::snapshot;
use crate::state::StateMachine;
use crate::{BodyAddr, body_segment};

/// One file that is no segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Its path.
    pub file: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// What it is.
    pub kind: FileKind,
    /// What it says: names and values.
    pub says: Vec<(String, String)>,
}

/// What a file that is no segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// An image of the state.
    Snapshot,
    /// Who the node is.
    Identity,
    /// Whom the node knows.
    Peers,
    /// Locked while a node runs; names its process.
    Lock,
    /// Left by a crash in the midst of something; the next start removes it or writes it anew.
    Unfinished,
    /// Nothing that this program makes.
    Foreign,
}

fn kind_of(name: &str) -> Option<FileKind> {
    let is_segment = |suffix: &str| name.strip_suffix(suffix).is_some_and(|id| id.parse::<u64>().is_ok());
    if is_segment(recover::SUFFIX) || is_segment(body_segment::SUFFIX) {
        return None;
    }
    Some(match name {
        "identity" => FileKind::Identity,
        peers::FILE => FileKind::Peers,
        "lock" => FileKind::Lock,
        _ if is_segment(snapshot::SUFFIX) => FileKind::Snapshot,
        _ if name.ends_with(".tmp") => FileKind::Unfinished,
        _ => FileKind::Foreign,
    })
}

/// Lists the files in `dir` that are no segments, by name, with what they say. A file that cannot be understood says why.
///
/// # Errors
/// When the directory or a file cannot be read.
pub fn files(disk: &Arc<dyn Disk>, dir: &Path) -> io::Result<Vec<FileInfo>> {
    let mut names = disk.list(dir)?;
    names.sort_unstable();
    let mut all = Vec::new();
    for name in names {
        let Some(kind) = kind_of(&name) else { continue };
        let file = dir.join(&name);
        // A directory that somebody made here has no size.
        let bytes = disk.open(&file, Access::Read).and_then(|file| file.size()).unwrap_or(0);
        let says = says(disk, dir, &file, kind)
            .unwrap_or_else(|error| vec![("damaged".to_owned(), error.to_string())]);
        all.push(FileInfo { file, bytes, kind, says });
    }
    Ok(all)
}

fn says(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    file: &Path,
    kind: FileKind,
) -> Result<Vec<(String, String)>, StartError> {
    let pair = |name: &str, value: &dyn std::fmt::Display| (name.to_owned(), value.to_string());
    match kind {
        FileKind::Snapshot => {
            let meta = snapshot::open(disk, dir, file)?.meta;
            let at = meta.last_log_id.map_or(Position { term: 0, index: 0 }, Position::from);
            let voters: Vec<String> = meta.last_membership.voter_ids().map(|id| id.to_string()).collect();
            Ok(vec![pair("index", &at.index), pair("term", &at.term), pair("voters", &voters.join(","))])
        }
        FileKind::Identity => {
            let Some(identity) = identity::read(&**disk, dir)? else { return Ok(Vec::new()) };
            Ok(vec![
                pair("node", &identity.node),
                pair("cluster", &id_text(identity.cluster)),
                pair("instance", &id_text(identity.instance)),
                pair("boots", &identity.boots),
            ])
        }
        FileKind::Peers => {
            let known = PeerBook::open(disk.clone(), dir)?.all();
            let row = |(node, known): (u64, peers::Known)| {
                let acknowledged = known.acknowledged.map_or(0, |at| at.index);
                let removed = if known.removed { ", removed" } else { "" };
                (
                    format!("node {node}"),
                    format!("boots {}, acknowledged {acknowledged}{removed}", known.boots),
                )
            };
            Ok(known.into_iter().map(row).collect())
        }
        FileKind::Lock | FileKind::Unfinished | FileKind::Foreign => Ok(Vec::new()),
    }
}

/// Checks what [`super::verify`] does not: identity and peers, that the log and the newest snapshot meet, and that `state`
/// understands that snapshot and every body it references is in a segment.
///
/// # Errors
/// When the directory or a file cannot be read. Damage is not an error but a [`Finding`].
pub fn verify_files(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    state: &mut dyn StateMachine,
) -> io::Result<Vec<Check>> {
    let mut checks = Vec::new();
    let mut newest: Option<(u64, PathBuf)> = None;
    for info in files(disk, dir)? {
        let damage = info.says.iter().find(|(name, _)| name == "damaged").map(|(_, what)| what.clone());
        match info.kind {
            FileKind::Identity | FileKind::Peers => checks.push(check(&info.file, damage)),
            FileKind::Snapshot => {
                let index = info.says.first().and_then(|(_, index)| index.parse().ok()).unwrap_or(0);
                newest = newest.max(Some((index, info.file)));
            }
            FileKind::Lock | FileKind::Unfinished | FileKind::Foreign => {}
        }
    }
    if !checks.iter().any(|check| check.file.ends_with("identity")) {
        checks.push(check(&dir.join("identity"), Some("there is no identity file".to_owned())));
    }
    let (index, file) = newest.unwrap_or((0, dir.to_path_buf()));
    let what = match missing(disk, dir, index, &file, state) {
        Ok(what) => what,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Some(error.to_string()),
        Err(error) => return Err(error),
    };
    if index > 0 || what.is_some() {
        checks.push(check(&file, what));
    }
    Ok(checks)
}

fn check(file: &Path, damage: Option<String>) -> Check {
    let finding = damage.map_or(Finding::Whole, |what| Finding::Damaged { offset: 0, what });
    Check { file: file.to_path_buf(), records: 0, finding }
}

/// What the newest snapshot, of `index`, would need and is not there.
fn missing(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    index: u64,
    file: &Path,
    state: &mut dyn StateMachine,
) -> io::Result<Option<String>> {
    let mut lens: Vec<(u64, u32)> = Vec::new();
    let mut purged = 0;
    let mut found = super::find_bodies(&**disk, dir)?;
    found.extend(super::find(&**disk, dir)?);
    for segment in found {
        let Ok(header) = segment.header else { continue };
        let scan = scan::scan(&segment.file, &header, &mut |_, head| {
            if head.kind == Kind::Normal {
                lens.push((head.index, head.len));
            }
        })?;
        if !header.contents.is_bodies() {
            purged = purged.max(scan.summary.state.purged.map_or(0, |purged| purged.index));
        }
    }
    if purged > index {
        return Ok(Some(format!(
            "the log starts after entry {purged}, but the newest snapshot is of entry {index}"
        )));
    }
    if index == 0 {
        return Ok(None);
    }
    lens.sort_unstable();
    let invalid = |error: StartError| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    state.restore(index, &mut snapshot::open(disk, dir, file).map_err(invalid)?.image()?)?;
    let mut first = None;
    state.for_each_live(&mut |addr: BodyAddr| {
        let after = lens.partition_point(|(index, _)| *index <= addr.index);
        let held = after.checked_sub(1).map(|at| lens[at]).filter(|(index, _)| *index == addr.index);
        let end = u64::from(addr.offset) + u64::from(addr.len);
        if held.is_none_or(|(_, len)| end > u64::from(len)) {
            first.get_or_insert(addr);
        }
    });
    Ok(first.map(|addr| {
        format!(
            "it references the body at entry {} offset {}, which is in no segment",
            addr.index, addr.offset
        )
    }))
}
