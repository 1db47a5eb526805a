//! A client of the beanstalkd protocol over one connection: every command a method, pipelining where wanted,
//! and errors that say whether a command can have had an effect.
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

mod commands;
mod connection;
mod error;
mod stats;
mod stream;
mod words;

pub use beanpole_protocol::{ClientReply, Command, JobId, Priority, Tube};
pub use commands::{Job, PutOptions, Reserve};
pub use connection::Connection;
pub use error::{ConnectError, Error, Refusal};
pub use stats::{Stats, parse_list};
pub use stream::Address;
