//! Catching up by a snapshot: every live body arrives, a crash at any moment leaves the old state or the new one,
//! and nothing damaged is believed.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::RaftStateMachine;

use super::machine::{check_bodies, drop_body, put};
use super::rig::{DIR, PATIENCE, Rig, entry, segments, within};
use super::transfer_rig::{Follower, Leader, bring_forward, frames, import, inline, normal};
use crate::disk::{Disk, FaultDisk, RealDisk};
use crate::format::Position;
use crate::inspect::{self, Finding, SegmentKind};
use crate::keeper;
use crate::log::Op;
use crate::transfer::{Export, Import};
use crate::{BodyAddr, Options, StartError};

/// Live bodies, as a machine sees them.
type Live = BTreeMap<u64, (BodyAddr, u32)>;

/// Where the snapshot of [`leader`] stands.
const SNAPSHOT: u64 = 120;
/// Up to where leader and followers have the same log.
const COMMON: u64 = 40;

/// A leader of term 3 with several segments, most bodies gone, one segment dead as a whole, a snapshot at
/// [`SNAPSHOT`] and a log purged up to 10 before that.
async fn leader() -> Leader {
    let mut leader = Leader::new(&inline(&FaultDisk::new())).await;
    while leader.last() < SNAPSHOT {
        let number = leader.last() + 1;
        leader.term = if number > COMMON { 3 } else { 1 };
        match number {
            30 => leader.put(put(&vec![5; 300_000])).await,
            _ if number > 60 && number % 2 == 0 => leader.put(drop_body(number - 20)).await,
            _ => leader.put(put(&vec![number as u8; 40 * number as usize])).await,
        };
    }
    for index in 45..60 {
        assert!(leader.seen.lock().live.contains_key(&index) == (index % 2 == 1 || index < 42));
    }
    leader.snapshot(SNAPSHOT - 10).await;
    leader
}

/// Disk of a follower that has the first [`COMMON`] entries of `leader`, committed.
async fn behind() -> FaultDisk {
    let disk = FaultDisk::new();
    let follower = Follower::start(&disk).await.unwrap();
    let mut whole = Leader::new(&inline(&FaultDisk::new())).await;
    while whole.last() < COMMON {
        let number = whole.last() + 1;
        let len = if number == 30 { 300_000 } else { 40 * number as usize };
        let byte = if number == 30 { 5 } else { number as u8 };
        whole.put(put(&vec![byte; len])).await;
    }
    let at = Position { term: 1, index: COMMON };
    follower.receive(1, None, whole.entries(0..=COMMON), at).await;
    drop(follower);
    disk.kill()
}

/// The same with entries up to `last` of a leader that nobody followed.
async fn diverged(last: u64) -> FaultDisk {
    let disk = behind().await;
    let follower = Follower::start(&disk).await.unwrap();
    let at = Position { term: 1, index: COMMON };
    let stray = |index| normal(2, index, &put(&[0xee; 700]));
    follower.receive(2, Some(at), (COMMON + 1..=last).map(stray).collect(), at).await;
    follower.log.flushed().await.unwrap();
    drop(follower);
    disk.kill()
}

/// The follower has exactly what the leader's snapshot has.
fn check_equal(leader: &Leader, follower: &Follower) {
    let (expected, seen) = (leader.seen.lock(), follower.seen.lock());
    assert_eq!(seen.live, expected.live);
    check_bodies(&seen, &follower.bodies());
    let live: u64 = expected.live.values().map(|(addr, _)| u64::from(addr.len)).sum();
    assert_eq!(follower.bodies().disk_usage().live_bytes, live);
}

fn names(disk: &FaultDisk, part: &str) -> Vec<String> {
    let mut names = disk.list(Path::new(DIR)).unwrap();
    names.retain(|name| name.contains(part));
    names
}

