//! The long form of `partition.rs`: every kind of cut, of a leader and of a follower, for ten seconds. Alone in its program,
//! because it looks at how long clients wait.

use beanpole_tests::{extra, failover};

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

/// The longest that clients of the other nodes may go without an acknowledged put when the leader is cut off, in ms.
const PAUSE_MAX_MS: f64 = 1_500.0;
/// The same when a follower is: nobody has a reason to elect another leader, neither at the cut nor when it heals.
const FOLLOWER_PAUSE_MAX_MS: f64 = 200.0;
/// A client of the cut node is let go after 5 s at most, in ms, and tries elsewhere.
const HOLD_MAX_MS: f64 = 5_500.0;

#[test]
fn every_cut_of_ten_seconds_costs_clients_of_the_others_a_second_and_a_half_at_most() {
    if extra::skip_unless_wanted(
        "every_cut_of_ten_seconds_costs_clients_of_the_others_a_second_and_a_half_at_most",
    ) {
        return;
    }
    for kind in ["cut", "cut-in", "cut-out"] {
        for (whom, pause_max_ms) in [("leader", PAUSE_MAX_MS), ("follower", FOLLOWER_PAUSE_MAX_MS)] {
            let arguments = format!("--duration 20s --rate 200 --heal-after 10s --fault 4s:{kind}:{whom}");
            let report = failover::run(BIN, &arguments);
            report.expect_nothing_wrong();
            report.expect_faults_done(1);
            report.expect_no_errors_elsewhere();
            let pause = report.figure("/faults/0/put/all_ms");
            let held = report.figure("/whole/put/client_longest_ms");
            println!(
                "{kind} {whom}: put pause {pause} ms; its own clients at most {held} ms: {:?}",
                report.excused()
            );
            assert!(pause <= pause_max_ms && held <= HOLD_MAX_MS, "{}", report.text);
        }
    }
}
