//! What goes wrong: drawn from the seed, one thing after the other, and mended after a while.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use beanpole_raft::Disk;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::plan::stream;
use super::world::{DIR, Death, World, address};

/// An hour, by which clocks jump, in microseconds.
const HOUR_US: i64 = 3_600_000_000;

/// Bits change behind the start of a file, which a start needs.
const ROT_FROM: u64 = 256;

/// Something that was left for later.
#[derive(Clone, Copy, Debug)]
enum Later {
    Start(u64),
    Heal(u64, u64),
    Weather,
    SpeedUp(u64),
    Clock(u64),
}

/// Brings trouble to a world.
pub struct Trouble {
    world: Arc<World>,
    rng: StdRng,
    ended: mpsc::UnboundedReceiver<(u64, u64)>,
    /// What is to be done when; numbered, as several things may be due at once.
    later: BTreeMap<(Instant, u64), Later>,
    noted: u64,
    /// How many faults there were.
    pub faults: u64,
}

impl Trouble {
    /// Trouble for `world`, whose nodes that end by themselves are told through `ended`.
    #[must_use]
    pub fn new(world: Arc<World>, ended: mpsc::UnboundedReceiver<(u64, u64)>) -> Self {
        let rng = stream(world.plan.seed, 1);
        Self { world, rng, ended, later: BTreeMap::new(), noted: 0, faults: 0 }
    }

    /// Makes trouble until `until`.
    pub async fn run(&mut self, until: Instant) {
        let mut next = self.next_fault();
        loop {
            let due = self.later.first_key_value().map_or(next, |((at, _), _)| next.min(*at)).min(until);
            tokio::select! {
                biased;
                Some((id, life)) = self.ended.recv() => self.ended(id, life),
                () = sleep_until(due) => {}
            }
            self.do_due().await;
            if Instant::now() >= until {
                return;
            }
            if Instant::now() >= next {
                self.one().await;
                next = self.next_fault();
            }
        }
    }

    /// Mends everything and starts all nodes.
    pub async fn mend(&mut self) {
        let world = self.world.clone();
        world.trace.note("everything is mended");
        self.later.clear();
        world.hub.heal_all();
        world.hub.set_weather(world.plan.delay_max.min(Duration::from_millis(2)), 0.0);
        for id in 1..=world.plan.nodes {
            world.set_clock(id, 0);
            if world.disk(id).has_failed() {
                // The node may not have noticed, if it wrote nothing that it needs.
                world.crash(id, Death::Power(self.rng.random()));
            }
            loop {
                world.disk(id).be_well();
                if world.start(id).await {
                    break;
                }
            }
        }
    }

    /// Starts nodes again that end by themselves although nothing is wrong any more, until `until`.
    pub async fn look_after(&mut self, until: Instant) {
        while let Ok(Some((id, life))) = tokio::time::timeout_at(until, self.ended.recv()).await {
            if self.world.life(id) == life {
                let seed = self.rng.random();
                self.world.crash(id, Death::Power(seed));
                self.world.start(id).await;
            }
        }
    }

    fn next_fault(&mut self) -> Instant {
        Instant::now() + self.rng.random_range(Duration::from_millis(50)..=self.world.plan.calm_max)
    }

    fn later(&mut self, most: Duration, what: Later) {
        self.noted += 1;
        let at = Instant::now() + self.rng.random_range(Duration::from_millis(20)..=most);
        self.later.insert((at, self.noted), what);
    }

    async fn do_due(&mut self) {
        while let Some(((at, _), _)) = self.later.first_key_value()
            && *at <= Instant::now()
            && let Some((_, what)) = self.later.pop_first()
        {
            self.world.trace.note(format_args!("mended: {what:?}"));
            match what {
                Later::Start(id) => {
                    if !self.world.start(id).await {
                        self.later(Duration::from_secs(1), Later::Start(id));
                    }
                }
                Later::Heal(a, b) => self.world.hub.heal(&address(a), &address(b)),
                Later::Weather => self.world.hub.set_weather(self.world.plan.delay_max, self.world.plan.loss),
                Later::SpeedUp(id) => self.world.disk(id).slow_down(self.world.plan.disk_latency, self.noted),
                Later::Clock(id) => self.world.set_clock(id, 0),
            }
        }
    }

    /// A node has ended by itself, its disk having failed: that is the end of its process.
    fn ended(&mut self, id: u64, life: u64) {
        if self.world.life(id) == life {
            let seed = self.rng.random();
            self.world.crash(id, Death::Power(seed));
            self.later(Duration::from_secs(3), Later::Start(id));
        }
    }

    /// One fault.
    async fn one(&mut self) {
        self.faults += 1;
        if self.world.plan.rots.is_some() && self.rng.random_bool(0.4) {
            self.rot();
        }
        let id = self.rng.random_range(1..=self.world.plan.nodes);
        match self.rng.random_range(0..100) {
            0..16 => self.crash(id),
            16..20 => self.crash_all(),
            20..26 => self.power_fails_in_a_write(id),
            26..29 => self.sync_fails(id),
            29..39 => self.cut(id),
            39..50 => self.isolate(id),
            50..56 => self.cut_one_way(id),
            56..66 => self.hand_over(id).await,
            66..73 => self.jump(),
            73..80 => self.slow_disk(id),
            80..86 => self.bad_weather(),
            86..92 => self.break_connections(id),
            92..97 => self.stop(id).await,
            _ => self.snapshot(id).await,
        }
    }

    fn note(&self, what: impl std::fmt::Display) {
        self.world.trace.note(format_args!("fault: {what}"));
    }

    fn crash(&mut self, id: u64) {
        let death = if self.rng.random() { Death::Kill } else { Death::Power(self.rng.random()) };
        if self.world.crash(id, death) {
            self.later(Duration::from_secs(7), Later::Start(id));
        }
    }

