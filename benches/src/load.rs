//! The load loop: all connections of a run on one thread.
//!
//! ```text
//!   epoll wait -> for each ready connection: recv, each reply -> Lane::answer -> next commands, one send
//! ```
//!
//! A `Lane` is one connection with its role and the list of its unanswered commands; replies come in order,
//! so the oldest of the list is the one a reply answers. Nothing is allocated per operation: bodies are
//! stamped in one buffer, commands encoded into the connection's output, replies cut from its input.

use crate::args::{Plan, Role};
use crate::body::{Bodies, Verdict};
use crate::ledger::{Key, Ledger};
use crate::link::{Link, Poller, Ready};
use crate::meter::Meter;
use beanpole_client::Address;
use beanpole_protocol::{ClientReply, Command, JobId, Priority, Tube, encode_command, encode_put};
use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

/// The priority of all jobs: beanstalkd's clients' usual middle, not urgent.
pub const PRIORITY: u32 = 1024;
/// Reserves a draining connection has unanswered at most.
const DRAIN_DEPTH: u32 = 32;
/// Bytes read from a socket at once.
const READ_BYTES: usize = 256 * 1024;
/// With this many puts refused and none accepted, going on would measure nothing.
const REFUSALS_MAX: u64 = 1_000;
/// The longest single wait for events, so that the end of a stage is never missed by more.
const WAIT_MAX: Duration = Duration::from_millis(10);
/// How often the end of a stage is looked for: doing so visits every connection.
const CHECK_EVERY_NS: u64 = 1_000_000;

/// Why a run cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No connection to the server.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// As given.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// A connection was lost or not answered before the load began.
    #[error("the server did not answer the first commands: {0}")]
    Setup(String),
    /// Waiting for events failed.
    #[error("cannot wait for the connections: {0}")]
    Poll(#[from] io::Error),
}

/// What all stages of a run share: the clock, the jobs' record, the measurements.
pub struct Run {
    /// Makes and judges bodies.
    pub bodies: Bodies,
    /// What became of every job.
    pub ledger: Ledger,
    /// Times and errors.
    pub meter: Meter,
    epoch: Instant,
}

impl Run {
    /// The start of the run `plan` describes: its clock begins now.
    pub fn new(plan: &Plan) -> Run {
        let producers = u32::try_from(plan.roles.len()).expect("at most 200,000 connections");
        Run {
            bodies: Bodies::new(plan.run, plan.body_size.clone()),
            ledger: Ledger::new(producers),
            meter: Meter::new(),
            epoch: Instant::now(),
        }
    }

    /// Nanoseconds since the run's start.
    pub fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).expect("584 years are not over")
    }
}

/// A command that is not answered yet.
struct Op {
    what: What,
    /// When it was written, on the run's clock.
    at_ns: u64,
}

enum What {
    /// `use` or `watch` or `ignore`: only an error matters.
    Tube,
    Put(Key),
    Reserve,
    Delete(Key),
    /// A delete or bury of a job that is not this run's.
    TidyUp,
}

/// What the lanes of one stage share.
struct Stage {
    /// The lanes are set up and act their roles.
    started: bool,
    /// No new puts; cycles end after their delete.
    stopping: bool,
    /// Puts still to send, if they are counted.
    remaining: Option<u64>,
    /// Jobs sent and not yet received.
    in_flight: u64,
    /// Producers that wait for the backlog to shrink.
    parked: Vec<usize>,
}

/// One connection.
struct Lane {
    link: Link,
    index: usize,
    role: Role,
    /// Indexes of its tubes in the plan; a producer of several takes turns.
    tubes: Vec<u32>,
    turn: usize,
    pending: VecDeque<Op>,
    /// Unanswered puts (of a producer) or reserves (of a drain).
    window: u32,
    cycle_began_ns: u64,
    open: bool,
    parked: bool,
    /// A draining connection has been told that nothing is there.
    exhausted: bool,
}

