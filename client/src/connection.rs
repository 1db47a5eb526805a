//! One connection, and the pipeline of commands in it.
//!
//! ```text
//!   send() -> output buffer --flush()--> socket --> server
//!   recv() <- input buffer  <----------- socket <-- server        replies come in the order of the commands
//! ```
//!
//! For every command that is unanswered the connection remembers where its bytes end in the stream of all
//! bytes sent. So when the connection is lost it can say of each whether the whole of it was handed to the
//! system (then the server may have carried it out) or not (then it certainly has not: a command counts from
//! its last byte on).

use crate::commands::PutOptions;
use crate::error::{ConnectError, Error};
use crate::stream::{Address, Stream};
use beanpole_protocol::{
    ClientReply, Command, PutKey, ReplyDecoder, encode_command, encode_put, encode_put_once,
};
use bytes::{Buf, BytesMut};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;
use tokio::io::Interest;

/// Room made in the input buffer before a read, in bytes.
const READ_BYTES: usize = 16 * 1024;

/// A connection to a server of the beanstalkd protocol.
///
/// Each command is a method that sends it and waits for its reply. To have several under way,
/// [`send`](Self::send) them, [`flush`](Self::flush), and [`recv`](Self::recv) a reply for each.
///
/// Dropping a method's future midway (a timeout around it, say) leaves its reply to come: the next typed
/// command then fails with [`Error::RepliesOutstanding`], and [`recv`](Self::recv) takes the reply. Nothing
/// is lost or mixed up.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    input: BytesMut,
    output: BytesMut,
    decoder: ReplyDecoder,
    unanswered: VecDeque<Unanswered>,
    /// Bytes of commands appended to the output since the connection began.
    appended: u64,
    /// How many of them the system has taken.
    written: u64,
    /// How long a typed command waits for its reply; for ever if not set.
    timeout: Option<Duration>,
    /// Set when the socket takes no more bytes. Replies that came before can still be read.
    unwritable: Option<Lost>,
    /// Set when the connection is lost; every later command fails with it.
    lost: Option<Lost>,
}

#[derive(Debug)]
struct Unanswered {
    verb: &'static str,
    /// Where the command ends in the stream of all bytes sent.
    end: u64,
}

/// Why a connection is of no more use, kept to be told more than once.
#[derive(Clone, Debug)]
struct Lost {
    kind: io::ErrorKind,
    text: String,
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Lost {
        Lost { kind: error.kind(), text: error.to_string() }
    }
}

impl Lost {
    fn to_error(&self) -> io::Error {
        io::Error::new(self.kind, self.text.clone())
    }
}

impl Connection {
    /// Connects to `address` (`HOST:PORT` or `unix:/path`). Waits as long as the system does, which can be minutes:
    /// see [`connect_within`](Self::connect_within).
    pub async fn connect(address: impl Into<Address>) -> Result<Connection, ConnectError> {
        let address = address.into();
        match Stream::connect(&address).await {
            Ok(stream) => Ok(Connection {
                stream,
                input: BytesMut::new(),
                output: BytesMut::new(),
                decoder: ReplyDecoder::default(),
                unanswered: VecDeque::new(),
                appended: 0,
                written: 0,
                timeout: None,
                unwritable: None,
                lost: None,
            }),
            Err(source) => Err(ConnectError { address: address.to_string(), source }),
        }
    }

    /// Connects to `address`, waiting for at most `limit`.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); after `limit` the source is of the kind [`io::ErrorKind::TimedOut`].
    pub async fn connect_within(
        address: impl Into<Address>,
        limit: Duration,
    ) -> Result<Connection, ConnectError> {
        let address = address.into();
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {limit:?}"));
        match tokio::time::timeout(limit, Connection::connect(address.clone())).await {
            Ok(result) => result,
            Err(_) => Err(ConnectError { address: address.to_string(), source: late() }),
        }
    }

