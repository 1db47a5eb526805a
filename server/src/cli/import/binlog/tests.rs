//! Binlogs that Debian's beanstalkd 1.12 wrote before it was killed, in `server/tests/binlog`, and what is done to them.
//!
//! `states` has one file with jobs in all states; `moved` five small files, of which the later ones have changes to jobs of
//! the earlier ones. How they were made is told in `server/tests/binlog/README.md`.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/binlog").join(name)
}

/// A copy that may be damaged.
fn copy_of(name: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap().flatten() {
        fs::write(dir.path().join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap();
    }
    dir
}

fn outline(binlog: &mut Binlog) -> Vec<(u64, String, State, u32, u32, Vec<u8>)> {
    let jobs: Vec<Job> = binlog.jobs.values().cloned().collect();
    let row = |job: &Job| {
        let body = binlog.body(job).unwrap().to_vec();
        (job.id, job.tube.to_string(), job.state, job.pri, job.ttr_s, body)
    };
    jobs.iter().map(row).collect()
}

#[test]
fn jobs_of_all_states_are_read_as_beanstalkd_left_them() {
    let mut binlog = read(&fixture("states")).unwrap();
    let row = |id, tube: &str, state, pri, ttr_s, body: &[u8]| {
        (id, tube.to_owned(), state, pri, ttr_s, body.to_vec())
    };
    let expected = vec![
        row(1, "emails", State::Ready, 10, 60, b"ready"),
        row(2, "emails", State::Delayed, 5, 60, b"delayed"),
        row(3, "emails", State::Buried, 8, 61, b"buried"),
        // 4 was deleted; 5 was reserved.
        row(5, "other", State::Ready, u32::MAX, 63, b"reserved"),
        row(6, "other", State::Ready, 1, 64, b""),
        // Released with another priority and a delay.
        row(7, "other", State::Delayed, 3, 65, b"\r\n\0ab"),
    ];
    assert_eq!(outline(&mut binlog), expected);
    assert!(binlog.unread.is_empty() && binlog.missing.is_empty());
}

#[test]
fn a_delay_is_what_is_left_of_it_rounded_up() {
    let binlog = read(&fixture("states")).unwrap();
    let job = &binlog.jobs[&2];
    assert_eq!(job.delay_s(job.due_ns - 5_000_000_000), 5);
    assert_eq!(job.delay_s(job.due_ns - 5_000_000_001), 6);
    assert_eq!(job.delay_s(job.due_ns + 1), 0);
    assert_eq!(binlog.jobs[&1].delay_s(0), 0);
}

#[test]
fn changes_in_later_files_count() {
    let mut binlog = read(&fixture("moved")).unwrap();
    let rows = outline(&mut binlog);
    let bulk: Vec<_> = rows.iter().filter(|row| row.1 == "bulk").collect();
    // 40 were put with priorities 0 to 39 as jobs 8 to 47, and 8 to 29 deleted.
    assert_eq!(bulk.iter().map(|row| row.0).collect::<Vec<_>>(), (30..48).collect::<Vec<_>>());
    for row in bulk {
        let number = u8::try_from(row.0 - 8).unwrap();
        assert_eq!((row.3, &row.5), (u32::from(number), &vec![b'A' + number % 26; 200]), "job {}", row.0);
    }
    assert_eq!(rows.len(), 6 + 18);
}

/// A crash cuts the newest file anywhere: what was whole before is read, and nothing is made up.
#[test]
fn a_newest_file_that_is_cut_anywhere_gives_what_was_whole() {
    let whole = outline(&mut read(&fixture("states")).unwrap());
    let bytes = fs::read(fixture("states/binlog.1")).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 4;
    let dir = copy_of("states");
    for cut in 0..end {
        fs::write(dir.path().join("binlog.1"), &bytes[..cut]).unwrap();
        let mut binlog = read(dir.path()).unwrap();
        let found = outline(&mut binlog);
        assert!(binlog.unread.iter().all(|part| part.torn), "cut at {cut}: {:?}", binlog.unread);
        for row in &found {
            let known = whole.iter().any(|known| (known.0, &known.1, &known.5) == (row.0, &row.1, &row.5));
            // Job 4's deletion may be cut off.
            assert!(known || row.0 == 4, "cut at {cut}: {row:?}");
        }
        // The zeros that files are filled up with are no damage either.
        let mut zeroed = bytes.clone();
        zeroed[cut..].fill(0);
        fs::write(dir.path().join("binlog.1"), &zeroed).unwrap();
        let zeroed = read(dir.path());
        assert!(zeroed.is_ok(), "zeros from {cut}");
    }
}

#[test]
fn damage_in_an_older_file_is_told_and_the_others_are_read() {
    let dir = copy_of("moved");
    let second = dir.path().join("binlog.2");
    let mut bytes = fs::read(&second).unwrap();
    bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    fs::write(&second, &bytes).unwrap();
    let mut binlog = read(dir.path()).unwrap();
    let unread = &binlog.unread[0];
    assert_eq!((&unread.file, unread.offset, unread.bytes), (&second, 4, bytes.len() as u64 - 4));
    assert!(!unread.torn);
    assert!(outline(&mut binlog).iter().any(|row| row.1 == "bulk"));
    fs::remove_file(second).unwrap();
    assert_eq!(read(dir.path()).unwrap().missing, [2]);
}

#[test]
fn other_versions_and_other_directories_are_refused() {
    let dir = TempDir::new().unwrap();
    assert!(matches!(read(dir.path()), Err(BinlogError::None(_))));
    fs::write(dir.path().join("binlog.1"), 5u32.to_le_bytes()).unwrap();
    assert!(matches!(read(dir.path()), Err(BinlogError::Version { found: 5, .. })));
    fs::write(dir.path().join("binlog.1"), [0; 64]).unwrap();
    assert!(read(dir.path()).unwrap().jobs.is_empty());
}

/// Random flips of bits never bring the reader down, and never make it read beyond a file.
#[test]
fn flipped_bits_are_survived() {
    use rand::{Rng, SeedableRng};
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let dir = copy_of("moved");
    for _ in 0..300 {
        let number = random.random_range(1..=5);
        let path = dir.path().join(format!("binlog.{number}"));
        let original = fs::read(&path).unwrap();
        let mut bytes = original.clone();
        let at = random.random_range(0..bytes.len());
        bytes[at] ^= 1 << random.random_range(0..8);
        fs::write(&path, &bytes).unwrap();
        if let Ok(mut binlog) = read(dir.path()) {
            let jobs: Vec<Job> = binlog.jobs.values().cloned().collect();
            for job in &jobs {
                if let Ok(body) = binlog.body(job) {
                    assert_eq!(body.len(), job.len as usize);
                }
            }
        }
        fs::write(&path, &original).unwrap();
    }
}

#[test]
fn a_directory_in_use_is_told_by_its_lock() {
    let dir = TempDir::new().unwrap();
    assert!(!is_locked(dir.path()).unwrap());
    fs::write(dir.path().join("lock"), "").unwrap();
    assert!(!is_locked(dir.path()).unwrap());
}
