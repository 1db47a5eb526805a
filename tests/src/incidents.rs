//! Pieces of known outages, for tests that replay them: workers and producers that go on until the scenario is over.
//!
//! ```text
//!   scenario ── Curtain ──► ended?  ◄── work()      reserve, do something, delete
//!                                   ◄── produce()   put at a rate
//!                                   ◄── cycle()     put, reserve, delete in a tube of its own: who is not concerned
//! ```

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::connection::{Connection, Reply};

/// Whether a scenario is over.
#[derive(Debug, Default)]
pub struct Stage(AtomicBool);

impl Stage {
    /// Whether its clients should end.
    pub fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// What ends it when it is dropped, by a panic too: clients in threads of a scope would else be waited for without end.
    pub fn curtain(&self) -> Curtain<'_> {
        Curtain(self)
    }
}

/// See [`Stage::curtain`].
#[derive(Debug)]
pub struct Curtain<'a>(&'a Stage);

impl Drop for Curtain<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// A client that watches these tubes and no other.
pub fn worker(addr: SocketAddr, tubes: &[&str]) -> io::Result<Connection> {
    let mut connection = Connection::open(addr)?;
    for tube in tubes {
        connection.command(&format!("watch {tube}"))?;
    }
    connection.command("ignore default")?;
    Ok(connection)
}

/// Reserves jobs of these tubes one after the other, does something with each, and deletes it. Answers how many.
pub fn work(
    stage: &Stage,
    addr: SocketAddr,
    tubes: &[&str],
    mut job: impl FnMut(&mut Connection, &Reply) -> io::Result<()>,
) -> io::Result<u64> {
    let mut connection = worker(addr, tubes)?;
    let mut done = 0;
    while !stage.is_over() {
        let reply = connection.command("reserve-with-timeout 0")?;
        if reply.word() != "RESERVED" {
            // A timeout of a second would hold up the end of the scenario by as much.
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        job(&mut connection, &reply)?;
        connection.command(&format!("delete {}", reply.number()))?;
        done += 1;
    }
    Ok(done)
}

/// Puts such jobs into a tube, so many a second. Answers how many were inserted.
pub fn produce(stage: &Stage, addr: SocketAddr, tube: &str, body: &[u8], rate: u32) -> io::Result<u64> {
    let mut connection = Connection::open(addr)?;
    connection.command(&format!("use {tube}"))?;
    let pause = Duration::from_secs(1) / rate;
    let (mut inserted, mut next) = (0, Instant::now());
    while !stage.is_over() {
        inserted += u64::from(connection.put(100, 0, 600, body)?.word() == "INSERTED");
        next += pause;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(inserted)
}

/// Puts, reserves and deletes in a tube that nobody else uses. Answers how often.
pub fn cycle(stage: &Stage, addr: SocketAddr, tube: &str) -> io::Result<u64> {
    let mut connection = worker(addr, &[tube])?;
    connection.command(&format!("use {tube}"))?;
    let mut cycles = 0;
    while !stage.is_over() {
        let id = connection.put(100, 0, 600, b"of no concern")?.number();
        assert_eq!(connection.command("reserve")?.number(), id);
        assert_eq!(connection.command(&format!("delete {id}"))?.line, "DELETED");
        cycles += 1;
    }
    Ok(cycles)
}

/// Ready jobs of a tube; 0 if there is none.
pub fn ready(connection: &mut Connection, tube: &str) -> io::Result<u64> {
    let stats = connection.command(&format!("stats-tube {tube}"))?;
    Ok(stats.stat("current-jobs-ready").and_then(|count| count.parse().ok()).unwrap_or(0))
}
