//! Servers within the test: a few nodes that share one queue, as those of a cluster do, and that fail when they are told to.
//!
//! ```text
//!   Fake ── node 0 ── listener, connections ─┐
//!        ├─ node 1 ──                        ├── one State: jobs, keys
//!        └─ node 2 ──                        ┘        faults by node: down, silent, refusing, closing instead of answering
//! ```

#![allow(dead_code, reason = "each test uses its part of it")]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long a test may take.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Runs a test under a deadline.
pub fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LIMIT, test).await.expect("the test hangs") });
}

/// Waits for a condition.
pub async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Ready,
    Delayed(Instant),
    Reserved { by: u64, until: Instant },
    Buried,
}

#[derive(Clone, Debug)]
pub struct FakeJob {
    pub tube: String,
    pub body: String,
    pub pri: u32,
    pub ttr: Duration,
    pub at: At,
    pub reserves: u64,
    pub releases: u64,
    pub touches: u64,
}

/// What a node does wrong.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Puts are answered with this word, so many times.
    pub refuse: Option<(&'static str, usize)>,
    /// After so many more changes (puts, deletes) one is carried out and the connection closed instead of answered.
    pub close_at: Option<usize>,
    /// It takes connections and answers nothing.
    pub is_silent: bool,
}

#[derive(Default)]
pub struct State {
    pub jobs: BTreeMap<u64, FakeJob>,
    pub faults: Vec<Faults>,
    /// Puts that each node carried out.
    pub puts: Vec<usize>,
    pub deleted: Vec<String>,
    keys: HashMap<(String, String), u64>,
    knows_once: bool,
    last_id: u64,
    last_connection: u64,
}

impl State {
    /// Bodies of all jobs, sorted.
    pub fn bodies(&self) -> Vec<String> {
        let mut bodies: Vec<String> = self.jobs.values().map(|job| job.body.clone()).collect();
        bodies.sort();
        bodies
    }

    /// Jobs whose time has come are ready.
    fn tick(&mut self) {
        let now = Instant::now();
        for job in self.jobs.values_mut() {
            match job.at {
                At::Delayed(until) | At::Reserved { until, .. } if until <= now => job.at = At::Ready,
                At::Delayed(_) | At::Reserved { .. } | At::Ready | At::Buried => {}
            }
        }
    }

    pub fn add(&mut self, tube: &str, body: &str, pri: u32, delay_s: u64, ttr_s: u64) -> u64 {
        self.last_id += 1;
        let at = match delay_s {
            0 => At::Ready,
            s => At::Delayed(Instant::now() + Duration::from_secs(s)),
        };
        let (tube, body, ttr) = (tube.to_owned(), body.to_owned(), Duration::from_secs(ttr_s.max(1)));
        let job = FakeJob { tube, body, pri, ttr, at, reserves: 0, releases: 0, touches: 0 };
        self.jobs.insert(self.last_id, job);
        self.last_id
    }

    fn held(&mut self, id: u64, by: u64) -> Option<&mut FakeJob> {
        self.tick();
        self.jobs.get_mut(&id).filter(|job| matches!(job.at, At::Reserved { by: holder, .. } if holder == by))
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

struct Node {
    address: String,
    listens: Option<JoinHandle<()>>,
    connections: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

/// The nodes.
pub struct Fake {
    shared: Arc<Shared>,
    nodes: Vec<Node>,
}

impl Fake {
    /// So many nodes that know `put-once`.
    pub async fn start(nodes: usize) -> Fake {
        Fake::with(nodes, true).await
    }

    pub async fn with(nodes: usize, knows_once: bool) -> Fake {
        let (faults, puts) = (vec![Faults::default(); nodes], vec![0; nodes]);
        let state = State { knows_once, faults, puts, ..State::default() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() });
        let mut fake = Fake { shared, nodes: Vec::new() };
        for node in 0..nodes {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            fake.nodes.push(Node { address, listens: None, connections: Arc::default() });
            fake.listen(node, listener);
        }
        fake
    }

    fn listen(&mut self, index: usize, listener: TcpListener) {
        let (shared, node) = (self.shared.clone(), &mut self.nodes[index]);
        let connections = node.connections.clone();
        node.listens = Some(tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let task = tokio::spawn(serve(stream, index, shared.clone()));
                connections.lock().unwrap().push(task);
            }
        }));
    }

    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address.clone()).collect()
    }

    /// The node's process dies: its connections break, and what was reserved over them is ready again.
    pub async fn kill(&mut self, node: usize) {
        if let Some(listens) = self.nodes[node].listens.take() {
            listens.abort();
            let _ended = listens.await;
        }
        self.cut(node).await;
    }

    /// Its connections break, and new ones are taken.
    pub async fn cut(&self, node: usize) {
        let tasks = std::mem::take(&mut *self.nodes[node].connections.lock().unwrap());
        for task in tasks {
            task.abort();
            let _ended = task.await;
        }
    }

    /// It is there again.
    pub async fn restart(&mut self, node: usize) {
        let listener = TcpListener::bind(self.nodes[node].address.as_str()).await.unwrap();
        self.listen(node, listener);
    }

    pub fn faults(&self, node: usize, change: impl FnOnce(&mut Faults)) {
        change(&mut self.shared.state().faults[node]);
    }

    /// The queue that all nodes share.
    pub fn look<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.shared.state();
        state.tick();
        let seen = look(&mut state);
        drop(state);
        self.shared.changed.notify_waiters();
        seen
    }

    pub fn connections(&self, node: usize) -> usize {
        let connections = self.nodes[node].connections.lock().unwrap();
        connections.iter().filter(|task| !task.is_finished()).count()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.listens.take().inspect(JoinHandle::abort);
            node.connections.lock().unwrap().iter().for_each(JoinHandle::abort);
        }
    }
}

