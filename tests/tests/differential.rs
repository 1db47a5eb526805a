//! Random commands against beanstalkd and Beanpole, every reply compared. A small dose: the full one is
//! `cargo run -p beanpole-tests --release --bin differential -- --sequences 1000 --seed 1`.
//!
//! The comparison itself is tested first: it must find nothing between beanstalkd and beanstalkd, and must
//! find each of several small faults that a proxy puts in between.

mod proxy;

use std::time::Duration;

use beanpole_tests::differential::{self, Mode, Options, Pair, RunError, Side};
use beanpole_tests::extra;
use beanpole_tests::server::{Server, Setup};
use proxy::Fault;

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

/// The oracle, or a visible skip.
fn oracle(test: &str) -> Option<Setup> {
    if extra::skip_unless_wanted(test) {
        return None;
    }
    let setup = Setup::beanstalkd();
    if setup.is_none() {
        extra::skipped(test, "beanstalkd is not installed");
    }
    setup
}

#[test]
fn beanpole_agrees_with_beanstalkd() {
    let Some(oracle) = oracle("beanpole_agrees_with_beanstalkd") else { return };
    let options = Options { sequences: 5, ..Options::default() };
    let under_test = Setup::beanpole(BIN);
    let run = differential::run(&options, &|| Pair::start(&oracle, &under_test));
    println!("{:?}", run.unwrap_or_else(|error| panic!("{error}")));
}

#[test]
fn beanpole_agrees_with_beanstalkd_about_time() {
    let Some(oracle) = oracle("beanpole_agrees_with_beanstalkd_about_time") else { return };
    let options = Options { sequences: 1, steps: 100, mode: Mode::Timed, ..Options::default() };
    let under_test = Setup::beanpole(BIN);
    differential::run(&options, &|| Pair::start(&oracle, &under_test)).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn beanstalkd_agrees_with_itself() {
    let Some(oracle) = oracle("beanstalkd_agrees_with_itself") else { return };
    let options = Options { sequences: 10, ..Options::default() };
    let summary =
        differential::run(&options, &|| Pair::start(&oracle, &oracle)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(summary.sequences, 10);
    assert!(summary.woken > 20, "the sequences are too tame: {summary:?}");
}

#[test]
fn beanstalkd_agrees_with_itself_about_time() {
    let Some(oracle) = oracle("beanstalkd_agrees_with_itself_about_time") else { return };
    let options = Options { sequences: 1, steps: 100, mode: Mode::Timed, ..Options::default() };
    differential::run(&options, &|| Pair::start(&oracle, &oracle)).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn every_small_fault_is_found() {
    let Some(oracle) = oracle("every_small_fault_is_found") else { return };
    std::thread::scope(|scope| {
        for fault in Fault::ALL {
            let oracle = &oracle;
            scope.spawn(move || is_found(fault, oracle));
        }
    });
}

fn is_found(fault: Fault, oracle: &Setup) {
    let open = || {
        let left = Side::start("left", oracle)?;
        let server = Server::try_start(&oracle.clone().flags(["-z", "1000"]))?;
        let addr = proxy::start(server.addr(), fault);
        Ok(Pair::new(left, Side::with_server("right", server, addr)))
    };
    let (patience, shrink_limit) = (Duration::from_millis(500), Duration::from_secs(10));
    let options = Options { sequences: 20, steps: 300, patience, shrink_limit, ..Options::default() };
    match differential::run(&options, &open) {
        Err(RunError::Mismatch(mismatch)) => {
            println!("{fault:?}: {} of {} commands", mismatch.shortest.len(), mismatch.steps);
            assert!(mismatch.shortest.len() < mismatch.steps / 2, "{fault:?} was not shortened: {mismatch}");
        }
        Err(RunError::Start(error)) => panic!("{error}"),
        Ok(summary) => panic!("{fault:?} was not found: {summary:?}"),
    }
}
