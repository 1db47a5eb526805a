//! A network in memory, for tests and simulations: cuts, crashes and delays, by tokio's clock, so that a paused
//! runtime plays hours in a moment and a seed repeats exactly.
//!
//! A direction that is cut behaves as a cable that was pulled: bytes sent are neither delivered nor refused, the
//! end of a connection is not seen either, and connecting hangs. When it is healed, what was sent arrives after
//! all (as retransmission would have it), if both ends still have the connection open.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, Sleep};

use crate::net::{Net, Wire};

/// Bytes under way in one direction; a writer waits beyond that.
const WINDOW_BYTES: usize = 256 << 10;
/// Connections that wait to be accepted; more are refused.
const BACKLOG: usize = 128;
/// What was lost on the way is sent again after this long, as TCP does; what was sent behind it waits.
const SENT_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// The network that [`SimHub::net`]'s nodes share. Cloning gives another handle.
#[derive(Clone)]
pub struct SimHub {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Something was healed, or a listener came up.
    changed: Notify,
}

struct State {
    listeners: BTreeMap<String, mpsc::Sender<End>>,
    /// Lives of each address: one more with each [`SimHub::net`] and each [`SimHub::crash`].
    lives: BTreeMap<String, u64>,
    /// Directions in which nothing passes.
    cut: BTreeSet<(String, String)>,
    pipes: Vec<Arc<Pipe>>,
    rng: StdRng,
    delay_max: Duration,
    /// How probable it is that a write is lost and sent again.
    loss: f64,
}

impl SimHub {
    /// A network without delay.
    #[must_use]
    pub fn new() -> Self {
        Self::with_delay(0, Duration::ZERO)
    }

    /// A network in which each write takes up to `delay_max`, drawn from `seed`; the order within a connection
    /// is kept.
    #[must_use]
    pub fn with_delay(seed: u64, delay_max: Duration) -> Self {
        let state = State {
            listeners: BTreeMap::new(),
            lives: BTreeMap::new(),
            cut: BTreeSet::new(),
            pipes: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
            delay_max,
            loss: 0.0,
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }) }
    }

    /// The network as the node at `address` sees it. Asked again for the same address (a restart), connections
    /// go to the newest.
    #[must_use]
    pub fn net(&self, address: &str) -> Arc<dyn Net> {
        let (sender, accepted) = mpsc::channel(BACKLOG);
        let (replaced, life) = {
            let mut state = self.shared.state.lock();
            let life = state.begin_life(address);
            (state.listeners.insert(address.to_owned(), sender), life)
        };
        // Outside the lock: connections that wait in it lock the hub when they are dropped.
        drop(replaced);
        self.shared.changed.notify_waiters();
        Arc::new(SimNet {
            hub: self.shared.clone(),
            address: address.to_owned(),
            life,
            accepted: tokio::sync::Mutex::new(accepted),
        })
    }

    /// From now on each write takes up to `delay_max`, and is lost and sent again with probability `loss`.
    pub fn set_weather(&self, delay_max: Duration, loss: f64) {
        let mut state = self.shared.state.lock();
        state.delay_max = delay_max;
        state.loss = loss;
    }

    /// Breaks every connection between `a` and `b`; both ends see it at once. New ones can be made.
    pub fn break_between(&self, a: &str, b: &str) {
        let mut state = self.shared.state.lock();
        for pipe in &state.pipes {
            if (pipe.from == a && pipe.to == b) || (pipe.from == b && pipe.to == a) {
                pipe.close();
            }
        }
        state.wake_pipes();
    }

    /// Nothing passes from `from` to `to` any more; the other direction stays as it is.
    pub fn cut_one_way(&self, from: &str, to: &str) {
        self.shared.state.lock().cut.insert((from.to_owned(), to.to_owned()));
    }

    /// Nothing passes between `a` and `b` any more.
    pub fn cut(&self, a: &str, b: &str) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Undoes every cut between `a` and `b`.
    pub fn heal(&self, a: &str, b: &str) {
        let between = |(from, to): &(String, String)| (from == a && to == b) || (from == b && to == a);
        self.heal_if(between);
    }

    /// Undoes every cut.
    pub fn heal_all(&self) {
        self.heal_if(|_| true);
    }

    fn heal_if(&self, healed: impl Fn(&(String, String)) -> bool) {
        let mut state = self.shared.state.lock();
        state.cut.retain(|direction| !healed(direction));
        state.wake_pipes();
        drop(state);
        self.shared.changed.notify_waiters();
    }

    /// Closes every connection of the node at `address` and refuses new ones until [`SimHub::net`] is called for
    /// it again: what the kernel does when a process dies.
    pub fn crash(&self, address: &str) {
        let mut state = self.shared.state.lock();
        // What is left of the process connects no more.
        state.begin_life(address);
        let listener = state.listeners.remove(address);
        for pipe in &state.pipes {
            if pipe.from == address || pipe.to == address {
                pipe.close();
            }
        }
        state.wake_pipes();
        drop(state);
        drop(listener);
        self.shared.changed.notify_waiters();
    }
}

impl Default for SimHub {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    fn is_cut(&self, from: &str, to: &str) -> bool {
        !self.cut.is_empty() && self.cut.contains(&(from.to_owned(), to.to_owned()))
    }

    /// Ends the life that an address has, if it has one; answers the number of the next.
    fn begin_life(&mut self, address: &str) -> u64 {
        let life = self.lives.entry(address.to_owned()).or_default();
        *life += 1;
        *life
    }

