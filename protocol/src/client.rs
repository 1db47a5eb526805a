//! The client's side: commands to bytes, bytes to replies.

use bytes::{Buf, Bytes, BytesMut};

use crate::command::Command;
use crate::decimal::{put_decimal, take_decimal};
use crate::values::{JobId, MAX_JOB_SIZE_LIMIT, MAX_LINE, PutKey};

/// Longest reply line that is read, in bytes, CRLF included: `USING` and the longest tube name fit well.
const REPLY_LINE_MAX: usize = 512;

/// Largest body that is read, in bytes. No job can be larger, and the list of a million tubes is not.
const REPLY_BODY_MAX: u64 = MAX_JOB_SIZE_LIMIT as u64;

/// A reply, owning what it carries. [`Reply`](crate::Reply) says of each when it comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientReply {
    /// `INSERTED <id>`
    Inserted(JobId),
    /// `BURIED <id>`, an answer to `put`.
    BuriedPut(JobId),
    /// `EXPECTED_CRLF`
    ExpectedCrlf,
    /// `JOB_TOO_BIG`
    JobTooBig,
    /// `DRAINING`
    Draining,
    /// `OUT_OF_MEMORY`
    OutOfMemory,
    /// `INTERNAL_ERROR`
    InternalError,
    /// `BAD_FORMAT`
    BadFormat,
    /// `UNKNOWN_COMMAND`
    UnknownCommand,
    /// `USING <tube>`. The name is as the server sent it: other servers may allow other names.
    Using(String),
    /// `DEADLINE_SOON`
    DeadlineSoon,
    /// `TIMED_OUT`
    TimedOut,
    /// `RESERVED <id> <bytes>` and the body.
    Reserved {
        /// The job, now held by this connection.
        id: JobId,
        /// Its body, without CRLF, cut from the read buffer.
        data: Bytes,
    },
    /// `DELETED`
    Deleted,
    /// `NOT_FOUND`
    NotFound,
    /// `RELEASED`
    Released,
    /// `BURIED`, an answer to `bury` or `release`.
    Buried,
    /// `TOUCHED`
    Touched,
    /// `WATCHING <count>`
    Watching(u64),
    /// `NOT_IGNORED`
    NotIgnored,
    /// `FOUND <id> <bytes>` and the body.
    Found {
        /// The job.
        id: JobId,
        /// Its body, without CRLF, cut from the read buffer.
        data: Bytes,
    },
    /// `KICKED <count>`, the answer to `kick`.
    Kicked(u64),
    /// `KICKED`, the answer to `kick-job`.
    KickedJob,
    /// `PAUSED`
    Paused,
    /// `OK <bytes>` and a YAML body, without its CRLF.
    Ok(Bytes),
}

impl ClientReply {
    /// The reply's word, for messages and statistics.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            ClientReply::Inserted(_) => "INSERTED",
            ClientReply::BuriedPut(_) | ClientReply::Buried => "BURIED",
            ClientReply::ExpectedCrlf => "EXPECTED_CRLF",
            ClientReply::JobTooBig => "JOB_TOO_BIG",
            ClientReply::Draining => "DRAINING",
            ClientReply::OutOfMemory => "OUT_OF_MEMORY",
            ClientReply::InternalError => "INTERNAL_ERROR",
            ClientReply::BadFormat => "BAD_FORMAT",
            ClientReply::UnknownCommand => "UNKNOWN_COMMAND",
            ClientReply::Using(_) => "USING",
            ClientReply::DeadlineSoon => "DEADLINE_SOON",
            ClientReply::TimedOut => "TIMED_OUT",
            ClientReply::Reserved { .. } => "RESERVED",
            ClientReply::Deleted => "DELETED",
            ClientReply::NotFound => "NOT_FOUND",
            ClientReply::Released => "RELEASED",
            ClientReply::Touched => "TOUCHED",
            ClientReply::Watching(_) => "WATCHING",
            ClientReply::NotIgnored => "NOT_IGNORED",
            ClientReply::Found { .. } => "FOUND",
            ClientReply::Kicked(_) | ClientReply::KickedJob => "KICKED",
            ClientReply::Paused => "PAUSED",
            ClientReply::Ok(_) => "OK",
        }
    }
}

/// Why received bytes are no reply. The stream cannot be used any further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// A word that the protocol does not have, or arguments that do not fit it.
    #[error("the server sent {0:?}, which is no reply of the protocol")]
    Unknown(String),
    /// No line end within a reasonable length.
    #[error("the server sent a line of more than {REPLY_LINE_MAX} bytes")]
    LineTooLong,
    /// A body larger than any that the protocol has use for, in bytes.
    #[error("the server announced a body of {0} bytes; the most that is read is {REPLY_BODY_MAX}")]
    BodyTooBig(u64),
    /// A body without CRLF behind it.
    #[error("the server sent a body that does not end with CRLF")]
    NoCrlf,
}

