//! How fast the queue engine is, and how much memory a job takes in it:
//! `cargo run --release -p beanpole --example engine_speed`, and with a number of millions of jobs only the memory that so many
//! take, and what an image of them costs: `... --example engine_speed -- 10`
//!
//! The engine is compiled into this program by itself, so that it runs under an allocator that counts every
//! byte.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use beanpole_raft::Payload;
use bytes::Bytes;

#[path = "../src/queue/mod.rs"]
#[allow(dead_code, unused_imports)]
mod queue;

use queue::{BatchBuilder, Effects, Engine, Gateway, SessionId};

/// The system's allocator, with a count of the bytes that are out.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; counting does not touch the memory.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: as the trait demands of the caller.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    // SAFETY: as the trait demands of the caller.
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const GATEWAY: Gateway = Gateway { node: 1, epoch: 1 };

/// An engine, and what it takes to feed it.
struct Feed {
    engine: Engine,
    effects: Effects,
    index: u64,
    sequence: u64,
    next_id: u64,
}

impl Feed {
    fn new() -> Self {
        let mut feed =
            Feed { engine: Engine::new(), effects: Effects::default(), index: 1, sequence: 0, next_id: 1 };
        let mut batch = BatchBuilder::new(1, 1);
        batch.section(Gateway { node: 1, epoch: 0 }, 0);
        batch.gateway_up(1);
        feed.engine.apply(1, &batch.finish(), &mut feed.effects);
        feed
    }

    fn batch(&mut self) -> BatchBuilder {
        self.sequence += 1;
        let now = self.sequence * 1000;
        let mut batch = BatchBuilder::new(now, now);
        batch.section(GATEWAY, self.sequence);
        batch
    }

    fn apply(&mut self, payload: &Payload) {
        self.index += 1;
        self.effects.clear();
        self.engine.apply(self.index, payload, &mut self.effects);
        black_box(&self.effects);
    }

    /// One entry of puts of 200 bytes.
    fn puts(&mut self, count: u64, mut tube: impl FnMut(u64) -> String, mut pri: impl FnMut(u64) -> u32) {
        let body = Bytes::from([[b'x'; 200].as_slice(), b"\r\n"].concat());
        let mut batch = self.batch();
        for id in self.next_id..self.next_id + count {
            batch.put(1, tube(id).as_bytes(), pri(id), 0, 60, body.clone());
        }
        self.next_id += count;
        let payload = batch.finish();
        self.apply(&payload);
    }
}

fn session(conn: u64) -> SessionId {
    SessionId { node: 1, epoch: 1, conn }
}

/// Entries of `per_entry` cycles: so many puts and offers in one, the deletes in the next. Nanoseconds per
/// cycle.
fn cycles(feed: &mut Feed, cycles: u64, per_entry: u64) -> f64 {
    let body = Bytes::from([[b'x'; 256].as_slice(), b"\r\n"].concat());
    let mut nanos = 0;
    let mut done = 0;
    let mut want = 0;
    while done < cycles {
        want += 1;
        let mut batch = feed.batch();
        for conn in 0..per_entry {
            batch.put(conn, b"default", 1024, 0, 60, body.clone());
            batch.offer(session(conn), want, [b"default".as_slice()]);
        }
        let puts = batch.finish();
        let start = Instant::now();
        feed.apply(&puts);
        nanos += start.elapsed().as_nanos();
        assert_eq!(feed.effects.handouts.len() as u64, per_entry);
        let held: Vec<(u64, u64)> =
            feed.effects.handouts.iter().map(|handout| (handout.session.conn, handout.id)).collect();
        let mut batch = feed.batch();
        for (conn, id) in held {
            batch.delete(conn, id);
        }
        let deletes = batch.finish();
        let start = Instant::now();
        feed.apply(&deletes);
        nanos += start.elapsed().as_nanos();
        done += per_entry;
    }
    feed.next_id += done;
    nanos as f64 / done as f64
}

fn speed() {
    println!("put + reserve + delete, decoding included:");
    for (backlog, per_entry) in [(0, 64), (0, 1), (1_000, 64), (1_000_000, 64)] {
        let mut feed = Feed::new();
        for _ in 0..backlog / 1000 {
            feed.puts(1000, |_| "default".to_owned(), |_| 1024);
        }
        cycles(&mut feed, 20_000, per_entry);
        let calls = CALLS.load(Ordering::Relaxed);
        let nanos = cycles(&mut feed, 400_000, per_entry);
        let calls = (CALLS.load(Ordering::Relaxed) - calls) as f64 / 400_000.0;
        println!(
            "  {backlog:>9} ready, {per_entry:>3} cycles per entry: {nanos:>6.0} ns, {calls:.1} allocations (with the batches')"
        );
    }
}

fn memory(jobs: u64) {
    println!("heap of {jobs} ready jobs:");
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let one = |_: u64| "default".to_owned();
    let many = |id: u64| format!("tube-{}", id % 100_000);
    measure_memory(jobs, "one tube, one priority", one, |_| 1024);
    measure_memory(jobs, "one tube, random priorities", one, move |_| next() as u32);
    measure_memory(jobs, "100,000 tubes", many, |_| 1024);
}

