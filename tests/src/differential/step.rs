//! The commands of a sequence and how they are made from a seed.
//!
//! A step names jobs by what is known of them when it runs ("the third one that I hold"), not by id: ids
//! differ between servers, and a sequence must keep its sense when steps are left out.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::pair::MAX_JOB_SIZE;

/// Connections that take part in a sequence.
pub const CONNECTIONS: usize = 4;
/// Tubes of a sequence; number 0 is `default`.
pub const TUBES: usize = 4;
/// Steps between two pauses of a timed sequence.
const BURST_STEPS: usize = 25;

/// Whether time plays a part in a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Delays and pauses are none or very long: fast, and nothing can be blurred by time.
    Timeless,
    /// They may also be one or two seconds, and between short bursts of commands the sequence rests until
    /// they are over.
    Timed,
}

/// One command on one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Which connection.
    pub connection: usize,
    /// What it does.
    pub op: Op,
}

/// Which job a step means. The number picks one of several, modulo their count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobRef {
    /// One that this connection holds, or any when it holds none.
    Held(usize),
    /// Any that was put and not deleted.
    Live(usize),
    /// One that was deleted.
    Gone(usize),
    /// An id that was never given.
    Never,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Puts a job into the used tube.
    Put {
        /// Priority.
        pri: u32,
        /// Delay in seconds.
        delay_s: u32,
        /// Time to run in seconds.
        ttr_s: u32,
        /// The body.
        body: Vec<u8>,
        /// Whether CRLF follows the body as it must.
        terminated: bool,
    },
    /// `use`
    Use(usize),
    /// `watch`
    Watch(usize),
    /// `ignore`
    Ignore(usize),
    /// `reserve`, which may wait.
    Reserve,
    /// `reserve-with-timeout 1000`, which may wait.
    ReserveLong,
    /// `reserve-with-timeout 0`
    ReserveNow,
    /// `reserve-job`
    ReserveJob(JobRef),
    /// `delete`
    Delete(JobRef),
    /// `release` with priority and delay in seconds.
    Release(JobRef, u32, u32),
    /// `bury` with priority.
    Bury(JobRef, u32),
    /// `touch`
    Touch(JobRef),
    /// `kick` with its bound.
    Kick(u32),
    /// `kick-job`
    KickJob(JobRef),
    /// `peek`
    Peek(JobRef),
    /// `peek-ready`
    PeekReady,
    /// `peek-delayed`
    PeekDelayed,
    /// `peek-buried`
    PeekBuried,
    /// `stats`
    Stats,
    /// `stats-job`
    StatsJob(JobRef),
    /// `stats-tube`
    StatsTube(usize),
    /// `list-tubes`
    ListTubes,
    /// `list-tube-used`
    ListTubeUsed,
    /// `list-tubes-watched`
    ListTubesWatched,
    /// `pause-tube` with its seconds.
    PauseTube(usize, u32),
    /// A line that is answered with an error.
    Malformed(&'static str),
    /// Ends the connection, by `quit` or by closing, and opens it anew.
    Reconnect {
        /// `quit` rather than a close.
        quit: bool,
    },
    /// Timed sequences: rests until everything short is over.
    Rest,
}

/// Malformed lines that beanstalkd counts all the same, with the key of `stats` that does.
/// [`Side::sent_malformed`](super::Side::sent_malformed) tells why.
pub const MISCOUNTED: &[(&str, &str)] = &[
    ("put 0 0 60 1 ", "cmd-put"),
    ("put 0 0 60 1x", "cmd-put"),
    ("put 0 0 60 1 x", "cmd-put"),
    ("pause-tube -x 1", "cmd-pause-tube"),
];

/// Lines with one certain reply, the same in 1.12 and 1.13, that nobody counts.
const MALFORMED: &[&str] = &[
    "",
    "put",
    "put 0 0 60",
    "put a 0 60 1",
    "put 4294967296 0 60 1",
    "delete",
    "delete x",
    "delete 1 2",
    "delete -1",
    "delete 18446744073709551616",
    "release 1",
    "release 1 1",
    "release 1 1 1 1",
    "bury 1",
    "bury 1 x",
    "touch",
    "touch 1x",
    "reservex",
    "reserve-with-timeout",
    "reserve-job x",
    "kick x",
    "kick",
    "kick-job",
    "kick-job 1 ",
    "peek",
    "peek 1x",
    "peek-readyx",
    "peek-delayed ",
    "peek-buried 1",
    "use -x",
    "use a b",
    "watch",
    "watch \u{e9}",
    "ignore -",
    "stats-job",
    "stats-job 1 1",
    "stats-tube -x",
    "statsx",
    "list-tubes ",
    "list-tube-used x",
    "list-tubes-watchedx",
    "pause-tube",
    "pause-tube default",
    "pause-tube default x",
    "pause-tube default 1 ",
    "pause-tube a b 1",
    "Stats",
    " stats",
    "nonsense",
];

