//! The worker against nodes that fail when they are told to: what becomes of each job.

mod fake;

use beanpole_client::{
    Backoff, Delivery, Hook, Retries, SettingsError, Verdict, Worker, WorkerEvent, WorkerSettings,
    WorkerState,
};
use fake::{At, Fake, run, until};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Settings that lose no time.
fn quick(fake: &Fake) -> WorkerSettings {
    WorkerSettings {
        tubes: vec!["t".into()],
        wait: Duration::from_secs(1),
        connect_timeout: Duration::from_millis(200),
        reply_timeout: Duration::from_secs(1),
        reconnect: Backoff { first: Duration::from_millis(4), max: Duration::from_millis(50) },
        seed: Some(1),
        ..WorkerSettings::new(fake.addresses())
    }
}

fn put(fake: &Fake, tube: &str, jobs: usize) {
    fake.look(|state| {
        for number in 0..jobs {
            state.add(tube, &format!("{number:03}"), 5, 0, 60);
        }
    });
}

fn text(job: &Delivery) -> String {
    String::from_utf8(job.body.to_vec()).unwrap()
}

/// A worker that only says Done, and what it has seen.
fn doing(settings: WorkerSettings) -> (Worker, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let notes = seen.clone();
    let worker = Worker::start(settings, move |job: Delivery| {
        notes.lock().unwrap().push(text(&job));
        async { Verdict::Done }
    });
    (worker.unwrap(), seen)
}

#[test]
fn jobs_are_done_each_once_and_deleted() {
    run(async {
        let fake = Fake::start(1).await;
        put(&fake, "t", 100);
        put(&fake, "other", 1);
        let (worker, seen) = doing(quick(&fake));
        until(|| worker.counts().done == 100).await;
        assert_eq!((worker.busy(), worker.state()), (0, WorkerState::Running));
        let counts = worker.stop(Duration::from_secs(5)).await;
        assert_eq!((counts.started, counts.lost, counts.disconnects), (100, 0, 0));
        let mut seen = seen.lock().unwrap().clone();
        seen.sort();
        assert_eq!(seen, (0..100).map(|number| format!("{number:03}")).collect::<Vec<_>>());
        assert_eq!(fake.look(|state| state.jobs.len()), 1, "default and other are not watched");
    });
}

#[test]
fn a_verdict_decides_what_becomes_of_a_job() {
    run(async {
        let fake = Fake::start(1).await;
        fake.look(|state| ["retry", "later", "bury", "error"].map(|body| state.add("t", body, 7, 0, 60)));
        let retries = Retries {
            backoff: Backoff { first: Duration::from_secs(100), max: Duration::from_secs(100) },
            ..Retries::default()
        };
        let worker = Worker::start(WorkerSettings { retries, ..quick(&fake) }, async |job: Delivery| {
            assert_eq!((job.info.pri, job.info.attempt, job.info.tube.as_str()), (7, 1, "t"));
            match text(&job).as_str() {
                "retry" => Verdict::Retry { after: None },
                "later" => Verdict::Retry { after: Some(Duration::from_secs(1000)) },
                "bury" => Verdict::Bury,
                _ => Verdict::from(Err("it did not work")),
            }
        });
        let worker = worker.unwrap();
        until(|| worker.counts().retried == 3 && worker.counts().buried == 1).await;
        let now = tokio::time::Instant::now();
        fake.look(|state| {
            for job in state.jobs.values() {
                let delay = match job.at {
                    At::Delayed(until) => (until - now).as_secs(),
                    At::Buried => 0,
                    At::Ready | At::Reserved { .. } => panic!("{job:?}"),
                };
                let expected = match job.body.as_str() {
                    "bury" => 0..=0,
                    "later" => 990..=1000,
                    _ => 40..=100,
                };
                assert!(expected.contains(&delay) && job.pri == 7, "{job:?}: {delay}");
            }
        });
    });
}

