//! What alarms are raised for: looked for every second, on this node, from what it knows anyway.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use beanpole_raft::{Node, Space};
use parking_lot::Mutex;

use super::alarms::{Alarm, Board, Change, Name, Seen, Severity};
use super::gate::State;
use crate::cluster::report::Report;
use crate::node::Shared;
use crate::units::{Span, mib};

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A node of which nothing was heard for this long is not counted on, in milliseconds.
const SILENT_MS: u64 = 3_000;
/// A voter that is so many entries behind does not help when another one fails.
const LAG_MAX: u64 = 10_000;

/// A node's alarms.
#[derive(Default)]
pub struct Alarms(Mutex<Board>);

impl Alarms {
    /// Those that are raised.
    pub fn active(&self) -> Vec<Alarm> {
        self.0.lock().active().cloned().collect()
    }
}

/// Looks for what is wrong, and tells what changes, on a thread of its own until the node is gone: the one that serves clients
/// sleeps on when there is nothing to do.
///
/// # Errors
/// When the thread cannot be started.
pub fn watch_alarms(shared: &Arc<Shared>, node: Node) -> std::io::Result<()> {
    let shared = Arc::downgrade(shared);
    let began = Instant::now();
    std::thread::Builder::new().name("alarms".into()).spawn(move || {
        loop {
            std::thread::sleep(LOOK_EVERY);
            let Some(shared) = shared.upgrade() else { return };
            let now_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let wall_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
            let seen = all(&shared, &node);
            let changes = shared.admission.alarms.0.lock().look(now_ms, wall_ms, seen);
            changes.iter().for_each(|change| tell(&shared, change));
        }
    })?;
    Ok(())
}

/// One line and one event.
fn tell(shared: &Shared, change: &Change) {
    let text = match change {
        Change::Raised(alarm) => format!("alarm raised: {alarm}"),
        Change::Cleared(alarm, ms) => {
            let about = if alarm.about.is_empty() { String::new() } else { format!(" ({})", alarm.about) };
            format!("alarm cleared: {}{about}, after {} s", alarm.name.as_str(), ms / 1000)
        }
    };
    match change {
        Change::Raised(alarm) if alarm.severity == Severity::Critical => tracing::error!("{text}"),
        Change::Raised(_) => tracing::warn!("{text}"),
        Change::Cleared(..) => tracing::info!("{text}"),
    }
    shared.admission.events.note("alarm", text);
}

/// All that is wrong now.
fn all(shared: &Shared, node: &Node) -> Vec<Seen> {
    let mut seen: Vec<Seen> = redundancy(&view(shared, node)).into_iter().collect();
    if let Some(reason) = &node.status().refused {
        let text = format!("the other nodes let this one take no part: {reason}");
        seen.push(Seen { name: Name::Refused, about: String::new(), text });
    }
    seen.extend(memory(shared));
    seen.extend(disk(node));
    let mut gateway = shared.gateway.lock();
    for pair in gateway.derived_puts().into_iter().filter(|pair| pair.suspect) {
        let text = format!(
            "workers seem to feed themselves, {} hops deep, {} puts a second; look at what they put, and limit it with \
             `beanpole tube policy set {} --max-hops N`",
            pair.hops, pair.rate, pair.to
        );
        seen.push(Seen { name: Name::Loop, about: format!("{} -> {}", pair.from, pair.to), text });
    }
    let (now_us, _) = gateway.clocks_now();
    for late in gateway.engine().late_tubes(now_us) {
        let (age, limit) = (Span(late.age_us / 1_000_000 * 1000), Span(late.limit_ms));
        let text = format!(
            "a job has been ready for {age}, longer than {limit}; {} are ready: are its workers there, and fast enough?",
            late.ready
        );
        seen.push(Seen { name: Name::ReadyAge, about: late.tube, text });
    }
    seen
}

/// The voters, as this node sees them.
struct View {
    me: u64,
    /// There is a leader, and this node hears it.
    led: bool,
    voters: Vec<Voter>,
}

struct Voter {
    id: u64,
    /// Milliseconds since it told of itself; none if it never did.
    seen_ms: Option<u64>,
    /// Committed entries that it has not got.
    lag: u64,
}

fn view(shared: &Shared, node: &Node) -> View {
    let status = node.status();
    let told: Vec<(Report, u64)> = shared.reports.all();
    let of = |id: u64| told.iter().find(|(report, _)| report.id == id);
    let committed = told.iter().map(|(report, _)| report.committed).max().unwrap_or(0).max(status.committed);
    let voters = status.members.iter().filter(|member| member.voter).map(|member| {
        let last = if member.id == status.node_id { Some(status.last_index) } else { None };
        let last = last.or_else(|| of(member.id).map(|(report, _)| report.last)).unwrap_or(0);
        Voter {
            id: member.id,
            seen_ms: if member.id == status.node_id { Some(0) } else { of(member.id).map(|(_, ms)| *ms) },
            lag: committed.saturating_sub(last),
        }
    });
    let led = status.leader.is_some() && {
        let mut gateway = shared.gateway.lock();
        gateway.clocks_now();
        !gateway.is_cut_off()
    };
    View { me: status.node_id, led, voters: voters.collect() }
}

