//! A producer over several addresses: whichever of them is away, its puts go through.
//!
//! `cargo run -p beanpole-client --example producer -- 10.0.0.1:11300 10.0.0.2:11300 10.0.0.3:11300`

use beanpole_client::{Keys, Outcome, Producer, ProducerSettings, PutOptions, SettingsError};
use std::time::Duration;
use tokio::task::JoinSet;

/// Puts `jobs` jobs into `mail` from as many tasks; what came of each.
pub async fn run(addresses: Vec<String>, jobs: usize) -> Result<Vec<Outcome>, SettingsError> {
    let producer = Producer::start(ProducerSettings {
        tube: "mail".into(),
        deadline: Duration::from_secs(10),
        keys: Keys::Random,
        ..ProducerSettings::new(addresses)
    })?;
    let mut tasks = JoinSet::new();
    for job in 0..jobs {
        let producer = producer.clone();
        tasks.spawn(async move { producer.put(format!("mail {job}"), PutOptions::default()).await });
    }
    let mut outcomes = tasks.join_all().await;
    // The same order twice is one job.
    for _ in 0..2 {
        outcomes.push(producer.put_once("order:4711", "an order", PutOptions::default()).await);
    }
    println!("{:?}", producer.counts());
    producer.close().await;
    Ok(outcomes)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), SettingsError> {
    for outcome in run(std::env::args().skip(1).collect(), 10).await? {
        match outcome {
            Outcome::Inserted(id) => println!("job {id}"),
            Outcome::Spooled => println!("kept until a server takes it"),
            Outcome::Rejected(why) => println!("certainly not put: {why}"),
            Outcome::Unknown => println!("perhaps put"),
        }
    }
    Ok(())
}
