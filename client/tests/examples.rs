//! The examples do what they say.

#![allow(dead_code, missing_docs, reason = "their main functions are not called here")]

#[path = "../examples/connection.rs"]
mod connection;
mod fake;
#[path = "../examples/pipeline.rs"]
mod pipeline;
#[path = "../examples/producer.rs"]
mod producer;
#[path = "../examples/spool.rs"]
mod spool;
#[path = "../examples/worker.rs"]
mod worker;

use fake::{Fake, run, until};

#[test]
fn a_connection_and_a_pipeline() {
    run(async {
        let fake = Fake::start(1).await;
        let address = &fake.addresses()[0];
        assert_eq!(connection::run(address).await.unwrap(), "hello");
        assert_eq!(pipeline::run(address, 1000).await.unwrap(), 1000);
        assert_eq!(fake.look(|state| state.jobs.len()), 1000);
    });
}

#[test]
fn a_producer_and_a_worker() {
    run(async {
        let mut fake = Fake::start(3).await;
        fake.kill(0).await;
        let outcomes = producer::run(fake.addresses(), 10).await.unwrap();
        assert!(outcomes.iter().all(|outcome| outcome.id().is_some()));
        assert_eq!(fake.look(|state| state.jobs.len()), 11, "an order is put once");
        let empty = until(|| fake.look(|state| state.jobs.is_empty()));
        let counts = worker::run(fake.addresses(), empty).await.unwrap();
        assert_eq!((counts.done, counts.lost), (11, 0));
    });
}

#[test]
fn a_spool() {
    run(async {
        let mut fake = Fake::start(1).await;
        let directory = tempfile::TempDir::new().unwrap();
        fake.kill(0).await;
        let producer = spool::start(directory.path().to_owned(), fake.addresses()).unwrap();
        assert_eq!(spool::run(&producer, 10).await, 10);
        fake.restart(0).await;
        until(|| fake.look(|state| state.jobs.len()) == 10).await;
    });
}
