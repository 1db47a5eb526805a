//! Limits and rules of tubes, as processes: what clients meet, what operators see, and what nodes that start again still know.

use std::io::{Read, Write};
use std::net::TcpStream;

use beanpole_tests::cluster::Cluster;
use beanpole_tests::connection::Connection;
use beanpole_tests::server::{Server, Setup};
use beanpole_tests::{operator, wait};
use serde_json::Value;

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

/// Exit code and what was printed.
fn tube(admin: &str, words: &str) -> (i32, String) {
    operator::tube(BIN, admin, words)
}

fn succeed(admin: &str, words: &str) -> String {
    operator::succeed(BIN, admin, words)
}

fn put(client: &mut Connection, body: &str) -> String {
    client.put(5, 0, 60, body.as_bytes()).unwrap().word().to_owned()
}

fn job_stat(client: &mut Connection, id: u64, key: &str) -> Option<String> {
    client.command(&format!("stats-job {id}")).unwrap().stat(key)
}

#[test]
fn a_tube_that_is_full_refuses_and_its_clients_go_on() {
    let server = Server::start(&Setup::beanpole(BIN));
    let admin = server.admin_addr().to_string();
    let mut client = server.connect();
    assert_eq!(
        succeed(&admin, "policy set mails-* --max-jobs 2 --max-bytes 1KiB --max-age 90s"),
        "mails-*: max-jobs 2, max-bytes 1KiB, max-age 90s"
    );
    client.command("use mails-a").unwrap();
    let long = "x".repeat(1000);
    assert_eq!(
        ["job", &long, "job", "job"].map(|body| put(&mut client, body)),
        ["INSERTED", "INSERTED", "OUT_OF_MEMORY", "OUT_OF_MEMORY"]
    );
    // Also when the puts come all at once, and so are decided in the log's order.
    client.command("use mails-b").unwrap();
    client.send(&b"put 5 0 60 3\r\nabc\r\n".repeat(5)).unwrap();
    let words: Vec<String> = (0..5).map(|_| client.reply().unwrap().word().to_owned()).collect();
    assert_eq!(words[..3], ["INSERTED", "INSERTED", "OUT_OF_MEMORY"]);
    assert!(words[3..].iter().all(|word| word == "OUT_OF_MEMORY"));
    client.command("use other").unwrap();
    assert_eq!(put(&mut client, &long), "INSERTED");
    // What is not named stays.
    assert_eq!(
        succeed(&admin, "policy set mails-* --max-bytes off --pause-output on"),
        "mails-*: max-jobs 2, max-age 90s, pause-output on"
    );
    client.command("watch mails-b").unwrap();
    client.command("ignore default").unwrap();
    assert_eq!(client.command("reserve-with-timeout 0").unwrap().line, "TIMED_OUT");
    client.send(b"reserve-with-timeout 20\r\n").unwrap();
    succeed(&admin, "policy set mails-* --pause-output off");
    assert_eq!(client.reply().unwrap().word(), "RESERVED", "who waits gets it when the pause ends");
    assert_eq!(succeed(&admin, "policy ls"), "mails-*: max-jobs 2, max-age 90s");
    succeed(&admin, "policy rm mails-*");
    assert_eq!(
        tube(&admin, "policy get mails-*"),
        (1, "beanpole: there is no policy for mails-*".to_owned())
    );
    client.command("use mails-b").unwrap();
    assert_eq!(put(&mut client, "job"), "INSERTED");
}

#[test]
fn what_cannot_be_set_is_said() {
    let server = Server::start(&Setup::beanpole(BIN));
    let admin = server.admin_addr().to_string();
    let refusals = [
        ("policy set a", 2, "at least one limit"),
        ("policy set a --max-jobs many", 2, "invalid digit"),
        ("policy set a --pause-input maybe", 2, "it is on or off"),
        ("policy set a --dead-tube @", 2, "is not a tube's name"),
        ("policy set a --dead-tube a", 2, "cannot be its own dead tube"),
        ("policy set a --max-age 0s", 2, "0 and off mean no limit"),
        ("policy set a@ --max-jobs 3", 2, "is not a tube's name"),
        ("policy rm a", 1, "there is no policy for a"),
    ];
    operator::expect_refusals(BIN, &admin, &refusals);
    let said = put_over_http(&server, "pattern=a&dead_tube=a");
    assert!(said.starts_with("HTTP/1.1 400") && said.contains("cannot be its own dead tube"), "{said}");
    // That of a pattern may be among those that it means.
    succeed(&admin, "policy set a* --dead-tube a-dead");
}

