//! Bits that change on the disks of real nodes: never served, healed from the other nodes, and where no node has what was put,
//! out of everybody's way.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use beanpole_tests::cluster::Cluster;
use beanpole_tests::cluster::load::Load;
use beanpole_tests::connection::{Connection, Reply};
use beanpole_tests::wait;

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

/// Enough jobs for several segments of the smallest size.
const JOBS: u64 = 80;

fn body(job: u64) -> Vec<u8> {
    format!("job {job:04} ").repeat(5000).into_bytes()
}

/// Nodes that hold [`JOBS`] jobs on their disks and not in their memories.
fn filled(nodes: usize) -> Cluster {
    let mut cluster = Cluster::new(BIN, nodes).flags(["--segment-size", "1MiB", "--scrub-rate", "0"]);
    for id in cluster.ids() {
        cluster.start_node(id);
    }
    cluster.wait_until_ready(&cluster.ids());
    let mut client = cluster.connect(1);
    for job in 1..=JOBS {
        assert_eq!(client.put(0, 0, 60, &body(job)).unwrap().number(), job);
    }
    for id in cluster.ids() {
        cluster.terminate(id);
        cluster.start_node(id);
        cluster.wait_until_ready(&cluster.ids());
    }
    cluster
}

/// The segment that a job's body lies in, and where.
fn place(directory: &Path, job: u64) -> (PathBuf, usize) {
    let pattern = format!("job {job:04} ").repeat(20).into_bytes();
    for file in fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()) {
        let is_segment = file.extension().is_some_and(|extension| extension == "seg" || extension == "body");
        let bytes = if is_segment { fs::read(&file).unwrap() } else { continue };
        if let Some(at) = bytes.windows(pattern.len()).position(|window| window == pattern) {
            return (file, at);
        }
    }
    panic!("job {job} is nowhere in {}", directory.display());
}

