//! One kind of job that takes every worker: alerts that hang on something slow stand in front of payloads that would be done at
//! once. With `max-reserved` a few workers have them, and the others go on.
//! `cargo test -p beanpole-tests --test incidents_head_of_line -- --nocapture` prints the figures.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use beanpole_tests::connection::{Connection, put_request};
use beanpole_tests::incidents::{Stage, work};
use beanpole_tests::server::{Server, Setup};
use beanpole_tests::{extra, operator, wait};

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

const WORKERS: usize = 20;
/// What the policy leaves to alerts.
const LIMIT: usize = 5;
const ALERTS: usize = 200;
const PAYLOADS: usize = 20_000;
/// How long a worker is busy with each.
const ALERT: Duration = Duration::from_secs(1);
const PAYLOAD: Duration = Duration::from_millis(5);
/// For so long it is counted what is done.
const RUN: Duration = Duration::from_millis(1800);

fn fill(addr: SocketAddr, tube: &str, pri: u32, jobs: usize) {
    const ROUND: usize = 1000;
    let mut client = Connection::open(addr).unwrap();
    client.command(&format!("use {tube}")).unwrap();
    let request = put_request(pri, 0, 600, tube.as_bytes());
    for first in (0..jobs).step_by(ROUND) {
        let round = ROUND.min(jobs - first);
        client.send(&request.repeat(round)).unwrap();
        for _ in 0..round {
            assert_eq!(client.reply().unwrap().word(), "INSERTED");
        }
    }
}

/// Payloads and alerts that were done in a run; the most alerts that were worked on at once.
fn run(alerts: usize, policy: Option<&str>) -> (u64, u64, u64) {
    let server = Server::start(&Setup::beanpole(BIN).in_memory());
    let addr = server.addr();
    if let Some(words) = policy {
        operator::succeed(BIN, &server.admin_addr().to_string(), &format!("policy set {words}"));
    }
    fill(addr, "payload", 100, PAYLOADS);
    fill(addr, "alert", 0, alerts);
    let (payloads, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let stage = Stage::default();
    let mut most = 0;
    std::thread::scope(|scope| {
        let curtain = stage.curtain();
        for _ in 0..WORKERS {
            scope.spawn(|| {
                work(&stage, addr, &["alert", "payload"], |_, job| {
                    let is_alert = job.text() == "alert";
                    std::thread::sleep(if is_alert { ALERT } else { PAYLOAD });
                    if is_alert { &done } else { &payloads }.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                })
                .unwrap()
            });
        }
        let mut observer = server.connect();
        let begun = Instant::now();
        wait::until_within(RUN, || {
            let stats = observer.command("stats-tube alert").unwrap();
            let reserved = stats.stat("current-jobs-reserved").and_then(|count| count.parse().ok());
            most = most.max(reserved.unwrap_or(0));
            (begun.elapsed() >= RUN).then_some(())
        });
        drop(curtain);
    });
    (payloads.into_inner(), done.into_inner(), most)
}

#[test]
fn one_kind_of_job_does_not_starve_the_rest_where_it_is_limited() {
    let (normal, _, _) = run(0, None);
    let (starved, control_alerts, all) = run(ALERTS, None);
    let (limited, alerts, most) = run(ALERTS, Some(&format!("alert --max-reserved {LIMIT}")));
    println!("payloads in {RUN:?}, {WORKERS} workers, {ALERTS} alerts of {ALERT:?} ahead");
    println!("  without alerts:              {normal}");
    println!(
        "  control, without a limit:    {starved} payloads, {control_alerts} alerts, up to {all} at once"
    );
    println!(
        "  max-reserved {LIMIT}:              {limited} payloads ({} %), {alerts} alerts, up to {most} at once",
        limited * 100 / normal.max(1)
    );
    assert_eq!(all, WORKERS as u64, "the control starves: every worker has an alert");
    assert!(starved * 10 < normal, "{starved} of {normal} payloads came through without a limit");
    assert!(most <= LIMIT as u64, "{most} alerts were reserved at once");
    assert!(alerts >= LIMIT as u64, "alerts go on too");
    // 15 of 20 workers are left to payloads. The runs come one after the other: what others do on the machine meanwhile counts.
    let bar = if extra::wanted() { 75 } else { 40 };
    assert!(limited * 100 >= normal * bar, "{limited} of {normal} payloads");
}