/// Turns received bytes into replies.
#[derive(Clone, Debug, Default)]
pub struct ReplyDecoder {
    /// The line before a body that has not come whole, and the body's length.
    pending: Option<(Carrier, usize)>,
}

/// A reply that carries a body.
#[derive(Clone, Copy, Debug)]
enum Carrier {
    Reserved(JobId),
    Found(JobId),
    Ok,
}

/// What a reply's line says.
enum Parsed {
    Whole(ClientReply),
    /// A body of so many bytes follows.
    Carrier(Carrier, u64),
}

impl ReplyDecoder {
    /// The next whole reply in `buf`, consumed; none when more bytes are needed. A body is cut out of `buf`
    /// without copying.
    ///
    /// # Errors
    /// See [`ReplyError`]. What is in `buf` then is of no use.
    pub fn next(&mut self, buf: &mut BytesMut) -> Result<Option<ClientReply>, ReplyError> {
        let (carrier, len) = match self.pending {
            Some(pending) => pending,
            None => match cut_line(buf)? {
                None => return Ok(None),
                Some(Parsed::Whole(reply)) => return Ok(Some(reply)),
                Some(Parsed::Carrier(_, len)) if len > REPLY_BODY_MAX => {
                    return Err(ReplyError::BodyTooBig(len));
                }
                Some(Parsed::Carrier(carrier, len)) => (carrier, len as usize),
            },
        };
        if buf.len() < len + 2 {
            self.pending = Some((carrier, len));
            return Ok(None);
        }
        if &buf[len..len + 2] != b"\r\n" {
            return Err(ReplyError::NoCrlf);
        }
        self.pending = None;
        let data = buf.split_to(len).freeze();
        buf.advance(2);
        Ok(Some(match carrier {
            Carrier::Reserved(id) => ClientReply::Reserved { id, data },
            Carrier::Found(id) => ClientReply::Found { id, data },
            Carrier::Ok => ClientReply::Ok(data),
        }))
    }
}

/// Takes the next whole line off `buf`; none when there is none yet.
fn cut_line(buf: &mut BytesMut) -> Result<Option<Parsed>, ReplyError> {
    let limit = buf.len().min(REPLY_LINE_MAX);
    let Some(lf) = memchr::memchr(b'\n', &buf[..limit]) else {
        return if buf.len() >= REPLY_LINE_MAX { Err(ReplyError::LineTooLong) } else { Ok(None) };
    };
    let line = &buf[..lf];
    let unknown = || ReplyError::Unknown(String::from_utf8_lossy(line).into_owned());
    let parsed = line.strip_suffix(b"\r").and_then(parse_reply).ok_or_else(unknown)?;
    buf.advance(lf + 1);
    Ok(Some(parsed))
}

fn parse_reply(line: &[u8]) -> Option<Parsed> {
    let Some(space) = memchr::memchr(b' ', line) else {
        return bare(line).map(Parsed::Whole);
    };
    let (word, args) = (&line[..space], &line[space + 1..]);
    Some(match word {
        b"INSERTED" => Parsed::Whole(ClientReply::Inserted(JobId(one_number(args)?))),
        b"RESERVED" => {
            let (id, len) = two_numbers(args)?;
            Parsed::Carrier(Carrier::Reserved(JobId(id)), len)
        }
        b"FOUND" => {
            let (id, len) = two_numbers(args)?;
            Parsed::Carrier(Carrier::Found(JobId(id)), len)
        }
        b"OK" => Parsed::Carrier(Carrier::Ok, one_number(args)?),
        b"WATCHING" => Parsed::Whole(ClientReply::Watching(one_number(args)?)),
        b"USING" => Parsed::Whole(ClientReply::Using(one_name(args)?)),
        b"KICKED" => Parsed::Whole(ClientReply::Kicked(one_number(args)?)),
        b"BURIED" => Parsed::Whole(ClientReply::BuriedPut(JobId(one_number(args)?))),
        _ => return None,
    })
}

/// The replies of one word.
fn bare(word: &[u8]) -> Option<ClientReply> {
    Some(match word {
        b"DELETED" => ClientReply::Deleted,
        b"NOT_FOUND" => ClientReply::NotFound,
        b"TIMED_OUT" => ClientReply::TimedOut,
        b"RELEASED" => ClientReply::Released,
        b"BURIED" => ClientReply::Buried,
        b"TOUCHED" => ClientReply::Touched,
        b"KICKED" => ClientReply::KickedJob,
        b"PAUSED" => ClientReply::Paused,
        b"DEADLINE_SOON" => ClientReply::DeadlineSoon,
        b"NOT_IGNORED" => ClientReply::NotIgnored,
        b"OUT_OF_MEMORY" => ClientReply::OutOfMemory,
        b"DRAINING" => ClientReply::Draining,
        b"JOB_TOO_BIG" => ClientReply::JobTooBig,
        b"EXPECTED_CRLF" => ClientReply::ExpectedCrlf,
        b"BAD_FORMAT" => ClientReply::BadFormat,
        b"UNKNOWN_COMMAND" => ClientReply::UnknownCommand,
        b"INTERNAL_ERROR" => ClientReply::InternalError,
        _ => return None,
    })
}

