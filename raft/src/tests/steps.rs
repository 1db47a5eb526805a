//! The power goes, or the disk is full, at every single step of a workload with snapshots, purges and compaction.
//!
//! A step is a write, a sync, a change of a name, or a sync of the directory. What was not synced is lost, kept or torn
//! in sectors of 512 or 4096 bytes, as the seed has it. Whatever was acknowledged is there afterwards, every live body
//! is what it was, and the node goes on, compaction included.

use std::collections::BTreeMap;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::machine::{TestMachine, check_bodies, drop_body, nth, put, put_many};
use super::rig::{DIR, options, within};
use crate::disk::{Disk, FaultDisk};
use crate::{Node, Options, Outcome, Payload, Space};

/// Runs in the order of one task, so that a seed repeats itself.
fn small(disk: &FaultDisk) -> Options {
    let mut options = options(disk);
    options.log_retention_bytes = 16 << 10;
    options.inline = true;
    options
}

/// What must be there and what must not after what was acknowledged so far.
#[derive(Default)]
struct Expected {
    there: BTreeMap<u64, u32>,
    gone: Vec<u64>,
}

/// Answers the index, or nothing when the power is gone.
async fn commit(node: &Node, payload: Payload) -> Option<u64> {
    match within(node.propose(payload).await.ok()?).await {
        Outcome::Committed { index } => Some(index),
        Outcome::NotProposed { .. } | Outcome::Unknown => None,
    }
}

impl Expected {
    async fn drop_one(&mut self, node: &Node, name: u64) -> Option<()> {
        // From here on it may be gone.
        self.there.remove(&name);
        commit(node, drop_body(name)).await?;
        self.gone.push(name);
        Some(())
    }

    /// Some puts, most of them dropped soon, and single bodies of many left over in every segment.
    async fn traffic(&mut self, node: &Node, rng: &mut StdRng) -> Option<()> {
        for _ in 0..12 {
            let count = rng.random_range(1..12);
            let bodies: Vec<Vec<u8>> =
                (0..count).map(|_| vec![rng.random(); rng.random_range(1..400)]).collect();
            let index = commit(node, put_many(&bodies)).await?;
            for (n, body) in bodies.iter().enumerate() {
                self.there.insert(nth(index, n), crc32fast::hash(body));
            }
            let body = vec![rng.random(); 1500];
            let index = commit(node, put(&body)).await?;
            self.there.insert(index, crc32fast::hash(&body));
            let share = |name: u64| if name.is_multiple_of(9) { 0.01 } else { 0.35 };
            let names: Vec<u64> =
                self.there.keys().copied().filter(|name| rng.random_bool(share(*name))).collect();
            for name in names {
                self.drop_one(node, name).await?;
            }
        }
        Some(())
    }

    /// Traffic and snapshots until the power goes.
    async fn work(&mut self, disk: &FaultDisk, seed: u64) -> Option<()> {
        let mut rng = StdRng::seed_from_u64(seed);
        let node = Node::start(small(disk), TestMachine::new().0).await.ok()?;
        within(node.ready()).await.ok()?;
        for _ in 0..4 {
            self.traffic(&node, &mut rng).await?;
            within(node.snapshot_now()).await.ok()?;
        }
        let usage = node.bodies().disk_usage();
        assert!(
            usage.rewritten_bytes > 0 || usage.space != Space::Open,
            "seed {seed}: nothing was compacted"
        );
        within(node.shutdown()).await;
        Some(())
    }

    /// A start finds everything, takes up work, and leaves no file behind that has no purpose.
    async fn check(&mut self, disk: &FaultDisk, what: &str) {
        let (machine, seen) = TestMachine::new();
        let node = Node::start(small(disk), machine).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        within(node.ready()).await.unwrap();
        for (name, crc) in &self.there {
            assert_eq!(seen.lock().live.get(name).map(|(_, crc)| crc), Some(crc), "{what}: body {name}");
        }
        assert!(self.gone.iter().all(|name| !seen.lock().live.contains_key(name)), "{what}");
        check_bodies(&seen.lock(), &node.bodies());
        let names = disk.list(Path::new(DIR)).unwrap();
        assert!(
            names.iter().all(|name| !name.ends_with(".body.tmp") && !name.ends_with(".snap.tmp")),
            "{what}: {names:?}"
        );
        self.traffic(&node, &mut StdRng::seed_from_u64(1)).await.expect("the disk works");
        within(node.snapshot_now()).await.unwrap();
        check_bodies(&seen.lock(), &node.bodies());
        let counted: u64 = seen.lock().live.values().map(|(addr, _)| u64::from(addr.len)).sum();
        assert_eq!(node.bodies().disk_usage().live_bytes, counted, "{what}");
        within(node.shutdown()).await;
    }
}

/// How many steps the workload takes.
async fn length(sector: usize, seed: u64) -> u64 {
    let disk = FaultDisk::with_sector(sector);
    Expected::default().work(&disk, seed).await.expect("the power stays on");
    disk.changes()
}

/// The power goes after `step` steps; with `again`, a second time after so many steps of the next start.
async fn cut(sector: usize, seed: u64, step: u64, again: Option<u64>) {
    let what =
        format!("BEANPOLE_SEED={seed}, sectors of {sector} bytes, cut after step {step}, then {again:?}");
    let mut disk = FaultDisk::with_sector(sector);
    let mut expected = Expected::default();
    disk.cut_after(step);
    expected.work(&disk, seed).await;
    disk = disk.power_cut(seed ^ step);
    if let Some(steps) = again {
        disk.cut_after(steps);
        if let Ok(node) = Node::start(small(&disk), TestMachine::new().0).await
            && within(node.ready()).await.is_ok()
        {
            // It fails when the power goes.
            within(node.snapshot_now()).await.ok();
        }
        disk = disk.power_cut(seed ^ step ^ steps);
    }
    expected.check(&disk, &what).await;
}

fn seed() -> u64 {
    let seed = std::env::var("BEANPOLE_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("BEANPOLE_SEED={seed}");
    seed
}

/// The disk is full after `step` steps: what fails then is not acknowledged, and a start finds everything else.
async fn full(seed: u64, step: u64) {
    let disk = FaultDisk::new();
    let mut expected = Expected::default();
    disk.full_after(step);
    expected.work(&disk, seed).await;
    disk.set_space(None);
    expected.check(&disk.kill(), &format!("BEANPOLE_SEED={seed}, full after step {step}")).await;
}

/// Forty of the steps, drawn anew each time, half of them with a second cut in the start that follows.
#[tokio::test]
async fn cut_at_some_steps() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    for sector in [512, 4096] {
        let steps = length(sector, seed).await;
        for round in 0..20 {
            let again = (round % 2 == 0).then(|| rng.random_range(0..60));
            cut(sector, seed, rng.random_range(0..steps), again).await;
        }
    }
}

/// Twenty of the steps, drawn anew each time.
#[tokio::test]
async fn full_at_some_steps() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let steps = length(512, seed).await;
    for _ in 0..20 {
        full(seed, rng.random_range(0..steps)).await;
    }
}

/// Every step. Takes minutes: the extra suites run it.
#[tokio::test]
#[ignore = "takes minutes; tests/extra.sh runs it"]
async fn cut_at_every_step() {
    let seed = seed();
    for sector in [512, 4096] {
        let steps = length(sector, seed).await;
        println!("{steps} steps with sectors of {sector} bytes");
        for step in 0..=steps {
            cut(sector, seed, step, None).await;
        }
    }
    for step in 0..length(512, seed).await {
        full(seed, step).await;
    }
}
