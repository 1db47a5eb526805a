//! Damaged segments: what a crash can leave is cut, everything else is refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::rig::{DIR, Rig, entry, options, recover, segments};
use crate::disk::{Disk, FaultDisk};
use crate::error::StartError;
use crate::format::Position;
use crate::inspect::{self, Finding, SegmentKind};

/// A disk with one segment: entries 1 to `count` of `len` bytes, each synced by itself; with the places where
/// their records start and where the last one ends.
async fn one_segment(count: u64, len: usize) -> (FaultDisk, PathBuf, Vec<usize>) {
    let disk = FaultDisk::new();
    let rig = Rig::open(&options(&disk)).unwrap();
    for index in 1..=count {
        rig.append(vec![entry(1, index, len)]).await;
    }
    let table = rig.storage.log.table.all();
    let (_, offsets) = table[0].entries();
    let mut places: Vec<usize> = offsets.iter().map(|offset| *offset as usize).collect();
    places.push(usize::try_from(table[0].end()).unwrap());
    let path = table[0].path.clone();
    let disk = disk.kill();
    (disk, path, places)
}

fn last_index(disk: &FaultDisk) -> Result<u64, StartError> {
    recover(disk).map(|found| found.state.last.map_or(0, |last| last.index))
}

fn corruption(disk: &FaultDisk) -> String {
    let error = recover(disk).map(|_| ()).expect_err("a refusal");
    let StartError::Corrupt(corruption) = &error else { panic!("{error}") };
    assert!(corruption.file.starts_with(Path::new(DIR)));
    let text = error.to_string();
    assert!(text.contains("beanpole segment verify d") && text.contains("offset"), "{text}");
    text
}

/// The last record torn at every single byte: exactly the entries before it are found, the rest is zeroed, and
/// a second start finds a clean end.
#[tokio::test]
async fn torn_at_every_byte() {
    let (disk, path, places) = one_segment(4, 77).await;
    let whole = disk.read(&path).unwrap();
    assert_eq!(last_index(&disk).unwrap(), 4);
    for cut in places[3]..places[4] {
        let mut bytes = whole.clone();
        bytes[cut..].fill(0);
        if bytes == whole {
            continue; // Only padding was cut.
        }
        disk.overwrite(&path, bytes);
        assert_eq!(last_index(&disk).unwrap(), 3, "cut at {cut}");
        assert!(disk.read(&path).unwrap()[places[3]..].iter().all(|byte| *byte == 0));
        assert_eq!(last_index(&disk).unwrap(), 3);
    }
}

/// A file that is too short is a torn one, and what is missing is not a reason to read beyond its end.
#[tokio::test]
async fn truncated_file() {
    let (disk, path, places) = one_segment(4, 77).await;
    let whole = disk.read(&path).unwrap();
    for cut in places[3]..places[4] {
        disk.overwrite(&path, whole[..cut].to_vec());
        let found = last_index(&disk).unwrap();
        assert!(found == 3 || whole[cut..].iter().all(|byte| *byte == 0), "cut at {cut}: {found}");
    }
}

/// A changed bit in any record that was synced before another was written is refused, wherever it is.
#[tokio::test]
async fn flipped_bit_in_the_middle() {
    let (disk, path, places) = one_segment(4, 77).await;
    let whole = disk.read(&path).unwrap();
    for at in 64..places[3] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        disk.overwrite(&path, bytes.clone());
        if whole[at] == 0 && at % 8 != 0 && last_index(&disk).is_ok() {
            continue; // Padding, which carries nothing.
        }
        assert!(corruption(&disk).contains("checksum") || corruption(&disk).contains("record"));
        assert!(disk.read(&path).unwrap() == bytes, "a refusal must change nothing");
    }
}

/// The same flush wrote two records. Zeros in place of the first are what a power cut leaves when it kept only
/// the later sectors: torn. A changed bit in it is not: refused.
#[tokio::test]
async fn one_flush_of_two_records() {
    let disk = FaultDisk::new();
    let rig = Rig::open(&options(&disk)).unwrap();
    rig.append(vec![entry(1, 1, 2000)]).await;
    rig.append(vec![entry(1, 2, 2000), entry(1, 3, 2000)]).await;
    let segment = rig.storage.log.table.all().pop().unwrap();
    let start = usize::try_from(segment.offset(2).unwrap()).unwrap();
    let disk = disk.kill();
    let whole = disk.read(&segment.path).unwrap();
    let sector = (start + 600) / 512 * 512;
    let mut bytes = whole.clone();
    bytes[sector..sector + 512].fill(0);
    disk.overwrite(&segment.path, bytes);
    assert_eq!(last_index(&disk).unwrap(), 1);
    let mut bytes = whole;
    bytes[sector] ^= 4;
    disk.overwrite(&segment.path, bytes);
    assert!(corruption(&disk).contains("a valid record follows"));
}

