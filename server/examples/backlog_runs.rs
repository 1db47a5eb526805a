//! What a backlog in sorted runs on disk would cost here, for docs/adr/010:
//! `cargo run --release -p beanpole --example backlog_runs -- DIR [MILLIONS]`
//!
//! Writes two runs of records in DIR, in blocks of 4 KiB with the first key of each in memory, merges them, looks jobs up by
//! id, and reads blocks at random and in order: from the page cache, and from the disk past it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

const BLOCK: usize = 4096;
/// Of Linux, on all processors that matter here.
const O_DIRECT: i32 = 0x4000;
/// Written between two syncs, as everywhere in the product.
const SYNC_BYTES: usize = 1 << 20;

/// What of a deep job differs from the one before: id, entry, offset and length of its body, and when it was put.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
struct Job {
    id: u64,
    entry: u64,
    offset: u32,
    len: u32,
    created: u64,
}

/// Every second job of a backlog of ten jobs an entry: what two runs of one tube have.
fn job(number: u64, which: u64) -> Job {
    let id = number * 2 + which + 1;
    Job { id, entry: 1000 + id / 10, offset: 500 + (id % 10) as u32 * 1030, len: 1030, created: id / 10 * 25 }
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn read_varint(bytes: &[u8], at: &mut usize) -> u64 {
    let (mut number, mut shift) = (0, 0);
    loop {
        let byte = bytes[*at];
        *at += 1;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return number;
        }
        shift += 7;
    }
}

/// Cuts records into blocks; a block begins with a whole record, and zero ends it.
struct Writer {
    file: File,
    block: Vec<u8>,
    before: Job,
    unsynced: Vec<u8>,
    first: Vec<u64>,
}

impl Writer {
    fn create(path: &Path) -> io::Result<Self> {
        let file = File::create(path)?;
        Ok(Writer {
            file,
            block: Vec::new(),
            before: Job::default(),
            unsynced: Vec::new(),
            first: Vec::new(),
        })
    }

    fn add(&mut self, job: &Job) -> io::Result<()> {
        if self.block.len() > BLOCK - 40 {
            self.end_block()?;
        }
        if self.block.is_empty() {
            self.before = Job::default();
            self.first.push(job.id);
        }
        let Job { id, entry, offset, len, created } = self.before;
        varint(&mut self.block, job.id - id);
        varint(&mut self.block, job.entry - entry);
        if job.entry != entry {
            varint(&mut self.block, job.created - created);
        }
        varint(&mut self.block, u64::from(job.offset.wrapping_sub(offset).wrapping_sub(len)));
        varint(&mut self.block, u64::from(job.len));
        self.before = *job;
        Ok(())
    }

    fn end_block(&mut self) -> io::Result<()> {
        self.block.resize(BLOCK, 0);
        self.unsynced.append(&mut self.block);
        if self.unsynced.len() == SYNC_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.unsynced)?;
        self.unsynced.clear();
        self.file.sync_data()
    }

    /// Answers the first id of each block.
    fn finish(mut self) -> io::Result<Vec<u64>> {
        self.end_block()?;
        self.flush()?;
        Ok(self.first)
    }
}

/// Passes the jobs of a block to `f`.
fn read_block(block: &[u8], mut f: impl FnMut(Job)) {
    let (mut at, mut job) = (0, Job::default());
    while at < block.len() && block[at] != 0 {
        job.id += read_varint(block, &mut at);
        let entry = job.entry + read_varint(block, &mut at);
        if entry != job.entry {
            job.created += read_varint(block, &mut at);
        }
        job.entry = entry;
        let step = read_varint(block, &mut at) as u32;
        job.offset = job.offset.wrapping_add(job.len).wrapping_add(step);
        job.len = read_varint(block, &mut at) as u32;
        f(job);
    }
}

/// Reads a run from start to end, a piece of moderate size at a time.
struct Reader {
    file: File,
    piece: Vec<u8>,
    jobs: std::collections::VecDeque<Job>,
}

impl Reader {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Reader { file: File::open(path)?, piece: Vec::new(), jobs: Default::default() })
    }

    fn next(&mut self) -> io::Result<Option<Job>> {
        if self.jobs.is_empty() {
            self.piece.clear();
            (&mut self.file).take(256 << 10).read_to_end(&mut self.piece)?;
            for block in self.piece.chunks(BLOCK) {
                read_block(block, |job| self.jobs.push_back(job));
            }
        }
        Ok(self.jobs.pop_front())
    }
}

fn report(what: &str, count: f64, unit: &str, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    println!("{what:<58} {:>10.2} {unit}/s   {:>9.3} us each", count / seconds, seconds * 1e6 / count);
}

