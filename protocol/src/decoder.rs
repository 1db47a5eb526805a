//! Cuts whole requests out of a server's read buffer. A pure state machine: it sees bytes, never a socket.
//!
//! ```text
//!          ┌────────── line ◄───────────────┐
//!   too    │            │ put               │ rest of a long line gone
//!   long ──┤            ▼                   │
//!          │   fits: Body ─► request        │
//!          ▼   too big: Swallow ─► JOB_TOO_BIG, or OUT_OF_MEMORY where bodies are refused
//!       Discard ───────────────► BAD_FORMAT ┘
//! ```

use bytes::{Buf, BytesMut};

use crate::command::{BadRequest, PutHeader, Request};
use crate::parse::{Line, parse_line};
use crate::values::MAX_LINE;

/// Where the decoder stands in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A line comes next.
    Line,
    /// The body of a put, and its CRLF, come next.
    Body(PutHeader),
    /// The body of a put that is not taken is thrown away; so many bytes are left, and this is why.
    Swallow(u64, BadRequest),
    /// A line that is too long is thrown away up to its end.
    Discard,
}

/// Turns received bytes into requests.
#[derive(Clone, Debug)]
pub struct Decoder {
    state: State,
    max_job_size: u32,
    /// While a line comes in: bytes at the buffer's start that are known to hold no line end, so that each
    /// byte is looked at once however it trickles in. While a body comes in: bytes of it that are there.
    scanned: usize,
    /// Bodies of puts that begin now are not taken.
    refusing: bool,
}

/// A line could be cut, has not come whole, or is too long.
enum Cut {
    Whole(usize),
    Partial,
    TooLong,
}

impl Decoder {
    /// A decoder at the start of a connection; bodies of up to `max_job_size` bytes are accepted.
    #[must_use]
    pub fn new(max_job_size: u32) -> Self {
        Decoder { state: State::Line, max_job_size, scanned: 0, refusing: false }
    }

