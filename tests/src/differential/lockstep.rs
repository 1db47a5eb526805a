//! Runs one sequence against a pair of servers, a command at a time.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant, SystemTime};

use super::compare::{self, Baseline};
use super::pair::{Pair, Side};
use super::step::{CONNECTIONS, JobRef, Mode, Op, Step, TUBES};
use super::{Options, Summary};
use crate::connection::{Connection, Reply, put_request};
use crate::wait;

/// An id that no server reaches.
const NEVER_ID: u64 = 9_000_000_000_000_000;
/// A rest of a timed sequence: whatever was set to one second in the burst before is over afterwards.
const REST: Duration = Duration::from_millis(1500);
/// A burst that takes longer is blurred: what was set to two seconds might be over, or not.
const BURST_MAX: Duration = Duration::from_millis(300);
/// A difference between clock and time that nothing but setting the clock explains.
const CLOCK_SET: Duration = Duration::from_millis(100);

/// How a sequence ended.
#[derive(Debug)]
pub enum Verdict {
    /// No difference.
    Agree(Summary),
    /// A burst took too long for a comparison to mean anything, or the machine's clock was set meanwhile.
    Blurred,
    /// A difference.
    Differ {
        /// What it is.
        what: String,
        /// How many steps had been begun.
        after: usize,
        /// Both conversations.
        transcript: String,
    },
}

/// Runs a sequence and cleans up behind it.
pub fn run(pair: &mut Pair, steps: &[Step], options: &Options) -> Verdict {
    pair.sequences += 1;
    let mut run = match Lockstep::begin(pair, options) {
        Ok(run) => run,
        Err(stop) => return stop.verdict(0, String::new()),
    };
    let mut begun = 0;
    let clock = WallClock::read();
    let outcome = steps.iter().try_for_each(|step| {
        begun += 1;
        run.step(step)
    });
    match outcome.and_then(|()| run.finish()) {
        Ok(()) => Verdict::Agree(run.summary),
        Err(_) if clock.was_set() => Verdict::Blurred,
        Err(stop) => stop.verdict(begun, run.transcript),
    }
}

/// The machine's clock beside the time that really passed. beanstalkd reckons delays and ages by the clock, so that setting
/// it (virtual machines do so now and then) makes jobs due and old at once. Beanpole does not, and then they differ rightly.
struct WallClock {
    wall: SystemTime,
    real: Instant,
}

impl WallClock {
    fn read() -> WallClock {
        WallClock { wall: SystemTime::now(), real: Instant::now() }
    }

    /// Whether the clock has moved by noticeably more or less than the time that passed since.
    fn was_set(&self) -> bool {
        let real = self.real.elapsed();
        self.wall.elapsed().map_or(true, |wall| wall.abs_diff(real) > CLOCK_SET)
    }
}

/// Why a sequence cannot go on.
enum Stop {
    Difference(String),
    Blurred,
}

impl Stop {
    fn verdict(self, after: usize, transcript: String) -> Verdict {
        match self {
            Stop::Difference(what) => Verdict::Differ { what, after, transcript },
            Stop::Blurred => Verdict::Blurred,
        }
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::Difference(format!("a connection failed: {error}"))
    }
}

/// A job as both servers know it.
struct Job {
    left: u64,
    right: u64,
    deleted: bool,
}

/// A connection of the sequence, on both servers, and what is known of it.
struct Client {
    left: Connection,
    right: Connection,
    /// Waits in a reserve.
    waits: bool,
    watched: BTreeSet<usize>,
    /// Numbers of the jobs it holds, as far as its own replies tell.
    held: Vec<usize>,
}

impl Client {
    fn open(pair: &Pair) -> io::Result<Client> {
        let (left, right) = (pair.left.connect()?, pair.right.connect()?);
        Ok(Client { left, right, waits: false, watched: BTreeSet::from([0]), held: Vec::new() })
    }
}

/// A sequence under way.
struct Lockstep<'a> {
    pair: &'a mut Pair,
    clients: Vec<Client>,
    jobs: Vec<Job>,
    tubes: Vec<String>,
    baselines: (Baseline, Baseline),
    mode: Mode,
    patience: Duration,
    /// When the burst of commands under way began.
    burst_began: Instant,
    summary: Summary,
    transcript: String,
}