/// Whatever the follower had: nothing, an older part of the log, or entries that were never committed, fewer
/// or more than the snapshot covers. Afterwards it has the leader's state and bodies, goes on with the log, and
/// all is there again after restarts.
#[tokio::test]
async fn brought_forward() {
    let leader = leader().await;
    check_bodies(&leader.seen.lock(), &leader.bodies());
    let snapshot = Position { term: 3, index: SNAPSHOT };
    for disk in [FaultDisk::new(), behind().await, diverged(60).await, diverged(200).await] {
        let follower = Follower::start(&disk).await.unwrap();
        bring_forward(&leader.shared, &follower, 3).await.unwrap();
        assert_eq!(follower.seen.lock().brought, [SNAPSHOT]);
        check_equal(&leader, &follower);
        let state = follower.log.state();
        assert_eq!((state.last, state.purged), (Some(snapshot), Some(snapshot)));
        drop(follower);

        let disk = disk.kill();
        let follower = Follower::start(&disk).await.unwrap();
        assert_eq!(follower.seen.lock().restored, Some(SNAPSHOT));
        check_equal(&leader, &follower);
        let next = Position { term: 3, index: SNAPSHOT + 1 };
        let entries = vec![normal(3, next.index, &put(b"next"))];
        follower.receive(3, Some(snapshot), entries, next).await;
        assert!(names(&disk, "tmp").is_empty());
        let shared = Arc::new(disk.clone()) as Arc<dyn Disk>;
        let checks = inspect::verify(&shared, Path::new(DIR)).unwrap();
        assert!(checks.iter().all(|check| check.finding == Finding::Whole), "{checks:?}");
        drop(follower);

        let disk = disk.power_cut(SNAPSHOT);
        let follower = Follower::start(&disk).await.unwrap();
        assert!(follower.seen.lock().live.contains_key(&next.index));
        check_bodies(&follower.seen.lock(), &follower.bodies());
    }
}

/// Entries that were never committed are in the ring when a snapshot comes that holds others under the same
/// indexes: from the first moment the bodies are those of the snapshot (the machine looks, before the purge).
#[tokio::test]
async fn stale_entries_in_memory() {
    let leader = leader().await;
    let follower = Follower::start(&behind().await).await.unwrap();
    let at = Position { term: 1, index: COMMON };
    let stray = |index| normal(2, index, &put(&[0xee; 700]));
    follower.receive(2, Some(at), (COMMON + 1..=60).map(stray).collect(), at).await;
    bring_forward(&leader.shared, &follower, 3).await.unwrap();
    check_equal(&leader, &follower);
}

/// The process dies after the installation and before a word of it is in the log, which has fewer entries than
/// the snapshot covers, or more, of another term: the start discards them, and so does one after a second crash
/// in the middle of that.
#[tokio::test]
async fn crash_before_the_purge() {
    let leader = leader().await;
    for (disk, above) in [(FaultDisk::new(), 0), (diverged(60).await, COMMON), (diverged(200).await, COMMON)]
    {
        let (machine, _) = super::machine::TestMachine::new();
        let mut storage = crate::open::open(&inline(&disk), Box::new(machine)).unwrap();
        storage.log.completions.spawn();
        let shared = storage.machine.shared();
        let received = import(&shared, &frames(&leader.shared, above).await).await.unwrap();
        let meta = received.meta.clone();
        storage.machine.install_snapshot(&meta, received).await.unwrap();
        let disk = disk.kill();
        for cut in 0.. {
            let again = disk.kill();
            again.cut_after(cut);
            let started = Follower::start(&again).await;
            let whole = match &started {
                Ok(follower) => follower.purged(SNAPSHOT).await.is_ok(),
                Err(_) => false,
            };
            drop(started);
            assert!(
                check_survivor(&leader, &again.power_cut(cut), &Live::new(), &format!("cut {cut}")).await
            );
            if whole {
                break;
            }
        }
    }
}

