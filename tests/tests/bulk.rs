//! Operations on many jobs at once, as processes: on the command line, while clients work and leaders die.

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

fn stat(client: &mut Connection, tube: &str, key: &str) -> u64 {
    let reply = client.command(&format!("stats-tube {tube}")).unwrap();
    reply.stat(key).map_or(0, |value| value.parse().unwrap())
}

/// Puts many jobs at once, into the tube in use.
fn fill(client: &mut Connection, jobs: usize) {
    for _ in 0..jobs / 500 {
        client.send(&b"put 5 0 60 3\r\nabc\r\n".repeat(500)).unwrap();
        for _ in 0..500 {
            assert_eq!(client.reply().unwrap().word(), "INSERTED");
        }
    }
}

#[test]
fn an_operator_purges_moves_and_kicks() {
    let server = Server::start(&Setup::beanpole(BIN));
    let admin = server.admin_addr().to_string();
    let mut client = server.connect();
    client.command("use a/b").unwrap();
    client.command("watch a/b").unwrap();
    fill(&mut client, 3000);
    client.put(9, 1000, 60, b"delayed").unwrap();
    let held = client.command("reserve").unwrap().number();
    assert_eq!(succeed(&admin, "purge a/b --dry-run"), "3000 jobs would be purged");
    assert_eq!(succeed(&admin, "purge a/b --older-than 1h"), "0 jobs purged");
    assert_eq!(succeed(&admin, "purge a/b --state delayed --dry-run"), "1 jobs would be purged");
    assert_eq!(succeed(&admin, "move a/b c --state ready"), "2999 jobs moved");
    assert_eq!(
        (stat(&mut client, "a/b", "current-jobs-ready"), stat(&mut client, "c", "current-jobs-ready")),
        (0, 2999)
    );
    assert_eq!(succeed(&admin, "kick a/b --all"), "1 jobs kicked");
    assert_eq!(succeed(&admin, "kick a/b 5"), "0 jobs kicked");
    assert_eq!(succeed(&admin, "purge c"), "2999 jobs purged");
    let told: Value = serde_json::from_str(&succeed(&admin, "purge a/b -o json")).unwrap();
    assert_eq!((&told["verb"], &told["done"], &told["running"]), (&"purge".into(), &1.into(), &false.into()));
    assert_eq!(
        client.command(&format!("delete {held}")).unwrap().line,
        "DELETED",
        "who holds a job keeps it"
    );
    assert_eq!(client.command("peek-ready").unwrap().line, "NOT_FOUND");
}

#[test]
fn what_cannot_be_done_is_said() {
    let server = Server::start(&Setup::beanpole(BIN));
    let admin = server.admin_addr().to_string();
    let refusals = [
        ("kick a", 2, "--all"),
        ("kick a 3 --all", 2, "cannot be used with"),
        ("purge a --state reserved", 2, "possible values: ready, delayed, buried, all"),
        ("purge a --older-than 5parsecs", 2, "is not a unit"),
        ("purge -- -a", 2, "is not a tube's name"),
        ("move a a", 2, "both tubes are the same"),
    ];
    operator::expect_refusals(BIN, &admin, &refusals);
    let (code, text) = tube("127.0.0.1:1", "purge a");
    assert_eq!(code, 3, "{text}");
}

/// The leader is killed while it works through a purge; its successor goes on, and all nodes are the same in the end.
#[test]
fn a_purge_survives_its_leader_and_is_the_same_everywhere() {
    let mut cluster = Cluster::start(BIN, 3);
    let leader = cluster.leader();
    let other = cluster.others(leader)[0];
    let mut client = cluster.connect(other);
    client.command("use big").unwrap();
    fill(&mut client, 20_000);
    client.command("use small").unwrap();
    fill(&mut client, 500);
    let admin = cluster.admin_address(other);
    let running = std::thread::spawn(move || tube(&admin, "purge big"));
    let mut looked = 0;
    let begun = wait::until(|| {
        looked += 1;
        (stat(&mut client, "big", "current-jobs-ready") < 20_000).then_some(())
    });
    assert!(begun.is_some(), "the purge has begun");
    cluster.kill(leader);
    let (code, text) = running.join().unwrap();
    assert_eq!((code, text.as_str()), (0, "20000 jobs purged"), "after {looked} looks");
    cluster.start_node(leader);
    cluster.wait_until_ready(&cluster.ids());
    assert!(cluster.operate("cluster verify").contains("all nodes have the same state"));
    // Nothing of it comes back when all of them start again.
    cluster.kill_all();
    for id in cluster.ids() {
        cluster.start_node(id);
    }
    cluster.wait_until_ready(&cluster.ids());
    let mut client = cluster.connect(leader);
    assert_eq!(stat(&mut client, "big", "current-jobs-ready"), 0);
    assert_eq!(stat(&mut client, "small", "current-jobs-ready"), 500);
    assert!(cluster.operate("cluster verify").contains("all nodes have the same state"));
}