    fn crash_all(&mut self) {
        self.note("the power goes everywhere");
        for id in 1..=self.world.plan.nodes {
            let seed = self.rng.random();
            if self.world.crash(id, Death::Power(seed)) {
                self.later(Duration::from_secs(2), Later::Start(id));
            }
        }
    }

    /// The node finds out when it touches its disk.
    fn power_fails_in_a_write(&mut self, id: u64) {
        let changes = self.rng.random_range(0..40);
        self.note(format_args!("power of node {id} goes after {changes} changes"));
        self.world.disk(id).cut_after(changes);
    }

    fn sync_fails(&mut self, id: u64) {
        let successes = self.rng.random_range(0..20);
        self.note(format_args!("a sync of node {id} fails after {successes}"));
        self.world.disk(id).fail_sync_after(successes);
    }

    fn other(&mut self, id: u64) -> u64 {
        let nodes = self.world.plan.nodes;
        (id + self.rng.random_range(1..nodes) - 1) % nodes + 1
    }

    fn cut(&mut self, id: u64) {
        let other = self.other(id);
        self.note(format_args!("nothing passes between {id} and {other}"));
        self.world.hub.cut(&address(id), &address(other));
        self.later(Duration::from_secs(8), Later::Heal(id, other));
    }

    fn cut_one_way(&mut self, id: u64) {
        let other = self.other(id);
        self.note(format_args!("nothing passes from {id} to {other}"));
        self.world.hub.cut_one_way(&address(id), &address(other));
        self.later(Duration::from_secs(8), Later::Heal(id, other));
    }

    /// A node that is cut off from all others, wholly or in one direction.
    fn isolate(&mut self, id: u64) {
        let way = self.rng.random_range(0..4);
        self.note(format_args!("node {id} is cut off, way {way}"));
        let most = Duration::from_millis([500, 3000, 9000][self.rng.random_range(0..3)]);
        for other in (1..=self.world.plan.nodes).filter(|other| *other != id) {
            let (here, there) = (address(id), address(other));
            match way {
                0 => self.world.hub.cut_one_way(&here, &there),
                1 => self.world.hub.cut_one_way(&there, &here),
                _ => self.world.hub.cut(&here, &there),
            }
            self.later(most, Later::Heal(id, other));
        }
    }

    async fn hand_over(&mut self, id: u64) {
        let leader =
            self.world.running().into_iter().find(|(own, node)| node.node().status().leader == Some(*own));
        let Some((leader, node)) = leader else { return };
        self.note(format_args!("{leader} hands over to {id}"));
        let to = self.rng.random_bool(0.8).then_some(id);
        let handed = tokio::time::timeout(Duration::from_secs(1), node.node().transfer_leader(to)).await;
        self.world.trace.note(format_args!("handed over: {}", matches!(handed, Ok(Ok(_)))));
    }

    fn jump(&mut self) {
        let id = self.world.plan.odd_clock;
        let ahead = if self.rng.random() { HOUR_US } else { -HOUR_US };
        self.note(format_args!("the clock of node {id} jumps by {ahead} us"));
        self.world.set_clock(id, ahead);
        self.later(Duration::from_secs(10), Later::Clock(id));
    }

    fn slow_disk(&mut self, id: u64) {
        let most = Duration::from_millis([20, 200, 1500][self.rng.random_range(0..3)]);
        self.note(format_args!("the disk of node {id} takes up to {most:?}"));
        self.world.disk(id).slow_down(most, self.noted);
        self.later(Duration::from_secs(5), Later::SpeedUp(id));
    }

    fn bad_weather(&mut self) {
        let delay = Duration::from_millis([20, 80, 250][self.rng.random_range(0..3)]);
        let loss = [0.0, 0.02, 0.1][self.rng.random_range(0..3)];
        self.note(format_args!("the network takes up to {delay:?} and loses {loss}"));
        self.world.hub.set_weather(delay, loss);
        self.later(Duration::from_secs(5), Later::Weather);
    }

    fn break_connections(&mut self, id: u64) {
        let other = self.other(id);
        self.note(format_args!("connections between {id} and {other} break"));
        self.world.hub.break_between(&address(id), &address(other));
    }

    async fn stop(&mut self, id: u64) {
        if self.world.stop(id).await {
            self.later(Duration::from_secs(3), Later::Start(id));
        }
    }

    /// A bit changes in a file of bodies. Not at its ends, and not in the log: a start would be refused for that, as it should.
    fn rot(&mut self) {
        let Some(id) = self.world.plan.rots else { return };
        let disk = self.world.disk(id);
        let mut names = disk.list(Path::new(DIR)).unwrap_or_default();
        names.retain(|name| name.ends_with(".body"));
        names.sort();
        if names.is_empty() {
            return;
        }
        let path = Path::new(DIR).join(&names[self.rng.random_range(0..names.len())]);
        let len = disk.read(&path).map_or(0, |bytes| bytes.len() as u64);
        if len < 2 * ROT_FROM {
            return;
        }
        let at = self.rng.random_range(ROT_FROM.max(len / 8)..=len / 2);
        self.note(format_args!("a bit at {at} of {} of node {id} changes", path.display()));
        disk.flip(&path, at);
        // Much is in memory still, so that few reads would meet it.
        if let Some(node) = self.world.node(id) {
            node.node().scrub();
        }
    }

    async fn snapshot(&mut self, id: u64) {
        let Some(node) = self.world.node(id) else { return };
        let taken = tokio::time::timeout(Duration::from_secs(1), node.node().snapshot_now()).await;
        self.note(format_args!("snapshot of node {id}: {}", matches!(taken, Ok(Ok(_)))));
    }
}