impl<'a> Lockstep<'a> {
    fn begin(pair: &'a mut Pair, options: &Options) -> Result<Lockstep<'a>, Stop> {
        await_stat(&mut pair.left, "current-connections", 1, options.patience)?;
        await_stat(&mut pair.right, "current-connections", 1, options.patience)?;
        let baselines = (Baseline::read(&mut pair.left)?, Baseline::read(&mut pair.right)?);
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(Client::open(pair)?);
        }
        let mut tubes = vec!["default".to_string()];
        tubes.extend((1..TUBES).map(|number| format!("s{}-{number}", pair.sequences)));
        await_stat(&mut pair.left, "current-connections", 1 + CONNECTIONS as u64, options.patience)?;
        await_stat(&mut pair.right, "current-connections", 1 + CONNECTIONS as u64, options.patience)?;
        Ok(Lockstep {
            pair,
            clients,
            jobs: Vec::new(),
            tubes,
            baselines,
            mode: options.mode,
            patience: options.patience,
            burst_began: Instant::now(),
            summary: Summary::default(),
            transcript: String::new(),
        })
    }

    fn step(&mut self, step: &Step) -> Result<(), Stop> {
        let number = step.connection;
        if step.op == Op::Rest {
            return self.rest();
        }
        if let Op::Reconnect { quit } = step.op {
            return self.reconnect(number, quit);
        }
        if self.clients[number].waits {
            return Ok(());
        }
        let op = self.without_competition(number, &step.op);
        let (left, right) = self.requests(number, &op);
        self.note(&format!("{number} > {}", shown_request(&left)));
        self.clients[number].left.send(&left)?;
        self.clients[number].right.send(&right)?;
        self.summary.commands += 1;
        if let Op::Malformed(text) = op {
            self.pair.left.sent_malformed(text);
            self.pair.right.sent_malformed(text);
        }
        if matches!(op, Op::Reserve | Op::ReserveLong) {
            return self.reserve(number);
        }
        let replies = (self.clients[number].left.reply()?, self.reply_of_right(number)?);
        self.compare(number, &op, &replies)?;
        self.settle()
    }

    /// A reserve that could wait beside another one for the same tube does not wait.
    fn without_competition(&self, number: usize, op: &Op) -> Op {
        let waits = matches!(op, Op::Reserve | Op::ReserveLong);
        let watched = &self.clients[number].watched;
        let competes = self.clients.iter().any(|other| other.waits && !other.watched.is_disjoint(watched));
        // In a timed sequence a waiting reserve could see two timers in an order that a millisecond decides.
        if waits && (competes || self.mode == Mode::Timed) { Op::ReserveNow } else { op.clone() }
    }

    /// A reserve is either answered, on both sides, or waits, on both sides.
    fn reserve(&mut self, number: usize) -> Result<(), Stop> {
        let waiting = 1 + self.waiting_count();
        let patience = self.patience;
        let left = answer_or_wait(&mut self.clients[number].left, &mut self.pair.left, waiting, patience)?;
        let Some(left) = left else {
            let right =
                answer_or_wait(&mut self.clients[number].right, &mut self.pair.right, waiting, patience)?;
            if let Some(reply) = right {
                let reply = compare::shown(&reply);
                return Err(Stop::Difference(format!("the left side waits, the right one says {reply}")));
            }
            self.note(&format!("{number} < (waits)"));
            self.clients[number].waits = true;
            self.summary.waited += 1;
            return Ok(());
        };
        let right = self.reply_of_right(number)?;
        self.compare(number, &Op::Reserve, &(left, right))
    }

    /// After a command: reads the replies of waiting reserves that it ended.
    fn settle(&mut self) -> Result<(), Stop> {
        let waiting = self.waiting_count();
        if waiting == 0 {
            return Ok(());
        }
        let still_waiting = self.pair.left.stat("current-waiting")?;
        let mut woken = waiting.saturating_sub(still_waiting);
        let deadline = Instant::now() + self.patience;
        while woken > 0 {
            for number in 0..self.clients.len() {
                if !self.clients[number].waits {
                    continue;
                }
                let Some(left) = self.clients[number].left.reply_if_any()? else { continue };
                self.clients[number].waits = false;
                let right = self.reply_of_right(number)?;
                self.compare(number, &Op::Reserve, &(left, right))?;
                self.summary.woken += 1;
                woken -= 1;
            }
            if Instant::now() > deadline {
                return Err(Stop::Difference("the left side woke a reserve but does not answer it".into()));
            }
        }
        await_stat(&mut self.pair.right, "current-waiting", still_waiting, self.patience)
    }

