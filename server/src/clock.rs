//! The two clocks that go into batches, and where they get their time from.
//!
//! *Stamps* drive delays and pauses. They start at the later of the last stamp in the log and the wall clock, advance
//! with monotonic time, and from then on are only slewed towards the wall clock: a wall clock that jumps neither fires
//! delays early nor holds them up. The *lease clock* drives TTR. A tick adds at most one election timeout, so time in
//! which the process was frozen, and no worker could have touched its job, does not count against the worker.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where time comes from: the system, or a simulation.
pub trait TimeSource: Send + 'static {
    /// Microseconds since an arbitrary start; never runs backwards.
    fn monotonic_us(&self) -> u64;
    /// Microseconds since the Unix epoch; may jump.
    fn wall_us(&self) -> u64;
}

/// The machine's own clocks.
pub struct SystemTimeSource {
    start: Instant,
}

impl Default for SystemTimeSource {
    fn default() -> Self {
        SystemTimeSource { start: Instant::now() }
    }
}

impl TimeSource for SystemTimeSource {
    fn monotonic_us(&self) -> u64 {
        micros(self.start.elapsed())
    }
    fn wall_us(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, micros)
    }
}

/// Microseconds as a number that can be subtracted from; 292,000 years fit.
fn signed(us: u64) -> i64 {
    i64::try_from(us).unwrap_or(i64::MAX)
}

/// Microseconds of a span; 584,000 years fit.
fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// Slewing corrects at most one part in this many of the time that passed (0.05 %, as adjtime does).
const SLEW_DIVISOR: u64 = 2000;

/// One tick of the lease clock adds at most this much: the election timeout.
pub const LEASE_STEP_MAX_US: u64 = 600_000;

/// A node's clocks: those of the log while it leads, and an estimate of the leader's while it follows.
pub struct Clocks {
    source: Box<dyn TimeSource>,
    last_monotonic: u64,
    stamp: u64,
    lease: u64,
    /// The highest lease clock value that a leader has told outside the log.
    heard_lease: u64,
    leading: bool,
    /// How far other nodes' wall clocks are ahead of this node's monotonic clock, in microseconds, as far as they told.
    others: BTreeMap<u32, i64>,
    /// A leader's clock was heard in this process, so the stamp goes on from there, whatever the wall clock says.
    follows: bool,
}

impl Clocks {
    /// Clocks that have not been told where the log stands; call [`Clocks::take_office`] before stamping.
    pub fn new(source: Box<dyn TimeSource>) -> Self {
        let last_monotonic = source.monotonic_us();
        let stamp = source.wall_us();
        Clocks {
            source,
            last_monotonic,
            stamp,
            lease: 0,
            heard_lease: 0,
            leading: false,
            others: BTreeMap::new(),
            follows: false,
        }
    }

    /// This node leads from now on. Starts from the highest values that the log or an earlier leader has told, so
    /// that neither clock ever
    /// runs backwards; time that no leader counted does not count against workers.
    pub fn take_office(&mut self, last_stamp: u64, last_lease: u64) {
        self.advance();
        let start = if self.follows || self.leading { self.stamp } else { self.wall() };
        self.stamp = start.max(last_stamp);
        self.lease = last_lease.max(self.heard_lease);
        self.leading = true;
    }

    /// Another node leads. How far this node's lease clock ran meanwhile is nobody's time: it may have been cut off, while
    /// the others had a leader whose clock began later. What counted is in the log, or was told by a leader.
    pub fn leave_office(&mut self) {
        self.leading = false;
    }

    /// The leader's clocks, as it told them a moment ago.
    pub fn hear(&mut self, stamp: u64, lease: u64) {
        self.advance();
        self.follows = true;
        self.stamp = stamp;
        self.lease = lease;
        self.heard_lease = self.heard_lease.max(lease);
    }

