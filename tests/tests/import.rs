//! `beanpole import`, as a process, into a real server. The binlogs are beanstalkd's own, committed; draining a running
//! beanstalkd needs one, so those tests belong to the extra suites.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use beanpole_tests::connection::{Connection, Reply};
use beanpole_tests::server::{Server, Setup};
use beanpole_tests::{extra, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("server/tests/binlog").join(name)
}

fn import(args: &[&str]) -> Output {
    Command::new(Setup::beanpole(BIN).binary()).arg("import").args(args).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(output)))
}

fn address(server: &Server) -> String {
    server.addr().to_string()
}

fn reserve_from(client: &mut Connection, tube: &str) -> Reply {
    client.command(&format!("watch {tube}")).unwrap();
    let reply = client.command("reserve-with-timeout 0").unwrap();
    client.command(&format!("ignore {tube}")).unwrap();
    reply
}

fn stat_of(client: &mut Connection, id: u64, key: &str) -> String {
    client.command(&format!("stats-job {id}")).unwrap().stat(key).unwrap()
}

/// What a job looks like from outside.
fn peeked(client: &mut Connection, tube: &str, word: &str) -> (u64, String) {
    client.command(&format!("use {tube}")).unwrap();
    let reply = client.command(word).unwrap();
    assert_eq!(reply.word(), "FOUND", "{word} in {tube}");
    (reply.number(), reply.text())
}

