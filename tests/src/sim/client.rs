//! A simulated client: a producer and worker that also goes away, comes back, and tries what it must not.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::history::ConnId;
use super::plan::stream;
use super::wire::{Gone, Reply, Wire};
use super::world::World;

/// The tubes of a run.
pub const TUBES: [&str; 3] = ["a", "b", "c"];
/// Jobs that a client holds at once, at most.
const HELD_MAX: usize = 4;
/// Puts sent without waiting for the replies, at most.
const BURST_MAX: u64 = 12;

/// One client.
pub struct SimClient {
    world: Arc<World>,
    name: u64,
    rng: StdRng,
    puts: u64,
    connections: u64,
    until: Instant,
    /// The longest pause between two commands.
    think: Duration,
}

/// A connection, and what the client holds through it.
struct Session {
    wire: Wire,
    conn: ConnId,
    held: Vec<u64>,
}

impl SimClient {
    /// Client number `name`, which works until `until`.
    #[must_use]
    pub fn new(world: Arc<World>, name: u64, until: Instant) -> Self {
        let mut rng = stream(world.plan.seed, 100 + name);
        let think = Duration::from_millis([10, 60, 250][rng.random_range(0..3)]);
        Self { world, name, rng, puts: 0, connections: 0, until, think }
    }

    /// Works until its time is over.
    pub async fn run(mut self) {
        while Instant::now() < self.until {
            let node = self.rng.random_range(1..=self.world.plan.nodes);
            if let Some(stream) = self.world.connect(node) {
                self.connections += 1;
                let conn = self.name * 10_000 + self.connections;
                self.world.trace.note(format_args!("connection {conn} to node {node}"));
                let mut session = Session { wire: Wire::new(stream), conn, held: Vec::new() };
                if self.work(&mut session).await.is_err() {
                    self.world.history.lock().counts.unknown += 1;
                }
                self.world.trace.note(format_args!("connection {conn} is over"));
            }
            self.pause(Duration::from_millis(200)).await;
        }
    }

    async fn pause(&mut self, most: Duration) {
        let pause = self.rng.random_range(Duration::ZERO..=most);
        tokio::time::sleep(pause).await;
    }

