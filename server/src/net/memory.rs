//! A client's connection within the process: two pipes with bounded buffers, and ends that behave as sockets do. Simulations
//! speak to the gateway through it.
//!
//! ```text
//!   Client ── write ──► Pipe ──► Reader   (the connection's task)
//!          ◄── read ─── Pipe ◄── Writer   (the gateway)
//! ```

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes under way in one direction; a writer waits beyond that.
const WINDOW_BYTES: usize = 64 << 10;

/// One direction of a connection.
#[derive(Default)]
struct Pipe(Mutex<State>);

#[derive(Default)]
struct State {
    bytes: BytesMut,
    /// Nobody writes any more.
    ended: bool,
    /// Nobody reads any more.
    deaf: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl State {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

impl Pipe {
    /// What there is, or the end as `Some(0)`, or nothing yet.
    fn poll_read(&self, cx: &Context<'_>, most: usize, mut take: impl FnMut(&[u8])) -> Poll<usize> {
        let mut state = self.0.lock();
        if state.bytes.is_empty() && !state.ended {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let len = state.bytes.len().min(most);
        take(&state.bytes[..len]);
        state.bytes.advance(len);
        if let Some(writer) = state.writer.take() {
            writer.wake();
        }
        Poll::Ready(len)
    }

    fn poll_writable(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        if state.bytes.len() < WINDOW_BYTES || state.deaf || state.ended {
            return Poll::Ready(Ok(()));
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        if state.deaf || state.ended {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let len = bytes.len().min(WINDOW_BYTES.saturating_sub(state.bytes.len()));
        if len == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.bytes.extend_from_slice(&bytes[..len]);
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        Ok(len)
    }

    fn end(&self) {
        let mut state = self.0.lock();
        state.ended = true;
        state.wake();
    }

    fn stop_reading(&self) {
        let mut state = self.0.lock();
        state.deaf = true;
        state.bytes.clear();
        state.wake();
    }
}

/// The server's end, before it is split.
pub struct Stream {
    reader: Reader,
    writer: Writer,
}

/// What the client sends.
pub struct Reader(Arc<Pipe>);

/// What the client is sent.
pub struct Writer(Arc<Pipe>);

/// The client's end. Dropping it closes the connection.
pub struct Client {
    incoming: Arc<Pipe>,
    outgoing: Arc<Pipe>,
}

/// A way to break a connection from outside, as the death of the server's process does.
pub struct Breaker {
    to_client: Weak<Pipe>,
    from_client: Weak<Pipe>,
}

/// Tells whether the server has closed a connection, also while its client does not look.
#[derive(Clone)]
pub struct Probe(Weak<Pipe>);

impl Probe {
    /// Whether the server, or its end, has closed the connection; or the client itself has.
    pub fn is_closed(&self) -> bool {
        self.0.upgrade().is_none_or(|pipe| {
            let state = pipe.0.lock();
            state.ended || state.deaf
        })
    }
}

impl Client {
    /// See [`Probe`].
    pub fn probe(&self) -> Probe {
        Probe(Arc::downgrade(&self.incoming))
    }
}

/// A connection: both ends, and what breaks it.
pub fn connection() -> (Client, Stream, Breaker) {
    let (there, back) = (Arc::new(Pipe::default()), Arc::new(Pipe::default()));
    let breaker = Breaker { to_client: Arc::downgrade(&back), from_client: Arc::downgrade(&there) };
    let stream = Stream { reader: Reader(there.clone()), writer: Writer(back.clone()) };
    (Client { incoming: back, outgoing: there }, stream, breaker)
}

impl Stream {
    /// Both halves.
    pub fn into_split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }
}

impl Reader {
    /// Reads what has arrived into `buf`, or waits; 0 is the end of input.
    pub fn poll_read(&mut self, cx: &Context<'_>, buf: &mut BytesMut) -> Poll<usize> {
        let room = buf.capacity() - buf.len();
        self.0.poll_read(cx, room, |bytes| buf.extend_from_slice(bytes))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.stop_reading();
    }
}

impl Writer {
    /// Ready when the connection may take bytes.
    pub fn poll_writable(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_writable(cx)
    }

    /// Writes what the connection takes.
    ///
    /// # Errors
    /// `WouldBlock` while the client does not read, `BrokenPipe` when it is gone.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    /// Tells the client that nothing more will be written.
    pub fn shut_down(&self) {
        self.0.end();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Breaker {
    /// Ends both directions. What the client was sent before can still be read; what it sent may be lost.
    pub fn break_now(&self) {
        if let Some(pipe) = self.to_client.upgrade() {
            pipe.end();
        }
        if let Some(pipe) = self.from_client.upgrade() {
            pipe.stop_reading();
            pipe.end();
        }
    }

    /// Whether both ends are gone.
    pub fn is_over(&self) -> bool {
        self.to_client.strong_count() == 0 && self.from_client.strong_count() == 0
    }
}

impl AsyncRead for Client {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = out.remaining();
        self.incoming.poll_read(cx, room, |bytes| out.put_slice(bytes)).map(|_| Ok(()))
    }
}

impl AsyncWrite for Client {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.outgoing.poll_writable(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) => Poll::Ready(self.outgoing.try_write(bytes)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.outgoing.end();
        self.incoming.stop_reading();
    }
}