#[test]
fn a_binlog_comes_over_with_tubes_priorities_delays_and_buried_jobs() {
    let server = Server::start(&Setup::beanpole(BIN));
    let dir = fixture("states");
    let before = fs::read(dir.join("binlog.1")).unwrap();
    let output = import(&["binlog", dir.to_str().unwrap(), "--to", &address(&server), "-o", "json"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let report = report(&output);
    assert_eq!((report["jobs"].as_u64(), report["skipped"].as_array().unwrap().len()), (Some(6), 0));
    assert_eq!(fs::read(dir.join("binlog.1")).unwrap(), before);

    let mut client = server.connect();
    let (id, body) = peeked(&mut client, "emails", "peek-buried");
    assert_eq!(body, "buried");
    assert_eq!((stat_of(&mut client, id, "pri"), stat_of(&mut client, id, "ttr")), ("8".into(), "61".into()));
    // The delayed ones are ready by now, if the binlog is old enough: which are first depends on that.
    let mut ready = Vec::new();
    for tube in ["emails", "emails", "other", "other"] {
        let reply = reserve_from(&mut client, tube);
        if reply.word() == "RESERVED" {
            ready.push((reply.text(), stat_of(&mut client, reply.number(), "pri")));
        }
    }
    assert!(ready.contains(&("ready".to_owned(), "10".to_owned())), "{ready:?}");
    assert!(ready.contains(&(String::new(), "1".to_owned())), "{ready:?}");
    let stats = client.command("stats").unwrap();
    assert_eq!(stats.stat("total-jobs").unwrap(), "6");
}

#[test]
fn a_dry_run_tells_the_same_and_puts_nothing() {
    let server = Server::start(&Setup::beanpole(BIN));
    let (dir, to) = (fixture("moved"), address(&server));
    let args = ["binlog", dir.to_str().unwrap(), "--to", &to, "-o", "json"];
    let dry = import(&[&args[..], &["--dry-run"]].concat());
    assert_eq!(code(&dry), 0, "{}", stderr(&dry));
    assert_eq!(server.connect().command("stats").unwrap().stat("total-jobs").unwrap(), "0");
    let wet = import(&args);
    assert_eq!(code(&wet), 0, "{}", stderr(&wet));
    assert_eq!((report(&dry)["jobs"].as_u64(), report(&wet)["jobs"].as_u64()), (Some(24), Some(24)));
    // Going on after a job leaves out those up to it.
    let rest = report(&import(&[&args[..], &["--dry-run", "--after", "40"]].concat()));
    assert_eq!(rest["jobs"].as_u64(), Some(7));
}

#[test]
fn jobs_that_cannot_be_put_and_servers_that_are_not_there_are_told() {
    let server = Server::start(&Setup::beanpole(BIN).flags(["--max-job-size", "100"]));
    let (dir, to) = (fixture("moved"), address(&server));
    let output = import(&["binlog", dir.to_str().unwrap(), "--to", &to, "-o", "json"]);
    assert_eq!(code(&output), 1);
    let skipped = &report(&output)["skipped"][0];
    assert_eq!(skipped["jobs"], 18);
    assert!(skipped["reason"].as_str().unwrap().contains("--max-job-size"), "{skipped}");

    let nobody = format!("127.0.0.1:{}", beanpole_tests::server::free_port());
    let output = import(&["binlog", dir.to_str().unwrap(), "--to", &nobody]);
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("is Beanpole running"), "{}", stderr(&output));
    let empty = TempDir::new().unwrap();
    assert_eq!(code(&import(&["binlog", empty.path().to_str().unwrap(), "--to", &to])), 2);
}

/// A beanstalkd before 1.12 knows no `reserve-job`. Here a Beanpole is drained through a line that garbles that word.
#[test]
fn a_source_that_cannot_reserve_by_number_is_drained_too() {
    let (source, target) = (Server::start(&Setup::beanpole(BIN)), Server::start(&Setup::beanpole(BIN)));
    fill(&mut source.connect());
    let from = garbling_line(source.addr()).to_string();
    let output = import(&["live", &from, "--to", &address(&target), "-o", "json"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(report(&output)["jobs"].as_u64(), Some(JOBS));
    let left = source.connect().command("stats").unwrap();
    for state in ["ready", "delayed", "buried", "reserved"] {
        assert_eq!(left.stat(&format!("current-jobs-{state}")).unwrap(), "0", "{state}");
    }
    check(&mut target.connect());
}

/// Takes one connection to a server, and passes commands on but for `reserve-job`, which becomes a
/// word of the same length that no server knows.
fn garbling_line(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut server = TcpStream::connect(server).unwrap();
        let (mut replies, mut back) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        let returning = std::thread::spawn(move || std::io::copy(&mut replies, &mut back));
        let mut commands = BufReader::new(&mut client);
        let mut line = String::new();
        while commands.read_line(&mut line).unwrap() > 0 {
            server.write_all(line.replace("reserve-job", "reserve-xxx").as_bytes()).unwrap();
            line.clear();
        }
        server.shutdown(Shutdown::Write).unwrap();
        // The reader may be gone by now.
        drop(returning.join());
    });
    address
}

/// A server that takes no jobs for a while is waited for: nothing is skipped.
#[test]
fn a_server_that_takes_no_jobs_is_tried_until_it_does() {
    let server = Server::start(&Setup::beanpole(BIN));
    server.signal(Signal::SIGUSR1);
    let mut client = server.connect();
    let stat = |client: &mut Connection, key: &str| client.command("stats").unwrap().stat(key).unwrap();
    assert!(wait::until(|| (stat(&mut client, "draining") == "true").then_some(())).is_some());
    let mut child = Command::new(Setup::beanpole(BIN).binary())
        .args(["import", "binlog", fixture("states").to_str().unwrap(), "--to", &address(&server)])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let refused = wait::until(|| (stat(&mut client, "cmd-put") != "0").then_some(()));
    assert!(refused.is_some(), "nothing was tried");
    assert_eq!(stat(&mut client, "total-jobs"), "0");
    let mut admin = TcpStream::connect(server.admin_addr()).unwrap();
    admin.write_all(b"DELETE /api/v1/draining HTTP/1.0\r\n\r\n").unwrap();
    let ended = wait::until(|| child.try_wait().unwrap());
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
    assert_eq!(stat(&mut client, "total-jobs"), "6");
}

#[test]
fn a_server_is_not_drained_into_itself() {
    let server = Server::start(&Setup::beanpole(BIN).in_memory());
    server.connect().put(0, 0, 60, b"job").unwrap();
    let (from, port) = (address(&server), server.addr().port());
    for to in [from.clone(), format!("localhost:{port}")] {
        let output = import(&["live", &from, "--to", &to]);
        assert!(code(&output) == 2 && stderr(&output).contains("are the same server"), "{}", stderr(&output));
    }
    assert_eq!(server.connect().command("stats").unwrap().stat("total-jobs").unwrap(), "1");
}

#[test]
fn a_beanstalkd_and_its_binlog_come_over_alike() {
    let name = "a_beanstalkd_and_its_binlog_come_over_alike";
    if extra::skip_unless_wanted(name) {
        return;
    }
    let Some(beanstalkd) = Setup::beanstalkd() else {
        return extra::skipped(name, "beanstalkd is not installed");
    };
    let dir = TempDir::new().unwrap();
    let source = Server::start(&beanstalkd.on(dir.path()));
    fill(&mut source.connect());
    let target = Server::start(&Setup::beanpole(BIN));
    let (path, to) = (dir.path().to_str().unwrap(), address(&target));
    let refused = import(&["binlog", path, "--to", &to]);
    assert_eq!(code(&refused), 4, "{}", stderr(&refused));
    assert!(stderr(&refused).contains("import live"), "{}", stderr(&refused));

    let read = report(&import(&["binlog", path, "--even-if-running", "--dry-run", "-o", "json"]));
    let told = report(&import(&["live", &address(&source), "--dry-run", "-o", "json"]));
    let moved = import(&["live", &address(&source), "--to", &to, "-o", "json"]);
    assert_eq!(code(&moved), 0, "{}", stderr(&moved));
    let moved = report(&moved);
    assert_eq!((read["jobs"].as_u64(), told["jobs"].as_u64()), (Some(JOBS), Some(JOBS)));
    assert_eq!((&moved["jobs"], &moved["tubes"]), (&read["jobs"], &read["tubes"]));

    let left = source.connect().command("stats").unwrap();
    for state in ["ready", "delayed", "buried", "reserved"] {
        assert_eq!(left.stat(&format!("current-jobs-{state}")).unwrap(), "0", "{state}");
    }
    check(&mut target.connect());
}

/// Jobs that `fill` leaves.
const JOBS: u64 = 306;

/// Jobs in all states; two tubes, one of them paused.
fn fill(client: &mut Connection) {
    client.command("use bulk").unwrap();
    for number in 0..300 {
        assert_eq!(
            client.put(number % 3, 0, 60, format!("bulk {number}").as_bytes()).unwrap().word(),
            "INSERTED"
        );
    }
    client.command("use odd").unwrap();
    client.put(4_294_967_295, 1000, 7, b"delayed").unwrap();
    client.put(1, 2000, 7, b"later").unwrap();
    for body in ["buried 1", "buried 2"] {
        let id = client.put(5, 0, 1, body.as_bytes()).unwrap().number();
        client.command(&format!("reserve-job {id}")).unwrap();
        assert_eq!(client.command(&format!("bury {id} 9")).unwrap().line, "BURIED");
    }
    client.put(0, 0, 1, b"short").unwrap();
    client.command("use paused").unwrap();
    client.put(0, 0, 1, b"\r\n\0").unwrap();
    assert_eq!(client.command("pause-tube paused 1000").unwrap().line, "PAUSED");
}

/// Everything that `fill` left is in a Beanpole now.
fn check(client: &mut Connection) {
    client.command("watch bulk").unwrap();
    client.command("ignore default").unwrap();
    let mut expected: Vec<u32> = (0..300).collect();
    expected.sort_by_key(|number| number % 3);
    for number in expected {
        let job = client.command("reserve-with-timeout 0").unwrap();
        assert_eq!(job.text(), format!("bulk {number}"), "jobs of equal priority keep their order");
    }
    let (id, body) = peeked(client, "odd", "peek-delayed");
    assert_eq!((body.as_str(), stat_of(client, id, "pri").as_str()), ("delayed", "4294967295"));
    let left: u64 = stat_of(client, id, "time-left").parse().unwrap();
    assert!((900..=1000).contains(&left), "{left} s");
    let (id, body) = peeked(client, "odd", "peek-buried");
    assert_eq!((body.as_str(), stat_of(client, id, "pri").as_str()), ("buried 1", "9"));
    assert_eq!(client.command("kick 10").unwrap().line, "KICKED 2");
    assert_eq!(peeked(client, "odd", "peek-ready").1, "short");
    assert_eq!(reserve_from(client, "paused").text(), "\r\n\0");
}

/// A job that a worker holds stays with it, and a later run brings it over.
#[test]
fn a_live_import_leaves_what_workers_hold_and_goes_on_later() {
    let name = "a_live_import_leaves_what_workers_hold_and_goes_on_later";
    if extra::skip_unless_wanted(name) {
        return;
    }
    let Some(beanstalkd) = Setup::beanstalkd() else {
        return extra::skipped(name, "beanstalkd is not installed");
    };
    let (source, target) = (Server::start(&beanstalkd), Server::start(&Setup::beanpole(BIN)));
    let mut worker = source.connect();
    worker.put(0, 0, 600, b"held").unwrap();
    worker.put(1, 0, 600, b"free").unwrap();
    let held = worker.command("reserve").unwrap().number();
    let (from, to) = (address(&source), address(&target));
    let args = ["live", &from, "--to", &to, "-o", "json"];
    let first = import(&args);
    assert_eq!(code(&first), 1, "{}", stderr(&first));
    assert_eq!(
        (report(&first)["jobs"].as_u64(), report(&first)["skipped"][0]["jobs"].as_u64()),
        (Some(1), Some(1))
    );
    assert_eq!(worker.command(&format!("release {held} 0 0")).unwrap().line, "RELEASED");
    let second = import(&args);
    assert_eq!((code(&second), report(&second)["jobs"].as_u64()), (0, Some(1)));
    assert_eq!(target.connect().command("stats").unwrap().stat("current-jobs-ready").unwrap(), "2");
}

/// Killed and interrupted again and again in the middle: in the end every job came over, and few came twice.
#[test]
fn a_live_import_that_is_killed_again_and_again_loses_nothing() {
    let name = "a_live_import_that_is_killed_again_and_again_loses_nothing";
    if extra::skip_unless_wanted(name) {
        return;
    }
    let Some(beanstalkd) = Setup::beanstalkd() else {
        return extra::skipped(name, "beanstalkd is not installed");
    };
    const COUNT: usize = 20_000;
    let (source, target) = (Server::start(&beanstalkd), Server::start(&Setup::beanpole(BIN)));
    let mut client = source.connect();
    for number in 0..COUNT {
        let delay_s = if number % 10 == 0 { 100_000 } else { 0 };
        client.put(0, delay_s, 60, number.to_string().as_bytes()).unwrap();
    }
    let seen = |server: &Server| -> u64 {
        server.connect().command("stats").unwrap().stat("total-jobs").unwrap().parse().unwrap()
    };
    let mut runs = 0;
    for signal in [Signal::SIGKILL, Signal::SIGINT].into_iter().cycle().take(8) {
        let before = seen(&target);
        let mut child = start_import(&source, &target);
        let moved = wait::until_within(Duration::from_secs(20), || {
            (seen(&target) >= before + 500 || child.try_wait().unwrap().is_some()).then_some(())
        });
        assert!(moved.is_some(), "nothing moves");
        // It may be through by now.
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).ok();
        let status = child.wait().unwrap();
        assert!(signal != Signal::SIGINT || matches!(status.code(), Some(0 | 1)), "{status}");
        runs += 1;
    }
    let output = import(&["live", &address(&source), "--to", &address(&target)]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let (copies, missing) = account(&target, COUNT);
    println!("{runs} runs were ended; {} jobs came twice", copies - COUNT);
    assert_eq!(missing, 0);
    assert!(copies <= COUNT + runs * 64, "{copies} copies of {COUNT} jobs");
}

fn start_import(source: &Server, target: &Server) -> Child {
    Command::new(Setup::beanpole(BIN).binary())
        .args(["import", "live", &address(source), "--to", &address(target)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// How many jobs there are, and how many of the numbers below `count` are missing.
fn account(server: &Server, count: usize) -> (usize, usize) {
    let mut client = server.connect();
    let mut seen = vec![false; count];
    let mut copies = 0;
    for word in ["peek-ready", "peek-delayed"] {
        loop {
            let job = client.command(word).unwrap();
            if job.word() == "NOT_FOUND" {
                break;
            }
            seen[job.text().parse::<usize>().unwrap()] = true;
            copies += 1;
            assert_eq!(client.command(&format!("delete {}", job.number())).unwrap().line, "DELETED");
        }
    }
    (copies, seen.iter().filter(|seen| !**seen).count())
}
