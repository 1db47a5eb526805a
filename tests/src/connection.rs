//! A blocking text client on a raw socket, written without our protocol crate on purpose.
//!
//! It knows only this much of the protocol: a reply is a line, and the lines `RESERVED`, `FOUND` and `OK`
//! announce in their last word how many bytes follow, plus CRLF.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Socket, Type};

use crate::wait::PATIENCE;

/// One reply: its line without CRLF, and the body where the line announced one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The line, without its CRLF.
    pub line: String,
    /// The announced bytes, without the CRLF behind them.
    pub body: Option<Vec<u8>>,
}

impl Reply {
    /// The first word of the line.
    pub fn word(&self) -> &str {
        self.line.split(' ').next().unwrap_or_default()
    }

    /// The number in the second word: a job id, or a count. Panics with the line when there is none.
    pub fn number(&self) -> u64 {
        self.line
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok())
            .unwrap_or_else(|| panic!("no number in the reply {:?}", self.line))
    }

    /// The body as text; empty when there is none.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.body.as_deref().unwrap_or_default()).into_owned()
    }

    /// The value of a key in a stats body, without quotes.
    pub fn stat(&self, key: &str) -> Option<String> {
        self.pairs().into_iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// All `key: value` lines of a stats body in their order, values without quotes (1.13 quotes strings,
    /// 1.12 does not).
    pub fn pairs(&self) -> Vec<(String, String)> {
        self.text()
            .lines()
            .filter_map(|line| line.split_once(": "))
            .map(|(key, value)| (key.to_string(), value.trim_matches('"').to_string()))
            .collect()
    }

    /// The entries of a list body in their order.
    pub fn list(&self) -> Vec<String> {
        self.text().lines().filter_map(|line| line.strip_prefix("- ")).map(str::to_string).collect()
    }
}

/// One connection to a server.
pub struct Connection {
    stream: TcpStream,
    /// Bytes received and not yet consumed.
    pending: Vec<u8>,
    /// How long a read waits before it gives up with `TimedOut`.
    patience: Duration,
    /// The read timeout that the socket has now, to save a system call per read.
    timeout_set: Duration,
}

impl Connection {
    /// Connects, with Nagle's algorithm off.
    pub fn open(addr: SocketAddr) -> io::Result<Connection> {
        Connection::over(TcpStream::connect(addr)?)
    }

