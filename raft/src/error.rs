//! What can go wrong, one enum per operation. Every message says what failed, where, and what to do.

use std::io;
use std::path::PathBuf;

/// Why [`crate::Node::start`] refused. Nothing on disk was damaged by the attempt.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process holds the directory's lock.
    #[error(
        "data directory {} is in use by another process{}; stop it, or choose another directory",
        dir.display(), holder_text(*holder)
    )]
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// The process id written in the lock file, when it is readable.
        holder: Option<u32>,
    },
    /// The directory cannot be created or written.
    #[error("data directory {} is not writable: {source}; check its owner and mode, or choose another directory", dir.display())]
    NotWritable {
        /// The data directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The directory belongs to another cluster than the one named in [`crate::Options::expect_cluster`].
    #[error(
        "data directory {} belongs to cluster {found}, not to {expected}; choose the right directory, or an empty one",
        dir.display()
    )]
    OtherCluster {
        /// The data directory.
        dir: PathBuf,
        /// The cluster id found in the identity file.
        found: String,
        /// The cluster id expected.
        expected: String,
    },
    /// The directory belongs to another node id than [`crate::Options::node_id`].
    #[error("data directory {} belongs to node {found}, not to node {expected}; choose the right directory", dir.display())]
    OtherNode {
        /// The data directory.
        dir: PathBuf,
        /// The node id found in the identity file.
        found: u64,
        /// The node id expected.
        expected: u64,
    },
    /// A file was written by a release with another format.
    #[error("{} has format version {found}, this release reads {supported}; run the release that wrote it", file.display())]
    Version {
        /// The file.
        file: PathBuf,
        /// The version found.
        found: u32,
        /// The version that is understood.
        supported: u32,
    },
    /// A file is damaged in a way that a crash does not explain: going on could lose acknowledged work.
    #[error(transparent)]
    Corrupt(#[from] Corruption),
    /// Reading or writing a file failed.
    #[error("{}: {source}; check the disk and start again", file.display())]
    Io {
        /// The file or directory.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An option is outside its bounds.
    #[error("option {option}: {reason}")]
    Option {
        /// The name of the field of [`crate::Options`].
        option: &'static str,
        /// What is wrong with it and what is allowed.
        reason: String,
    },
    /// The consensus library refused to start.
    #[error("consensus did not start: {0}")]
    Consensus(String),
}

fn holder_text(holder: Option<u32>) -> String {
    holder.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

/// Damage in a file of the data directory that is not a torn tail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} is corrupt at offset {offset}: {what}. Nothing was changed. Look at it with `beanpole segment verify {}`; {}",
    file.display(), dir.display(), remedy(*member)
)]
pub struct Corruption {
    /// The data directory.
    pub dir: PathBuf,
    /// The damaged file.
    pub file: PathBuf,
    /// Where the damage starts, in bytes.
    pub offset: u64,
    /// What is wrong there.
    pub what: String,
    /// The node's number, when it is one of several.
    pub member: Option<u64>,
}

/// What to do about a directory that a start refuses.
fn remedy(member: Option<u64>) -> String {
    match member {
        // Without what it has promised it must not vote again under its number.
        Some(id) => format!(
            "keep it, start a node with a new number on an empty directory, and let it take this one's place: `beanpole \
             cluster replace {id} NEW_ID HOST:PORT`, asked of one of the other nodes, which have everything and serve on"
        ),
        None => "no other node has its jobs: restore a backup (`beanpole backup restore`), or the whole directory from a copy"
            .to_owned(),
    }
}

impl StartError {
    /// The same, of a node that is one of several.
    pub(crate) fn of_member(mut self, id: u64) -> Self {
        if let Self::Corrupt(corruption) = &mut self {
            corruption.member = Some(id);
        }
        self
    }
}

/// The node cannot go on: what was not reported committed may or may not be durable. The process must stop
/// at once and must not retry; a restart finds out what is on disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// A write or an fsync failed.
    #[error("storage failed: {0}; the process must stop, a restart recovers what is durable")]
    Storage(String),
    /// The consensus core stopped by itself.
    #[error("consensus stopped: {0}; the process must stop, a restart recovers what is durable")]
    Consensus(String),
    /// [`crate::Node::shutdown`] was called.
    #[error("the node was shut down")]
    Shutdown,
}

/// Why a payload was certainly not proposed: it will never be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotProposed {
    /// The node has stopped or is stopping.
    #[error(transparent)]
    Stopped(#[from] Fatal),
    /// The payload is longer than [`crate::Payload::MAX_LEN`].
    #[error("a payload of {len} bytes is longer than the limit of {}", crate::Payload::MAX_LEN)]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
}

/// Why a read barrier failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// This node does not lead, or could not confirm that it does.
    #[error("not the leader{}", leader.map_or_else(String::new, |id| format!(", node {id} is")))]
    NotLeader {
        /// The leader as far as is known.
        leader: Option<u64>,
    },
    /// The node has stopped.
    #[error(transparent)]
    Stopped(#[from] Fatal),
}

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// No retained entry has that index, or the range is not within its payload.
    #[error("no body at entry {} offset {} length {}", .0.index, .0.offset, .0.len)]
    Unknown(crate::BodyAddr),
    /// The disk failed under it.
    #[error("body at entry {} is unreadable: {source}", addr.index)]
    Io {
        /// The body.
        addr: crate::BodyAddr,
        /// What the system said.
        source: io::Error,
    },
    /// It is damaged here, and every voter has answered that it has not got it whole either.
    #[error("the body at entry {} offset {} is damaged, and no voter has it", .0.index, .0.offset)]
    Lost(crate::BodyAddr),
    /// It is damaged here, and not everybody who may have it has answered. Try again.
    #[error("the body at entry {} offset {} is damaged here, and {missing}", addr.index, addr.offset)]
    Unavailable {
        /// The body.
        addr: crate::BodyAddr,
        /// Who did not answer.
        missing: String,
    },
}

