//! Which faults, when, and whom they hit: a list of `--fault` arguments from a seed.
//!
//! Most of the time the cluster has a majority; now and then it has none for a while, or everybody dies at once. Between two
//! faults pass a few seconds, so that the next one often falls into the recovery from the one before.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Options;

/// Nodes of the cluster.
const NODES: u64 = 3;
/// Nothing happens before, in ms: connections are made.
const FIRST_MS: u64 = 2_000;
/// Nothing happens in the last part, in ms, so that the last fault is felt under load, too.
const LAST_MS: u64 = 5_000;
/// From one fault to the next, in ms: from nearly at once to a recovered cluster.
const GAP_MS: std::ops::Range<u64> = 1_000..7_000;
/// How long a node stays frozen, cut off or drained, in ms: from a blink to beyond every lease.
const LASTS_MS: std::ops::Range<u64> = 200..9_000;
/// By how much a clock is wrong, in seconds.
const CLOCK_S: [i64; 5] = [3_600, -3_600, 30, -30, 0];

/// A kind of fault, with how often it is chosen among all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Kill,
    KillAll,
    Term,
    Stop,
    Cut,
    CutIn,
    CutOut,
    Drain,
    Lead,
    Clock,
}

const KINDS: [(Kind, u32); 10] = [
    (Kind::Kill, 20),
    (Kind::KillAll, 4),
    (Kind::Term, 12),
    (Kind::Stop, 12),
    (Kind::Cut, 10),
    (Kind::CutIn, 8),
    (Kind::CutOut, 8),
    (Kind::Drain, 8),
    (Kind::Lead, 8),
    (Kind::Clock, 10),
];

/// The faults of a run, as arguments of `bench failover --fault`. `clocks` is where the files of the nodes' clocks are; without
/// them no clock jumps, and all else stays the same.
pub fn make(options: &Options, clocks: Option<&Path>) -> Vec<String> {
    let mut random = StdRng::seed_from_u64(options.seed);
    let end_ms = (options.seconds * 1_000).saturating_sub(LAST_MS);
    let mut at_ms = FIRST_MS;
    // The network can be cut in every run, whatever its seed: the relays are there from the beginning.
    let mut plan = vec![format!("{}ms:heal:n1", FIRST_MS / 2)];
    while at_ms < end_ms {
        plan.extend(strike(&mut random, at_ms, end_ms, clocks));
        at_ms += random.random_range(GAP_MS);
    }
    plan
}

fn strike(random: &mut StdRng, at_ms: u64, end_ms: u64, clocks: Option<&Path>) -> Vec<String> {
    let kind = choose(random);
    let node = random.random_range(1..=NODES);
    let until_ms = (at_ms + random.random_range(LASTS_MS)).min(end_ms);
    let shift_s = CLOCK_S[random.random_range(0..CLOCK_S.len())];
    // Leaders are hit more often than by chance.
    let whom = if random.random_ratio(1, 3) { "leader".to_owned() } else { format!("n{node}") };
    let at = |what: &str| format!("{at_ms}ms:{what}");
    let lasting =
        |what: &str, end: &str| vec![at(&format!("{what}:n{node}")), format!("{until_ms}ms:{end}:n{node}")];
    match kind {
        Kind::Kill => vec![at(&format!("kill:{whom}"))],
        Kind::KillAll => (1..=NODES).map(|node| at(&format!("kill:n{node}"))).collect(),
        Kind::Term => vec![at(&format!("term:{whom}"))],
        Kind::Stop => lasting("stop", "cont"),
        Kind::Cut => lasting("cut", "heal"),
        Kind::CutIn => lasting("cut-in", "heal"),
        Kind::CutOut => lasting("cut-out", "heal"),
        Kind::Drain => lasting("drain", "resume"),
        Kind::Lead => vec![at(&format!("lead:n{node}"))],
        Kind::Clock => clocks.map(|at_dir| at(&jump(at_dir, node, shift_s))).into_iter().collect(),
    }
}

fn jump(clocks: &Path, node: u64, shift_s: i64) -> String {
    let file = clocks.join(format!("n{node}"));
    format!("run:echo {shift_s:+} > '{0}.new' && mv '{0}.new' '{0}'", file.display())
}

fn choose(random: &mut StdRng) -> Kind {
    let mut ticket = random.random_range(0..KINDS.iter().map(|(_, weight)| weight).sum());
    for (kind, weight) in KINDS {
        if ticket < weight {
            return kind;
        }
        ticket -= weight;
    }
    unreachable!("a ticket is below the sum of all weights")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(seed: u64) -> Options {
        Options { seconds: 1_800, seed, rate: 1, report: None }
    }

    #[test]
    fn a_seed_is_one_plan_and_another_seed_another() {
        assert_eq!(make(&options(1), None), make(&options(1), None));
        assert_ne!(make(&options(1), None), make(&options(2), None));
    }

    #[test]
    fn without_clocks_all_else_stays_the_same() {
        let with = make(&options(3), Some(Path::new("/clocks")));
        let jumps = |fault: &&String| fault.contains(":run:");
        assert!(with.iter().any(|fault| jumps(&fault)), "{with:?}");
        let rest: Vec<String> = with.iter().filter(|fault| !jumps(fault)).cloned().collect();
        assert_eq!(rest, make(&options(3), None));
    }

    #[test]
    fn half_an_hour_holds_every_kind_and_ends_in_time() {
        let plan = make(&options(4), Some(Path::new("/clocks")));
        for word in [
            "kill:leader",
            "kill:n",
            "term:",
            "stop:",
            "cut:",
            "cut-in:",
            "cut-out:",
            "drain:",
            "lead:",
            "run:",
        ] {
            assert!(plan.iter().any(|fault| fault.contains(word)), "no {word} in {plan:?}");
        }
        let at = |fault: &String| fault.split_once("ms:").and_then(|(at, _)| at.parse::<u64>().ok()).unwrap();
        assert!(plan.iter().all(|fault| at(fault) <= 1_795_000));
    }
}
