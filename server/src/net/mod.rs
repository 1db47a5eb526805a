//! Clients' connections: listening sockets, the limits that hold there, and one task per connection that moves bytes between
//! its socket and the gateway.

mod connection;
mod door;
mod limits;
mod listener;
pub mod memory;
mod stream;

pub use connection::{Pool, serve_client, serve_connections};
pub use door::{BanView, Door};
pub use limits::{Account, Address, Limits};
pub use listener::{BindError, Bound, Listener, bind};
pub use stream::Stream;
