//! Three nodes, and what clients see when one dies: of each kind of fault one short form.
//!
//! The long forms: `beanpole bench failover --dev --fault 5s:kill:leader ...`.

use std::time::{Duration, Instant};

use beanpole_tests::cluster::load::Load;
use beanpole_tests::cluster::{Cluster, READY_LIMIT};
use beanpole_tests::connection::{Connection, put_request};
use beanpole_tests::{procfs, wait};
use nix::sys::signal::Signal;

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

/// Puts and receipts of a load before, between and after faults.
const SOME: u64 = 60;

/// Reserves a job of `tube` and gives its id; panics when there is none.
fn reserve(connection: &mut Connection, tube: &str) -> u64 {
    connection.command(&format!("watch {tube}")).unwrap();
    let reply = connection.command("reserve-with-timeout 10").unwrap();
    assert_eq!(reply.word(), "RESERVED", "{}", reply.line);
    reply.number()
}

/// Puts a body into `tube`; its id.
fn put(connection: &mut Connection, tube: &str, body: &str) -> u64 {
    connection.command(&format!("use {tube}")).unwrap();
    let reply = connection.put(10, 0, 120, body.as_bytes()).unwrap();
    assert_eq!(reply.word(), "INSERTED", "{}", reply.line);
    reply.number()
}

#[test]
fn a_cluster_forms_whatever_the_order_of_starts() {
    let mut cluster = Cluster::new(BIN, 3);
    cluster.start_node(3);
    wait::until(|| cluster.is_live(3).then_some(())).expect("n3 answers");
    assert!(!cluster.is_ready(3), "a node alone serves nothing");
    cluster.start_node(1);
    wait::until(|| cluster.is_live(1).then_some(())).expect("n1 answers");
    cluster.start_node(2);
    cluster.wait_until_ready(&[1, 2, 3]);
    let leader = cluster.leader();
    assert!(cluster.ids().contains(&leader));
}

/// Entries that followers keep in memory cost what they are long, not a buffer each.
#[test]
fn many_small_entries_take_little_memory_on_followers() {
    const JOBS: usize = 4000;
    let cluster = Cluster::start(BIN, 3);
    let leader = cluster.leader();
    let followers: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    let anonymous = |cluster: &Cluster, id| procfs::rss_anon_bytes(cluster.pid(id));
    let mut connection = cluster.connect(leader);
    put(&mut connection, "t", "first");
    let before: Vec<u64> = followers.iter().map(|id| anonymous(&cluster, *id)).collect();
    for _ in 0..JOBS {
        let reply = connection.put(10, 0, 120, b"small").unwrap();
        assert_eq!(reply.word(), "INSERTED", "{}", reply.line);
    }
    cluster.operate("cluster verify --timeout 30");
    for (id, before) in followers.into_iter().zip(before) {
        let grown = anonymous(&cluster, id).saturating_sub(before);
        // A page for each were 16 MiB.
        assert!(grown < 8 << 20, "n{id} grew by {grown} bytes for {JOBS} entries");
    }
}

#[test]
fn a_started_again_cluster_is_the_same_cluster() {
    let mut cluster = Cluster::start(BIN, 3);
    let id = put(&mut cluster.connect(1), "t", "kept");
    for id in cluster.ids() {
        let (status, took) = cluster.terminate(id);
        assert_eq!(status.code(), Some(0), "n{id} after {took:?}");
    }
    for id in [2, 3, 1] {
        cluster.start_node(id);
    }
    cluster.wait_until_ready(&[1, 2, 3]);
    assert_eq!(reserve(&mut cluster.connect(3), "t"), id);
}

