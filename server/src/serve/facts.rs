//! What `stats` says of the process: names, resource usage, uptime, and the log's figures under beanstalkd's `binlog-*` keys.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use beanpole_protocol::stats::ServerStats;
use beanpole_raft::{LogMemory, Node};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use crate::gateway::Facts;

/// Facts gathered once at the start, and a way to the node's figures.
#[derive(Clone)]
pub struct ProcessFacts(Arc<Gathered>);

struct Gathered {
    started: Instant,
    id: String,
    hostname: String,
    os: String,
    platform: String,
    max_job_size: u32,
    segment_size: u64,
    node: OnceLock<Node>,
}

impl ProcessFacts {
    /// Asks the system for names, and makes an id for this process.
    pub fn gather(max_job_size: u32, segment_size: u64) -> Self {
        let names = nix::sys::utsname::uname().ok();
        let text = |f: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
            names.as_ref().map_or_else(String::new, |names| f(names).to_string_lossy().into_owned())
        };
        ProcessFacts(Arc::new(Gathered {
            started: Instant::now(),
            id: process_id(rand::random()),
            hostname: text(|n| n.nodename()),
            os: text(|n| n.version()),
            platform: text(|n| n.machine()),
            max_job_size,
            segment_size,
            node: OnceLock::new(),
        }))
    }

    /// The log is open.
    pub fn set_node(&self, node: Node) {
        // It is set once per process; a second call would be the same node.
        let _ = self.0.node.set(node);
    }
}

/// 16 hexadecimal digits that YAML cannot take for a number, which a client would then reformat: with a letter in front
/// that no number has.
fn process_id(random: u64) -> String {
    const FIRST: [char; 5] = ['a', 'b', 'c', 'd', 'f'];
    let first = FIRST[(random >> 60) as usize % FIRST.len()];
    format!("{first}{:015x}", random & ((1 << 60) - 1))
}

impl Facts for ProcessFacts {
    fn fill<'a>(&'a self, stats: &mut ServerStats<'a>) {
        let facts = &*self.0;
        stats.max_job_size = u64::from(facts.max_job_size);
        stats.pid = std::process::id();
        stats.version = env!("CARGO_PKG_VERSION");
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
            stats.rusage_utime = Duration::from_micros(usage.user_time().num_microseconds() as u64);
            stats.rusage_stime = Duration::from_micros(usage.system_time().num_microseconds() as u64);
        }
        stats.uptime = facts.started.elapsed().as_secs();
        stats.id = &facts.id;
        stats.hostname = &facts.hostname;
        stats.os = &facts.os;
        stats.platform = &facts.platform;
        stats.binlog_max_size = facts.segment_size;
        if let Some(node) = facts.node.get() {
            let status = node.status();
            stats.binlog_oldest_index = status.purged + 1;
            stats.binlog_current_index = status.last_index;
            stats.binlog_records_written = status.last_index;
        }
    }

    fn memory_bytes(&self) -> u64 {
        anonymous_memory()
    }

    fn log_memory(&self) -> LogMemory {
        self.0.node.get().map(Node::log_memory).unwrap_or_default()
    }
}

/// Anonymous memory of this process in bytes; 0 where the system does not tell.
fn anonymous_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map_or(0, |kib: u64| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_never_a_number_to_yaml() {
        for random in [0, 1, u64::MAX, 0x1234_5678_9012_3456, 1 << 60] {
            let id = process_id(random);
            assert_eq!(id.len(), 16);
            assert!(id.starts_with(|c: char| "abcdf".contains(c)), "{id}");
        }
    }
}
