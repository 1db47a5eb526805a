//! A small server of the protocol inside the test, in memory, a thread per connection, that can be told to do
//! wrong: so that the proof of the load generator is itself proved.

use beanpole_protocol::{Command, Decoder, JobId, Reply, Request, encode_reserved_header};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// What the server does wrong, to one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "each test program has use for some of these")]
pub enum Fault {
    /// Nothing.
    None,
    /// Acknowledges a put and drops the job.
    Lose,
    /// Hands a job out and makes a second one of it.
    Double,
    /// Hands a job out and leaves it ready for another worker.
    Share,
    /// Hands a job out again after its delete was acknowledged.
    Resurrect,
    /// Changes a bit of a body.
    Corrupt,
    /// Answers `OUT_OF_MEMORY` to a put.
    Refuse,
    /// Answers `OUT_OF_MEMORY` to a put and keeps the job.
    RefuseAndKeep,
    /// Closes a connection instead of answering a put, having taken the job.
    Hang,
    /// Answers nothing at all to a put, keeping the job.
    Silent,
}

/// The put or hand-out, counted from 1, that the fault happens to.
const FAULTY: u64 = 20;

struct Job {
    tube: String,
    /// With its CRLF.
    body: Bytes,
}

struct State {
    fault: Fault,
    jobs: BTreeMap<u64, Job>,
    ready: BTreeSet<u64>,
    last_id: u64,
    handed_out: u64,
    /// The job whose next delete is acknowledged and not done.
    undying: Option<u64>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Starts a server that serves until the test process ends; returns its address.
pub fn start(fault: Fault) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let state = State {
        fault,
        jobs: BTreeMap::new(),
        ready: BTreeSet::new(),
        last_id: 0,
        handed_out: 0,
        undying: None,
    };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || serve(stream.unwrap(), &shared));
        }
    });
    address
}

struct Client<'a> {
    shared: &'a Shared,
    used: String,
    watched: HashSet<String>,
    held: BTreeSet<u64>,
    out: BytesMut,
    /// A job it deleted, which is handed out again all the same.
    risen: Option<u64>,
    closing: bool,
}

fn serve(mut stream: TcpStream, shared: &Shared) {
    stream.set_nodelay(true).unwrap();
    let watched = HashSet::from(["default".to_owned()]);
    let used = "default".to_owned();
    let mut client = Client {
        shared,
        used,
        watched,
        held: BTreeSet::new(),
        risen: None,
        out: BytesMut::new(),
        closing: false,
    };
    let mut decoder = Decoder::new(65_535);
    let (mut input, mut scratch) = (BytesMut::new(), vec![0; 65_536]);
    while let Ok(n) = stream.read(&mut scratch) {
        if n == 0 {
            break;
        }
        input.extend_from_slice(&scratch[..n]);
        while !client.closing && decoder.next(&mut input, |request| client.handle(request)).is_some() {}
        if client.closing || stream.write_all(&client.out).is_err() {
            break;
        }
        client.out.clear();
    }
    let mut state = shared.state.lock().unwrap();
    state.ready.extend(client.held);
    shared.changed.notify_all();
}