    fn waiting_count(&self) -> u64 {
        self.clients.iter().filter(|client| client.waits).count() as u64
    }

    fn reply_of_right(&mut self, number: usize) -> Result<Reply, Stop> {
        let connection = &mut self.clients[number].right;
        connection.set_patience(self.patience);
        connection.reply().map_err(|error| {
            Stop::Difference(format!("no reply from the right side on connection {number}: {error}"))
        })
    }

    /// Compares two replies and learns from them.
    fn compare(&mut self, number: usize, op: &Op, (left, right): &(Reply, Reply)) -> Result<(), Stop> {
        self.note(&format!("{number} < {}", compare::shown(left)));
        if left != right {
            self.note(&format!("    right: {}", compare::shown(right)));
        }
        let jobs = &self.jobs;
        let same_job = |left: u64, right: u64| jobs.iter().any(|j| j.left == left && j.right == right);
        compare::replies(left, right, same_job).map_err(Stop::Difference)?;
        if left.word() == "OK" {
            let compared = if matches!(op, Op::ListTubes | Op::ListTubesWatched) {
                compare::lists(left, right)
            } else if *op == Op::Stats {
                let left = (left, &self.pair.left, &self.baselines.0);
                compare::server_stats(left, (right, &self.pair.right, &self.baselines.1))
            } else {
                compare::stats(left, right, same_job)
            };
            compared.map_err(|difference| Stop::Difference(format!("{op:?}: {difference}")))?;
        }
        self.learn(number, op, left, right);
        Ok(())
    }

    fn learn(&mut self, number: usize, op: &Op, left: &Reply, right: &Reply) {
        if left.word() == "INSERTED" {
            self.jobs.push(Job { left: left.number(), right: right.number(), deleted: false });
        }
        let named = |jobs: &[Job], reply: &Reply| jobs.iter().position(|job| job.left == reply.number());
        if left.word() == "RESERVED"
            && let Some(job) = named(&self.jobs, left)
        {
            self.clients[number].held.push(job);
        }
        match (op, left.word()) {
            (Op::Watch(tube), "WATCHING") => {
                self.clients[number].watched.insert(*tube);
            }
            (Op::Ignore(tube), "WATCHING") => {
                self.clients[number].watched.remove(tube);
            }
            (Op::Delete(job), "DELETED") => {
                if let Some(job) = self.resolve(number, *job) {
                    self.jobs[job].deleted = true;
                    self.clients.iter_mut().for_each(|client| client.held.retain(|held| *held != job));
                }
            }
            (Op::Release(job, ..) | Op::Bury(job, _) | Op::Touch(job), word) if word != "TOUCHED" => {
                if let Some(job) = self.resolve(number, *job) {
                    self.clients[number].held.retain(|held| *held != job);
                }
            }
            _ => {}
        }
    }

    /// The number of the job that a reference means now.
    fn resolve(&self, number: usize, job: JobRef) -> Option<usize> {
        let pick = |candidates: Vec<usize>, at: usize| {
            if candidates.is_empty() { None } else { Some(candidates[at % candidates.len()]) }
        };
        let with = |deleted: bool| {
            (0..self.jobs.len()).filter(|job| self.jobs[*job].deleted == deleted).collect::<Vec<_>>()
        };
        match job {
            JobRef::Held(at) => pick(self.clients[number].held.clone(), at).or_else(|| pick(with(false), at)),
            JobRef::Live(at) => pick(with(false), at),
            JobRef::Gone(at) => pick(with(true), at),
            JobRef::Never => None,
        }
    }

