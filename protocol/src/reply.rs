//! What a server answers. The set of words is closed: clients break on any other.

use bytes::{BufMut, BytesMut};

use crate::decimal::put_decimal;
use crate::values::JobId;

/// A reply, borrowing what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// `INSERTED <id>`: the answer to a `put` whose job is kept.
    Inserted(JobId),
    /// `BURIED <id>`: beanstalkd's answer to a `put` it has no memory to keep ready.
    BuriedPut(JobId),
    /// `EXPECTED_CRLF`: a `put` whose body does not end with CRLF where its size says; nothing was kept.
    ExpectedCrlf,
    /// `JOB_TOO_BIG`: a `put` above the size limit, answered once its body was thrown away.
    JobTooBig,
    /// `DRAINING`: the whole service takes no new jobs; an answer to `put` only.
    Draining,
    /// `OUT_OF_MEMORY`: no room for the job (or too much pressure) now; an answer to `put` only.
    OutOfMemory,
    /// `INTERNAL_ERROR`: a bug of the server.
    InternalError,
    /// `BAD_FORMAT`: a line that is too long, or whose arguments do not fit its word.
    BadFormat,
    /// `UNKNOWN_COMMAND`: no such word.
    UnknownCommand,
    /// `USING <tube>`: where this connection's puts go; the answer to `use` and `list-tube-used`.
    Using(&'a str),
    /// `DEADLINE_SOON`: to a `reserve`, that a job of this connection has a second or less left.
    DeadlineSoon,
    /// `TIMED_OUT`: to a `reserve-with-timeout`, that no job came in time.
    TimedOut,
    /// `RESERVED <id> <bytes>` and the body.
    Reserved {
        /// The job, now held by this connection.
        id: JobId,
        /// Its body, without CRLF.
        data: &'a [u8],
    },
    /// `DELETED`
    Deleted,
    /// `NOT_FOUND`: no such job or tube, or the job is not in a state (or hands) that the command is for.
    NotFound,
    /// `RELEASED`
    Released,
    /// `BURIED`: the answer to `bury`, and beanstalkd's to a `release` it has no memory for.
    Buried,
    /// `TOUCHED`
    Touched,
    /// `WATCHING <count>`: how many tubes the connection watches; the answer to `watch` and `ignore`.
    Watching(u64),
    /// `NOT_IGNORED`: the tube is the only one that the connection watches.
    NotIgnored,
    /// `FOUND <id> <bytes>` and the body: the answer to the peeks.
    Found {
        /// The job.
        id: JobId,
        /// Its body, without CRLF.
        data: &'a [u8],
    },
    /// `KICKED <count>`: the answer to `kick`.
    Kicked(u64),
    /// `KICKED`: the answer to `kick-job`.
    KickedJob,
    /// `PAUSED`
    Paused,
    /// `OK <bytes>` and a YAML body: the answer to the stats and lists.
    Ok(&'a [u8]),
}

impl Reply<'_> {
    /// Appends the reply as it goes over the wire.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Reply::Inserted(id) => word_number(out, b"INSERTED ", id.0),
            Reply::BuriedPut(id) => word_number(out, b"BURIED ", id.0),
            Reply::ExpectedCrlf => out.extend_from_slice(b"EXPECTED_CRLF\r\n"),
            Reply::JobTooBig => out.extend_from_slice(b"JOB_TOO_BIG\r\n"),
            Reply::Draining => out.extend_from_slice(b"DRAINING\r\n"),
            Reply::OutOfMemory => out.extend_from_slice(b"OUT_OF_MEMORY\r\n"),
            Reply::InternalError => out.extend_from_slice(b"INTERNAL_ERROR\r\n"),
            Reply::BadFormat => out.extend_from_slice(b"BAD_FORMAT\r\n"),
            Reply::UnknownCommand => out.extend_from_slice(b"UNKNOWN_COMMAND\r\n"),
            Reply::Using(tube) => {
                out.extend_from_slice(b"USING ");
                out.extend_from_slice(tube.as_bytes());
                out.extend_from_slice(b"\r\n");
            }
            Reply::DeadlineSoon => out.extend_from_slice(b"DEADLINE_SOON\r\n"),
            Reply::TimedOut => out.extend_from_slice(b"TIMED_OUT\r\n"),
            Reply::Reserved { id, data } => {
                encode_reserved_header(out, *id, data.len() as u32);
                body(out, data);
            }
            Reply::Deleted => out.extend_from_slice(b"DELETED\r\n"),
            Reply::NotFound => out.extend_from_slice(b"NOT_FOUND\r\n"),
            Reply::Released => out.extend_from_slice(b"RELEASED\r\n"),
            Reply::Buried => out.extend_from_slice(b"BURIED\r\n"),
            Reply::Touched => out.extend_from_slice(b"TOUCHED\r\n"),
            Reply::Watching(count) => word_number(out, b"WATCHING ", *count),
            Reply::NotIgnored => out.extend_from_slice(b"NOT_IGNORED\r\n"),
            Reply::Found { id, data } => {
                encode_found_header(out, *id, data.len() as u32);
                body(out, data);
            }
            Reply::Kicked(count) => word_number(out, b"KICKED ", *count),
            Reply::KickedJob => out.extend_from_slice(b"KICKED\r\n"),
            Reply::Paused => out.extend_from_slice(b"PAUSED\r\n"),
            Reply::Ok(data) => {
                word_number(out, b"OK ", data.len() as u64);
                body(out, data);
            }
        }
    }
}

fn body(out: &mut BytesMut, data: &[u8]) {
    out.reserve(data.len() + 2);
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

fn word_number(out: &mut BytesMut, word: &[u8], number: u64) {
    out.extend_from_slice(word);
    put_decimal(out, number);
    out.extend_from_slice(b"\r\n");
}

/// Appends `RESERVED <id> <len>` and CRLF; the body and its CRLF are the caller's to append.
pub fn encode_reserved_header(out: &mut BytesMut, id: JobId, len: u32) {
    body_header(out, b"RESERVED ", id, len);
}

/// Appends `FOUND <id> <len>` and CRLF; the body and its CRLF are the caller's to append.
pub fn encode_found_header(out: &mut BytesMut, id: JobId, len: u32) {
    body_header(out, b"FOUND ", id, len);
}

fn body_header(out: &mut BytesMut, word: &[u8], id: JobId, len: u32) {
    out.extend_from_slice(word);
    put_decimal(out, id.0);
    out.put_u8(b' ');
    put_decimal(out, u64::from(len));
    out.extend_from_slice(b"\r\n");
}