/// Changes a bit of a job's body on a node's disk.
fn flip(cluster: &Cluster, id: u64, job: u64) {
    let (path, at) = place(&cluster.data_dir(id), job);
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let (mut byte, at) = ([0], at as u64 + 77);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

fn disk(cluster: &Cluster, id: u64) -> serde_json::Value {
    let (status, text) = cluster.get(id, "/api/v1/disk").expect("an answer");
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn damage(cluster: &Cluster, id: u64, key: &str) -> u64 {
    disk(cluster, id)["damage"][key].as_u64().unwrap()
}

fn reserved(client: &mut Connection) -> Reply {
    let reply = client.command("reserve-with-timeout 10").unwrap();
    assert_eq!(reply.word(), "RESERVED", "{reply:?}");
    assert!(reply.body.as_deref() == Some(&body(reply.number())), "another body than that of {}", reply.line);
    reply
}

fn state(client: &mut Connection, job: u64) -> Option<String> {
    client.command(&format!("stats-job {job}")).unwrap().stat("state")
}

fn expect_equal_states(cluster: &Cluster) {
    let told = cluster.operate("cluster verify --timeout 30");
    assert!(told.contains("all nodes have the same state"), "{told}");
}

/// A node whose disk has damage serves all jobs as they were put, and its disk is repaired; looking through the disk finds
/// what nobody has asked for.
#[test]
fn damage_on_one_node_is_served_from_the_others_and_repaired() {
    let cluster = filled(3);
    for job in [1, 7, 30] {
        flip(&cluster, 2, job);
    }
    let mut client = cluster.connect(2);
    let first = reserved(&mut client);
    assert_eq!(first.number(), 1);
    assert!(damage(&cluster, 2, "fetched") >= 1 && damage(&cluster, 2, "lost") == 0);
    // Nobody asks for the third one.
    let told = cluster.operate("node scrub 2 --wait --timeout 40");
    assert!(told.contains("segments repaired") && !told.contains("still damaged"), "{told}");
    let now = disk(&cluster, 2);
    assert!(now["damage"]["repaired"].as_u64() >= Some(2) && now["damage"]["segments"] == 0, "{now}");
    let fetched = damage(&cluster, 2, "fetched");
    assert!(client.command("release 1 0 0").unwrap().word() == "RELEASED");
    for job in 1..=JOBS {
        assert_eq!(reserved(&mut client).number(), job);
        assert_eq!(client.command(&format!("delete {job}")).unwrap().line, "DELETED");
    }
    assert_eq!(damage(&cluster, 2, "fetched"), fetched, "everything is on its own disk again");
    expect_equal_states(&cluster);
}

/// No node has a job's body: the job is buried by all of them, workers get the others meanwhile, and no wrong byte is served.
/// While one node cannot be asked, nothing is given up.
#[test]
fn a_job_that_no_node_has_is_buried_after_all_were_asked() {
    let cluster = filled(3);
    for id in cluster.ids() {
        flip(&cluster, id, 1);
    }
    flip(&cluster, 1, 2);
    flip(&cluster, 2, 2);
    let silent = cluster.others(cluster.leader())[0];
    let asked = cluster.others(silent)[0];
    cluster.signal(silent, nix::sys::signal::Signal::SIGSTOP);
    let mut client = cluster.connect(asked);
    client.set_patience(Duration::from_secs(40));
    let next = reserved(&mut client).number();
    assert!(next > 1, "{next}");
    assert_eq!(state(&mut client, 1).as_deref(), Some("delayed"));
    cluster.signal(silent, nix::sys::signal::Signal::SIGCONT);
    let buried = wait::until_within(Duration::from_secs(60), || {
        // It is met whenever its time has come again.
        let reply = client.command("reserve-with-timeout 0").unwrap();
        if let Some(found) = &reply.body {
            assert!(*found == body(reply.number()), "a wrong body for {}", reply.line);
            client.command(&format!("release {} 0 0", reply.number())).unwrap();
        }
        (state(&mut client, 1).as_deref() == Some("buried")).then_some(())
    });
    assert!(buried.is_some(), "{:?}", state(&mut client, 1));
    assert_eq!(client.command("peek 1").unwrap().line, "INTERNAL_ERROR");
    client.command(&format!("release {next} 0 0")).unwrap();
    for _ in 2..=JOBS {
        let job = reserved(&mut client).number();
        assert_eq!(client.command(&format!("delete {job}")).unwrap().line, "DELETED");
    }
    assert_eq!(client.command("reserve-with-timeout 0").unwrap().line, "TIMED_OUT");
    cluster.wait_until_ready(&cluster.ids());
    for id in cluster.ids() {
        assert_eq!(state(&mut cluster.connect(id), 1).as_deref(), Some("buried"));
    }
    expect_equal_states(&cluster);
    assert!(cluster.log(asked).contains("no voter has the body of this job: it is buried"));
}

/// A node by itself has nobody to ask: the job is buried at once, and the log says so.
#[test]
fn a_lone_node_buries_what_it_has_lost() {
    let cluster = filled(1);
    flip(&cluster, 1, 1);
    let mut client = cluster.connect(1);
    assert_eq!(reserved(&mut client).number(), 2);
    let buried = wait::until(|| (state(&mut client, 1).as_deref() == Some("buried")).then_some(()));
    assert!(buried.is_some(), "{:?}", state(&mut client, 1));
    assert!(cluster.log(1).contains("no voter has the body of this job: it is buried"));
}

/// A log that is damaged where it must be replayed: the node does not start and names the command, the others serve on, and
/// a new node takes its place.
#[test]
fn a_node_with_a_damaged_log_is_replaced_while_the_others_serve() {
    let mut cluster = filled(3);
    let bad = cluster.others(cluster.leader())[0];
    cluster.kill(bad);
    flip(&cluster, bad, 9);
    let load = Load::start_at(&cluster, &cluster.others(bad));
    cluster.start_node(bad);
    let status = cluster.wait_for_exit(bad).expect("it does not start");
    assert_eq!(status.code(), Some(2));
    let said = cluster.log(bad);
    assert!(said.contains(&format!("`beanpole cluster replace {bad} NEW_ID HOST:PORT`")), "{said}");
    assert!(said.contains(".seg is corrupt at offset"), "{said}");
    load.wait_for_more(60);
    let new = cluster.new_node();
    cluster.start_node(new);
    let address = cluster.peer_address(new);
    let words = format!("cluster replace {bad} {new} {address} --timeout 60");
    // It is refused for the few seconds in which the others may still take the node for alive.
    let told = wait::until(|| Some(cluster.operator(&words)).filter(|told| told.code != Some(4)));
    assert_eq!(told.as_ref().and_then(|told| told.code), Some(0), "{told:?}");
    cluster.wait_until_ready(&[new]);
    load.wait_for_more(60);
    expect_equal_states(&cluster);
    let mut account = load.finish();
    account.expect_no_errors_at(&cluster.others(bad));
    account.expect_nothing_lost(&cluster, new);
    let mut client = cluster.connect(new);
    for job in 1..=JOBS {
        assert_eq!(reserved(&mut client).number(), job);
        assert_eq!(client.command(&format!("delete {job}")).unwrap().line, "DELETED");
    }
}
