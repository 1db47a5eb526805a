//! Cut networks: a node that does not hear the others, is not heard by them, or both, under load on all nodes.
//!
//! What must hold whatever is cut: nothing is lost, doubled or held by two; the node acknowledges nothing while it is cut off;
//! clients of the others see a pause and no error; its own clients are held for a bounded time and then let go.
//!
//! Here the nodes are connected through relays that pass nothing on (`benches/src/failover/cables.rs`), which takes no root.

use beanpole_tests::failover;

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

/// The longest that clients of the other nodes may go without an acknowledged put, in ms: much longer than it takes, because this
/// runs beside other tests. `partition_long.rs` looks more closely.
const PAUSE_MAX_BUSY_MS: f64 = 5_000.0;
/// A client of the cut node is let go after 5 s at most, and tries elsewhere, in ms.
const HOLD_MAX_MS: f64 = 5_500.0;

/// Cuts a node for a while, looks at what became of everybody, and answers the longest pause of puts at the other nodes, in ms.
fn cut(kind: &str, whom: &str, arguments: &str) -> f64 {
    let report = failover::run(BIN, &format!("{arguments} --hold-long 1s --fault 2s:{kind}:{whom}"));
    report.expect_nothing_wrong();
    report.expect_faults_done(1);
    report.expect_no_errors_elsewhere();
    assert!(report.figure("/faults/0/back_ns") > report.figure("/faults/0/undone_ns"), "{}", report.text);
    // Its own clients: the worst of all is one of them. They noticed, or nothing was cut.
    let (held, seen) = (report.figure("/whole/put/client_longest_ms"), report.excused());
    println!(
        "{kind} {whom}: put {}, its own clients at most {held} ms: {seen:?}",
        report.figure("/faults/0/put/all_ms")
    );
    assert!(!seen.is_empty(), "{}", report.text);
    assert!(held < HOLD_MAX_MS + PAUSE_MAX_BUSY_MS, "{}", report.text);
    report.figure("/faults/0/put/all_ms")
}

/// Long enough for the bounded hold to end before the network heals.
const SHORT: &str = "--duration 10s --rate 100 --heal-after 6s";

#[test]
fn a_leader_that_is_cut_off_is_replaced_and_acknowledges_nothing() {
    let pause = cut("cut", "leader", SHORT);
    assert!((200.0..PAUSE_MAX_BUSY_MS).contains(&pause), "{pause} ms");
}

#[test]
fn a_leader_that_hears_nobody_steps_down() {
    let pause = cut("cut-in", "leader", SHORT);
    assert!((200.0..PAUSE_MAX_BUSY_MS).contains(&pause), "{pause} ms");
}
