//! A producer with a spool, against nodes that are away, have no room, or end in the middle of a replay.

mod fake;

use beanpole_client::{
    Backoff, Fsync, Outcome, Producer, ProducerSettings, PutOptions, Rejection, SettingsError, SpoolCounts,
    SpoolError, SpoolSettings,
};
use fake::{At, Fake, run, until};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::Instant;

const PUT: PutOptions = PutOptions { pri: 1, delay_s: 0, ttr_s: 60 };

fn quick(fake: &Fake, directory: &TempDir) -> ProducerSettings {
    let backoff = Backoff { first: Duration::from_millis(4), max: Duration::from_millis(50) };
    let spool = SpoolSettings {
        patience: Duration::from_millis(100),
        rate_first: 500,
        rate_max: 2000,
        ..SpoolSettings::new(directory.path())
    };
    ProducerSettings {
        tube: "t".into(),
        connect_timeout: Duration::from_millis(200),
        reply_timeout: Duration::from_millis(300),
        reconnect: backoff,
        refused: backoff,
        spool: Some(spool),
        seed: Some(1),
        ..ProducerSettings::new(fake.addresses())
    }
}

fn start(settings: ProducerSettings) -> Producer {
    Producer::start(settings).unwrap()
}

fn counts(producer: &Producer) -> SpoolCounts {
    producer.spool_counts().unwrap()
}

fn numbered(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| format!("{number:03}")).collect()
}

#[test]
fn puts_are_kept_while_nobody_is_there_and_replayed_in_order() {
    run(async {
        let (mut fake, directory) = (Fake::start(2).await, TempDir::new().unwrap());
        fake.kill(0).await;
        fake.kill(1).await;
        let producer = start(quick(&fake, &directory));
        let begun = Instant::now();
        for body in numbered(0..100) {
            assert_eq!(producer.put(body, PUT).await, Outcome::Spooled);
        }
        // The first one waited for a node, the others did not.
        assert!(begun.elapsed() >= Duration::from_millis(100) && begun.elapsed() < Duration::from_secs(5));
        assert_eq!((counts(&producer).spooled, counts(&producer).unfinished), (100, 100));
        fake.restart(1).await;
        until(|| counts(&producer).unfinished == 0).await;
        let bodies = fake.look(|state| state.jobs.values().map(|job| job.body.clone()).collect::<Vec<_>>());
        assert_eq!(bodies, numbered(0..100));
        assert!(producer.put("direct", PUT).await.id().is_some());
        let SpoolCounts { replayed, dropped_old, dropped_refused, damaged, .. } = counts(&producer);
        assert_eq!((replayed, dropped_old, dropped_refused, damaged), (100, 0, 0, 0));
        assert_eq!(producer.counts().spooled, 100);
    });
}

#[test]
fn what_was_kept_is_put_by_the_next_start_and_crashes_in_a_replay_double_nothing() {
    run(async {
        let (mut fake, directory) = (Fake::start(1).await, TempDir::new().unwrap());
        fake.kill(0).await;
        let producer = start(quick(&fake, &directory));
        for body in numbered(0..60) {
            assert_eq!(producer.put(body, PUT).await, Outcome::Spooled);
        }
        producer.close().await;
        fake.restart(0).await;
        // Some are replayed, and then the producer goes without a word, and what it noted of them is lost.
        let mut done = 0;
        for _ in 0..4 {
            let producer = start(quick(&fake, &directory));
            until(|| counts(&producer).replayed >= 5).await;
            done = counts(&producer).replayed.max(done);
            producer.close().await;
            std::fs::remove_file(directory.path().join("cursor")).unwrap();
        }
        assert!(done >= 5);
        let producer = start(quick(&fake, &directory));
        until(|| counts(&producer).unfinished == 0).await;
        assert_eq!(fake.look(|state| state.bodies()), numbered(0..60));
    });
}

#[test]
fn a_put_in_doubt_goes_to_the_spool_and_is_there_once() {
    run(async {
        let (fake, directory) = (Fake::start(1).await, TempDir::new().unwrap());
        let producer = start(quick(&fake, &directory));
        assert!(producer.put("000", PUT).await.id().is_some());
        // The node carries the next one out, does not answer, and is silent from then on.
        fake.faults(0, |faults| (faults.close_at, faults.is_silent) = (Some(0), false));
        let put = tokio::spawn({
            let producer = producer.clone();
            async move { producer.put("001", PUT).await }
        });
        until(|| fake.look(|state| state.jobs.len() == 2)).await;
        fake.faults(0, |faults| faults.is_silent = true);
        let outcome = put.await.unwrap();
        assert!(matches!(outcome, Outcome::Spooled | Outcome::Inserted(_)), "{outcome:?}");
        assert_eq!(producer.put("002", PUT).await, Outcome::Spooled);
        fake.cut(0).await;
        fake.faults(0, |faults| faults.is_silent = false);
        until(|| counts(&producer).unfinished == 0).await;
        assert_eq!(fake.look(|state| state.bodies()), numbered(0..3));
    });
}