/// A hole of zeros over a synced record, sector by sector or as a whole, is refused.
#[tokio::test]
async fn hole_of_zeros() {
    let (disk, path, places) = one_segment(4, 1500).await;
    let whole = disk.read(&path).unwrap();
    for (from, to) in [(places[1], places[2]), (2048, 2560), (places[0], places[3])] {
        let mut bytes = whole.clone();
        bytes[from..to].fill(0);
        disk.overwrite(&path, bytes);
        assert!(corruption(&disk).contains("was synced"));
    }
}

/// A disk with several sealed segments, of entries 1 to the answered index.
async fn many_segments() -> (FaultDisk, u64) {
    let disk = FaultDisk::new();
    let rig = Rig::open(&options(&disk)).unwrap();
    for index in 1..=60 {
        rig.append(vec![entry(1, index, 1000)]).await;
    }
    rig.close();
    (disk.kill(), 60)
}

/// Without its footer or its trailer, or with damage in them, a sealed segment is scanned and gives the same.
#[tokio::test]
async fn damaged_footer() {
    let (disk, last) = many_segments().await;
    let path = segments(&disk)[1].clone();
    let whole = disk.read(&path).unwrap();
    let before = recover(&disk).unwrap();
    let (first, offsets) = before.table.all()[1].entries();
    let end = usize::try_from(before.table.all()[1].end()).unwrap();
    let len = whole.len();
    for range in [end + 40..end + 41, end..end + 8, len - 32..len, len - 8..len - 7, end..len] {
        let mut bytes = whole.clone();
        bytes[range.clone()].iter_mut().for_each(|byte| *byte ^= 0x5a);
        disk.overwrite(&path, bytes);
        let found = recover(&disk).unwrap_or_else(|error| panic!("{range:?}: {error}"));
        assert_eq!(found.state.last, Some(Position { term: 1, index: last }));
        assert_eq!(found.table.all()[1].entries(), (first, offsets.clone()), "{range:?}");
    }
}

/// A sealed segment cannot be torn: cut short, emptied behind a record, or gone, it is refused.
#[tokio::test]
async fn damaged_sealed_segment() {
    let (disk, _) = many_segments().await;
    let path = segments(&disk)[1].clone();
    let whole = disk.read(&path).unwrap();
    disk.overwrite(&path, whole[..5000].to_vec());
    corruption(&disk);
    let mut bytes = whole.clone();
    bytes[5000..].fill(0);
    disk.overwrite(&path, bytes);
    corruption(&disk);
    let mut bytes = whole.clone();
    bytes[20] ^= 1;
    disk.overwrite(&path, bytes);
    assert!(corruption(&disk).contains("header"));
    disk.overwrite(&path, whole);
    disk.unlink(&path).unwrap();
    assert!(corruption(&disk).contains("missing"));
}

/// Writing goes on after a cut, and the next start finds old and new entries.
#[tokio::test]
async fn goes_on_after_a_cut() {
    let (disk, path, places) = one_segment(4, 700).await;
    let mut bytes = disk.read(&path).unwrap();
    bytes[places[3] + 50..].fill(0);
    disk.overwrite(&path, bytes);
    let rig = Rig::open(&options(&disk)).unwrap();
    rig.append(vec![entry(2, 4, 300), entry(2, 5, 300)]).await;
    rig.close();
    let found = recover(&disk.kill()).unwrap();
    assert_eq!(found.state.last, Some(Position { term: 2, index: 5 }));
}

/// A crash right after a seal, before a byte of the next segment is written: the segment that is begun at the next start
/// continues the sealed one, and starts after that find nothing wrong.
#[tokio::test]
async fn goes_on_after_a_crash_between_two_segments() {
    let (disk, _) = many_segments().await;
    let used = recover(&disk).unwrap().table.all();
    let (sealed, begun) = (&used[used.len() - 2], &used[used.len() - 1]);
    let (_, last) = sealed.range().unwrap();
    let mut bytes = disk.read(&begun.path).unwrap();
    bytes[crate::format::HEADER_LEN..].fill(0);
    disk.overwrite(&begun.path, bytes);
    assert_eq!(last_index(&disk).unwrap(), last);
    let rig = Rig::open(&options(&disk)).unwrap();
    rig.append(vec![entry(1, last + 1, 300)]).await;
    rig.close();
    assert_eq!(last_index(&disk.kill()).unwrap(), last + 1);
}