    /// The bytes of a step for either side; they differ in job ids only.
    fn requests(&self, number: usize, op: &Op) -> (Vec<u8>, Vec<u8>) {
        let line = |line: String| (format!("{line}\r\n").into_bytes(), format!("{line}\r\n").into_bytes());
        let with_id = |job: &JobRef, before: &str, behind: String| {
            let ids = self.resolve(number, *job).map(|job| (self.jobs[job].left, self.jobs[job].right));
            let (left, right) = ids.unwrap_or((NEVER_ID, NEVER_ID));
            let request = |id: u64| format!("{before} {id}{behind}\r\n").into_bytes();
            (request(left), request(right))
        };
        let none = String::new;
        match op {
            Op::Put { pri, delay_s, ttr_s, body, terminated } => {
                let mut request = put_request(*pri, *delay_s, *ttr_s, body);
                if !terminated {
                    let end = request.len() - 2;
                    request[end..].copy_from_slice(b"xy");
                }
                (request.clone(), request)
            }
            Op::Use(tube) => line(format!("use {}", self.tubes[*tube])),
            Op::Watch(tube) => line(format!("watch {}", self.tubes[*tube])),
            Op::Ignore(tube) => line(format!("ignore {}", self.tubes[*tube])),
            Op::StatsTube(tube) => line(format!("stats-tube {}", self.tubes[*tube])),
            Op::PauseTube(tube, delay_s) => line(format!("pause-tube {} {delay_s}", self.tubes[*tube])),
            Op::Reserve => line("reserve".into()),
            Op::ReserveLong => line("reserve-with-timeout 1000".into()),
            Op::ReserveNow => line("reserve-with-timeout 0".into()),
            Op::ReserveJob(job) => with_id(job, "reserve-job", none()),
            Op::Delete(job) => with_id(job, "delete", none()),
            Op::Release(job, pri, delay_s) => with_id(job, "release", format!(" {pri} {delay_s}")),
            Op::Bury(job, pri) => with_id(job, "bury", format!(" {pri}")),
            Op::Touch(job) => with_id(job, "touch", none()),
            Op::Kick(bound) => line(format!("kick {bound}")),
            Op::KickJob(job) => with_id(job, "kick-job", none()),
            Op::Peek(job) => with_id(job, "peek", none()),
            Op::PeekReady => line("peek-ready".into()),
            Op::PeekDelayed => line("peek-delayed".into()),
            Op::PeekBuried => line("peek-buried".into()),
            Op::Stats => line("stats".into()),
            Op::StatsJob(job) => with_id(job, "stats-job", none()),
            Op::ListTubes => line("list-tubes".into()),
            Op::ListTubeUsed => line("list-tube-used".into()),
            Op::ListTubesWatched => line("list-tubes-watched".into()),
            Op::Malformed(text) => line((*text).into()),
            Op::Reconnect { .. } | Op::Rest => (Vec::new(), Vec::new()),
        }
    }

    /// Ends a connection, sees its jobs come back and its tubes let go, and opens it anew.
    fn reconnect(&mut self, number: usize, quit: bool) -> Result<(), Stop> {
        self.note(&format!("{number} ! {}", if quit { "quits" } else { "closes" }));
        let fresh = Client::open(self.pair)?;
        let mut old = std::mem::replace(&mut self.clients[number], fresh);
        if quit && !old.waits {
            old.left.send(b"quit\r\n")?;
            old.right.send(b"quit\r\n")?;
            if !(old.left.is_closed_by_server() && old.right.is_closed_by_server()) {
                return Err(Stop::Difference("quit does not close".into()));
            }
        }
        let held = std::mem::take(&mut old.held);
        drop(old);
        let connections = 1 + self.clients.len() as u64;
        await_stat(&mut self.pair.left, "current-connections", connections, self.patience)?;
        await_stat(&mut self.pair.right, "current-connections", connections, self.patience)?;
        self.settle()?;
        for job in held {
            let Job { left, right, .. } = self.jobs[job];
            self.await_same(&format!("stats-job {left}"), &format!("stats-job {right}"))?;
        }
        for tube in self.tubes.clone() {
            let command = format!("stats-tube {tube}");
            self.await_same(&command, &command)?;
        }
        Ok(())
    }