/// What the receiver has is not sent again, nor are segments without a live body.
#[tokio::test]
async fn sends_what_is_missing() {
    let mut leader = leader().await;
    let bytes = |frames: &[Bytes]| frames.iter().map(Bytes::len).sum::<usize>();
    let all = bytes(&frames(&leader.shared, 0).await);
    let rest = bytes(&frames(&leader.shared, COMMON).await);
    assert!(rest + 300_000 < all, "{rest} of {all}");
    let on_disk = leader.bodies().disk_usage().body_bytes;
    assert!((all as u64) < on_disk + 10_000, "{all} sent of {on_disk}");
    for index in 1..SNAPSHOT {
        leader.put(drop_body(index)).await;
    }
    let last = leader.put(put(b"the only one")).await;
    leader.snapshot(last - 5).await;
    let few = frames(&leader.shared, 0).await;
    assert!(bytes(&few) < 20_000, "{}", bytes(&few));
    let follower = Follower::start(&FaultDisk::new()).await.unwrap();
    bring_forward(&leader.shared, &follower, 3).await.unwrap();
    assert!(follower.seen.lock().live.keys().eq([&last]));
    check_equal(&leader, &follower);
}

/// What a start finds after a power cut: the bodies in `old`, or the new state; answers which.
async fn check_survivor(leader: &Leader, disk: &FaultDisk, old: &Live, what: &str) -> bool {
    let again = Follower::start(disk).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(names(disk, "tmp").iter().all(|name| name.ends_with(".seg.tmp")), "{what}");
    if again.seen.lock().restored.is_none() {
        assert_eq!(again.seen.lock().live, *old, "{what}");
        assert!(names(disk, ".body").is_empty(), "{what}");
        check_bodies(&again.seen.lock(), &again.bodies());
        bring_forward(&leader.shared, &again, 3).await.unwrap();
        check_equal(leader, &again);
        return false;
    }
    check_equal(leader, &again);
    let snapshot = Position { term: 3, index: SNAPSHOT };
    again.log.flushed().await.unwrap();
    assert_eq!(again.log.state().last, Some(snapshot), "{what}");
    let next = Position { term: 3, index: SNAPSHOT + 1 };
    again.receive(3, Some(snapshot), vec![normal(3, next.index, &put(b"next"))], next).await;
    true
}

/// The power goes after every single write, sync and change of a name: the next start finds the old state or
/// the new one, whole, and no remains; the new one from the moment the installation was reported.
#[tokio::test]
async fn power_cut_at_every_change() {
    let leader = leader().await;
    for base in [FaultDisk::new(), diverged(60).await, diverged(200).await] {
        let first = base.kill();
        let before = Follower::start(&first).await.unwrap();
        let (above, old) = (before.log.complete_upto(), before.seen.lock().live.clone());
        drop(before);
        let base = first.kill();
        let frames = frames(&leader.shared, above).await;
        let (mut olds, mut news) = (0, 0);
        for cut in 0.. {
            let disk = base.kill();
            let follower = Follower::start(&disk).await.unwrap();
            disk.cut_after(cut);
            let received = import(&follower.shared, &frames).await;
            let installed = match received {
                Ok(file) => follower.install(3, file).await,
                Err(error) => Err(error),
            };
            let reported = installed.is_ok();
            let whole = reported && follower.purged(SNAPSHOT).await.is_ok();
            drop(follower);
            for seed in 0..3 {
                let disk = disk.power_cut(3 * cut + seed);
                let is_new = check_survivor(&leader, &disk, &old, &format!("cut {cut} seed {seed}")).await;
                assert!(is_new || !reported, "cut {cut} seed {seed}");
                news += u32::from(is_new);
                olds += u32::from(!is_new);
            }
            if whole {
                break;
            }
        }
        assert!(olds > 100 && news > 5, "{olds} old, {news} new");
    }
}

