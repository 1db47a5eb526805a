//! Clients that behave badly cost bounded memory and disturb nobody.

use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use beanpole_tests::connection::{Connection, put_request};
use beanpole_tests::server::{Server, Setup};
use beanpole_tests::{procfs, wait};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

const MIB: u64 = 1024 * 1024;
/// What a well-behaved neighbour may wait for one command, in a debug build on a machine whose processors and whose disk others
/// load as well. Being held up by a bad client would take much longer, or for ever.
const NEIGHBOUR: Duration = Duration::from_secs(5);

/// A server with a neighbour on it, whose service and whose server's memory are watched.
struct Watched {
    server: Server,
    neighbour: Connection,
    memory_before: u64,
}

impl Watched {
    fn start() -> Watched {
        raise_file_limit();
        let server = Server::start(&Setup::beanpole(BIN));
        let mut neighbour = server.connect();
        serve_once(&mut neighbour);
        let memory_before = procfs::rss_anon_bytes(server.pid());
        Watched { server, neighbour, memory_before }
    }

    /// The neighbour is served, and memory grew by no more than `bound`.
    fn check(&mut self, bound: u64, during: &str) {
        let slowest = serve_once(&mut self.neighbour);
        assert!(slowest < NEIGHBOUR, "{during}: a neighbour waited {slowest:?}");
        let grown = procfs::rss_anon_bytes(self.server.pid()).saturating_sub(self.memory_before);
        assert!(grown <= bound, "{during}: memory grew by {} KiB", grown / 1024);
    }

    /// The same again and again while whatever the bad clients sent is worked on.
    fn check_for(&mut self, time: Duration, bound: u64, during: &str) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.check(bound, during);
        }
    }
}

/// Put, reserve, delete; gives the slowest of the three.
fn serve_once(connection: &mut Connection) -> Duration {
    let mut slowest = Duration::ZERO;
    let mut timed = |what: &mut dyn FnMut() -> String, wanted: &str| {
        let begun = Instant::now();
        let line = what();
        slowest = slowest.max(begun.elapsed());
        assert!(line.starts_with(wanted), "wanted {wanted}, got {line}");
        line
    };
    timed(&mut || connection.command("watch neighbour").unwrap().line, "WATCHING");
    timed(&mut || connection.command("use neighbour").unwrap().line, "USING");
    timed(&mut || connection.put(0, 0, 60, b"hello").unwrap().line, "INSERTED");
    let reserved = timed(&mut || connection.command("reserve-with-timeout 5").unwrap().line, "RESERVED");
    let id = reserved.split(' ').nth(1).unwrap().to_string();
    timed(&mut || connection.command(&format!("delete {id}")).unwrap().line, "DELETED");
    slowest
}

/// Five thousand connections need more files than the usual soft limit allows, here and in the server.
fn raise_file_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// Sends until the other side has not taken anything for a moment; gives how much it took.
fn send_until_stuck(connection: &Connection, bytes: &[u8]) -> usize {
    let mut stream = connection.stream();
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut sent = 0;
    while sent < bytes.len() {
        match stream.write(&bytes[sent..]) {
            Ok(n) => sent += n,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(error) => panic!("the server closed instead of pushing back: {error}"),
        }
    }
    sent
}

#[test]
fn a_client_that_never_reads_its_replies() {
    // 20 clients ask for a 60-KiB body 1,000 times each and read nothing: 1.2 GB if it were all kept.
    let mut watched = Watched::start();
    let id = watched.neighbour.put(9, 100_000, 60, &vec![b'x'; 60_000]).unwrap().number();
    let request = format!("peek {id}\r\n").repeat(1_000);
    let greedy: Vec<Connection> = (0..20).map(|_| watched.server.connect()).collect();
    for client in &greedy {
        send_until_stuck(client, request.as_bytes());
    }
    watched.check_for(Duration::from_secs(1), 48 * MIB, "20 clients do not read");
    drop(greedy);
    watched.check(48 * MIB, "after they went");
}

#[test]
fn a_client_that_sends_a_byte_at_a_time() {
    // Between any two bytes of its put the neighbour is served.
    let mut watched = Watched::start();
    let mut slow = watched.server.connect();
    for byte in b"put 0 50 60 3\r\nabc\r\n" {
        slow.send(&[*byte]).unwrap();
        watched.check(16 * MIB, "a byte at a time");
    }
    assert_eq!(slow.reply().unwrap().word(), "INSERTED");
}

#[test]
fn a_client_that_announces_four_gigabytes() {
    let mut watched = Watched::start();
    let clients: Vec<Connection> = (0..20).map(|_| watched.server.connect()).collect();
    for client in &clients {
        send_until_stuck(client, b"put 0 0 60 4294967295\r\n");
    }
    watched.check(8 * MIB, "4 GB announced by 20 clients");
    // And really sends some of it: it is swallowed, not kept.
    let some = vec![b'x'; 8 * MIB as usize];
    for client in clients.iter().take(4) {
        assert_eq!(send_until_stuck(client, &some), some.len(), "the body is swallowed");
    }
    watched.check(16 * MIB, "32 MiB of an endless body sent");
}

