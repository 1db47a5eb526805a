//! Storms of connections: limits at the door, bans, who does what, and closing them.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use beanpole_tests::cluster::Cluster;
use beanpole_tests::connection::Connection;
use beanpole_tests::server::{Server, Setup};
use beanpole_tests::{operator, procfs, wait};
use serde_json::Value;

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

/// Addresses of our own that clients connect from.
const HONEST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const GREEDY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const STORMY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

fn start(flags: &str) -> Server {
    Server::start(&Setup::beanpole(BIN).flags(flags.split_whitespace()))
}

/// Exit code and what was printed.
fn conns(server: &Server, words: &str) -> (i32, String) {
    operator::run(BIN, &server.admin_addr().to_string(), &format!("conns {words}"))
}

fn told(server: &Server, words: &str) -> Value {
    let (code, text) = conns(server, &format!("{words} -o json"));
    assert_eq!(code, 0, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// A connection from there, if it is let in.
fn try_open(server: &Server, from: Ipv4Addr) -> Option<Connection> {
    let mut connection = Connection::open_from(from, server.addr()).ok()?;
    let reply = connection.command("list-tube-used").ok()?;
    assert_eq!(reply.line, "USING default");
    Some(connection)
}

fn expect_in(server: &Server, from: Ipv4Addr) -> Connection {
    try_open(server, from).unwrap_or_else(|| panic!("{from} is not let in: {}", server.stderr()))
}

/// Waits until somebody from there is let in again.
fn wait_until_in(server: &Server, from: Ipv4Addr) -> Connection {
    wait::until(|| try_open(server, from)).unwrap_or_else(|| panic!("{from} stays out: {}", server.stderr()))
}

fn refused(server: &Server, reason: &str) -> u64 {
    server.metric(&format!("beanpole_connections_refused_total{{reason=\"{reason}\"}}"))
}

#[test]
fn an_address_has_so_many_connections_and_others_are_not_concerned() {
    let server = start("--max-connections-per-address 3");
    let mut inside: Vec<Connection> = (0..3).map(|_| expect_in(&server, GREEDY)).collect();
    for _ in 0..5 {
        assert!(try_open(&server, GREEDY).is_none());
    }
    expect_in(&server, HONEST);
    assert_eq!(refused(&server, "per-address"), 5);
    let said = "connections are refused: --max-connections-per-address is 3";
    assert_eq!(server.stderr().matches(said).count(), 1, "it is said once: {}", server.stderr());
    inside.pop();
    wait_until_in(&server, GREEDY);
}

#[test]
fn there_are_so_many_connections_in_all_and_operators_are_not_concerned() {
    let server = start("--max-connections 4");
    let mut inside: Vec<Connection> = (0..4).map(|_| wait_until_in(&server, HONEST)).collect();
    assert!(try_open(&server, GREEDY).is_none());
    assert!(refused(&server, "total") >= 1);
    assert_eq!(server.metric("beanpole_connections_max"), 4);
    inside.clear();
    wait_until_in(&server, GREEDY);
}

#[test]
fn an_address_opens_so_many_connections_a_second() {
    let server = start("--max-accepts-per-second 5");
    let begun = Instant::now();
    let tries: Vec<Option<Connection>> = (0..40).map(|_| try_open(&server, GREEDY)).collect();
    let seconds = begun.elapsed().as_secs() + 1;
    let inside = tries.iter().flatten().count() as u64;
    assert!(inside >= 5 && inside <= 5 * seconds, "{inside} were let in within {seconds} s");
    assert_eq!(refused(&server, "rate"), 40 - inside);
    wait_until_in(&server, GREEDY);
}

/// Who opens and drops many connections is let alone by default; where it is limited, refused for a while, and visible.
#[test]
fn flapping_clients_are_banned_where_that_is_said_until_they_are_pardoned() {
    let control = start("--ban-after 20");
    for _ in 0..60 {
        expect_in(&control, STORMY);
    }
    assert_eq!(conns(&control, "bans"), (0, "no address is banned".to_owned()), "loopback is exempt");
    drop(control);

    let server = start("--ban-after 20 --ban-time 1h --ban-loopback");
    let tries = (0..1000).take_while(|_| try_open(&server, STORMY).is_some()).count();
    assert!(tries >= 20, "it was banned after {tries}");
    let banned = wait::until(|| try_open(&server, STORMY).is_none().then_some(()));
    assert!(banned.is_some(), "{tries} connections were opened and dropped");
    expect_in(&server, HONEST);
    let bans = told(&server, "bans");
    assert_eq!((&bans[0]["address"], bans.as_array().unwrap().len()), (&"127.0.0.3".into(), 1), "{bans}");
    assert!(bans[0]["left_ms"].as_u64().unwrap() > 3_000_000, "{bans}");
    assert!(refused(&server, "banned") >= 1);
    assert_eq!(server.metric("beanpole_bans"), 1);
    let said = "127.0.0.3 is banned for 3600 s";
    assert_eq!(server.stderr().matches(said).count(), 1, "{}", server.stderr());
    assert!(server.get("/api/v1/events").contains(said));
    assert_eq!(conns(&server, "bans clear 127.0.0.9"), (1, "0 bans cleared".to_owned()));
    assert_eq!(conns(&server, "bans clear 127.0.0.3"), (0, "1 bans cleared".to_owned()));
    expect_in(&server, STORMY);
}

#[test]
fn the_offender_is_found_and_closed_by_one_command() {
    let server = start("");
    let mut worker = expect_in(&server, HONEST);
    worker.command("use work").unwrap();
    for tube in ["work", "b", "c", "d"] {
        worker.command(&format!("watch {tube}")).unwrap();
    }
    worker.put(0, 0, 600, b"held").unwrap();
    worker.command("reserve").unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut offender = expect_in(&server, STORMY);
            offender.command("use flood").unwrap();
            let body = vec![b'x'; 60_000];
            let mut taken = true;
            while taken && !stop.load(Ordering::Relaxed) {
                taken = offender.put(0, 0, 60, &body).is_ok();
            }
        });
        let begun = Instant::now();
        let (code, text) = conns(&server, "--top bytes");
        println!("found after {:?}:\n{text}", begun.elapsed());
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("most bytes: 127.0.0.3 with"), "{text}");
        assert!(text.contains("most jobs reserved: 127.0.0.1 with 1"), "{text}");
        let all = told(&server, "--top bytes");
        let first = &all["top"][0];
        assert_eq!((&first["uses"], &first["last"]), (&"flood".into(), &"put".into()), "{all}");
        assert!(first["bytes_per_s"].as_u64().unwrap() > 60_000, "{all}");
        let holder = &told(&server, "--top reserved")["top"][0];
        assert_eq!((&holder["reserved"], &holder["last"]), (&1.into(), &"reserve".into()), "{holder}");
        assert_eq!((&holder["uses"], &holder["watching"]), (&"work".into(), &5.into()), "{holder}");
        let id = first["id"].as_str().unwrap();
        assert_eq!(conns(&server, &format!("kill {id}")), (0, "1 connections closed".to_owned()));
        assert_eq!(conns(&server, &format!("kill {id}")), (1, "0 connections closed".to_owned()));
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(conns(&server, "kill 127.0.0.1").0, 0);
    assert!(worker.is_closed_by_server());
    let mut other = expect_in(&server, GREEDY);
    other.command("watch work").unwrap();
    assert_eq!(other.command("reserve-with-timeout 5").unwrap().word(), "RESERVED", "what it held is ready");
    let (code, text) = conns(&server, "kill nobody");
    assert_eq!(code, 2, "{text}");
}

