//! Error handling that feeds itself: a worker answers each bad job by putting two errors where it takes its jobs from, and each
//! of them is a bad job too. Without a limit they grow for as long as anybody works on them; with `max-hops` they end.
//! `cargo test -p beanpole-tests --test incidents_loop -- --nocapture` prints the figures.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use beanpole_tests::incidents::{Stage, cycle, produce, ready, work};
use beanpole_tests::server::{Server, Setup};
use beanpole_tests::{operator, wait};

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

/// How long good jobs come.
const RUN: Duration = Duration::from_secs(2);
/// Good jobs a second.
const RATE: u32 = 300;
const WORKERS: usize = 4;
/// Hops that the policy allows.
const HOPS: u32 = 5;
/// Errors that one bad job makes under it: two, each of which makes two, and so on.
const BOUND: u64 = (1 << (HOPS + 1)) - 2;

#[derive(Debug)]
struct Figures {
    /// Good jobs put, and of these done.
    good: (u64, u64),
    /// Errors that were put by workers, and those that were refused.
    errors: (u64, u64),
    /// Jobs still ready in the end.
    left: u64,
    /// Cycles a second in a tube that has nothing to do with it.
    unrelated: u64,
    /// How long after the bad job a loop was suspected.
    suspected: Option<Duration>,
}

/// One run with these words for `beanpole tube policy set`, if there are any, and one bad job or none.
fn run(policy: Option<&str>, bad: bool) -> Figures {
    let server = Server::start(&Setup::beanpole(BIN).in_memory());
    let addr = server.addr();
    if let Some(words) = policy {
        operator::succeed(BIN, &server.admin_addr().to_string(), &format!("policy set {words}"));
    }
    let (done, inserted, refused) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let mut observer = server.connect();
    // Good jobs come during the first; workers work on until the second is over.
    let (stage, work_on) = (Stage::default(), Stage::default());
    let (put, cycles, suspected) = std::thread::scope(|scope| {
        let curtain = stage.curtain();
        let last = work_on.curtain();
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| {
                let (stage, done, inserted, refused) = (&work_on, &done, &inserted, &refused);
                scope.spawn(move || {
                    work(stage, addr, &["work"], |connection, job| {
                        if job.text() == "good" {
                            done.fetch_add(1, Ordering::Relaxed);
                            return Ok(());
                        }
                        connection.command("use work")?;
                        for _ in 0..2 {
                            let taken = connection.put(100, 0, 600, b"error")?.word() == "INSERTED";
                            if taken { inserted } else { refused }.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(())
                    })
                })
            })
            .collect();
        let producer = scope.spawn(|| produce(&stage, addr, "work", b"good", RATE));
        let unrelated = scope.spawn(|| cycle(&stage, addr, "mail"));
        observer.command("use work").unwrap();
        let begun = Instant::now();
        if bad {
            assert_eq!(observer.put(100, 0, 600, b"bad").unwrap().word(), "INSERTED");
        }
        let suspected = wait::until_within(RUN, || {
            (bad && server.metric("beanpole_loops_suspected") > 0).then(|| begun.elapsed())
        });
        wait::until_within(RUN.saturating_sub(begun.elapsed()), || None::<()>);
        drop(curtain);
        let put = producer.join().unwrap().unwrap();
        let cycles = unrelated.join().unwrap().unwrap();
        // What is not done within a moment after the last good job came will not be.
        wait::until_within(Duration::from_secs(1), || {
            (ready(&mut observer, "work").unwrap() == 0).then_some(())
        });
        drop(last);
        for worker in workers {
            worker.join().unwrap().unwrap();
        }
        (put, cycles, suspected)
    });
    let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
    Figures {
        good: (put, count(&done)),
        errors: (count(&inserted), count(&refused)),
        left: ready(&mut observer, "work").unwrap(),
        unrelated: cycles / RUN.as_secs(),
        suspected,
    }
}

#[test]
fn a_loop_that_doubles_ends_at_the_hops_that_are_allowed_and_hurts_nobody() {
    let normal = run(None, false);
    println!("no bad job:           {normal:?}");
    let limited = run(Some(&format!("work --max-hops {HOPS}")), true);
    println!("one, max-hops {HOPS}:      {limited:?}");
    assert_eq!(limited.errors, (BOUND, 2 << HOPS), "two for each, {HOPS} times");
    assert_eq!(limited.good.0, limited.good.1, "every good job was done");
    assert_eq!(limited.left, 0);
    assert!(limited.suspected.is_some(), "it was not suspected");
    // On a machine that others use too; on a quiet one it is what it is without the bad job.
    assert!(limited.unrelated * 2 >= normal.unrelated, "{} of {}", limited.unrelated, normal.unrelated);
}

#[test]
fn control_a_loop_that_doubles_grows_without_the_limit() {
    let control = run(None, true);
    println!("one, without limit:   {control:?}");
    assert!(control.errors.0 > 5 * BOUND, "{} errors are no loop", control.errors.0);
    assert!(control.left > BOUND, "they go on: {} are left", control.left);
    assert!(control.suspected.is_some(), "it was not suspected");
}
