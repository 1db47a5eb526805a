//! A start tells how far it is, and counts what the state references.

use std::io::Read;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::machine::{TestMachine, drop_body, nth, put, put_many};
use super::rig::{commit, node, options, within};
use crate::census::Census;
use crate::disk::FaultDisk;
use crate::{Bodies, BodyAddr, Node, Opening, OpeningStep, Payload, SnapshotImage, StateMachine};

/// Looks how far the start is whenever it is called.
struct Watching {
    machine: TestMachine,
    opening: Opening,
    steps: Arc<Mutex<Vec<OpeningStep>>>,
}

impl Watching {
    fn look(&self) {
        self.steps.lock().push(self.opening.step());
    }
}

impl StateMachine for Watching {
    fn attach(&mut self, bodies: Bodies) {
        self.look();
        self.machine.attach(bodies);
    }
    fn apply(&mut self, index: u64, payload: &Payload) {
        self.look();
        self.machine.apply(index, payload);
    }
    fn applied(&mut self, index: u64) {
        self.machine.applied(index);
    }
    fn snapshot(&mut self) -> Box<dyn SnapshotImage> {
        self.machine.snapshot()
    }
    fn restore(&mut self, index: u64, image: &mut dyn Read) -> std::io::Result<()> {
        self.look();
        self.machine.restore(index, image)?;
        self.look();
        Ok(())
    }
    fn for_each_live(&self, f: &mut dyn FnMut(BodyAddr)) {
        self.look();
        self.machine.for_each_live(f);
    }
}

/// The log, the snapshot by its bytes, the bodies, the entries after the snapshot by their number; then it is open.
#[tokio::test]
async fn a_start_tells_how_far_it_is() {
    let disk = FaultDisk::new();
    let (first, _) = node(options(&disk)).await;
    for _ in 0..100 {
        commit(&first, put(&[1; 100])).await;
    }
    within(first.snapshot_now()).await.unwrap();
    for _ in 0..3 {
        commit(&first, put(&[1; 100])).await;
    }
    within(first.shutdown()).await;
    let (machine, _) = TestMachine::new();
    let steps = Arc::new(Mutex::new(Vec::new()));
    let again = options(&disk.kill());
    let opening = again.opening.clone();
    assert_eq!(opening.step(), OpeningStep::Log);
    let watching = Watching { machine, opening: opening.clone(), steps: steps.clone() };
    let again = Node::start(again, watching).await.unwrap();
    assert_eq!(opening.step(), OpeningStep::Open);
    let steps = std::mem::take(&mut *steps.lock());
    assert_eq!(steps[0], OpeningStep::Log);
    let (OpeningStep::State { done: 0, of }, OpeningStep::State { done, .. }) = (steps[1], steps[2]) else {
        panic!("{steps:?}");
    };
    assert!(done >= 100 * 28 && done < of, "{done} of {of} bytes, but for the header and the frames' ends");
    assert_eq!(steps[3], OpeningStep::Bodies);
    assert_eq!(steps[4..].len(), 3);
    for step in &steps[4..] {
        assert!(matches!(step, OpeningStep::Replay { of: 3, .. }), "{step:?}");
    }
    within(again.shutdown()).await;
}

#[test]
fn steps_are_told_in_words() {
    let told = |step: OpeningStep| step.to_string();
    assert_eq!(told(OpeningStep::State { done: 1 << 20, of: 3 << 20 }), "reading the state: 33 % of 3 MiB");
    assert_eq!(
        told(OpeningStep::Replay { done: 0, of: 0 }),
        "applying the log after the snapshot: 100 % of 0 entries"
    );
}

/// In whatever order bodies are named, in segments of the log and in rewritten ones, whole and in pieces: each is counted in
/// the segment where a reader finds it, and one that is not stored is told.
#[tokio::test]
async fn bodies_are_counted_where_they_are() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let disk = FaultDisk::new();
    let mut small = options(&disk);
    small.log_retention_bytes = 16 << 10;
    let (node, seen) = node(small).await;
    for _ in 0..5 {
        for _ in 0..40 {
            let bodies: Vec<Vec<u8>> =
                (0..rng.random_range(1..9)).map(|_| vec![1; rng.random_range(0..400)]).collect();
            let index = commit(&node, put_many(&bodies)).await;
            for n in 0..bodies.len() {
                if rng.random_ratio(9, 10) {
                    commit(&node, drop_body(nth(index, n))).await;
                }
            }
        }
        within(node.snapshot_now()).await.unwrap();
    }
    // Many bodies in each segment.
    for _ in 0..100 {
        commit(&node, put_many(&vec![vec![1; 20]; 30])).await;
    }
    let log = node.log();
    let segments: Vec<_> = log.table.all().into_iter().chain(log.table.bodies()).collect();
    let counted =
        || segments.iter().map(|segment| (segment.live_bytes(), segment.live())).collect::<Vec<_>>();
    let expected = counted();
    assert!(log.table.bodies().len() > 1 && node.bodies().disk_usage().live_bytes > 0);
    let mut live: Vec<BodyAddr> = seen.lock().live.values().map(|(addr, _)| *addr).collect();
    for shuffled in [false, true] {
        if shuffled {
            (1..live.len()).for_each(|at| live.swap(at, rng.random_range(0..=at)));
        }
        log.reset_live();
        let mut census = Census::new(&log.table);
        assert!(live.iter().all(|addr| census.count(*addr)));
        // In the order of the log the table is asked about segments, not about bodies.
        assert!(shuffled || census.asked <= segments.len(), "{} times for {}", census.asked, segments.len());
        assert!(!census.count(BodyAddr { index: 1 << 40, offset: 0, len: 1 }), "there is no such entry");
        drop(census);
        assert_eq!(counted(), expected);
    }
    within(node.shutdown()).await;
}
