//! The two clocks that go into batches, and where they get their time from.
//!
//! *Stamps* drive delays and pauses. They start at the later of the last stamp in the log and the wall clock, advance
//! with monotonic time, and from then on are only slewed towards the wall clock: a wall clock that jumps neither fires
//! delays early nor holds them up. The *lease clock* drives TTR. It counts only time in which a worker could have touched its
//! job: a tick adds at most one election timeout, however long the process was frozen, and a leader that no quorum confirms
//! counts nothing.
//!
//! A leader goes on where its predecessor was, as far as that is known: from the log, and from what the predecessor told
//! outside of it. Clocks of leaders further back are void, for they may have run ahead of where the predecessor began:
//!
//! ```text
//!   term 1   9.0 ──── 10.0 told to node 3 ─ 10.1 dies
//!   term 2             node 2 knows of 9.5:  9.5 ── 9.7 hands out a job, TTR 1 s ── dies
//!   term 3                                              node 3: 9.7, not 10.0, or the job's TTR would be 0.3 s shorter
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::gateway::lease::RENEW_EVERY_US;

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

/// How long a leader's lease clock goes on after a renewal was sent that a quorum confirmed: until the next one must have
/// been confirmed, on a network that answers within an election timeout.
const QUORUM_HOLDS_US: u64 = RENEW_EVERY_US + LEASE_STEP_MAX_US;

/// The clocks of a leader, as far as this node has heard of them outside the log, or was that leader.
#[derive(Clone, Copy)]
struct Heard {
    term: u64,
    /// The highest value of its lease clock.
    lease: u64,
}

