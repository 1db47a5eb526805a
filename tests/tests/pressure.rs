//! Little memory: puts are slowed, then refused, and nothing is killed. Most of it needs root and memory cgroups, and runs with
//! `BEANPOLE_EXTRA=1`; a test that cannot run says SKIPPED and its name.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use beanpole_tests::cgroup::Cgroup;
use beanpole_tests::cluster::Cluster;
use beanpole_tests::connection::{Connection, put_request};
use beanpole_tests::flood::{self, Flood, Plan};
use beanpole_tests::server::{Server, Setup};
use beanpole_tests::{extra, procfs, wait};

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

const MIB: u64 = 1 << 20;
/// Within this a worker's reserve and delete are answered while others put without end.
const WORKER_P99_MAX: Duration = Duration::from_millis(50);
/// Within this a put is answered, whatever the answer.
const ANSWER_MAX: Duration = Duration::from_millis(100);
/// Other programs use the same two processors and the same disk: one answer in a hundred may be later, but not later than this.
const LATE_MAX: Duration = Duration::from_millis(1500);
/// Jobs put one after the other by one connection until they are slowed: a round that takes so long is slowed.
const SLOWED: Duration = Duration::from_secs(1);

/// A process that takes memory in a cgroup and keeps it until it is dropped.
struct Balloon(Child);

impl Balloon {
    fn blow_up(cgroup: &Cgroup, bytes: u64) -> Balloon {
        let procs = cgroup.dir().join("cgroup.procs");
        let mut child = Command::new("sh")
            .args(["-c", "echo $$ > \"$0\" && exec tail -c \"$1\""])
            .arg(procs)
            .arg(bytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let stdin = child.stdin.as_mut().unwrap();
        let block = vec![1; MIB as usize];
        for _ in 0..bytes / MIB {
            // It may be killed while it grows, which is what some tests want.
            if stdin.write_all(&block).is_err() {
                break;
            }
        }
        Balloon(child)
    }
}

impl Drop for Balloon {
    fn drop(&mut self) {
        // An error means that it was killed already, which `wait` sees as well.
        let _gone_already = self.0.kill();
        self.0.wait().unwrap();
    }
}

/// What puts meet at a server: asks with one.
fn put_answer(addr: SocketAddr) -> String {
    Connection::open(addr).unwrap().put(0, 0, 60, b"?").unwrap().word().to_owned()
}

fn wait_for_answer(addr: SocketAddr, wanted: &str) {
    let came = wait::until(|| (put_answer(addr) == wanted).then_some(()));
    assert!(came.is_some(), "puts are still answered {}", put_answer(addr));
}

fn ready_jobs(addr: SocketAddr) -> u64 {
    let stats = Connection::open(addr).unwrap().command("stats").unwrap();
    stats.stat("current-jobs-ready").and_then(|value| value.parse().ok()).expect("stats have it")
}

fn expect_in_time(seen: &flood::Seen, what: &str) {
    assert!(seen.permille(990) <= ANSWER_MAX && seen.permille(1000) <= LATE_MAX, "{what}: {}", seen.line());
}

/// Workers drain the one server at 80 % of the other's rate at least, ten seconds after they came back at the latest. Both are
/// measured in turns, because other programs use the same machine.
fn expect_drains_as_normal(addr: SocketAddr, normal: SocketAddr) {
    let mut best = 0;
    for _ in 0..5 {
        let [here, there] = [addr, normal].map(|addr| flood::drain(addr, 8, Duration::from_secs(2)));
        println!("workers are back, 2 s: {}; at a server with room: {}", here.line(), there.line());
        best = best.max(here.count("DELETED") * 100 / there.count("DELETED").max(1));
    }
    assert!(best >= 80, "workers drain at {best} % of the normal rate");
}

/// The index of a start may be larger than the memory that it is given: no put then, but workers empty the queue, and when they
/// have, puts are taken again. Needs nothing.
#[test]
fn a_start_over_its_budget_is_closed_until_workers_have_emptied_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::beanpole(BIN).on(dir.path().join("data"));
    let jobs = {
        let server = Server::start(&setup);
        flood::fill(server.addr(), 10, 450_000, Duration::from_secs(60)).unwrap()
    };
    let server = Server::start(&setup.flags(["--memory-limit", "64MiB"]));
    let addr = server.addr();
    wait_for_answer(addr, "OUT_OF_MEMORY");
    let before = ready_jobs(addr);
    assert!(before >= jobs, "{before} of {jobs} are there");
    let mut client = server.connect();
    let reply = client.command("reserve").unwrap();
    assert_eq!(client.command(&format!("release {} 0 0", reply.number())).unwrap().line, "RELEASED");
    assert_eq!(client.command(&format!("delete {}", reply.number())).unwrap().line, "DELETED");
    assert!(server.stderr().contains("-> closed"), "{}", server.stderr());
    let work = flood::drain(addr, 4, Duration::from_secs(1));
    assert!(work.count("DELETED") > 0, "{}", work.line());
    flood::delete(addr, jobs).unwrap();
    assert_eq!(ready_jobs(addr), 0);
    wait_for_answer(addr, "INSERTED");
    assert!(server.stderr().contains("closed -> "), "{}", server.stderr());
}