fn measure_memory(
    jobs: u64,
    what: &str,
    mut tube: impl FnMut(u64) -> String,
    mut pri: impl FnMut(u64) -> u32,
) {
    let mut feed = Feed::new();
    let before = ALLOCATED.load(Ordering::Relaxed);
    let start = Instant::now();
    for _ in 0..jobs / 1000 {
        feed.puts(1000, &mut tube, &mut pri);
    }
    let put = start.elapsed().as_nanos() as f64 / jobs as f64;
    feed.effects = Effects::default();
    let heap = ALLOCATED.load(Ordering::Relaxed) - before;
    println!("  {what}: {:.1} bytes per job, {put:.0} ns per put", heap as f64 / jobs as f64);
    let image = measure_image(&mut feed, jobs);
    measure_restore(&feed, &image, heap);
    drop(image);
    measure_changes(&mut feed, jobs, heap);

    let left_over = feed.engine.totals().held();
    let start = Instant::now();
    drain(&mut feed, jobs);
    let nanos = start.elapsed().as_nanos() as f64 / left_over as f64;
    feed.effects = Effects::default();
    let left = ALLOCATED.load(Ordering::Relaxed) - before;
    println!("    deleted in {nanos:.0} ns per job; {} KiB of heap are left", left >> 10);
}

/// Processor time of this thread, in microseconds: on a busy machine clocks tell more than what was done.
fn cpu_us() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to `time` and to nothing else.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(done, 0, "every thread has this clock");
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

fn measure_image(feed: &mut Feed, jobs: u64) -> Vec<u8> {
    let (mut image, mut slice) = (Vec::new(), Vec::new());
    let mut cursor = feed.engine.begin_snapshot();
    let (mut slices, mut took, mut longest, mut more) = (0, 0, 0, true);
    while more {
        slice.clear();
        let start = cpu_us();
        more = feed.engine.snapshot_slice(&mut cursor, &mut slice, &mut |_| {});
        let spent = cpu_us() - start;
        (took, longest) = (took + spent, longest.max(spent));
        slices += 1;
        image.extend_from_slice(&slice);
    }
    feed.engine.end_snapshot(cursor);
    let took = took / 1000;
    println!(
        "    image: {:.1} bytes per job, {took} ms in {slices} slices (longest {longest} us)",
        image.len() as f64 / jobs as f64
    );
    image
}

fn measure_restore(feed: &Feed, image: &[u8], heap: usize) {
    let before = ALLOCATED.load(Ordering::Relaxed);
    let start = cpu_us();
    let restored = Engine::restore(&mut &*image).expect("an image that was just written");
    let back = (cpu_us() - start) / 1000;
    let held = ALLOCATED.load(Ordering::Relaxed) - before;
    assert_eq!(restored.totals(), feed.engine.totals());
    println!("    restored in {back} ms, to {:.0} % of the heap", held as f64 * 100.0 / heap as f64);
}

/// An image while jobs all over it are deleted, 2,000 after every fifth slice: more than a node can.
fn measure_changes(feed: &mut Feed, jobs: u64, heap: usize) {
    const DELETES: u64 = 2000;
    let mut cursor = feed.engine.begin_snapshot();
    let (mut slice, mut most, mut deleted, mut spent) = (Vec::new(), 0, 0, 0);
    let mut slices = 0;
    while feed.engine.snapshot_slice(&mut cursor, &mut slice, &mut |_| {}) {
        slice.clear();
        slices += 1;
        if slices % 5 == 0 {
            let mut batch = feed.batch();
            for number in deleted..deleted + DELETES {
                batch.delete(1, number * 7919 % jobs + 1);
            }
            deleted += DELETES;
            let payload = batch.finish();
            let start = cpu_us();
            feed.apply(&payload);
            spent += cpu_us() - start;
        }
        most = most.max(feed.engine.saving_bytes());
    }
    feed.engine.end_snapshot(cursor);
    let (kept, nanos) = (most as f64 * 100.0 / heap as f64, spent as f64 * 1000.0 / deleted as f64);
    println!(
        "    {deleted} jobs deleted in no order while an image was taken, {nanos:.0} ns each: \
         {} KiB ({kept:.1} % of the heap) kept for it at most",
        most >> 10
    );
}

/// Deletes every job.
fn drain(feed: &mut Feed, jobs: u64) {
    for first in (1..=jobs).step_by(1000) {
        let mut batch = feed.batch();
        for id in first..first + 1000 {
            batch.delete(1, id);
        }
        let payload = batch.finish();
        feed.apply(&payload);
    }
    assert_eq!(feed.engine.totals().held(), 0);
}

fn main() {
    match std::env::args().nth(1) {
        Some(millions) => memory(millions.parse::<u64>().expect("millions of jobs") * 1_000_000),
        None => {
            speed();
            memory(1_000_000);
        }
    }
}
