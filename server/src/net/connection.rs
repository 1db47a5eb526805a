//! One connection: reads what the client sends, hands whole requests to the gateway, writes what is left over.
//!
//! Most replies never pass through this task: the gateway writes them itself, straight after the entry applied. The task
//! sleeps until its socket is readable, or writable while bytes are left, or until the gateway wakes it. An idle connection
//! holds no read buffer: buffers come from a small pool and go back as soon as nothing is left in them.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use beanpole_protocol::Decoder;
use bytes::BytesMut;
use parking_lot::Mutex;

use super::listener::Listener;
use super::stream::{Reading, Stream, Writing};
use crate::gateway::Next;
use crate::gateway::session::{ConnId, Outlet};
use crate::node::Shared;

/// Bytes asked of the socket at once.
const READ_BYTES: usize = 32 << 10;
/// Bytes that may wait undecoded while the session takes no commands; then the socket is left alone.
const UNDECODED_MAX: usize = 64 << 10;
/// A body is given room for this much more than has arrived, at most, so that announcing a large one costs nothing.
const BODY_AHEAD_MAX: usize = 1 << 20;
/// Empty read buffers kept for the next reader.
const POOL_MAX: usize = 16;
/// How long a client that was let go may go on sending before its connection is closed.
const GOODBYE_MAX: std::time::Duration = std::time::Duration::from_secs(1);
/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// Accepts connections until the task is dropped.
pub async fn serve_connections(listener: Listener, shared: Arc<Shared>, max_job_size: u32) {
    let pool = Arc::new(Pool::default());
    loop {
        match listener.accept().await {
            // A client that knows other nodes tries one of those.
            Ok(_) if shared.gateway.lock().turns_away() => {}
            Ok(stream) => serve_client(stream, &shared, &pool, max_job_size),
            // The client gave up before it was accepted.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection; is the limit on open files (ulimit -n) too low?");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one client, in a task of its own.
pub fn serve_client(stream: Stream, shared: &Arc<Shared>, pool: &Arc<Pool>, max_job_size: u32) {
    let (reading, writing) = stream.split();
    let link = Arc::new(Link { writing, waker: Mutex::new(None) });
    let conn = shared.gateway.lock().connect(link.clone());
    let connection = Connection {
        conn,
        reading,
        link,
        decoder: Decoder::new(max_job_size),
        buf: BytesMut::new(),
        ended: false,
        pool: pool.clone(),
        shared: shared.clone(),
        parting: None,
    };
    tokio::spawn(connection.run());
}

/// Read buffers that nobody uses now.
#[derive(Default)]
pub struct Pool(Mutex<Vec<BytesMut>>);

impl Pool {
    fn take(&self) -> BytesMut {
        self.0.lock().pop().unwrap_or_else(|| BytesMut::with_capacity(READ_BYTES))
    }

    /// Keeps a buffer, if it is one of the ordinary size.
    fn give(&self, mut buf: BytesMut) {
        buf.clear();
        // Reclaims the whole allocation when no body that was cut from it is alive; else it is a new one.
        buf.reserve(READ_BYTES);
        let mut pool = self.0.lock();
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
    pool: Arc<Pool>,
    shared: Arc<Shared>,
    /// Runs while the connection is being ended.
    parting: Option<Pin<Box<tokio::time::Sleep>>>,
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
            let enough = self.buf.len() >= UNDECODED_MAX && self.decoder.body_missing() == 0;
            if self.ended || enough {
                return Poll::Pending;
            }
            match self.poll_read(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(read) => self.ended = read? == 0,
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
        gateway.flush_session(self.conn);
        self.shared.wake_for(&gateway);
        drop(gateway);
        if self.buf.is_empty() && self.buf.capacity() > 0 {
            self.pool.give(std::mem::take(&mut self.buf));
        }
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
        let borrowed = self.buf.capacity() == 0;
        if borrowed {
            self.buf = self.pool.take();
        }
        let ahead = self.decoder.body_missing().clamp(READ_BYTES / 8, BODY_AHEAD_MAX);
        self.buf.reserve(ahead);
        let read = self.reading.poll_read(cx, &mut self.buf);
        if borrowed && self.buf.is_empty() {
            self.pool.give(std::mem::take(&mut self.buf));
        }
        read
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut gateway = self.shared.gateway.lock();
        gateway.disconnect(self.conn);
        self.shared.wake_for(&gateway);
    }
}