/// The connections of one stage of a run, and the loop that drives them.
pub struct Driver<'r> {
    plan: &'r Plan,
    run: &'r mut Run,
    poller: Poller,
    scratch: Vec<u8>,
    lanes: Vec<Lane>,
    stage: Stage,
}

impl<'r> Driver<'r> {
    /// Connects one lane for each of `roles`, to one address after the other, and sets up its tubes; returns when
    /// the server has answered all that.
    pub fn open(
        plan: &'r Plan,
        roles: &[Role],
        addresses: &[Address],
        limit: Duration,
        run: &'r mut Run,
    ) -> Result<Driver<'r>, LoadError> {
        let stage = Stage {
            started: false,
            stopping: false,
            remaining: plan.count,
            in_flight: 0,
            parked: Vec::new(),
        };
        let scratch = vec![0; READ_BYTES];
        let mut driver = Driver { plan, run, poller: Poller::new()?, scratch, lanes: Vec::new(), stage };
        let mut places = Places::new(roles);
        for ((index, role), address) in roles.iter().enumerate().zip(addresses.iter().cycle()) {
            let link = Link::connect(address)
                .map_err(|source| LoadError::Connect { address: address.to_string(), source })?;
            driver.poller.add(&link, index)?;
            let (nth, of) = places.next(*role);
            let mut lane = Lane::new(link, index, *role, plan.share(nth, of));
            lane.set_up(plan);
            driver.lanes.push(lane);
            driver.send(index);
        }
        let end = driver.run.now() + nanos(limit);
        driver.until(end, |driver| driver.is_idle() || driver.open_lanes() < driver.lanes.len())?;
        if driver.open_lanes() < driver.lanes.len() {
            let why = driver.run.meter.errors.keys().next().cloned();
            return Err(LoadError::Setup(why.unwrap_or_default()));
        }
        if driver.is_idle() { Ok(driver) } else { Err(LoadError::Setup("no reply in time".to_owned())) }
    }

    /// Gives every lane its first commands.
    pub fn start(&mut self) {
        self.stage.started = true;
        for index in 0..self.lanes.len() {
            self.refill(index);
        }
    }

    /// Drives the lanes until `end_ns` on the run's clock, or until `done` says so.
    pub fn until(&mut self, end_ns: u64, done: impl Fn(&Self) -> bool) -> Result<(), LoadError> {
        let mut check_at = 0;
        loop {
            let now = self.run.now();
            if now >= end_ns {
                return Ok(());
            }
            if now >= check_at {
                check_at = now + CHECK_EVERY_NS;
                if done(self) {
                    return Ok(());
                }
            }
            let events = self.poller.wait(Duration::from_nanos(end_ns - now).min(WAIT_MAX))?;
            for nth in 0..events {
                self.serve(self.poller.ready(nth));
            }
            self.unpark();
        }
    }

    /// No new puts from here on.
    pub fn stop(&mut self) {
        self.stage.stopping = true;
    }

    /// The run all this is part of.
    pub fn run(&mut self) -> &mut Run {
        self.run
    }

    /// Nothing is unanswered.
    pub fn is_idle(&self) -> bool {
        self.lanes.iter().all(|lane| lane.pending.is_empty())
    }

    /// All is answered; if there are workers, all acknowledged jobs are deleted, and idle workers wait in a
    /// reserve.
    pub fn is_settled(&self) -> bool {
        if !self.lanes.iter().any(|lane| lane.role == Role::Work) {
            return self.is_idle();
        }
        let only_reserves = |lane: &Lane| lane.pending.iter().all(|op| matches!(op.what, What::Reserve));
        self.run.ledger.outstanding() == 0 && self.lanes.iter().all(only_reserves)
    }

    /// The counted puts are all sent and answered.
    pub fn is_count_reached(&self) -> bool {
        self.stage.remaining == Some(0) && self.is_idle()
    }

    /// Nothing more can be measured: every connection is lost, or every put is refused.
    pub fn is_hopeless(&self) -> bool {
        let counts = self.run.ledger.counts();
        self.open_lanes() == 0 || (counts.refused >= REFUSALS_MAX && counts.acknowledged == 0)
    }

    /// Closes all connections; what is unanswered stays unknown.
    pub fn close(mut self) {
        for index in 0..self.lanes.len() {
            self.end_lane(index);
        }
    }

    fn open_lanes(&self) -> usize {
        self.lanes.iter().filter(|lane| lane.open).count()
    }

    /// One turn of one connection.
    fn serve(&mut self, ready: Ready) {
        let index = ready.token;
        let lane = &mut self.lanes[index];
        if !lane.open {
            return;
        }
        if ready.readable {
            let read = lane.link.read(&mut self.scratch, ready.closed);
            let now = self.run.now();
            let answered = lane.answer_all(now, self.plan, self.run, &mut self.stage);
            match (answered, read) {
                (Err(why), _) => return self.lose(index, why),
                (Ok(()), Ok(false)) => return self.lose(index, "closed by the server".to_owned()),
                (Ok(()), Err(error)) => return self.lose(index, error.kind().to_string()),
                (Ok(()), Ok(true)) => {}
            }
            if self.stage.started {
                self.lanes[index].refill(now, self.plan, self.run, &mut self.stage);
            }
        }
        self.send(index);
    }

    fn refill(&mut self, index: usize) {
        let now = self.run.now();
        let lane = &mut self.lanes[index];
        if lane.open {
            lane.refill(now, self.plan, self.run, &mut self.stage);
            self.send(index);
        }
    }

    fn send(&mut self, index: usize) {
        let link = &mut self.lanes[index].link;
        if let Err(error) = link.flush().and_then(|()| self.poller.follow(link, index)) {
            self.lose(index, error.kind().to_string());
        }
    }

    /// Wakes producers while the backlog allows.
    fn unpark(&mut self) {
        while self.stage.in_flight < self.plan.backlog {
            let Some(index) = self.stage.parked.pop() else { return };
            self.lanes[index].parked = false;
            self.refill(index);
        }
    }

    fn lose(&mut self, index: usize, why: String) {
        self.run.meter.error(format!("connection: {why}"));
        self.end_lane(index);
    }

    fn end_lane(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        if !lane.open {
            return;
        }
        lane.open = false;
        // The socket closes with the lane; a set that cannot forget it early does then.
        let _ = self.poller.remove(&lane.link);
        for op in lane.pending.drain(..) {
            match op.what {
                What::Put(key) => {
                    self.run.ledger.put_unknown(key);
                    self.stage.in_flight = self.stage.in_flight.saturating_sub(1);
                }
                What::Delete(key) => self.run.ledger.delete_unknown(key),
                What::Tube | What::Reserve | What::TidyUp => {}
            }
        }
    }
}