#[test]
fn clients_that_announce_a_body_and_send_one_byte_of_it() {
    // 500 times the largest allowed body is 32 MiB; what was not sent must not be paid for.
    let mut watched = Watched::start();
    let clients: Vec<Connection> = (0..500).map(|_| watched.server.connect()).collect();
    for client in &clients {
        send_until_stuck(client, b"put 0 0 60 65535\r\nx");
    }
    watched.check_for(Duration::from_millis(300), 48 * MIB, "500 bodies announced");
}

#[test]
fn a_line_without_end() {
    let mut watched = Watched::start();
    let client = watched.server.connect();
    let line = vec![b'x'; 16 * MIB as usize];
    assert_eq!(send_until_stuck(&client, &line), line.len(), "a line that is too long is discarded");
    watched.check(8 * MIB, "a line of 16 MiB");
    let mut client = client;
    client.send(b"\r\nlist-tube-used\r\n").unwrap();
    assert_eq!(client.reply().unwrap().line, "BAD_FORMAT");
    assert_eq!(client.reply().unwrap().line, "USING default");
}

#[test]
fn a_flood_of_commands_that_fail() {
    // 100,000 malformed lines in one go, replies read: each is answered, in order.
    let mut watched = Watched::start();
    let mut client = watched.server.connect();
    for _ in 0..100 {
        client.send("delete x\r\nnonsense\r\n".repeat(500).as_bytes()).unwrap();
        for _ in 0..500 {
            assert_eq!(client.reply().unwrap().line, "BAD_FORMAT");
            assert_eq!(client.reply().unwrap().line, "UNKNOWN_COMMAND");
        }
    }
    watched.check(16 * MIB, "100,000 malformed lines");
}

#[test]
fn five_thousand_idle_connections() {
    let mut watched = Watched::start();
    let files_before = procfs::open_files(watched.server.pid());
    let mut idle: Vec<Connection> = (0..5_000).map(|_| watched.server.connect()).collect();
    let all = wait::until(|| {
        let stats = watched.neighbour.command("stats").unwrap();
        (stats.stat("current-connections").unwrap() == "5001").then_some(())
    });
    assert!(all.is_some(), "all connections are accepted: {}", watched.server.stderr());
    watched.check_for(Duration::from_millis(500), 64 * MIB, "5,000 idle connections");
    // Each of them works.
    for client in idle.iter_mut().step_by(97) {
        assert_eq!(client.command("list-tube-used").unwrap().line, "USING default");
    }
    // Half of them waiting for a job costs no more.
    for client in idle.iter_mut().take(2_500) {
        client.send(b"reserve\r\n").unwrap();
    }
    let waiting = wait::until(|| {
        let stats = watched.neighbour.command("stats").unwrap();
        (stats.stat("current-waiting").unwrap() == "2500").then_some(())
    });
    assert!(waiting.is_some(), "2,500 reserves wait");
    watched.check_for(Duration::from_millis(500), 80 * MIB, "2,500 of them waiting");
    drop(idle);
    let freed = wait::until(|| (procfs::open_files(watched.server.pid()) <= files_before + 1).then_some(()));
    assert!(freed.is_some(), "descriptors come back: {}", procfs::open_files(watched.server.pid()));
    watched.check(80 * MIB, "after they went");
}

#[test]
fn a_reserve_times_out_while_others_keep_the_server_busy() {
    // Eight clients put and delete without a pause until the reserve of a ninth was answered.
    let watched = Watched::start();
    let answered = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut busy = watched.server.connect();
                while !answered.load(Ordering::Relaxed) {
                    let id = busy.put(0, 0, 60, b"x").unwrap().number();
                    busy.command(&format!("delete {id}")).unwrap();
                }
            });
        }
        let mut waiting = watched.server.connect();
        waiting.command("watch quiet").unwrap();
        waiting.command("ignore default").unwrap();
        let begun = Instant::now();
        let reply = waiting.command("reserve-with-timeout 1");
        answered.store(true, Ordering::Relaxed);
        assert_eq!(reply.expect("an answer while the others are busy").line, "TIMED_OUT");
        assert!(begun.elapsed() >= Duration::from_secs(1));
    });
}

#[test]
fn connections_that_come_and_go() {
    // 3,000 connections, one after the other, some in the middle of a request.
    let mut watched = Watched::start();
    for number in 0..3_000 {
        let mut client = watched.server.connect();
        match number % 4 {
            0 => {}
            1 => client.send(b"put 0 0 60 100\r\nabc").unwrap(),
            2 => client.send(b"reserve-with-timeout 1000\r\n").unwrap(),
            _ => {
                client.send(&put_request(0, 0, 60, b"x")).unwrap();
                let id = client.reply().unwrap().number();
                assert_eq!(client.command(&format!("delete {id}")).unwrap().line, "DELETED");
            }
        }
    }
    watched.check(32 * MIB, "3,000 connections came and went");
    let gone = wait::until(|| {
        let stats = watched.neighbour.command("stats").unwrap();
        (stats.stat("current-connections").unwrap() == "1").then_some(())
    });
    assert!(gone.is_some(), "no connection is left behind");
}
