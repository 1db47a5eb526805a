//! `bench failover` against a server inside the test that can be told to do wrong: each wrong deed must be noticed, and
//! called by its name.

mod faulty_server;

use beanpole_bench::failover::report::Report;
use beanpole_bench::failover::{FailoverArgs, run};
use clap::Parser;
use faulty_server::Fault;

#[derive(clap::Parser)]
#[command(args_override_self = true)]
struct Cli {
    #[command(flatten)]
    failover: FailoverArgs,
}

fn args(line: &str) -> FailoverArgs {
    Cli::try_parse_from(line.split_whitespace()).unwrap_or_else(|e| panic!("{e}")).failover
}

/// A short run on two "nodes" that are the same server.
fn measure(fault: Fault, more: &str) -> Report {
    let address = faulty_server::start(fault);
    let line = format!(
        "failover --nodes a={address},b={address} --duration 700ms --rate 200 --grace 700ms \
         --producers 2 --workers 2 --holders 1 --hold-long 200ms {more}"
    );
    run::measure(&args(&line)).unwrap()
}

#[test]
fn a_right_server_passes() {
    let report = measure(Fault::None, "");
    assert!(report.ok, "{}", report.table());
    let j = &report.jobs;
    assert!(j.acknowledged > 80 && j.handouts == j.acknowledged, "{}", report.table());
    assert!(report.errors.is_empty() && report.excused.is_empty(), "{}", report.table());
    let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
    assert_eq!(json["jobs"]["lost"], 0);
    assert!(json["undisturbed"]["put"]["all_ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_lost_job_is_noticed() {
    let report = measure(Fault::Lose, "");
    assert!(!report.ok && report.jobs.lost == 1 && report.jobs.never_handed_out == 1, "{}", report.table());
    assert!(report.findings[0].starts_with("lost: producer "), "{:?}", report.findings);
}

#[test]
fn a_job_handed_out_twice_is_noticed() {
    for (fault, name) in [(Fault::Double, "doubled"), (Fault::Resurrect, "handed out after DELETED")] {
        let report = measure(fault, "");
        let j = &report.jobs;
        assert!(!report.ok && j.doubled + j.after_delete == 1 && j.lost == 0, "{}", report.table());
        assert!(report.findings.iter().any(|what| what.starts_with(name)), "{:?}", report.findings);
    }
}

#[test]
fn a_job_with_two_workers_is_noticed() {
    let report = measure(Fault::Share, "--rate 40 --duration 1s --hold 60ms --holders 0 --workers 3");
    assert!(!report.ok && report.jobs.overlapping == 1, "{}", report.table());
    assert!(report.findings.iter().any(|what| what.starts_with("held by two")), "{:?}", report.findings);
}

#[test]
fn a_changed_bit_is_noticed() {
    let report = measure(Fault::Corrupt, "");
    assert!(!report.ok && report.jobs.corrupted >= 1, "{}", report.table());
}

#[test]
fn a_refused_put_must_not_have_happened() {
    let report = measure(Fault::Refuse, "");
    assert!(report.ok && report.jobs.refused == 1, "{}", report.table());
    assert_eq!(report.errors.values().sum::<u64>(), 1, "a client of a sound node saw it: {}", report.table());
    let report = measure(Fault::RefuseAndKeep, "");
    assert!(!report.ok && report.jobs.refused_done == 1, "{}", report.table());
}

#[test]
fn an_unknown_outcome_is_neither_loss_nor_double() {
    let report = measure(Fault::Hang, "");
    let j = &report.jobs;
    assert!(report.ok && j.put_unknown == 1 && j.put_unknown_done == 1, "{}", report.table());
    assert_eq!(report.errors.len(), 1, "the node lives, so its client saw an error: {}", report.table());
    let report = measure(Fault::Silent, "");
    assert!(report.ok && report.jobs.put_unknown == 1, "{}", report.table());
}

#[test]
fn a_pause_that_a_command_makes_is_measured() {
    // The "fault" is a command that changes nothing: its effect is the load's own rhythm.
    let report = measure(Fault::None, "--fault 300ms:run:true");
    assert_eq!(report.faults.len(), 1, "{}", report.table());
    let fault = &report.faults[0];
    assert_eq!((fault.event.what.as_str(), fault.event.failed.as_deref()), ("run true", None));
    let put = fault.effect.put.as_ref().expect("all clients felt it");
    assert!(put.all_ms > 0.0 && put.all_ms <= put.client_longest_ms, "{put:?}");
    // One that fails is told.
    let report = measure(Fault::None, "--fault 300ms:run:false");
    assert!(report.faults[0].event.failed.is_some(), "{}", report.table());
}

#[test]
fn what_makes_no_sense_is_refused() {
    for line in [
        "failover --nodes a=127.0.0.1:1 --fault 5s:kill:leader",
        "failover --nodes a=127.0.0.1:1 --fault 50s:kill:123",
        "failover --nodes a=127.0.0.1:1 --fault 5s:kill@b:123",
    ] {
        assert!(matches!(run::measure(&args(line)), Err(run::RunError::Usage(_))), "{line}");
    }
    let nobody = run::measure(&args("failover --nodes a=127.0.0.1:1"));
    assert!(matches!(nobody, Err(run::RunError::Unreachable { .. })));
}