/// The offline tools see what a start would see, and change nothing.
#[tokio::test]
async fn inspection() {
    let (disk, last) = many_segments().await;
    let (dir, shared) = (Path::new(DIR), Arc::new(disk.clone()) as Arc<dyn Disk>);
    let listed = inspect::list(&disk, dir).unwrap();
    assert_eq!(listed[0].kind, SegmentKind::Sealed);
    let written: Vec<_> = listed.iter().filter(|info| info.first.is_some()).collect();
    assert_eq!(written[0].first, Some(1));
    assert!(written.windows(2).all(|pair| pair[0].last.map(|last| last + 1) == pair[1].first));
    assert_eq!(written.last().unwrap().last, Some(last));
    assert!(inspect::verify(&shared, dir).unwrap().iter().all(|check| check.finding == Finding::Whole));
    let mut entries = 0;
    inspect::dump(&disk, dir, None, &mut |record| entries += u64::from(record.kind == "entry")).unwrap();
    assert_eq!(entries, last);

    let mut bytes = disk.read(&listed[0].file).unwrap();
    bytes[3000] ^= 1;
    disk.overwrite(&listed[0].file, bytes);
    let checks = inspect::verify(&shared, dir).unwrap();
    assert!(matches!(checks[0].finding, Finding::Damaged { offset, .. } if offset < 3000));
    assert_eq!(checks[1].finding, Finding::Whole);
}

/// Whatever is in the files, a start answers: with a log or with an error, never by a panic or a hang.
#[tokio::test]
async fn random_damage() {
    let seed: u64 =
        std::env::var("BEANPOLE_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("BEANPOLE_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let (whole, _) = many_segments().await;
    let paths = segments(&whole);
    let (mut found, mut refused) = (0, 0);
    for _ in 0..300 {
        let disk = whole.kill();
        for _ in 0..rng.random_range(1..4) {
            let path = &paths[rng.random_range(0..paths.len())];
            let mut bytes = disk.read(path).unwrap();
            let at = rng.random_range(0..bytes.len());
            let len = rng.random_range(1..=64).min(bytes.len() - at);
            match rng.random_range(0..4u8) {
                0 => bytes[at..at + len].fill(0),
                1 => rng.fill(&mut bytes[at..at + len]),
                2 => bytes.truncate(at),
                3.. => bytes.copy_within(at..at + len, at / 2),
            }
            disk.overwrite(path, bytes);
        }
        match recover(&disk) {
            Ok(_) => found += 1,
            Err(_) => refused += 1,
        }
        inspect::verify(&(Arc::new(disk) as Arc<dyn Disk>), Path::new(DIR)).unwrap();
    }
    assert!(found > 0 && refused > 100, "found {found}, refused {refused}");
}

/// A look at a directory names every file, and damage to those that are no segments is found, too.
#[tokio::test]
async fn inspection_covers_every_file() {
    use super::machine::TestMachine;
    use crate::inspect::{FileKind, Finding, files, verify_files};
    let disk = FaultDisk::new();
    let (node, _) = super::rig::node(options(&disk)).await;
    for number in 0..20 {
        super::rig::commit(&node, super::machine::put(&[number; 1000])).await;
    }
    let index = super::rig::within(node.snapshot_now()).await.unwrap();
    super::rig::within(node.shutdown()).await;
    let dir = Path::new(DIR);
    disk.overwrite(&dir.join("0000000000000099.snap.tmp"), vec![1]);
    disk.overwrite(&dir.join("notes"), vec![1]);
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let kinds: Vec<FileKind> = files(&shared, dir).unwrap().into_iter().map(|info| info.kind).collect();
    for kind in [FileKind::Snapshot, FileKind::Identity, FileKind::Unfinished, FileKind::Foreign] {
        assert!(kinds.contains(&kind), "{kind:?} in {kinds:?}");
    }
    let damaged = || {
        let (mut machine, _) = TestMachine::new();
        let checks = verify_files(&shared, dir, &mut machine).unwrap();
        let bad = checks.into_iter().filter(|check| check.finding != Finding::Whole);
        bad.map(|check| check.file.file_name().unwrap().to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(damaged(), Vec::<String>::new());
    let identity = disk.read(&dir.join("identity")).unwrap();
    let mut changed = identity.clone();
    changed[20] ^= 1;
    disk.overwrite(&dir.join("identity"), changed);
    assert_eq!(damaged(), ["identity"]);
    disk.overwrite(&dir.join("identity"), identity);
    // A segment whose bodies the snapshot needs goes missing.
    disk.unlink(&segments(&disk)[0]).unwrap();
    assert_eq!(damaged(), [format!("{index:016}.snap")]);
}