/// Makes the sequence of a seed.
pub fn generate(seed: u64, steps: usize, mode: Mode) -> Vec<Step> {
    let mut rng = StdRng::seed_from_u64(seed);
    // Half of the sequences have few jobs and many workers that wait for one.
    let scarce = rng.random_bool(0.5);
    (0..steps)
        .map(|number| {
            let connection = rng.random_range(0..CONNECTIONS);
            let rests = mode == Mode::Timed && number % BURST_STEPS == BURST_STEPS - 1;
            let mut op = if rests { Op::Rest } else { random_op(&mut rng, mode) };
            if scarce && matches!(op, Op::Put { .. }) && rng.random_bool(0.6) {
                op = Op::Reserve;
            }
            Step { connection, op }
        })
        .collect()
}

fn random_op(rng: &mut StdRng, mode: Mode) -> Op {
    // The share of each command, in permille.
    match rng.random_range(0..1000) {
        0..220 => random_put(rng, mode),
        220..330 => Op::ReserveNow,
        330..380 => Op::Reserve,
        380..400 => Op::ReserveLong,
        400..440 => Op::ReserveJob(random_job(rng, 0)),
        440..520 => Op::Delete(random_job(rng, 50)),
        520..580 => Op::Release(random_job(rng, 85), random_pri(rng), random_delay_s(rng, mode)),
        580..640 => Op::Bury(random_job(rng, 85), random_pri(rng)),
        640..670 => Op::Touch(random_job(rng, 85)),
        670..700 => Op::Kick(*[0, 1, 1, 2, 3, 1000].choose(rng).expect("not empty")),
        700..730 => Op::KickJob(random_job(rng, 0)),
        730..755 => Op::Peek(random_job(rng, 30)),
        755..775 => Op::PeekReady,
        775..795 => Op::PeekDelayed,
        795..815 => Op::PeekBuried,
        815..830 => Op::Stats,
        830..875 => Op::StatsJob(random_job(rng, 30)),
        875..905 => Op::StatsTube(rng.random_range(0..TUBES)),
        905..912 => Op::ListTubes,
        912..916 => Op::ListTubeUsed,
        916..922 => Op::ListTubesWatched,
        922..942 => Op::Use(rng.random_range(0..TUBES)),
        942..960 => Op::Watch(rng.random_range(0..TUBES)),
        960..970 => Op::Ignore(rng.random_range(0..TUBES)),
        970..982 => random_pause(rng, mode),
        982..992 => Op::Malformed(random_malformed(rng)),
        _ => Op::Reconnect { quit: rng.random_bool(0.5) },
    }
}

fn random_malformed(rng: &mut StdRng) -> &'static str {
    let pick = rng.random_range(0..MALFORMED.len() + MISCOUNTED.len());
    MALFORMED.get(pick).copied().unwrap_or_else(|| MISCOUNTED[pick - MALFORMED.len()].0)
}

fn random_put(rng: &mut StdRng, mode: Mode) -> Op {
    let len = match rng.random_range(0..40) {
        // Around the limit, and far beyond.
        0 => rng.random_range(MAX_JOB_SIZE - 1..=MAX_JOB_SIZE + 1),
        1 => MAX_JOB_SIZE * 3,
        2 => 0,
        _ => rng.random_range(1..40),
    };
    let body = (0..len).map(|_| *b"ab\r\n \0\xff".choose(rng).expect("not empty")).collect();
    Op::Put {
        pri: random_pri(rng),
        delay_s: random_delay_s(rng, mode),
        // Never short: beanstalkd forgets to expire jobs now and then (the script ttr-expires-amid-traffic
        // tells more), and so is no oracle for that.
        ttr_s: *[60, 1000, u32::MAX].choose(rng).expect("not empty"),
        body,
        terminated: rng.random_bool(0.97),
    }
}

fn random_pri(rng: &mut StdRng) -> u32 {
    *[0, 1, 2, 2, 1023, 1024, 5000, u32::MAX].choose(rng).expect("not empty")
}

fn random_delay_s(rng: &mut StdRng, mode: Mode) -> u32 {
    let long = *[0, 0, 0, 0, 0, 1000, 2000, u32::MAX].choose(rng).expect("not empty");
    match mode {
        Mode::Timeless => long,
        Mode::Timed => *[0, 0, 1, 2, long].choose(rng).expect("not empty"),
    }
}

fn random_pause(rng: &mut StdRng, mode: Mode) -> Op {
    let delay_s = match mode {
        Mode::Timeless => *[0, 0, 1000].choose(rng).expect("not empty"),
        Mode::Timed => *[0, 1, 2, 1000].choose(rng).expect("not empty"),
    };
    Op::PauseTube(rng.random_range(0..TUBES), delay_s)
}

/// A reference that means a held job in `held_percent` of the cases.
fn random_job(rng: &mut StdRng, held_percent: u32) -> JobRef {
    let pick = rng.random_range(0..1000);
    if rng.random_range(0..100) < held_percent {
        return JobRef::Held(pick);
    }
    match rng.random_range(0..20) {
        0 => JobRef::Never,
        1 | 2 => JobRef::Gone(pick),
        _ => JobRef::Live(pick),
    }
}
