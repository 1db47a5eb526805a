//! Damage on one disk is found, never handed out, and healed from the other nodes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::cluster_rig::{Rack, until};
use super::flips::{opened, sealed};
use super::machine::{drop_body, nth, put_many};
use super::rig::{commit, node, options, within};
use crate::disk::{Disk, FaultDisk};
use crate::format::HEAD_LEN;
use crate::{Bodies, BodyAddr, BodyCheck, BodyError, DamageTotals, Node, Outcome, Payload};

const CHECK: BodyCheck = |body| opened(body).is_some();
const ENTRIES: u64 = 60;
const BODIES: usize = 20;

/// What was put under each name.
type Expected = BTreeMap<u64, Vec<u8>>;

fn entry(number: u64) -> Vec<Vec<u8>> {
    (0..BODIES).map(|n| sealed(format!("{number:05} {n:05}").repeat(40).as_bytes())).collect()
}

/// Several segments of bodies, none of them in memory: every node was started again since.
async fn filled(rack: &mut Rack) -> Expected {
    let mut expected = Expected::new();
    let leader = rack.leader().await;
    let mut last = 0;
    for number in 0..ENTRIES {
        last = propose(rack.node(leader), put_many(&entry(number))).await;
        let names = entry(number).into_iter().enumerate().map(|(n, body)| (nth(last, n), body));
        expected.extend(names);
    }
    rack.settled(last).await;
    let ids: Vec<u64> = rack.running().map(|(id, _)| id).collect();
    for id in ids {
        within(rack.node(id).snapshot_now()).await.unwrap();
        rack.kill(id);
        rack.start(id).await;
        let leader = rack.leader().await;
        let index = rack.commit(leader, b"on").await;
        rack.settled(index).await;
    }
    expected
}

async fn propose(node: &Node, payload: Payload) -> u64 {
    match within(node.propose(payload).await.unwrap()).await {
        Outcome::Committed { index } => index,
        other @ (Outcome::NotProposed { .. } | Outcome::Unknown) => panic!("{other:?}"),
    }
}

fn addr(rack: &Rack, id: u64, name: u64) -> BodyAddr {
    rack.places[&id].seen.lock().live[&name].0
}

/// Where a body lies that is in no ring and not in pieces.
fn place(node: &Node, addr: BodyAddr) -> (PathBuf, u64) {
    let segment = node.log().table.with_body(addr.index, std::sync::Arc::clone).unwrap();
    let start = segment.offset(addr.index).unwrap();
    (segment.path.clone(), start + HEAD_LEN as u64 + u64::from(addr.offset))
}

/// Changes a bit of a body on one node.
fn flip(rack: &Rack, id: u64, name: u64) {
    let (path, at) = place(rack.node(id), addr(rack, id, name));
    rack.places[&id].disk.flip(&path, at + 10);
}

async fn recover(bodies: &Bodies, addr: BodyAddr) -> Result<Vec<u8>, BodyError> {
    Ok(within(bodies.recover(addr)).await?.to_vec())
}

/// Every body of a node is read from its own disk, and is what was put.
fn all_well(rack: &Rack, id: u64, expected: &Expected) {
    let bodies = rack.node(id).bodies();
    for (name, body) in expected {
        let read = bodies.read_blocking(addr(rack, id, *name)).unwrap();
        assert!(read == body, "node {id}: body {name}");
    }
    assert_eq!(bodies.disk_usage().damaged_segments, 0);
}

async fn healed(rack: &Rack, id: u64, segments: u64) {
    let bodies = rack.node(id).bodies();
    until("the segment is written anew", || bodies.damage().healed == segments).await;
}

/// Three nodes that know when a body is damaged.
async fn checked() -> Rack {
    let mut rack = Rack::new(3);
    rack.check = Some(CHECK);
    for id in 1..=3 {
        rack.start(id).await;
    }
    rack
}

/// A bit of a body of one node changes: it comes from a peer, and the node's disk is repaired for good, though the log
/// would have been kept.
#[tokio::test(start_paused = true)]
async fn one_damaged_body() {
    let mut rack = checked().await;
    let expected = filled(&mut rack).await;
    let name = *expected.keys().nth(7).unwrap();
    let addr = addr(&rack, 2, name);
    flip(&rack, 2, name);
    let bodies = rack.node(2).bodies();
    assert!(opened(&bodies.read_blocking(addr).unwrap()).is_none(), "it is damaged");
    assert_eq!(recover(&bodies, addr).await.unwrap(), expected[&name]);
    assert_eq!(recover(&bodies, addr).await.unwrap(), expected[&name], "once more before it is repaired");
    healed(&rack, 2, 1).await;
    let totals = bodies.damage();
    assert_eq!(
        (totals.found, totals.fetched, totals.lost),
        (1, 3, 0),
        "one for each reader and one for the disk"
    );
    all_well(&rack, 2, &expected);
    rack.kill(2);
    rack.start(2).await;
    rack.leader().await;
    all_well(&rack, 2, &expected);
}