#[test]
fn one_command_shows_the_connections_of_all_nodes() {
    let cluster = Cluster::start(BIN, 3);
    let clients: Vec<Connection> = cluster
        .ids()
        .into_iter()
        .map(|id| {
            let mut client = Connection::open_from(GREEDY, cluster.addr(id)).unwrap();
            client.command(&format!("use tube{id}")).unwrap();
            client
        })
        .collect();
    let all: Value = serde_json::from_str(&cluster.operate("conns -o json")).unwrap();
    for id in cluster.ids() {
        let at = |row: &&Value| row["node"] == id && row["uses"] == format!("tube{id}");
        assert!(all["top"].as_array().unwrap().iter().any(|row| at(&row)), "node {id}: {all}");
    }
    let sums = all["addresses"].as_array().unwrap();
    let sum = sums.iter().find(|row| row["address"] == "127.0.0.2").expect("its clients are counted");
    assert_eq!(sum["connections"], 3);
    assert!(cluster.operate("conns kill 127.0.0.2").contains("3 connections closed"));
    for mut client in clients {
        assert!(client.is_closed_by_server());
    }
}

/// Two thousand connections and more from one address, and another one that connects again and again: who behaves is served. The
/// control has no limits, and lets them all in.
#[test]
fn a_storm_of_connections_is_kept_out_and_others_are_served() {
    let limits = "--max-connections-per-address 50 --ban-after 200 --ban-time 1h --ban-loopback";
    for (flags, is_limited) in [("", false), (limits, true)] {
        let server = start(flags);
        let files = procfs::open_files(server.pid());
        let stop = AtomicBool::new(false);
        let (mut times, seen) = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut all = Vec::new();
                while !stop.load(Ordering::Relaxed) && all.len() < 400 {
                    all.extend(Connection::open_from(GREEDY, server.addr()).ok());
                }
                while !stop.load(Ordering::Relaxed) {
                    let _whatever_comes = Connection::open_from(STORMY, server.addr());
                }
            });
            let mut client = expect_in(&server, HONEST);
            let mut times = Vec::new();
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(1500) {
                let begun = Instant::now();
                let id = client.put(0, 0, 60, b"job").unwrap().number();
                assert_eq!(client.command("reserve").unwrap().number(), id);
                assert_eq!(client.command(&format!("delete {id}")).unwrap().line, "DELETED");
                times.push(begun.elapsed());
            }
            let seen = told(&server, "--top held");
            stop.store(true, Ordering::Relaxed);
            (times, seen)
        });
        times.sort_unstable();
        let p99 = times[times.len() * 99 / 100];
        let greedy = seen["addresses"].as_array().unwrap().iter().find(|row| row["address"] == "127.0.0.2");
        let open = greedy.and_then(|row| row["connections"].as_u64()).unwrap_or(0);
        let kept_out = ["per-address", "banned"].map(|reason| refused(&server, reason));
        println!(
            "limited: {is_limited}; {} cycles, p99 {p99:?}; the greedy address has {open} connections; refused: {kept_out:?}",
            times.len()
        );
        match is_limited {
            true => assert!(open <= 50 && kept_out[0] + kept_out[1] > 300, "{seen}"),
            false => assert!(open > 300 && kept_out == [0, 0], "{seen}"),
        }
        let back = wait::until(|| (procfs::open_files(server.pid()) <= files + 4).then_some(()));
        assert!(back.is_some(), "descriptors come back: {}", procfs::open_files(server.pid()));
    }
}