impl Client<'_> {
    fn handle(&mut self, request: Request<'_>) {
        // Whoever sends more has read that the job is deleted: only now is handing it out wrong beyond doubt.
        if let Some(id) = self.risen.take() {
            self.shared.state.lock().unwrap().ready.insert(id);
            self.shared.changed.notify_all();
        }
        match request {
            Request::Put { body, .. } => self.put(body),
            Request::Command(command) => self.command(&command),
            Request::Bad(_) => Reply::BadFormat.encode(&mut self.out),
        }
    }

    fn put(&mut self, body: Bytes) {
        let mut state = self.shared.state.lock().unwrap();
        state.last_id += 1;
        let id = state.last_id;
        let fault = if id == FAULTY { state.fault } else { Fault::None };
        if !matches!(fault, Fault::Lose | Fault::Refuse) {
            state.jobs.insert(id, Job { tube: self.used.clone(), body });
            state.ready.insert(id);
        }
        self.shared.changed.notify_all();
        match fault {
            Fault::Hang => self.closing = true,
            Fault::Silent => {}
            Fault::Refuse | Fault::RefuseAndKeep => Reply::OutOfMemory.encode(&mut self.out),
            Fault::None | Fault::Lose | Fault::Double | Fault::Share | Fault::Resurrect | Fault::Corrupt => {
                Reply::Inserted(JobId(id)).encode(&mut self.out);
            }
        }
    }

    fn command(&mut self, command: &Command<'_>) {
        match command {
            Command::Use(tube) => {
                tube.as_str().clone_into(&mut self.used);
                Reply::Using(tube.as_str()).encode(&mut self.out);
            }
            Command::Watch(tube) => {
                self.watched.insert(tube.as_str().to_owned());
                Reply::Watching(self.watched.len() as u64).encode(&mut self.out);
            }
            Command::Ignore(tube) => {
                self.watched.remove(tube.as_str());
                Reply::Watching(self.watched.len() as u64).encode(&mut self.out);
            }
            Command::Reserve => self.reserve(Duration::MAX),
            Command::ReserveWithTimeout(0) => self.reserve(Duration::ZERO),
            Command::ReserveWithTimeout(_) => self.reserve(Duration::from_millis(100)),
            Command::Delete(id) => self.delete(id.0),
            Command::ListTubeUsed => Reply::Using(&self.used).encode(&mut self.out),
            Command::Bury { .. } => Reply::Buried.encode(&mut self.out),
            Command::Stats => Reply::Ok(b"---\nversion: \"test\"\n").encode(&mut self.out),
            Command::StatsTube(tube) => {
                let state = self.shared.state.lock().unwrap();
                let ready = state.ready.iter().filter(|id| state.jobs[id].tube == tube.as_str()).count();
                let body = format!("---\ncurrent-jobs-ready: {ready}\n");
                Reply::Ok(body.as_bytes()).encode(&mut self.out);
            }
            Command::ReserveJob(_)
            | Command::Release { .. }
            | Command::Touch(_)
            | Command::Peek(_)
            | Command::PeekReady
            | Command::PeekDelayed
            | Command::PeekBuried
            | Command::Kick(_)
            | Command::KickJob(_)
            | Command::StatsJob(_)
            | Command::ListTubes
            | Command::ListTubesWatched
            | Command::PauseTube { .. }
            | Command::Quit => panic!("the load generator has no use for {command:?}"),
        }
    }

    /// Waits for a job, for as long as that at most.
    fn reserve(&mut self, wait: Duration) {
        let shared = self.shared;
        let begun = Instant::now();
        let mut state = shared.state.lock().unwrap();
        loop {
            let next = state.ready.iter().copied().find(|id| self.watched.contains(&state.jobs[id].tube));
            if let Some(id) = next {
                self.hand_out(&mut state, id);
                return;
            }
            let left = wait.saturating_sub(begun.elapsed());
            if left.is_zero() {
                Reply::TimedOut.encode(&mut self.out);
                return;
            }
            state = shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    fn hand_out(&mut self, state: &mut State, id: u64) {
        state.handed_out += 1;
        let fault = if state.handed_out == FAULTY { state.fault } else { Fault::None };
        if fault == Fault::Share {
            self.shared.changed.notify_all();
        } else {
            state.ready.remove(&id);
        }
        if fault == Fault::Double {
            let twin = Job { tube: state.jobs[&id].tube.clone(), body: state.jobs[&id].body.clone() };
            state.last_id += 1;
            let id = state.last_id;
            state.jobs.insert(id, twin);
            state.ready.insert(id);
        }
        if fault == Fault::Resurrect {
            state.undying = Some(id);
        }
        let mut body = state.jobs[&id].body.to_vec();
        if fault == Fault::Corrupt {
            body[50] ^= 4;
        }
        let length = u32::try_from(body.len() - 2).unwrap();
        encode_reserved_header(&mut self.out, JobId(id), length);
        self.out.extend_from_slice(&body);
        self.held.insert(id);
    }

    fn delete(&mut self, id: u64) {
        let mut state = self.shared.state.lock().unwrap();
        self.held.remove(&id);
        let reply = if !state.jobs.contains_key(&id) {
            Reply::NotFound
        } else if state.undying.take_if(|undying| *undying == id).is_some() {
            self.risen = Some(id);
            Reply::Deleted
        } else {
            state.ready.remove(&id);
            state.jobs.remove(&id);
            Reply::Deleted
        };
        reply.encode(&mut self.out);
    }
}