impl Lane {
    fn new(link: Link, index: usize, role: Role, tubes: Vec<u32>) -> Lane {
        Lane {
            link,
            index,
            role,
            tubes,
            turn: 0,
            pending: VecDeque::new(),
            window: 0,
            cycle_began_ns: 0,
            open: true,
            parked: false,
            exhausted: false,
        }
    }

    /// Writes the commands that choose the tubes.
    fn set_up(&mut self, plan: &Plan) {
        let uses = matches!(self.role, Role::Produce { .. } | Role::Cycle);
        let watches = !matches!(self.role, Role::Produce { .. });
        if uses {
            self.command(&Command::Use(tube(plan, self.tubes[0])), What::Tube, 0);
        }
        if watches {
            for at in 0..self.tubes.len() {
                self.command(&Command::Watch(tube(plan, self.tubes[at])), What::Tube, 0);
            }
            if !self.tubes.iter().any(|t| plan.tubes[*t as usize] == Tube::DEFAULT.as_str()) {
                self.command(&Command::Ignore(Tube::DEFAULT), What::Tube, 0);
            }
        }
    }

    /// Takes all whole replies that were read. `Err` says why the connection cannot be used further.
    fn answer_all(&mut self, now: u64, plan: &Plan, run: &mut Run, stage: &mut Stage) -> Result<(), String> {
        while let Some(reply) = self.link.next_reply().map_err(|error| error.to_string())? {
            let Some(op) = self.pending.pop_front() else {
                return Err(format!("{} without a command", reply.word()));
            };
            run.meter.reply(now);
            match op.what {
                What::Tube => self.answer_tube(&reply)?,
                What::Put(key) => self.answer_put(key, op.at_ns, &reply, now, run, stage),
                What::Reserve => self.answer_reserve(op.at_ns, &reply, now, plan, run, stage),
                What::Delete(key) => self.answer_delete(key, op.at_ns, &reply, now, run),
                What::TidyUp => {}
            }
        }
        Ok(())
    }

