//! What every node tells of itself, for operators: any node can then show all of them. It goes to the leader with
//! each renewal of the lease and
//! comes back with all others'; nothing is decided by it.

use std::collections::BTreeMap;
use std::time::Duration;

use beanpole_raft::{Node, Space};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize};
use tokio::time::Instant;

use crate::admission::{Alarm, Stance};
use crate::gateway::Roles;
use crate::node::Shared;

/// A node that has told nothing for so long is not counted on.
const AWAY_AFTER: Duration = Duration::from_secs(5);

/// One node, as it sees itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Its number.
    pub id: u64,
    /// The index of its last log entry.
    pub last: u64,
    /// The highest index that it knows to be committed.
    pub committed: u64,
    /// The highest index that it has applied.
    pub applied: u64,
    /// The index of its newest snapshot.
    pub snapshot: u64,
    /// The highest index that it has purged.
    pub purged: u64,
    /// Clients' connections.
    pub connections: u64,
    /// Clients that have put.
    pub producers: u64,
    /// Clients that have reserved.
    pub workers: u64,
    /// Clients that wait for a job.
    pub waiting: u64,
    /// Bytes of its segment files.
    pub disk_bytes: u64,
    /// Bytes of bodies that jobs refer to.
    pub live_bytes: u64,
    /// Segments on its disk in which something does not check out, and that are not repaired yet.
    pub damaged_segments: u64,
    /// It refuses puts because its disk is full, or nearly so.
    pub no_space: bool,
    /// Anonymous memory of its process, in bytes.
    pub memory_bytes: u64,
    /// What its memory is limited to, in bytes; 0 if it does not know.
    pub memory_budget: u64,
    /// What is used of that and cannot be taken back, in bytes, by itself or others that the limit concerns.
    pub memory_used: u64,
    /// What puts should meet on account of that.
    pub stance: Stance,
    /// Its release.
    pub version: String,
    /// The highest level of entries that its release knows (see [`crate::queue::LEVEL`]).
    pub level: u32,
    /// Where its clients connect.
    pub listen: String,
    /// Where its admin HTTP listens; empty when it has none.
    pub admin: String,
    /// It is ready to serve commands.
    pub ready: bool,
    /// It is going down.
    pub stopping: bool,
    /// The node that is leaving service, as far as this one has applied; 0 if none.
    pub leaving: u64,
    /// What is wrong there and not over, as far as this release knows such things.
    #[serde(deserialize_with = "known_alarms")]
    pub alarms: Vec<Alarm>,
    /// When its process started, in milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// The newest mark: its number.
    pub mark_nonce: u64,
    /// The newest mark: its entry.
    pub mark_index: u64,
    /// The newest mark: the hash of all history up to its entry, in hexadecimal.
    pub mark_hash: String,
}

/// A node of a newer release may tell of what this one has no name for.
fn known_alarms<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Alarm>, D::Error> {
    let all = Vec::<serde_json::Value>::deserialize(from)?;
    Ok(all.into_iter().filter_map(|alarm| serde_json::from_value(alarm).ok()).collect())
}

/// The cluster as one node sees it: what `GET /api/v1/cluster` answers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cluster {
    /// The cluster's id.
    pub cluster_id: String,
    /// The node that answers.
    pub node_id: u64,
    /// The leader, as far as it knows.
    pub leader_id: Option<u64>,
    /// The term, as far as it knows.
    pub term: u64,
    /// Its release.
    pub version: String,
    /// It serves commands.
    pub ready: bool,
    /// `put` answers `DRAINING` in the whole cluster.
    pub draining: bool,
    /// Why the other nodes let this one take no part, if they do not.
    pub refused: Option<String>,
    /// All members.
    pub nodes: Vec<Member>,
}

/// One node: what the membership says of it, and what it last told of itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Member {
    /// What it does: `leader`, `follower`, `learner`, `candidate` or `stopped`.
    pub role: String,
    /// Where its peers reach it; empty for a node that is a cluster by itself.
    pub address: String,
    /// It votes.
    pub voter: bool,
    /// Committed entries that it has not applied, as far as is known.
    pub lag: u64,
    /// A snapshot that the leader sends it: bytes sent, and of how many.
    pub receives: Option<(u64, u64)>,
    /// How long ago it told what follows, in milliseconds; none if it never did.
    pub seen_ms: Option<u64>,
    /// The node that was asked has no connection to it now, or leads and is not answered by it: what it told is past.
    #[serde(default)]
    pub unreachable: bool,
    /// What it told.
    #[serde(flatten)]
    pub report: Report,
}