/// What the server answers to somebody who does not use the command line.
fn put_over_http(server: &Server, query: &str) -> String {
    let mut admin = TcpStream::connect(server.admin_addr()).unwrap();
    let request = format!("PUT /api/v1/policies?{query} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    admin.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    admin.read_to_string(&mut answer).unwrap();
    answer
}

/// Jobs that kill their worker are delivered so many times and no more, whoever leads; then they are out of the way and say
/// why.
#[test]
fn poisoned_jobs_end_in_the_dead_tube_whoever_leads() {
    let mut cluster = Cluster::start(BIN, 3);
    let leader = cluster.leader();
    let other = cluster.others(leader)[0];
    let set = "tube policy set work --max-deliveries 3 --dead-tube dead --max-reserved 4";
    assert!(cluster.operate(set).contains("max-deliveries 3, max-reserved 4, dead-tube dead"));
    let mut producer = cluster.connect(other);
    producer.command("use work").unwrap();
    for _ in 0..10 {
        assert_eq!(put(&mut producer, "poison"), "INSERTED");
    }
    // A tube that nobody refers to ends with its last job, and its counts with it.
    let mut keeper = cluster.connect(other);
    keeper.command("watch work").unwrap();
    let worker = |cluster: &Cluster| {
        let mut worker = cluster.connect(other);
        worker.command("watch work").unwrap();
        worker
    };
    // No more than four are reserved at once.
    let mut greedy = worker(&cluster);
    for _ in 0..4 {
        assert_eq!(greedy.command("reserve-with-timeout 0").unwrap().word(), "RESERVED");
    }
    assert_eq!(greedy.command("reserve-with-timeout 0").unwrap().line, "TIMED_OUT");
    drop(greedy);
    let mut deliveries = 4;
    let mut killed = false;
    loop {
        // The worker dies by the job that it gets.
        let reply = worker(&cluster).command("reserve-with-timeout 5").unwrap();
        match reply.word() {
            "RESERVED" => deliveries += 1,
            "TIMED_OUT" => break,
            word => panic!("{word}"),
        }
        if deliveries == 12 && !killed {
            killed = true;
            cluster.kill(leader);
            cluster.leader_after(leader);
        }
    }
    assert_eq!(deliveries, 30);
    producer.command("use dead").unwrap();
    let found = producer.command("peek-ready").unwrap().number();
    assert_eq!(job_stat(&mut producer, found, "reason").as_deref(), Some("max-deliveries"));
    assert_eq!(job_stat(&mut producer, found, "reserves").as_deref(), Some("3"));
    cluster.start_node(leader);
    cluster.wait_until_ready(&cluster.ids());
    assert!(cluster.operate("cluster verify").contains("all nodes have the same state"));
    assert!(cluster.operate("tube show work").contains("10 jobs dead"));
}

/// A worker that answers every job by putting one into its own tube: it ends at the limit, and is told of.
#[test]
fn a_loop_is_told_of_and_ends_at_the_limit() {
    let server = Server::start(&Setup::beanpole(BIN));
    let admin = server.admin_addr().to_string();
    let mut worker = server.connect();
    worker.command("use loop").unwrap();
    worker.command("watch loop").unwrap();
    let mut turn = || {
        assert_eq!(put(&mut worker, "seed"), "INSERTED");
        for turns in 0..100 {
            let id = worker.command("reserve").unwrap().number();
            let word = put(&mut worker, "again");
            worker.command(&format!("delete {id}")).unwrap();
            if word != "INSERTED" {
                return (word, turns);
            }
        }
        let last = worker.command("reserve").unwrap().number();
        worker.command(&format!("delete {last}")).unwrap();
        ("INSERTED".to_owned(), 100)
    };
    assert_eq!(turn(), ("INSERTED".to_owned(), 100), "nobody limits it");
    let shown = succeed(&admin, "show loop");
    assert!(shown.contains("hops deep; a loop is suspected"), "{shown}");
    let said = server.stderr();
    assert_eq!(
        said.matches("a loop is suspected: workers that hold jobs of loop put into loop").count(),
        1,
        "{said}"
    );
    succeed(&admin, "policy set loop --max-hops 5");
    assert_eq!(turn(), ("OUT_OF_MEMORY".to_owned(), 5));
    let told: Value = serde_json::from_str(&succeed(&admin, "show loop -o json")).unwrap();
    assert_eq!(told["policy"]["max_hops"], 5);
}

/// A job that was put by a worker with another one in hand looks as it does at beanstalkd until somebody asks for its hops.
#[test]
fn hops_are_shown_where_they_are_limited() {
    let server = Server::start(&Setup::beanpole(BIN));
    let admin = server.admin_addr().to_string();
    let mut worker = server.connect();
    assert_eq!(put(&mut worker, "first"), "INSERTED");
    worker.command("reserve").unwrap();
    let id = worker.put(0, 0, 60, b"second").unwrap().number();
    assert_eq!(job_stat(&mut worker, id, "hops"), None);
    succeed(&admin, "policy set default --max-hops 5");
    assert_eq!(job_stat(&mut worker, id, "hops").as_deref(), Some("1"));
}

/// Old jobs go, and a node that starts again goes on looking for them.
#[test]
fn jobs_that_are_too_old_go_over_a_restart_too() {
    let mut server = Server::start(&Setup::beanpole(BIN));
    let admin = server.admin_addr().to_string();
    succeed(&admin, "policy set news --max-age 3s");
    let mut client = server.connect();
    client.command("use news").unwrap();
    for _ in 0..5 {
        assert_eq!(put(&mut client, "old"), "INSERTED");
    }
    drop(client);
    server.crash_and_restart();
    let mut client = server.connect();
    let gone = wait::until(|| {
        let reply = client.command("stats-tube news").unwrap();
        (reply.word() == "NOT_FOUND" || reply.stat("current-jobs-ready").as_deref() == Some("0"))
            .then_some(())
    });
    assert!(gone.is_some(), "they are too old by now");
    assert!(succeed(&server.admin_addr().to_string(), "policy ls").contains("max-age 3s"));
}
