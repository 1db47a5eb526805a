//! One connection: reads what the client sends, hands whole requests to the gateway, writes what is left over.
//!
//! Most replies never pass through this task: the gateway writes them itself, straight after the entry applied. The task
//! sleeps until its socket is readable, or writable while bytes are left, or until the gateway wakes it. An idle connection
//! holds no read buffer: buffers come from a small pool and go back as soon as nothing is left in them.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use beanpole_protocol::Decoder;
use bytes::BytesMut;
use parking_lot::Mutex;

use super::door::Pass;
use super::listener::Listener;
use super::stream::{Reading, Stream, Writing};
use crate::gateway::Next;
use crate::gateway::session::{ConnId, Outlet};
use crate::node::Shared;

/// Bytes asked of the socket at once.
const READ_BYTES: usize = 32 << 10;
/// Bytes that may wait undecoded while the session takes no commands; then the socket is left alone.
const UNDECODED_MAX: usize = 64 << 10;
/// A body is given room for this much more than has arrived, at most.
const BODY_AHEAD_MAX: usize = 1 << 20;
/// Empty read buffers kept for the next reader.
const POOL_MAX: usize = 16;
/// What is left of a read and shorter than this does not keep a whole read buffer: it is the beginning of a line.
const REMAINDER_MAX: usize = 256;
/// A body that has not come whole after so long is given up if others need the room: see [`Pool`].
const BODY_WITHIN: std::time::Duration = std::time::Duration::from_secs(10);
/// Bytes that all clients together may have sent and not completed, before it is told otherwise.
const RECEIVED_BYTES_DEFAULT: usize = 64 << 20;
/// How long a client that was let go may go on sending before its connection is closed.
const GOODBYE_MAX: std::time::Duration = std::time::Duration::from_secs(1);
/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
/// How often that is told while it lasts.
const TELL_EVERY: std::time::Duration = std::time::Duration::from_secs(10);

