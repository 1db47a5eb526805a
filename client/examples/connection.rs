//! One connection: a job put, worked on and deleted, with errors told apart by what may be done next.
//!
//! `cargo run -p beanpole-client --example connection -- 127.0.0.1:11300`

use beanpole_client::{Connection, Error, PutOptions, Refusal, Reserve};
use std::time::Duration;

/// Puts a job into `greetings`, takes it and deletes it. What is returned is what the job said.
pub async fn run(address: &str) -> Result<String, Box<dyn std::error::Error>> {
    let limit = Duration::from_secs(5);
    let mut connection = Connection::connect_within(address, limit).await?.with_timeout(limit);
    connection.use_tube("greetings").await?;
    match connection.put(b"hello", PutOptions { pri: 10, delay_s: 0, ttr_s: 30 }).await {
        Ok(id) => println!("job {id}"),
        Err(Error::Refused { refusal: Refusal::OutOfMemory, .. }) => println!("no room: try again later"),
        Err(error) if error.had_no_effect() => println!("not put, and may be put again: {error}"),
        Err(error) => println!("perhaps put: {error}"),
    }
    connection.watch("greetings").await?;
    connection.ignore("default").await?;
    let Reserve::Job(job) = connection.reserve_with_timeout(5).await? else {
        return Err("no job came within 5 s".into());
    };
    connection.delete(job.id).await?;
    let said = String::from_utf8(job.body.to_vec())?;
    connection.quit().await?;
    Ok(said)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:11300".to_owned());
    println!("the job said {}", run(&address).await?);
    Ok(())
}
