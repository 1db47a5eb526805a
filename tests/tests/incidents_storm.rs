//! Storms of connections, the long form of `connections.rs`: twenty thousand from one address within ten seconds (or as many as
//! half the limit on open files), and another one
//! that connects again five thousand times a second, at the leader of three nodes. Runs with `BEANPOLE_EXTRA=1`, best on a
//! release build:
//! `BEANPOLE_EXTRA=1 BEANPOLE_BIN=target/release/beanpole cargo test -p beanpole-tests --test incidents_storm -- --nocapture`

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use beanpole_tests::cluster::Cluster;
use beanpole_tests::connection::Connection;
use beanpole_tests::incidents::{Stage, worker};
use beanpole_tests::{extra, procfs, wait};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

const CROWD: u32 = 20_000;
const CROWD_WITHIN: Duration = Duration::from_secs(10);
const RECONNECTS_PER_S: u32 = 5_000;
const RECONNECTING: u32 = 2;
const GREEDY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const STORMY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const MIB: u64 = 1 << 20;

/// Does something so many times a second until the stage is over, or it was done often enough.
fn at_rate(stage: &Stage, per_second: u32, most: u32, mut what: impl FnMut()) -> u32 {
    let (begun, pause) = (Instant::now(), Duration::from_secs(1) / per_second);
    for done in 0..most {
        if stage.is_over() {
            return done;
        }
        what();
        std::thread::sleep((pause * (done + 1)).saturating_sub(begun.elapsed()));
    }
    most
}

/// Who behaves: puts, reserves, deletes for so long; how long each cycle took, in order.
fn behave(addr: SocketAddr, time: Duration) -> Vec<Duration> {
    let mut client = worker(addr, &["honest"]).unwrap();
    client.command("use honest").unwrap();
    let (begun, mut times) = (Instant::now(), Vec::new());
    while begun.elapsed() < time {
        let cycle = Instant::now();
        let id = client.put(0, 0, 60, b"job").unwrap().number();
        assert_eq!(client.command("reserve").unwrap().number(), id);
        assert_eq!(client.command(&format!("delete {id}")).unwrap().line, "DELETED");
        times.push(cycle.elapsed());
    }
    times.sort_unstable();
    times
}

fn p99(times: &[Duration]) -> Duration {
    times[times.len() * 99 / 100]
}

/// What the storm did.
struct Seen {
    times: Vec<Duration>,
    reconnects: u32,
    /// How long the command took that shows who it is, and what it said.
    found: (Duration, Value),
    grown: u64,
}

fn storm(cluster: &Cluster, leader: u64, crowd: u32) -> Seen {
    let (addr, pid) = (cluster.addr(leader), cluster.pid(leader));
    let before = procfs::rss_anon_bytes(pid);
    let stage = Stage::default();
    std::thread::scope(|scope| {
        let curtain = stage.curtain();
        let crowd = scope.spawn(|| {
            let mut open = Vec::new();
            let rate = crowd / u32::try_from(CROWD_WITHIN.as_secs()).unwrap();
            at_rate(&stage, rate, crowd, || open.extend(Connection::open_from(GREEDY, addr).ok()));
            open
        });
        let again: Vec<_> = (0..RECONNECTING)
            .map(|_| {
                scope.spawn(|| {
                    at_rate(&stage, RECONNECTS_PER_S / RECONNECTING, u32::MAX, || {
                        drop(Connection::open_from(STORMY, addr));
                    })
                })
            })
            .collect();
        let asked = scope.spawn(|| {
            wait::until_within(CROWD_WITHIN * 2 / 3, || None::<()>);
            let begun = Instant::now();
            let text = cluster.operate("conns --top held -o json");
            (begun.elapsed(), serde_json::from_str(&text).unwrap())
        });
        let times = behave(addr, CROWD_WITHIN);
        let grown = procfs::rss_anon_bytes(pid).saturating_sub(before);
        let found = asked.join().unwrap();
        drop(curtain);
        drop(crowd.join().unwrap());
        let reconnects = again.into_iter().map(|thread| thread.join().unwrap()).sum();
        Seen { times, reconnects, found, grown }
    })
}

fn row(told: &Value, address: Ipv4Addr) -> &Value {
    let rows = told["addresses"].as_array().expect("there are addresses");
    let found = rows.iter().find(|row| row["address"] == address.to_string());
    found.unwrap_or_else(|| panic!("{address} is not told of: {told}"))
}

/// With these limits, or without any.
fn run(name: &str, flags: &str) {
    if extra::skip_unless_wanted(name) {
        return;
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    // The clients are files here, and at the server, which leaves a quarter of them to others.
    let crowd = CROWD.min(u32::try_from(hard / 2).unwrap_or(CROWD));
    let mut cluster = Cluster::new(BIN, 3).flags(flags.split_whitespace());
    for id in cluster.ids() {
        cluster.start_node(id);
    }
    cluster.wait_until_ready(&cluster.ids());
    let leader = cluster.leader();
    let term = cluster.view(leader).unwrap().term;
    let normal = behave(cluster.addr(leader), Duration::from_secs(3));
    let files = procfs::open_files(cluster.pid(leader));
    let seen = storm(&cluster, leader, crowd);
    let over = Instant::now();
    let (took, told) = &seen.found;
    let (greedy, stormy) = (row(told, GREEDY), row(told, STORMY));
    println!("{name}: {crowd} connections and {} reconnects in {CROWD_WITHIN:?}", seen.reconnects);
    println!(
        "  put-reserve-delete: p99 {:?} before, {:?} during it; {} cycles",
        p99(&normal),
        p99(&seen.times),
        seen.times.len()
    );
    println!("  memory + {} MiB; found within {took:?}:\n  {greedy}\n  {stormy}", seen.grown / MIB);
    assert!(seen.grown <= 64 * MIB, "memory grew by {} MiB", seen.grown / MIB);
    assert!(*took <= Duration::from_secs(2), "it took {took:?} to find out who it is");
    assert!(p99(&seen.times) <= 3 * p99(&normal).max(Duration::from_millis(20)), "who behaves waits");
    let back = wait::until(|| (procfs::open_files(cluster.pid(leader)) <= files + 8).then(|| over.elapsed()));
    println!("  descriptors are back after {back:?}");
    assert!(back.is_some_and(|took| took <= Duration::from_secs(10)), "descriptors come back");
    let view = cluster.view(leader).unwrap();
    assert_eq!((view.leader, view.term), (Some(leader), term), "the leader did not change");
}

#[test]
fn a_storm_where_nothing_is_limited() {
    run("a_storm_where_nothing_is_limited", "");
}

#[test]
fn a_storm_where_addresses_are_limited_and_banned() {
    let flags = "--max-connections-per-address 1000 --ban-after 5000 --ban-time 1h --ban-loopback";
    run("a_storm_where_addresses_are_limited_and_banned", flags);
}