#[test]
fn a_job_that_fails_or_panics_is_tried_so_often_and_then_buried() {
    run(async {
        let fake = Fake::start(1).await;
        fake.look(|state| ["panics", "fails"].map(|body| state.add("t", body, 7, 0, 60)));
        let none = Backoff { first: Duration::ZERO, max: Duration::ZERO };
        let retries = Retries { backoff: none, attempts_max: 3 };
        let said = Arc::new(Mutex::new(Vec::new()));
        let notes = said.clone();
        let hook = Hook::new(move |event| {
            if let WorkerEvent::Panicked { job, message } = event {
                notes.lock().unwrap().push(format!("{} {message}", job.attempt));
            }
        });
        let worker =
            Worker::start(WorkerSettings { retries, hook, ..quick(&fake) }, async |job: Delivery| {
                assert!(text(&job) != "panics", "bad job");
                Verdict::Retry { after: None }
            });
        let worker = worker.unwrap();
        until(|| worker.counts().buried == 2).await;
        let counts = worker.stop(Duration::from_secs(1)).await;
        assert_eq!((counts.started, counts.panicked, counts.retried), (6, 3, 4));
        fake.look(|state| assert!(state.jobs.values().all(|job| job.at == At::Buried && job.reserves == 3)));
        assert_eq!(*said.lock().unwrap(), ["1 bad job", "2 bad job", "3 bad job"]);
    });
}

#[test]
fn a_long_job_is_touched_before_its_time_is_over() {
    run(async {
        let fake = Fake::start(1).await;
        fake.look(|state| state.add("t", "long", 1, 0, 1));
        let gate = Arc::new(Semaphore::new(0));
        let worker = Worker::start(quick(&fake), {
            let gate = gate.clone();
            move |_job: Delivery| {
                let gate = gate.clone();
                async move { gate.acquire().await.unwrap().forget() }
            }
        });
        let worker = worker.unwrap();
        until(|| fake.look(|state| state.jobs[&1].touches >= 3)).await;
        assert_eq!(fake.look(|state| state.jobs[&1].reserves), 1);
        gate.add_permits(1);
        until(|| worker.counts().done == 1).await;
        assert_eq!(worker.counts().started, 1);
    });
}

#[test]
fn any_one_node_may_be_down_and_the_preferred_one_is_returned_to() {
    run(async {
        let mut fake = Fake::start(3).await;
        let settings = WorkerSettings { concurrency: 3, wait: Duration::from_secs(1), ..quick(&fake) };
        let (worker, _) = doing(settings);
        let mut done = 0;
        for node in [0, 1, 2, 0] {
            fake.kill(node).await;
            put(&fake, "t", 30);
            done += 30;
            until(|| worker.counts().done >= done).await;
            fake.restart(node).await;
        }
        until(|| fake.connections(0) == 3 && fake.connections(1) + fake.connections(2) == 0).await;
        let counts = worker.stop(Duration::from_secs(1)).await;
        assert_eq!((counts.done, counts.lost), (120, 0));
        assert!(fake.look(|state| state.jobs.is_empty()));
    });
}

