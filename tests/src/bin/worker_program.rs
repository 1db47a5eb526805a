//! A worker as its users write one, for tests that take the servers away under it: says `job BODY` for each job, until its
//! standard input ends.
//!
//! `worker_program ADDRESS,ADDRESS,... TUBE JOBS-AT-ONCE`
//!
//! At last it says what it counted.

use std::process::ExitCode;
use std::time::Duration;

use beanpole_client::{Delivery, Worker, WorkerSettings};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [addresses, tube, jobs] = &arguments[..] else {
        eprintln!("worker_program ADDRESS,ADDRESS,... TUBE JOBS-AT-ONCE");
        return ExitCode::from(2);
    };
    let settings = WorkerSettings {
        tubes: vec![tube.clone()],
        concurrency: jobs.parse().expect("a number of jobs"),
        ..WorkerSettings::new(addresses.split(','))
    };
    let worker =
        Worker::start(settings, async |job: Delivery| println!("job {}", String::from_utf8_lossy(&job.body)));
    let worker = worker.expect("the settings are right");
    let end = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    // An error is an end, too.
    let _ended = end.await;
    println!("{:?}", worker.stop(Duration::from_secs(5)).await);
    ExitCode::SUCCESS
}