/// Clients that announce large bodies, send half of them and stop take an eighth of the budget at most, and not for long. Needs
/// nothing.
#[test]
fn bodies_that_never_end_cannot_keep_the_room_from_others() {
    const BODY: usize = 1 << 20;
    let setup = Setup::beanpole(BIN).flags(["--memory-limit", "96MiB", "--max-job-size", "1MiB"]);
    let server = Server::start(&setup);
    let before = procfs::rss_anon_bytes(server.pid());
    let whole = put_request(0, 0, 60, &vec![b'z'; BODY]);
    let mut slow: Vec<Connection> = (0..40).map(|_| server.connect()).collect();
    for client in &mut slow {
        client.send(&whole[..BODY / 2]).unwrap();
    }
    let mut honest = server.connect();
    assert_eq!(
        honest.put(0, 0, 60, b"small").unwrap().word(),
        "INSERTED",
        "what comes at once needs no room"
    );
    let grown = procfs::rss_anon_bytes(server.pid()).saturating_sub(before);
    assert!(grown <= 24 * MIB, "{} MiB for 20 MiB that were sent", grown / MIB);
    let begun = Instant::now();
    let taken = wait::until_within(Duration::from_secs(40), || {
        (honest.put(0, 0, 60, &whole[20..BODY]).unwrap().word() == "INSERTED").then_some(())
    });
    assert!(taken.is_some(), "the slow ones still hold the room");
    println!("a body of 1 MiB was taken after {:?}", begun.elapsed());
    // Who goes on after all is told, and understood again.
    let mut answers = Vec::new();
    for client in &mut slow {
        client.send(&whole[BODY / 2..]).unwrap();
        answers.push(client.reply().unwrap().word().to_owned());
        assert_eq!(client.command("list-tube-used").unwrap().line, "USING default");
    }
    assert!(answers.iter().any(|answer| answer == "OUT_OF_MEMORY"), "{answers:?}");
    assert!(answers.iter().all(|answer| answer == "OUT_OF_MEMORY" || answer == "INSERTED"), "{answers:?}");
}