fn one_number(args: &[u8]) -> Option<u64> {
    let (number, digits) = take_decimal(args)?;
    (digits == args.len()).then_some(number)
}

fn two_numbers(args: &[u8]) -> Option<(u64, u64)> {
    let (first, digits) = take_decimal(args)?;
    let rest = args[digits..].strip_prefix(b" ")?;
    Some((first, one_number(rest)?))
}

fn one_name(args: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(args).ok()?;
    (!name.is_empty() && !name.contains(' ')).then(|| name.to_owned())
}

/// Appends a `put` with its body, which is given without CRLF. A `ttr` of 0 is sent as it is; servers take it
/// for 1.
///
/// # Panics
/// When the body is longer than `u32::MAX`, which the protocol cannot announce.
pub fn encode_put(pri: u32, delay: u32, ttr: u32, body: &[u8], out: &mut BytesMut) {
    put_words(b"put", [pri, delay, ttr], body, out);
}

/// Appends a `put-once`, Beanpole's own, as [`encode_put`] does a `put`. `numbers`: priority, delay, TTR.
///
/// # Panics
/// As [`encode_put`].
pub fn encode_put_once(key: &PutKey, numbers: [u32; 3], body: &[u8], out: &mut BytesMut) {
    put_words(&[b"put-once ", key.as_bytes()].concat(), numbers, body, out);
}

fn put_words(word: &[u8], [pri, delay, ttr]: [u32; 3], body: &[u8], out: &mut BytesMut) {
    let bytes = u32::try_from(body.len()).expect("a body's length fits the protocol's 32 bits");
    out.reserve(body.len() + MAX_LINE);
    words(out, word, &[u64::from(pri), u64::from(delay), u64::from(ttr), u64::from(bytes)]);
    out.extend_from_slice(body);
    out.extend_from_slice(b"\r\n");
}

/// Appends a command other than `put`, for which there is [`encode_put`].
pub fn encode_command(command: &Command<'_>, out: &mut BytesMut) {
    match command {
        Command::Use(tube) => name(out, b"use ", tube.as_str()),
        Command::Watch(tube) => name(out, b"watch ", tube.as_str()),
        Command::Ignore(tube) => name(out, b"ignore ", tube.as_str()),
        Command::StatsTube(tube) => name(out, b"stats-tube ", tube.as_str()),
        Command::Reserve => words(out, b"reserve", &[]),
        Command::ReserveWithTimeout(timeout) => words(out, b"reserve-with-timeout", &[u64::from(*timeout)]),
        Command::ReserveJob(id) => words(out, b"reserve-job", &[id.0]),
        Command::Delete(id) => words(out, b"delete", &[id.0]),
        Command::Release { id, pri, delay } => {
            words(out, b"release", &[id.0, u64::from(pri.0), u64::from(*delay)]);
        }
        Command::Bury { id, pri } => words(out, b"bury", &[id.0, u64::from(pri.0)]),
        Command::Touch(id) => words(out, b"touch", &[id.0]),
        Command::Peek(id) => words(out, b"peek", &[id.0]),
        Command::PeekReady => words(out, b"peek-ready", &[]),
        Command::PeekDelayed => words(out, b"peek-delayed", &[]),
        Command::PeekBuried => words(out, b"peek-buried", &[]),
        Command::Kick(bound) => words(out, b"kick", &[u64::from(*bound)]),
        Command::KickJob(id) => words(out, b"kick-job", &[id.0]),
        Command::Stats => words(out, b"stats", &[]),
        Command::StatsJob(id) => words(out, b"stats-job", &[id.0]),
        Command::ListTubes => words(out, b"list-tubes", &[]),
        Command::ListTubeUsed => words(out, b"list-tube-used", &[]),
        Command::ListTubesWatched => words(out, b"list-tubes-watched", &[]),
        Command::PauseTube { tube, delay } => {
            out.extend_from_slice(b"pause-tube ");
            words(out, tube.as_str().as_bytes(), &[u64::from(*delay)]);
        }
        Command::Quit => words(out, b"quit", &[]),
    }
}

/// A word and its numbers, each after a space, and CRLF.
fn words(out: &mut BytesMut, word: &[u8], numbers: &[u64]) {
    out.extend_from_slice(word);
    for number in numbers {
        out.extend_from_slice(b" ");
        put_decimal(out, *number);
    }
    out.extend_from_slice(b"\r\n");
}

/// A word with its space, a tube's name, and CRLF.
fn name(out: &mut BytesMut, word: &[u8], tube: &str) {
    out.extend_from_slice(word);
    out.extend_from_slice(tube.as_bytes());
    out.extend_from_slice(b"\r\n");
}
