//! A producer as its users write one, for tests that take the servers away under it: puts numbered jobs, one after the other,
//! until its standard input ends, then waits until its spool is empty.
//!
//! `producer_program ADDRESS,ADDRESS,... TUBE SPOOL-DIRECTORY PUTS-PER-SECOND`
//!
//! It says `put N` after each hundred, `error ...` for every put that came to nothing, and at last `total N slowest-ms M ...`.
//! Its exit code is 1 if there was an error.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use beanpole_client::{Outcome, Producer, ProducerSettings, PutOptions, SpoolSettings};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [addresses, tube, spool, rate] = &arguments[..] else {
        eprintln!("producer_program ADDRESS,ADDRESS,... TUBE SPOOL-DIRECTORY PUTS-PER-SECOND");
        return ExitCode::from(2);
    };
    let settings = ProducerSettings {
        tube: tube.clone(),
        spool: Some(SpoolSettings::new(spool)),
        ..ProducerSettings::new(addresses.split(','))
    };
    let producer = Producer::start(settings).expect("the settings are right");
    let every = Duration::from_secs(1) / rate.parse().expect("the rate is a number");
    let errors = produce(&producer, every, &until_input_ends()).await;
    let mut look = tokio::time::interval(Duration::from_millis(5));
    while producer.spool_counts().is_some_and(|spool| spool.unfinished > 0) {
        look.tick().await;
    }
    let spool = producer.spool_counts().unwrap_or_default();
    let lost = spool.dropped_old + spool.dropped_refused + spool.damaged;
    println!("{} spooled {} dropped {lost} {:?}", errors.told, spool.spooled, producer.counts());
    producer.close().await;
    ExitCode::from(u8::from(errors.any || lost > 0))
}

/// What came of all puts.
struct Told {
    any: bool,
    told: String,
}

async fn produce(producer: &Producer, every: Duration, is_over: &AtomicBool) -> Told {
    let mut tick = tokio::time::interval(every);
    let (mut number, mut any, mut slowest) = (0, false, Duration::ZERO);
    while !is_over.load(Ordering::Relaxed) {
        tick.tick().await;
        let begun = Instant::now();
        let options = PutOptions { ttr_s: 5, ..PutOptions::default() };
        let outcome = producer.put(number.to_string(), options).await;
        if !matches!(outcome, Outcome::Inserted(_) | Outcome::Spooled) {
            any = true;
            println!("error {number}: {outcome:?}");
        }
        slowest = slowest.max(begun.elapsed());
        number += 1;
        if number % 100 == 0 {
            println!("put {number}");
        }
    }
    Told { any, told: format!("total {number} slowest-ms {}", slowest.as_millis()) }
}

/// Set when whoever started this program wants it to end.
fn until_input_ends() -> Arc<AtomicBool> {
    let is_over = Arc::new(AtomicBool::new(false));
    let set = is_over.clone();
    std::thread::spawn(move || {
        // An error is an end, too.
        let _ended = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        set.store(true, Ordering::Relaxed);
    });
    is_over
}
