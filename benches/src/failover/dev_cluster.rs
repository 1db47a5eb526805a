//! The file in which `beanpole dev cluster` says which nodes it runs: `cluster.json` in its directory, replaced as a whole at
//! every change, so that a reader always sees one moment.

use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

/// The file's name within the cluster's directory.
pub const FILE_NAME: &str = "cluster.json";

/// All nodes of a local cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevCluster {
    /// In the order of their ids.
    pub nodes: Vec<DevNode>,
}

/// One node of a local cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevNode {
    /// Its node id, from 1.
    pub id: u64,
    /// Where its clients connect, HOST:PORT.
    pub clients: String,
    /// Where its admin HTTP listens, HOST:PORT.
    pub admin: String,
    /// Where the other nodes connect, HOST:PORT.
    pub peers: String,
    /// With relays between the nodes: where the others are told to connect, instead of `peers`, HOST:PORT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
    /// Its process, while it runs.
    pub pid: Option<u32>,
}

impl DevNode {
    /// The node's name in log lines and reports: `n1`.
    pub fn name(&self) -> String {
        format!("n{}", self.id)
    }
}

impl DevCluster {
    /// Reads the file of `directory`.
    ///
    /// # Errors
    /// `NotFound` when there is none, `InvalidData` when it is something else.
    pub fn load(directory: &Path) -> io::Result<DevCluster> {
        let text = std::fs::read_to_string(directory.join(FILE_NAME))?;
        serde_json::from_str(&text).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    /// Replaces the file of `directory`. It describes processes, which no crash survives, so it is not synced.
    pub fn store(&self, directory: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        let beside = directory.join(format!("{FILE_NAME}.new"));
        std::fs::write(&beside, text + "\n")?;
        std::fs::rename(beside, directory.join(FILE_NAME))
    }
}