/// A part of a disk cannot be read any more, heads of records included, and bodies carry no checksum of their own: the
/// entries that it touches come from peers.
#[tokio::test(start_paused = true)]
async fn unreadable_sectors() {
    let mut rack = Rack::new(3);
    for id in 1..=3 {
        rack.start(id).await;
    }
    let expected = filled(&mut rack).await;
    let name = *expected.keys().nth(BODIES * 3).unwrap();
    let addr = addr(&rack, 3, name);
    let (path, at) = place(rack.node(3), addr);
    rack.places[&3].disk.spoil(&path, at - 2000..at + 1000);
    let bodies = rack.node(3).bodies();
    assert!(matches!(bodies.read_blocking(addr), Err(BodyError::Io { .. })));
    assert_eq!(recover(&bodies, addr).await.unwrap(), expected[&name]);
    healed(&rack, 3, 1).await;
    all_well(&rack, 3, &expected);
}

/// Two nodes have the same body damaged, and another one each: the third one helps both.
#[tokio::test(start_paused = true)]
async fn two_damaged_nodes() {
    let mut rack = checked().await;
    let expected = filled(&mut rack).await;
    let names: Vec<u64> = expected.keys().copied().collect();
    for (id, others) in [(1, [5, 30]), (2, [5, 900])] {
        for n in others {
            flip(&rack, id, names[n]);
        }
    }
    for (id, segments) in [(1, 1), (2, 2)] {
        for n in [5, 30, 900] {
            let bodies = rack.node(id).bodies();
            assert_eq!(recover(&bodies, addr(&rack, id, names[n])).await.unwrap(), expected[&names[n]]);
        }
        healed(&rack, id, segments).await;
        all_well(&rack, id, &expected);
    }
}

/// Nobody has it: that is said only after every voter has answered, and then at once. A body nearby is served on.
#[tokio::test(start_paused = true)]
async fn damaged_on_every_voter() {
    let mut rack = checked().await;
    let expected = filled(&mut rack).await;
    let names: Vec<u64> = expected.keys().copied().collect();
    for id in 1..=3 {
        flip(&rack, id, names[100]);
    }
    let addr = addr(&rack, 1, names[100]);
    rack.kill(2);
    let bodies = rack.node(1).bodies();
    let error = recover(&bodies, addr).await.unwrap_err();
    assert!(matches!(&error, BodyError::Unavailable { missing, .. } if missing.contains("[2]")), "{error}");
    rack.start(2).await;
    rack.leader().await;
    let error = recover(&bodies, addr).await.unwrap_err();
    assert!(matches!(error, BodyError::Lost(of) if of == addr), "{error}");
    assert_eq!(bodies.damage().lost, 1);
    assert_eq!(bodies.read_blocking(self::addr(&rack, 1, names[101])).unwrap(), expected[&names[101]]);
    assert_eq!((bodies.damage().healed, bodies.disk_usage().damaged_segments), (0, 1));
}

/// A node that does not know yet what was committed is no witness that a body is lost.
#[tokio::test(start_paused = true)]
async fn who_is_behind_is_not_believed() {
    let (rack, leader) = Rack::formed(3).await;
    let behind = (1..=3).find(|id| *id != leader).unwrap();
    let index = rack.commit(leader, b"body").await;
    rack.settled(index).await;
    let log = rack.node(behind).log();
    assert!(log.is_settled(index) && !log.is_settled(index + 1));
    let unknown = BodyAddr { index: index + 5, offset: 9, len: 4 };
    let error = recover(&rack.node(leader).bodies(), unknown).await.unwrap_err();
    assert!(matches!(error, BodyError::Unavailable { .. }), "{error}");
    let dropped = BodyAddr { index, offset: 500, len: 4 };
    let error = recover(&rack.node(leader).bodies(), dropped).await.unwrap_err();
    assert!(matches!(error, BodyError::Lost(_)), "{error}");
}

/// A lone node has only itself to ask.
#[tokio::test]
async fn alone() {
    let disk = FaultDisk::new();
    let mut options = options(&disk);
    options.body_check = Some(CHECK);
    let (first, seen) = node(options.clone()).await;
    for number in 0..4 {
        commit(&first, put_many(&entry(number))).await;
    }
    within(first.snapshot_now()).await.unwrap();
    within(first.shutdown()).await;
    drop(first);
    let (addr, _) = *seen.lock().live.values().nth(3).unwrap();
    let (again, _) = node(options).await;
    let (path, at) = place(&again, addr);
    disk.flip(&path, at + 10);
    let error = recover(&again.bodies(), addr).await.unwrap_err();
    assert!(matches!(error, BodyError::Lost(_)), "{error}");
    within(again.shutdown()).await;
}

