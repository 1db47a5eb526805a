//! Operations on many jobs of a tube: one entry begins one, and every later entry does a slice of it.
//!
//! ```text
//!   entry 7: Bulk ─► running: [ purge x, at delayed (0, 0) ]
//!   entry 7 .. n, after their commands: ── examine at most 8,192 jobs, act on at most 512 ──► cursor
//!                     delayed by (due, id) ─► buried by (place, id) ─► ready by (pri, id) ─► done
//! ```
//!
//! A slice is counted in jobs, not in time, so it is the same on every node; the cursor is part of the state, so a
//! snapshot between two slices goes on where it was. While there is something left the next slice is always due: a
//! leader with nothing else to propose proposes an empty entry. Operations run one after the other.
//!
//! Concerned are jobs that existed when the operation began, and that are in one of its states when the cursor comes to
//! them. So a reserved job is never touched. Ready jobs come last: a job whose delay ends meanwhile is not missed.

use std::collections::VecDeque;
use std::sync::Arc;

use super::engine::{Engine, Run};
use super::jobs::Place;
use super::tubes::{ReadyKey, TimeKey};
use super::types::JobState;

/// Jobs that one entry acts on at most: below a millisecond.
const ACTS_MAX: usize = 512;
/// Jobs that one entry looks at, at most.
const LOOKS_MAX: usize = 8192;
/// To begin the sweep of a tube costs as much as a look at so many jobs.
const SWEEP_LOOKS: usize = 32;
/// Jobs looked at for a count while nothing else is done.
const COUNT_LOOKS_MAX: usize = 4096;
/// Operations that wait or run, at most; one more is not begun, and is shown as done with nothing.
pub const BULKS_MAX: usize = 16;
/// Finished operations that are remembered.
const DONE_KEPT: usize = 64;

/// What is done with each job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BulkVerb {
    /// It is deleted.
    Purge,
    /// It goes to another tube, in the state that it is in.
    Move,
    /// It becomes ready.
    Kick,
    /// It is too old by its tube's policy. Nobody asks for it: see [`super::policy`].
    Expire,
}

impl BulkVerb {
    /// For people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            BulkVerb::Purge => "purge",
            BulkVerb::Move => "move",
            BulkVerb::Kick => "kick",
            BulkVerb::Expire => "expire",
        }
    }

    pub(super) fn code(self) -> u8 {
        match self {
            BulkVerb::Purge => 1,
            BulkVerb::Move => 2,
            BulkVerb::Kick => 3,
            BulkVerb::Expire => 4,
        }
    }

    pub(super) fn of_code(code: u8) -> Option<Self> {
        let all = [BulkVerb::Purge, BulkVerb::Move, BulkVerb::Kick, BulkVerb::Expire];
        all.into_iter().find(|verb| verb.code() == code)
    }
}

/// The states of jobs that an operation concerns; never reserved ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct States(u8);

impl States {
    /// Ready, delayed and buried jobs.
    pub const ALL: States = States(7);

    /// Jobs of one state: none if that is reserved.
    #[must_use]
    pub fn only(state: JobState) -> Self {
        States(match state {
            JobState::Ready => 1,
            JobState::Delayed => 2,
            JobState::Buried => 4,
            JobState::Reserved => 0,
        })
    }

    /// Those of either.
    #[must_use]
    pub fn and(self, other: States) -> Self {
        States(self.0 | other.0)
    }

    fn within(self, other: States) -> Self {
        States(self.0 & other.0)
    }

    fn has(self, state: JobState) -> bool {
        let one = States::only(state);
        self.0 & one.0 != 0
    }

    pub(super) fn bits(self) -> u8 {
        self.0
    }

    pub(super) fn of_bits(bits: u8) -> Self {
        States(bits).within(States::ALL)
    }
}

/// An operation as an entry asks for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BulkOrder<'a> {
    /// A random number by which it is known: asked for again, it is not begun again.
    pub nonce: u64,
    /// What is done.
    pub verb: BulkVerb,
    /// Jobs in these states.
    pub states: States,
    /// Only jobs that were put at least so many microseconds ago.
    pub older_us: u64,
    /// So many jobs at most. A kick with a limit is as the protocol's: buried jobs if there are any, else delayed ones.
    pub limit: u64,
    /// Jobs of this tube.
    pub tube: &'a str,
    /// The tube that they go to; empty for all but [`BulkVerb::Move`].
    pub to: &'a str,
}

