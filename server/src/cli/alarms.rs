//! Alarms of a cluster's nodes, for `beanpole cluster health` and `beanpole node health`.

use serde::Serialize;

use super::admin::{self, Ask, Cluster, Failure, NO, Output, YES};
use super::cluster::is_silent;
use super::node::address_of;
use crate::admission::{Alarm, Severity};

/// One alarm, and who tells of it: several nodes see the same loop, the same late tube, the same missing node.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Told {
    #[serde(flatten)]
    alarm: Alarm,
    nodes: Vec<u64>,
}

/// All alarms of the nodes that are heard.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Raised(Vec<Told>);

impl Raised {
    /// The worst first.
    pub fn of(cluster: &Cluster) -> Raised {
        let mut all: Vec<Told> = Vec::new();
        for node in cluster.nodes.iter().filter(|node| !is_silent(node)) {
            for alarm in &node.report.alarms {
                let is_same =
                    |told: &&mut Told| (told.alarm.name, &told.alarm.about) == (alarm.name, &alarm.about);
                match all.iter_mut().find(is_same) {
                    Some(told) => told.nodes.push(node.report.id),
                    None => all.push(Told { alarm: alarm.clone(), nodes: vec![node.report.id] }),
                }
            }
        }
        all.sort_by_key(|told| (std::cmp::Reverse(told.alarm.severity), told.alarm.name));
        Raised(all)
    }

    /// Whether one of them is critical.
    pub fn any_critical(&self) -> bool {
        self.0.iter().any(|told| told.alarm.severity == Severity::Critical)
    }

    /// A line for each.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|told| {
            let nodes: Vec<String> = told.nodes.iter().map(u64::to_string).collect();
            format!("{}: {} (node {})", word(told.alarm.severity), told.alarm, nodes.join(", "))
        })
    }
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    }
}

/// `beanpole node health ID`.
pub(super) fn of_node(ask: &Ask, id: u64) -> Result<u8, Failure> {
    let alarms: Vec<Alarm> = admin::get(&address_of(ask, id)?, "/api/v1/alarms")?;
    match ask.output {
        Output::Json => println!("{:#}", serde_json::to_value(&alarms).unwrap_or_default()),
        Output::Table if alarms.is_empty() => println!("node {id} has no alarm"),
        Output::Table => {
            alarms.iter().for_each(|alarm| println!("{}: {alarm}", word(alarm.severity)));
        }
    }
    let is_bad = alarms.iter().any(|alarm| alarm.severity == Severity::Critical);
    Ok(if is_bad { NO } else { YES })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::AlarmName;
    use crate::cli::admin::Member;
    use crate::cluster::report::Report;

    fn alarm(name: AlarmName, about: &str) -> Alarm {
        let (about, text) = (about.to_owned(), "so it is".to_owned());
        Alarm { name, about, severity: name.severity(), since_ms: 1, text }
    }

    fn node(id: u64, seen_ms: u64, alarms: Vec<Alarm>) -> Member {
        Member {
            seen_ms: Some(seen_ms),
            report: Report { id, alarms, ..Report::default() },
            ..Member::default()
        }
    }

    #[test]
    fn an_alarm_that_several_nodes_tell_of_is_one_and_the_worst_come_first() {
        let (late, full) = (alarm(AlarmName::ReadyAge, "mails"), alarm(AlarmName::MemoryFull, ""));
        let nodes = vec![
            node(1, 0, vec![late.clone()]),
            node(2, 100, vec![late, full]),
            node(3, 9_000, vec![alarm(AlarmName::DiskFull, "")]),
        ];
        let raised = Raised::of(&Cluster { nodes, ..Cluster::default() });
        let lines: Vec<String> = raised.lines().collect();
        assert_eq!(
            lines,
            ["critical: memory-full: so it is (node 2)", "warning: ready-age (mails): so it is (node 1, 2)"]
        );
        assert!(raised.any_critical());
        assert!(!Raised::of(&Cluster::default()).any_critical());
    }
}