    fn delay(&mut self) -> Duration {
        let again = if self.loss > 0.0 && self.rng.random_bool(self.loss) {
            SENT_AGAIN_AFTER
        } else {
            Duration::ZERO
        };
        if self.delay_max.is_zero() {
            return again;
        }
        again + self.rng.random_range(Duration::ZERO..=self.delay_max)
    }

    /// Wakes everybody and forgets the connections that are gone.
    fn wake_pipes(&mut self) {
        self.pipes.retain(|pipe| Arc::strong_count(pipe) > 1);
        for pipe in &self.pipes {
            pipe.wake();
        }
    }
}

/// One node's side of a [`SimHub`].
pub struct SimNet {
    hub: Arc<Shared>,
    address: String,
    life: u64,
    accepted: tokio::sync::Mutex<mpsc::Receiver<End>>,
}

impl Net for SimNet {
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Wire>>> {
        let (hub, from, to, life) = (self.hub.clone(), self.address.clone(), address.to_owned(), self.life);
        Box::pin(async move {
            loop {
                let changed = hub.changed.notified();
                if let Some(connected) = connect_now(&hub, &from, &to, life) {
                    let (delay, result) = connected;
                    tokio::time::sleep(delay).await;
                    return result.map(|end| Box::new(end) as Box<dyn Wire>);
                }
                changed.await;
            }
        })
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<Box<dyn Wire>>> {
        Box::pin(async {
            match self.accepted.lock().await.recv().await {
                Some(end) => Ok(Box::new(end) as Box<dyn Wire>),
                // Crashed, or another net has its address: nobody will connect here any more.
                None => std::future::pending().await,
            }
        })
    }
}

/// The answer to a connection attempt and how long it takes; `None` while one direction is cut, and when `from`
/// has another life by now.
fn connect_now(hub: &Arc<Shared>, from: &str, to: &str, life: u64) -> Option<(Duration, io::Result<End>)> {
    let mut state = hub.state.lock();
    if state.is_cut(from, to) || state.is_cut(to, from) || state.lives.get(from) != Some(&life) {
        return None;
    }
    let delay = state.delay();
    let there = Arc::new(Pipe::new(from, to));
    let back = Arc::new(Pipe::new(to, from));
    let theirs = End { hub: hub.clone(), incoming: there.clone(), outgoing: back.clone(), sleep: None };
    let refused = match state.listeners.get(to) {
        Some(listener) => listener.try_send(theirs).err().map(mpsc::error::TrySendError::into_inner),
        None => Some(theirs),
    };
    if refused.is_some() {
        // An end locks the hub when it is dropped.
        drop(state);
        return Some((delay, Err(io::ErrorKind::ConnectionRefused.into())));
    }
    state.pipes.push(there.clone());
    state.pipes.push(back.clone());
    Some((delay, Ok(End { hub: hub.clone(), incoming: back, outgoing: there, sleep: None })))
}

/// One direction of a connection.
struct Pipe {
    from: String,
    to: String,
    state: Mutex<PipeState>,
}

#[derive(Default)]
struct PipeState {
    /// What is under way and when it arrives.
    chunks: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    /// The writer will write no more.
    ended: bool,
    /// The reader will read no more.
    deaf: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn new(from: &str, to: &str) -> Self {
        Self { from: from.to_owned(), to: to.to_owned(), state: Mutex::default() }
    }

    fn wake(&self) {
        let mut state = self.state.lock();
        state.wake();
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        state.deaf = true;
        state.chunks.clear();
        state.bytes = 0;
        state.wake();
    }
}

impl PipeState {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// One end of a connection.
struct End {
    hub: Arc<Shared>,
    incoming: Arc<Pipe>,
    outgoing: Arc<Pipe>,
    /// Until the next chunk arrives.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl End {
    fn is_cut(&self, pipe: &Pipe) -> bool {
        self.hub.state.lock().is_cut(&pipe.from, &pipe.to)
    }
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let cut = self.is_cut(&self.incoming);
            let pipe = self.incoming.clone();
            let mut state = pipe.state.lock();
            if cut || (state.chunks.is_empty() && !state.ended) {
                state.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let Some((at, chunk)) = state.chunks.front_mut() else { return Poll::Ready(Ok(())) };
            let at = *at;
            if at <= Instant::now() {
                let len = chunk.len().min(out.remaining());
                out.put_slice(&chunk[..len]);
                chunk.advance(len);
                if chunk.is_empty() {
                    state.chunks.pop_front();
                }
                state.bytes -= len;
                if let Some(writer) = state.writer.take() {
                    writer.wake();
                }
                return Poll::Ready(Ok(()));
            }
            state.reader = Some(cx.waker().clone());
            drop(state);
            let sleep = self.sleep.insert(Box::pin(tokio::time::sleep_until(at)));
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let delay = self.hub.state.lock().delay();
        let mut state = self.outgoing.state.lock();
        if state.ended || state.deaf {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let len = bytes.len().min(WINDOW_BYTES.saturating_sub(state.bytes));
        if len == 0 && !bytes.is_empty() {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let earliest = state.chunks.back().map_or_else(Instant::now, |(at, _)| *at);
        let at = earliest.max(Instant::now() + delay);
        state.chunks.push_back((at, Bytes::copy_from_slice(&bytes[..len])));
        state.bytes += len;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.outgoing.state.lock();
        state.ended = true;
        state.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut outgoing = self.outgoing.state.lock();
        outgoing.ended = true;
        outgoing.wake();
        drop(outgoing);
        let cut = self.is_cut(&self.outgoing);
        let mut incoming = self.incoming.state.lock();
        // The other end learns that nobody reads only when that can reach it.
        incoming.deaf = !cut;
        incoming.chunks.clear();
        incoming.bytes = 0;
        incoming.wake();
    }
}