/// The power goes at every step of a repair: every start after it finds all bodies, or what is damaged, and never
/// another one; and the repair is done in the end.
#[tokio::test(start_paused = true)]
async fn power_cuts_during_repair() {
    let mut rack = Rack::new(3);
    rack.check = Some(CHECK);
    // A start refuses when log is damaged that is not purged.
    rack.retention = Some(1);
    for id in 1..=3 {
        rack.start(id).await;
    }
    let expected = filled(&mut rack).await;
    let names: Vec<u64> = expected.keys().copied().collect();
    let (mut cut_short, mut steps) = (0, 0);
    for name in names.chunks(7).map(|some| some[0]) {
        if addr(&rack, 2, name).index > rack.node(2).status().purged {
            break;
        }
        let before = rack.node(2).bodies().damage().healed;
        let (path, Some(at)) = place_in(rack.node(2), addr(&rack, 2, name)) else { continue };
        rack.places[&2].disk.flip(&path, at);
        steps += 1;
        rack.places[&2].disk.cut_after(steps);
        // It may fail half-way.
        recover(&rack.node(2).bodies(), addr(&rack, 2, name)).await.ok();
        let (bodies, disk) = (rack.node(2).bodies(), rack.places[&2].disk.clone());
        until("repaired or cut", || bodies.damage().healed > before || disk.has_failed()).await;
        cut_short += u32::from(disk.has_failed());
        rack.cut_power(2, steps);
        rack.start(2).await;
        rack.leader().await;
        let bodies = rack.node(2).bodies();
        for (name, body) in &expected {
            let addr = addr(&rack, 2, *name);
            let read = bodies.read_blocking(addr).unwrap();
            if opened(&read).is_none() {
                assert_eq!(recover(&bodies, addr).await.unwrap(), *body);
            } else {
                assert!(read == body, "steps {steps}: body {name}");
            }
        }
        let healed = || bodies.disk_usage().damaged_segments == 0;
        until("repaired in the end", healed).await;
        all_well(&rack, 2, &expected);
    }
    assert!(cut_short > 5, "{cut_short} of {steps}");
}

/// The file that a body lies in, and a byte of the body unless only pieces of its entry are left.
fn place_in(node: &Node, addr: BodyAddr) -> (PathBuf, Option<u64>) {
    let segment = node.log().table.with_body(addr.index, std::sync::Arc::clone).unwrap();
    let span = segment.span(addr.index).unwrap();
    let at = span.start + HEAD_LEN as u64 + u64::from(addr.offset) + 10;
    (segment.path.clone(), (!span.in_pieces).then_some(at))
}

/// A log that is damaged where it is not purged: the start says in which file and where, whoever came upon it.
#[tokio::test(start_paused = true)]
async fn damaged_log_is_refused_by_name() {
    let mut rack = Rack::new(3);
    for id in 1..=3 {
        rack.start(id).await;
    }
    let expected = filled(&mut rack).await;
    let first = *expected.keys().next().unwrap();
    flip(&rack, 2, first);
    let (path, _) = place(rack.node(2), addr(&rack, 2, first));
    rack.kill(2);
    let disk = rack.places[&2].disk.clone();
    // Without the snapshot all of the log is replayed.
    let (machine, _) = super::machine::TestMachine::new();
    for name in disk.list(std::path::Path::new(super::rig::DIR)).unwrap() {
        if name.ends_with(".snap") {
            disk.unlink(&std::path::Path::new(super::rig::DIR).join(name)).unwrap();
        }
    }
    let error = within(Node::start(rack.options(2, &disk), machine)).await.err().expect("a refusal");
    let crate::StartError::Corrupt(corruption) = &error else { panic!("{error}") };
    assert_eq!(corruption.file, path);
    assert!(corruption.offset > 0 && corruption.what.contains("checksum"), "{error}");
    assert!(error.to_string().contains("`beanpole cluster replace 2 NEW_ID HOST:PORT`"), "{error}");
}

