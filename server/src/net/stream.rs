//! A client's socket, TCP or unix, or a connection in memory, as two halves: the connection's task reads one, the gateway
//! writes the other.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::net::{TcpStream, UnixStream, tcp, unix};
use tokio_util::io::poll_read_buf;

use super::memory;

/// A connected client socket.
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a unix socket.
    Unix(UnixStream),
    /// Within the process.
    Memory(memory::Stream),
}

/// The half that is read.
pub enum Reading {
    /// Over TCP.
    Tcp(tcp::OwnedReadHalf),
    /// Over a unix socket.
    Unix(unix::OwnedReadHalf),
    /// Within the process.
    Memory(memory::Reader),
}

/// The half that is written, without waiting.
pub enum Writing {
    /// Over TCP.
    Tcp(tcp::OwnedWriteHalf),
    /// Over a unix socket.
    Unix(unix::OwnedWriteHalf),
    /// Within the process.
    Memory(memory::Writer),
}

impl Stream {
    /// Replies are small and awaited, and a peer that is gone must be noticed some day.
    ///
    /// # Errors
    /// When the client is gone already, as far as the system tells by that.
    pub fn prepare(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => {
                stream.set_nodelay(true)?;
                socket2::SockRef::from(stream).set_keepalive(true)
            }
            Stream::Unix(_) | Stream::Memory(_) => Ok(()),
        }
    }

    /// Both halves.
    pub fn split(self) -> (Reading, Writing) {
        match self {
            Stream::Tcp(stream) => {
                let (reading, writing) = stream.into_split();
                (Reading::Tcp(reading), Writing::Tcp(writing))
            }
            Stream::Unix(stream) => {
                let (reading, writing) = stream.into_split();
                (Reading::Unix(reading), Writing::Unix(writing))
            }
            Stream::Memory(stream) => {
                let (reading, writing) = stream.into_split();
                (Reading::Memory(reading), Writing::Memory(writing))
            }
        }
    }
}

impl Reading {
    /// Reads into the spare room of `buf`, or waits; 0 is the end of input. A read that does not fill the room waits for the
    /// next event straight away, without asking the socket again.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut BytesMut) -> Poll<io::Result<usize>> {
        match self {
            Reading::Tcp(half) => poll_read_buf(Pin::new(half), cx, buf),
            Reading::Unix(half) => poll_read_buf(Pin::new(half), cx, buf),
            Reading::Memory(half) => half.poll_read(cx, buf).map(Ok),
        }
    }
}

impl Writing {
    /// Ready when the socket may take bytes.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Writing::Tcp(half) => half.as_ref().poll_write_ready(cx),
            Writing::Unix(half) => half.as_ref().poll_write_ready(cx),
            Writing::Memory(half) => half.poll_writable(cx),
        }
    }

    /// Tells the peer that nothing more will be written.
    pub fn shut_down(&self) -> io::Result<()> {
        match self {
            Writing::Tcp(half) => socket2::SockRef::from(half.as_ref()).shutdown(Shutdown::Write),
            Writing::Unix(half) => socket2::SockRef::from(half.as_ref()).shutdown(Shutdown::Write),
            Writing::Memory(half) => {
                half.shut_down();
                Ok(())
            }
        }
    }

    /// Writes what the socket takes.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Writing::Tcp(half) => half.try_write(bytes),
            Writing::Unix(half) => half.try_write(bytes),
            Writing::Memory(half) => half.try_write(bytes),
        }
    }
}
