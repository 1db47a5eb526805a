//! Whole runs against a server inside the test. A right server must pass in every mode, and each wrong deed
//! of a wrong one must be noticed: a load generator that cannot see a lost job proves nothing about any
//! server.

mod faulty_server;

use beanpole_bench::args::{BenchArgs, Mode, What};
use beanpole_bench::session::measure;
use beanpole_bench::{Report, run};
use clap::Parser;
use faulty_server::Fault;
use std::process::ExitCode;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    bench: BenchArgs,
}

fn args(line: &str) -> BenchArgs {
    Cli::try_parse_from(std::iter::once("bench").chain(line.split_whitespace())).unwrap().bench
}

fn mode(line: &str) -> Mode {
    match args(line).what {
        What::Load(mode) => mode,
        What::Failover(_) => panic!("a load: {line}"),
    }
}

fn report(fault: Fault, line: &str) -> Report {
    let address = faulty_server::start(fault);
    measure(&mode(&format!("{line} --addr {address}"))).unwrap()
}

/// A short run in each mode.
const CYCLE: &str = "cycle --connections 4 --duration 200ms --warmup 10ms --grace 400ms";
const WORK: &str = "work --producers 3 --workers 2 --backlog 20 --duration 200ms --warmup 10ms --grace 400ms";
const PUT: &str = "put --connections 3 --pipeline 10 --count 500 --grace 400ms";

#[test]
fn a_right_server_passes_in_every_mode() {
    for line in [CYCLE, WORK, PUT] {
        for extra in ["", "--tubes 3", "--tubes 10", "--body-size 40..3000"] {
            let report = report(Fault::None, &format!("{line} {extra}"));
            let v = &report.verification;
            assert!(v.ok, "{line} {extra}: {v:?}");
            assert!(report.errors.is_empty(), "{line} {extra}: {:?}", report.errors);
            let c = &v.counts;
            assert!(c.sent > 0 && c.sent == c.acknowledged, "{line} {extra}: {c:?}");
            assert_eq!((c.received, c.deleted), (c.sent, c.sent), "{line} {extra}");
            assert!(
                report.operations.values().all(|o| o.count > 0),
                "{line} {extra}: {:?}",
                report.operations
            );
        }
    }
}

#[test]
fn a_lost_job_is_noticed() {
    for line in [CYCLE, WORK, PUT] {
        let v = report(Fault::Lose, line).verification;
        assert!(!v.ok && v.lost == 1, "{line}: {v:?}");
        assert_eq!(v.counts.acknowledged, v.counts.received + 1);
    }
    let v = report(Fault::Lose, "put --connections 3 --count 500 --keep --grace 400ms").verification;
    assert!(!v.ok && v.lost == 1, "by the counts: {v:?}");
}

#[test]
fn a_doubled_job_is_noticed() {
    for fault in [Fault::Double, Fault::Resurrect] {
        for line in [CYCLE, WORK, PUT] {
            let v = report(fault, line).verification;
            assert!(!v.ok && v.counts.doubled >= 1, "{fault:?}, {line}: {v:?}");
            assert_eq!(v.lost, 0, "{fault:?}, {line}: {v:?}");
        }
    }
}

#[test]
fn a_changed_bit_is_noticed() {
    for line in [CYCLE, WORK, PUT] {
        let v = report(Fault::Corrupt, line).verification;
        assert!(!v.ok && v.counts.corrupted == 1, "{line}: {v:?}");
    }
}

#[test]
fn a_refused_put_is_no_error_unless_the_job_appears() {
    let report_refused = report(Fault::Refuse, CYCLE);
    let v = &report_refused.verification;
    assert!(v.ok && v.counts.refused == 1, "{v:?}");
    assert_eq!(report_refused.errors.get("put: OUT_OF_MEMORY"), Some(&1));

    let v = report(Fault::Refuse, PUT).verification;
    assert!(!v.ok && v.lost == 0 && v.counts.acknowledged == 499, "the count was not reached: {v:?}");

    let v = report(Fault::RefuseAndKeep, CYCLE).verification;
    assert!(!v.ok && v.counts.doubled == 1, "{v:?}");
}

#[test]
fn an_unknown_outcome_is_neither_loss_nor_double() {
    let lost = report(Fault::Hang, CYCLE);
    let v = &lost.verification;
    assert!(v.ok && v.counts.put_unknown == 1, "{v:?}");
    assert_eq!(lost.errors.get("connection: closed by the server"), Some(&1));

    let v = report(Fault::Silent, CYCLE).verification;
    assert!(v.ok && v.counts.put_unknown == 1, "{v:?}");
}

#[test]
fn kept_jobs_stay_and_later_runs_do_not_mind_them() {
    let address = faulty_server::start(Fault::None);
    let line = format!("put --count 300 --connections 2 --tube mine --addr {address}");
    let kept = measure(&mode(&format!("{line} --keep"))).unwrap();
    assert!(kept.verification.ok && kept.verification.counts.received == 0, "{:?}", kept.verification);
    // The next run counts only what it adds; the third takes everything out.
    let kept = measure(&mode(&format!("{line} --keep"))).unwrap();
    assert!(kept.verification.ok, "{:?}", kept.verification);
    let v = measure(&mode(&line)).unwrap().verification;
    assert!(v.ok && v.counts.leftovers == 600 && v.counts.deleted == 300, "{v:?}");
}

#[test]
fn exit_codes_and_the_report_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("report.json");
    let fails = |line: &str| format!("{:?}", run(args(line)));
    let address = faulty_server::start(Fault::None);
    let good = format!("{CYCLE} -o json --addr {address} --report {}", file.display());
    assert_eq!(fails(&good), format!("{:?}", ExitCode::SUCCESS));
    let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(json["verification"]["ok"], true);
    assert!(json["load"].as_str().unwrap().starts_with("closed loop"));
    assert!(json["operations"]["cycle"]["latency_us"]["p999"].as_f64().unwrap() > 0.0);
    assert!(json["client"]["cpu_user_s"].is_number() && json["environment"]["kernel"].is_string());

    let address = faulty_server::start(Fault::Lose);
    assert_eq!(fails(&format!("{CYCLE} --addr {address}")), format!("{:?}", ExitCode::from(1)));
    assert_eq!(fails(&format!("{CYCLE} --tube=-x --addr {address}")), format!("{:?}", ExitCode::from(2)));
    assert_eq!(fails("cycle --addr unix:/nowhere"), format!("{:?}", ExitCode::from(3)));
}
