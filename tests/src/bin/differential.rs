//! The long differential run: `differential --sequences 1000 --seed 1 [--steps 500] [--timed] [--jobs 2]`.
//!
//! beanstalkd is the oracle. The server under test is this very binary, started as `differential serve`,
//! so it is always the code as it is now; `BEANPOLE_BIN` names another one, `--against beanstalkd` another
//! product (a proof that the test agrees with itself).

use std::process::ExitCode;
use std::time::Instant;

use beanpole_tests::differential::{self, Mode, Options, Pair, Summary};
use beanpole_tests::server::Setup;

const USAGE: &str = "usage: differential [--sequences N] [--steps N] [--seed N] [--jobs N] [--timed] \
                     [--against beanpole|beanstalkd]";

/// What was asked for.
struct Arguments {
    options: Options,
    /// Pairs of servers that work side by side.
    jobs: u64,
    against_oracle: bool,
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("serve") {
        return beanpole::main();
    }
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(what) => {
            eprintln!("{what}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let Some(oracle) = Setup::beanstalkd() else {
        beanpole_tests::extra::skipped("differential", "beanstalkd is not installed");
        return ExitCode::from(2);
    };
    let under_test = if arguments.against_oracle {
        oracle.clone()
    } else {
        Setup::beanpole(std::env::current_exe().expect("this program has a path"))
    };
    run(&arguments, &oracle, &under_test)
}

fn run(arguments: &Arguments, oracle: &Setup, under_test: &Setup) -> ExitCode {
    let begun = Instant::now();
    let open = || Pair::start(oracle, under_test);
    let results = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..arguments.jobs)
            .map(|job| {
                let options = share(arguments, job);
                scope.spawn(move || differential::run(&options, &open))
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker does not panic")).collect::<Vec<_>>()
    });
    let mut summary = Summary::default();
    let mut failed = false;
    for result in results {
        match result {
            Ok(done) => summary.add(done),
            Err(error) => {
                failed = true;
                eprintln!("{error}");
            }
        }
    }
    println!(
        "{} sequences from seed {}, {} commands to each server, {} reserves waited, {} were woken, {} blurred: {} ({:.1} s)",
        summary.sequences,
        arguments.options.seed,
        summary.commands,
        summary.waited,
        summary.woken,
        summary.blurred,
        if failed { "DIFFER" } else { "agree" },
        begun.elapsed().as_secs_f64()
    );
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The part of the sequences that one pair of servers works on.
fn share(arguments: &Arguments, job: u64) -> Options {
    let (total, jobs) = (arguments.options.sequences, arguments.jobs);
    let first = total * job / jobs;
    let end = total * (job + 1) / jobs;
    let seed = arguments.options.seed.wrapping_add(first);
    Options { seed, sequences: end - first, ..arguments.options.clone() }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let options = Options { sequences: 1000, ..Options::default() };
    let mut arguments = Arguments { options, jobs: 2, against_oracle: false };
    while let Some(word) = words.next() {
        let mut number = || -> Result<u64, String> {
            let value = words.next().ok_or(format!("{word} needs a number"))?;
            value.parse().map_err(|_| format!("{word} {value}: not a number"))
        };
        match word.as_str() {
            "--sequences" => arguments.options.sequences = number()?,
            "--seed" => arguments.options.seed = number()?,
            "--jobs" => arguments.jobs = number()?.clamp(1, 64),
            "--steps" => {
                arguments.options.steps = usize::try_from(number()?).map_err(|_| "--steps: too many")?;
            }
            "--timed" => arguments.options.mode = Mode::Timed,
            "--against" => {
                arguments.against_oracle = match words.next().as_deref() {
                    Some("beanstalkd") => true,
                    Some("beanpole") => false,
                    _ => return Err("--against beanpole|beanstalkd".into()),
                };
            }
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    Ok(arguments)
}