    /// Whether it can be told what time it is without trusting this node's wall clock alone: a leader's clock was heard, or those
    /// of all `voters`.
    pub fn is_sure(&self, voters: usize) -> bool {
        self.follows || self.leading || self.others.len() + 1 >= voters
    }

    /// This node's own wall clock, in microseconds since the Unix epoch.
    pub fn own_wall(&self) -> u64 {
        self.source.wall_us()
    }

    /// Another node's wall clock, as it told a moment ago.
    pub fn hear_wall(&mut self, node: u32, wall_us: u64) {
        self.advance();
        let ahead = signed(wall_us).saturating_sub(signed(self.last_monotonic));
        self.others.insert(node, ahead);
    }

    /// The median of the wall clocks that are known, this node's own included; of two in the middle the lower one. So one
    /// clock that is wrong, be it the leader's, moves nothing.
    fn wall(&self) -> u64 {
        if self.others.is_empty() {
            return self.source.wall_us();
        }
        let mut walls: Vec<i64> =
            self.others.values().map(|ahead| ahead.saturating_add(signed(self.last_monotonic))).collect();
        walls.push(signed(self.source.wall_us()));
        walls.sort_unstable();
        u64::try_from(walls[(walls.len() - 1) / 2]).unwrap_or(0)
    }

    /// Lets both clocks follow the time that passed since the last call.
    pub fn advance(&mut self) {
        let now = self.source.monotonic_us();
        let elapsed = now - self.last_monotonic;
        self.last_monotonic = now;
        self.stamp += elapsed;
        if self.leading {
            self.slew(elapsed);
        }
        self.lease += elapsed.min(LEASE_STEP_MAX_US);
    }

    /// Moves the stamp towards the wall clock by a small part of the time that passed. It never steps, and as the
    /// correction is smaller than what `advance` added, it never runs backwards.
    fn slew(&mut self, elapsed: u64) {
        let wall = self.wall();
        let most = elapsed / SLEW_DIVISOR;
        if wall > self.stamp {
            self.stamp += most.min(wall - self.stamp);
        } else {
            self.stamp -= most.min(self.stamp - wall);
        }
    }

    /// Microseconds for delays and pauses, as of the last `advance`.
    pub fn stamp(&self) -> u64 {
        self.stamp
    }

    /// Microseconds of the lease clock, as of the last `advance`.
    pub fn lease(&self) -> u64 {
        self.lease
    }

