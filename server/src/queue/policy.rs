//! Limits and rules for tubes, set by operators. Without any, a tube behaves as beanstalkd's do.
//!
//! ```text
//!   put ──► input paused? hops? jobs? bytes? rate? ── one says no ──► refused, nothing changes
//!   ready ─► output paused? as many reserved as may be? ── yes ──► is not handed out
//!   release, time out, disconnect ─► delivered too often? ── yes ──► dead tube, or buried
//!                                                        └── no ───► ready, after the back-off
//!   older than the age ─► dead tube, or gone          looked for by a sweep over the tube, in slices (see `bulk`)
//! ```
//!
//! A policy is for one tube by name, or for all whose names begin so: `mails-*`. Of several the exact name counts, else
//! the longest beginning; they are not mixed. What a tube has counted is kept with the tube, and goes with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::batch::BODY_OVERHEAD;
use super::bulk::Bulk;
use super::decode::Put;
use super::engine::{Engine, Run};
use super::moves::micros;
use super::runs::Runs;
use super::tubes::{ReadyKey, TimeKey, Tube};
use super::types::SessionId;

/// Policies in force, at most; one more is ignored.
pub const POLICIES_MAX: usize = 256;
/// A job may be so much older than its tube's `max-age`, as a part of that age ...
const SWEEP_PART: u64 = 16;
/// ... or this many microseconds, whichever is more, before a sweep finds it.
const SWEEP_EVERY_US: u64 = 1_000_000;
/// Of a session that holds more jobs than this, those are looked at for their hops that end first.
const HELD_LOOKS_MAX: usize = 64;
/// Tubes told of that have jobs that are ready for too long.
const LATE_MAX: usize = 64;
/// Priorities of a tube that are looked at for the job that is ready for the longest time.
const PRIORITIES_LOOKED_AT: usize = 64;
/// Puts of a second may come at once.
const BURST_NS: u64 = 1_000_000_000;

/// Limits and rules; 0 or none is off.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Policy {
    /// A job that comes back after so many deliveries is not handed out again.
    pub max_deliveries: u32,
    /// Where such jobs go, and those that are too old; without it they are buried, and dropped.
    pub dead_tube: Option<Arc<str>>,
    /// A job that comes back waits for so many milliseconds after the first delivery, twice as long after each further one ...
    pub backoff_min_ms: u64,
    /// ... but not longer than this ...
    pub backoff_max_ms: u64,
    /// ... and up to so many percent longer or shorter, by its id, so that not all come at once.
    pub backoff_jitter: u8,
    /// So many jobs are reserved at once, in the whole cluster. `reserve-job` counts, and is not held up.
    pub max_reserved: u64,
    /// Jobs in the tube, in whatever state.
    pub max_jobs: u64,
    /// Bytes of the bodies of these jobs.
    pub max_bytes: u64,
    /// Jobs put in a second; as many may come at once.
    pub max_put_rate: u32,
    /// Milliseconds since its `put`.
    pub max_age_ms: u64,
    /// Milliseconds that a job may be ready before an alarm says so. Nothing else follows from it.
    pub alarm_ready_age_ms: u64,
    /// A put on a connection that holds a job is a hop more than that job; beyond so many it is refused.
    pub max_hops: u8,
    /// Puts are refused.
    pub pause_input: bool,
    /// Nothing is handed out.
    pub pause_output: bool,
}

/// Why a job is where it is: what a policy did with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Reason {
    /// No policy did anything.
    #[default]
    None,
    /// It was delivered too often.
    MaxDeliveries,
    /// It was too old.
    MaxAge,
}

impl Reason {
    /// The word of `stats-job`; none if there is no reason.
    #[must_use]
    pub fn as_str(self) -> Option<&'static str> {
        match self {
            Reason::None => None,
            Reason::MaxDeliveries => Some("max-deliveries"),
            Reason::MaxAge => Some("max-age"),
        }
    }

    pub(super) fn code(self) -> u8 {
        match self {
            Reason::None => 0,
            Reason::MaxDeliveries => 1,
            Reason::MaxAge => 2,
        }
    }

    pub(super) fn of_code(code: u8) -> Option<Self> {
        [Reason::None, Reason::MaxDeliveries, Reason::MaxAge].into_iter().find(|reason| reason.code() == code)
    }
}

/// What policies did with a tube's jobs, since the tube was created.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Puts that were refused.
    pub refused: u64,
    /// Jobs that were delivered too often.
    pub dead: u64,
    /// Jobs that were too old.
    pub expired: u64,
}

