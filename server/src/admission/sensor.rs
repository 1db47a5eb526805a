//! Readings, one after the other: on a thread of its own, so that the thread that serves clients and keeps the lease never waits
//! for the files that they come from.
//!
//! ```text
//!   bounds ── every 10 s ──► limits ─┐
//!   /proc, cgroup, own counters ─────┴──► worst Reading ──► Gate ──► Stance ──► gateway, report, log line, event
//!         every 50 ms when there is little room, and until clients are served, else every 250 ms
//! ```

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::bounds::{Bound, System};
use super::conditions::Alarms;
use super::events::Events;
use super::gate::{Gate, Marks, Reading, Stance, State};
use crate::node::Shared;
use crate::units::mib;

/// How often the limits are read.
const BOUNDS_EVERY: Duration = Duration::from_secs(10);
/// How often memory is read while there is plenty of room.
const READ_EVERY: Duration = Duration::from_millis(250);
/// The same when there is less than [`NEAR_MARKS`] times the room at which shedding begins: a fast producer's index grows by some
/// 80 MB/s.
const READ_EVERY_NEAR: Duration = Duration::from_millis(50);
const NEAR_MARKS: u64 = 3;

/// Bytes that grow with what clients do, by our own counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Jobs, tubes and reservations.
    pub index: u64,
    /// Records kept for a snapshot that is being taken.
    pub snapshot: u64,
    /// Batches that are open, or on their way and not applied.
    pub batches: u64,
    /// What clients sent and is not decoded.
    pub reads: u64,
    /// Replies that clients have not taken.
    pub replies: u64,
    /// The log's ring of recent entries.
    pub ring: u64,
    /// Entries proposed and not applied.
    pub proposed: u64,
}

impl Parts {
    /// Each with its name.
    pub fn each(&self) -> [(&'static str, u64); 7] {
        [
            ("index", self.index),
            ("snapshot", self.snapshot),
            ("batches", self.batches),
            ("reads", self.reads),
            ("replies", self.replies),
            ("ring", self.ring),
            ("proposed", self.proposed),
        ]
    }
}

/// What the allocator says, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocator {
    /// In use by the program.
    pub allocated: u64,
    /// In pages of which some part is in use.
    pub active: u64,
    /// Backed by memory.
    pub resident: u64,
}

/// The newest figures, for operators.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// The limit that is nearest, and what is used of it.
    pub reading: Reading,
    /// Who sets that limit; empty before the first reading.
    pub source: String,
    /// What this process's puts meet on account of its own memory.
    pub stance: Stance,
    /// Memory of this process that cannot be taken back, in bytes.
    pub own: u64,
    /// The allocator's figures.
    pub allocator: Allocator,
    /// Our own counters.
    pub parts: Parts,
    /// How often the state has changed.
    pub changes: u64,
}

/// What a node knows of its memory, and decides by it.
pub struct Admission {
    memory: Mutex<Memory>,
    own: watch::Sender<Stance>,
    /// What happened, for operators.
    pub events: Arc<Events>,
    /// What is wrong and not over.
    pub alarms: Alarms,
}

impl Default for Admission {
    fn default() -> Self {
        Admission {
            memory: Mutex::default(),
            own: watch::Sender::new(Stance::default()),
            events: Arc::default(),
            alarms: Alarms::default(),
        }
    }
}

impl Admission {
    /// The newest figures.
    pub fn memory(&self) -> Memory {
        self.memory.lock().clone()
    }

    /// What this node's own memory allows.
    pub fn own(&self) -> Stance {
        *self.own.borrow()
    }

    /// Tells each change of it.
    pub fn watch_own(&self) -> watch::Receiver<Stance> {
        self.own.subscribe()
    }
}

/// What makes readings.
pub struct Sensor {
    system: System,
    setting: Option<u64>,
    bounds: Vec<Bound>,
    bounds_read: Instant,
    began: Instant,
    /// The budget that clients' buffers are limited for.
    limited_for: u64,
    gate: Gate,
}

impl Sensor {
    fn new(system: System, setting: Option<u64>) -> Sensor {
        let now = Instant::now();
        let bounds = system.bounds(setting);
        let gate = Gate::default();
        Sensor { system, setting, bounds, bounds_read: now, began: now, limited_for: 0, gate }
    }

    /// The limit that leaves least room next to what each state needs, and the reading of it.
    fn nearest(&mut self, own: u64) -> Option<(Bound, Reading)> {
        if self.bounds_read.elapsed() >= BOUNDS_EVERY {
            self.bounds = self.system.bounds(self.setting);
            self.bounds_read = Instant::now();
        }
        let read = |bound: &Bound| {
            let (used, stalled) = (self.system.used(bound, own), self.system.stalled(bound));
            (bound.clone(), Reading { budget: bound.limit, used, stalled })
        };
        self.bounds.iter().map(read).min_by_key(|(bound, reading)| {
            // In thousandths of the reserve: rooms next to different limits compare by what they are good for.
            (reading.room().saturating_mul(1000) / Marks::of(bound.limit).closed_below, bound.limit)
        })
    }