/// Why a snapshot was not written. The log stays whole; the next trigger tries again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The node has stopped.
    #[error(transparent)]
    Stopped(#[from] Fatal),
    /// Nothing has been applied yet.
    #[error("there is nothing to take a snapshot of")]
    Empty,
    /// The disk is full.
    #[error("there is no space for a snapshot: {0}; free some, or the log cannot be shortened")]
    NoSpace(String),
    /// So much changed while it was taken that going on would have taken too much memory.
    #[error("too much changed at once while the snapshot was taken; the next one may succeed")]
    GivenUp,
}

/// Why there is no link to another node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// This node is a lone voter and has no peers.
    #[error("this node has no peers")]
    NoPeers,
    /// The cluster, as far as this node knows it, has no such member.
    #[error("node {node} is not a member of the cluster")]
    NotMember {
        /// The node asked for.
        node: u64,
    },
    /// One of the two refuses the other.
    #[error("no link to node {node}: {reason}")]
    Refused {
        /// The node asked for.
        node: u64,
        /// What is wrong, and the command to run.
        reason: String,
    },
    /// It cannot be reached, or did not answer in time. Try again.
    #[error("node {node} cannot be reached: {reason}")]
    Unreachable {
        /// The node asked for.
        node: u64,
        /// What the network says.
        reason: String,
    },
}

/// Why a message was not taken by a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkClosed {
    /// The link has closed; messages sent before may or may not have arrived.
    #[error("the link is closed")]
    Closed,
    /// The message is longer than [`crate::Payload::MAX_LEN`]; the link goes on.
    #[error("a message of {len} bytes is longer than the limit of {}", crate::Payload::MAX_LEN)]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
}

/// Why the lead was not handed over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This node does not lead, or does not know yet what was committed before.
    #[error("not the leader{}", leader.map_or_else(String::new, |id| format!(", node {id} is")))]
    NotLeader {
        /// The leader as far as is known.
        leader: Option<u64>,
    },
    /// That node does not vote.
    #[error("node {node} is not a voter of the cluster")]
    NotVoter {
        /// The node.
        node: u64,
    },
    /// Nobody that may lead answers and has caught up. This node leads on.
    #[error(
        "{} has not caught up{}; this node leads on",
        node.map_or_else(|| "any other voter".to_owned(), |id| format!("node {id}")),
        lag.map_or_else(String::new, |lag| format!(": it lacks {lag} entries, or does not answer"))
    )]
    NotCaughtUp {
        /// The voter that has the most, or that was asked for; none when none answers.
        node: Option<u64>,
        /// How many entries it lacks.
        lag: Option<u64>,
    },
    /// It was tried, and that node did not come to lead in time. This node does not lead any more, or not for
    /// long: an election follows.
    #[error("node {node} did not take the lead in time")]
    Failed {
        /// The node.
        node: u64,
        /// Who leads now, as far as is known.
        leader: Option<u64>,
    },
    /// The node has stopped.
    #[error("{0}")]
    Stopped(String),
}

/// Why the members of the cluster were not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// This node does not lead, or does not know yet what was committed before.
    #[error("not the leader{}", leader.map_or_else(String::new, |id| format!(", node {id} is")))]
    NotLeader {
        /// The leader as far as is known.
        leader: Option<u64>,
    },
    /// This node is a lone voter, which has no network to reach others by.
    #[error(
        "this node is alone and has no network to others: start it again with --node-id and --peer-listen HOST:PORT to make it \
         one of several"
    )]
    NoPeers,
    /// Another change is under way. Try again.
    #[error("another change of members is under way; try again")]
    Busy,
    /// The number belonged to a node that was removed: its votes must not be confused with a new node's.
    #[error("number {node} belonged to a node that was removed; take one that was never used")]
    WasRemoved {
        /// The number.
        node: u64,
    },
    /// The node is a member with another address, or no address was given.
    #[error(
        "node {node} is a member with another address (see `beanpole cluster members`), or the address is missing; \
         `beanpole cluster remove {node}` takes it out, and a number is not used twice"
    )]
    OtherAddress {
        /// The node.
        node: u64,
    },
    /// The cluster has no such member.
    #[error("node {node} is not a member of the cluster")]
    NotMember {
        /// The node.
        node: u64,
    },
    /// The learner does not answer or lacks too much: as a voter it would hold up the others.
    #[error("node {node} has not caught up: it lacks {lag} entries, or does not answer")]
    NotCaughtUp {
        /// The node.
        node: u64,
        /// How many entries it lacks.
        lag: u64,
    },
    /// Without the node there would be no majority: too few of the other voters answer.
    #[error(
        "without node {node} only {reached} of {voters} voters would answer; bring the others back first"
    )]
    WouldLoseQuorum {
        /// The node.
        node: u64,
        /// How many of the others answer, this node included.
        reached: usize,
        /// How many others there are.
        voters: usize,
    },
    /// The last voter cannot be removed.
    #[error("the last voter cannot be removed")]
    LastVoter,
    /// The change may or may not happen: the leader changed, or no majority answered in time. Look at the
    /// members.
    #[error("the change may or may not happen; look at the members")]
    Unknown,
    /// The node has stopped.
    #[error("{0}")]
    Stopped(String),
}