#[test]
fn what_a_nodes_clients_do_with_a_tube_is_told_by_every_node() {
    let cluster = Cluster::start(BIN, 3);
    let mut workers: Vec<Connection> = cluster.ids().into_iter().map(|id| cluster.connect(id)).collect();
    for worker in &mut workers {
        worker.command("watch far").unwrap();
        worker.send(b"reserve\r\n").unwrap();
    }
    for id in cluster.ids() {
        let mut asks = cluster.connect(id);
        let tubes = asks.command("list-tubes").unwrap().list();
        assert!(tubes.contains(&"far".to_owned()), "n{id}: {tubes:?}");
        // How many is told within half a second.
        let mut all = |command: &str, key: &str| {
            wait::until(|| (asks.command(command).ok()?.stat(key)? == "3").then_some(()))
                .unwrap_or_else(|| panic!("n{id}: {command}: {key}"));
        };
        all("stats-tube far", "current-watching");
        all("stats-tube far", "current-waiting");
        all("stats", "current-waiting");
        all("stats", "current-workers");
    }
    let mut near = workers.pop().expect("three");
    drop(workers);
    let mut asks = cluster.connect(cluster.ids()[0]);
    assert_eq!(asks.command("pause-tube far 0").unwrap().word(), "PAUSED", "only another node knows it");
    assert_eq!(asks.command("pause-tube farther 0").unwrap().word(), "NOT_FOUND");
    put(&mut asks, "far", "a job");
    assert_eq!(near.reply().unwrap().text(), "a job");
}

#[test]
fn what_is_put_on_one_node_is_reserved_on_another() {
    let cluster = Cluster::start(BIN, 3);
    for producer in cluster.ids() {
        for worker in cluster.ids() {
            let tube = format!("t{producer}{worker}");
            let id = put(&mut cluster.connect(producer), &tube, "across");
            let mut connection = cluster.connect(worker);
            connection.command(&format!("watch {tube}")).unwrap();
            // No waiting: what was acknowledged there can be had here.
            let reply = connection.command("reserve-with-timeout 0").unwrap();
            assert_eq!(
                (reply.word(), reply.text().as_str()),
                ("RESERVED", "across"),
                "{tube}: {}",
                reply.line
            );
            assert_eq!(reply.number(), id);
            // And it is seen from everywhere.
            let seen = cluster.connect(producer).command(&format!("stats-job {id}")).unwrap();
            assert_eq!(seen.stat("state").as_deref(), Some("reserved"), "{tube}");
            assert_eq!(connection.command(&format!("delete {id}")).unwrap().line, "DELETED");
            let gone = cluster.connect(producer).command(&format!("peek {id}")).unwrap();
            assert_eq!(gone.line, "NOT_FOUND", "{tube}");
        }
    }
}

#[test]
fn a_waiting_reserve_on_any_node_is_served_by_a_put_elsewhere() {
    let cluster = Cluster::start(BIN, 3);
    for waiter in cluster.ids() {
        let tube = format!("wait{waiter}");
        let mut worker = cluster.connect(waiter);
        worker.command(&format!("watch {tube}")).unwrap();
        worker.send(b"reserve\r\n").unwrap();
        assert!(worker.is_silent_for(Duration::from_millis(200)).unwrap());
        for producer in cluster.others(waiter) {
            let id = put(&mut cluster.connect(producer), &tube, "here");
            let begun = Instant::now();
            let reply = worker.reply().unwrap();
            assert_eq!((reply.word(), reply.number()), ("RESERVED", id), "{}", reply.line);
            println!("n{waiter} had the job of n{producer} {:?} after it was acknowledged", begun.elapsed());
            assert_eq!(worker.command(&format!("delete {id}")).unwrap().line, "DELETED");
            worker.send(b"reserve\r\n").unwrap();
        }
    }
}

#[test]
fn a_reserve_times_out_in_time_on_every_node_of_an_idle_cluster() {
    for nodes in [1, 3] {
        let cluster = Cluster::start(BIN, nodes);
        for node in cluster.ids() {
            let mut worker = cluster.connect(node);
            worker.command("watch empty").unwrap();
            let begun = Instant::now();
            assert_eq!(
                worker.command("reserve-with-timeout 1").unwrap().line,
                "TIMED_OUT",
                "n{node} of {nodes}"
            );
            let took = begun.elapsed();
            println!("n{node} of {nodes}: {took:?}");
            // Nothing else wakes an idle node for seconds; a loaded machine takes its time, too.
            assert!((1_000..1_900).contains(&took.as_millis()), "n{node} of {nodes}: {took:?}");
        }
    }
}