/// How an operation is getting on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BulkView {
    /// The number it was asked for with.
    pub nonce: u64,
    /// What is done.
    pub verb: BulkVerb,
    /// Where.
    pub tube: Arc<str>,
    /// Where to; empty for all but moves.
    pub to: Arc<str>,
    /// Jobs that it has acted on.
    pub done: u64,
    /// Jobs that it has looked at.
    pub looked: u64,
    /// Jobs that were in its states when it began: it looks at about as many.
    pub total: u64,
    /// There may be more to do.
    pub running: bool,
}

/// A place in a tube's orders: all before it was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cursor {
    /// The order; none behind the last one.
    pub stage: Option<JobState>,
    /// The first key of that order that was not looked at.
    pub key: (u64, u64),
}

impl Cursor {
    const START: Cursor = Cursor { stage: Some(JobState::Delayed), key: (0, 0) };

    fn pass(&mut self, key: (u64, u64)) {
        self.key = (key.0, key.1 + 1);
    }

    fn next_stage(&mut self) {
        self.stage = match self.stage {
            Some(JobState::Delayed) => Some(JobState::Buried),
            Some(JobState::Buried) => Some(JobState::Ready),
            Some(JobState::Ready | JobState::Reserved) | None => None,
        };
        self.key = (0, 0);
    }
}

/// An operation under way.
#[derive(Clone)]
pub(super) struct Bulk {
    pub view: BulkView,
    pub states: States,
    /// Only jobs that were put at this stamp or before.
    pub until_us: u64,
    /// Only jobs up to this one: those that there were.
    pub last_id: u64,
    /// Only burials up to this one: a worker may bury again what was kicked.
    pub last_seq: u64,
    /// Jobs that may still be acted on.
    pub left: u64,
    pub at: Cursor,
}

impl Bulk {
    /// A look at all jobs of a tube, for those that are too old.
    pub fn sweep(tube: Arc<str>, until_us: u64, last_id: u64, last_seq: u64) -> Self {
        let verb = BulkVerb::Expire;
        let view =
            BulkView { nonce: 0, verb, tube, to: "".into(), done: 0, looked: 0, total: 0, running: true };
        let (states, left, at) = (States::ALL, u64::MAX, Cursor::START);
        Bulk { view, states, until_us, last_id, last_seq, left, at }
    }
}

/// Operations, the one that runs first.
#[derive(Default)]
pub(super) struct Bulks {
    pub running: VecDeque<Bulk>,
    /// The last to be done is the last.
    pub done: VecDeque<BulkView>,
    /// Kept for its memory between slices. Not part of the state.
    keys: Vec<(u64, u64)>,
}

impl Bulks {
    pub fn is_working(&self) -> bool {
        !self.running.is_empty()
    }

    /// What the running ones have done so far.
    pub fn progress(&self) -> impl Iterator<Item = u64> {
        self.running.iter().map(|bulk| bulk.view.done)
    }

    fn find(&self, nonce: u64) -> Option<&BulkView> {
        let running = self.running.iter().map(|bulk| &bulk.view);
        running.chain(&self.done).find(|view| view.nonce == nonce)
    }

    fn finish(&mut self, mut view: BulkView) {
        view.running = false;
        if self.done.len() == DONE_KEPT {
            self.done.pop_front();
        }
        self.done.push_back(view);
    }
}

/// What an entry may still do.
struct Room {
    acts: usize,
    looks: usize,
}

impl Engine {
    /// All operations that are known: finished ones, then the one that runs, then those that wait.
    pub fn bulks(&self) -> impl Iterator<Item = &BulkView> {
        self.bulks.done.iter().chain(self.bulks.running.iter().map(|bulk| &bulk.view))
    }

    /// The operation that was asked for with this number, if it is known.
    #[must_use]
    pub fn bulk(&self, nonce: u64) -> Option<&BulkView> {
        self.bulks.find(nonce)
    }

