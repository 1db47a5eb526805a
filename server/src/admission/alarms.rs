//! Alarms: what an operator must know of until it is over. A pure state machine.
//!
//! ```text
//!   what is seen, every second ─► Board ─► raised: seen for 3 s, with gaps of less than 5 s
//!                                      └─► cleared: not seen for 5 s
//! ```
//!
//! Each is told once when it is raised and once when it is cleared, and listed between the two with the text that it was raised
//! with. What is looked for is in [`super::conditions`].

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What is wrong must be so for this long before an alarm is raised ...
const RAISE_AFTER_MS: u64 = 3_000;
/// ... and right for this long before it is cleared.
const CLEAR_AFTER_MS: u64 = 5_000;
/// Alarms that are kept account of; more are not looked at until some are over.
const ALARMS_MAX: usize = 64;

/// What an alarm is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Name {
    /// No majority of the voters answers.
    QuorumLost,
    /// One more voter that fails stops the cluster.
    RedundancyLost,
    /// The other nodes let this one take no part.
    Refused,
    /// Puts are refused for want of memory.
    MemoryFull,
    /// Puts are slowed for want of memory.
    MemoryLow,
    /// Nothing can be written.
    DiskFull,
    /// Puts are refused because the disk is nearly full.
    DiskLow,
    /// Something on the disk does not check out and is not repaired yet.
    Damage,
    /// Workers seem to feed themselves.
    Loop,
    /// Jobs of a tube are ready for longer than its policy's `alarm-ready-age`.
    ReadyAge,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It works, and somebody should look at it.
    Warning,
    /// Something does not work, or the next failure makes it so.
    Critical,
}

impl Name {
    /// All of them.
    pub const ALL: [Name; 10] = [
        Name::QuorumLost,
        Name::RedundancyLost,
        Name::Refused,
        Name::MemoryFull,
        Name::MemoryLow,
        Name::DiskFull,
        Name::DiskLow,
        Name::Damage,
        Name::Loop,
        Name::ReadyAge,
    ];

    /// Its name in lines, metrics and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Name::QuorumLost => "quorum-lost",
            Name::RedundancyLost => "redundancy-lost",
            Name::Refused => "refused",
            Name::MemoryFull => "memory-full",
            Name::MemoryLow => "memory-low",
            Name::DiskFull => "disk-full",
            Name::DiskLow => "disk-low",
            Name::Damage => "damage",
            Name::Loop => "loop",
            Name::ReadyAge => "ready-age",
        }
    }

    /// How bad it is.
    pub fn severity(self) -> Severity {
        match self {
            Name::QuorumLost
            | Name::RedundancyLost
            | Name::Refused
            | Name::MemoryFull
            | Name::DiskFull
            | Name::DiskLow => Severity::Critical,
            Name::MemoryLow | Name::Damage | Name::Loop | Name::ReadyAge => Severity::Warning,
        }
    }
}

/// Something that is wrong now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What it is.
    pub name: Name,
    /// Which tube or pair of tubes it concerns; empty if it is the node or the cluster.
    pub about: String,
    /// Numbers, and what to do.
    pub text: String,
}

/// An alarm that was raised and is not cleared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// What it is.
    pub name: Name,
    /// Which tube or pair of tubes it concerns; empty if it is the node or the cluster.
    pub about: String,
    /// How bad it is.
    pub severity: Severity,
    /// When it was raised, in milliseconds since the Unix epoch by the clock of the node that tells.
    pub since_ms: u64,
    /// Numbers, as they were then, and what to do.
    pub text: String,
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.about.as_str() {
            "" => write!(f, "{}: {}", self.name.as_str(), self.text),
            about => write!(f, "{} ({about}): {}", self.name.as_str(), self.text),
        }
    }
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was raised.
    Raised(Alarm),
    /// It was cleared, after so many milliseconds.
    Cleared(Alarm, u64),
}

struct Entry {
    /// Seen first and last, in milliseconds of the caller's clock.
    first_ms: u64,
    last_ms: u64,
    raised: Option<(u64, Alarm)>,
}

