//! A flood of puts, and workers beside it: how long each answer took, and what it was.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::connection::{Connection, put_request};

/// How clients put.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Clients at each address.
    pub clients: usize,
    /// Bytes of each body.
    pub body: usize,
    /// Puts a second that all clients of an address together try to make; none: as many as are answered.
    pub rate: Option<u64>,
}

/// Clients that put until they are told to stop. All of them are one thread: sixty that each want a processor all the time
/// would keep it from the servers and from whoever measures them, which no client on another machine does.
pub struct Flood {
    stop: Arc<AtomicBool>,
    clients: JoinHandle<io::Result<Seen>>,
}

/// What clients saw, all together.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How often each answer came, by its first word.
    pub answers: BTreeMap<String, u64>,
    /// How long each took, in microseconds; sorted once the flood has ended.
    pub times_us: Vec<u32>,
}

impl Seen {
    fn note(&mut self, word: &str, took: Duration) {
        match self.answers.get_mut(word) {
            Some(count) => *count += 1,
            None => drop(self.answers.insert(word.to_owned(), 1)),
        }
        self.times_us.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    }

    fn add(&mut self, other: Seen) {
        for (word, count) in other.answers {
            *self.answers.entry(word).or_default() += count;
        }
        self.times_us.extend(other.times_us);
    }

    /// How often this answer came.
    pub fn count(&self, word: &str) -> u64 {
        self.answers.get(word).copied().unwrap_or(0)
    }

    /// Puts answered in whatever way.
    pub fn total(&self) -> u64 {
        self.answers.values().sum()
    }

    /// Within this time so many of a thousand were answered.
    pub fn permille(&self, permille: usize) -> Duration {
        let last = self.times_us.len().saturating_sub(1);
        let at = (self.times_us.len() * permille / 1000).min(last);
        Duration::from_micros(self.times_us.get(at).copied().unwrap_or(0).into())
    }

    /// In one line.
    pub fn line(&self) -> String {
        let [half, most, longest] = [500, 990, 1000].map(|permille| self.permille(permille));
        format!("{:?}, p50 {half:?}, p99 {most:?}, longest {longest:?}", self.answers)
    }
}

impl Flood {
    /// Starts it.
    pub fn start(addresses: &[SocketAddr], plan: Plan) -> Flood {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = addresses.iter().flat_map(|addr| std::iter::repeat_n(*addr, plan.clients)).collect();
        let clients = std::thread::spawn({
            let stop = stop.clone();
            move || put_all(&stop, clients, plan)
        });
        Flood { stop, clients }
    }

    /// Ends it; panics when a client met an error instead of an answer.
    pub fn finish(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.clients.join().expect("clients do not panic");
        let mut all = seen.unwrap_or_else(|error| panic!("a client's connection broke: {error}"));
        all.times_us.sort_unstable();
        all
    }
}

/// A client at each of these addresses, until told to stop.
fn put_all(stop: &Arc<AtomicBool>, addresses: Vec<SocketAddr>, plan: Plan) -> io::Result<Seen> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut clients = JoinSet::new();
        for addr in addresses {
            clients.spawn(put_until(stop.clone(), addr, plan));
        }
        let mut all = Seen::default();
        while let Some(seen) = clients.join_next().await {
            all.add(seen.map_err(io::Error::other)??);
        }
        Ok(all)
    })
}

async fn put_until(stop: Arc<AtomicBool>, addr: SocketAddr, plan: Plan) -> io::Result<Seen> {
    let mut connection = BufStream::new(TcpStream::connect(addr).await?);
    connection.get_ref().set_nodelay(true)?;
    let request = put_request(100, 0, 600, &vec![b'x'; plan.body]);
    let pause =
        plan.rate.map(|rate| Duration::from_secs(plan.clients as u64) / u32::try_from(rate).unwrap_or(1));
    let mut seen = Seen::default();
    let (mut reply, mut next) = (String::new(), Instant::now());
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        connection.write_all(&request).await?;
        connection.flush().await?;
        reply.clear();
        if connection.read_line(&mut reply).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        seen.note(reply.split_whitespace().next().unwrap_or_default(), begun.elapsed());
        if let Some(pause) = pause {
            // What an answer was late is not made up for: it is a rate of clients, not of a machine gun.
            next = (next + pause).max(begun);
            tokio::time::sleep_until(next.into()).await;
        }
    }
    Ok(seen)
}

/// Puts jobs as fast as they are taken, many at a time, until one answer is not `INSERTED`, a round takes longer than
/// `slow`, or there are `most` of them. Answers how many were inserted.
pub fn fill(addr: SocketAddr, body: usize, most: u64, slow: Duration) -> io::Result<u64> {
    // Just below what a connection may have unanswered.
    const ROUND: u64 = 2000;
    let mut connection = Connection::open(addr)?;
    let round = put_request(100, 0, 600, &vec![b'y'; body]).repeat(ROUND as usize);
    let mut inserted = 0;
    while inserted < most {
        let begun = Instant::now();
        connection.send(&round)?;
        let mut taken = 0;
        for _ in 0..ROUND {
            taken += u64::from(connection.reply()?.word() == "INSERTED");
        }
        inserted += taken;
        if taken < ROUND || begun.elapsed() > slow {
            break;
        }
    }
    Ok(inserted)
}

/// Deletes the jobs with the first so many ids, those that are still there, many at a time.
pub fn delete(addr: SocketAddr, jobs: u64) -> io::Result<()> {
    const ROUND: u64 = 200;
    let mut connection = Connection::open(addr)?;
    for first in (1..=jobs).step_by(ROUND as usize) {
        let ids = first..=jobs.min(first + ROUND - 1);
        let round: String = ids.clone().map(|id| format!("delete {id}\r\n")).collect();
        connection.send(round.as_bytes())?;
        for _ in ids {
            connection.reply()?;
        }
    }
    Ok(())
}

/// Reserves and deletes for so long, on so many connections. Answers how many jobs that were, and how long each cycle took.
pub fn drain(addr: SocketAddr, workers: usize, time: Duration) -> Seen {
    let workers: Vec<JoinHandle<io::Result<Seen>>> =
        (0..workers).map(|_| std::thread::spawn(move || work_for(addr, time))).collect();
    let mut all = Seen::default();
    for worker in workers {
        let seen = worker.join().expect("a worker does not panic");
        all.add(seen.unwrap_or_else(|error| panic!("a worker's connection broke: {error}")));
    }
    all.times_us.sort_unstable();
    all
}

fn work_for(addr: SocketAddr, time: Duration) -> io::Result<Seen> {
    let mut connection = Connection::open(addr)?;
    let mut seen = Seen::default();
    let end = Instant::now() + time;
    while Instant::now() < end {
        let begun = Instant::now();
        let reply = connection.command("reserve-with-timeout 0")?;
        if reply.word() != "RESERVED" {
            seen.note(reply.word(), begun.elapsed());
            continue;
        }
        let reply = connection.command(&format!("delete {}", reply.number()))?;
        seen.note(reply.word(), begun.elapsed());
    }
    Ok(seen)
}
