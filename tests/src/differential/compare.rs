//! When two replies are the same reply.

use super::pair::Side;
use crate::connection::Reply;

/// Keys of `stats` that describe the process or the machine.
const OWN: &[&str] = &["pid", "version", "uptime", "id", "hostname", "os", "platform"];

/// Seconds by which the clocks of the two servers may have moved between two answers.
const CLOCK_SLACK_S: u64 = 1;

/// A difference between two replies, or between their values of a key.
pub type Difference = String;

/// The counters of `stats` at the beginning of a sequence, to compare what was added since.
#[derive(Debug, Default, Clone)]
pub struct Baseline(Vec<(String, u64)>);

impl Baseline {
    /// Reads the counters of a side.
    pub fn read(side: &mut Side) -> std::io::Result<Baseline> {
        let reply = side.observe("stats")?;
        let counters = reply.pairs().into_iter().filter(|(key, _)| is_counter(key));
        let counters = counters.map(|(key, value)| {
            let before = value.parse::<u64>().unwrap_or(0).wrapping_sub(side.counted_aside(&key));
            (key, before)
        });
        Ok(Baseline(counters.collect()))
    }

    fn of(&self, key: &str) -> u64 {
        self.0.iter().find(|(name, _)| name == key).map_or(0, |(_, value)| *value)
    }
}

/// Counters only grow, over the whole life of a server.
fn is_counter(key: &str) -> bool {
    key.starts_with("cmd-") || ["total-jobs", "total-connections", "job-timeouts"].contains(&key)
}

/// Compares two replies word by word; `same_job` says whether two ids mean the same job.
pub fn replies(left: &Reply, right: &Reply, same_job: impl Fn(u64, u64) -> bool) -> Result<(), Difference> {
    let differ = || Err(format!("{:?} but {:?}", shown(left), shown(right)));
    if left.word() != right.word() {
        return differ();
    }
    match left.word() {
        "INSERTED" => Ok(()),
        "RESERVED" | "FOUND" => {
            let same_len = left.line.split(' ').nth(2) == right.line.split(' ').nth(2);
            let same = same_len && left.body == right.body && same_job(left.number(), right.number());
            if same { Ok(()) } else { differ() }
        }
        // A body follows that is compared by its meaning.
        "OK" => Ok(()),
        _ if left.line == right.line => Ok(()),
        _ => differ(),
    }
}

/// Compares two lists; their order is not part of the protocol.
pub fn lists(left: &Reply, right: &Reply) -> Result<(), Difference> {
    let (mut a, mut b) = (left.list(), right.list());
    a.sort();
    b.sort();
    if a == b { Ok(()) } else { Err(format!("{a:?} but {b:?}")) }
}

/// Compares two bodies of `stats-job` or `stats-tube`: all keys in the same order, equal values, times to
/// the second.
pub fn stats(left: &Reply, right: &Reply, same_job: impl Fn(u64, u64) -> bool) -> Result<(), Difference> {
    let (a, b) = (left.pairs(), right.pairs());
    if a.len() != b.len() {
        return Err(format!("{} keys but {}: {} but {}", a.len(), b.len(), left.text(), right.text()));
    }
    for ((key, left), (right_key, right)) in a.iter().zip(&b) {
        if key != right_key {
            return Err(format!("key {key} but {right_key}"));
        }
        let same = match key.as_str() {
            "id" => both(left, right).is_some_and(|(left, right)| same_job(left, right)),
            "age" | "time-left" | "pause-time-left" => {
                both(left, right).is_some_and(|(left, right)| left.abs_diff(right) <= CLOCK_SLACK_S)
            }
            _ => left == right,
        };
        if !same {
            return Err(format!("{key}: {left} but {right}"));
        }
    }
    Ok(())
}

/// Compares two bodies of `stats`: the right one has all keys of the left one in the same order (and may
/// have more behind), counters grew equally, what is current is equal.
pub fn server_stats(
    left: (&Reply, &Side, &Baseline),
    right: (&Reply, &Side, &Baseline),
) -> Result<(), Difference> {
    let (a, b) = (left.0.pairs(), right.0.pairs());
    for (at, (key, left_value)) in a.iter().enumerate() {
        let Some((right_key, right_value)) = b.get(at) else { return Err(format!("no key {key}")) };
        if key != right_key {
            return Err(format!("key {key} but {right_key}"));
        }
        if OWN.contains(&key.as_str()) || key.starts_with("binlog-") || key.starts_with("rusage-") {
            continue;
        }
        if is_counter(key) {
            let grown = |value: &str, side: &Side, baseline: &Baseline| {
                let value = value.parse::<u64>().ok()?.wrapping_sub(side.counted_aside(key));
                Some(value.wrapping_sub(baseline.of(key)))
            };
            let (left, right) = (grown(left_value, left.1, left.2), grown(right_value, right.1, right.2));
            if left.is_none() || left != right {
                return Err(format!("{key} grew by {left:?} but {right:?}"));
            }
        } else if left_value != right_value {
            return Err(format!("{key}: {left_value} but {right_value}"));
        }
    }
    Ok(())
}

fn both(left: &str, right: &str) -> Option<(u64, u64)> {
    Some((left.parse().ok()?, right.parse().ok()?))
}

/// A reply for people.
pub fn shown(reply: &Reply) -> String {
    match &reply.body {
        Some(body) if body.len() <= 60 => format!("{} {}", reply.line, body.escape_ascii()),
        Some(_) | None => reply.line.clone(),
    }
}