/// All alarms of one node.
#[derive(Default)]
pub struct Board(BTreeMap<(Name, String), Entry>);

impl Board {
    /// What is wrong at `now_ms`, which never runs backwards; `wall_ms` is for people. Answers what changed by that.
    pub fn look(&mut self, now_ms: u64, wall_ms: u64, seen: Vec<Seen>) -> Vec<Change> {
        let mut changes = Vec::new();
        for Seen { name, about, text } in seen {
            let key = (name, about);
            if self.0.len() >= ALARMS_MAX && !self.0.contains_key(&key) {
                continue;
            }
            let about = key.1.clone();
            let entry =
                self.0.entry(key).or_insert(Entry { first_ms: now_ms, last_ms: now_ms, raised: None });
            entry.last_ms = now_ms;
            if entry.raised.is_none() && now_ms - entry.first_ms >= RAISE_AFTER_MS {
                let alarm = Alarm { name, about, severity: name.severity(), since_ms: wall_ms, text };
                entry.raised = Some((now_ms, alarm.clone()));
                changes.push(Change::Raised(alarm));
            }
        }
        self.0.retain(|_, entry| {
            let lasts = now_ms - entry.last_ms < CLEAR_AFTER_MS;
            if let Some((raised_ms, alarm)) = entry.raised.take_if(|_| !lasts) {
                changes.push(Change::Cleared(alarm, now_ms - raised_ms));
            }
            lasts
        });
        changes
    }

    /// Alarms that are raised, by name.
    pub fn active(&self) -> impl Iterator<Item = &Alarm> {
        self.0.values().filter_map(|entry| entry.raised.as_ref().map(|(_, alarm)| alarm))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(name: Name, about: &str) -> Seen {
        Seen { name, about: about.to_owned(), text: "it is so".to_owned() }
    }

    /// Looks at each second; answers what changed, with the second.
    fn run(seconds: std::ops::Range<u64>, what: impl Fn(u64) -> Vec<Seen>) -> Vec<String> {
        let mut board = Board::default();
        let mut told = Vec::new();
        for second in seconds {
            for change in board.look(second * 1000, 1_000_000 + second * 1000, what(second)) {
                told.push(match change {
                    Change::Raised(alarm) => format!("{second} raised {alarm} since {}", alarm.since_ms),
                    Change::Cleared(alarm, ms) => {
                        format!("{second} cleared {} after {ms}", alarm.name.as_str())
                    }
                });
            }
        }
        told
    }

    #[test]
    fn an_alarm_is_raised_once_and_cleared_once() {
        let wrong =
            |second| if (10..30).contains(&second) { vec![seen(Name::MemoryFull, "")] } else { vec![] };
        assert_eq!(
            run(0..60, wrong),
            ["13 raised memory-full: it is so since 1013000", "34 cleared memory-full after 21000"]
        );
    }

    #[test]
    fn what_comes_and_goes_is_one_alarm_and_what_is_short_is_none() {
        let flaps = |second| if second % 4 == 0 { vec![seen(Name::DiskLow, "")] } else { vec![] };
        assert_eq!(run(0..60, flaps), ["4 raised disk-low: it is so since 1004000"]);
        let short = |second| if second < 3 { vec![seen(Name::DiskLow, "")] } else { vec![] };
        assert_eq!(run(0..60, short), Vec::<String>::new());
    }

    #[test]
    fn tubes_have_alarms_of_their_own_and_not_too_many() {
        let mut board = Board::default();
        let tubes = || (0..100).map(|n| seen(Name::ReadyAge, &format!("t{n:02}"))).collect::<Vec<_>>();
        assert_eq!(board.look(0, 0, tubes()), []);
        assert_eq!(board.look(3000, 0, tubes()).len(), ALARMS_MAX);
        assert_eq!(board.active().next().map(Alarm::to_string).as_deref(), Some("ready-age (t00): it is so"));
    }

    #[test]
    fn names_are_the_same_everywhere() {
        for name in Name::ALL {
            assert_eq!(serde_json::to_value(name).unwrap(), name.as_str());
        }
    }
}