/// How many more voters may fail.
fn redundancy(view: &View) -> Option<Seen> {
    if !view.voters.iter().any(|voter| voter.id == view.me) || view.voters.len() < 2 {
        return None;
    }
    let quorum = view.voters.len() / 2 + 1;
    let is_there = |voter: &&Voter| voter.seen_ms.is_some_and(|ms| ms <= SILENT_MS) && voter.lag <= LAG_MAX;
    let there = view.voters.iter().filter(is_there).count();
    let missing: Vec<String> = view.voters.iter().filter(|voter| !is_there(voter)).map(why_not).collect();
    let missing = missing.join(", ");
    let (name, text) = if !view.led {
        let text = format!(
            "no majority answers this node: {quorum} of {} voters are needed; puts get OUT_OF_MEMORY and other commands wait; \
             start the missing nodes, or mend the network{}",
            view.voters.len(),
            if missing.is_empty() { String::new() } else { format!(" ({missing})") }
        );
        (Name::QuorumLost, text)
    } else if there <= quorum && !missing.is_empty() {
        let text = format!(
            "quorum margin 0: {there} of {} voters are there and {quorum} are needed, so the next failure stops the cluster; \
             {missing}; bring it back, or `beanpole cluster replace` it",
            view.voters.len()
        );
        (Name::RedundancyLost, text)
    } else {
        return None;
    };
    Some(Seen { name, about: String::new(), text })
}

fn why_not(voter: &Voter) -> String {
    match voter.seen_ms {
        None => format!("node {} was never seen", voter.id),
        Some(ms) if ms > SILENT_MS => format!("node {} is silent for {} s", voter.id, ms / 1000),
        Some(_) => format!("node {} is {} entries behind", voter.id, voter.lag),
    }
}

fn memory(shared: &Shared) -> Option<Seen> {
    let memory = shared.admission.memory();
    let (used, budget) = (mib(memory.reading.used), mib(memory.reading.budget));
    let (name, meets) = match memory.stance.state {
        State::Open => return None,
        State::Shedding => (Name::MemoryLow, "puts are slowed"),
        State::Closed => (Name::MemoryFull, "puts are answered OUT_OF_MEMORY"),
    };
    let text = format!(
        "{used} of {budget} in use ({}), {meets}; add workers, purge, or raise the limit",
        memory.source
    );
    Some(Seen { name, about: String::new(), text })
}

fn disk(node: &Node) -> Vec<Seen> {
    let usage = node.bodies().disk_usage();
    let free = usage.free_bytes.map_or_else(|| "an unknown amount".to_owned(), mib);
    let space = match usage.space {
        Space::Open => None,
        Space::Shedding => Some((Name::DiskLow, "puts get OUT_OF_MEMORY, everything else works")),
        Space::Closed => Some((Name::DiskFull, "nothing can be written, and commands wait")),
    };
    let space = space.map(|(name, meets)| {
        let text =
            format!("{free} of the disk are free: {meets}; add workers, purge, or make room on the disk");
        Seen { name, about: String::new(), text }
    });
    let damage = (usage.damaged_segments > 0).then(|| {
        let text = format!(
            "{} segments have damage that is not repaired yet; if that does not end by itself, replace the disk while the \
             other nodes are whole",
            usage.damaged_segments
        );
        Seen { name: Name::Damage, about: String::new(), text }
    });
    space.into_iter().chain(damage).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(led: bool, voters: &[(Option<u64>, u64)]) -> View {
        let voters = (1..).zip(voters).map(|(id, (seen_ms, lag))| Voter { id, seen_ms: *seen_ms, lag: *lag });
        View { me: 1, led, voters: voters.collect() }
    }

    fn name(led: bool, voters: &[(Option<u64>, u64)]) -> Option<Name> {
        redundancy(&view(led, voters)).map(|seen| seen.name)
    }

    #[test]
    fn redundancy_is_lost_when_the_next_failure_stops_the_cluster() {
        const HERE: (Option<u64>, u64) = (Some(500), 0);
        const GONE: (Option<u64>, u64) = (Some(3_001), 0);
        assert_eq!(name(true, &[HERE, HERE, HERE]), None);
        assert_eq!(name(true, &[HERE, HERE, GONE]), Some(Name::RedundancyLost));
        assert_eq!(name(true, &[HERE, HERE, (None, 0)]), Some(Name::RedundancyLost));
        assert_eq!(name(true, &[HERE, HERE, (Some(0), 10_001)]), Some(Name::RedundancyLost));
        assert_eq!(name(true, &[HERE, HERE, HERE, HERE, GONE]), None, "one more may fail");
        assert_eq!(name(true, &[HERE, HERE, HERE, GONE, GONE]), Some(Name::RedundancyLost));
        assert_eq!(name(false, &[HERE, GONE, GONE]), Some(Name::QuorumLost));
        // Who never had any has none to lose.
        assert_eq!(
            (name(true, &[HERE]), name(false, &[HERE]), name(true, &[HERE, HERE])),
            (None, None, None)
        );
        let text = redundancy(&view(true, &[HERE, HERE, GONE])).map(|seen| seen.text).unwrap();
        assert!(
            text.contains("quorum margin 0: 2 of 3") && text.contains("node 3 is silent for 3 s"),
            "{text}"
        );
    }

    #[test]
    fn a_learner_has_no_quorum_to_lose() {
        let mut view = view(true, &[(Some(0), 0), (None, 0), (None, 0)]);
        view.me = 9;
        assert_eq!(redundancy(&view), None);
    }
}
