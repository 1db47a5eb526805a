//! Clients of the beanstalkd protocol, from one connection to programs that outlive their servers.
//!
//! | type | what it is |
//! |---|---|
//! | [`Connection`] | one connection: every command a method, pipelining, errors that say whether a command had an effect |
//! | [`Producer`] | puts jobs over a list of addresses: reconnects, fails over, retries, within a deadline |
//! | its [spool](SpoolSettings) | keeps puts on disk while no server takes any |
//! | [`Worker`] | hands jobs to a function, many at once: touches, retries, buries, follows the nodes that serve, ends in order |
//!
//! The module `blocking` (feature of the same name) has the same for programs without an async runtime.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use beanpole_client::{Connection, PutOptions, Reserve};
//!
//! let mut connection = Connection::connect("127.0.0.1:11300").await?;
//! connection.use_tube("mail").await?;
//! connection.put(b"hello", PutOptions::default()).await?;
//! connection.watch("mail").await?;
//! if let Reserve::Job(job) = connection.reserve_with_timeout(5).await? {
//!     connection.delete(job.id).await?;
//! }
//! # Ok(()) }
//! ```

mod backoff;
#[cfg(feature = "blocking")]
pub mod blocking;
mod commands;
mod connection;
mod error;
mod producer;
mod roster;
mod spool;
mod stats;
mod stream;
mod worker;

pub use backoff::Backoff;
pub use beanpole_protocol::{ClientReply, Command, JobId, Priority, PutKey, Tube};
pub use commands::{Job, PutOptions, Reserve};
pub use connection::Connection;
pub use error::{ConnectError, Error, Refusal};
pub use producer::{Keys, Outcome, Producer, ProducerCounts, ProducerSettings, Rejection, SettingsError};
pub use spool::{Fsync, SpoolCounts, SpoolError, SpoolSettings};
pub use stats::{Stats, parse_list};
pub use stream::Address;
pub use worker::{
    Delivery, Ending, Hook, JobInfo, Retries, Verdict, Worker, WorkerCounts, WorkerEvent, WorkerSettings,
    WorkerState,
};

/// A generator of random numbers: the system's randomness, or that of a seed.
fn random(seed: Option<u64>) -> rand::rngs::SmallRng {
    use rand::SeedableRng;
    match seed {
        Some(seed) => rand::rngs::SmallRng::seed_from_u64(seed),
        None => rand::rngs::SmallRng::from_os_rng(),
    }
}
