//! The producer against nodes that fail when they are told to: what its callers hear, and what is in the queue in the end.

mod fake;

use beanpole_client::{
    Backoff, JobId, Keys, Outcome, Producer, ProducerSettings, PutOptions, Refusal, Rejection, SettingsError,
};
use fake::{Fake, run, until};
use std::time::Duration;
use tokio::time::Instant;

const PUT: PutOptions = PutOptions { pri: 1, delay_s: 0, ttr_s: 60 };

/// Less than the deadline that [`quick`] sets, and more than a busy machine takes.
const SOON: Duration = Duration::from_secs(8);

/// Settings that lose no time.
fn quick(fake: &Fake) -> ProducerSettings {
    let backoff = Backoff { first: Duration::from_millis(4), max: Duration::from_millis(50) };
    ProducerSettings {
        tube: "t".into(),
        deadline: Duration::from_secs(10),
        connect_timeout: Duration::from_millis(200),
        reply_timeout: Duration::from_millis(200),
        reconnect: backoff,
        refused: backoff,
        seed: Some(1),
        ..ProducerSettings::new(fake.addresses())
    }
}

fn start(settings: ProducerSettings) -> Producer {
    Producer::start(settings).unwrap()
}

#[test]
fn tasks_share_one_connection_and_its_pipeline() {
    run(async {
        let fake = Fake::start(1).await;
        let producer = start(quick(&fake));
        let other = producer.in_tube("other").unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..500 {
            let producer = if number % 5 == 0 { other.clone() } else { producer.clone() };
            tasks.spawn(async move { producer.put(format!("{number:03}"), PUT).await });
        }
        let outcomes = tasks.join_all().await;
        assert!(outcomes.iter().all(|outcome| outcome.id().is_some()));
        assert_eq!(
            fake.look(|state| state.bodies()),
            (0..500).map(|n| format!("{n:03}")).collect::<Vec<_>>()
        );
        let in_other = fake.look(|state| state.jobs.values().filter(|job| job.tube == "other").count());
        assert_eq!((in_other, fake.connections(0)), (100, 1));
        assert_eq!((producer.counts().inserted, producer.counts().connects), (500, 1));
    });
}

#[test]
fn a_dead_node_is_left_for_the_next_without_an_error() {
    run(async {
        let mut fake = Fake::start(3).await;
        let producer = start(quick(&fake));
        assert_eq!(producer.put("1", PUT).await, Outcome::Inserted(JobId(1)));
        fake.kill(0).await;
        assert_eq!(producer.put("2", PUT).await, Outcome::Inserted(JobId(2)));
        fake.kill(1).await;
        assert_eq!(producer.put("3", PUT).await, Outcome::Inserted(JobId(3)));
        fake.kill(2).await;
        let put = tokio::spawn({
            let producer = producer.clone();
            async move { producer.put("4", PUT).await }
        });
        // Nobody is there; the put waits until somebody is.
        until(|| producer.counts().losses >= 3).await;
        fake.restart(1).await;
        assert_eq!(put.await.unwrap(), Outcome::Inserted(JobId(4)));
        assert_eq!(fake.look(|state| state.puts.clone()), [1, 2, 1]);
    });
}

#[test]
fn a_node_that_is_silent_is_given_up() {
    run(async {
        let fake = Fake::start(2).await;
        fake.faults(0, |faults| faults.is_silent = true);
        let producer = start(quick(&fake));
        assert_eq!(producer.put("1", PUT).await, Outcome::Inserted(JobId(1)));
        assert_eq!(fake.look(|state| state.puts.clone()), [0, 1]);
        // One that falls silent with a put under way leaves that in doubt; without a key it cannot be sent again.
        fake.faults(1, |faults| faults.is_silent = true);
        assert_eq!(producer.put("2", PUT).await, Outcome::Unknown);
    });
}

#[test]
fn the_deadline_holds_whatever_happens() {
    run(async {
        let mut fake = Fake::start(1).await;
        fake.kill(0).await;
        let deadline = Duration::from_millis(150);
        let producer = start(ProducerSettings { deadline, ..quick(&fake) });
        let begun = Instant::now();
        let Outcome::Rejected(Rejection::NotTaken(why)) = producer.put("1", PUT).await else {
            panic!("nobody is there")
        };
        assert!(why.contains("cannot connect to"), "{why}");
        assert!(begun.elapsed() >= deadline && begun.elapsed() < SOON, "{:?}", begun.elapsed());
        // And while puts are refused.
        fake.restart(0).await;
        fake.faults(0, |faults| faults.refuse = Some(("OUT_OF_MEMORY", usize::MAX)));
        let refused = producer.put("2", PUT).await;
        assert!(
            matches!(&refused, Outcome::Rejected(Rejection::NotTaken(why)) if why.contains("OUT_OF_MEMORY")),
            "{refused:?}"
        );
        assert!(fake.look(|state| state.bodies()).is_empty());
    });
}

#[test]
fn no_room_is_waited_for() {
    run(async {
        let fake = Fake::start(1).await;
        fake.faults(0, |faults| faults.refuse = Some(("OUT_OF_MEMORY", 5)));
        let producer = start(quick(&fake));
        let puts = (0..20).map(|number| {
            let producer = producer.clone();
            tokio::spawn(async move { producer.put(format!("{number:02}"), PUT).await })
        });
        for put in puts.collect::<Vec<_>>() {
            assert!(put.await.unwrap().id().is_some());
        }
        assert_eq!(producer.counts().refusals, 5);
        assert_eq!(fake.look(|state| state.jobs.len()), 20);
    });
}