/// A connection's end gives back what it holds.
struct Session {
    id: u64,
    node: usize,
    used: String,
    watched: Vec<String>,
    shared: Arc<Shared>,
}

impl Drop for Session {
    fn drop(&mut self) {
        for job in self.shared.state().jobs.values_mut() {
            if matches!(job.at, At::Reserved { by, .. } if by == self.id) {
                job.at = At::Ready;
            }
        }
        self.shared.changed.notify_waiters();
    }
}

async fn serve(stream: TcpStream, node: usize, shared: Arc<Shared>) {
    stream.set_nodelay(true).unwrap();
    let (reader, writer) = stream.into_split();
    let id = {
        let mut state = shared.state();
        state.last_connection += 1;
        state.last_connection
    };
    let default = "default".to_owned();
    let mut session = Session { id, node, used: default.clone(), watched: vec![default], shared };
    // An error is the client's end.
    let _ended = converse(&mut session, BufReader::new(reader), writer).await;
}

async fn converse(
    session: &mut Session,
    mut reader: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
) -> std::io::Result<()> {
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        if session.shared.state().faults[session.node].is_silent {
            std::future::pending::<()>().await;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let reply = match words[..] {
            ["put", pri, delay, ttr, bytes] => {
                let body = body(&mut reader, bytes).await?;
                session.put(None, [pri, delay, ttr], body)
            }
            ["put-once", key, pri, delay, ttr, bytes] if session.shared.state().knows_once => {
                let body = body(&mut reader, bytes).await?;
                session.put(Some(key), [pri, delay, ttr], body)
            }
            ["reserve-with-timeout", seconds] => {
                let limit = Instant::now() + Duration::from_secs(number(seconds));
                tokio::select! {
                    reply = session.reserve(limit) => Some(reply),
                    more = reader.fill_buf() => match more?.len() {
                        0 => return Ok(()),
                        _ => panic!("a command was sent behind a reserve that waits"),
                    }
                }
            }
            ["quit"] => return Ok(()),
            _ => session.command(&words),
        };
        let Some(reply) = reply else { return Ok(()) };
        writer.write_all(format!("{reply}\r\n").as_bytes()).await?;
    }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap()
}

async fn body(reader: &mut BufReader<OwnedReadHalf>, bytes: &str) -> std::io::Result<String> {
    let mut body = vec![0; number(bytes) as usize + 2];
    reader.read_exact(&mut body).await?;
    body.truncate(body.len() - 2);
    Ok(String::from_utf8(body).unwrap())
}

impl Session {
    /// A change was carried out; whether it is to be answered.
    fn is_answered(&self, state: &mut State) -> bool {
        let close_at = &mut state.faults[self.node].close_at;
        let is_last = *close_at == Some(0);
        *close_at = if is_last { None } else { close_at.map(|left| left - 1) };
        !is_last
    }

    fn put(&self, key: Option<&str>, [pri, delay, ttr]: [&str; 3], body: String) -> Option<String> {
        let mut state = self.shared.state();
        if let Some((word, left)) = state.faults[self.node].refuse {
            state.faults[self.node].refuse = Some((word, left - 1)).filter(|_| left > 1);
            return Some(word.to_owned());
        }
        let key = key.map(|key| (self.used.clone(), key.to_owned()));
        let known = key.as_ref().and_then(|key| state.keys.get(key).copied());
        let id = known
            .unwrap_or_else(|| state.add(&self.used, &body, number(pri) as u32, number(delay), number(ttr)));
        if let Some(key) = key {
            state.keys.insert(key, id);
        }
        state.puts[self.node] += 1;
        let is_answered = self.is_answered(&mut state);
        drop(state);
        self.shared.changed.notify_waiters();
        is_answered.then(|| format!("INSERTED {id}"))
    }