    pub(super) fn begin_bulk(&mut self, order: &BulkOrder<'_>) {
        if self.bulks.find(order.nonce).is_some() {
            return;
        }
        if order.verb == BulkVerb::Expire {
            return;
        }
        let states = self.states_of(order);
        let view = BulkView {
            nonce: order.nonce,
            verb: order.verb,
            tube: order.tube.into(),
            to: order.to.into(),
            done: 0,
            looked: 0,
            total: self.jobs_in(order.tube, states),
            running: true,
        };
        let to_itself = order.verb == BulkVerb::Move && order.to == order.tube;
        if to_itself || self.bulks.running.len() == BULKS_MAX {
            return self.bulks.finish(view);
        }
        // What is kicked may be delayed again before the cursor is through.
        let most = if order.verb == BulkVerb::Kick { view.total } else { u64::MAX };
        self.bulks.running.push_back(Bulk {
            view,
            states,
            until_us: self.stamp.saturating_sub(order.older_us),
            last_id: self.last_id,
            last_seq: self.last_seq,
            left: order.limit.min(most),
            at: Cursor::START,
        });
    }

    fn states_of(&self, order: &BulkOrder<'_>) -> States {
        match order.verb {
            BulkVerb::Purge | BulkVerb::Move | BulkVerb::Expire => order.states,
            BulkVerb::Kick => {
                let (buried, delayed) = (States::only(JobState::Buried), States::only(JobState::Delayed));
                match order.limit {
                    u64::MAX => order.states.within(buried.and(delayed)),
                    _ if self.jobs_in(order.tube, buried) > 0 => buried,
                    _ => delayed,
                }
            }
        }
    }

    fn jobs_in(&self, tube: &str, states: States) -> u64 {
        let Some(view) = self.tube(tube.as_bytes()) else { return 0 };
        let of = |state: JobState, jobs: u64| if states.has(state) { jobs } else { 0 };
        of(JobState::Ready, view.ready)
            + of(JobState::Delayed, view.delayed)
            + of(JobState::Buried, view.buried)
    }

    /// Does this entry's slice.
    pub(super) fn work_on_bulks(&mut self, run: &mut Run<'_>) {
        let mut room = Room { acts: ACTS_MAX, looks: LOOKS_MAX };
        while let Some(mut bulk) = self.bulks.running.pop_front() {
            if !self.bulk_slice(run, &mut bulk, &mut room) {
                return self.bulks.running.push_front(bulk);
            }
            self.bulks.finish(bulk.view);
        }
        while room.acts > 0 && room.looks > 0 {
            let Some(mut sweep) = self.policies.sweep.take().or_else(|| self.begin_sweep()) else { return };
            room.looks = room.looks.saturating_sub(SWEEP_LOOKS);
            if !self.bulk_slice(run, &mut sweep, &mut room) {
                self.policies.sweep = Some(sweep);
                return;
            }
            self.end_sweep(&sweep.view.tube);
        }
    }

    /// Works on an operation; answers whether it is done.
    fn bulk_slice(&mut self, run: &mut Run<'_>, bulk: &mut Bulk, room: &mut Room) -> bool {
        let mut keys = std::mem::take(&mut self.bulks.keys);
        let done = loop {
            let Some(tube) = self.tubes.find(&bulk.view.tube) else { break true };
            let Some(stage) = bulk.at.stage.filter(|_| bulk.left > 0) else { break true };
            if !bulk.states.has(stage) {
                bulk.at.next_stage();
                continue;
            }
            let most = room.acts.min(room.looks);
            if most == 0 {
                break false;
            }
            keys.clear();
            self.keys_from(tube, bulk.at, &mut |key| {
                keys.push(key);
                keys.len() < most
            });
            for key in &keys {
                self.bulk_look(run, bulk, room, tube, stage, *key);
            }
            if keys.len() < most {
                bulk.at.next_stage();
            }
        };
        self.bulks.keys = keys;
        done
    }

