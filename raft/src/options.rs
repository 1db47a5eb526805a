//! What a node is started with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::damage::BodyCheck;
use crate::disk::{Disk, RealDisk};
use crate::net::Net;
use crate::opening::Opening;

/// How a node reaches its peers and is reached by them.
#[derive(Clone)]
pub struct Peering {
    /// How byte streams to peers are made and accepted.
    pub net: Arc<dyn Net>,
    /// Where peers reach this node, host:port.
    pub address: String,
    /// The members that a new cluster begins with, this node included: id -> address. All of them must be told
    /// the same ids. Plays no part once the node belongs to a cluster: then its log says who the members are. A
    /// node that is to be let into an existing cluster names some of its members here, and need not be in it.
    pub peers: BTreeMap<u64, String>,
}

/// Settings of one node. Make one with [`Options::new`] and change what differs.
#[derive(Clone)]
pub struct Options {
    /// The directory that holds everything durable. Created when absent; locked while in use.
    pub data_dir: PathBuf,
    /// This node's number within the cluster.
    pub node_id: u64,
    /// Where files live; [`RealDisk`] unless a test says otherwise.
    pub disk: Arc<dyn Disk>,
    /// The size of a segment file, in bytes. An entry larger than that gets a segment of its own size.
    pub segment_bytes: u64,
    /// A snapshot is taken when this many bytes of log were written since the last one.
    pub snapshot_log_bytes: u64,
    /// After a snapshot the log is purged up to it, except for this many bytes of its newest entries.
    pub log_retention_bytes: u64,
    /// Recent entries kept in memory for apply and for hot bodies, in bytes. When it is full of entries that
    /// are not yet written, appends wait.
    pub ring_bytes: usize,
    /// Payload bytes that may be proposed and not yet applied; [`crate::Node::propose`] waits beyond that.
    pub max_inflight_bytes: usize,
    /// Tells whether bytes are a body as it was put, by what they contain: for bodies with a checksum of their own. Without
    /// it the CRC of the whole entry has to do, which damage to a neighbour spoils as well.
    pub body_check: Option<BodyCheck>,
    /// Everything that is kept is read once a week, at this rate in bytes per second, to find damage; 0: only when
    /// [`crate::Node::scrub`] asks for it.
    pub scrub_bytes_per_s: u64,
    /// Refuse to start when the directory belongs to another cluster than this one.
    pub expect_cluster: Option<String>,
    /// Start no thread and use no blocking pool: all IO happens on the runtime, in a fixed order. For
    /// simulations on a disk in memory; on a real disk it would hold up everything else.
    pub inline: bool,
    /// Election timeout is drawn between this and twice this. Plays no part while there is one voter. How soon
    /// a silent peer counts as gone follows from it as well (twice this).
    pub election_timeout_min: Duration,
    /// Tells how far the start is, from another thread; later it has nothing to tell.
    pub opening: Opening,
    /// The peers; `None` makes a lone voter, which needs no network, no timer and nobody else's vote.
    pub peering: Option<Peering>,
}

impl Options {
    /// The defaults of a node 1 in `data_dir`.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            node_id: 1,
            disk: Arc::new(RealDisk),
            segment_bytes: 64 << 20,
            snapshot_log_bytes: 128 << 20,
            log_retention_bytes: 256 << 20,
            ring_bytes: 8 << 20,
            max_inflight_bytes: 16 << 20,
            body_check: None,
            scrub_bytes_per_s: 8 << 20,
            expect_cluster: None,
            inline: false,
            election_timeout_min: Duration::from_millis(300),
            opening: Opening::default(),
            peering: None,
        }
    }
}