#[test]
fn a_server_without_keys_gets_plain_puts_at_least_once() {
    run(async {
        let (mut fake, directory) = (Fake::with(1, false).await, TempDir::new().unwrap());
        fake.kill(0).await;
        let producer = start(quick(&fake, &directory));
        for body in numbered(0..10) {
            assert_eq!(producer.put(body, PUT).await, Outcome::Spooled);
        }
        fake.faults(0, |faults| faults.close_at = Some(4));
        fake.restart(0).await;
        until(|| counts(&producer).unfinished == 0).await;
        let mut bodies = fake.look(|state| state.bodies());
        assert_eq!(bodies.len(), 11, "one was carried out and not answered");
        bodies.dedup();
        assert_eq!(bodies, numbered(0..10));
    });
}

#[test]
fn a_replay_that_is_refused_for_want_of_room_goes_on_later_and_what_is_never_taken_is_counted() {
    run(async {
        let (mut fake, directory) = (Fake::start(1).await, TempDir::new().unwrap());
        fake.kill(0).await;
        let producer = start(quick(&fake, &directory));
        for body in numbered(0..20) {
            assert_eq!(producer.put(body, PUT).await, Outcome::Spooled);
        }
        fake.faults(0, |faults| faults.refuse = Some(("OUT_OF_MEMORY", 4)));
        fake.restart(0).await;
        until(|| counts(&producer).unfinished == 0).await;
        assert_eq!(fake.look(|state| state.bodies()), numbered(0..20));
        fake.kill(0).await;
        assert_eq!(producer.put("too big", PUT).await, Outcome::Spooled);
        fake.faults(0, |faults| faults.refuse = Some(("JOB_TOO_BIG", 1)));
        fake.restart(0).await;
        until(|| counts(&producer).dropped_refused == 1).await;
        assert_eq!(counts(&producer).unfinished, 0);
    });
}

#[test]
fn what_has_passed_of_a_delay_has_passed() {
    run(async {
        let (mut fake, directory) = (Fake::start(1).await, TempDir::new().unwrap());
        fake.kill(0).await;
        let producer = start(quick(&fake, &directory));
        let delayed = |delay_s| PutOptions { delay_s, ..PUT };
        assert_eq!(producer.put("1", delayed(1)).await, Outcome::Spooled);
        assert_eq!(producer.put("2", delayed(1000)).await, Outcome::Spooled);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        fake.restart(0).await;
        until(|| counts(&producer).unfinished == 0).await;
        fake.look(|state| {
            let at = |id: u64| state.jobs[&id].at;
            assert_eq!(at(1), At::Ready);
            let At::Delayed(until) = at(2) else { panic!("{:?}", at(2)) };
            let left = until - Instant::now();
            assert!(left < Duration::from_secs(1000) && left > Duration::from_secs(980), "{left:?}");
        });
    });
}

#[test]
fn a_full_spool_says_so_and_a_lazy_one_is_synced_at_the_end() {
    run(async {
        let (mut fake, directory) = (Fake::start(1).await, TempDir::new().unwrap());
        fake.kill(0).await;
        let mut settings = quick(&fake, &directory);
        let fsync = Fsync::Every(Duration::from_millis(5));
        settings.spool = settings.spool.map(|spool| SpoolSettings { bytes_max: 2000, fsync, ..spool });
        let producer = start(settings.clone());
        let mut kept = 0;
        let refused = loop {
            let outcome = producer.put("x".repeat(100), PUT).await;
            if outcome != Outcome::Spooled {
                break outcome;
            }
            kept += 1;
        };
        assert_eq!(refused, Outcome::Rejected(Rejection::SpoolFull));
        assert!((10..20).contains(&kept), "{kept}");
        assert_eq!(counts(&producer).refused_full, 1);
        let second = Producer::start(settings.clone()).unwrap_err();
        assert!(matches!(second, SettingsError::Spool(SpoolError::InUse { .. })), "{second}");
        producer.close().await;
        assert_eq!(counts(&start(settings)).unfinished, kept);
    });
}