/// What few tubes have: kept by birth, in a table of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Extra {
    pub tally: Tally,
    /// When the puts so far are paid for at the tube's rate, in nanoseconds of the stamp's time.
    pub paid_ns: u64,
    /// When a sweep looks for old jobs; 0 while none is needed.
    pub sweep_at: u64,
}

/// All policies, and what follows from them.
#[derive(Default)]
pub(super) struct Policies {
    exact: BTreeMap<Arc<str>, Arc<Policy>>,
    /// By the beginning, without its `*`.
    prefixes: BTreeMap<Arc<str>, Arc<Policy>>,
    pub extras: BTreeMap<u64, Extra>,
    /// Of all tubes that there ever were.
    pub total: Tally,
    /// Tubes by the time of their next sweep. Derived.
    sweeps: Runs<TimeKey>,
    /// The sweep under way.
    pub sweep: Option<Bulk>,
    /// Tubes whose jobs may be handed out again since the last command. Not part of the state.
    freed: Vec<u32>,
    /// Puts on connections that held a job, since they were asked for. Not part of the state.
    derived: Vec<Derived>,
}

/// A put on a connection that held a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Derived {
    /// The tube of the held job: of several that with the most hops.
    pub from: Arc<str>,
    /// The tube that was put to.
    pub to: Arc<str>,
    /// Hops of the new job.
    pub hops: u8,
    /// They are more than its tube's policy lets.
    pub refused: bool,
}

impl Policies {
    /// The policy of a tube of that name.
    pub fn of(&self, tube: &str) -> Option<Arc<Policy>> {
        if self.exact.is_empty() && self.prefixes.is_empty() {
            return None;
        }
        let meant = self.prefixes.iter().filter(|(prefix, _)| tube.starts_with(&***prefix));
        let longest = || meant.max_by_key(|(prefix, _)| prefix.len()).map(|(_, policy)| policy);
        self.exact.get(tube).or_else(longest).cloned()
    }

    /// In the order of their patterns, exact ones first.
    pub fn iter(&self) -> impl Iterator<Item = (String, &Policy)> {
        let exact = self.exact.iter().map(|(name, policy)| (name.to_string(), &**policy));
        exact.chain(self.prefixes.iter().map(|(prefix, policy)| (format!("{prefix}*"), &**policy)))
    }

    /// Whether any of them wants to be told of jobs that are ready for too long.
    fn any_alarm(&self) -> bool {
        self.iter().any(|(_, policy)| policy.alarm_ready_age_ms > 0)
    }

    pub fn len(&self) -> usize {
        self.exact.len() + self.prefixes.len()
    }

    /// Sets or removes one; false if there are too many.
    pub fn set(&mut self, pattern: &str, policy: Option<Policy>) -> bool {
        let full = self.len() >= POLICIES_MAX;
        let (map, name) = match pattern.strip_suffix('*') {
            Some(prefix) => (&mut self.prefixes, prefix),
            None => (&mut self.exact, pattern),
        };
        match policy {
            None => drop(map.remove(name)),
            Some(_) if full && !map.contains_key(name) => return false,
            Some(policy) => drop(map.insert(name.into(), Arc::new(policy))),
        }
        true
    }

    /// Takes in what an image has of a tube.
    pub fn restore_extra(&mut self, born: u64, extra: Extra) {
        if extra.sweep_at > 0 {
            self.sweeps.insert(TimeKey { at: extra.sweep_at, id: born });
        }
        self.extras.insert(born, extra);
    }

    pub fn is_sweeping(&self) -> bool {
        self.sweep.is_some()
    }

    /// When the next sweep begins; none while one is under way, which is always due.
    pub fn next_sweep(&self) -> Option<u64> {
        self.sweeps.first().map(|key| key.at)
    }

    fn set_sweep(&mut self, born: u64, at: u64) {
        let extra = self.extras.entry(born).or_default();
        let before = std::mem::replace(&mut extra.sweep_at, at);
        if before > 0 {
            self.sweeps.remove(TimeKey { at: before, id: born });
        }
        if at > 0 {
            self.sweeps.insert(TimeKey { at, id: born });
        }
        self.drop_if_plain(born);
    }

    fn drop_if_plain(&mut self, born: u64) {
        if self.extras.get(&born) == Some(&Extra::default()) {
            self.extras.remove(&born);
        }
    }

    /// The tube is no more.
    pub fn forget(&mut self, born: u64) {
        if self.extras.contains_key(&born) {
            self.set_sweep(born, 0);
            self.extras.remove(&born);
        }
    }

    fn count(&mut self, born: u64, count: impl Fn(&mut Tally)) {
        count(&mut self.extras.entry(born).or_default().tally);
        count(&mut self.total);
    }
}