/// A node's clocks: those of the log while it leads, and an estimate of the leader's while it follows.
pub struct Clocks {
    source: Box<dyn TimeSource>,
    last_monotonic: u64,
    stamp: u64,
    lease: u64,
    /// The newest leader that was heard in this process. The stamp goes on from its, whatever the wall clock says.
    heard: Option<Heard>,
    /// The term that this node leads.
    leads: Option<u64>,
    /// The term of the newest entry that has applied, and the term before that one.
    applied_terms: (u64, u64),
    /// Until when, in monotonic microseconds, a quorum's confirmation holds. None: no other node has a say.
    confirmed_until: Option<u64>,
    /// How far other nodes' wall clocks are ahead of this node's monotonic clock, in microseconds, as far as they told.
    others: BTreeMap<u32, i64>,
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
            heard: None,
            leads: None,
            applied_terms: (0, 0),
            confirmed_until: None,
            others: BTreeMap::new(),
        }
    }

    /// Other nodes have a say from now on: a leader's lease clock counts nothing without a quorum.
    pub fn need_quorum(&mut self) {
        self.confirmed_until.get_or_insert(self.last_monotonic);
    }

    /// A quorum has confirmed that there was no other leader when a renewal was sent, at `sent` in monotonic microseconds.
    pub fn confirm(&mut self, sent: u64) {
        self.advance();
        if let Some(until) = &mut self.confirmed_until {
            *until = (sent + QUORUM_HOLDS_US).max(*until);
        }
    }

    /// Entries of this term apply from now on.
    pub fn term_began(&mut self, term: u64) {
        self.applied_terms = (term, self.applied_terms.0);
    }

    /// This node leads `term` from now on, and has applied an entry of it. Starts from the highest values that the log or its
    /// predecessor has told, so that neither clock ever runs backwards; time that no leader counted does not count against
    /// workers. When it has led this term before, it goes on.
    pub fn take_office(&mut self, term: u64, last_stamp: u64, last_lease: u64) {
        self.advance();
        self.note_own();
        let predecessor = self.heard.filter(|heard| heard.term >= self.last_term_before(term));
        // Stamps of all leaders are near to each other, and any of them is better than one wall clock that is wrong.
        let stamp = if self.heard.is_some() { self.stamp } else { self.wall() };
        self.stamp = stamp.max(last_stamp);
        self.lease = predecessor.map_or(0, |heard| heard.lease).max(last_lease);
        self.leads = Some(term);
    }

    /// The newest term before this one in which a leader took office: its first entry has applied here.
    fn last_term_before(&self, term: u64) -> u64 {
        let (newest, before) = self.applied_terms;
        if newest < term { newest } else { before }
    }

    /// What this node counted while it led is known like what another leader tells.
    fn note_own(&mut self) {
        if let Some(term) = self.leads {
            self.heard = Some(Heard { term, lease: self.lease });
        }
    }

    /// This node leads no longer.
    pub fn leave_office(&mut self) {
        self.advance();
        self.note_own();
        self.leads = None;
    }

    /// The clocks of the leader of `term`, as it told them a moment ago. Nothing, if a later one was heard.
    pub fn hear(&mut self, term: u64, stamp: u64, lease: u64) {
        self.advance();
        let before = self.heard.map_or(0, |heard| heard.term);
        if term < before {
            return;
        }
        let highest = self.heard.filter(|_| term == before).map_or(lease, |heard| heard.lease.max(lease));
        self.heard = Some(Heard { term, lease: highest });
        self.stamp = stamp;
        self.lease = lease;
    }

    /// Whether it can be told what time it is without trusting this node's wall clock alone: a leader's clock was heard, or those
    /// of all `voters`.
    pub fn is_sure(&self, voters: usize) -> bool {
        self.heard.is_some() || self.leads.is_some() || self.others.len() + 1 >= voters
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
        let before = std::mem::replace(&mut self.last_monotonic, now);
        let elapsed = now - before;
        self.stamp += elapsed;
        let mut counts = elapsed;
        if self.leads.is_some() {
            self.slew(elapsed);
            counts = self.confirmed_until.map_or(elapsed, |until| until.clamp(before, now) - before);
        }
        self.lease += counts.min(LEASE_STEP_MAX_US);
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
        clocks.take_office(1, 0, 0);
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
        clocks.take_office(1, 0, 0);
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
        clocks.take_office(1, 77 * S, 5 * S);
        assert_eq!((clocks.stamp(), clocks.lease()), (77 * S, 5 * S));
    }

    #[test]
    fn time_spent_frozen_does_not_expire_jobs() {
        let fake = Fake::default();
        let mut clocks = Clocks::new(Box::new(fake.clone()));
        clocks.take_office(1, 0, 0);
        fake.pass(60 * S);
        clocks.advance();
        assert_eq!(clocks.lease(), LEASE_STEP_MAX_US);
        assert!(clocks.stamp() >= 60 * S - S / 10);
    }

    #[test]
    fn a_leader_that_was_cut_off_and_leads_again_does_not_jump_ahead_of_its_successors_lease_clock() {
        let fake = Fake::default();
        let mut clocks = Clocks::new(Box::new(fake.clone()));
        clocks.take_office(1, 0, 0);
        for _ in 0..50 {
            fake.pass(S / 10);
            clocks.advance();
        }
        clocks.leave_office();
        // Its successor began at 1 s, a second after the last that it had heard, and leads for 2 s.
        clocks.term_began(2);
        clocks.hear(2, 8 * S, 3 * S);
        clocks.term_began(3);
        clocks.take_office(3, 8 * S, 3 * S);
        assert_eq!(clocks.lease(), 3 * S);
    }

    #[test]
    fn what_a_leader_told_is_void_once_another_one_has_written() {
        let fake = Fake::default();
        let mut clocks = Clocks::new(Box::new(fake.clone()));
        clocks.term_began(1);
        clocks.hear(1, 1000 * S, 10 * S);
        // The second leader had heard less, so it began at 9 s; it was gone before it told this node anything.
        clocks.term_began(2);
        fake.pass(S);
        // This node's wall clock is wrong, and nobody has told another one: the stamps go on all the same.
        fake.wall.fetch_add(3600 * S, SeqCst);
        clocks.term_began(3);
        clocks.take_office(3, 1000 * S, 9 * S + S / 10);
        assert_eq!((clocks.stamp(), clocks.lease()), (1001 * S, 9 * S + S / 10));
        // Nor does a word of the first one that was long on its way count now.
        clocks.leave_office();
        clocks.hear(1, 1003 * S, 12 * S);
        clocks.term_began(4);
        clocks.take_office(4, 1000 * S, 9 * S);
        assert_eq!(clocks.lease(), 9 * S + S / 10);
    }

    #[test]
    fn a_leader_that_takes_office_again_in_its_term_goes_on_from_its_own_clocks() {
        let fake = Fake::default();
        fake.wall.store(1000 * S, SeqCst);
        let mut clocks = Clocks::new(Box::new(fake.clone()));
        clocks.term_began(1);
        clocks.take_office(1, 0, 5 * S);
        fake.pass(S / 2);
        // Its last entry in the log is older than what it has told others since.
        clocks.take_office(1, 1000 * S, 5 * S);
        assert_eq!((clocks.stamp(), clocks.lease()), (1000 * S + S / 2, 5 * S + S / 2));
    }

    #[test]
    fn a_leader_that_no_quorum_confirms_counts_no_time_against_workers() {
        let fake = Fake::default();
        let mut clocks = Clocks::new(Box::new(fake.clone()));
        clocks.need_quorum();
        clocks.take_office(1, 0, 5 * S);
        let pass = |clocks: &mut Clocks| {
            for _ in 0..50 {
                fake.pass(S / 10);
                clocks.advance();
            }
        };
        pass(&mut clocks);
        assert_eq!((clocks.stamp(), clocks.lease()), (5 * S, 5 * S));
        clocks.confirm(clocks.monotonic() - S / 10);
        pass(&mut clocks);
        assert_eq!(clocks.lease(), 5 * S + QUORUM_HOLDS_US - S / 10);
    }

    #[test]
    fn a_follower_that_takes_over_goes_on_from_the_leaders_clock_and_not_from_its_own() {
        let fake = Fake::default();
        fake.wall.store(5000 * S, SeqCst);
        let mut clocks = Clocks::new(Box::new(fake.clone()));
        clocks.hear(1, 1000 * S, 70 * S);
        fake.wall.fetch_add(3600 * S, SeqCst);
        fake.pass(2 * S);
        clocks.take_office(2, 1001 * S, 69 * S);
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
        clocks.take_office(1, 900 * S, 0);
        assert_eq!(clocks.stamp(), 1001 * S);
    }

    #[test]
    fn a_leader_whose_own_clock_is_wrong_follows_the_others() {
        let fake = Fake::default();
        fake.wall.store(1000 * S, SeqCst);
        let mut clocks = Clocks::new(Box::new(fake.clone()));
        clocks.hear_wall(2, 1000 * S);
        clocks.hear_wall(3, 1001 * S);
        clocks.take_office(1, 0, 0);
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
