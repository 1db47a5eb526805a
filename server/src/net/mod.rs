//! Clients' connections: listening sockets, and one task per connection that moves bytes between its socket and the gateway.

mod connection;
mod listener;
pub mod memory;
mod stream;

pub use connection::{Pool, serve_client, serve_connections};
pub use listener::{BindError, Bound, Listener, bind};
pub use stream::Stream;
