//! Whole clusters in one thread, from a seed: the real gateways, leaders, engines, links and logs, over disks and a
//! network in memory, in simulated time, with clients that keep an account of everything they were told.
//!
//! ```text
//!   plan (seed) ──► world: nodes ── disks, network, clocks
//!                     ▲  ▲  └── witness ──► equal hashes, one leader per term
//!        faults ──────┘  └───── clients ──► history: the oracle
//!   trace: every event with its time; two runs of a seed have the same
//! ```
//!
//! A run has three parts: clients work while faults come; then everything is mended and the clients leave; then the
//! cluster must become ready, empty itself through new clients, and agree.
//!
//! That a run repeats exactly needs a process of its own, whose randomness is that of the seed: the program `simulate`
//! sees to it (`src/bin/simulate`).

mod client;
mod faults;
mod history;
mod plan;
mod trace;
mod wire;
mod world;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use client::SimClient;
use faults::Trouble;
pub use history::Counts;
pub use plan::Plan;
use trace::Trace;
use world::World;

/// After everything was mended, all nodes serve within this time.
const READY_WITHIN: Duration = Duration::from_secs(15);
/// And the cluster is empty within this time after that.
const EMPTY_WITHIN: Duration = Duration::from_secs(60);

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The hash of all events.
    pub hash: u64,
    /// How many events there were.
    pub events: u64,
    /// How many faults there were.
    pub faults: u64,
    /// How long it took in simulated time.
    pub simulated: Duration,
    /// What clients did.
    pub counts: Counts,
    /// Everything that must not be.
    pub violations: Vec<String>,
}

/// Runs one seed, on the current thread; `print` shows every event.
#[must_use]
pub fn run(seed: u64, print: bool) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without IO needs nothing");
    runtime.block_on(simulate(seed, print))
}

async fn simulate(seed: u64, print: bool) -> Report {
    let trace = Trace::new(print);
    let plan = Plan::draw(seed);
    trace.note(format_args!("{plan:?}"));
    let (world, ended) = World::new(plan, trace.clone());
    let mut trouble = Trouble::new(world.clone(), ended);
    for id in 1..=world.plan.nodes {
        world.start(id).await;
    }
    world.history.lock().kicks = world.plan.kicks;
    let until = Instant::now() + world.plan.duration;
    let clients: Vec<_> = (0..world.plan.clients)
        .map(|name| tokio::spawn(SimClient::new(world.clone(), name, until).run()))
        .collect();
    trouble.run(until).await;
    trouble.mend().await;
    for client in clients {
        client.abort();
        if let Err(error) = client.await
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    finish(&world, &mut trouble).await;
    let (hash, events) = trace.hash();
    let counts = world.history.lock().counts;
    let simulated = world.elapsed();
    Report { hash, events, faults: trouble.faults, simulated, counts, violations: world.violations() }
}

/// Everything is well: the cluster must show it.
async fn finish(world: &Arc<World>, trouble: &mut Trouble) {
    let deadline = Instant::now() + READY_WITHIN + EMPTY_WITHIN;
    tokio::select! {
        biased;
        () = empty(world) => {}
        () = trouble.look_after(deadline + Duration::from_secs(1)) => {}
    }
    for (id, node) in world.running() {
        let bodies = node.node().bodies();
        let (damage, left) = (bodies.damage(), bodies.disk_usage().damaged_segments);
        world
            .trace
            .note(format_args!("node {id} since its start: {damage:?}, {left} damaged segments are left"));
    }
}

async fn empty(world: &Arc<World>) {
    let ready_by = Instant::now() + READY_WITHIN;
    let all_ready = || {
        let running = world.running();
        running.len() as u64 == world.plan.nodes && running.iter().all(|(_, node)| node.is_ready())
    };
    while !all_ready() {
        if Instant::now() > ready_by {
            let states: Vec<_> = world
                .running()
                .iter()
                .map(|(id, node)| (*id, node.is_ready(), node.node().status()))
                .collect();
            world.history.lock().violate(format!("not ready within {READY_WITHIN:?}: {states:?}"));
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.trace.note("all nodes are ready");
    world.history.lock().kicks = true;
    let until = Instant::now() + EMPTY_WITHIN;
    let drains: Vec<_> =
        (1..=world.plan.nodes).map(|id| tokio::spawn(client::drain(world.clone(), id, until))).collect();
    for drain in drains {
        drain.await.expect("draining does not panic");
    }
    if !client::is_empty(world) {
        let states: Vec<_> = world.running().iter().map(|(id, node)| (*id, node.state())).collect();
        world.history.lock().violate(format!("not empty within {EMPTY_WITHIN:?}: {states:?}"));
        return;
    }
    world.history.lock().check_drained();
}