#[test]
fn a_lost_connection_or_answer_brings_the_job_again_and_is_no_error() {
    run(async {
        let fake = Fake::start(2).await;
        put(&fake, "t", 1);
        let (begun, noticed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let worker = Worker::start(quick(&fake), {
            let (begun, noticed) = (begun.clone(), noticed.clone());
            move |mut job: Delivery| {
                let (begun, noticed) = (begun.clone(), noticed.clone());
                async move {
                    if begun.fetch_add(1, Ordering::SeqCst) == 0 {
                        assert!(!job.is_lost());
                        job.lost().await;
                        noticed.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
        });
        let worker = worker.unwrap();
        until(|| begun.load(Ordering::SeqCst) == 1).await;
        fake.cut(0).await;
        until(|| worker.counts().done == 1).await;
        until(|| worker.counts().lost == 1).await;
        assert_eq!((begun.load(Ordering::SeqCst), noticed.load(Ordering::SeqCst)), (2, 1));
        // A delete that is carried out and not answered: nobody is told of an error, and the job is gone.
        (0..2).for_each(|node| fake.faults(node, |faults| faults.close_at = Some(0)));
        put(&fake, "t", 1);
        until(|| worker.counts().lost == 2).await;
        assert_eq!((worker.counts().started, fake.look(|state| state.jobs.len())), (3, 0));
    });
}

#[test]
fn quiet_takes_nothing_more_and_the_end_gives_back_what_is_held() {
    run(async {
        let fake = Fake::start(1).await;
        put(&fake, "t", 2);
        let gate = Arc::new(Semaphore::new(0));
        let worker = Worker::start(WorkerSettings { concurrency: 2, ..quick(&fake) }, {
            let gate = gate.clone();
            move |_job: Delivery| {
                let gate = gate.clone();
                async move { gate.acquire().await.unwrap().forget() }
            }
        });
        let worker = worker.unwrap();
        until(|| worker.busy() == 2).await;
        worker.quiet();
        put(&fake, "t", 5);
        gate.add_permits(1);
        until(|| worker.counts().done == 1).await;
        assert_eq!((worker.busy(), worker.counts().started), (1, 2));
        worker.resume();
        until(|| worker.busy() == 2).await;
        // Two are held and will not end: the grace passes, and they are ready again.
        let counts = worker.stop(Duration::from_millis(50)).await;
        assert_eq!((counts.started, counts.done, counts.returned, counts.lost), (3, 1, 2, 0));
        fake.look(|state| {
            assert!(state.jobs.len() == 6 && state.jobs.values().all(|job| job.at == At::Ready))
        });
        until(|| fake.connections(0) == 0).await;
    });
}

#[test]
fn a_worker_that_is_dropped_gives_back_at_once() {
    run(async {
        let fake = Fake::start(1).await;
        put(&fake, "t", 1);
        let worker = Worker::start(quick(&fake), |_job: Delivery| std::future::pending::<()>()).unwrap();
        until(|| worker.busy() == 1).await;
        drop(worker);
        until(|| fake.look(|state| state.jobs[&1].at == At::Ready)).await;
    });
}

#[test]
fn no_more_jobs_of_a_limited_tube_run_at_once() {
    run(async {
        let fake = Fake::start(1).await;
        put(&fake, "slow", 6);
        put(&fake, "t", 60);
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let settings = WorkerSettings {
            tubes: vec!["slow".into(), "t".into()],
            concurrency: 6,
            limits: vec![("slow".into(), 2)],
            ..quick(&fake)
        };
        let worker = Worker::start(settings, {
            let (running, most) = (running.clone(), most.clone());
            move |job: Delivery| {
                let (running, most) = (running.clone(), most.clone());
                async move {
                    if job.info.tube == "slow" {
                        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        running.fetch_sub(1, Ordering::SeqCst);
                    }
                }
            }
        });
        let worker = worker.unwrap();
        until(|| worker.counts().done == 66).await;
        assert_eq!(most.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn settings_that_cannot_work_are_refused() {
    run(async {
        let none = WorkerSettings::new(Vec::<String>::new());
        let good = WorkerSettings::new(["127.0.0.1:1"]);
        let refused = |settings| Worker::start(settings, async |_job: Delivery| ()).map(drop).unwrap_err();
        let tubes = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
        assert!(matches!(refused(none), SettingsError::NoAddress));
        let bad_name = WorkerSettings { tubes: tubes(&["-"]), ..good.clone() };
        assert!(matches!(refused(bad_name), SettingsError::BadTubeName(name) if name == "-"));
        let no_tube = WorkerSettings { tubes: tubes(&[]), ..good.clone() };
        assert!(matches!(refused(no_tube), SettingsError::Zero("tubes")));
        assert!(matches!(
            refused(WorkerSettings { concurrency: 0, ..good }),
            SettingsError::Zero("concurrency")
        ));
    });
}
