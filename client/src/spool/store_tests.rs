//! The directory by itself: what a restart, a crash in the middle of a write, damage and a full directory leave of it.

use super::*;
use crate::commands::PutOptions;
use crate::spool::SpoolCounts;
use bytes::Bytes;
use tempfile::TempDir;

const NOW_MS: u64 = 1_700_000_000_000;

struct Opened {
    store: Store,
    counters: Arc<SpoolCounters>,
}

fn settings(directory: &TempDir) -> SpoolSettings {
    SpoolSettings { segment_bytes: 300, ..SpoolSettings::new(directory.path()) }
}

fn open_with(settings: SpoolSettings) -> Opened {
    let counters = Arc::new(SpoolCounters::default());
    Opened { store: Store::open(settings, counters.clone()).unwrap(), counters }
}

fn open(directory: &TempDir) -> Opened {
    open_with(settings(directory))
}

fn record(number: usize, at_ms: u64) -> Record {
    let options = PutOptions { pri: 1, delay_s: 2, ttr_s: 3 };
    let (key, body) = (format!("k{number}").into(), Bytes::from(format!("body {number}")));
    Record { put_at_ms: at_ms, options, key, tube: "t".into(), body }
}

impl Opened {
    fn add(&mut self, numbers: std::ops::Range<usize>) {
        for number in numbers {
            self.store.append(&record(number, NOW_MS), NOW_MS).unwrap();
        }
        self.store.sync().unwrap();
    }

    /// The numbers of the next records, and those to be given back.
    fn take(&mut self, most: usize) -> (Vec<usize>, Vec<u64>) {
        self.store
            .hand_out(most, NOW_MS)
            .into_iter()
            .map(|(number, record)| (number_of(&record), number))
            .unzip()
    }

    fn all(&mut self) -> Vec<usize> {
        self.take(usize::MAX).0
    }

    fn counts(&self) -> SpoolCounts {
        self.store.publish();
        self.counters.read()
    }
}

fn number_of(record: &Record) -> usize {
    record.key[1..].parse().unwrap()
}

fn files(directory: &TempDir) -> Vec<PathBuf> {
    let paths = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "spool")).collect();
    files.sort();
    files
}

#[test]
fn records_come_in_order_over_many_segments_and_files_go_when_all_is_done() {
    let directory = TempDir::new().unwrap();
    let mut spool = open(&directory);
    spool.add(0..100);
    assert!(files(&directory).len() > 10);
    assert_eq!(spool.counts().unfinished, 100);
    let (numbers, given) = spool.take(60);
    assert_eq!(numbers, (0..60).collect::<Vec<_>>());
    // Done in whatever order: only what nothing undone is before is forgotten.
    given[1..].iter().rev().for_each(|number| spool.store.done(*number));
    assert_eq!(spool.counts().unfinished, 100);
    spool.store.done(given[0]);
    assert_eq!(spool.counts().unfinished, 40);
    // What is put meanwhile comes behind.
    spool.add(100..110);
    let (numbers, given) = spool.take(usize::MAX);
    assert_eq!(numbers, (60..110).collect::<Vec<_>>());
    given.iter().for_each(|number| spool.store.done(*number));
    assert_eq!((spool.counts().unfinished, spool.counts().bytes, files(&directory).len()), (0, 0, 0));
    spool.add(110..111);
    assert_eq!(spool.all(), [110]);
}

#[test]
fn a_restart_goes_on_behind_what_was_done() {
    let directory = TempDir::new().unwrap();
    let mut spool = open(&directory);
    spool.add(0..50);
    let (_, given) = spool.take(30);
    given[..20].iter().for_each(|number| spool.store.done(*number));
    spool.store.save_cursor();
    drop(spool);
    let mut spool = open(&directory);
    assert_eq!(spool.counts().unfinished, 30);
    spool.add(50..55);
    assert_eq!(spool.all(), (20..55).collect::<Vec<_>>());
    // A cursor that is lost repeats, and loses nothing.
    drop(spool);
    fs::write(directory.path().join("cursor"), b"nonsense").unwrap();
    let again = open(&directory).all();
    assert!(again.ends_with(&(20..55).collect::<Vec<_>>()), "{again:?}");
}