    fn answer_tube(&mut self, reply: &ClientReply) -> Result<(), String> {
        if matches!(reply, ClientReply::Using(_) | ClientReply::Watching(_) | ClientReply::NotIgnored) {
            return Ok(());
        }
        Err(format!("{} to use, watch or ignore", reply.word()))
    }

    fn answer_put(
        &mut self,
        key: Key,
        at_ns: u64,
        reply: &ClientReply,
        now: u64,
        run: &mut Run,
        stage: &mut Stage,
    ) {
        self.window -= 1;
        if let ClientReply::Inserted(_) = reply {
            run.ledger.acknowledged(key);
            if run.meter.is_open(now) {
                run.meter.put.record(now - at_ns);
            }
            if self.role == Role::Cycle {
                self.command(&Command::Reserve, What::Reserve, now);
            }
        } else {
            run.ledger.refused(key);
            stage.in_flight = stage.in_flight.saturating_sub(1);
            run.meter.error(format!("put: {}", reply.word()));
        }
    }

    fn answer_reserve(
        &mut self,
        at_ns: u64,
        reply: &ClientReply,
        now: u64,
        plan: &Plan,
        run: &mut Run,
        stage: &mut Stage,
    ) {
        let draining = self.role == Role::Drain;
        if draining {
            self.window -= 1;
        }
        if let ClientReply::Reserved { id, data } = reply {
            if run.meter.is_open(now) {
                run.meter.reserve.record(now - at_ns);
            }
            self.receive(*id, data, now, plan, run, stage);
        } else if draining && *reply == ClientReply::TimedOut {
            self.exhausted = true;
        } else {
            run.meter.error(format!("reserve: {}", reply.word()));
            // A cycle's job is still there; the others ask again by themselves.
            if self.role == Role::Cycle {
                self.command(&Command::Reserve, What::Reserve, now);
            }
        }
    }

    /// A job has come: judge it, note it, take it out.
    fn receive(&mut self, id: JobId, body: &[u8], now: u64, plan: &Plan, run: &mut Run, stage: &mut Stage) {
        let verdict = run.bodies.judge(body);
        if let Verdict::Ours(stamp) = verdict {
            let key = Key { producer: stamp.producer, sequence: stamp.sequence };
            run.ledger.received(key);
            stage.in_flight = stage.in_flight.saturating_sub(1);
            if run.meter.is_open(now) && self.role == Role::Work {
                run.meter.end_to_end.record(now.saturating_sub(stamp.sent_ns));
            }
            self.command(&Command::Delete(id), What::Delete(key), now);
            return;
        }
        let foreign = match verdict {
            Verdict::Ours(_) | Verdict::OtherRun(_) => false,
            Verdict::Damaged { names_this_run } => !names_this_run,
            Verdict::Foreign => true,
        };
        if let Verdict::OtherRun(_) = verdict {
            run.ledger.leftover();
        } else if foreign && !plan.own_tubes {
            run.ledger.foreign();
        } else {
            run.ledger.corrupted(id.0);
        }
        if foreign {
            self.command(&Command::Bury { id, pri: Priority(PRIORITY) }, What::TidyUp, now);
        } else {
            self.command(&Command::Delete(id), What::TidyUp, now);
        }
        if self.role == Role::Cycle {
            self.command(&Command::Reserve, What::Reserve, now);
        }
    }

