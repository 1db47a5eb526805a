//! A producer that loses nothing while all servers are away: what it cannot put lies in a directory until it can.
//!
//! `cargo run -p beanpole-client --example spool -- ./spool 127.0.0.1:11300`

use beanpole_client::{Fsync, Outcome, Producer, ProducerSettings, PutOptions, SettingsError, SpoolSettings};
use std::path::PathBuf;
use std::time::Duration;

/// A producer that puts into `events`, and waits for servers for at most a fifth of a second.
pub fn start(directory: PathBuf, addresses: Vec<String>) -> Result<Producer, SettingsError> {
    Producer::start(ProducerSettings {
        tube: "events".into(),
        spool: Some(SpoolSettings {
            patience: Duration::from_millis(200),
            bytes_max: 64 << 20,
            age_max: Duration::from_secs(6 * 3600),
            fsync: Fsync::Every(Duration::from_millis(100)),
            ..SpoolSettings::new(directory)
        }),
        ..ProducerSettings::new(addresses)
    })
}

/// Puts `jobs` jobs; how many of them are in the spool for the time being.
pub async fn run(producer: &Producer, jobs: usize) -> usize {
    let mut spooled = 0;
    for job in 0..jobs {
        match producer.put(format!("event {job}"), PutOptions::default()).await {
            Outcome::Inserted(_) => {}
            Outcome::Spooled => spooled += 1,
            Outcome::Rejected(why) => eprintln!("event {job} is certainly not put: {why}"),
            Outcome::Unknown => eprintln!("event {job} is perhaps put"),
        }
    }
    spooled
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), SettingsError> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().unwrap_or_else(|| "./spool".to_owned());
    let producer = start(directory.into(), arguments.collect())?;
    println!("{} of 10 were spooled; {:?}", run(&producer, 10).await, producer.spool_counts());
    producer.close().await;
    Ok(())
}
