//! Long suites, and those that need a program which is not everywhere. They run with `BEANPOLE_EXTRA=1`,
//! best on a release build: `BEANPOLE_EXTRA=1 cargo test -p beanpole-tests --release --test extra`.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use beanpole_tests::connection::Connection;
use beanpole_tests::crash;
use beanpole_tests::differential::{self, Mode, Pair};
use beanpole_tests::server::{Server, Setup};
use beanpole_tests::{extra, wait};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tempfile::TempDir;

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

#[test]
fn fifty_crashes_lose_nothing() {
    if extra::skip_unless_wanted("fifty_crashes_lose_nothing") {
        return;
    }
    let options = crash::Options { rounds: 50, seed: rand::random() };
    let summary = crash::run(&Setup::beanpole(BIN), &options).unwrap_or_else(|faults| panic!("{faults}"));
    println!("{summary:?}");
}

#[test]
fn a_hundred_sequences_agree_with_beanstalkd() {
    if extra::skip_unless_wanted("a_hundred_sequences_agree_with_beanstalkd") {
        return;
    }
    let Some(oracle) = Setup::beanstalkd() else {
        return extra::skipped("a_hundred_sequences_agree_with_beanstalkd", "beanstalkd is not installed");
    };
    let under_test = Setup::beanpole(BIN);
    let open = || Pair::start(&oracle, &under_test);
    let seed = rand::random();
    let options = differential::Options { seed, sequences: 100, ..Default::default() };
    println!("seed {seed}: {:?}", differential::run(&options, &open).unwrap_or_else(|e| panic!("{e}")));
    let options = differential::Options { sequences: 10, steps: 200, mode: Mode::Timed, ..options };
    println!("seed {seed}: {:?}", differential::run(&options, &open).unwrap_or_else(|e| panic!("{e}")));
}

#[test]
fn a_new_server_accepts_within_100_ms() {
    if extra::skip_unless_wanted("a_new_server_accepts_within_100_ms") {
        return;
    }
    // What client test suites allow: spawn, connect. The fastest of ten, because others use the machine.
    let mut accepted = Vec::new();
    let mut answered = Vec::new();
    for _ in 0..10 {
        let dir = TempDir::new().unwrap();
        let (port, admin_port) = (beanpole_tests::server::free_port(), beanpole_tests::server::free_port());
        let begun = Instant::now();
        let mut child = Command::new(Setup::beanpole(BIN).binary())
            .arg("serve")
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--admin-listen", &format!("127.0.0.1:{admin_port}")])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let connected = wait::until(|| Connection::open(([127, 0, 0, 1], port).into()).ok());
        accepted.push(begun.elapsed());
        let put = connected.map(|mut connection| connection.put(0, 0, 60, b"first"));
        answered.push(begun.elapsed());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(put.expect("it accepts").unwrap().line, "INSERTED 1");
    }
    accepted.sort();
    answered.sort();
    println!("accepted after {accepted:?}, first put acknowledged after {answered:?}");
    assert!(accepted[4] < Duration::from_millis(100), "half of the starts accept within 100 ms");
}

