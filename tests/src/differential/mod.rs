//! Random commands over several connections, run in lockstep against two servers, every reply compared.
//!
//! The left server is the oracle (beanstalkd), the right one is under test. A sequence of [`Step`]s is
//! made from a seed; each step is sent to both servers and its replies are compared after job ids have
//! been mapped and the few values that legitimately differ (ages, process data) have been set aside.
//!
//! ```text
//!            step k                      step k+1
//!  left   --[command]--reply--(settle)--[command]-- ...      settle: who of those that wait in a
//!  right  --[command]--reply--(settle)--[command]-- ...      reserve was woken? Read their replies.
//! ```
//!
//! Lockstep needs to know when nothing more will come. beanstalkd is one thread, so after a reply its
//! `current-waiting` says exactly how many waiting reserves the command left; those that are missing must
//! have been answered on the left, and then must be answered on the right as well. No sleeps, no guesses.
//!
//! Which of *several* waiting workers of one tube gets a job is not part of the protocol (beanstalkd picks
//! from an unordered set), so a reserve never waits where another one already waits for the same tube.

mod compare;
mod lockstep;
mod pair;
mod shrink;
mod step;

use std::time::{Duration, Instant};

pub use lockstep::Verdict;
pub use pair::{OpenPair, Pair, Side};
pub use step::{Mode, Step, generate};

use crate::server::StartError;

/// What is to be compared.
#[derive(Debug, Clone)]
pub struct Options {
    /// Seed of the first sequence; sequence k has `seed + k`.
    pub seed: u64,
    /// Number of sequences.
    pub sequences: u64,
    /// Commands per sequence.
    pub steps: usize,
    /// Whether time plays a part.
    pub mode: Mode,
    /// How long the right server may take to show what the left one has shown.
    pub patience: Duration,
    /// How long a sequence that differs may be shortened.
    pub shrink_limit: Duration,
}

/// While shortening, many attempts end by the right server not answering: that must not take long.
const SHRINK_PATIENCE: Duration = Duration::from_millis(200);

impl Default for Options {
    fn default() -> Options {
        Options {
            seed: 1,
            sequences: 1,
            steps: 500,
            mode: Mode::Timeless,
            patience: Duration::from_secs(5),
            shrink_limit: Duration::from_secs(60),
        }
    }
}

/// What a run that found no difference has done.
#[derive(Debug, Default, Clone, Copy)]
pub struct Summary {
    /// Sequences that agreed.
    pub sequences: u64,
    /// Commands sent to each server.
    pub commands: u64,
    /// Sequences given up because time blurred them: a burst took too long (timed mode only), or the machine's clock was set.
    pub blurred: u64,
    /// Reserves that had to wait.
    pub waited: u64,
    /// Waiting reserves that another connection's command ended.
    pub woken: u64,
}

impl Summary {
    /// Adds another run's numbers.
    pub fn add(&mut self, other: Summary) {
        self.sequences += other.sequences;
        self.commands += other.commands;
        self.blurred += other.blurred;
        self.waited += other.waited;
        self.woken += other.woken;
    }
}

/// A difference, with the shortest sequence found that still shows it.
#[derive(Debug, thiserror::Error)]
#[error(
    "the servers differ in sequence {seed}: {what}\n\
     --- {} of {steps} commands are enough; left is the oracle, right is under test ---\n{transcript}",
    shortest.len()
)]
pub struct Mismatch {
    /// Seed of the sequence.
    pub seed: u64,
    /// The difference.
    pub what: String,
    /// Length of the sequence as generated.
    pub steps: usize,
    /// What is left of it after shrinking.
    pub shortest: Vec<Step>,
    /// Both conversations of the shortest sequence.
    pub transcript: String,
}

/// Why a run did not end well.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The servers differ.
    #[error("{0}")]
    Mismatch(Box<Mismatch>),
    /// A server did not start.
    #[error("{0}")]
    Start(#[from] StartError),
}

/// Compares two servers on many random sequences. The same pair of processes serves all of them; `open`
/// starts a fresh pair, at the beginning and for each attempt to shorten a sequence that differs.
pub fn run(options: &Options, open: &OpenPair) -> Result<Summary, RunError> {
    let mut pair = open()?;
    let mut summary = Summary::default();
    for number in 0..options.sequences {
        let seed = options.seed.wrapping_add(number);
        let steps = generate(seed, options.steps, options.mode);
        match lockstep::run(&mut pair, &steps, options) {
            Verdict::Agree(done) => summary.add(done),
            Verdict::Blurred => {
                summary.blurred += 1;
                // It was given up where it stood: its jobs are still there.
                pair = open()?;
            }
            Verdict::Differ { what, .. } => {
                drop(pair);
                return Err(RunError::Mismatch(Box::new(explain(options, open, seed, steps, what))));
            }
        }
    }
    Ok(summary)
}

/// Shortens a sequence that differs and tells its story.
fn explain(options: &Options, open: &OpenPair, seed: u64, steps: Vec<Step>, what: String) -> Mismatch {
    let length = steps.len();
    let limit = Instant::now() + options.shrink_limit;
    let options = Options { patience: options.patience.min(SHRINK_PATIENCE), ..options.clone() };
    // Servers that agreed are clean and serve the next attempt.
    let mut clean: Option<Pair> = None;
    let attempt = |steps: &[Step]| {
        let mut pair = clean.take().or_else(|| open().ok())?;
        match lockstep::run(&mut pair, steps, &options) {
            Verdict::Differ { what, transcript, after } => Some((after, (what, transcript))),
            Verdict::Agree(_) => {
                clean = Some(pair);
                None
            }
            Verdict::Blurred => None,
        }
    };
    match shrink::shrink(steps.clone(), limit, attempt) {
        Some((shortest, (what, transcript))) => Mismatch { seed, what, steps: length, shortest, transcript },
        None => Mismatch {
            seed,
            what: format!("{what} (but not again, on fresh servers)"),
            steps: length,
            shortest: steps,
            transcript: String::new(),
        },
    }
}