    /// Connects from this address of our own: any of 127.0.0.0/8 is one.
    pub fn open_from(from: Ipv4Addr, addr: SocketAddr) -> io::Result<Connection> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((from, 0)).into())?;
        socket.connect(&addr.into())?;
        Connection::over(socket.into())
    }

    fn over(stream: TcpStream) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Connection { stream, pending: Vec::new(), patience: PATIENCE, timeout_set: PATIENCE })
    }

    /// Changes how long a read waits before it fails with `TimedOut`.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Writes bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a line and reads its reply.
    pub fn command(&mut self, line: &str) -> io::Result<Reply> {
        self.send(format!("{line}\r\n").as_bytes())?;
        self.reply()
    }

    /// Sends a put and reads its reply.
    pub fn put(&mut self, pri: u32, delay_s: u32, ttr_s: u32, body: &[u8]) -> io::Result<Reply> {
        self.send(&put_request(pri, delay_s, ttr_s, body))?;
        self.reply()
    }

    /// Reads one whole reply; `TimedOut` when it does not come in time, `UnexpectedEof` when the server
    /// closed instead.
    pub fn reply(&mut self) -> io::Result<Reply> {
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(reply) = self.take_reply() {
                return Ok(reply);
            }
            self.fill(deadline)?;
        }
    }

    /// A reply that is already here; waits for the rest of one that has begun, but not for one to begin.
    pub fn reply_if_any(&mut self) -> io::Result<Option<Reply>> {
        self.fill_without_waiting()?;
        if self.pending.is_empty() { Ok(None) } else { self.reply().map(Some) }
    }

    /// Reads a line without its CRLF. Lone CR or LF are part of the line.
    pub fn line(&mut self) -> io::Result<Vec<u8>> {
        self.until_end(b"\r\n")
    }

    /// Reads up to a bare LF (a line of a stats body), without it.
    pub fn lf_line(&mut self) -> io::Result<Vec<u8>> {
        self.until_end(b"\n")
    }

    /// True when nothing arrives for `quiet` and nothing is pending.
    pub fn is_silent_for(&mut self, quiet: Duration) -> io::Result<bool> {
        if !self.pending.is_empty() {
            return Ok(false);
        }
        match self.fill(Instant::now() + quiet) {
            Ok(()) => Ok(false),
            Err(error) if error.kind() == ErrorKind::TimedOut => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Waits until the server closes; false when it sends something or stays open past the patience.
    pub fn is_closed_by_server(&mut self) -> bool {
        self.pending.is_empty()
            && matches!(self.fill(Instant::now() + self.patience),
                Err(error) if error.kind() != ErrorKind::TimedOut)
    }

    /// True when something has arrived that nobody has read.
    pub fn has_unread(&mut self) -> bool {
        // A closed connection has nothing more to say than what is pending.
        let _closed = self.fill_without_waiting();
        !self.pending.is_empty()
    }

    /// Closes our sending side; the server still may reply.
    pub fn half_close(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Closes with a reset instead of an orderly end.
    pub fn reset(self) -> io::Result<()> {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(&self.stream, nix::sys::socket::sockopt::Linger, &linger)?;
        Ok(())
    }

    /// The socket, for tests that need its options.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// What has arrived and is not consumed, for failure messages.
    pub fn pending(&self) -> &[u8] {
        &self.pending
    }

    fn until_end(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(at) = find(&self.pending, end) {
                let line = self.pending[..at].to_vec();
                self.pending.drain(..at + end.len());
                return Ok(line);
            }
            self.fill(deadline)?;
        }
    }

    /// Cuts a complete reply out of what is pending.
    fn take_reply(&mut self) -> Option<Reply> {
        let line_len = find(&self.pending, b"\r\n")?;
        let line = String::from_utf8_lossy(&self.pending[..line_len]).into_owned();
        let Some(body_len) = announced_body(&line) else {
            self.pending.drain(..line_len + 2);
            return Some(Reply { line, body: None });
        };
        let body_at = line_len + 2;
        let end = body_at + body_len + 2;
        if self.pending.len() < end {
            return None;
        }
        let body = self.pending[body_at..body_at + body_len].to_vec();
        let terminator = &self.pending[body_at + body_len..end];
        assert_eq!(terminator, b"\r\n", "the body of {line:?} must end in CRLF");
        self.pending.drain(..end);
        Some(Reply { line, body: Some(body) })
    }

    fn fill(&mut self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        // A timeout that is a little longer than what is left costs nothing but patience.
        if left > self.timeout_set || self.timeout_set - left > Duration::from_millis(100) {
            self.stream.set_read_timeout(Some(left))?;
            self.timeout_set = left;
        }
        let mut chunk = [0; 64 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                self.pending.extend_from_slice(&chunk[..n]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ErrorKind::TimedOut.into()),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn fill_without_waiting(&mut self) -> io::Result<()> {
        let mut chunk = [0; 4096];
        match recv(self.stream.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                self.pending.extend_from_slice(&chunk[..n]);
                Ok(())
            }
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The bytes of a put with its body.
pub fn put_request(pri: u32, delay_s: u32, ttr_s: u32, body: &[u8]) -> Vec<u8> {
    let mut request = format!("put {pri} {delay_s} {ttr_s} {}\r\n", body.len()).into_bytes();
    request.extend_from_slice(body);
    request.extend_from_slice(b"\r\n");
    request
}

/// How many bytes follow a reply's line, if any.
fn announced_body(line: &str) -> Option<usize> {
    let mut words = line.split(' ');
    match (words.next()?, words.next(), words.next()) {
        ("OK", Some(len), None) => len.parse().ok(),
        ("RESERVED" | "FOUND", Some(_), Some(len)) => len.parse().ok(),
        _ => None,
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