#[test]
fn a_killed_leader_costs_a_pause_and_nothing_else() {
    let mut cluster = Cluster::start(BIN, 3);
    let leader = cluster.leader();
    let survivors = cluster.others(leader);

    // One worker holds a job and one waits for one, each on a node that will survive.
    let mut holder = cluster.connect(survivors[0]);
    let held = put(&mut holder, "held", "mine");
    assert_eq!(reserve(&mut holder, "held"), held);
    let mut waiter = cluster.connect(survivors[1]);
    waiter.command("watch late").unwrap();
    waiter.send(b"reserve\r\n").unwrap();

    let load = Load::start(&cluster);
    load.wait_for_more(SOME);
    cluster.kill(leader);
    load.wait_for_more(SOME);
    let next = cluster.leader_after(leader);
    assert!(survivors.contains(&next));

    // The reservation is still its worker's, and the first one.
    let stats = cluster.connect(survivors[1]).command(&format!("stats-job {held}")).unwrap();
    assert_eq!(stats.stat("state").as_deref(), Some("reserved"), "{}", stats.text());
    assert_eq!(stats.stat("reserves").as_deref(), Some("1"), "{}", stats.text());
    assert_eq!(holder.command(&format!("delete {held}")).unwrap().line, "DELETED");
    // So is the wait.
    let late = put(&mut holder, "late", "at last");
    assert_eq!(waiter.reply().unwrap().number(), late);

    cluster.start_node(leader);
    cluster.wait_until_ready(&[1, 2, 3]);
    load.wait_for_more(SOME);
    let mut account = load.finish();
    println!("slowest puts by node: {:?}; n{leader} was killed", account.slowest);
    account.expect_no_errors_at(&survivors);
    account.expect_nothing_lost(&cluster, leader);
}

#[test]
fn a_job_stays_with_its_worker_over_two_leader_changes() {
    let mut cluster = Cluster::start(BIN, 3);
    let first = cluster.leader();
    let survivors = cluster.others(first);
    // The worker's node must be the one that never leads: it is found after the first change.
    let mut workers: Vec<(u64, Connection, u64)> = survivors
        .iter()
        .map(|node| {
            let mut connection = cluster.connect(*node);
            let tube = format!("held{node}");
            let id = put(&mut connection, &tube, "mine");
            assert_eq!(reserve(&mut connection, &tube), id);
            (*node, connection, id)
        })
        .collect();
    cluster.kill(first);
    let second = cluster.leader_after(first);
    cluster.start_node(first);
    cluster.wait_until_ready(&[1, 2, 3]);
    cluster.kill(second);
    let third = cluster.leader_after(second);
    println!("leaders: n{first}, n{second}, n{third}");
    workers.retain(|(node, _, _)| *node != second);
    let (node, connection, id) = &mut workers[0];
    let stats = connection.command(&format!("stats-job {id}")).unwrap();
    assert_eq!(stats.stat("reserves").as_deref(), Some("1"), "n{node}: {}", stats.text());
    assert_eq!(connection.command(&format!("delete {id}")).unwrap().line, "DELETED");
}