impl Policy {
    /// How long a job waits after so many deliveries, in microseconds.
    fn backoff_us(&self, id: u64, deliveries: u32) -> u64 {
        if self.backoff_min_ms == 0 || deliveries == 0 {
            return 0;
        }
        let doubled = 1u64
            .checked_shl(deliveries - 1)
            .map_or(u64::MAX, |times| times.saturating_mul(self.backoff_min_ms));
        let wait_us = doubled.min(self.backoff_max_ms.max(self.backoff_min_ms)).saturating_mul(1000);
        // Spread by the id's bits: equal on all nodes, and different for jobs that fail together.
        let spread = (id ^ u64::from(deliveries) << 48).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 44;
        let most = wait_us / 100 * u64::from(self.backoff_jitter.min(100));
        let part = most / 1000 * (spread % 2001) / 1000;
        wait_us - most / 1000 * 1000 + part * 1000
    }
}

impl Tube {
    /// Whether the tube has room for a body that takes so many bytes in the log.
    fn takes(&self, policy: &Policy, bytes: u64) -> bool {
        let overhead = (self.jobs() + 1) * BODY_OVERHEAD as u64;
        !policy.pause_input
            && (policy.max_jobs == 0 || self.jobs() < policy.max_jobs)
            && (policy.max_bytes == 0 || self.bytes + bytes - overhead <= policy.max_bytes)
    }
}

/// A tube with a job that is ready for longer than its policy's `alarm-ready-age`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LateTube {
    /// Its name.
    pub tube: String,
    /// For how long the job has been ready, in microseconds.
    pub age_us: u64,
    /// What the policy says, in milliseconds.
    pub limit_ms: u64,
    /// Jobs that are ready.
    pub ready: u64,
}

impl Engine {
    /// The tubes with jobs that are ready for too long at this stamp, in the order of their creation, at most [`LATE_MAX`].
    #[must_use]
    pub fn late_tubes(&self, now: u64) -> Vec<LateTube> {
        if !self.policies.any_alarm() {
            return Vec::new();
        }
        let late = self.tubes.born_since(0).filter_map(|(_, tube)| {
            let limit_ms = tube.policy.as_ref().map_or(0, |policy| policy.alarm_ready_age_ms);
            if limit_ms == 0 {
                return None;
            }
            let age_us = now.saturating_sub(self.oldest_ready(tube)?);
            let is_late = age_us > limit_ms.saturating_mul(1000);
            is_late.then(|| LateTube {
                tube: tube.name.to_string(),
                age_us,
                limit_ms,
                ready: tube.ready.len() as u64,
            })
        });
        late.take(LATE_MAX).collect()
    }

    /// Since which stamp the job has been ready that is so for the longest time: its put, and its delay after that. Of each
    /// priority the job with the lowest id is looked at; of a tube with very many priorities the first ones and the last.
    fn oldest_ready(&self, tube: &Tube) -> Option<u64> {
        let last = tube.ready.last()?.pri;
        let mut next = Some(0);
        let mut oldest = None;
        for _ in 0..PRIORITIES_LOOKED_AT {
            let Some(from) = next else { break };
            let Some(key) = tube.ready.from(ReadyKey::new(from, 0)).next() else { break };
            oldest = oldest.into_iter().chain(self.ready_since(key.id())).min();
            next = key.pri.checked_add(1);
        }
        let key = tube.ready.from(ReadyKey::new(last, 0)).next()?;
        oldest.into_iter().chain(self.ready_since(key.id())).min()
    }

    fn ready_since(&self, id: u64) -> Option<u64> {
        let record = self.jobs.record(self.jobs.find(id)?);
        Some(record.created_us.saturating_add(micros(record.terms.delay_s)))
    }

    /// All policies, by pattern.
    pub fn policies(&self) -> impl Iterator<Item = (String, &Policy)> {
        self.policies.iter()
    }

    /// The policy that a tube of this name has or would have.
    #[must_use]
    pub fn policy_of(&self, tube: &str) -> Option<Arc<Policy>> {
        self.policies.of(tube)
    }

    /// What policies did with a tube's jobs.
    #[must_use]
    pub fn tally_of(&self, tube: &[u8]) -> Tally {
        let born = self.tubes.by_name(tube).map(|tube| tube.born);
        born.and_then(|born| self.policies.extras.get(&born)).map_or(Tally::default(), |extra| extra.tally)
    }