/// Where this process can be reached.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// By clients.
    pub listen: String,
    /// By operators; empty when there is no admin server.
    pub admin: String,
    /// When the process started, in milliseconds since the Unix epoch.
    pub started_ms: u64,
}

/// The newest report of each node, and when it came.
#[derive(Default)]
pub struct Reports {
    of_nodes: Mutex<BTreeMap<u64, (Report, Instant)>>,
}

impl Reports {
    /// Every node's newest report, with its age in milliseconds.
    pub fn all(&self) -> Vec<(Report, u64)> {
        let age = |at: &Instant| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.of_nodes.lock().values().map(|(report, at)| (report.clone(), age(at))).collect()
    }

    /// What other nodes' clients did when those nodes told last. A node that has not told for long is
    /// away, and its clients with it.
    pub fn roles_elsewhere(&self, node: u64) -> Roles {
        let of_nodes = self.of_nodes.lock();
        let here = |report: &Report, at: &Instant| report.id != node && at.elapsed() < AWAY_AFTER;
        let others = of_nodes.values().filter(|(report, at)| here(report, at));
        others.fold(Roles::default(), |sum, (report, _)| Roles {
            producers: sum.producers + report.producers,
            workers: sum.workers + report.workers,
            waiting: sum.waiting + report.waiting,
        })
    }

    /// What these nodes' memory allowed when they told last. A node that has not told for long does not count.
    pub fn stances(&self, nodes: &[u64]) -> impl Iterator<Item = Stance> {
        let of_nodes = self.of_nodes.lock();
        let here = |id: &u64| of_nodes.get(id).filter(|(_, at)| at.elapsed() < AWAY_AFTER);
        let stances: Vec<Stance> = nodes.iter().filter_map(here).map(|(report, _)| report.stance).collect();
        stances.into_iter()
    }

    /// The level that all these nodes know; none while one of them is not heard.
    pub fn level(&self, nodes: &[u64]) -> Option<u32> {
        let of_nodes = self.of_nodes.lock();
        let level = |id: &u64| {
            let (report, at) = of_nodes.get(id)?;
            (at.elapsed() < AWAY_AFTER).then_some(report.level)
        };
        nodes.iter().map(level).collect::<Option<Vec<u32>>>()?.into_iter().min()
    }

    /// A node's report has come.
    pub fn set(&self, report: Report) {
        self.of_nodes.lock().insert(report.id, (report, Instant::now()));
    }

    /// Takes in reports that came through the leader: what is newer here stays.
    pub(super) fn merge(&self, bytes: &[u8]) {
        let Ok(reports) = serde_json::from_slice::<Vec<(Report, u64)>>(bytes) else { return };
        let mut of_nodes = self.of_nodes.lock();
        for (report, age_ms) in reports {
            let Some(at) = Instant::now().checked_sub(Duration::from_millis(age_ms)) else {
                continue;
            };
            let newer = of_nodes.get(&report.id).is_none_or(|(_, known)| *known < at);
            if newer {
                of_nodes.insert(report.id, (report, at));
            }
        }
    }

    /// All reports as bytes.
    pub(super) fn encode(&self) -> Bytes {
        // Rounded up, so that a report never seems newer elsewhere than it is.
        let rounded: Vec<(Report, u64)> =
            self.all().into_iter().map(|(report, age_ms)| (report, age_ms + 1)).collect();
        serde_json::to_vec(&rounded).unwrap_or_default().into()
    }

    /// One report as bytes.
    pub(super) fn encode_one(report: &Report) -> Bytes {
        serde_json::to_vec(report).unwrap_or_default().into()
    }

    /// Takes in one node's report.
    pub(super) fn take(&self, node: u32, bytes: &[u8]) {
        if let Ok(report) = serde_json::from_slice::<Report>(bytes)
            && report.id == u64::from(node)
        {
            self.set(report);
        }
    }
}

