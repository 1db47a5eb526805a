//! Many commands under way at once over one connection: one round trip for all, not one for each.
//!
//! `cargo run -p beanpole-client --example pipeline -- 127.0.0.1:11300`

use beanpole_client::{ClientReply, Command, Connection, PutOptions, Tube};

/// Puts `jobs` jobs into `pipeline`; how many the server took.
pub async fn run(address: &str, jobs: usize) -> Result<usize, Box<dyn std::error::Error>> {
    let mut connection = Connection::connect(address).await?;
    connection.send(&Command::Use(Tube::new(b"pipeline").ok_or("a tube's name")?));
    for job in 0..jobs {
        connection.send_put(format!("job {job}").as_bytes(), PutOptions::default())?;
    }
    // The replies come in the order of the commands.
    connection.recv().await?;
    let mut taken = 0;
    for _ in 0..jobs {
        if let ClientReply::Inserted(_) = connection.recv().await? {
            taken += 1;
        }
    }
    Ok(taken)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:11300".to_owned());
    println!("{} jobs were put", run(&address, 1000).await?);
    Ok(())
}
