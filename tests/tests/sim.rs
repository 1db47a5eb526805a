//! Simulated clusters, a small number of them: the program `simulate` runs as many as are asked for.

use std::process::Command;

/// The first seed here; the program's default is another one, so that between them more are run.
const FIRST_SEED: &str = "40000";

/// Runs the program; it prints what failed, and the command that repeats it.
fn simulate(arguments: &[&str]) {
    let program = env!("CARGO_BIN_EXE_simulate");
    let output = Command::new(program).args(arguments).output().expect("it was built along with this test");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Whatever happens to the nodes: nothing acknowledged is lost, no job is with two workers, no put is doubled, the
/// nodes agree, and all is well again soon after.
#[test]
fn clusters_keep_their_promises_in_bad_times() {
    simulate(&["--seed", FIRST_SEED, "--seeds", "12", "--jobs", "2"]);
}

/// The same seed twice has the same events at the same times, to the last one.
#[test]
fn a_seed_repeats_exactly() {
    simulate(&["--seed", FIRST_SEED, "--seeds", "3", "--twice"]);
}