#[test]
fn a_crash_in_the_middle_of_a_write_costs_that_record_only() {
    let whole = TempDir::new().unwrap();
    open(&whole).add(0..5);
    let [file] = &files(&whole)[..] else { panic!("one segment") };
    let bytes = fs::read(file).unwrap();
    let mut found = Vec::new();
    for len in 0..=bytes.len() {
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join(file.file_name().unwrap()), &bytes[..len]).unwrap();
        let mut spool = open(&directory);
        spool.add(90..91);
        let mut numbers = spool.all();
        assert_eq!(numbers.pop(), Some(90), "{len} bytes");
        assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>(), "{len} bytes");
        found.push(numbers.len());
        assert_eq!(spool.counts().damaged, 0);
    }
    assert!(found.is_sorted() && found.first() == Some(&0) && found.last() == Some(&5), "{found:?}");
}

#[test]
fn damage_costs_the_damaged_record_and_is_counted() {
    let directory = TempDir::new().unwrap();
    open(&directory).add(0..5);
    let [file] = &files(&directory)[..] else { panic!("one segment") };
    let mut bytes = fs::read(file).unwrap();
    let record_bytes = (bytes.len() - MAGIC.len()) / 5;
    bytes[MAGIC.len() + 2 * record_bytes + 20] ^= 1;
    fs::write(file, bytes).unwrap();
    let mut spool = open(&directory);
    assert_eq!(spool.all(), [0, 1, 3, 4]);
    assert_eq!(spool.counts().damaged, 1);
}

#[test]
fn a_full_spool_refuses_and_takes_again_when_there_is_room() {
    let directory = TempDir::new().unwrap();
    let mut spool = open_with(SpoolSettings { bytes_max: 1000, ..settings(&directory) });
    let stored =
        (0..100).take_while(|number| spool.store.append(&record(*number, NOW_MS), NOW_MS).is_ok()).count();
    assert!((15..25).contains(&stored), "{stored}");
    assert!(spool.counts().bytes <= 1000);
    assert_eq!(spool.counts().refused_full, 1);
    let (_, given) = spool.take(usize::MAX);
    assert_eq!(given.len(), stored);
    given.iter().for_each(|number| spool.store.done(*number));
    spool.add(0..10);
}

#[test]
fn what_is_too_old_is_dropped_and_counted_also_to_make_room() {
    let directory = TempDir::new().unwrap();
    let age_max = std::time::Duration::from_secs(60);
    let mut spool = open_with(SpoolSettings { age_max, bytes_max: 1000, ..settings(&directory) });
    while spool.store.append(&record(0, NOW_MS), NOW_MS).is_ok() {}
    let before = spool.counts().unfinished;
    // A minute later there is no room, but what there is is too old.
    let later = NOW_MS + 60_001;
    for number in 1..5 {
        spool.store.append(&record(number, later), later).unwrap();
    }
    let made_room = spool.counts().dropped_old;
    assert!(made_room > 0 && spool.counts().bytes <= 1000);
    let records = spool.store.hand_out(usize::MAX, later);
    assert_eq!(records.iter().map(|(_, record)| number_of(record)).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(spool.counts().dropped_old, before);
}

#[test]
fn a_directory_has_one_user_and_only_files_that_are_known() {
    let directory = TempDir::new().unwrap();
    let spool = open(&directory);
    let second = Store::open(settings(&directory), Arc::default());
    assert!(matches!(second, Err(SpoolError::InUse { .. })));
    drop(spool);
    fs::write(directory.path().join("0000000000000009.spool"), b"BPSPOOL9 something else").unwrap();
    let foreign = Store::open(settings(&directory), Arc::default());
    assert!(matches!(foreign, Err(SpoolError::Io { .. })));
}