/// Nobody reads what is damaged: the pass that looks at everything finds it all, in bodies, in heads, in footers and where
/// nothing can be read, and it is repaired. Before and after nothing happens by itself.
#[tokio::test(start_paused = true)]
async fn a_scrub_finds_what_nobody_reads() {
    let mut rack = checked().await;
    let expected = filled(&mut rack).await;
    let names: Vec<u64> = expected.keys().copied().collect();
    let node = rack.node(2).clone();
    let (path, at) = place(&node, addr(&rack, 2, names[3]));
    let disk = rack.places[&2].disk.clone();
    disk.flip(&path, at + 20);
    let (path, at) = place(&node, addr(&rack, 2, names[400]));
    disk.spoil(&path, at..at + 512);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(node.bodies().damage(), DamageTotals::default());
    node.scrub();
    until("a pass", || node.scrub_status().passes == 1).await;
    let found = node.bodies().damage().found;
    assert!(found >= 2, "{found}");
    until("repaired", || node.bodies().disk_usage().damaged_segments == 0).await;
    all_well(&rack, 2, &expected);
    // What is left is sound, footers included.
    let segment = node.log().table.bodies().pop().unwrap();
    disk.flip(&segment.path, segment.end() + 40);
    node.scrub();
    until("another pass", || node.scrub_status().passes == 2).await;
    assert_eq!(node.bodies().damage().found, found + 1);
    until("repaired", || node.bodies().disk_usage().damaged_segments == 0).await;
    all_well(&rack, 2, &expected);
    node.scrub();
    until("a last pass", || node.scrub_status().passes == 3).await;
    assert_eq!(node.bodies().damage().found, found + 1);
    let status = node.scrub_status();
    assert!(!status.running && status.done == status.total && status.bytes > status.total, "{status:?}");
}

/// It keeps to its rate, begins by itself, and pauses while memory is short.
#[tokio::test(start_paused = true)]
async fn a_scrub_is_slow_and_polite() {
    // Alone, because peers would tick on through all these days.
    let mut options = options(&FaultDisk::new());
    options.inline = true;
    let (node, _) = node(options).await;
    for number in 0..ENTRIES {
        commit(&node, put_many(&entry(number))).await;
    }
    node.hold_scrub(true);
    tokio::time::sleep(Duration::from_secs(700)).await;
    let status = node.scrub_status();
    assert!(status.running && status.bytes == 0, "{status:?}");
    node.hold_scrub(false);
    let begun = tokio::time::Instant::now();
    until("a pass", || node.scrub_status().passes == 1).await;
    let least = Duration::from_micros(node.scrub_status().bytes * 1_000_000 / (8 << 20));
    assert!(begun.elapsed() >= least, "{:?} for {least:?}", begun.elapsed());
    tokio::time::sleep(Duration::from_secs(6 * 24 * 3600)).await;
    assert_eq!(node.scrub_status().passes, 1);
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(node.scrub_status().passes, 2);
    within(node.shutdown()).await;
}

/// A leader whose log is damaged where a follower needs it goes on: the follower gets the entry that a third node has.
#[tokio::test(start_paused = true)]
async fn a_leader_with_a_damaged_log_serves_its_followers() {
    let mut rack = checked().await;
    let leader = rack.leader().await;
    let away = (1..=3).find(|id| *id != leader).unwrap();
    rack.kill(away);
    let mut names = Vec::new();
    for number in 0..ENTRIES {
        let index = propose(rack.node(leader), put_many(&entry(number))).await;
        names.push(nth(index, 0));
    }
    // More than the ring holds.
    for number in 0..900 {
        rack.commit(leader, &vec![number as u8; 10_000]).await;
    }
    for n in [0, 7, 30] {
        flip(&rack, leader, names[n]);
    }
    let fetched = rack.node(leader).bodies().damage().fetched;
    rack.start(away).await;
    let index = rack.commit(leader, b"after").await;
    rack.settled(index).await;
    assert_eq!(rack.leader().await, leader, "it did not stop");
    assert!(rack.node(leader).bodies().damage().fetched > fetched);
    for name in names {
        let addr = addr(&rack, away, name);
        let read = rack.node(away).bodies().read_blocking(addr).unwrap();
        assert!(opened(&read).is_some());
    }
}

/// A pass that takes long does not keep the space of what is removed meanwhile, and comes to its end.
#[tokio::test(start_paused = true)]
async fn a_scrub_keeps_nothing() {
    let mut options = options(&FaultDisk::new());
    options.inline = true;
    options.log_retention_bytes = 1;
    // A byte each second.
    options.scrub_bytes_per_s = 1;
    let segment = options.segment_bytes;
    let (node, seen) = node(options).await;
    for number in 0..ENTRIES {
        commit(&node, put_many(&entry(number))).await;
    }
    node.scrub();
    until("a pass", || node.scrub_status().bytes > 0).await;
    let names: Vec<u64> = seen.lock().live.keys().copied().collect();
    for name in names {
        commit(&node, drop_body(name)).await;
    }
    within(node.snapshot_now()).await.unwrap();
    let usage = node.bodies().disk_usage();
    assert!(usage.segments < 10 && usage.pinned_deleted <= segment, "{usage:?}");
    let step = Duration::from_secs(segment);
    tokio::time::sleep(3 * step).await;
    assert_eq!((node.scrub_status().passes, node.bodies().disk_usage().pinned_deleted), (1, 0));
    within(node.shutdown()).await;
}
