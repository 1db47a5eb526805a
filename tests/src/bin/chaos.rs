//! Random faults under load: `chaos --seconds 1800 [--seed N] [--rate N] [--report FILE]`.
//!
//! The server under test is this very binary unless `BEANPOLE_BIN` names another one. Exit code 0: nothing was lost, doubled,
//! held by two or acknowledged by a node that was cut off, and all nodes have the same state.

use std::path::PathBuf;
use std::process::ExitCode;

use beanpole_tests::chaos::{self, Options};

const USAGE: &str = "usage: chaos [--seconds N] [--seed N] [--rate N] [--report FILE]";
/// The verbs of the server, as which this binary is started again.
const VERBS: [&str; 5] = ["serve", "dev", "bench", "cluster", "node"];

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|word| VERBS.contains(&word.as_str())) {
        return beanpole::main();
    }
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(what) => {
            eprintln!("{what}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let Options { seconds, seed, rate, .. } = options;
    let repeat = format!("chaos --seconds {seconds} --seed {seed} --rate {rate}");
    println!("{repeat}");
    let own = || std::env::current_exe().expect("this program has a path");
    let program = std::env::var_os("BEANPOLE_BIN").map_or_else(own, PathBuf::from);
    match chaos::run(&program, &options) {
        Ok(summary) => {
            print!("{summary}");
            println!(
                "  repeat    cargo run --release -p beanpole-tests --bin {}",
                repeat.replacen(' ', " -- ", 1)
            );
            if summary.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("chaos: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { seconds: 120, seed: rand::random(), rate: 300, report: None };
    while let Some(word) = words.next() {
        let mut number = || -> Result<u64, String> {
            let value = words.next().ok_or(format!("{word} needs a number"))?;
            value.parse().map_err(|_| format!("{word} {value}: not a number"))
        };
        match word.as_str() {
            "--seconds" => options.seconds = number()?.max(10),
            "--seed" => options.seed = number()?,
            "--report" => options.report = words.next().map(PathBuf::from),
            "--rate" => options.rate = u32::try_from(number()?).map_err(|_| "--rate: too many")?,
            _ => return Err(format!("not understood: {word}")),
        }
    }
    Ok(options)
}
