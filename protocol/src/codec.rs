//! The two directions as `tokio_util` codecs, for those who would rather have a `Framed` than buffers of
//! their own.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio_util::codec::{Decoder as Decode, Encoder as Encode};

use crate::client::{ClientReply, ReplyDecoder, ReplyError, encode_command, encode_put};
use crate::command::{BadRequest, Command, PutHeader, Request};
use crate::decoder::Decoder;
use crate::parse::{Line, parse_line};
use crate::reply::Reply;

/// A request that owns what it carries: the command's line is kept, and parsed again where it is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnedRequest {
    /// A command of one line, as bytes without CRLF in its plainest form (one space each, no leading zeros);
    /// [`OwnedRequest::command`] shows it.
    Command(Bytes),
    /// A `put` with its body and CRLF.
    Put(PutHeader, Bytes),
    /// Something that has an error as its only answer.
    Bad(BadRequest),
}

impl OwnedRequest {
    /// The command, if it is one of one line.
    #[must_use]
    pub fn command(&self) -> Option<Command<'_>> {
        match self {
            OwnedRequest::Command(line) => match parse_line(line) {
                Ok(Line::Command(command)) => Some(command),
                Ok(Line::Put(_) | Line::PutTrailing(_)) | Err(_) => None,
            },
            OwnedRequest::Put(..) | OwnedRequest::Bad(_) => None,
        }
    }
}

impl From<Request<'_>> for OwnedRequest {
    fn from(request: Request<'_>) -> Self {
        match request {
            Request::Command(command) => {
                let mut line = BytesMut::new();
                encode_command(&command, &mut line);
                line.truncate(line.len() - 2);
                OwnedRequest::Command(line.freeze())
            }
            Request::Put { header, body } => OwnedRequest::Put(header, body),
            Request::Bad(bad) => OwnedRequest::Bad(bad),
        }
    }
}

/// A `put` as a client sends it through [`ClientCodec`]; [`encode_put`] says more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put<'a> {
    /// Smaller is handed out first.
    pub pri: u32,
    /// Seconds until the job becomes ready.
    pub delay: u32,
    /// Seconds a worker may hold it.
    pub ttr: u32,
    /// The body, without CRLF.
    pub body: &'a [u8],
}

/// A server's side: decodes requests, encodes replies.
#[derive(Clone, Debug)]
pub struct ServerCodec(Decoder);

impl ServerCodec {
    /// A codec at the start of a connection.
    #[must_use]
    pub fn new(max_job_size: u32) -> Self {
        ServerCodec(Decoder::new(max_job_size))
    }
}

impl Decode for ServerCodec {
    type Item = OwnedRequest;
    type Error = io::Error;

    fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<OwnedRequest>, io::Error> {
        Ok(self.0.next(buf, |request| OwnedRequest::from(request)))
    }
}

impl Encode<Reply<'_>> for ServerCodec {
    type Error = io::Error;

    fn encode(&mut self, reply: Reply<'_>, out: &mut BytesMut) -> Result<(), io::Error> {
        reply.encode(out);
        Ok(())
    }
}

/// A client's side: decodes replies, encodes commands.
#[derive(Clone, Debug, Default)]
pub struct ClientCodec(ReplyDecoder);

impl Decode for ClientCodec {
    type Item = ClientReply;
    type Error = io::Error;

    fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<ClientReply>, io::Error> {
        let invalid = |e: ReplyError| io::Error::new(io::ErrorKind::InvalidData, e);
        self.0.next(buf).map_err(invalid)
    }
}

impl Encode<Command<'_>> for ClientCodec {
    type Error = io::Error;

    fn encode(&mut self, command: Command<'_>, out: &mut BytesMut) -> Result<(), io::Error> {
        encode_command(&command, out);
        Ok(())
    }
}

impl Encode<Put<'_>> for ClientCodec {
    type Error = io::Error;

    fn encode(&mut self, put: Put<'_>, out: &mut BytesMut) -> Result<(), io::Error> {
        encode_put(put.pri, put.delay, put.ttr, put.body, out);
        Ok(())
    }
}