/// What this node tells of itself now.
pub fn own(shared: &Shared, node: &Node) -> Report {
    let status = node.status();
    let disk = node.bodies().disk_usage();
    let memory = shared.admission.memory();
    let (connections, roles, ready, stopping, leaving, mark, memory_bytes) = {
        let gateway = shared.gateway.lock();
        let engine = gateway.engine();
        let leaving = engine.leaving().map_or(0, u64::from);
        let (ready, stopping) = (gateway.is_ready(), gateway.is_stopping());
        let (connections, memory_bytes) = (gateway.connections() as u64, gateway.memory_bytes());
        (connections, gateway.roles(), ready, stopping, leaving, engine.mark(), memory_bytes)
    };
    Report {
        id: status.node_id,
        last: status.last_index,
        committed: status.committed,
        applied: status.applied,
        snapshot: status.snapshot_index,
        purged: status.purged,
        connections,
        producers: roles.producers,
        workers: roles.workers,
        waiting: roles.waiting,
        disk_bytes: disk.log_bytes,
        live_bytes: disk.live_bytes,
        damaged_segments: disk.damaged_segments,
        memory_bytes,
        no_space: disk.space != Space::Open,
        memory_budget: memory.reading.budget,
        memory_used: memory.reading.used,
        stance: memory.stance,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        level: crate::queue::LEVEL,
        listen: shared.addresses().listen,
        admin: shared.addresses().admin,
        ready,
        stopping,
        leaving,
        alarms: shared.admission.alarms.active(),
        started_ms: shared.addresses().started_ms,
        mark_nonce: mark.nonce,
        mark_index: mark.index,
        mark_hash: format!("{:016x}", mark.hash),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::State;

    #[test]
    fn the_word_is_the_worst_of_the_voters_that_told() {
        let told = |id, state, gap_us| Report { id, stance: Stance { state, gap_us }, ..Report::default() };
        let reports = Reports::default();
        reports.set(told(1, State::Open, 16_000));
        reports.set(told(2, State::Shedding, 2_000));
        reports.set(told(4, State::Closed, 50_000));
        let worst = |voters: &[u64]| reports.stances(voters).fold(Stance::default(), Stance::worst);
        assert_eq!(worst(&[1, 2, 3]), Stance { state: State::Shedding, gap_us: 16_000 });
        assert_eq!(worst(&[3]), Stance::default(), "of a node that never told nothing is known");
        assert_eq!(worst(&[1, 4]).state, State::Closed);
    }

    #[test]
    fn a_level_is_known_by_all_when_each_of_them_said_so() {
        let reports = Reports::default();
        reports.set(Report { id: 1, level: 2, ..Report::default() });
        reports.set(Report { id: 2, level: 1, ..Report::default() });
        assert_eq!((reports.level(&[1, 2]), reports.level(&[1])), (Some(1), Some(2)));
        assert_eq!(reports.level(&[1, 2, 3]), None, "a node that was not heard may be of an older release");
        let older: Report = serde_json::from_str(r#"{"id":3,"version":"0.1.0"}"#).unwrap();
        reports.set(older);
        assert_eq!(reports.level(&[1, 2, 3]), Some(0));
    }

    #[test]
    fn alarms_without_a_name_here_are_left_out_and_the_report_stays() {
        let text = r#"{"id":3,"applied":5,"alarms":[{"name":"flying-pigs","about":"","severity":"warning","since_ms":1,"text":""},
            {"name":"loop","about":"a -> a","severity":"warning","since_ms":1,"text":"so it is"}]}"#;
        let report: Report = serde_json::from_str(text).unwrap();
        let names: Vec<&str> = report.alarms.iter().map(|alarm| alarm.name.as_str()).collect();
        assert_eq!((report.applied, names), (5, vec!["loop"]));
    }

    #[test]
    fn reports_travel_and_the_newest_stays() {
        let (leader, follower) = (Reports::default(), Reports::default());
        leader.take(2, &Reports::encode_one(&Report { id: 2, applied: 7, ..Report::default() }));
        leader.take(3, &Reports::encode_one(&Report { id: 2, applied: 9, ..Report::default() }));
        follower.merge(&leader.encode());
        follower.merge(b"nonsense");
        assert_eq!(follower.all()[0].0.applied, 7);
        follower.set(Report { id: 2, applied: 8, ..Report::default() });
        follower.merge(&leader.encode());
        assert_eq!(follower.all()[0].0.applied, 8);
    }
}