/// Nobody works, and 5,000 jobs of 4 KiB a second come in, in 256 MiB.
#[test]
fn a_flood_without_workers_kills_nothing_and_loses_nothing() {
    let name = "a_flood_without_workers_kills_nothing_and_loses_nothing";
    if extra::skip_unless_wanted(name) {
        return;
    }
    let Some(cgroup) = Cgroup::with_limit(256 * MIB) else { return extra::skipped(name, "no memory cgroup") };
    let mut server = Server::start(&Setup::beanpole(BIN).within(cgroup.dir()));
    let addr = server.addr();
    let free = Server::start(&Setup::beanpole(BIN));
    flood::fill(free.addr(), 100, 400_000, Duration::from_secs(60)).unwrap();
    flood::fill(addr, 100, 10_000_000, SLOWED).unwrap();
    let plan = Plan { clients: 16, body: 4096, rate: Some(5000) };
    let jobs = ready_jobs(addr);
    let slowed = Flood::start(&[addr], plan);
    let work = flood::drain(addr, 1, Duration::from_secs(10));
    let slowed = slowed.finish();
    println!("{jobs} jobs; shedding: puts {}; one worker {}", slowed.line(), work.line());
    expect_in_time(&slowed, "puts while shedding");
    assert!(slowed.count("INSERTED") > 100, "{}", slowed.line());
    assert_eq!(slowed.total(), slowed.count("INSERTED") + slowed.count("OUT_OF_MEMORY"));
    assert_eq!(ready_jobs(addr), jobs + slowed.count("INSERTED") - work.count("DELETED"));

    let balloon = Balloon::blow_up(&cgroup, 40 * MIB);
    wait_for_answer(addr, "OUT_OF_MEMORY");
    let jobs = ready_jobs(addr);
    let closed = Flood::start(&[addr], plan);
    let work = flood::drain(addr, 1, Duration::from_secs(5));
    let closed = closed.finish();
    println!("closed: puts {}; one worker {}", closed.line(), work.line());
    expect_in_time(&closed, "refusals");
    assert!(closed.count("OUT_OF_MEMORY") > 1000 && work.count("DELETED") > 100);
    assert_eq!(ready_jobs(addr), jobs + closed.count("INSERTED") - work.count("DELETED"));

    drop(balloon);
    expect_drains_as_normal(addr, free.addr());
    let left = ready_jobs(addr);
    server.crash_and_restart();
    assert_eq!((ready_jobs(addr), cgroup.oom_kills()), (left, 0), "{}", server.stderr());
}

/// The same to Debian's beanstalkd, with a quarter of the memory so that it is over sooner: this is what is being prevented.
#[test]
fn control_beanstalkd_is_killed_by_such_a_flood() {
    let name = "control_beanstalkd_is_killed_by_such_a_flood";
    if extra::skip_unless_wanted(name) {
        return;
    }
    let Some(setup) = Setup::beanstalkd() else { return extra::skipped(name, "beanstalkd is not installed") };
    let Some(cgroup) = Cgroup::with_limit(64 * MIB) else { return extra::skipped(name, "no memory cgroup") };
    let mut server = Server::start(&setup.within(cgroup.dir()));
    let broke = flood::fill(server.addr(), 4096, 100_000, Duration::from_secs(60));
    println!("beanstalkd after a flood of 4-KiB jobs in 64 MiB: {broke:?}");
    assert!(broke.is_err() && cgroup.oom_kills() > 0);
    assert!(wait::until(|| (!server.is_running()).then_some(())).is_some());
}