    /// Monotonic microseconds as of the last `advance`, for timeouts of this node alone.
    pub fn monotonic(&self) -> u64 {
        self.last_monotonic
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    #[derive(Clone, Default)]
    struct Fake {
        mono: Arc<AtomicU64>,
        wall: Arc<AtomicU64>,
    }
    impl TimeSource for Fake {
        fn monotonic_us(&self) -> u64 {
            self.mono.load(SeqCst)
        }
        fn wall_us(&self) -> u64 {
            self.wall.load(SeqCst)
        }
    }
    impl Fake {
        fn pass(&self, us: u64) {
            self.mono.fetch_add(us, SeqCst);
            self.wall.fetch_add(us, SeqCst);
        }
    }

    const S: u64 = 1_000_000;

    #[test]
    fn a_wall_clock_that_jumps_forward_does_not_fire_delays_early() {
        let fake = Fake::default();
        fake.wall.store(1000 * S, SeqCst);
        let mut clocks = Clocks::new(Box::new(fake.clone()));
        clocks.take_office(0, 0);
        fake.wall.fetch_add(3600 * S, SeqCst);
        fake.pass(S);
        clocks.advance();
        assert!(clocks.stamp() < 1001 * S + S / 1000, "slewed, not stepped: {}", clocks.stamp());
    }

    #[test]
    fn a_wall_clock_that_jumps_back_never_turns_the_stamps_back() {
        let fake = Fake::default();
        fake.wall.store(1000 * S, SeqCst);
        let mut clocks = Clocks::new(Box::new(fake.clone()));
        clocks.take_office(0, 0);
        fake.wall.store(5 * S, SeqCst);
        let mut last = clocks.stamp();
        for _ in 0..100 {
            fake.pass(S / 10);
            clocks.advance();
            assert!(clocks.stamp() > last);
            last = clocks.stamp();
        }
        assert!(last > 1009 * S);
    }

    #[test]
    fn a_new_leader_starts_at_the_last_stamp_even_when_its_clock_is_behind() {
        let fake = Fake::default();
        let mut clocks = Clocks::new(Box::new(fake));
        clocks.take_office(77 * S, 5 * S);
        assert_eq!((clocks.stamp(), clocks.lease()), (77 * S, 5 * S));
    }

    #[test]
    fn time_spent_frozen_does_not_expire_jobs() {
        let fake = Fake::default();
        let mut clocks = Clocks::new(Box::new(fake.clone()));
        clocks.take_office(0, 0);
        fake.pass(60 * S);
        clocks.advance();
        assert_eq!(clocks.lease(), LEASE_STEP_MAX_US);
        assert!(clocks.stamp() >= 60 * S - S / 10);
    }

    #[test]
    fn a_leader_that_was_cut_off_and_leads_again_does_not_jump_ahead_of_its_successors_lease_clock() {
        let fake = Fake::default();
        let mut clocks = Clocks::new(Box::new(fake.clone()));
        clocks.take_office(0, 0);
        for _ in 0..50 {
            fake.pass(S / 10);
            clocks.advance();
        }
        clocks.leave_office();
        // Its successor began at 1 s, a second after the last that it had heard, and leads for 2 s.
        clocks.hear(8 * S, 3 * S);
        clocks.take_office(8 * S, 3 * S);
        assert_eq!(clocks.lease(), 3 * S);
    }

    #[test]
    fn a_follower_that_takes_over_goes_on_from_the_leaders_clock_and_not_from_its_own() {
        let fake = Fake::default();
        fake.wall.store(5000 * S, SeqCst);
        let mut clocks = Clocks::new(Box::new(fake.clone()));
        clocks.hear(1000 * S, 70 * S);
        fake.wall.fetch_add(3600 * S, SeqCst);
        fake.pass(2 * S);
        clocks.take_office(1001 * S, 69 * S);
        assert_eq!((clocks.stamp(), clocks.lease()), (1002 * S, 70 * S));
    }

    #[test]
    fn a_leader_that_never_heard_another_starts_at_the_median_of_all_clocks() {
        let fake = Fake::default();
        fake.wall.store(4600 * S, SeqCst);
        let mut clocks = Clocks::new(Box::new(fake.clone()));
        assert!(clocks.is_sure(1) && !clocks.is_sure(3));
        clocks.hear_wall(2, 1000 * S);
        assert!(!clocks.is_sure(3));
        clocks.hear_wall(3, 1001 * S);
        assert!(clocks.is_sure(3));
        clocks.take_office(900 * S, 0);
        assert_eq!(clocks.stamp(), 1001 * S);
    }

    #[test]
    fn a_leader_whose_own_clock_is_wrong_follows_the_others() {
        let fake = Fake::default();
        fake.wall.store(1000 * S, SeqCst);
        let mut clocks = Clocks::new(Box::new(fake.clone()));
        clocks.hear_wall(2, 1000 * S);
        clocks.hear_wall(3, 1001 * S);
        clocks.take_office(0, 0);
        fake.wall.fetch_add(3600 * S, SeqCst);
        for _ in 0..36_000 {
            fake.pass(S);
            clocks.advance();
        }
        // Ten hours by a clock that is an hour ahead would have been 18 s of slewing; the median is the one a second ahead.
        let expected = 37_000 * S;
        assert!((expected..expected + 2 * S).contains(&clocks.stamp()), "{}", clocks.stamp());
    }
}