    /// Makes one reading and acts on it. Answers when the next one is due.
    fn read(&mut self, shared: &Shared) -> Duration {
        let own = self.system.own();
        let Some((bound, reading)) = self.nearest(own) else { return READ_EVERY };
        let now_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let stance = self.gate.read(now_ms, &reading);
        let parts = shared.memory_parts();
        let before = {
            let mut memory = shared.admission.memory.lock();
            let before = memory.stance.state;
            let changes = memory.changes + u64::from(before != stance.state);
            let source = bound.source.to_string();
            *memory = Memory { reading, source, stance, own, allocator: allocator(), parts, changes };
            before
        };
        if before != stance.state {
            tell_change(shared, before, stance.state, &bound, &reading, &parts);
        }
        if self.limited_for != reading.budget {
            self.limited_for = reading.budget;
            shared.set_buffer_limits(reading.budget);
        }
        shared.admission.own.send_if_modified(|known| std::mem::replace(known, stance) != stance);
        shared.heed_own_stance();
        let near = reading.room() < NEAR_MARKS * Marks::of(reading.budget).shedding_below;
        // Puts are taken from the moment that the index is there: how much it takes must be known then.
        if near || !shared.gateway.lock().is_serving() { READ_EVERY_NEAR } else { READ_EVERY }
    }
}

/// One line and one event, with numbers and what to do.
fn tell_change(shared: &Shared, before: State, now: State, bound: &Bound, reading: &Reading, parts: &Parts) {
    let text = format!(
        "memory: {} -> {}: {} of {} in use ({}), {} left, {} of it by the index; {}",
        before.as_str(),
        now.as_str(),
        mib(reading.used),
        mib(reading.budget),
        bound.source,
        mib(reading.room()),
        mib(parts.index),
        advice(now)
    );
    match now {
        State::Open => tracing::info!("{text}"),
        State::Shedding | State::Closed => tracing::warn!("{text}"),
    }
    shared.admission.events.note("memory", text);
}

fn advice(now: State) -> &'static str {
    match now {
        State::Open => "puts are taken again, slowly at first",
        State::Shedding => "puts are slowed; add workers, or raise the limit",
        State::Closed => {
            "puts are answered OUT_OF_MEMORY, everything else works; let workers empty the queue, or raise the limit"
        }
    }
}

/// What the allocator says now; zeros if it does not.
fn allocator() -> Allocator {
    use tikv_jemalloc_ctl::{epoch, stats};
    let advanced = epoch::advance().is_ok();
    let read =
        |value: tikv_jemalloc_ctl::Result<usize>| value.ok().filter(|_| advanced).map_or(0, |v| v as u64);
    Allocator {
        allocated: read(stats::allocated::read()),
        active: read(stats::active::read()),
        resident: read(stats::resident::read()),
    }
}

/// Makes the first reading at once, and more on a thread of its own until the node is gone. `setting`: a limit of its own, in
/// bytes.
///
/// # Errors
/// When the thread cannot be started.
pub fn watch(shared: &Arc<Shared>, setting: Option<u64>) -> std::io::Result<()> {
    // Memory that was freed goes back to the kernel while nobody allocates, too: a node whose queue was emptied must open again.
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        tracing::warn!(%error, "freed memory may be given back late");
    }
    let mut sensor = Sensor::new(System::real(), setting);
    let mut pause = sensor.read(shared);
    for bound in &sensor.bounds {
        tracing::debug!(limit = mib(bound.limit), source = %bound.source, "memory limit");
    }
    tell_budget(shared, &sensor);
    let node: Weak<Shared> = Arc::downgrade(shared);
    std::thread::Builder::new().name("memory".into()).spawn(move || {
        loop {
            std::thread::sleep(pause);
            let Some(shared) = node.upgrade() else { return };
            pause = sensor.read(&shared);
        }
    })?;
    Ok(())
}

/// What this node may use, and whether an earlier one was killed for using more.
fn tell_budget(shared: &Shared, sensor: &Sensor) {
    let memory = shared.admission.memory();
    let marks = Marks::of(memory.reading.budget);
    tracing::info!(
        budget = mib(memory.reading.budget),
        source = memory.source,
        used = mib(memory.reading.used),
        slows_puts_from = mib(memory.reading.budget.saturating_sub(marks.shedding_below)),
        refuses_puts_from = mib(memory.reading.budget.saturating_sub(marks.closed_below)),
        "memory budget"
    );
    for bound in &sensor.bounds {
        let kills = sensor.system.oom_kills(bound);
        if kills > 0 {
            let text = format!(
                "{} has seen {kills} OOM kills; puts are refused before that, but other processes in it count too",
                bound.source
            );
            tracing::warn!("{text}");
            shared.admission.events.note("memory", text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allocator_tells_what_a_test_allocates() {
        let before = allocator();
        // Far more than other tests give back meanwhile; never touched, so it costs nothing.
        let block = Vec::<u8>::with_capacity(1 << 30);
        let after = allocator();
        assert!(
            after.allocated >= before.allocated + (900 << 20),
            "{before:?} {after:?} {}",
            block.capacity()
        );
        assert!(after.active >= after.allocated && after.resident > 0);
    }

    #[test]
    fn the_nearest_limit_is_the_one_that_leaves_least() {
        let mut sensor = Sensor::new(System::real(), Some(1 << 50));
        let (bound, _) = sensor.nearest(1 << 20).unwrap();
        assert_ne!(bound.limit, 1 << 50);
        sensor.setting = Some(2 << 20);
        sensor.bounds = sensor.system.bounds(sensor.setting);
        let (bound, reading) = sensor.nearest(3 << 20).unwrap();
        assert_eq!((bound.limit, reading.used, reading.room()), (2 << 20, 3 << 20, 0));
    }
}
