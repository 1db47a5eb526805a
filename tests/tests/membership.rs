//! Who belongs to a cluster, changed under load: nodes that come and go for good, and nodes whose disk is not theirs any more.

use std::fs;
use std::path::Path;
use std::time::Duration;

use beanpole_tests::cluster::Cluster;
use beanpole_tests::cluster::load::Load;
use beanpole_tests::wait;

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

/// Puts and receipts of a load before, between and after changes.
const SOME: u64 = 60;

/// How long after its death a node may still be believed to be there.
const AT_ONCE: Duration = Duration::from_secs(1);

fn add(cluster: &mut Cluster) -> u64 {
    let id = cluster.new_node();
    cluster.start_node(id);
    let address = cluster.peer_address(id);
    cluster.operate(&format!("cluster add {id} {address} --timeout 30"));
    cluster.wait_until_ready(&[id]);
    id
}

/// All nodes that run have the same state, and so many belong to the cluster.
fn expect_equal_states(cluster: &Cluster, members: usize) {
    let told = cluster.operate("cluster verify --timeout 30");
    assert!(told.contains("all nodes have the same state"), "{told}");
    let listed: serde_json::Value =
        serde_json::from_str(&cluster.operate("cluster -o json members")).unwrap();
    let votes = |node: &&serde_json::Value| node["voter"] == true;
    assert_eq!(listed.as_array().unwrap().iter().filter(votes).count(), members, "{listed}");
}

#[test]
fn a_cluster_grows_from_one_to_five_and_shrinks_to_three_under_load() {
    let mut cluster = Cluster::start(BIN, 1);
    let first = Load::start(&cluster);
    first.wait_for_more(SOME);
    for members in 2..=5 {
        assert_eq!(add(&mut cluster), members);
        first.wait_for_more(SOME);
    }
    expect_equal_states(&cluster, 5);
    // From here on there is load at the nodes that came, too.
    let mut account = first.finish();
    account.expect_no_errors_at(&[1]);
    account.expect_nothing_lost(&cluster, 5);
    let leader = cluster.leader();
    let follower = cluster.others(leader)[0];
    let staying: Vec<u64> = cluster.others(leader).into_iter().filter(|id| *id != follower).collect();
    let load = Load::start_at(&cluster, &staying);
    load.wait_for_more(SOME);
    for id in [follower, leader] {
        cluster.operate(&format!("cluster remove {id}"));
        load.wait_for_more(SOME);
        cluster.kill(id);
    }
    load.wait_for_more(SOME);
    expect_equal_states(&cluster, 3);
    let mut account = load.finish();
    println!("n{leader} led and was removed; slowest puts by node: {:?}", account.slowest);
    account.expect_no_errors_at(&staying);
    account.expect_nothing_lost(&cluster, staying[0]);
}

/// Puts a new node in the place of one that is refused, and looks whether all is well then.
fn replace(cluster: &mut Cluster, refused: u64, load: Load) {
    let said = wait::until(|| {
        let log = cluster.log(refused);
        log.contains("cluster replace").then_some(log)
    });
    assert!(said.is_some(), "n{refused} does not say how it is replaced:\n{}", cluster.log(refused));
    assert!(!cluster.is_ready(refused));
    load.wait_for_more(SOME);
    // As the operator does it: the refused one is stopped, a new number gets an empty directory.
    cluster.kill(refused);
    let new = cluster.new_node();
    cluster.start_node(new);
    let address = cluster.peer_address(new);
    cluster.operate(&format!("cluster replace {refused} {new} {address} --timeout 30"));
    cluster.wait_until_ready(&[new]);
    load.wait_for_more(SOME);
    expect_equal_states(cluster, 3);
    let mut account = load.finish();
    account.expect_no_errors_at(&cluster.others(refused));
    account.expect_nothing_lost(cluster, new);
}

/// What a node that died told last is past: within a second nobody may be stopped, and it has not caught up.
#[test]
fn a_dead_node_is_known_to_be_gone_at_once() {
    let mut cluster = Cluster::start(BIN, 3);
    let dead = cluster.others(cluster.leader())[0];
    let other = cluster.others(dead)[0];
    let check = format!("node check {other}");
    wait::until(|| (cluster.operator(&check).code == Some(0)).then_some(())).expect("all are there");
    cluster.kill(dead);
    let refused = wait::until_within(AT_ONCE, || {
        let told = cluster.operator(&check);
        (told.code == Some(4)).then_some(told.text)
    });
    let text = refused.expect("a node that the quorum needs must not be stopped");
    assert!(text.contains(&format!("node {dead} does not answer")), "{text}");
    assert_eq!(cluster.operator(&format!("node drain {other}")).code, Some(4));
    assert_ne!(cluster.operator(&format!("node wait {dead} --caught-up --timeout 0")).code, Some(0));
    assert_ne!(cluster.operator("cluster health").code, Some(0));
    cluster.start_node(dead);
    cluster.operate(&format!("node wait {dead} --caught-up --timeout 30"));
    wait::until(|| (cluster.operator(&check).code == Some(0)).then_some(())).expect("all are there again");
}

/// Words that would make a cluster smaller, or let in a node that nobody can reach, are refused.
#[test]
fn a_slip_of_the_pen_does_not_change_who_belongs_to_it() {
    let mut cluster = Cluster::start(BIN, 3);
    let refused = cluster.operator("cluster add 4 foo");
    assert!(refused.code != Some(0) && refused.text.contains("HOST:PORT"), "{}", refused.text);
    let dead = cluster.others(cluster.leader())[0];
    let voter = cluster.others(dead)[0];
    cluster.kill(dead);
    let words = format!("cluster replace {dead} {voter} 127.0.0.1:1 --timeout 5");
    let replaced = wait::until(|| {
        let told = cluster.operator(&words);
        told.text.contains("votes already").then_some(told.code)
    });
    assert_eq!(replaced, Some(Some(4)));
    assert_eq!(cluster.operate("cluster members").lines().count(), 1 + 3);
}

#[test]
fn a_wiped_node_is_replaced_under_load_and_nothing_is_lost() {
    let mut cluster = Cluster::start(BIN, 3);
    let wiped = cluster.others(cluster.leader())[0];
    let load = Load::start_at(&cluster, &cluster.others(wiped));
    load.wait_for_more(SOME);
    cluster.kill(wiped);
    cluster.wipe(wiped);
    cluster.start_node(wiped);
    replace(&mut cluster, wiped, load);
}

#[test]
fn an_old_copy_of_a_node_is_refused_and_replaced_under_load() {
    let mut cluster = Cluster::start(BIN, 3);
    let old = cluster.others(cluster.leader())[0];
    let load = Load::start_at(&cluster, &cluster.others(old));
    load.wait_for_more(SOME);
    // A backup of a stopped node, made with care; then the node itself goes on for a while.
    cluster.terminate(old);
    let backup = cluster.directory().join("backup");
    copy(&cluster.data_dir(old), &backup);
    cluster.start_node(old);
    cluster.wait_until_ready(&[old]);
    load.wait_for_more(SOME);
    cluster.kill(old);
    cluster.wipe(old);
    fs::rename(&backup, cluster.data_dir(old)).unwrap();
    cluster.start_node(old);
    replace(&mut cluster, old, load);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
