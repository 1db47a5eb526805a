//! The long crash run: `crash --rounds 50 [--seed N] [--against beanstalkd]`.
//!
//! The server under test is this very binary (`crash serve`) unless `BEANPOLE_BIN` names another one.
//! beanstalkd fails in the first round: its binlog keeps neither reserve counts nor pauses.

use std::process::ExitCode;
use std::time::Instant;

use beanpole_tests::crash::{self, Options};
use beanpole_tests::server::Setup;

const USAGE: &str = "usage: crash [--rounds N] [--seed N] [--against beanpole|beanstalkd]";

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("serve") {
        return beanpole::main();
    }
    let mut words = std::env::args().skip(1);
    let mut options = Options { rounds: 50, seed: rand::random() };
    let mut setup = Some(Setup::beanpole(std::env::current_exe().expect("this program has a path")));
    while let Some(word) = words.next() {
        let understood = match word.as_str() {
            "--rounds" => words.next().and_then(|n| n.parse().ok()).map(|n| options.rounds = n),
            "--seed" => words.next().and_then(|n| n.parse().ok()).map(|n| options.seed = n),
            "--against" => match words.next().as_deref() {
                Some("beanstalkd") => {
                    setup = Setup::beanstalkd().map(Setup::persistent);
                    Some(())
                }
                Some("beanpole") => Some(()),
                _ => None,
            },
            _ => None,
        };
        if understood.is_none() {
            eprintln!("not understood: {word}\n{USAGE}");
            return ExitCode::from(2);
        }
    }
    let Some(setup) = setup else {
        beanpole_tests::extra::skipped("crash", "beanstalkd is not installed");
        return ExitCode::from(2);
    };
    let begun = Instant::now();
    match crash::run(&setup, &options) {
        Ok(summary) => {
            println!("{summary:?} in {:.1} s", begun.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(faults) => {
            eprintln!("{faults}");
            ExitCode::FAILURE
        }
    }
}
