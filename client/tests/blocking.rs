//! The blocking facade, from a thread that knows no runtime.

mod fake;

use beanpole_client::blocking::{Connection, Producer, Worker};
use beanpole_client::{
    Backoff, Delivery, Outcome, ProducerSettings, PutOptions, Reserve, Retries, Verdict, WorkerSettings,
};
use fake::Fake;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Servers on a thread of their own; they end when this is dropped.
fn servers(nodes: usize) -> (Vec<String>, tokio::sync::oneshot::Sender<()>) {
    let (addresses, known) = mpsc::channel();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let fake = Fake::start(nodes).await;
            addresses.send(fake.addresses()).unwrap();
            let _end = ended.await;
        });
    });
    (known.recv().unwrap(), end)
}

/// Looks at a condition until it holds.
fn until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + fake::LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain");
        std::thread::yield_now();
    }
}

#[test]
fn a_connection_blocks_for_each_command() {
    let (addresses, _end) = servers(1);
    let mut connection = Connection::connect(addresses[0].as_str(), Duration::from_secs(5)).unwrap();
    let id = connection.call(async |c| c.put(b"one", PutOptions::default()).await).unwrap();
    let reserved = connection.call(async |c| c.reserve_with_timeout(5).await).unwrap();
    let Reserve::Job(job) = reserved else { panic!("there is a job") };
    assert_eq!((job.id, &job.body[..]), (id, &b"one"[..]));
    connection.call(async |c| c.delete(id).await).unwrap();
    assert!(connection.call(async |c| c.delete(id).await).is_err());
}

#[test]
fn threads_put_and_handlers_block() {
    let (addresses, _end) = servers(2);
    let producer = Producer::start(ProducerSettings::new(addresses.clone())).unwrap();
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let producer = producer.clone();
            std::thread::spawn(move || producer.put(format!("{thread}"), PutOptions::default()))
        })
        .collect();
    assert!(threads.into_iter().all(|thread| matches!(thread.join().unwrap(), Outcome::Inserted(_))));
    assert_eq!(
        producer.put_once("k", "0", PutOptions::default()),
        producer.put_once("k", "0", PutOptions::default())
    );
    assert_eq!(producer.counts().inserted, 10);
    producer.close();
    let at_once = Backoff { first: Duration::ZERO, max: Duration::ZERO };
    let settings = WorkerSettings {
        retries: Retries { backoff: at_once, attempts_max: 3 },
        ..WorkerSettings::new(addresses)
    };
    let worker = Worker::start(settings, |job: Delivery| {
        assert!(&job.body[..] != b"7", "a bad job");
        std::thread::yield_now();
        Verdict::Done
    });
    let worker = worker.unwrap();
    until(|| worker.counts().done == 8 && worker.counts().buried == 1);
    let counts = worker.stop(Duration::from_secs(5));
    assert_eq!((counts.panicked, counts.retried, counts.lost), (3, 2, 0));
}