/// A server without files for more clients waits, and does not turn round and round.
#[test]
fn a_server_that_has_no_files_left_takes_no_processor_and_goes_on_when_it_has() {
    let server = start("");
    let mut neighbour = expect_in(&server, HONEST);
    let files = procfs::open_files(server.pid()) as u64;
    procfs::limit_files(server.pid(), files + 5);
    let mut clients: Vec<Connection> =
        (0..40).map(|_| Connection::open_from(GREEDY, server.addr()).unwrap()).collect();
    let said = || server.stderr().matches("cannot accept a connection").count();
    assert!(wait::until(|| (said() > 0).then_some(())).is_some(), "{}", server.stderr());
    let before = procfs::cpu_ticks(server.pid());
    assert!(neighbour.is_silent_for(Duration::from_secs(1)).unwrap());
    let ticks = procfs::cpu_ticks(server.pid()) - before;
    println!("no files left: {ticks} ticks of 10 ms within a second, {} lines", said());
    assert!(ticks < 40, "it turns round and round: {ticks} ticks");
    assert_eq!(said(), 1, "{}", server.stderr());
    assert_eq!(neighbour.command("list-tube-used").unwrap().line, "USING default");
    let mut last = clients.pop().unwrap();
    clients.clear();
    assert_eq!(last.command("list-tube-used").unwrap().line, "USING default");
}

/// A soft limit below the hard one is raised, and what clients may have of it follows.
#[test]
fn a_server_takes_as_many_files_as_it_may() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("limited");
    let program = Setup::beanpole(BIN);
    let text = format!(
        "#!/bin/sh\nulimit -S -n 100 && ulimit -H -n 400 && exec '{}' \"$@\"\n",
        program.binary().display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let server = Server::start(&Setup::wrapped(&script));
    assert_eq!(procfs::file_limit(server.pid()), (400, 400));
    assert_eq!(server.metric("beanpole_connections_max"), 300);
    let clients: Vec<Connection> = (0..200).map(|_| expect_in(&server, HONEST)).collect();
    assert_eq!(clients.len(), 200);
}