    /// From now on a typed command waits for its reply for at most `limit`, and fails with [`Error::NoReply`] after that.
    /// [`reserve_with_timeout`](Self::reserve_with_timeout) waits for its own time and `limit`;
    /// [`reserve`](Self::reserve), [`recv`](Self::recv) and [`flush`](Self::flush) have no limit.
    #[must_use]
    pub fn with_timeout(mut self, limit: Duration) -> Connection {
        self.set_timeout(Some(limit));
        self
    }

    /// As [`with_timeout`](Self::with_timeout); none: commands wait for as long as the connection lives.
    pub fn set_timeout(&mut self, limit: Option<Duration>) {
        self.timeout = limit;
    }

    /// Appends a command to the output; nothing is sent before [`flush`](Self::flush) or
    /// [`recv`](Self::recv).
    pub fn send(&mut self, command: &Command<'_>) {
        let before = self.output.len();
        encode_command(command, &mut self.output);
        self.appended_since(before, command.word());
    }

    /// Appends a put.
    ///
    /// # Errors
    /// [`Error::BodyTooLong`] for a body that the protocol cannot announce; then nothing is appended.
    pub fn send_put(&mut self, body: &[u8], options: PutOptions) -> Result<(), Error> {
        if u32::try_from(body.len()).is_err() {
            return Err(Error::BodyTooLong(body.len()));
        }
        let before = self.output.len();
        encode_put(options.pri, options.delay_s, options.ttr_s, body, &mut self.output);
        self.appended_since(before, "put");
        Ok(())
    }

    /// Appends a `put-once`, Beanpole's own; see [`put_once`](Self::put_once).
    pub fn send_put_once(&mut self, key: &str, body: &[u8], options: PutOptions) -> Result<(), Error> {
        if u32::try_from(body.len()).is_err() {
            return Err(Error::BodyTooLong(body.len()));
        }
        let key = PutKey::new(key.as_bytes()).ok_or_else(|| Error::BadPutKey(key.to_owned()))?;
        let before = self.output.len();
        let PutOptions { pri, delay_s, ttr_s } = options;
        encode_put_once(&key, [pri, delay_s, ttr_s], body, &mut self.output);
        self.appended_since(before, "put-once");
        Ok(())
    }

    /// Appends a line that is no whole command.
    pub(crate) fn send_line(&mut self, line: &[u8], verb: &'static str) {
        let before = self.output.len();
        self.output.extend_from_slice(line);
        self.appended_since(before, verb);
    }

    fn appended_since(&mut self, before: usize, verb: &'static str) {
        self.appended += (self.output.len() - before) as u64;
        self.unanswered.push_back(Unanswered { verb, end: self.appended });
    }

    /// How many commands are unanswered.
    pub fn unanswered(&self) -> usize {
        self.unanswered.len()
    }

    /// Hands all appended commands to the system. Replies that come meanwhile are read into memory, so a deep
    /// pipeline cannot block itself. May be cancelled and called again.
    pub async fn flush(&mut self) -> Result<(), Error> {
        while !self.output.is_empty() {
            if self.lost.is_some() || self.unwritable.is_some() {
                return Err(self.lost_error());
            }
            let step = self.flush_step().await;
            self.note(step);
        }
        Ok(())
    }

    async fn flush_step(&mut self) -> io::Result<()> {
        // Most often the socket takes everything at once.
        match self.stream.try_write(&self.output) {
            Ok(Some(n)) => {
                self.output.advance(n);
                self.written += n as u64;
                return Ok(());
            }
            Ok(None) => {}
            Err(error) => {
                // A server that closed may have answered before: what it sent is still to be read, up to the end.
                self.unwritable = Some(error.into());
                return Ok(());
            }
        }
        let ready = self.stream.ready(Interest::READABLE | Interest::WRITABLE).await?;
        if ready.is_readable() {
            self.read_now()?;
        }
        Ok(())
    }

