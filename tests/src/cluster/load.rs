//! Load on a cluster from a test: a producer and a worker per node, each on one connection that it keeps. What they saw is
//! compared at the end.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Cluster;
use crate::connection::Connection;
use crate::wait;

/// The tube of the load.
pub const TUBE: &str = "load";
/// The loads of this process so far. A put that was not answered may still happen, and its job come to a worker of a later load;
/// so the bodies of each load are its own.
static LOADS: AtomicU64 = AtomicU64::new(0);
/// How long one command may take, failover included.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// A running load.
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    producers: Vec<JoinHandle<Producer>>,
    workers: Vec<JoinHandle<Worker>>,
}

/// What a producer saw.
struct Producer {
    node: u64,
    /// Bodies with their ids.
    acknowledged: Vec<(u64, String)>,
    /// The longest time that one put took.
    slowest: Duration,
    error: Option<io::Error>,
}

/// What a worker saw.
struct Worker {
    node: u64,
    /// Bodies whose `DELETED` came.
    deleted: Vec<String>,
    /// The body whose delete was not answered, or that was not yet deleted when the connection broke.
    unfinished: Option<String>,
    error: Option<io::Error>,
}

/// The account of a load.
#[derive(Debug)]
pub struct Account {
    /// Acknowledged bodies with their ids.
    pub acknowledged: HashMap<String, u64>,
    /// How often the deletion of a body was acknowledged.
    pub deleted: HashMap<String, usize>,
    /// Bodies that a worker had when its connection broke: they come again, or are deleted already.
    pub unfinished: HashSet<String>,
    /// What the clients of each node saw at their end.
    pub errors: Vec<(u64, String)>,
    /// The longest time that a put took, by node.
    pub slowest: Vec<(u64, Duration)>,
}

impl Load {
    /// Starts a producer and a worker at each node.
    pub fn start(cluster: &Cluster) -> Load {
        Load::start_at(cluster, &cluster.ids())
    }

    /// Starts a producer and a worker at each of these nodes.
    pub fn start_at(cluster: &Cluster, nodes: &[u64]) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let number = LOADS.fetch_add(1, Ordering::Relaxed);
        let (acknowledged, received) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut load = Load {
            stop: stop.clone(),
            acknowledged: acknowledged.clone(),
            received: received.clone(),
            producers: Vec::new(),
            workers: Vec::new(),
        };
        for node in nodes.iter().copied() {
            let addr = cluster.addr(node);
            let (stop, count) = (stop.clone(), acknowledged.clone());
            load.producers.push(std::thread::spawn(move || {
                produce(node, addr, &format!("load{number}-n{node}"), &stop, &count)
            }));
            let (stop, count) = (load.stop.clone(), received.clone());
            load.workers.push(std::thread::spawn(move || work(node, addr, &stop, &count)));
        }
        load
    }

    /// Waits until so many more puts were acknowledged and jobs received; panics when that takes too long.
    pub fn wait_for_more(&self, count: u64) {
        let now = || (self.acknowledged.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed));
        let before = now();
        let done = wait::until_within(COMMAND_LIMIT, || {
            let now = now();
            (now.0 >= before.0 + count && now.1 >= before.1 + count).then_some(())
        });
        assert!(done.is_some(), "puts and receipts were {before:?} and are {:?}", now());
    }

    /// Ends the load: producers first; workers go on until nothing comes any more.
    pub fn finish(self) -> Account {
        self.stop.store(true, Ordering::Relaxed);
        let mut account = Account {
            acknowledged: HashMap::new(),
            deleted: HashMap::new(),
            unfinished: HashSet::new(),
            errors: Vec::new(),
            slowest: Vec::new(),
        };
        for producer in self.producers {
            let producer = producer.join().expect("a producer does not panic");
            account.acknowledged.extend(producer.acknowledged.into_iter().map(|(id, body)| (body, id)));
            account.slowest.push((producer.node, producer.slowest));
            account.errors.extend(producer.error.map(|e| (producer.node, format!("put: {e}"))));
        }
        for worker in self.workers {
            let worker = worker.join().expect("a worker does not panic");
            for body in worker.deleted {
                *account.deleted.entry(body).or_default() += 1;
            }
            account.unfinished.extend(worker.unfinished);
            account.errors.extend(worker.error.map(|e| (worker.node, format!("work: {e}"))));
        }
        account
    }
}