fn write_run(path: &Path, jobs: u64, which: u64) -> io::Result<Vec<u64>> {
    let start = Instant::now();
    let mut out = Writer::create(path)?;
    for number in 0..jobs {
        out.add(&job(number, which))?;
    }
    let first = out.finish()?;
    report("write a run, synced every MiB: jobs", jobs as f64, "", start);
    let bytes = path.metadata()?.len() as f64;
    let index = first.len() as f64 * 8.0;
    println!(
        "  {:.2} bytes a job on disk, {:.3} in the sparse index",
        bytes / jobs as f64,
        index / jobs as f64
    );
    Ok(first)
}

fn merge(from: [&Path; 2], to: &Path) -> io::Result<(u64, Vec<u64>)> {
    let start = Instant::now();
    let [mut left, mut right] = [Reader::open(from[0])?, Reader::open(from[1])?];
    let mut out = Writer::create(to)?;
    let (mut a, mut b) = (left.next()?, right.next()?);
    let mut jobs = 0;
    loop {
        let take_left = match (&a, &b) {
            (None, None) => break,
            (Some(a), Some(b)) => a < b,
            (a, _) => a.is_some(),
        };
        let side = if take_left { &mut a } else { &mut b };
        out.add(side.as_ref().expect("this side has one"))?;
        *side = if take_left { left.next()? } else { right.next()? };
        jobs += 1;
    }
    let first = out.finish()?;
    report("merge two runs into a third, synced every MiB: jobs", jobs as f64, "", start);
    Ok((jobs, first))
}

/// A simple generator: the same numbers each time.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn lookups(path: &Path, first: &[u64], jobs: u64) -> io::Result<()> {
    const LOOKUPS: u64 = 200_000;
    let file = File::open(path)?;
    let mut block = vec![0; BLOCK];
    let mut state = 0x9E37_79B9_7F4A_7C15;
    let start = Instant::now();
    for _ in 0..LOOKUPS {
        let id = random(&mut state) % jobs + 1;
        let at = first.partition_point(|first| *first <= id) - 1;
        file.read_exact_at(&mut block, (at * BLOCK) as u64)?;
        let mut found = None;
        read_block(&block, |job| {
            if job.id == id {
                found = Some(job);
            }
        });
        assert!(found.is_some(), "job {id}");
    }
    report("look up an id, its block in the page cache: lookups", LOOKUPS as f64, "", start);
    Ok(())
}

/// A block at a place that a read past the page cache can go to.
fn aligned() -> (Vec<u8>, usize) {
    let buffer = vec![0u8; 2 * BLOCK];
    let skip = buffer.as_ptr().align_offset(BLOCK);
    (buffer, skip)
}

fn cold_reads(path: &Path, blocks: u64, threads: u64) -> io::Result<()> {
    const READS: u64 = 20_000;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (1..=threads)
            .map(|thread| {
                scope.spawn(move || -> io::Result<()> {
                    let file = OpenOptions::new().read(true).custom_flags(O_DIRECT).open(path)?;
                    let (mut buffer, skip) = aligned();
                    let mut state = thread * 0x9E37_79B9_7F4A_7C15;
                    for _ in 0..READS / threads {
                        let at = random(&mut state) % blocks * BLOCK as u64;
                        file.read_exact_at(&mut buffer[skip..skip + BLOCK], at)?;
                    }
                    Ok(())
                })
            })
            .collect();
        readers.into_iter().try_for_each(|reader| reader.join().expect("a reader that does not panic"))
    })?;
    report(&format!("read 4 KiB past the cache, {threads} at once: reads"), READS as f64, "", start);
    Ok(())
}

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().expect("DIR, on the disk that is to be measured"));
    let jobs = args.next().map_or(10, |millions| millions.parse().expect("MILLIONS")) * 500_000;
    let [left, right, merged] = ["left.run", "right.run", "merged.run"].map(|name| dir.join(name));
    write_run(&left, jobs, 0)?;
    write_run(&right, jobs, 1)?;
    let (total, first) = merge([&left, &right], &merged)?;
    assert_eq!(total, jobs * 2);
    let start = Instant::now();
    let mut reader = Reader::open(&merged)?;
    let mut read = 0;
    while reader.next()?.is_some() {
        read += 1;
    }
    report("read a run in order, from the page cache: jobs", f64::from(read), "", start);
    lookups(&merged, &first, total)?;
    let blocks = merged.metadata()?.len() / BLOCK as u64;
    for threads in [1, 8, 32] {
        cold_reads(&merged, blocks, threads)?;
    }
    for path in [left, right, merged] {
        std::fs::remove_file(path)?;
    }
    Ok(())
}