    /// Works on one connection until it closes, or the client has had enough of it.
    async fn work(&mut self, session: &mut Session) -> Result<(), Gone> {
        self.choose_tubes(session).await?;
        while Instant::now() < self.until {
            self.pause(self.think).await;
            match self.rng.random_range(0..100) {
                0..32 => self.put(session).await?,
                32..36 => self.burst(session).await?,
                36..60 if session.held.len() < HELD_MAX => self.reserve(session).await?,
                60..84 => self.finish(session).await?,
                84..89 => self.try_anothers(session).await?,
                89..94 => self.peek(session).await?,
                94..96 if self.world.plan.kicks => self.kick(session).await?,
                96..97 => self.pause_tube(session).await?,
                97..98 => self.choose_tubes(session).await?,
                98..99 => return Ok(()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Asks, with a note in the trace; `None` for a reply that every command may get and that says nothing.
    async fn ask(&mut self, session: &mut Session, command: &str) -> Result<Option<Reply>, Gone> {
        let conn = session.conn;
        self.world.trace.note(format_args!("{conn} > {}", command.split("\r\n").next().unwrap_or_default()));
        let reply = session.wire.ask(command).await;
        self.heard(conn, reply)
    }

    fn heard(&mut self, conn: ConnId, reply: Result<Reply, Gone>) -> Result<Option<Reply>, Gone> {
        let reply = reply.inspect_err(|_| self.world.trace.note(format_args!("{conn} < gone")))?;
        self.world.trace.note(format_args!("{conn} < {}", reply.line));
        let mut history = self.world.history.lock();
        history.counts.answered += 1;
        match reply.word() {
            "OUT_OF_MEMORY" | "DRAINING" => Ok(None),
            // What is damaged here, and cannot be had from elsewhere just now.
            "INTERNAL_ERROR" if self.world.plan.rots.is_some() => Ok(None),
            "INTERNAL_ERROR" | "BAD_FORMAT" | "UNKNOWN_COMMAND" | "EXPECTED_CRLF" | "JOB_TOO_BIG" => {
                history.violate(format!("connection {conn} was told {}", reply.line));
                Ok(None)
            }
            _ => Ok(Some(reply)),
        }
    }

    async fn choose_tubes(&mut self, session: &mut Session) -> Result<(), Gone> {
        let tube = TUBES[self.rng.random_range(0..TUBES.len())];
        self.ask(session, &format!("use {tube}")).await?;
        for tube in TUBES {
            let verb = if self.rng.random_bool(0.7) { "watch" } else { "ignore" };
            self.ask(session, &format!("{verb} {tube}")).await?;
        }
        Ok(())
    }

    /// The bytes of a put, announced to the oracle.
    fn next_put(&mut self) -> (String, String) {
        self.puts += 1;
        let filler = match self.rng.random_range(0..20) {
            0 => self.rng.random_range(0..20_000),
            _ => self.rng.random_range(0..60),
        };
        let body = format!("client {} put {} {}", self.name, self.puts, "x".repeat(filler));
        let pri = [0, 7, 7, 1000, 4_000_000_000_u64][self.rng.random_range(0..5)];
        let delay = if self.rng.random_bool(0.15) { self.rng.random_range(1..=3) } else { 0 };
        let ttr = [1, 2, 10, 60, 120][self.rng.random_range(0..5)];
        let (delay_span, ttr_span) = (Duration::from_secs(delay), Duration::from_secs(ttr));
        self.world.history.lock().put_sent(&body, delay_span, ttr_span);
        let command = format!("put {pri} {delay} {ttr} {}\r\n{body}", body.len());
        (body, command)
    }

    fn put_answered(&mut self, body: &str, reply: Option<Reply>) {
        let Some(reply) = reply else { return };
        let mut history = self.world.history.lock();
        match (reply.word(), reply.number()) {
            ("INSERTED" | "BURIED", Some(id)) => history.inserted(body, id),
            _ => history.violate(format!("put was told {}", reply.line)),
        }
    }

    async fn put(&mut self, session: &mut Session) -> Result<(), Gone> {
        let (body, command) = self.next_put();
        let reply = self.ask(session, &command).await?;
        self.put_answered(&body, reply);
        Ok(())
    }

    /// Several puts in one write.
    async fn burst(&mut self, session: &mut Session) -> Result<(), Gone> {
        let (mut bodies, mut bytes) = (Vec::new(), String::new());
        for _ in 0..self.rng.random_range(2..=BURST_MAX) {
            let (body, command) = self.next_put();
            bodies.push(body);
            bytes.push_str(&command);
            bytes.push_str("\r\n");
        }
        self.world.trace.note(format_args!("{} > {} puts", session.conn, bodies.len()));
        session.wire.send(bytes.as_bytes()).await?;
        for body in bodies {
            let reply = session.wire.reply().await;
            let reply = self.heard(session.conn, reply)?;
            self.put_answered(&body, reply);
        }
        Ok(())
    }

    async fn reserve(&mut self, session: &mut Session) -> Result<(), Gone> {
        let sent = Instant::now();
        let timeout = [0, 0, 1, 3][self.rng.random_range(0..4)];
        let reply = if self.rng.random_bool(0.2) {
            let patience = self.rng.random_range(Duration::ZERO..=Duration::from_secs(6));
            // A worker that goes away while it waits.
            let waiting = self.ask(session, "reserve");
            tokio::time::timeout(patience, waiting).await.map_err(|_| Gone)??
        } else {
            self.ask(session, &format!("reserve-with-timeout {timeout}")).await?
        };
        let Some(reply) = reply else { return Ok(()) };
        match (reply.word(), reply.number()) {
            ("RESERVED", Some(id)) => {
                let probe = session.wire.probe();
                let mut history = self.world.history.lock();
                history.reserved(session.conn, probe, id, &reply.text(), sent);
                session.held.retain(|held| *held != id);
                session.held.push(id);
            }
            ("TIMED_OUT" | "DEADLINE_SOON", None) => {}
            _ => self.world.history.lock().violate(format!("reserve was told {}", reply.line)),
        }
        Ok(())
    }

    /// Does something with a job that it holds.
    async fn finish(&mut self, session: &mut Session) -> Result<(), Gone> {
        if session.held.is_empty() {
            return Ok(());
        }
        let id = session.held[self.rng.random_range(0..session.held.len())];
        let delay = if self.rng.random_bool(0.3) { 1 } else { 0 };
        let (verb, command) = match self.rng.random_range(0..10) {
            0..5 => ("delete", format!("delete {id}")),
            5..7 => ("release", format!("release {id} 7 {delay}")),
            7..8 => ("bury", format!("bury {id} 7")),
            _ => ("touch", format!("touch {id}")),
        };
        let sent = Instant::now();
        let until = {
            let mut history = self.world.history.lock();
            if verb == "delete" {
                history.delete_sent(id);
            }
            if verb == "touch" { history.claim(session.conn, id) } else { history.gives_up(session.conn, id) }
        };
        if verb != "touch" {
            session.held.retain(|held| *held != id);
        }
        let Some(reply) = self.ask(session, &command).await? else { return Ok(()) };
        let mut history = self.world.history.lock();
        match reply.word() {
            "DELETED" => history.deleted(session.conn, id, sent),
            "TOUCHED" => history.touched(session.conn, id, sent),
            "RELEASED" | "BURIED" => {}
            "NOT_FOUND" => {
                session.held.retain(|held| *held != id);
                if let Some(until) = until {
                    history.lost_by_holder(session.conn, id, verb, until);
                }
            }
            _ => history.violate(format!("{verb} was told {}", reply.line)),
        }
        Ok(())
    }

    /// Tries to delete or kick a job that it does not hold.
    async fn try_anothers(&mut self, session: &mut Session) -> Result<(), Gone> {
        let Some(id) = self.any_id(session) else { return Ok(()) };
        let sent = Instant::now();
        let deletes = self.rng.random_bool(0.6);
        if deletes {
            self.world.history.lock().delete_sent(id);
        }
        if !deletes && !self.world.plan.kicks {
            return Ok(());
        }
        let verb = if deletes { "delete" } else { "kick-job" };
        let Some(reply) = self.ask(session, &format!("{verb} {id}")).await? else { return Ok(()) };
        let mut history = self.world.history.lock();
        match reply.word() {
            "DELETED" => history.deleted(session.conn, id, sent),
            "KICKED" | "NOT_FOUND" => {}
            _ => history.violate(format!("{verb} was told {}", reply.line)),
        }
        Ok(())
    }

    fn any_id(&mut self, session: &Session) -> Option<u64> {
        let nth = self.rng.random_range(0..1_000_000);
        let id = self.world.history.lock().known_id(nth)?;
        (!session.held.contains(&id)).then_some(id)
    }

    async fn peek(&mut self, session: &mut Session) -> Result<(), Gone> {
        let Some(id) = self.any_id(session) else { return Ok(()) };
        let sent = Instant::now();
        let Some(reply) = self.ask(session, &format!("peek {id}")).await? else { return Ok(()) };
        let mut history = self.world.history.lock();
        match reply.word() {
            "FOUND" => history.found(id, &reply.text(), sent),
            "NOT_FOUND" => history.missing(id, sent),
            _ => history.violate(format!("peek was told {}", reply.line)),
        }
        Ok(())
    }

    async fn kick(&mut self, session: &mut Session) -> Result<(), Gone> {
        let most = self.rng.random_range(1..=10);
        self.ask(session, &format!("kick {most}")).await?;
        Ok(())
    }

    async fn pause_tube(&mut self, session: &mut Session) -> Result<(), Gone> {
        let tube = TUBES[self.rng.random_range(0..TUBES.len())];
        self.ask(session, &format!("pause-tube {tube} 1")).await?;
        Ok(())
    }
}

/// Empties the cluster through one node: kicks, reserves and deletes until nothing is left or `until` has come.
pub async fn drain(world: Arc<World>, node: u64, until: Instant) {
    let mut times = 0;
    while Instant::now() < until && !is_empty(&world) {
        times += 1;
        let conn = 1_000_000 + node * 10_000 + times;
        if let Some(stream) = world.connect(node) {
            let mut session = Session { wire: Wire::new(stream), conn, held: Vec::new() };
            // A connection that closes is made again.
            drain_through(&world, &mut session, until).await.ok();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Whether no node that runs knows of a job.
#[must_use]
pub fn is_empty(world: &World) -> bool {
    let states: Vec<_> = world.running().iter().map(|(_, node)| node.state()).collect();
    let same = states.windows(2).all(|pair| pair[0].0 == pair[1].0);
    same && states.iter().all(|(_, jobs, _)| *jobs == 0)
}

async fn drain_through(world: &World, session: &mut Session, until: Instant) -> Result<(), Gone> {
    for tube in TUBES {
        session.wire.ask(&format!("watch {tube}")).await?;
    }
    while Instant::now() < until && !is_empty(world) {
        let sent = Instant::now();
        let reply = session.wire.ask("reserve-with-timeout 0").await?;
        world.trace.note(format_args!("{} < {}", session.conn, reply.line));
        let Some(id) = reply.number().filter(|_| reply.word() == "RESERVED") else {
            for tube in TUBES {
                session.wire.ask(&format!("use {tube}")).await?;
                session.wire.ask("kick 1000").await?;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        {
            let mut history = world.history.lock();
            history.reserved(session.conn, session.wire.probe(), id, &reply.text(), sent);
            history.delete_sent(id);
            history.gives_up(session.conn, id);
        }
        let sent = Instant::now();
        let reply = session.wire.ask(&format!("delete {id}")).await?;
        if reply.word() == "DELETED" {
            world.history.lock().deleted(session.conn, id, sent);
        }
    }
    Ok(())
}