impl Account {
    /// Panics unless clients of these nodes saw no error.
    pub fn expect_no_errors_at(&self, nodes: &[u64]) {
        let errors: Vec<_> = self.errors.iter().filter(|(node, _)| nodes.contains(node)).collect();
        assert!(errors.is_empty(), "{errors:?}");
    }

    /// Takes what is left out of the cluster through `node`, and panics if then an acknowledged job is missing or one came
    /// that was deleted. A job may be held by a node that died; the cluster gives it back some seconds later.
    pub fn expect_nothing_lost(&mut self, cluster: &Cluster, node: u64) {
        let mut worker = worker_connection(cluster.addr(node)).expect("a serving node takes a worker");
        let deadline = Instant::now() + COMMAND_LIMIT;
        while !self.missing().is_empty() && Instant::now() < deadline {
            let reply = worker.command("reserve-with-timeout 1").expect("a serving node answers");
            if reply.word() == "TIMED_OUT" {
                continue;
            }
            assert_eq!(reply.word(), "RESERVED", "{}", reply.line);
            let body = reply.text();
            assert!(!self.deleted.contains_key(&body), "{body} came again after DELETED");
            let deleted = worker.command(&format!("delete {}", reply.number())).expect("it answers");
            assert_eq!(deleted.line, "DELETED");
            self.deleted.insert(body, 1);
        }
        let missing = self.missing();
        assert!(missing.is_empty(), "lost: {missing:?}");
        let twice: Vec<_> = self.deleted.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "deleted twice, so handed out after DELETED, or doubled: {twice:?}");
    }

    /// Acknowledged, not deleted, and not with a worker whose connection broke (its delete may have happened).
    fn missing(&self) -> Vec<(&String, &u64)> {
        let settled = |body: &String| self.deleted.contains_key(body) || self.unfinished.contains(body);
        self.acknowledged.iter().filter(|(body, _)| !settled(body)).collect()
    }
}

fn produce(node: u64, addr: SocketAddr, name: &str, stop: &AtomicBool, count: &AtomicU64) -> Producer {
    let mut producer = Producer { node, acknowledged: Vec::new(), slowest: Duration::ZERO, error: None };
    producer.error = put_until(stop, addr, name, &mut producer, count).err();
    producer
}

fn put_until(
    stop: &AtomicBool,
    addr: SocketAddr,
    name: &str,
    to: &mut Producer,
    count: &AtomicU64,
) -> io::Result<()> {
    let mut connection = Connection::open(addr)?;
    connection.set_patience(COMMAND_LIMIT);
    connection.command(&format!("use {TUBE}"))?;
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let body = format!("{name}-{number}");
        let begun = Instant::now();
        let reply = connection.put(100, 0, 120, body.as_bytes())?;
        if reply.word() != "INSERTED" {
            return Err(io::Error::other(reply.line));
        }
        to.slowest = to.slowest.max(begun.elapsed());
        to.acknowledged.push((reply.number(), body));
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn worker_connection(addr: SocketAddr) -> io::Result<Connection> {
    let mut connection = Connection::open(addr)?;
    connection.set_patience(COMMAND_LIMIT);
    connection.command(&format!("watch {TUBE}"))?;
    connection.command("ignore default")?;
    Ok(connection)
}

fn work(node: u64, addr: SocketAddr, stop: &AtomicBool, count: &AtomicU64) -> Worker {
    let mut worker = Worker { node, deleted: Vec::new(), unfinished: None, error: None };
    worker.error = work_until(stop, addr, &mut worker, count).err();
    worker
}

fn work_until(stop: &AtomicBool, addr: SocketAddr, to: &mut Worker, count: &AtomicU64) -> io::Result<()> {
    let mut connection = worker_connection(addr)?;
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        let reply = connection.command("reserve-with-timeout 1")?;
        match reply.word() {
            "RESERVED" => {}
            // A job may be on its way while producers end, so only a look that began after that counts.
            "TIMED_OUT" if stopping => return Ok(()),
            "TIMED_OUT" => continue,
            _ => return Err(io::Error::other(reply.line)),
        }
        count.fetch_add(1, Ordering::Relaxed);
        let body = reply.text();
        to.unfinished = Some(body.clone());
        let deleted = connection.command(&format!("delete {}", reply.number()))?;
        if deleted.word() != "DELETED" {
            return Err(io::Error::other(format!("{} to delete of {body}", deleted.line)));
        }
        to.unfinished = None;
        to.deleted.push(body);
    }
}
