//! What the servers give their disks for what they log: write amplification, from the nodes' metrics.

use crate::admin;
use serde::Serialize;
use std::thread::JoinHandle;
use std::time::Duration;

/// The admin address that belongs to a server on this machine that was started with no configuration.
const ADMIN_OF: (&str, &str) = ("127.0.0.1:11300", "127.0.0.1:11380");
/// How long a node may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Bytes, within the measured window.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DiskWrites {
    /// Nodes that told.
    pub nodes: usize,
    /// Bytes that the servers' processes had written to storage (`write_bytes` of the kernel's account): log, files
    /// prepared for it, snapshots, compaction.
    pub written_bytes: u64,
    /// Bytes of records that they wrote to their logs.
    pub logged_bytes: u64,
    /// The first by the second.
    pub amplification: f64,
}

/// Counters of all nodes, at one time.
type Counters = Vec<Option<(u64, u64)>>;

/// Asks nodes before and after.
pub struct Question {
    addresses: Vec<String>,
    before: JoinHandle<Counters>,
}

/// Where to ask: what was given, or the address that belongs to the server's own.
pub fn addresses(given: &[String], servers: &[String]) -> Vec<String> {
    match servers {
        [server] if given.is_empty() && server == ADMIN_OF.0 => vec![ADMIN_OF.1.to_owned()],
        _ => given.to_vec(),
    }
}

impl Question {
    /// Asks for the first time, beside the load.
    pub fn ask(addresses: Vec<String>) -> Question {
        let before = std::thread::spawn({
            let addresses = addresses.clone();
            move || counters(&addresses)
        });
        Question { addresses, before }
    }

    /// Asks again. Nothing when no node tells both numbers, as is so with other servers.
    pub fn answer(self) -> Option<DiskWrites> {
        let after = counters(&self.addresses);
        between(&self.before.join().unwrap_or_default(), &after)
    }
}

fn counters(addresses: &[String]) -> Counters {
    let ask = |address: &String| match admin::get(address, "/metrics", ANSWER_LIMIT) {
        Ok((200, text)) => Some((
            counter(&text, "beanpole_disk_written_bytes_total")?,
            counter(&text, "beanpole_disk_logged_bytes_total")?,
        )),
        Ok(_) | Err(_) => None,
    };
    addresses.iter().map(ask).collect()
}

/// A counter without labels, of the text format of Prometheus.
fn counter(text: &str, name: &str) -> Option<u64> {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value)
}

fn between(before: &Counters, after: &Counters) -> Option<DiskWrites> {
    let both = before.iter().zip(after).filter_map(|(before, after)| Some(((*before)?, (*after)?)));
    // A node that was started anew in between began its counters anew.
    let grown: Vec<(u64, u64)> =
        both.filter_map(|(b, a)| Some((a.0.checked_sub(b.0)?, a.1.checked_sub(b.1)?))).collect();
    let (written_bytes, logged_bytes) =
        grown.iter().fold((0, 0), |sum, node| (sum.0 + node.0, sum.1 + node.1));
    (logged_bytes > 0).then(|| DiskWrites {
        nodes: grown.len(),
        written_bytes,
        logged_bytes,
        amplification: written_bytes as f64 / logged_bytes as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_whole_names() {
        let text = "# TYPE a counter\na_bytes_total 1\nbeanpole_a_bytes_total 12\nbeanpole_a_bytes_total{x=\"y\"} 13\n";
        assert_eq!(counter(text, "beanpole_a_bytes_total"), Some(12));
        assert_eq!(counter(text, "beanpole_a_bytes"), None);
    }

    #[test]
    fn nodes_that_do_not_tell_or_began_anew_are_left_out() {
        let before = vec![Some((100, 50)), None, Some((1000, 1000))];
        let after = vec![Some((220, 150)), Some((9, 9)), Some((10, 10))];
        let writes = between(&before, &after).unwrap();
        assert_eq!((writes.nodes, writes.written_bytes, writes.logged_bytes), (1, 120, 100));
        assert!((writes.amplification - 1.2).abs() < 1e-9);
        assert_eq!(between(&before, &vec![None, None, None]), None);
    }

    #[test]
    fn a_server_with_no_configuration_is_asked_at_its_own_address() {
        let servers = ["127.0.0.1:11300".to_owned()];
        assert_eq!(addresses(&[], &servers), ["127.0.0.1:11380"]);
        assert_eq!(addresses(&["h:1".to_owned()], &servers), ["h:1"]);
        assert!(addresses(&[], &["127.0.0.1:11301".to_owned()]).is_empty());
    }
}