    fn answer_delete(&mut self, key: Key, at_ns: u64, reply: &ClientReply, now: u64, run: &mut Run) {
        if *reply == ClientReply::Deleted {
            run.ledger.deleted(key);
            if run.meter.is_open(now) {
                run.meter.delete.record(now - at_ns);
                if self.role == Role::Cycle {
                    run.meter.cycle.record(now - self.cycle_began_ns);
                }
            }
            return;
        }
        run.meter.error(format!("delete: {}", reply.word()));
        if *reply == ClientReply::NotFound {
            run.ledger.vanished(key);
        } else {
            run.ledger.delete_unknown(key);
        }
    }

    /// Writes what the role sends next, if anything.
    fn refill(&mut self, now: u64, plan: &Plan, run: &mut Run, stage: &mut Stage) {
        match self.role {
            Role::Produce { pipeline, paced } => {
                while self.window < pipeline && !stage.stopping && stage.remaining != Some(0) {
                    if paced && stage.in_flight >= plan.backlog {
                        if !self.parked {
                            self.parked = true;
                            stage.parked.push(self.index);
                        }
                        return;
                    }
                    self.put(now, plan, run, stage);
                }
            }
            Role::Cycle => {
                if self.pending.is_empty() && !stage.stopping {
                    self.cycle_began_ns = now;
                    self.put(now, plan, run, stage);
                }
            }
            Role::Work => {
                if self.pending.is_empty() {
                    self.command(&Command::Reserve, What::Reserve, now);
                }
            }
            Role::Drain => {
                while self.window < DRAIN_DEPTH && !self.exhausted {
                    self.window += 1;
                    self.command(&Command::ReserveWithTimeout(0), What::Reserve, now);
                }
            }
        }
    }

    fn put(&mut self, now: u64, plan: &Plan, run: &mut Run, stage: &mut Stage) {
        if self.tubes.len() > 1 {
            self.turn = (self.turn + 1) % self.tubes.len();
            self.command(&Command::Use(tube(plan, self.tubes[self.turn])), What::Tube, now);
        }
        let producer = u32::try_from(self.index).expect("at most 200,000 connections");
        let key = run.ledger.send(producer);
        let body = run.bodies.stamp(key.producer, key.sequence, now);
        encode_put(PRIORITY, 0, plan.ttr, body, &mut self.link.output);
        self.pending.push_back(Op { what: What::Put(key), at_ns: now });
        self.window += 1;
        stage.in_flight += 1;
        if let Some(remaining) = &mut stage.remaining {
            *remaining -= 1;
        }
    }

    fn command(&mut self, command: &Command<'_>, what: What, now: u64) {
        encode_command(command, &mut self.link.output);
        self.pending.push_back(Op { what, at_ns: now });
    }
}

fn tube(plan: &Plan, index: u32) -> Tube<'_> {
    Tube::new(plan.tubes[index as usize].as_bytes()).expect("the plan's names were checked")
}

/// Numbers the lanes of each kind, so that each kind shares the tubes out among its own.
struct Places {
    /// Of each kind: how many have been numbered, and how many there are.
    kinds: Vec<(Role, usize, usize)>,
}

impl Places {
    fn new(roles: &[Role]) -> Places {
        let mut kinds: Vec<(Role, usize, usize)> = Vec::new();
        for role in roles {
            match kinds.iter_mut().find(|(kind, ..)| kind == role) {
                Some((_, _, of)) => *of += 1,
                None => kinds.push((*role, 0, 1)),
            }
        }
        Places { kinds }
    }

    /// The next lane's number among its kind, and how many those are.
    fn next(&mut self, role: Role) -> (usize, usize) {
        let (_, next, of) =
            self.kinds.iter_mut().find(|(kind, ..)| *kind == role).expect("every role was counted");
        *next += 1;
        (*next - 1, *of)
    }
}

/// A duration as nanoseconds on the run's clock.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}
