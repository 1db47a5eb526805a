//! Wall clocks that jump under running nodes. Needs libfaketime, which moves the wall clock of one process and leaves its
//! monotonic clock alone, as `date --set` does with a machine's.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use beanpole_tests::chaos::Clocks;
use beanpole_tests::cluster::Cluster;
use beanpole_tests::connection::Connection;
use beanpole_tests::{extra, wait};

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

/// How wrong a clock becomes, in seconds.
const JUMPS_S: [i64; 2] = [3_600, -3_600];
/// The delay of a job that must come neither early nor late, in seconds.
const DELAY_S: u64 = 6;
/// How much later than that it may come.
const LATE_MAX: Duration = Duration::from_secs(2);
/// Jobs that are reserved while clocks jump, and jobs that are delayed for longer than the test takes.
const JOBS: u32 = 20;

/// The stage: jobs that are held for up to half an hour, and jobs that are delayed by as much.
fn prepare(cluster: &Cluster, node: u64) -> (Connection, Vec<u64>) {
    let mut worker = cluster.connect(node);
    for line in ["use held", "watch held"] {
        worker.command(line).unwrap();
    }
    let mut held = Vec::new();
    for number in 0..JOBS {
        assert_eq!(worker.put(0, 0, 1_800, format!("{number}").as_bytes()).unwrap().word(), "INSERTED");
        held.push(worker.command("reserve-with-timeout 5").unwrap().number());
    }
    worker.command("use later").unwrap();
    for number in 0..JOBS {
        assert_eq!(worker.put(0, 1_800, 60, format!("{number}").as_bytes()).unwrap().word(), "INSERTED");
    }
    (worker, held)
}

/// A job whose delay begins before a jump comes when its time has come by the sound clocks.
fn expect_in_time(cluster: &Cluster, node: u64, jump: impl FnOnce()) {
    let mut client = cluster.connect(node);
    for line in ["use soon", "watch soon"] {
        client.command(line).unwrap();
    }
    let begun = Instant::now();
    let id = client.put(0, u32::try_from(DELAY_S).unwrap(), 60, b"soon").unwrap().number();
    jump();
    let reply = client.command("reserve-with-timeout 15").unwrap();
    let took = begun.elapsed();
    assert_eq!((reply.word(), reply.number()), ("RESERVED", id), "{} after {took:?}", reply.line);
    // A stamp may be a little older than the put: whole seconds are what the protocol promises.
    let delay = Duration::from_secs(DELAY_S);
    assert!(took + Duration::from_millis(100) >= delay && took <= delay + LATE_MAX, "came after {took:?}");
    println!("a delay of {DELAY_S} s took {took:?}");
    assert_eq!(client.command(&format!("delete {id}")).unwrap().line, "DELETED");
}

/// Whether a node's newest line (that it leads) is of a time about an hour away: its clock has really jumped.
fn writes_wrong_times(cluster: &Cluster, node: u64) -> bool {
    const DAY_MIN: i64 = 24 * 60;
    let log = cluster.log(node);
    let line = log.lines().rfind(|line| line.contains("this node leads")).unwrap_or_default();
    let at = |range| line.get(range).and_then(|digits: &str| digits.parse::<i64>().ok());
    // 2026-11-21T14:05:25.123456Z
    let (Some(hour), Some(minute)) = (at(11..13), at(14..16)) else { return false };
    let now_min = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 / 60 % DAY_MIN;
    let away = (hour * 60 + minute - now_min).rem_euclid(DAY_MIN);
    (55..=65).contains(&away.min(DAY_MIN - away))
}

fn expect_nothing_early(cluster: &Cluster, node: u64, held: usize) {
    let stat = |tube: &str, key: &str| {
        let stats = cluster.connect(node).command(&format!("stats-tube {tube}")).unwrap();
        stats.stat(key).unwrap_or_else(|| panic!("no {key} in {}", stats.text()))
    };
    assert_eq!(stat("held", "current-jobs-reserved"), held.to_string());
    assert_eq!(stat("later", "current-jobs-delayed"), JOBS.to_string());
}

#[test]
fn a_jumping_clock_expires_nothing_and_holds_nothing_up() {
    let name = "a_jumping_clock_expires_nothing_and_holds_nothing_up";
    if extra::skip_unless_wanted(name) {
        return;
    }
    let Some(clocks) = Clocks::find().unwrap() else {
        return extra::skipped(name, "libfaketime is not installed");
    };
    let mut cluster = Cluster::new(BIN, 3).environment(clocks.environment());
    cluster.ids().into_iter().for_each(|id| cluster.start_node(id));
    cluster.wait_until_ready(&[1, 2, 3]);
    let leader = cluster.leader();
    let (mut worker, held) = prepare(&cluster, cluster.others(leader)[0]);
    for jumping in [leader, cluster.others(leader)[1]] {
        for seconds in JUMPS_S {
            println!("n{jumping} jumps by {seconds} s; n{leader} leads");
            expect_in_time(&cluster, leader, || clocks.shift(jumping, seconds).unwrap());
            expect_nothing_early(&cluster, jumping, held.len());
            expect_in_time(&cluster, jumping, || clocks.shift(jumping, 0).unwrap());
            expect_nothing_early(&cluster, leader, held.len());
        }
    }
    // A node whose clock is wrong comes to lead, and so does the next one.
    for seconds in JUMPS_S {
        let old = cluster.leader();
        let next = cluster.others(old)[0];
        // The node looks at the file every second: by the end of the delay its clock has jumped.
        expect_in_time(&cluster, old, || clocks.shift(next, seconds).unwrap());
        expect_in_time(&cluster, old, || {
            let told = wait::until(|| Some(cluster.operator(&format!("cluster transfer-leader {next}"))));
            assert_eq!(told.map(|told| told.code), Some(Some(0)));
        });
        assert_eq!(cluster.leader(), next);
        assert!(
            writes_wrong_times(&cluster, next),
            "n{next} does not know that it has jumped:\n{}",
            cluster.log(next)
        );
        expect_nothing_early(&cluster, old, held.len());
        clocks.shift(next, 0).unwrap();
    }
    for id in held {
        assert_eq!(worker.command(&format!("delete {id}")).unwrap().line, "DELETED");
    }
}
