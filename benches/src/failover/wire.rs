//! A blocking connection: one command, one reply, and never a wait without an end.

use beanpole_protocol::{ClientReply, Command, ReplyDecoder, encode_command, encode_put};
use bytes::BytesMut;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// How long a command may take to be handed to the system. Commands are far smaller than a socket's buffer.
const WRITE_LIMIT: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 16 * 1024;

/// One connection to a node.
pub struct Wire {
    stream: TcpStream,
    input: BytesMut,
    output: BytesMut,
    decoder: ReplyDecoder,
    /// The read timeout that the socket has now, to save a system call per read.
    wait_set: Duration,
}

impl Wire {
    /// Connects to HOST:PORT within `limit`.
    pub fn open(address: &str, limit: Duration) -> io::Result<Wire> {
        let resolved = address.to_socket_addrs()?.next().ok_or(ErrorKind::NotFound)?;
        let stream = TcpStream::connect_timeout(&resolved, limit)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(WRITE_LIMIT))?;
        Ok(Wire {
            stream,
            input: BytesMut::new(),
            output: BytesMut::new(),
            decoder: ReplyDecoder::default(),
            wait_set: Duration::ZERO,
        })
    }

    /// Sends a command. After an error the server has not got all of it.
    pub fn send(&mut self, command: &Command<'_>) -> io::Result<()> {
        encode_command(command, &mut self.output);
        self.flush()
    }

    /// Sends a put of priority 1024 without delay. After an error the server has not got all of it.
    pub fn send_put(&mut self, ttr_s: u32, body: &[u8]) -> io::Result<()> {
        encode_put(1024, 0, ttr_s, body, &mut self.output);
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.stream.write_all(&self.output);
        self.output.clear();
        result
    }

    /// The next reply; `None` when none has come within `wait`. An error is the end of the connection.
    pub fn receive(&mut self, wait: Duration) -> io::Result<Option<ClientReply>> {
        loop {
            let decoded = self.decoder.next(&mut self.input);
            if let Some(reply) = decoded.map_err(|e| io::Error::new(ErrorKind::InvalidData, e))? {
                return Ok(Some(reply));
            }
            if !self.read(wait)? {
                return Ok(None);
            }
        }
    }

    /// Sends a command and waits for its reply, for `limit` at most.
    pub fn ask(&mut self, command: &Command<'_>, limit: Duration) -> io::Result<ClientReply> {
        self.send(command)?;
        self.receive(limit)?.ok_or_else(|| ErrorKind::TimedOut.into())
    }

    /// Reads once; whether anything came.
    fn read(&mut self, wait: Duration) -> io::Result<bool> {
        // A timeout of zero would mean none at all.
        let wait = wait.max(Duration::from_millis(1));
        if wait != self.wait_set {
            self.stream.set_read_timeout(Some(wait))?;
            self.wait_set = wait;
        }
        let mut chunk = [0; READ_BYTES];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(io::Error::new(ErrorKind::UnexpectedEof, "the server closed the connection")),
            Ok(n) => {
                self.input.extend_from_slice(&chunk[..n]);
                Ok(true)
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(false),
            Err(e) => Err(e),
        }
    }
}
