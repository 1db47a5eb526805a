//! A worker over several addresses, that retries what fails, buries what will never work, and ends in order.
//!
//! `cargo run -p beanpole-client --example worker -- 10.0.0.1:11300 10.0.0.2:11300 10.0.0.3:11300`

use beanpole_client::{
    Backoff, Delivery, Hook, Retries, SettingsError, Verdict, Worker, WorkerCounts, WorkerEvent,
    WorkerSettings,
};
use std::time::Duration;

async fn send_mail(job: Delivery) -> Verdict {
    match std::str::from_utf8(&job.body) {
        Err(_) => Verdict::Bury,
        Ok("") => Verdict::Retry { after: Some(Duration::from_secs(60)) },
        Ok(text) => {
            println!("job {}, attempt {}: {text}", job.info.id, job.info.attempt);
            Verdict::Done
        }
    }
}

/// Works on `mail` until `end` comes.
pub async fn run(
    addresses: Vec<String>,
    end: impl Future<Output = ()>,
) -> Result<WorkerCounts, SettingsError> {
    let settings = WorkerSettings {
        tubes: vec!["mail".into()],
        concurrency: 4,
        retries: Retries {
            backoff: Backoff { first: Duration::from_secs(2), max: Duration::from_secs(300) },
            attempts_max: 10,
        },
        hook: Hook::new(|event| {
            if let WorkerEvent::Disconnected { address, why } = event {
                eprintln!("{address}: {why}; going on elsewhere");
            }
        }),
        ..WorkerSettings::new(addresses)
    };
    let worker = Worker::start(settings, send_mail)?;
    end.await;
    // No more jobs; those under way have half a minute, then they are given back.
    Ok(worker.stop(Duration::from_secs(30)).await)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), SettingsError> {
    let interrupted = async {
        // Without signals nobody can ask for an end.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    println!("{:?}", run(std::env::args().skip(1).collect(), interrupted).await?);
    Ok(())
}