#[test]
fn a_node_that_drains_or_has_no_room_is_left_for_another_one() {
    run(async {
        let fake = Fake::start(3).await;
        fake.faults(0, |faults| faults.refuse = Some(("DRAINING", usize::MAX)));
        fake.faults(1, |faults| faults.refuse = Some(("OUT_OF_MEMORY", usize::MAX)));
        let producer = start(quick(&fake));
        assert_eq!(producer.put("1", PUT).await, Outcome::Inserted(JobId(1)));
        assert_eq!(fake.look(|state| state.puts.clone()), [0, 0, 1]);
        assert!(producer.counts().refusals >= 3);
    });
}

#[test]
fn what_a_server_will_never_take_is_rejected_at_once() {
    run(async {
        let fake = Fake::start(1).await;
        fake.faults(0, |faults| faults.refuse = Some(("JOB_TOO_BIG", 1)));
        let producer = start(quick(&fake));
        let too_big = Outcome::Rejected(Rejection::Refused(Refusal::JobTooBig));
        assert_eq!(producer.put("1", PUT).await, too_big);
        let bad = producer.put_once("a key", "1", PUT).await;
        assert_eq!(bad, Outcome::Rejected(Rejection::BadKey("a key".into())));
        assert_eq!(producer.counts().rejected, 2);
        let settings = ProducerSettings::new(Vec::<String>::new());
        assert!(matches!(Producer::start(settings).unwrap_err(), SettingsError::NoAddress));
        assert!(
            matches!(producer.in_tube("-x").unwrap_err(), SettingsError::BadTubeName(name) if name == "-x")
        );
    });
}

#[test]
fn with_a_key_a_put_of_unknown_outcome_is_sent_again_and_done_once() {
    run(async {
        let fake = Fake::start(2).await;
        // The first put is carried out and not answered; so is one later on.
        fake.faults(0, |faults| faults.close_at = Some(0));
        fake.faults(1, |faults| faults.close_at = Some(3));
        let producer = start(ProducerSettings { keys: Keys::Random, ..quick(&fake) });
        for number in 1..=6 {
            assert_eq!(producer.put(number.to_string(), PUT).await, Outcome::Inserted(JobId(number)));
        }
        assert_eq!(fake.look(|state| state.bodies()), ["1", "2", "3", "4", "5", "6"]);
        assert_eq!(producer.counts().unknown, 0);
        // The caller's own key.
        let (first, again) = (producer.put_once("k", "7", PUT).await, producer.put_once("k", "7", PUT).await);
        assert_eq!((first.clone(), again), (Outcome::Inserted(JobId(7)), first));
    });
}

#[test]
fn without_a_key_doubt_is_told() {
    run(async {
        let fake = Fake::start(2).await;
        fake.faults(0, |faults| faults.close_at = Some(0));
        let producer = start(quick(&fake));
        assert_eq!(producer.put("1", PUT).await, Outcome::Unknown);
        assert!(producer.put("2", PUT).await.id().is_some());
        assert_eq!(producer.counts().unknown, 1);
    });
}

#[test]
fn a_key_is_no_promise_where_the_server_does_not_know_it() {
    run(async {
        let fake = Fake::with(2, false).await;
        let producer = start(ProducerSettings { keys: Keys::Random, ..quick(&fake) });
        assert!(producer.put("1", PUT).await.id().is_some());
        fake.faults(0, |faults| faults.close_at = Some(0));
        assert_eq!(producer.put("2", PUT).await, Outcome::Unknown);
        assert_eq!(fake.look(|state| state.bodies()), ["1", "2"]);
    });
}

#[test]
fn a_put_that_nobody_waits_for_and_that_was_not_sent_is_taken_back() {
    run(async {
        let mut fake = Fake::start(1).await;
        fake.kill(0).await;
        let producer = start(quick(&fake));
        let put = producer.put("abandoned", PUT);
        assert!(tokio::time::timeout(Duration::from_millis(20), put).await.is_err());
        fake.restart(0).await;
        assert!(producer.put("wanted", PUT).await.id().is_some());
        assert_eq!(fake.look(|state| state.bodies()), ["wanted"]);
    });
}

#[test]
fn close_waits_for_what_was_put_before() {
    run(async {
        let fake = Fake::start(1).await;
        fake.faults(0, |faults| faults.refuse = Some(("OUT_OF_MEMORY", 3)));
        let producer = start(quick(&fake));
        let handle = producer.clone();
        let put = tokio::spawn(async move { handle.put("1", PUT).await });
        until(|| producer.counts().refusals > 0).await;
        producer.clone().close().await;
        assert_eq!(put.await.unwrap(), Outcome::Inserted(JobId(1)));
        assert_eq!(producer.put("2", PUT).await, Outcome::Rejected(Rejection::Closed));
        until(|| fake.connections(0) == 0).await;
    });
}

#[test]
fn no_more_is_held_than_was_set() {
    run(async {
        let mut fake = Fake::start(1).await;
        fake.kill(0).await;
        let deadline = Duration::from_millis(100);
        let producer = start(ProducerSettings { capacity: 2, deadline, ..quick(&fake) });
        let puts = (0..6).map(|number| {
            let producer = producer.clone();
            tokio::spawn(async move { producer.put(number.to_string(), PUT).await })
        });
        let begun = Instant::now();
        for put in puts.collect::<Vec<_>>() {
            assert!(matches!(put.await.unwrap(), Outcome::Rejected(Rejection::NotTaken(_))));
        }
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        assert_eq!(producer.counts().rejected, 6);
    });
}