/// A changed bit in any frame, a frame too few, twice, or out of order: refused, and nothing remains.
#[tokio::test]
async fn damaged_frames() {
    let leader = leader().await;
    let disk = FaultDisk::new();
    let follower = Follower::start(&disk).await.unwrap();
    let whole = frames(&leader.shared, 0).await;
    assert!(whole.len() > 4);
    let mut wrong = Vec::new();
    for (at, frame) in whole.iter().enumerate() {
        let step = (frame.len() / 40).max(1);
        for bit in (0..frame.len()).step_by(step).chain(0..16.min(frame.len())) {
            let mut bytes = frame.to_vec();
            bytes[bit] ^= 1 << (bit % 8);
            // What comes before it is taken; only the first few are worth the time.
            wrong.push((at, Bytes::from(bytes)));
        }
        let before = whole[at.saturating_sub(1)].clone();
        wrong.push((at, frame.slice(..frame.len() - 1)));
        wrong.push((at, if at == 0 { whole[1].clone() } else { before }));
    }
    let mut import = Import::begin(&follower.shared).await.unwrap();
    let mut taken = 0;
    for (at, frame) in wrong {
        while taken < at {
            import.frame(whole[taken].clone()).await.unwrap();
            taken += 1;
        }
        let error = import.frame(frame).await.expect_err("a refusal");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(import.frame(whole[at].clone()).await.is_err(), "it goes on after a refusal");
        assert!(names(&disk, "body").is_empty() && names(&disk, "snap").is_empty());
        import = Import::begin(&follower.shared).await.unwrap();
        taken = 0;
    }
    for missing in 1..whole.len() {
        assert!(super::transfer_rig::import(&follower.shared, &whole[..missing]).await.is_err());
        assert!(names(&disk, "body").is_empty() && names(&disk, "snap").is_empty());
    }
    let error = super::transfer_rig::import(&follower.shared, &frames(&leader.shared, 7).await).await;
    assert!(error.err().unwrap().to_string().contains("begins after entry 7"));
    drop(super::transfer_rig::import(&follower.shared, &whole).await.unwrap());
    assert!(names(&disk, "body").is_empty() && names(&disk, "snap").is_empty());
    bring_forward(&leader.shared, &follower, 3).await.unwrap();
    check_equal(&leader, &follower);
}