/// 64 clients put 4-KiB jobs as fast as they are answered, at three nodes with 96 MiB each, which have little room left.
#[test]
fn three_nodes_in_96_mib_survive_an_endless_flood() {
    let name = "three_nodes_in_96_mib_survive_an_endless_flood";
    if extra::skip_unless_wanted(name) {
        return;
    }
    let cgroups: Vec<Cgroup> = (0..3).filter_map(|_| Cgroup::with_limit(96 * MIB)).collect();
    if cgroups.len() < 3 {
        return extra::skipped(name, "no memory cgroup");
    }
    let mut cluster = Cluster::new(BIN, 3);
    for (id, cgroup) in (1..).zip(&cgroups) {
        cluster = cluster.within(id, cgroup.dir());
        cluster.start_node(id);
    }
    cluster.wait_until_ready(&cluster.ids());
    let leader = cluster.leader();
    let term = cluster.view(leader).map(|view| view.term);
    let addresses: Vec<SocketAddr> = cluster.ids().into_iter().map(|id| cluster.addr(id)).collect();
    let filled = flood::fill(addresses[0], 100, 10_000_000, SLOWED).unwrap();
    let jobs = ready_jobs(addresses[0]);
    let seconds = std::env::var("FLOOD_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let flood = Flood::start(&addresses, Plan { clients: 21, body: 4096, rate: None });
    let work = flood::drain(addresses[1], 1, Duration::from_secs(seconds));
    let seen = flood.finish();
    println!("{jobs} jobs, {filled} of them small; puts {}; one worker {}", seen.line(), work.line());
    println!("{}", cluster.operator("cluster status").text);
    for (id, cgroup) in (1..).zip(&cgroups) {
        assert_eq!(cgroup.oom_kills(), 0, "node {id}");
        assert!(cluster.is_running(id));
    }
    let view = cluster.view(leader).unwrap();
    assert_eq!((view.leader, Some(view.term)), (Some(leader), term), "the leader did not change");
    expect_in_time(&seen, "puts");
    assert!(work.count("DELETED") > 100, "{}", work.line());
    assert!(work.permille(990) <= WORKER_P99_MAX, "{}", work.line());
    assert_eq!(ready_jobs(addresses[2]), jobs + seen.count("INSERTED") - work.count("DELETED"));
    cluster.operate("cluster verify");
    drop(cluster);
}

/// A process beside it takes the memory; the kernel kills the server, which was marked for that. It starts in the same cgroup at
/// the first try, with all jobs.
#[test]
fn a_server_that_was_killed_for_memory_starts_again_in_the_same_cgroup() {
    let name = "a_server_that_was_killed_for_memory_starts_again_in_the_same_cgroup";
    if extra::skip_unless_wanted(name) {
        return;
    }
    let Some(cgroup) = Cgroup::with_limit(96 * MIB) else { return extra::skipped(name, "no memory cgroup") };
    let mut server =
        Server::start(&Setup::beanpole(BIN).within(cgroup.dir()).flags(["--oom-score-adj", "1000"]));
    flood::fill(server.addr(), 100, 10_000_000, SLOWED).unwrap();
    let jobs = ready_jobs(server.addr());
    let balloon = Balloon::blow_up(&cgroup, 90 * MIB);
    assert!(wait::until(|| (!server.is_running()).then_some(())).is_some(), "it was not killed");
    drop(balloon);
    let begun = Instant::now();
    server.start_again().unwrap();
    println!("{jobs} jobs; killed for memory, and serving again after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!((ready_jobs(server.addr()), cgroup.oom_kills()), (jobs, 1));
    assert!(server.stderr().contains("OOM kills"), "{}", server.stderr());
    flood::drain(server.addr(), 4, Duration::from_secs(2));
}

/// Ten thousand clients that do nothing, and as many again that have begun a line.
#[test]
fn ten_thousand_idle_connections_cost_a_hundred_mib_at_most() {
    let name = "ten_thousand_idle_connections_cost_a_hundred_mib_at_most";
    if extra::skip_unless_wanted(name) {
        return;
    }
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    if hard < 11_000 {
        return extra::skipped(name, "the limit on open files is too low");
    }
    let server = Server::start(&Setup::beanpole(BIN));
    let before = procfs::rss_anon_bytes(server.pid());
    let mut clients: Vec<Connection> = (0..10_000).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.command("use idle").unwrap().line, "USING idle");
    }
    let idle = procfs::rss_anon_bytes(server.pid()) - before;
    for client in &mut clients {
        client.send(b"put 0 0 60").unwrap();
    }
    // The last one's line is whole, so that what came before has been read.
    let last = clients.last_mut().unwrap();
    last.send(b" 1\r\na\r\n").unwrap();
    assert_eq!(last.reply().unwrap().line, "INSERTED 1");
    let begun = procfs::rss_anon_bytes(server.pid()) - before;
    println!(
        "10,000 connections: idle {} KiB each, with a line begun {} KiB each",
        idle / 10_240_000,
        begun / 10_240_000
    );
    assert!(idle <= 100 * MIB && begun <= 100 * MIB, "{} and {} MiB", idle / MIB, begun / MIB);
}
