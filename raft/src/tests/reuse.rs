//! Segment files that serve again: what they held before is never taken for a part of the log.

use std::path::PathBuf;

use super::machine::{TestMachine, check_bodies, drop_body, put};
use super::rig::{commit, node, options, segments, within};
use crate::disk::{Access, Disk, FaultDisk};
use crate::format::{Contents, HEADER_LEN, SegmentHeader};
use crate::scan::scan;
use crate::{Node, Options, StartError};

fn small(disk: &FaultDisk) -> Options {
    let mut options = options(disk);
    options.snapshot_log_bytes = 40 << 10;
    options.log_retention_bytes = 16 << 10;
    options.inline = true;
    options
}

/// How many segments lie in files that were segments before, and how many there are.
fn reused(disk: &FaultDisk) -> (usize, usize) {
    let paths = segments(disk);
    let is_reused = |bytes: Vec<u8>| {
        let header = SegmentHeader::decode(&bytes).expect("a header");
        matches!(header.contents, Contents::LogInReused { .. })
    };
    (paths.iter().filter(|path| is_reused(disk.read(path).unwrap())).count(), paths.len())
}

/// Puts that are dropped at once, and one in ten that stays.
async fn flow(node: &Node, rounds: u64) {
    for number in 0..rounds {
        let len = usize::try_from(300 + number % 900).unwrap();
        let index = commit(node, put(&vec![7; len])).await;
        if number % 10 > 0 {
            commit(node, drop_body(index)).await;
        }
    }
}

/// In steady flow hardly anything is written but the log itself.
#[tokio::test]
async fn steady_flow_writes_the_log_once() {
    let disk = FaultDisk::new();
    let mut options = small(&disk);
    // So large that the first ones, which are filled with zeros, and padding do not count for much.
    options.segment_bytes = 256 << 10;
    options.snapshot_log_bytes = 512 << 10;
    let (node, _) = node(options).await;
    let fill = || put(&[1; 20_000]);
    let mut live = commit(&node, fill()).await;
    for _ in 0..600 {
        let index = commit(&node, fill()).await;
        commit(&node, drop_body(std::mem::replace(&mut live, index))).await;
    }
    let logged = node.bodies().disk_usage().logged_bytes;
    let written = disk.bytes_written();
    assert!(written * 10 <= logged * 12, "{written} bytes written for {logged} of log");
    assert!(reused(&disk).0 > 0, "{:?}", reused(&disk));
    within(node.shutdown()).await;
}

/// Processes that are killed and machines that lose their power with the log in such files.
#[tokio::test]
async fn restarts_find_the_log_and_nothing_else() {
    let mut disk = FaultDisk::new();
    let (mut expected, mut met) = (None, 0);
    for life in 0..40 {
        let (node, seen) = node(small(&disk)).await;
        let live = seen.lock().live.clone();
        assert!(expected.is_none_or(|expected| live == expected), "life {life}");
        check_bodies(&seen.lock(), &node.bodies());
        flow(&node, 60 + life % 9).await;
        expected = Some(seen.lock().live.clone());
        met += reused(&disk).0;
        disk = if life % 3 == 0 { disk.kill() } else { disk.power_cut(life) };
    }
    assert!(met > 20, "such files were rare: {met}");
}

/// Where the records of a reused segment that holds several end, and the segment.
fn written(disk: &FaultDisk) -> Option<(PathBuf, u64)> {
    segments(disk).into_iter().find_map(|path| {
        let header = SegmentHeader::decode(&disk.read(&path).unwrap()).unwrap();
        let file = disk.open(&path, Access::Read).unwrap();
        let found = scan(&file, &header, &mut |_, _| {}).unwrap();
        let counts = matches!(header.contents, Contents::LogInReused { .. }) && found.records > 5;
        counts.then_some((path, found.end))
    })
}

/// One bit of a record changes in such a file, while the node is stopped: it does not start with a shorter log.
#[tokio::test]
async fn damage_is_not_taken_for_the_end() {
    let disk = FaultDisk::new();
    let (node, _) = node(small(&disk)).await;
    for _ in 0..1000 {
        flow(&node, 3).await;
        if written(&disk).is_some() {
            break;
        }
    }
    within(node.shutdown()).await;
    let (path, end) = written(&disk).expect("a segment was reused");
    let bytes = disk.read(&path).unwrap();
    for at in [HEADER_LEN as u64 + 5, end / 2, end - 40] {
        let mut damaged = bytes.clone();
        damaged[usize::try_from(at).unwrap()] ^= 4;
        let copy = disk.kill();
        copy.overwrite(&path, damaged);
        let (machine, _) = TestMachine::new();
        let started = Node::start(small(&copy), machine).await;
        let refused = matches!(started, Err(StartError::Corrupt(_)));
        assert!(refused, "a flipped bit at {at} of records up to {end} in {}", path.display());
    }
}
