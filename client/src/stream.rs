//! The socket under a connection: TCP or Unix, asked without waiting and waited for separately.

use bytes::BytesMut;
use std::fmt;
use std::io;
use std::path::PathBuf;
use tokio::io::{Interest, Ready};
use tokio::net::{TcpStream, UnixStream};

/// Where a server listens: `HOST:PORT` or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`; a name is resolved at every connect.
    Tcp(String),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl From<&str> for Address {
    fn from(text: &str) -> Address {
        match text.strip_prefix("unix:") {
            Some(path) => Address::Unix(PathBuf::from(path)),
            None => Address::Tcp(text.to_owned()),
        }
    }
}

impl From<String> for Address {
    fn from(text: String) -> Address {
        Address::from(text.as_str())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(host_port) => f.write_str(host_port),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A connected socket.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub(crate) async fn connect(address: &Address) -> io::Result<Stream> {
        match address {
            Address::Tcp(host_port) => {
                let stream = TcpStream::connect(host_port.as_str()).await?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Address::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path).await?)),
        }
    }

    pub(crate) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        match self {
            Stream::Tcp(stream) => stream.ready(interest).await,
            Stream::Unix(stream) => stream.ready(interest).await,
        }
    }

    /// Reads what is there. `None` = nothing now; `Some(0)` = the server closed.
    pub(crate) fn try_read(&self, into: &mut BytesMut) -> io::Result<Option<usize>> {
        would_block(match self {
            Stream::Tcp(stream) => stream.try_read_buf(into),
            Stream::Unix(stream) => stream.try_read_buf(into),
        })
    }

    /// Writes what the socket takes. `None` = nothing now.
    pub(crate) fn try_write(&self, from: &[u8]) -> io::Result<Option<usize>> {
        would_block(match self {
            Stream::Tcp(stream) => stream.try_write(from),
            Stream::Unix(stream) => stream.try_write(from),
        })
    }
}

fn would_block(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_and_print() {
        for text in ["127.0.0.1:11300", "unix:/run/beanpole.sock", "queue.example:1"] {
            assert_eq!(Address::from(text).to_string(), text);
        }
        assert_eq!(Address::from("unix:/a"), Address::Unix("/a".into()));
    }
}
