//! Stopping, and doing nothing.

use std::time::{Duration, Instant};

use beanpole_tests::connection::put_request;
use beanpole_tests::procfs;
use beanpole_tests::server::{Server, Setup};
use tempfile::TempDir;

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

#[test]
fn sigterm_under_load_exits_0_within_a_second_and_loses_nothing() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(&Setup::beanpole(BIN).on(dir.path().join("data")));
    let addr = server.addr();
    let (mut acknowledged, first_ones) = (Vec::new(), std::sync::mpsc::channel());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let told = first_ones.0.clone();
                scope.spawn(move || pipeline_puts(addr, worker, &told))
            })
            .collect();
        // The load is under way on every connection.
        for _ in 0..4 {
            first_ones.1.recv_timeout(Duration::from_secs(20)).expect("the load begins");
        }
        let (status, took) = server.terminate();
        assert_eq!(status.code(), Some(0), "{status}: {}", server.stderr());
        assert!(took < Duration::from_secs(1), "SIGTERM took {took:?}");
        for worker in workers {
            acknowledged.extend(worker.join().unwrap());
        }
    });
    server.start_again().unwrap();
    let mut connection = server.connect();
    for (id, body) in &acknowledged {
        assert_eq!(connection.command(&format!("peek {id}")).unwrap().text(), *body, "job {id}");
    }
    println!("{} acknowledged puts survived SIGTERM", acknowledged.len());
}

/// Puts ten at a time until the server goes; gives what was acknowledged.
fn pipeline_puts(
    addr: std::net::SocketAddr,
    worker: u32,
    told: &std::sync::mpsc::Sender<()>,
) -> Vec<(u64, String)> {
    let mut acknowledged = Vec::new();
    let mut connection = beanpole_tests::connection::Connection::open(addr).unwrap();
    for round in 0.. {
        let bodies: Vec<String> = (0..10).map(|number| format!("{worker}-{round}-{number}")).collect();
        let request: Vec<u8> =
            bodies.iter().flat_map(|body| put_request(0, 0, 60, body.as_bytes())).collect();
        if connection.send(&request).is_err() {
            break;
        }
        for body in bodies {
            match connection.reply() {
                Ok(reply) if reply.word() == "INSERTED" => acknowledged.push((reply.number(), body)),
                Ok(reply) => panic!("a put during the stop got {}", reply.line),
                Err(_gone) => return acknowledged,
            }
        }
        if round == 0 {
            told.send(()).unwrap();
        }
    }
    acknowledged
}

#[test]
fn sigterm_answers_no_reserve_with_nonsense() {
    // A worker that waits sees its connection close, not a reply that was never meant.
    let mut server = Server::start(&Setup::beanpole(BIN));
    let mut worker = server.connect();
    worker.send(b"reserve\r\n").unwrap();
    assert!(worker.is_silent_for(Duration::from_millis(100)).unwrap());
    let (status, took) = server.terminate();
    assert_eq!(status.code(), Some(0), "{status}: {}", server.stderr());
    assert!(took < Duration::from_secs(1), "SIGTERM took {took:?}");
    match worker.reply() {
        Err(_closed) => {}
        Ok(reply) => assert_eq!(reply.line, "TIMED_OUT", "the only reply that is no lie"),
    }
}

#[test]
fn idle_means_idle() {
    // Jobs in every state, connections, a worker that waits, a pause: and nothing to do.
    let server = Server::start(&Setup::beanpole(BIN));
    let mut busy = server.connect();
    busy.command("use idle").unwrap();
    for number in 0..100 {
        busy.put(number, if number % 2 == 0 { 0 } else { 100_000 }, 100_000, b"x").unwrap();
    }
    busy.command("pause-tube idle 100000").unwrap();
    let mut waiting = server.connect();
    waiting.send(b"reserve\r\n").unwrap();
    let _idle: Vec<_> = (0..50).map(|_| server.connect()).collect();

    // What the start and the load left to do in the background has to end at some time.
    let pid = server.pid();
    let begun = Instant::now();
    let mut last = procfs::written(pid);
    loop {
        // Time itself is the matter here: a window without writes.
        std::thread::sleep(Duration::from_millis(700));
        let now = procfs::written(pid);
        if now == last {
            break;
        }
        last = now;
        assert!(begun.elapsed() < Duration::from_secs(15), "it still writes: {now:?}");
    }
    let ticks = procfs::cpu_ticks(pid);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(procfs::written(pid), last, "an idle server writes nothing in 3 s");
    let used = procfs::cpu_ticks(pid) - ticks;
    assert!(used <= 2, "an idle server used {used} ticks of CPU in 3 s");
    assert!(waiting.is_silent_for(Duration::from_millis(10)).unwrap());
}

#[test]
fn a_verb_whose_reader_goes_away_ends_without_a_word() {
    let server = Server::start(&Setup::beanpole(BIN));
    for verb in ["status", "members"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let admin = server.admin_addr().to_string();
        let output = std::process::Command::new(BIN)
            .args(["cluster", "--admin", &admin, "-o", "json", verb])
            .stdout(writer)
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{verb}: {}", output.status);
    }
}