    /// Waits until both sides tell the same. The count of connections may be right for a moment before the old one is gone,
    /// when the new one is not accepted yet: so both are asked again and again.
    fn await_same(&mut self, left: &str, right: &str) -> Result<(), Stop> {
        let mut last = Ok(());
        let pair = &mut self.pair;
        let mut observe = || Ok::<_, io::Error>((pair.left.observe(left)?, pair.right.observe(right)?));
        let seen = wait::until_within(self.patience, || match observe() {
            Ok((wanted, got)) => {
                last = compare::replies(&wanted, &got, |_, _| true)
                    .and_then(|()| compare::stats(&wanted, &got, |_, _| true));
                last.is_ok().then_some(())
            }
            Err(error) => {
                last = Err(error.to_string());
                None
            }
        });
        match (seen, last) {
            (Some(()), _) | (None, Ok(())) => Ok(()),
            (None, Err(difference)) => {
                Err(Stop::Difference(format!("{left}, after a connection was closed: {difference}")))
            }
        }
    }

    /// Lets more than a second go by.
    fn rest(&mut self) -> Result<(), Stop> {
        if self.burst_began.elapsed() > BURST_MAX {
            return Err(Stop::Blurred);
        }
        self.note("(rest)");
        // The one place where time itself is the matter.
        let rest_began = Instant::now();
        std::thread::sleep(REST);
        // A machine that stood still: Beanpole's lease clock leaves such time out, so that no job is taken from its worker by it.
        if rest_began.elapsed() > REST + BURST_MAX {
            return Err(Stop::Blurred);
        }
        self.burst_began = Instant::now();
        Ok(())
    }

    /// Closes all connections and empties both servers, which must be possible and must leave nothing.
    fn finish(&mut self) -> Result<(), Stop> {
        if self.mode == Mode::Timed && self.burst_began.elapsed() > BURST_MAX {
            return Err(Stop::Blurred);
        }
        self.clients.clear();
        let ids = |side: fn(&Job) -> u64| self.jobs.iter().filter(|j| !j.deleted).map(side).collect();
        let (left, right): (Vec<u64>, Vec<u64>) = (ids(|job| job.left), ids(|job| job.right));
        for (side, mut ids) in [(&mut self.pair.left, left), (&mut self.pair.right, right)] {
            await_stat(side, "current-connections", 1, self.patience)?;
            let empty = wait::until_within(self.patience, || {
                ids = side.delete_all(&ids).ok()?;
                ids.is_empty().then_some(())
            });
            if empty.is_none() {
                return Err(Stop::Difference(format!("the {} side cannot delete {ids:?}", side.name)));
            }
            side.observe("pause-tube default 0")?;
            await_stat(side, "current-tubes", 1, self.patience)?;
            for state in ["urgent", "ready", "reserved", "delayed", "buried"] {
                await_stat(side, &format!("current-jobs-{state}"), 0, self.patience)?;
            }
        }
        self.summary.sequences = 1;
        Ok(())
    }

    fn note(&mut self, line: &str) {
        self.transcript.push_str("  ");
        self.transcript.push_str(line);
        self.transcript.push('\n');
    }
}

/// Reads the reply of a reserve, or sees the side count one more that waits.
fn answer_or_wait(
    connection: &mut Connection,
    side: &mut Side,
    waiting: u64,
    patience: Duration,
) -> Result<Option<Reply>, Stop> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(reply) = connection.reply_if_any()? {
            return Ok(Some(reply));
        }
        if side.stat("current-waiting")? == waiting {
            return Ok(None);
        }
        if Instant::now() > deadline {
            return Err(Stop::Difference(format!("a reserve of the {} side is nowhere", side.name)));
        }
    }
}

fn await_stat(side: &mut Side, key: &str, wanted: u64, patience: Duration) -> Result<(), Stop> {
    let mut last = 0;
    let seen = wait::until_within(patience, || {
        last = side.stat(key).ok()?;
        (last == wanted).then_some(())
    });
    let name = side.name;
    seen.ok_or_else(|| Stop::Difference(format!("{key} of the {name} side is {last}, never {wanted}")))
}

/// A request for people: long bodies are cut.
fn shown_request(request: &[u8]) -> String {
    let text = request.strip_suffix(b"\r\n").unwrap_or(request);
    let cut = &text[..text.len().min(120)];
    let more = if cut.len() < text.len() { format!("... ({} bytes)", text.len()) } else { String::new() };
    format!("{}{more}", cut.escape_ascii())
}
