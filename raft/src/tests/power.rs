//! Power cuts at random moments: whatever was reported committed is there afterwards.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::machine::{Seen, TestMachine, check_bodies, drop_body, put};
use super::rig::{node, options, within};
use crate::disk::FaultDisk;
use crate::{Node, Outcome, StartError};

/// What must be there and what must be gone after all that was reported so far.
#[derive(Default)]
struct Expected {
    /// Index to checksum of every body that was reported committed and whose end was not proposed.
    there: BTreeMap<u64, u32>,
    /// Bodies whose end was reported committed.
    gone: Vec<u64>,
}

impl Expected {
    fn check(&self, seen: &Seen, what: &str) {
        for (index, crc) in &self.there {
            assert_eq!(seen.live.get(index).map(|(_, crc)| crc), Some(crc), "{what}: entry {index}");
        }
        assert!(self.gone.iter().all(|index| !seen.live.contains_key(index)), "{what}");
    }

    /// Proposes some puts and drops and waits for some of them; answers whether the node still works.
    async fn round(&mut self, node: &Node, rng: &mut StdRng) -> bool {
        let mut flying = Vec::new();
        for _ in 0..rng.random_range(1..8) {
            let victim = self.there.keys().nth(rng.random_range(0..20)).copied();
            let (payload, what) = match victim.filter(|_| rng.random_bool(0.4)) {
                Some(index) => {
                    self.there.remove(&index);
                    (drop_body(index), Err(index))
                }
                None => {
                    let most = if rng.random_bool(0.005) { 2_500_000 } else { 3000 };
                    let mut body = vec![0; rng.random_range(0..most)];
                    rng.fill(&mut body[..]);
                    (put(&body), Ok(crc32fast::hash(&body)))
                }
            };
            match node.propose(payload).await {
                Ok(proposal) => flying.push((proposal, what)),
                Err(_) => return false,
            }
        }
        // Sometimes the power goes while some are in flight.
        let wait = if rng.random_bool(0.8) { flying.len() } else { rng.random_range(0..flying.len()) };
        for (proposal, what) in flying.drain(..wait) {
            match (within(proposal).await, what) {
                (Outcome::Committed { index }, Ok(crc)) => drop(self.there.insert(index, crc)),
                (Outcome::Committed { .. }, Err(index)) => self.gone.push(index),
                (Outcome::Unknown | Outcome::NotProposed { .. }, _) => return false,
            }
        }
        flying.is_empty()
    }
}

/// Several lives of one node, each ended by a power cut in the middle of work, some by a failing sync at any
/// moment, the start included.
async fn lives(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut disk = FaultDisk::with_sector([512, 4096][rng.random_range(0..2)]);
    let mut expected = Expected::default();
    for life in 0..5 {
        let mut options = options(&disk);
        options.snapshot_log_bytes = 40 << 10;
        options.log_retention_bytes = 20 << 10;
        if rng.random_bool(0.4) {
            disk.fail_sync_after(rng.random_range(0..40));
        }
        let (machine, seen) = TestMachine::new();
        match Node::start(options, machine).await {
            Ok(node) => {
                if within(node.ready()).await.is_ok() {
                    expected.check(&seen.lock(), &format!("seed {seed} life {life}"));
                    check_bodies(&seen.lock(), &node.bodies());
                    let rounds = rng.random_range(1..30);
                    for _ in 0..rounds {
                        if !expected.round(&node, &mut rng).await {
                            break;
                        }
                    }
                }
            }
            Err(StartError::Io { .. } | StartError::NotWritable { .. } | StartError::Consensus(_)) => {}
            Err(error) => panic!("seed {seed} life {life}: {error}"),
        }
        disk = disk.power_cut(rng.random());
    }
    let (node, seen) = node(options(&disk)).await;
    expected.check(&seen.lock(), &format!("seed {seed} at the end"));
    check_bodies(&seen.lock(), &node.bodies());
}

/// Thirty random histories.
#[tokio::test]
async fn nothing_acknowledged_is_lost() {
    let seed: u64 =
        std::env::var("BEANPOLE_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("BEANPOLE_SEED={seed}");
    for round in 0..30 {
        lives(seed.wrapping_add(round)).await;
    }
}