#[test]
fn a_killed_follower_is_not_missed_and_its_jobs_come_back() {
    let mut cluster = Cluster::start(BIN, 3);
    let leader = cluster.leader();
    let follower = cluster.others(leader)[0];
    let mut holder = cluster.connect(follower);
    let held = put(&mut holder, "held", "of a node that dies");
    assert_eq!(reserve(&mut holder, "held"), held);
    let mut waiter = cluster.connect(leader);
    waiter.command("watch held").unwrap();
    waiter.send(b"reserve\r\n").unwrap();

    let load = Load::start(&cluster);
    load.wait_for_more(SOME);
    let killed = Instant::now();
    cluster.kill(follower);
    load.wait_for_more(SOME);
    assert_eq!(waiter.reply().unwrap().number(), held);
    let took = killed.elapsed();
    println!("the dead node's job was handed out again after {took:?}");
    // Not before its node can have noticed that it is cut off, and, on a loaded machine, a little later than promised.
    assert!((3..9).contains(&took.as_secs()), "{took:?}");
    assert_eq!(cluster.leader(), leader, "nobody had a reason to elect another");

    cluster.start_node(follower);
    cluster.wait_until_ready(&[follower]);
    let mut account = load.finish();
    println!("slowest puts by node: {:?}; n{follower} was killed", account.slowest);
    account.expect_no_errors_at(&cluster.others(follower));
    account.expect_nothing_lost(&cluster, follower);
}

#[test]
fn a_killed_followers_jobs_come_back_at_its_restart() {
    let mut cluster = Cluster::start(BIN, 3);
    let leader = cluster.leader();
    let follower = cluster.others(leader)[0];
    let mut holder = cluster.connect(follower);
    let held = put(&mut holder, "held", "of a node that is back at once");
    assert_eq!(reserve(&mut holder, "held"), held);
    cluster.kill(follower);
    cluster.start_node(follower);
    cluster.wait_until_ready(&[follower]);
    let mut worker = cluster.connect(follower);
    assert_eq!(reserve(&mut worker, "held"), held);
}

#[test]
fn all_nodes_killed_at_once_lose_nothing() {
    let mut cluster = Cluster::start(BIN, 3);
    let load = Load::start(&cluster);
    load.wait_for_more(4 * SOME);
    cluster.kill_all();
    let mut account = load.finish();
    assert!(account.acknowledged.len() as u64 >= 4 * SOME);
    let begun = Instant::now();
    for id in [2, 1, 3] {
        cluster.start_node(id);
    }
    cluster.wait_until_ready(&[1, 2, 3]);
    println!("serving {:?} after the start", begun.elapsed());
    account.expect_nothing_lost(&cluster, 1);
}

#[test]
fn a_frozen_leader_is_replaced_and_acknowledges_nothing() {
    const FROZEN: Duration = Duration::from_secs(10);
    let mut cluster = Cluster::start(BIN, 3);
    let leader = cluster.leader();
    let survivors = cluster.others(leader);
    let load = Load::start(&cluster);
    load.wait_for_more(SOME);
    let mut late = cluster.connect(leader);
    late.command("use late").unwrap();
    cluster.signal(leader, Signal::SIGSTOP);
    let stopped = Instant::now();
    // A command that the frozen leader finds when it goes on.
    late.send(&put_request(0, 0, 60, b"too late")).unwrap();
    load.wait_for_more(SOME);
    let next = wait::until_within(READY_LIMIT, || {
        let named = cluster.view(survivors[0])?.leader?;
        (named != leader && cluster.view(survivors[1])?.leader == Some(named)).then_some(named)
    });
    assert!(next.is_some(), "the others elect a new leader");
    // Time itself is the matter here: leases end while the leader is frozen.
    wait::until_within(FROZEN, || (stopped.elapsed() >= FROZEN).then_some(()));
    cluster.signal(leader, Signal::SIGCONT);
    load.wait_for_more(SOME);
    cluster.wait_until_ready(&[1, 2, 3]);

    // Its client learns the truth: one job if it was acknowledged, else at most one, and the connection closed.
    let told = late.reply().map(|reply| reply.line);
    println!("the put that waited was told {told:?}");
    let mut reader = cluster.connect(survivors[0]);
    let ready = reader.command("stats-tube late").unwrap().stat("current-jobs-ready");
    let jobs: u32 = ready.map_or(0, |ready| ready.parse().unwrap());
    match &told {
        Ok(line) if line.starts_with("INSERTED") => assert_eq!(jobs, 1),
        Ok(line) => assert_eq!((line.as_str(), jobs), ("OUT_OF_MEMORY", 0)),
        Err(_closed) => assert!(jobs <= 1, "{jobs} jobs"),
    }
    let mut account = load.finish();
    println!("slowest puts by node: {:?}; n{leader} was frozen", account.slowest);
    account.expect_no_errors_at(&survivors);
    account.expect_nothing_lost(&cluster, survivors[0]);
    assert!(cluster.is_running(leader));
}

