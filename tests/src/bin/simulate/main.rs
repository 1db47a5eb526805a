//! Simulated clusters: `simulate --seed 1 [--seeds 1000] [--jobs 2] [--trace] [--twice]`.
//!
//! Every seed runs in a process of its own, whose randomness is that of the seed. A seed that fails prints what is
//! wrong and the command that repeats it.

mod entropy;

use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use beanpole_tests::sim;

const USAGE: &str = "usage: simulate --seed N [--seeds COUNT] [--jobs N] [--trace] [--twice]";
/// The first argument of a process that runs one seed.
const ONE: &str = "one";

/// Violations of one seed that are printed.
const SHOWN_MAX: usize = 5;

/// What was asked for.
struct Arguments {
    seed: u64,
    seeds: u64,
    jobs: u64,
    /// Show every event.
    trace: bool,
    /// Run every seed twice and compare.
    twice: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == ONE) {
        return one(&arguments[1..]);
    }
    match parse(&arguments) {
        Ok(arguments) => run(&arguments),
        Err(what) => {
            eprintln!("{what}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn parse(arguments: &[String]) -> Result<Arguments, String> {
    let mut parsed = Arguments { seed: 1, seeds: 1, jobs: 1, trace: false, twice: false };
    let mut left = arguments.iter();
    while let Some(name) = left.next() {
        let mut number = || {
            let value = left.next().ok_or_else(|| format!("{name} needs a number"))?;
            value.parse::<u64>().map_err(|_| format!("{name} needs a number, not {value:?}"))
        };
        match name.as_str() {
            "--seed" => parsed.seed = number()?,
            "--seeds" => parsed.seeds = number()?,
            "--jobs" => parsed.jobs = number()?.max(1),
            "--trace" => parsed.trace = true,
            "--twice" => parsed.twice = true,
            _ => return Err(format!("unknown argument {name:?}")),
        }
    }
    Ok(parsed)
}

/// Runs one seed in this process, whose randomness is the seed's from here on.
fn one(arguments: &[String]) -> ExitCode {
    let seed = arguments.first().and_then(|seed| seed.parse().ok()).expect("started by this very program");
    let print = arguments.iter().any(|argument| argument == "--trace");
    // What it draws is not the simulation's.
    logging();
    entropy::seed(seed);
    // A new thread: what was drawn for this one before is not its.
    let report = std::thread::spawn(move || sim::run(seed, print)).join();
    let Ok(report) = report else { return ExitCode::from(3) };
    for violation in report.violations.iter().take(SHOWN_MAX) {
        println!("VIOLATION {violation}");
    }
    if report.violations.len() > SHOWN_MAX {
        println!("VIOLATION and {} more", report.violations.len() - SHOWN_MAX);
    }
    let counts = report.counts;
    println!(
        "seed {seed}: {} faults, {} answered, {} unknown, {} inserted, {} handed out, {} deleted, {} events, \
         {:.1} s, hash {:016x}",
        report.faults,
        counts.answered,
        counts.unknown,
        counts.inserted,
        counts.handed_out,
        counts.deleted,
        report.events,
        report.simulated.as_secs_f64(),
        report.hash
    );
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What the nodes log, when `RUST_LOG` asks for it.
fn logging() {
    if let Ok(filter) = std::env::var("RUST_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false).init();
    }
}

fn run(arguments: &Arguments) -> ExitCode {
    let begun = Instant::now();
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                loop {
                    let nth = next.fetch_add(1, Relaxed);
                    if nth >= arguments.seeds {
                        return;
                    }
                    if !judge(arguments, arguments.seed.wrapping_add(nth)) {
                        failed.fetch_add(1, Relaxed);
                    }
                }
            });
        }
    });
    let (failed, took) = (failed.into_inner(), begun.elapsed().as_secs_f64());
    let rate = arguments.seeds as f64 / took;
    println!(
        "{} seeds from {}: {failed} failed; {took:.1} s, {rate:.1} per second",
        arguments.seeds, arguments.seed
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a seed in a process of its own; false when something is wrong.
fn judge(arguments: &Arguments, seed: u64) -> bool {
    let (sound, said) = spawn(arguments, seed);
    if arguments.seeds == 1 || !sound {
        print!("{said}");
    }
    let repeats = !arguments.twice || {
        let (_, again) = spawn(arguments, seed);
        let same = again == said;
        if !same {
            println!("VIOLATION seed {seed} went another way the second time:\n{said}{again}");
        }
        same
    };
    if !sound || !repeats {
        println!("repeat it: cargo run --release -p beanpole-tests --bin simulate -- --seed {seed} --trace");
    }
    sound && repeats
}

fn spawn(arguments: &Arguments, seed: u64) -> (bool, String) {
    let program = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new(program);
    command.arg(ONE).arg(seed.to_string()).stderr(Stdio::inherit());
    if arguments.trace {
        command.arg("--trace");
    }
    let output = command.output().expect("this program can be started once more");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}