    /// What policies did with the jobs of all tubes, those that are gone included.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.policies.total
    }

    /// Sets or removes a policy. Tubes that it concerns follow it at once.
    pub(super) fn set_policy(&mut self, run: &mut Run<'_>, pattern: &str, policy: Option<Policy>) {
        if !self.policies.set(pattern, policy) {
            return;
        }
        let is_meant = |name: &str| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == pattern,
        };
        let tubes: Vec<(u32, u64)> = self
            .tubes
            .born_since(0)
            .filter(|(_, tube)| is_meant(&tube.name))
            .map(|(slot, tube)| (slot, tube.born))
            .collect();
        for (slot, born) in tubes {
            let policy = self.policies.of(&self.tubes.get(slot).name);
            let rated = policy.as_ref().is_some_and(|policy| policy.max_put_rate > 0);
            self.tubes.get_mut(slot).policy = policy;
            if !rated && let Some(extra) = self.policies.extras.get_mut(&born) {
                extra.paid_ns = 0;
            }
            self.policies.set_sweep(born, 0);
            self.arm_sweep(slot);
            // It may hand out what it held back.
            self.became_ready(run, slot);
        }
    }

    // ---- puts ----

    /// Whether a put into the tube would be refused as things stand at this stamp: what is certain of it need not be
    /// proposed. `bytes`: of its body.
    #[must_use]
    pub fn would_refuse(&self, tube: &str, bytes: u64, stamp: u64) -> bool {
        if self.policies.len() == 0 {
            return false;
        }
        let Some(home) = self.tubes.by_name(tube.as_bytes()) else {
            return self.policies.of(tube).is_some_and(|policy| policy.pause_input);
        };
        let Some(policy) = &home.policy else { return false };
        let paid_ns = self.policies.extras.get(&home.born).map_or(0, |extra| extra.paid_ns);
        let is_ahead = paid_ns.saturating_sub(stamp.saturating_mul(1000)) >= BURST_NS;
        !home.takes(policy, bytes + BODY_OVERHEAD as u64) || policy.max_put_rate > 0 && is_ahead
    }

    /// Whether the tube's policy refuses a put now; a put that it takes is counted. `hops` is what the job would have.
    pub(super) fn refuses(&mut self, tube: u32, put: &Put<'_>, hops: u8) -> bool {
        let home = self.tubes.get(tube);
        let Some(policy) = home.policy.clone() else { return false };
        let born = home.born;
        let refused = policy.max_hops > 0 && hops > policy.max_hops
            || !home.takes(&policy, u64::from(put.body_len))
            || !self.pays(born, policy.max_put_rate);
        if refused {
            self.policies.count(born, |tally| tally.refused += 1);
        }
        refused
    }

    /// Whether one more put is within a tube's rate, and if so counts it.
    fn pays(&mut self, born: u64, rate: u32) -> bool {
        if rate == 0 {
            return true;
        }
        let (now_ns, cost_ns) = (self.stamp.saturating_mul(1000), BURST_NS / u64::from(rate));
        let extra = self.policies.extras.entry(born).or_default();
        let paid_ns = extra.paid_ns.max(now_ns) + cost_ns;
        let pays = paid_ns - now_ns <= BURST_NS;
        if pays {
            extra.paid_ns = paid_ns;
        }
        pays
    }

    /// How many hops a job has that this session puts: one more than the jobs that it holds. And the tube of such a job.
    pub(super) fn hops_of(&self, session: SessionId) -> Option<(u8, u32)> {
        if self.level == 0 || self.totals.reserved == 0 {
            return None;
        }
        let held = self.reserved.of_session(session.node, session.conn).take(HELD_LOOKS_MAX);
        let terms = held.filter_map(|key| Some(self.jobs.terms(self.jobs.find(key.id())?)));
        terms.map(|terms| (terms.hops.saturating_add(1), terms.tube)).max()
    }

    /// A put on a connection that holds a job.
    pub(super) fn note_derived(&mut self, (hops, from): (u8, u32), to: u32) {
        let name = |tube: u32| self.tubes.get(tube).name.clone();
        let max_hops = self.tubes.get(to).policy.as_ref().map_or(0, |policy| policy.max_hops);
        let derived =
            Derived { from: name(from), to: name(to), hops, refused: max_hops > 0 && hops > max_hops };
        self.policies.derived.push(derived);
    }

    /// The derived puts since this was asked last, in their order. Not part of the state.
    pub fn take_derived(&mut self) -> Vec<Derived> {
        std::mem::take(&mut self.policies.derived)
    }

    // ---- jobs that come back ----

    /// A worker has not done the job, which is nowhere now: it is delivered again, when it may be.
    pub(super) fn come_back(&mut self, run: &mut Run<'_>, id: u64, slot: u32, delay_s: u32) {
        let mut delay_us = micros(delay_s);
        if let Some(policy) = &self.tubes.get(self.jobs.tube(slot)).policy {
            let deliveries = self.jobs.counts(slot).reserves;
            if policy.max_deliveries > 0 && deliveries >= policy.max_deliveries {
                return self.give_up(run, id, slot, Reason::MaxDeliveries);
            }
            delay_us = delay_us.max(policy.backoff_us(id, deliveries));
        }
        match delay_us {
            0 => self.place_ready(run, id, slot),
            delay_us => self.place_delayed(id, slot, self.stamp + delay_us),
        }
    }

    /// A job that is nowhere is not handed out again: it goes to the dead tube, or is buried, or dropped if it is too old.
    fn give_up(&mut self, run: &mut Run<'_>, id: u64, slot: u32, reason: Reason) {
        let from = self.jobs.tube(slot);
        let home = self.tubes.get(from);
        let dead_tube = home.policy.as_ref().and_then(|policy| policy.dead_tube.clone());
        let dead_tube = dead_tube.filter(|dead| **dead != *home.name);
        let born = home.born;
        self.policies.count(born, |tally| match reason {
            Reason::MaxAge => tally.expired += 1,
            Reason::MaxDeliveries | Reason::None => tally.dead += 1,
        });
        match (dead_tube, reason) {
            (Some(dead), _) => {
                let to = self.tube_for(run, &dead);
                self.change_tube(slot, to);
                self.jobs.set_reason(slot, reason);
                self.place_ready(run, id, slot);
                self.note_lost(run, from);
            }
            (None, Reason::MaxAge) => self.forget_job(run, id, slot),
            (None, Reason::MaxDeliveries | Reason::None) => {
                self.jobs.set_reason(slot, reason);
                self.place_buried(id, slot);
            }
        }
    }

    // ---- jobs handed out ----

    /// A reservation in the tube ended: another job of it may be handed out once the command is through.
    pub(super) fn note_freed(&mut self, tube: u32) {
        if self.tubes.get(tube).policy.as_ref().is_some_and(|policy| policy.max_reserved > 0) {
            self.policies.freed.push(tube);
        }
    }

    /// After each command: those who wait get what may be handed out since.
    pub(super) fn serve_freed(&mut self, run: &mut Run<'_>) {
        while let Some(tube) = self.policies.freed.pop() {
            if self.tubes.if_there(tube).is_some() {
                self.became_ready(run, tube);
            }
        }
    }

    // ---- age ----

    /// The tube has a job: sees to it that old ones are looked for.
    pub(super) fn arm_sweep(&mut self, tube: u32) {
        let home = self.tubes.get(tube);
        let Some(policy) = home.policy.as_ref().filter(|policy| policy.max_age_ms > 0) else { return };
        if home.jobs() == 0 || self.policies.extras.get(&home.born).is_some_and(|extra| extra.sweep_at > 0) {
            return;
        }
        let every_us = (policy.max_age_ms.saturating_mul(1000) / SWEEP_PART).max(SWEEP_EVERY_US);
        let born = home.born;
        self.policies.set_sweep(born, self.stamp.saturating_add(every_us));
    }

    /// Begins the sweep that is due, if one is; its tube has no other meanwhile.
    pub(super) fn begin_sweep(&mut self) -> Option<Bulk> {
        let next = self.policies.sweeps.first().filter(|next| next.at <= self.stamp)?;
        self.policies.set_sweep(next.id, 0);
        let slot = self.tubes.of_birth(next.id)?;
        let home = self.tubes.get(slot);
        let age_us = home.policy.as_ref().map_or(u64::MAX, |policy| policy.max_age_ms.saturating_mul(1000));
        let until_us = self.stamp.saturating_sub(age_us);
        Some(Bulk::sweep(home.name.clone(), until_us, self.last_id, self.last_seq))
    }

    /// A sweep is through: the next one of its tube.
    pub(super) fn end_sweep(&mut self, tube: &str) {
        if let Some(slot) = self.tubes.find(tube) {
            self.arm_sweep(slot);
        }
    }

    /// A job was found to be too old, unless its tube's policy has changed since.
    pub(super) fn expire_by_age(&mut self, run: &mut Run<'_>, id: u64, slot: u32) {
        let policy = &self.tubes.get(self.jobs.tube(slot)).policy;
        if policy.as_ref().is_some_and(|policy| policy.max_age_ms > 0) {
            self.take_out(id, slot);
            self.give_up(run, id, slot, Reason::MaxAge);
        }
    }
}