    fn bulk_look(
        &mut self,
        run: &mut Run<'_>,
        bulk: &mut Bulk,
        room: &mut Room,
        tube: u32,
        stage: JobState,
        key: (u64, u64),
    ) {
        let id = key.1;
        bulk.at.pass(key);
        bulk.view.looked += 1;
        room.looks = room.looks.saturating_sub(1);
        let slot = self.jobs.find(id).expect("a tube's job is there, and a slice looks at each once");
        // A job that was moved to a tube that somebody waits for may have let this one be handed out.
        let is_there = self.jobs.state(slot) == stage && self.jobs.tube(slot) == tube;
        let is_old = id <= bulk.last_id && self.jobs.record(slot).created_us <= bulk.until_us;
        let is_late = stage == JobState::Buried && key.0 > bulk.last_seq;
        if bulk.left == 0 || !is_there || !is_old || is_late {
            return;
        }
        match bulk.view.verb {
            BulkVerb::Purge => self.purge_one(run, id, slot),
            BulkVerb::Move => self.move_one(run, id, slot, &bulk.view.to),
            BulkVerb::Kick => self.kick_one(run, id, slot),
            BulkVerb::Expire => self.expire_by_age(run, id, slot),
        }
        room.acts -= 1;
        bulk.left -= 1;
        bulk.view.done += 1;
    }

    fn purge_one(&mut self, run: &mut Run<'_>, id: u64, slot: u32) {
        self.take_out(id, slot);
        self.forget_job(run, id, slot);
    }

    /// State, order of burying and counters stay; the tube may have gone since the last one, and is made again.
    fn move_one(&mut self, run: &mut Run<'_>, id: u64, slot: u32, to: &str) {
        let to = self.tube_for(run, to);
        let (from, place) = (self.jobs.tube(slot), self.jobs.place(slot));
        self.take_out(id, slot);
        self.change_tube(slot, to);
        match place {
            Place::Ready => self.place_ready(run, id, slot),
            Place::Delayed(due) => self.place_delayed(id, slot, due),
            Place::Buried(at) => self.place_buried_at(id, slot, at),
            Place::Reserved(_) => unreachable!("no operation is for reserved jobs"),
        }
        self.note_lost(run, from);
    }

    /// Passes the keys of an order from a place on to `f`, until that answers false.
    fn keys_from(&self, tube: u32, at: Cursor, f: &mut dyn FnMut((u64, u64)) -> bool) {
        let home = self.tubes.get(tube);
        let time = TimeKey { at: at.key.0, id: at.key.1 };
        let of_time = |key: TimeKey| (key.at, key.id);
        let _ = match at.stage {
            Some(JobState::Delayed) => home.delayed.from(time).map(of_time).all(f),
            Some(JobState::Buried) => home.buried.from(time).map(of_time).all(f),
            Some(JobState::Ready) => {
                let key = ReadyKey::new(u32::try_from(at.key.0).unwrap_or(u32::MAX), at.key.1);
                home.ready.from(key).map(|key| (u64::from(key.pri), key.id())).all(f)
            }
            Some(JobState::Reserved) | None => true,
        };
    }
}

/// How many jobs an operation would concern, counted a part at a time.
pub struct BulkCount {
    tube: Arc<str>,
    states: States,
    until_us: u64,
    at: Cursor,
    /// Jobs found so far.
    pub jobs: u64,
}

impl BulkCount {
    /// Begins a count. `until_us`: only jobs that were put at this stamp or before.
    #[must_use]
    pub fn new(tube: &str, states: States, until_us: u64) -> Self {
        BulkCount { tube: tube.into(), states, until_us, at: Cursor::START, jobs: 0 }
    }
}

impl Engine {
    /// Counts on over some thousand jobs; answers whether there are more.
    pub fn count_some(&self, count: &mut BulkCount) -> bool {
        let Some(tube) = self.tubes.find(&count.tube) else { return false };
        let Some(stage) = count.at.stage else { return false };
        if count.states.has(stage) {
            let mut looks = 0;
            let mut at = count.at;
            self.keys_from(tube, at, &mut |key| {
                at.pass(key);
                let slot = self.jobs.find(key.1).expect("a tube's job is there");
                count.jobs += u64::from(self.jobs.record(slot).created_us <= count.until_us);
                looks += 1;
                looks < COUNT_LOOKS_MAX
            });
            count.at = at;
            if looks == COUNT_LOOKS_MAX {
                return true;
            }
        }
        count.at.next_stage();
        count.at.stage.is_some()
    }
}