#[test]
fn a_stopped_leader_hands_over() {
    let mut cluster = Cluster::start(BIN, 3);
    let leader = cluster.leader();
    let survivors = cluster.others(leader);
    let load = Load::start(&cluster);
    load.wait_for_more(SOME);
    let (status, took) = cluster.terminate(leader);
    assert_eq!(status.code(), Some(0), "after {took:?}");
    load.wait_for_more(SOME);
    let next = cluster.leader_after(leader);
    cluster.start_node(leader);
    cluster.wait_until_ready(&[1, 2, 3]);
    let mut account = load.finish();
    println!("n{leader} stopped in {took:?}, n{next} leads; slowest puts by node: {:?}", account.slowest);
    account.expect_no_errors_at(&survivors);
    account.expect_nothing_lost(&cluster, leader);
}

#[test]
fn a_wiped_node_is_refused_and_does_not_count() {
    let mut cluster = Cluster::start(BIN, 3);
    let leader = cluster.leader();
    let (wiped, other) = (cluster.others(leader)[0], cluster.others(leader)[1]);
    let id = put(&mut cluster.connect(wiped), "t", "kept");
    cluster.kill(wiped);
    cluster.wipe(wiped);
    cluster.start_node(wiped);
    // It says so, with the command to run.
    let said = wait::until(|| {
        let log = cluster.log(wiped);
        log.contains("cluster replace").then_some(log)
    });
    assert!(said.is_some(), "n{wiped} says nothing of `cluster replace`:\n{}", cluster.log(wiped));
    assert!(!cluster.is_ready(wiped));
    // The others serve on.
    put(&mut cluster.connect(leader), "t", "two of three");

    // With one of the two gone there is no majority: a node that has forgotten everything must not make one.
    cluster.kill(other);
    let mut producer = cluster.connect(leader);
    producer.command("use t").unwrap();
    producer.send(&put_request(100, 0, 60, b"not on a majority")).unwrap();
    producer.set_patience(Duration::from_secs(8));
    let told = producer.reply().map(|reply| reply.line);
    println!("the put without a majority was told {told:?}");
    assert!(matches!(told.as_deref(), Ok("OUT_OF_MEMORY") | Err(_)), "{told:?}");
    assert!(!cluster.is_ready(wiped));
    cluster.start_node(other);
    cluster.wait_until_ready(&[leader, other]);
    let mut worker = cluster.connect(other);
    assert_eq!(reserve(&mut worker, "t"), id);
    reserve(&mut worker, "t");
    // What was refused never happened; what got no answer may have.
    let third = worker.command("reserve-with-timeout 1").unwrap();
    assert!(third.word() == "TIMED_OUT" || told.is_err(), "refused, and here: {}", third.line);
}

#[test]
fn an_idle_cluster_writes_nothing_to_its_disks() {
    let cluster = Cluster::start(BIN, 3);
    put(&mut cluster.connect(1), "t", "waits");
    let mut worker = cluster.connect(2);
    worker.send(b"reserve\r\n").unwrap();
    let pids: Vec<u32> = cluster.ids().iter().map(|id| cluster.pid(*id)).collect();
    let bytes = || -> Vec<u64> { pids.iter().map(|pid| procfs::written(*pid).bytes).collect() };
    let mut last = bytes();
    // What the start left to do ends at some time; then come two seconds without a write.
    let quiet = wait::until_within(Duration::from_secs(30), || {
        std::thread::sleep(Duration::from_secs(2));
        let now = bytes();
        let same = now == last;
        last = now;
        same.then_some(())
    });
    assert!(quiet.is_some(), "an idle cluster still writes: {last:?}");
    assert!(worker.is_silent_for(Duration::from_millis(10)).unwrap());
}