    /// Calls `f` with the next whole request in `buf` and consumes it; none when more bytes are needed. What
    /// cannot become part of a request (the body of a job that is too big, the rest of a line that is too
    /// long) is consumed as it comes, so what stays in `buf` is at most a line of [`MAX_LINE`] bytes or a
    /// body of `max_job_size + 2`.
    ///
    /// Allocates nothing. The body of a put is cut out of `buf` without copying, and so keeps the memory of
    /// the whole read alive for as long as it lives.
    pub fn next<R>(&mut self, buf: &mut BytesMut, f: impl FnOnce(Request<'_>) -> R) -> Option<R> {
        loop {
            match self.state {
                State::Line => match self.cut_line(buf) {
                    Cut::Partial => return None,
                    Cut::TooLong => self.state = State::Discard,
                    Cut::Whole(len) => match parse_line(&buf[..len]) {
                        Ok(Line::Command(command)) => {
                            let result = f(Request::Command(command));
                            self.consume_line(buf, len);
                            return Some(result);
                        }
                        Ok(Line::Put(header)) => {
                            self.consume_line(buf, len);
                            self.state = self.after_put(header);
                        }
                        Ok(Line::PutTrailing(header)) => {
                            self.consume_line(buf, len);
                            if header.bytes <= self.max_job_size {
                                return Some(f(Request::Bad(BadRequest::BadFormat)));
                            }
                            self.state = self.after_put(header);
                        }
                        Err(bad) => {
                            self.consume_line(buf, len);
                            return Some(f(Request::Bad(bad)));
                        }
                    },
                },
                State::Body(header) => return self.body(buf, header).map(f),
                State::Swallow(left, why) => {
                    let now = left.min(buf.len() as u64);
                    buf.advance(now as usize);
                    if now < left {
                        self.state = State::Swallow(left - now, why);
                        return None;
                    }
                    self.state = State::Line;
                    return Some(f(Request::Bad(why)));
                }
                State::Discard => {
                    if !discard_line(buf) {
                        return None;
                    }
                    self.state = State::Line;
                    return Some(f(Request::Bad(BadRequest::BadFormat)));
                }
            }
        }
    }

    /// Bytes of a put's body, and its CRLF, that are not in the buffer yet, as of the last [`Decoder::next`].
    /// A reader may make room for them.
    #[must_use]
    pub fn body_missing(&self) -> usize {
        match self.state {
            State::Body(header) => (header.bytes as usize + 2).saturating_sub(self.scanned),
            State::Line | State::Swallow(..) | State::Discard => 0,
        }
    }

    /// Whether bodies of puts that begin from now on are thrown away as they come, and answered by
    /// [`BadRequest::NoRoom`]. One that has begun is not affected.
    pub fn refuse_bodies(&mut self, refuse: bool) {
        self.refusing = refuse;
    }

    /// Gives up the body that is coming in, if one is: what has come of it is thrown away, and so is the rest as it
    /// comes. `buf` is the buffer of the last [`Decoder::next`].
    pub fn give_up_body(&mut self, buf: &mut BytesMut) {
        if let State::Body(header) = self.state {
            let whole = header.bytes as usize + 2;
            let come = whole.min(buf.len());
            buf.advance(come);
            self.scanned = 0;
            self.state = State::Swallow((whole - come) as u64, BadRequest::NoRoom);
        }
    }

    /// Whether the stream stands within a request, so that its end now would cut one off.
    #[must_use]
    pub fn is_mid_request(&self, buf: &BytesMut) -> bool {
        self.state != State::Line || !buf.is_empty()
    }

    /// Finds the end of the line: CRLF within the limit. An LF without its CR belongs to the line, as in
    /// beanstalkd.
    fn cut_line(&mut self, buf: &BytesMut) -> Cut {
        let limit = buf.len().min(MAX_LINE);
        let mut from = self.scanned.min(limit);
        while let Some(at) = memchr::memchr(b'\n', &buf[from..limit]) {
            let lf = from + at;
            if lf > 0 && buf[lf - 1] == b'\r' {
                return Cut::Whole(lf - 1);
            }
            from = lf + 1;
        }
        self.scanned = limit;
        if buf.len() < MAX_LINE {
            return Cut::Partial;
        }
        self.scanned = 0;
        Cut::TooLong
    }

    fn consume_line(&mut self, buf: &mut BytesMut, len: usize) {
        buf.advance(len + 2);
        self.scanned = 0;
    }

    fn after_put(&self, header: PutHeader) -> State {
        if header.bytes > self.max_job_size {
            State::Swallow(u64::from(header.bytes) + 2, BadRequest::JobTooBig)
        } else if self.refusing {
            State::Swallow(u64::from(header.bytes) + 2, BadRequest::NoRoom)
        } else {
            State::Body(header)
        }
    }

    fn body(&mut self, buf: &mut BytesMut, header: PutHeader) -> Option<Request<'static>> {
        let whole = header.bytes as usize + 2;
        if buf.len() < whole {
            self.scanned = buf.len();
            return None;
        }
        self.scanned = 0;
        self.state = State::Line;
        if &buf[whole - 2..whole] != b"\r\n" {
            buf.advance(whole);
            return Some(Request::Bad(BadRequest::ExpectedCrlf));
        }
        Some(Request::Put { header, body: buf.split_to(whole).freeze() })
    }
}

/// Throws bytes away up to the end of the line; true when it was found. A CR at the end may be half of it,
/// and stays.
fn discard_line(buf: &mut BytesMut) -> bool {
    match memchr::memmem::find(buf, b"\r\n") {
        Some(at) => {
            buf.advance(at + 2);
            true
        }
        None => {
            let keep = usize::from(buf.last() == Some(&b'\r'));
            buf.advance(buf.len() - keep);
            false
        }
    }
}