/// Accepts connections until the task is dropped.
pub async fn serve_connections(listener: Listener, shared: Arc<Shared>, max_job_size: u32) {
    let mut told: Option<std::time::Instant> = None;
    loop {
        match listener.accept().await {
            Ok((stream, from)) => admit(stream, from, &shared, max_job_size),
            // The client gave up before it was accepted.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
                    told = Some(std::time::Instant::now());
                    tracing::warn!(%error, "cannot accept a connection; is the limit on open files (ulimit -n) too low?");
                }
                // The socket stays readable: without a pause this would take a whole processor.
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves a client that was accepted, or closes its connection at once.
fn admit(stream: Stream, from: Option<SocketAddr>, shared: &Arc<Shared>, max_job_size: u32) {
    // A client that knows other nodes tries one of those.
    if shared.gateway.lock().turns_away() {
        return;
    }
    let Some(pass) = shared.door.enter(from.map(|from| from.ip())) else { return };
    if stream.prepare().is_ok() {
        serve_client(stream, from, Some(pass), shared, max_job_size);
    }
}

/// Serves one client, in a task of its own. `from`: its address, if it has one; `pass`: that it was let in, if that was asked.
pub fn serve_client(
    stream: Stream,
    from: Option<SocketAddr>,
    pass: Option<Pass>,
    shared: &Arc<Shared>,
    max_job_size: u32,
) {
    let (reading, writing) = stream.split();
    let link = Arc::new(Link { writing, waker: Mutex::new(None) });
    let conn = shared.gateway.lock().connect(link.clone(), from);
    let connection = Connection {
        conn,
        reading,
        link,
        decoder: Decoder::new(max_job_size),
        buf: BytesMut::new(),
        ended: false,
        counted: 0,
        heard: 0,
        shared: shared.clone(),
        body_due: None,
        parting: None,
        _pass: pass,
    };
    tokio::spawn(connection.run());
}

/// Read buffers that nobody uses now, and the account of those in use: what all clients have sent and not completed counts
/// against one budget, so that bodies which are announced and come slowly, or never, cannot take all memory.
pub struct Pool {
    buffers: Mutex<Vec<BytesMut>>,
    /// Bytes of read buffers in use.
    used: AtomicUsize,
    limit: AtomicUsize,
}

impl Default for Pool {
    fn default() -> Self {
        let limit = AtomicUsize::new(RECEIVED_BYTES_DEFAULT);
        Pool { buffers: Mutex::default(), used: AtomicUsize::new(0), limit }
    }
}

impl Pool {
    /// Bytes of read buffers in use.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Bytes that clients may have sent and not completed, from now on.
    pub fn set_limit(&self, bytes: usize) {
        self.limit.store(bytes, Relaxed);
    }

    /// Whether there is no room for so many more bytes.
    fn is_short_of(&self, more: usize) -> bool {
        self.used() + more > self.limit.load(Relaxed)
    }

    /// Whether less than half of the room is left.
    fn is_half_used(&self) -> bool {
        self.used() > self.limit.load(Relaxed) / 2
    }

    fn count(&self, before: usize, now: usize) {
        if now >= before {
            self.used.fetch_add(now - before, Relaxed);
        } else {
            self.used.fetch_sub(before - now, Relaxed);
        }
    }

    fn take(&self) -> BytesMut {
        self.buffers.lock().pop().unwrap_or_else(|| BytesMut::with_capacity(READ_BYTES))
    }

    /// Keeps a buffer, if it is one of the ordinary size.
    fn give(&self, mut buf: BytesMut) {
        buf.clear();
        // Reclaims the whole allocation when no body that was cut from it is alive; else it is a new one.
        buf.reserve(READ_BYTES);
        let mut pool = self.buffers.lock();
        if pool.len() < POOL_MAX && buf.capacity() <= 2 * READ_BYTES {
            pool.push(buf);
        }
    }
}

/// The gateway's way to the client, and to the connection's task.
struct Link {
    writing: Writing,
    waker: Mutex<Option<Waker>>,
}

impl Outlet for Link {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.writing.try_write(bytes)
    }
    fn wake(&self) {
        if let Some(waker) = &*self.waker.lock() {
            waker.wake_by_ref();
        }
    }
}

struct Connection {
    conn: ConnId,
    reading: Reading,
    link: Arc<Link>,
    decoder: Decoder,
    /// What was read and is not decoded yet.
    buf: BytesMut,
    /// The client sends nothing more.
    ended: bool,
    /// Bytes of `buf` that the pool has counted.
    counted: usize,
    /// Bytes read that the gateway does not know of yet.
    heard: usize,
    shared: Arc<Shared>,
    /// Runs while a body is coming in: when it is late.
    body_due: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Runs while the connection is being ended.
    parting: Option<Pin<Box<tokio::time::Sleep>>>,
    /// It counts as long as it is open.
    _pass: Option<Pass>,
}

impl Connection {
    async fn run(mut self) {
        let end = poll_fn(|cx| self.step(cx)).await;
        if let Err(error) = end {
            tracing::debug!(conn = self.conn.0, %error, "connection lost");
        }
    }

    /// Does all there is to do; pending until something happens, ready when the connection is over.
    fn step(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.keep_waker(cx);
        loop {
            self.decode();
            match self.outlook(cx)? {
                Next::Listen => {}
                Next::Close => return Poll::Ready(Ok(())),
                Next::Goodbye => return self.goodbye(cx),
            }
            // A client that sends on while its commands are held back waits in its own buffers.
            let held_back = self.buf.len() >= UNDECODED_MAX
                || self.buf.len() > REMAINDER_MAX && self.shared.pool.is_half_used();
            if self.ended || held_back && self.decoder.body_missing() == 0 {
                return Poll::Pending;
            }
            match self.poll_read(cx) {
                Poll::Pending if self.is_body_late(cx) => self.give_up_body(),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(read) => {
                    let read = read?;
                    self.heard += read;
                    self.ended = read == 0;
                }
            }
        }
    }

    fn keep_waker(&self, cx: &Context<'_>) {
        let mut waker = self.link.waker.lock();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Hands whole requests to the gateway while it takes them.
    fn decode(&mut self) {
        if self.buf.is_empty() && !self.ended {
            return;
        }
        let mut gateway = self.shared.gateway.lock();
        self.decoder.refuse_bodies(gateway.refuses_puts());
        // A reserve that the end of the input ends lets what stands behind it run.
        let mut tell_end = self.ended;
        loop {
            let conn = self.conn;
            while gateway.may_take(conn) {
                let taken = self.decoder.next(&mut self.buf, |request| gateway.request(conn, request));
                if taken.is_none() {
                    break;
                }
                tell_end = self.ended;
            }
            if !std::mem::take(&mut tell_end) {
                break;
            }
            gateway.end_input(conn);
        }
        let held = if self.buf.is_empty() { 0 } else { self.buf.capacity() };
        gateway.note_input(self.conn, std::mem::take(&mut self.heard), held);
        gateway.flush_session(self.conn);
        self.shared.wake_for(&gateway);
        drop(gateway);
        if self.buf.is_empty() && self.buf.capacity() > 0 {
            self.shared.pool.give(std::mem::take(&mut self.buf));
        }
        self.count();
    }

    /// Tells the pool what this connection's buffer takes now.
    fn count(&mut self) {
        let now = self.buf.capacity();
        if now != self.counted {
            self.shared.pool.count(std::mem::replace(&mut self.counted, now), now);
        }
    }

    /// Whether a body is coming in, for longer than others who need the room can wait. Sets the time when it is looked again.
    fn is_body_late(&mut self, cx: &mut Context<'_>) -> bool {
        if self.decoder.body_missing() == 0 {
            self.body_due = None;
            return false;
        }
        let due = self.body_due.get_or_insert_with(|| Box::pin(tokio::time::sleep(BODY_WITHIN)));
        while due.as_mut().poll(cx).is_ready() {
            if self.shared.pool.is_half_used() {
                return true;
            }
            due.as_mut().reset(tokio::time::Instant::now() + BODY_WITHIN);
        }
        false
    }

    /// The body that is coming in is answered `OUT_OF_MEMORY` when its end has come.
    fn give_up_body(&mut self) {
        self.decoder.give_up_body(&mut self.buf);
        self.body_due = None;
        if self.buf.is_empty() {
            self.buf = BytesMut::new();
        }
        self.count();
    }

    /// Writes what is left over, and finds out whether the connection goes on.
    fn outlook(&mut self, cx: &mut Context<'_>) -> io::Result<Next> {
        loop {
            let outlook = self.shared.gateway.lock().outlook(self.conn);
            if !outlook.unwritten {
                return Ok(outlook.next);
            }
            match self.link.writing.poll_writable(cx) {
                Poll::Pending => return Ok(Next::Listen),
                Poll::Ready(ready) => ready?,
            }
            self.shared.gateway.lock().write(self.conn)?;
        }
    }

    /// Ends the connection so that no reply on its way is lost: a close with unread input would destroy it. What the client still
    /// sends is thrown away, until it closes too or its time is over.
    fn goodbye(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.parting.is_none() {
            self.link.writing.shut_down()?;
            self.parting = Some(Box::pin(tokio::time::sleep(GOODBYE_MAX)));
        }
        self.buf.clear();
        while let Poll::Ready(read) = self.poll_read(cx) {
            if read? == 0 {
                return Poll::Ready(Ok(()));
            }
            self.buf.clear();
        }
        match &mut self.parting {
            Some(timer) => timer.as_mut().poll(cx).map(Ok),
            None => Poll::Pending,
        }
    }

    /// Reads what has arrived. While nothing has, the connection holds no buffer.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let missing = self.decoder.body_missing();
        // As much again as has come: what is only announced costs next to nothing.
        let ahead = missing.min(self.buf.len().min(BODY_AHEAD_MAX)).max(READ_BYTES / 8);
        let grows = (self.buf.len() + ahead).saturating_sub(self.counted);
        if missing > 0 && self.shared.pool.is_short_of(grows) {
            self.give_up_body();
        }
        let borrowed = self.buf.capacity() == 0;
        if borrowed {
            self.buf = self.shared.pool.take();
        }
        self.buf.reserve(ahead);
        let read = self.reading.poll_read(cx, &mut self.buf);
        if borrowed && self.buf.is_empty() {
            self.shared.pool.give(std::mem::take(&mut self.buf));
        } else if read.is_pending() && missing == 0 && self.buf.len() <= REMAINDER_MAX {
            self.keep_remainder();
        }
        self.count();
        read
    }

    /// The beginning of a line waits for its end in as little memory as it needs.
    fn keep_remainder(&mut self) {
        if self.buf.capacity() >= READ_BYTES / 8 {
            let mut small = BytesMut::with_capacity(REMAINDER_MAX);
            small.extend_from_slice(&self.buf);
            self.shared.pool.give(std::mem::replace(&mut self.buf, small));
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut gateway = self.shared.gateway.lock();
        gateway.disconnect(self.conn);
        self.shared.wake_for(&gateway);
        self.shared.pool.count(self.counted, 0);
    }
}