#[test]
fn fdatasync_is_done_before_the_reply() {
    if extra::skip_unless_wanted("fdatasync_is_done_before_the_reply") {
        return;
    }
    let Some(strace) = extra::program("strace") else {
        return extra::skipped("fdatasync_is_done_before_the_reply", "strace is not installed");
    };
    let dir = TempDir::new().unwrap();
    let trace = dir.path().join("trace");
    let server = Server::start(&Setup::beanpole(BIN));
    let mut connection = server.connect();
    let mut tracer = Command::new(strace)
        .args(["-f", "-s", "100000", "-o", trace.to_str().unwrap(), "-p", &server.pid().to_string()])
        .args(["-e", "trace=write,writev,sendto,sendmsg,pwrite64,pwritev,pwritev2,fdatasync,fsync"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let attached = wait::until_within(Duration::from_secs(10), || all_threads_traced(server.pid()));
    if attached.is_none() {
        stop(&mut tracer);
        return extra::skipped("fdatasync_is_done_before_the_reply", "strace may not attach here");
    }
    let mut replies = Vec::new();
    for number in 0..20 {
        let body = format!("SYNCED-{number:03}");
        let id = connection.put(0, 0, 60, body.as_bytes()).unwrap().number();
        replies.push((body, format!("INSERTED {id}\\r\\n")));
        assert_eq!(connection.command("reserve").unwrap().number(), id);
        assert_eq!(connection.command(&format!("delete {id}")).unwrap().line, "DELETED");
    }
    stop(&mut tracer);
    let trace = fs::read_to_string(&trace).unwrap();
    let lines: Vec<&str> = trace.lines().collect();
    for (body, reply) in replies {
        let at = |text: &str, from: usize| {
            lines.iter().skip(from).position(|line| line.contains(text)).map(|at| from + at)
        };
        let wrote = at(&body, 0).unwrap_or_else(|| panic!("{body} is written nowhere:\n{trace}"));
        let replied = at(&reply, 0).unwrap_or_else(|| panic!("{reply} is sent nowhere:\n{trace}"));
        let synced = lines[wrote..replied].iter().any(|line| {
            (line.contains("fdatasync") || line.contains("fsync")) && line.trim_end().ends_with("= 0")
        });
        assert!(wrote < replied && synced, "{body}: no sync between\n{}\n{}", lines[wrote], lines[replied]);
    }
}

#[test]
fn a_full_disk_refuses_puts_loses_nothing_and_takes_deletes() {
    let name = "a_full_disk_refuses_puts_loses_nothing_and_takes_deletes";
    if extra::skip_unless_wanted(name) {
        return;
    }
    let Some(disk) = SmallDisk::mount() else { return extra::skipped(name, "no right to mount a tmpfs") };
    let ballast = disk.dir.path().join("ballast");
    fs::write(&ballast, vec![0; SmallDisk::BALLAST_BYTES]).unwrap();
    let mut server = Server::start(&Setup::beanpole(BIN).on(disk.dir.path().join("data")));
    let mut client = server.connect();
    let body = |number: usize| format!("{number:08}").repeat(1_000);
    let mut kept = Vec::new();
    let refused = (0..SmallDisk::PUTS_MAX).find_map(|number| {
        let reply = client.put(0, 0, 60, body(number).as_bytes()).unwrap();
        if reply.word() != "INSERTED" {
            return Some(reply.line);
        }
        kept.push((reply.number(), number));
        None
    });
    assert_eq!(refused.as_deref(), Some("OUT_OF_MEMORY"), "after {} puts", kept.len());
    for (id, _) in kept.drain(..kept.len() / 2) {
        assert_eq!(client.command(&format!("delete {id}")).unwrap().line, "DELETED");
    }
    server.crash_and_restart();
    let mut client = server.connect();
    for (id, number) in &kept {
        assert_eq!(client.command(&format!("peek {id}")).unwrap().text(), body(*number));
    }
    assert_eq!(client.command("stats").unwrap().stat("current-jobs-ready"), Some(kept.len().to_string()));
    // With room again it takes jobs again, without a restart.
    fs::remove_file(&ballast).unwrap();
    let again = wait::until(|| (client.put(0, 0, 60, b"room").unwrap().word() == "INSERTED").then_some(()));
    assert!(again.is_some(), "puts are still refused");
}

/// A file system in memory that two segments fill; unmounted when dropped.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    /// Room for three segments of 64 MiB.
    const BYTES: usize = 210 << 20;
    /// What keeps the third one out.
    const BALLAST_BYTES: usize = 60 << 20;
    /// Far more puts than the disk holds.
    const PUTS_MAX: usize = 40_000;

    fn mount() -> Option<SmallDisk> {
        let dir = TempDir::new().unwrap();
        let size = format!("size={}", SmallDisk::BYTES);
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(dir.path())
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(SmallDisk { dir })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the server may still be going down.
        let unmounted = Command::new("umount").arg("-l").arg(self.dir.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.dir.path().display());
        }
    }
}

/// All threads of a process have a tracer.
fn all_threads_traced(pid: u32) -> Option<()> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    for task in tasks.flatten() {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        if status.contains("TracerPid:\t0\n") {
            return None;
        }
    }
    Some(())
}

fn stop(tracer: &mut Child) {
    let pid = i32::try_from(tracer.id()).unwrap();
    nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
    tracer.wait().unwrap();
}