    async fn reserve(&self, limit: Instant) -> String {
        loop {
            let changed = self.shared.changed.notified();
            if let Some(reply) = self.take() {
                return reply;
            }
            if Instant::now() >= limit {
                return "TIMED_OUT".to_owned();
            }
            // Jobs also become ready by themselves.
            let look_again = (Instant::now() + Duration::from_millis(5)).min(limit);
            let _either = tokio::time::timeout_at(look_again, changed).await;
        }
    }

    fn take(&self) -> Option<String> {
        let mut state = self.shared.state();
        state.tick();
        let ready =
            state.jobs.iter().filter(|(_, job)| job.at == At::Ready && self.watched.contains(&job.tube));
        let (id, _) = ready.min_by_key(|(id, job)| (job.pri, **id))?;
        let id = *id;
        let job = state.jobs.get_mut(&id)?;
        job.reserves += 1;
        job.at = At::Reserved { by: self.id, until: Instant::now() + job.ttr };
        Some(format!("RESERVED {id} {}\r\n{}", job.body.len(), job.body))
    }

    fn command(&mut self, words: &[&str]) -> Option<String> {
        Some(match words {
            ["use", tube] => {
                self.used = (*tube).to_owned();
                format!("USING {tube}")
            }
            ["watch", tube] => {
                if !self.watched.iter().any(|watched| watched == tube) {
                    self.watched.push((*tube).to_owned());
                }
                format!("WATCHING {}", self.watched.len())
            }
            ["ignore", tube] => {
                self.watched.retain(|watched| watched != tube);
                assert!(!self.watched.is_empty(), "the last tube was ignored");
                format!("WATCHING {}", self.watched.len())
            }
            ["list-tube-used"] => format!("USING {}", self.used),
            ["put-once"] if self.shared.state().knows_once => "BAD_FORMAT".to_owned(),
            ["stats-job", id] => self.stats_job(number(id)),
            ["delete", id] => return self.delete(number(id)),
            [word @ ("touch" | "bury" | "release"), id, rest @ ..] => self.change(word, number(id), rest),
            _ => "UNKNOWN_COMMAND".to_owned(),
        })
    }

    fn stats_job(&self, id: u64) -> String {
        let mut state = self.shared.state();
        state.tick();
        let Some(job) = state.jobs.get(&id) else { return "NOT_FOUND".to_owned() };
        let body = format!(
            "---\nid: {id}\ntube: \"{}\"\nstate: x\npri: {}\nage: 1\ndelay: 0\nttr: {}\ntime-left: 1\nfile: 0\nreserves: {}\n\
             timeouts: 0\nreleases: {}\nburies: 0\nkicks: 0\n",
            job.tube,
            job.pri,
            job.ttr.as_secs(),
            job.reserves,
            job.releases
        );
        format!("OK {}\r\n{body}", body.len())
    }

    fn delete(&self, id: u64) -> Option<String> {
        let mut state = self.shared.state();
        let by = self.id;
        let is_free = state.jobs.get(&id).is_some_and(|job| matches!(job.at, At::Ready | At::Buried));
        if !is_free && state.held(id, by).is_none() {
            return Some("NOT_FOUND".to_owned());
        }
        let job = state.jobs.remove(&id)?;
        state.deleted.push(job.body);
        self.is_answered(&mut state).then(|| "DELETED".to_owned())
    }

    fn change(&self, word: &str, id: u64, rest: &[&str]) -> String {
        let mut state = self.shared.state();
        let Some(job) = state.held(id, self.id) else { return "NOT_FOUND".to_owned() };
        let now = Instant::now();
        match (word, rest) {
            ("touch", []) => {
                job.touches += 1;
                job.at = At::Reserved { by: self.id, until: now + job.ttr };
                "TOUCHED"
            }
            ("bury", [pri]) => {
                (job.pri, job.at) = (number(pri) as u32, At::Buried);
                "BURIED"
            }
            ("release", [pri, delay]) => {
                job.releases += 1;
                job.pri = number(pri) as u32;
                job.at = match number(delay) {
                    0 => At::Ready,
                    s => At::Delayed(now + Duration::from_secs(s)),
                };
                drop(state);
                self.shared.changed.notify_waiters();
                "RELEASED"
            }
            _ => "BAD_FORMAT",
        }
        .to_owned()
    }
}