    /// The reply to the oldest unanswered command; sends first what is appended. May be cancelled and called
    /// again.
    pub async fn recv(&mut self) -> Result<ClientReply, Error> {
        let verb = self.unanswered.front().ok_or(Error::NothingAsked)?.verb;
        // A connection lost while sending may still have brought replies to what was sent before.
        let _ = self.flush().await;
        loop {
            match self.decoder.next(&mut self.input) {
                Ok(Some(reply)) => {
                    self.unanswered.pop_front();
                    return Ok(reply);
                }
                Ok(None) => {}
                Err(source) => {
                    self.note(Err(io::ErrorKind::InvalidData.into()));
                    self.input.clear();
                    self.unanswered.pop_front();
                    return Err(Error::Malformed { verb, source });
                }
            }
            if self.lost.is_some() {
                let error = self.lost_error();
                self.unanswered.pop_front();
                return Err(error);
            }
            let step = self.recv_step().await;
            self.note(step);
        }
    }

    async fn recv_step(&mut self) -> io::Result<()> {
        if !self.read_now()? {
            self.stream.ready(Interest::READABLE).await?;
        }
        Ok(())
    }

    /// Resolves when the server has closed the connection or it broke. Useful while nothing is unanswered: a command
    /// that is sent into a closed connection ends as [`Error::OutcomeUnknown`]. Replies that come meanwhile are kept
    /// for [`recv`](Self::recv). May be cancelled and called again.
    pub async fn closed(&mut self) -> io::Error {
        loop {
            if let Some(lost) = &self.lost {
                return lost.to_error();
            }
            let step = self.recv_step().await;
            self.note(step);
        }
    }

    /// The caller no longer believes in this connection: what is unanswered fails at once, and so does all that follows.
    pub(crate) fn give_up(&mut self, why: io::Error) {
        self.note(Err(why));
    }

    /// Takes the oldest unanswered command of a lost connection, as the error that it ends with.
    pub(crate) fn take_lost(&mut self) -> Option<Error> {
        let error = self.lost_error();
        self.unanswered.pop_front().map(|_| error)
    }

    /// Reads once without waiting; whether anything was there. An end of the stream is an error here.
    fn read_now(&mut self) -> io::Result<bool> {
        self.input.reserve(READ_BYTES);
        match self.stream.try_read(&mut self.input)? {
            None => Ok(false),
            Some(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")),
            Some(_) => Ok(true),
        }
    }

    fn note(&mut self, step: io::Result<()>) {
        if let Err(error) = step
            && self.lost.is_none()
        {
            self.lost = Some(error.into());
        }
    }

    /// The error for the oldest unanswered command of a lost connection.
    fn lost_error(&self) -> Error {
        let source = match self.lost.as_ref().or(self.unwritable.as_ref()) {
            Some(lost) => lost.to_error(),
            None => io::ErrorKind::NotConnected.into(),
        };
        match self.unanswered.front() {
            Some(oldest) if oldest.end <= self.written => Error::OutcomeUnknown { verb: oldest.verb, source },
            Some(oldest) => Error::NotSent { verb: oldest.verb, source },
            None => Error::NotSent { verb: "flush", source },
        }
    }

    /// Sends one command and waits for its reply, if nothing else is under way.
    pub(crate) async fn call(&mut self, command: &Command<'_>) -> Result<ClientReply, Error> {
        self.expect_idle()?;
        self.send(command);
        self.answer(Duration::ZERO).await
    }

    /// The reply to the only unanswered command, within the timeout and `longer`, if there is a timeout.
    pub(crate) async fn answer(&mut self, longer: Duration) -> Result<ClientReply, Error> {
        let Some(limit) = self.timeout.map(|limit| limit.saturating_add(longer)) else {
            return self.recv().await;
        };
        let verb = self.unanswered.front().map_or("recv", |oldest| oldest.verb);
        match tokio::time::timeout(limit, self.recv()).await {
            Ok(reply) => reply,
            Err(_) => Err(Error::NoReply { verb, limit }),
        }
    }

    /// Fails unless every command so far has been answered.
    pub(crate) fn expect_idle(&self) -> Result<(), Error> {
        if self.unanswered.is_empty() {
            Ok(())
        } else {
            Err(Error::RepliesOutstanding(self.unanswered.len()))
        }
    }

    /// Sends `quit`, which has no reply, and closes.
    pub async fn quit(mut self) -> Result<(), Error> {
        self.send(&Command::Quit);
        self.flush().await
    }
}
