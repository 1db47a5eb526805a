//! A non-blocking connection to the server and the set of them that is waited on.
//!
//! The loop over these is the measuring instrument, so it is made of as few system calls as there can be: one
//! `epoll` wait for all that are ready, one `recv` and one `send` per connection and turn. Edge-triggered, so
//! a connection that was read empty (a read that did not fill the buffer) is not asked again.

use beanpole_client::Address;
use beanpole_protocol::{ClientReply, ReplyDecoder, ReplyError};
use bytes::{Buf, BytesMut};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long one connect may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn connect(address: &Address) -> io::Result<Socket> {
        match address {
            Address::Tcp(host_port) => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for resolved in host_port.to_socket_addrs()? {
                    match TcpStream::connect_timeout(&resolved, CONNECT_LIMIT) {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            stream.set_nonblocking(true)?;
                            return Ok(Socket::Tcp(stream));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_nonblocking(true)?;
                Ok(Socket::Unix(stream))
            }
        }
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.read(into),
            Socket::Unix(stream) => stream.read(into),
        }
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.write(from),
            Socket::Unix(stream) => stream.write(from),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }
}

/// One connection: bytes in, bytes out.
pub struct Link {
    socket: Socket,
    input: BytesMut,
    decoder: ReplyDecoder,
    /// Commands are appended here; [`Link::flush`] sends them.
    pub output: BytesMut,
    /// Whether the socket was full at the last flush, so that writability is waited for.
    blocked: bool,
}

impl Link {
    /// Connects, which may block for up to five seconds.
    pub fn connect(address: &Address) -> io::Result<Link> {
        Ok(Link {
            socket: Socket::connect(address)?,
            input: BytesMut::with_capacity(4096),
            decoder: ReplyDecoder::default(),
            output: BytesMut::with_capacity(4096),
            blocked: false,
        })
    }

    /// Reads what is there through `scratch`. With `to_the_end` (the peer has closed) reads on until the end
    /// is met. `Ok(false)` = the peer has closed.
    pub fn read(&mut self, scratch: &mut [u8], to_the_end: bool) -> io::Result<bool> {
        loop {
            match self.socket.read(scratch) {
                Ok(0) => return Ok(false),
                Ok(n) => {
                    self.input.extend_from_slice(&scratch[..n]);
                    if n < scratch.len() && !to_the_end {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The next whole reply of what was read.
    pub fn next_reply(&mut self) -> Result<Option<ClientReply>, ReplyError> {
        if self.input.is_empty() {
            return Ok(None);
        }
        self.decoder.next(&mut self.input)
    }

    /// Sends as much of the output as the socket takes.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.socket.write(&self.output) {
                Ok(n) if n == self.output.len() => self.output.clear(),
                Ok(n) => self.output.advance(n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The connections that are waited on.
pub struct Poller {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

/// What a connection is ready for.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// The number the connection was added under.
    pub token: usize,
    /// There is something to read, or the end.
    pub readable: bool,
    /// The socket takes bytes again.
    pub writable: bool,
    /// The peer has closed, or the connection broke.
    pub closed: bool,
}

/// Events taken per wait.
const EVENTS_PER_WAIT: usize = 256;

impl Poller {
    /// An empty set.
    pub fn new() -> io::Result<Poller> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Poller { epoll, events: vec![EpollEvent::empty(); EVENTS_PER_WAIT] })
    }

    /// Waits on `link` from now on, under the number `token`.
    pub fn add(&self, link: &Link, token: usize) -> io::Result<()> {
        self.epoll.add(&link.socket, EpollEvent::new(interest(false), token as u64))?;
        Ok(())
    }

    /// No longer waits on `link`.
    pub fn remove(&self, link: &Link) -> io::Result<()> {
        self.epoll.delete(&link.socket)?;
        Ok(())
    }

    /// Waits for writability exactly while `link` has output that the socket did not take.
    pub fn follow(&self, link: &mut Link, token: usize) -> io::Result<()> {
        let blocked = !link.output.is_empty();
        if blocked != link.blocked {
            link.blocked = blocked;
            self.epoll.modify(&link.socket, &mut EpollEvent::new(interest(blocked), token as u64))?;
        }
        Ok(())
    }

    /// Waits until something is ready, at most `limit`; returns how many are, to be asked with
    /// [`Poller::ready`].
    pub fn wait(&mut self, limit: Duration) -> io::Result<usize> {
        // Rounded up: a wait of 0 would spin through the last millisecond.
        let ms = u16::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        match self.epoll.wait(&mut self.events, EpollTimeout::from(ms)) {
            Ok(n) => Ok(n),
            Err(nix::errno::Errno::EINTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// The `nth` ready connection of the last wait.
    pub fn ready(&self, nth: usize) -> Ready {
        let event = &self.events[nth];
        let flags = event.events();
        let closed = flags.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        Ready {
            token: usize::try_from(event.data()).expect("tokens are vector indexes"),
            readable: closed || flags.contains(EpollFlags::EPOLLIN),
            writable: flags.contains(EpollFlags::EPOLLOUT),
            closed,
        }
    }
}

fn interest(writable: bool) -> EpollFlags {
    let always = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
    if writable { always | EpollFlags::EPOLLOUT } else { always }
}
