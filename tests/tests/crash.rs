//! `kill -9` under load, a small dose. The full one: `cargo run -p beanpole-tests --release --bin crash --
//! --rounds 50`, or `BEANPOLE_EXTRA=1 cargo test -p beanpole-tests --test extra`.

use beanpole_tests::crash::{self, Options};
use beanpole_tests::extra;
use beanpole_tests::server::Setup;

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

#[test]
fn nothing_acknowledged_is_lost() {
    let options = Options { rounds: 5, seed: rand::random() };
    let summary = crash::run(&Setup::beanpole(BIN), &options).unwrap_or_else(|faults| panic!("{faults}"));
    println!("{summary:?}");
    assert!(summary.puts > 50, "too little was going on: {summary:?}");
}

#[test]
fn the_checks_are_sharp() {
    // beanstalkd's binlog keeps neither reserve counts nor pauses: if the checks did not see that, they
    // would see nothing.
    let Some(setup) = Setup::beanstalkd() else {
        return extra::skipped("the_checks_are_sharp", "beanstalkd is not installed");
    };
    let faults = crash::run(&setup.persistent(), &Options { rounds: 3, seed: 1 }).unwrap_err();
    let text = faults.to_string();
    assert!(text.contains("reserves") && text.contains("no longer paused"), "{text}");
}