/// A damaged record at the sender is not passed on as a whole one.
#[tokio::test]
async fn damaged_at_the_sender() {
    let disk = FaultDisk::new();
    let mut leader = Leader::new(&inline(&disk)).await;
    for number in 0..60 {
        leader.put(put(&[number; 1000])).await;
    }
    leader.snapshot(5).await;
    drop(leader);
    let disk = disk.kill();
    let path = &segments(&disk)[1];
    let mut bytes = disk.read(path).unwrap();
    bytes[5000] ^= 1;
    disk.overwrite(path, bytes);
    let (machine, _) = super::machine::TestMachine::new();
    let storage = crate::open::open(&inline(&disk), Box::new(machine)).unwrap();
    let shared = storage.machine.shared();
    let mut export = Export::begin(&shared, &shared.current().unwrap(), 0).await.unwrap();
    let error = loop {
        match export.next_frame().await {
            Ok(frame) => assert!(frame.is_some(), "it came to its end"),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("is damaged"), "{error}");
    assert_eq!(shared.log.damage.totals().found, 1, "it will be repaired");
}

/// While an export goes on the leader drops every body, takes a snapshot, purges and removes the segments: the
/// export goes on with what it pinned. A later one of the old snapshot is refused.
#[tokio::test]
async fn purged_during_an_export() {
    let disk = FaultDisk::new();
    let mut leader = Leader::new(&inline(&disk)).await;
    for number in 1..=100 {
        leader.put(put(&vec![number; 20_000])).await;
    }
    let file = leader.snapshot(90).await;
    let expected = leader.seen.lock().live.clone();
    let mut export = Export::begin(&leader.shared, &file, 0).await.unwrap();
    let mut frames = vec![export.next_frame().await.unwrap().unwrap()];
    let homes = segments(&disk);
    for index in 1..=100 {
        leader.put(drop_body(index)).await;
    }
    leader.snapshot(150).await;
    assert!(homes.iter().filter(|home| !segments(&disk).contains(home)).count() > 50);
    assert!(leader.bodies().disk_usage().pinned_deleted > 1_000_000);
    while let Some(frame) = export.next_frame().await.unwrap() {
        frames.push(frame);
    }
    drop(export);
    assert_eq!(leader.bodies().disk_usage().pinned_deleted, 0);
    let late = Export::begin(&leader.shared, &file, 0).await;
    assert_eq!(late.err().unwrap().kind(), io::ErrorKind::NotFound);

    let follower = Follower::start(&FaultDisk::new()).await.unwrap();
    let received = import(&follower.shared, &frames).await.unwrap();
    follower.install(1, received).await.unwrap();
    assert_eq!(follower.seen.lock().live, expected);
    check_bodies(&follower.seen.lock(), &follower.bodies());
}

/// A node that was brought forward itself brings another one forward, from body segments with gaps and from a
/// log that overlaps them; then twice more, until nothing of the first time is left.
#[tokio::test]
async fn from_node_to_node() {
    let mut leader = leader().await;
    let disk = behind().await;
    let second = Follower::start(&disk).await.unwrap();
    let frames_of_it = frames(&leader.shared, COMMON).await;
    let received = import(&second.shared, &frames_of_it).await.unwrap();
    // Meanwhile it gets some of the entries that are in the snapshot, by the log.
    let common = Position { term: 1, index: COMMON };
    let some = Position { term: 3, index: COMMON + 10 };
    let entries = (COMMON + 1..=some.index)
        .map(|index| normal(3, index, &put(&vec![index as u8; 40 * index as usize])));
    second.receive(3, Some(common), entries.collect(), some).await;
    second.install(3, received).await.unwrap();
    second.purged(SNAPSHOT).await.unwrap();
    check_equal(&leader, &second);

    let third_disk = FaultDisk::new();
    let third = Follower::start(&third_disk).await.unwrap();
    bring_forward(&second.shared, &third, 3).await.unwrap();
    check_equal(&leader, &third);
    let listed = inspect::list(&third_disk, Path::new(DIR)).unwrap();
    let bodies: Vec<_> =
        listed.iter().filter(|info| info.file.extension().is_some_and(|e| e == "body")).collect();
    assert!(bodies.len() > 3 && bodies.iter().all(|info| info.kind == SegmentKind::Sealed));
    assert!(bodies.iter().all(|info| info.first <= info.last && info.last <= Some(SNAPSHOT)));

    for index in 1..=SNAPSHOT {
        leader.put(drop_body(index)).await;
    }
    let kept = leader.put(put(&[9; 5000])).await;
    leader.snapshot(SNAPSHOT + 1).await;
    bring_forward(&leader.shared, &third, 3).await.unwrap();
    check_equal(&leader, &third);
    assert!(third.seen.lock().live.keys().eq([&kept]));
    let gone = keeper::take_dead(&third.log);
    third.preparer.dispose(gone).unwrap();
    assert_eq!(names(&third_disk, ".body").len(), 1);
    let third_disk = third_disk.kill();
    drop(third);
    let third = Follower::start(&third_disk).await.unwrap();
    check_equal(&leader, &third);
    assert_eq!(third.seen.lock().brought.len(), 0);
}

/// An entry larger than frames, segments and all buffers goes through in pieces, and on either side never more
/// than 1 MiB waits to be synced.
#[tokio::test]
async fn large_entries() {
    let mut leader = Leader::new(&inline(&FaultDisk::new())).await;
    for len in [0, 5_000_000, 1, 300, 2_000_001] {
        let body: Vec<u8> = (0..len).map(|at: u32| (at / 7) as u8).collect();
        leader.put(put(&body)).await;
    }
    for number in 0..2000 {
        leader.put(put(&[number as u8; 3])).await;
    }
    leader.snapshot(5).await;
    let disk = FaultDisk::new();
    let follower = Follower::start(&disk).await.unwrap();
    bring_forward(&leader.shared, &follower, 1).await.unwrap();
    check_equal(&leader, &follower);
    assert!(disk.most_unsynced() <= (1 << 20) + 2 * 512, "{}", disk.most_unsynced());
}

/// No room, at any moment of the transfer: the import fails, gives its space back, and the node works on.
#[tokio::test]
async fn no_space() {
    let leader = leader().await;
    let disk = behind().await;
    let follower = Follower::start(&disk).await.unwrap();
    let frames = frames(&leader.shared, COMMON).await;
    let used = disk.used();
    for room in [0, 100, 10_000, 100_000] {
        disk.set_space(Some(used + room));
        let error = import(&follower.shared, &frames).await.err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
        assert_eq!(disk.used(), used);
    }
    disk.set_space(None);
    bring_forward(&leader.shared, &follower, 3).await.unwrap();
    check_equal(&leader, &follower);
}

/// A snapshot whose bodies are not all there is refused at the start, and so is a damaged body segment; a
/// damaged footer is made up for by reading the records.
#[tokio::test]
async fn damaged_body_segments() {
    let leader = leader().await;
    let disk = FaultDisk::new();
    let follower = Follower::start(&disk).await.unwrap();
    bring_forward(&leader.shared, &follower, 3).await.unwrap();
    drop(follower);
    let disk = disk.kill();
    let refused = |disk: &FaultDisk| {
        let (machine, _) = super::machine::TestMachine::new();
        match crate::open::open(&inline(disk), Box::new(machine)).map(|_| ()) {
            Err(StartError::Corrupt(corruption)) => corruption.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let path = Path::new(DIR).join(&names(&disk, ".body")[0]);
    let whole = disk.read(&path).unwrap();
    let len = whole.len();
    let footer = usize::try_from(u64::from_le_bytes(whole[len - 24..len - 16].try_into().unwrap())).unwrap();
    for range in [footer + 40..footer + 41, len - 32..len - 31] {
        let mut bytes = whole.clone();
        bytes[range].iter_mut().for_each(|byte| *byte ^= 1);
        let damaged = disk.kill();
        damaged.overwrite(&path, bytes);
        let again = Follower::start(&damaged).await.unwrap();
        check_equal(&leader, &again);
    }
    let cut = disk.kill();
    cut.overwrite(&path, whole[..len / 2].to_vec());
    assert!(refused(&cut).contains("without a footer"));
    let disk = disk.kill();
    let mut bytes = whole.clone();
    bytes[20] ^= 1;
    disk.overwrite(&path, bytes);
    assert!(refused(&disk).contains("header"));
    let disk = disk.kill();
    disk.unlink(&path).unwrap();
    assert!(refused(&disk).contains("is not here"));
}

/// A purge point that jumps over the end of the log: what was not known to be committed is void, and appending
/// goes on behind it.
#[tokio::test]
async fn appends_after_a_jump() {
    let disk = FaultDisk::new();
    let rig = Rig::open(&inline(&disk)).unwrap();
    rig.append((1..=5).map(|index| entry(1, index, 100)).collect()).await;
    let log = rig.storage.log.clone();
    log.set_committed(Some(Position { term: 1, index: 3 }));
    log.queue([Op::Purge(Position { term: 2, index: 50 })]).unwrap();
    log.flushed().await.unwrap();
    assert!(log.table.find(4).is_none() && log.table.find(3).is_some());
    rig.append(vec![entry(2, 51, 100)]).await;
    let homes = [3, 51].map(|index| log.table.find(index).unwrap().0.header.id);
    assert!(homes[0] < homes[1], "entries of a segment are consecutive");
    log.stop();
    drop(rig);
    let found = super::rig::recover(&disk.kill()).unwrap();
    assert_eq!(found.state.last, Some(Position { term: 2, index: 51 }));
}

/// A snapshot that a node does not need any more when it has come: consensus says so, and nothing remains of it.
#[tokio::test]
async fn came_too_late() {
    let mut leader = Leader::new(&inline(&FaultDisk::new())).await;
    for number in 1..=20 {
        leader.put(put(&[number; 500])).await;
    }
    let all = leader.entries(0..=20);
    leader.snapshot(5).await;
    let disk = FaultDisk::new();
    let follower = Follower::start(&disk).await.unwrap();
    let frames = frames(&leader.shared, 0).await;
    let received = import(&follower.shared, &frames).await.unwrap();
    follower.receive(1, None, all, Position { term: 1, index: 20 }).await;
    follower.install(1, received).await.unwrap();
    assert!(follower.seen.lock().brought.is_empty() && follower.seen.lock().entries == 20);
    assert!(names(&disk, ".body").is_empty() && names(&disk, ".snap").is_empty());
    check_equal(&leader, &follower);
}

/// On real files, with threads, and with somebody who looks after the disk: what the snapshot replaced is removed
/// by itself, a snapshot of the node's own follows, and a restart finds everything.
#[tokio::test]
async fn on_files() {
    let leader = leader().await;
    let temporary = tempfile::TempDir::new().unwrap();
    let mut options = Options::new(temporary.path().join("data"));
    options.segment_bytes = 16 << 10;
    let follower = Follower::open(&options).await.unwrap();
    let requests = follower.keep();
    let stray = |index| normal(2, index, &put(&[0xee; 3000]));
    let at = Position { term: 2, index: 0 };
    follower.receive(2, None, (0..60).map(stray).collect(), at).await;
    bring_forward(&leader.shared, &follower, 3).await.unwrap();
    check_equal(&leader, &follower);
    let count = |suffix: &str| {
        RealDisk.list(&options.data_dir).unwrap().iter().filter(|n| n.ends_with(suffix)).count()
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while count(".seg") > 2 {
        assert!(tokio::time::Instant::now() < deadline, "the replaced log is still there");
        tokio::task::yield_now().await;
    }
    let bodies = count(".body");
    assert!(bodies > 3);

    let snapshot = Position { term: 3, index: SNAPSHOT };
    let drops = leader.seen.lock().live.keys().copied().collect::<Vec<_>>();
    let last = Position { term: 3, index: SNAPSHOT + drops.len() as u64 };
    let entries = drops.iter().zip(SNAPSHOT + 1..).map(|(body, index)| normal(3, index, &drop_body(*body)));
    follower.receive(3, Some(snapshot), entries.collect(), last).await;
    assert_eq!(count(".body"), bodies, "the newest snapshot references them");
    let (request, answer) = tokio::sync::oneshot::channel();
    requests.send(request).await.unwrap();
    assert_eq!(within(answer).await.unwrap(), Ok(last.index));
    assert_eq!(count(".body"), 0);
    drop(follower);

    let again = Follower::open(&options).await.unwrap();
    assert_eq!(again.seen.lock().restored, Some(last.index));
    assert!(again.seen.lock().live.is_empty());
}

/// While a snapshot is on its way the log behind it stays, so that the receiver can go on from there.
#[tokio::test]
async fn log_is_held() {
    let disk = FaultDisk::new();
    let follower = Follower::start(&disk).await.unwrap();
    let requests = follower.keep();
    let term = 1;
    let first = Position { term, index: 0 };
    let entry = |index| normal(term, index, &put(&[index as u8; 3000]));
    follower.receive(term, None, (0..=100).map(entry).collect(), Position { term, index: 40 }).await;
    let snapshot = async || {
        let (request, answer) = tokio::sync::oneshot::channel();
        requests.send(request).await.unwrap();
        within(answer).await.unwrap().unwrap()
    };
    assert_eq!(snapshot().await, 40);
    let export = Export::begin(&follower.shared, &follower.shared.current().unwrap(), 0).await.unwrap();
    follower.receive(term, Some(first), Vec::new(), Position { term, index: 100 }).await;
    assert_eq!(snapshot().await, 100);
    assert!(follower.log.state().purged.unwrap().index <= 40);
    drop(export);
    follower
        .receive(term, Some(Position { term, index: 100 }), vec![entry(101)], Position { term, index: 101 })
        .await;
    assert_eq!(snapshot().await, 101);
    assert!(follower.log.state().purged.unwrap().index > 80);
}
