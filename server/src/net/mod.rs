//! Clients' connections: listening sockets, and one task per connection that moves bytes between its socket and the gateway.

mod connection;
mod listener;
mod stream;

pub use connection::serve_connections;
pub use listener::{BindError, Bound, Listener, bind};
