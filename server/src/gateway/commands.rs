//! One request from a client: counted, and answered at once, appended to the open batch, or held until what the client asked
//! before is answered.

use beanpole_protocol::{BadRequest, Command, PutHeader, Reply, Request, stats};
use bytes::Bytes;

use super::counters::Counters;
use super::session::{Blocked, ConnId, Held, ReadCommand, Session, Slot};
use super::{Gateway, OpenBatch};

/// A put's body comes with its CRLF.
const CRLF_BYTES: usize = 2;

impl Gateway {
    /// Takes one request of a session that may take one.
    pub fn request(&mut self, conn: ConnId, request: Request<'_>) {
        self.note_request(conn, &request);
        match request {
            Request::Command(command) => self.command(conn, command),
            Request::Put { header, body } => self.put(conn, &header, body),
            Request::Bad(bad) => self.bad_request(conn, &bad),
        }
    }

    fn bad_request(&mut self, conn: ConnId, bad: &BadRequest) {
        let reply = match bad {
            BadRequest::BadFormat => Reply::BadFormat,
            BadRequest::UnknownCommand => Reply::UnknownCommand,
            BadRequest::JobTooBig => {
                self.counters.put += 1;
                Reply::JobTooBig
            }
            BadRequest::ExpectedCrlf => {
                self.note_put(conn);
                Reply::ExpectedCrlf
            }
            BadRequest::NoRoom => {
                self.note_put(conn);
                if !self.engine.draining() {
                    return self.refuse_put(conn);
                }
                Reply::Draining
            }
        };
        self.reply_now(conn, &reply);
    }

    /// Answers a command that needs neither the log nor the state.
    pub(super) fn reply_now(&mut self, conn: ConnId, reply: &Reply<'_>) {
        if let Some(session) = self.sessions.get_mut(conn) {
            session.reply(reply);
            self.touch_session(conn, false);
        }
    }

    /// Counts a put, whatever becomes of it.
    fn note_put(&mut self, conn: ConnId) {
        self.counters.put += 1;
        if let Some(session) = self.sessions.get_mut(conn) {
            session.producer = true;
        }
    }

    fn put(&mut self, conn: ConnId, header: &PutHeader, body: Bytes) {
        self.note_put(conn);
        if self.refuses_puts() || self.take_turn(conn, header, &body) {
            self.put_in_turn(conn, header, body);
        }
    }

    /// A put whose turn has come.
    pub(super) fn put_in_turn(&mut self, conn: ConnId, header: &PutHeader, body: Bytes) {
        if self.engine.draining() {
            return self.reply_now(conn, &Reply::Draining);
        }
        if self.refuses_puts() {
            return self.refuse_put(conn);
        }
        // What is left of the disk belongs to the commands that empty the queue. And without a leader it was certainly not
        // proposed: that is said in a word that every client knows.
        if self.is_cut_off() || self.bodies.no_space() {
            return self.reply_now(conn, &Reply::OutOfMemory);
        }
        // Until all members know such puts it is certainly not proposed; a moment later it may be.
        if header.key.is_some() && self.engine.level() == 0 {
            return self.reply_now(conn, &Reply::OutOfMemory);
        }
        // One that comes again is answered, however full the tube is by now.
        if header.key.is_none() && self.is_over_limit(conn, body.len().saturating_sub(CRLF_BYTES)) {
            self.note_over_limit();
            return self.reply_now(conn, &Reply::OutOfMemory);
        }
        let Some(session) = self.sessions.get_mut(conn) else { return };
        session.unanswered_bytes += body.len();
        session.slots.push_back(Slot::Logged { body: body.len(), silent: false });
        let tube = session.used;
        self.open_batch();
        let Gateway { open, tubes, .. } = self;
        let open = open.as_mut().expect("opened a line ago");
        open.bytes += body.len();
        open.may_ready |= header.delay == 0;
        let name = tubes.get(tube).name().as_bytes();
        match &header.key {
            None => open.builder.put(conn.0, name, header.pri, header.delay, header.ttr, body),
            Some(key) => {
                let numbers = [header.pri, header.delay, header.ttr];
                open.builder.put_once(conn.0, key.as_bytes(), name, numbers, body);
            }
        }
    }

    /// Appends a command to the open batch; its reply is owed from now on.
    fn log(&mut self, conn: ConnId, may_ready: bool, append: impl FnOnce(&mut OpenBatch)) {
        self.log_with(conn, 0, may_ready, append);
    }

    /// The same; `body` is how many bytes are expected to come of it, for the session's own bound.
    fn log_with(&mut self, conn: ConnId, body: usize, may_ready: bool, append: impl FnOnce(&mut OpenBatch)) {
        if self.is_cut_off() {
            return self.close(conn);
        }
        let Some(session) = self.sessions.get_mut(conn) else { return };
        session.unanswered_bytes += body;
        session.slots.push_back(Slot::Logged { body, silent: false });
        let open = self.open_batch();
        open.may_ready |= may_ready;
        append(open);
    }

    fn command(&mut self, conn: ConnId, command: Command<'_>) {
        let c = conn.0;
        match command {
            Command::Use(tube) => self.use_tube(conn, tube.as_str()),
            Command::Watch(tube) => self.watch(conn, tube.as_str()),
            Command::Ignore(tube) => self.ignore(conn, tube.as_str()),
            Command::ListTubeUsed => self.list_tube_used(conn),
            Command::ListTubesWatched => self.list_tubes_watched(conn),
            Command::Reserve => {
                self.counters.reserve += 1;
                self.run_or_hold(conn, Held::Reserve { timeout: None });
            }
            Command::ReserveWithTimeout(timeout) => {
                self.counters.reserve_with_timeout += 1;
                self.run_or_hold(conn, Held::Reserve { timeout: Some(timeout) });
            }
            Command::ReserveJob(id) => {
                self.counters.reserve_job += 1;
                // Many of them in a row would else be answered with far more than a session may have waiting.
                let body = self.engine.job(id.0).map_or(0, |job| job.body.len as usize);
                self.log_with(conn, body, false, |open| open.builder.reserve_job(c, id.0));
            }
            Command::Delete(id) => {
                self.counters.delete += 1;
                self.log(conn, false, |open| open.builder.delete(c, id.0));
            }
            Command::Release { id, pri, delay } => {
                self.counters.release += 1;
                self.log(conn, delay == 0, |open| open.builder.release(c, id.0, pri.0, delay));
            }
            Command::Bury { id, pri } => {
                self.counters.bury += 1;
                self.log(conn, false, |open| open.builder.bury(c, id.0, pri.0));
            }
            Command::Touch(id) => {
                self.counters.touch += 1;
                self.log(conn, false, |open| open.builder.touch(c, id.0));
            }
            Command::Kick(bound) => self.kick(conn, bound),
            Command::KickJob(id) => {
                self.counters.kick_job += 1;
                self.log(conn, true, |open| open.builder.kick_job(c, id.0));
            }
            Command::PauseTube { tube, delay } => self.pause_tube(conn, tube.as_str(), delay),
            Command::Peek(id) => self.read(conn, |c| &mut c.peek, ReadCommand::Peek(id.0)),
            Command::PeekReady => self.read(conn, |c| &mut c.peek_ready, ReadCommand::PeekReady),
            Command::PeekDelayed => self.read(conn, |c| &mut c.peek_delayed, ReadCommand::PeekDelayed),
            Command::PeekBuried => self.read(conn, |c| &mut c.peek_buried, ReadCommand::PeekBuried),
            Command::Stats => self.read(conn, |c| &mut c.stats, ReadCommand::Stats),
            Command::StatsTube(tube) => {
                self.read(conn, |c| &mut c.stats_tube, ReadCommand::StatsTube(tube.as_str().into()));
            }
            Command::StatsJob(id) => self.read(conn, |c| &mut c.stats_job, ReadCommand::StatsJob(id.0)),
            Command::ListTubes => self.read(conn, |c| &mut c.list_tubes, ReadCommand::ListTubes),
            Command::Quit => self.run_or_hold(conn, Held::Quit),
        }
    }

    /// Counts a command that only reads, and answers it when its time has come.
    fn read(&mut self, conn: ConnId, counter: impl FnOnce(&mut Counters) -> &mut u64, read: ReadCommand) {
        *counter(&mut self.counters) += 1;
        self.run_or_hold(conn, Held::Read(read));
    }

    // ---- tubes of this connection ----

    fn use_tube(&mut self, conn: ConnId, name: &str) {
        self.counters.use_tube += 1;
        let Some(session) = self.sessions.get_mut(conn) else { return };
        let known = self.tubes.find(name).is_some();
        let before = std::mem::replace(&mut session.used, self.tubes.add_using(name));
        let unused = self.tubes.drop_using(before);
        self.reply_now(conn, &Reply::Using(name));
        self.tell_refers(name, known, unused);
    }

    fn watch(&mut self, conn: ConnId, name: &str) {
        self.counters.watch += 1;
        let Some(session) = self.sessions.get_mut(conn) else { return };
        let known = self.tubes.find(name);
        if !known.is_some_and(|tube| session.watched.contains(&tube)) {
            session.watched.push(self.tubes.add_watching(name));
        }
        let count = session.watched.len() as u64;
        self.reply_now(conn, &Reply::Watching(count));
        self.tell_refers(name, known.is_some(), None);
    }

    fn ignore(&mut self, conn: ConnId, name: &str) {
        self.counters.ignore += 1;
        let Some(session) = self.sessions.get_mut(conn) else { return };
        let place = self.tubes.find(name).and_then(|tube| session.watched.iter().position(|t| *t == tube));
        let unused = match place {
            Some(_) if session.watched.len() == 1 => return self.reply_now(conn, &Reply::NotIgnored),
            Some(place) => {
                let tube = session.watched.remove(place);
                self.tubes.drop_watching(tube)
            }
            None => None,
        };
        let count = session.watched.len() as u64;
        self.reply_now(conn, &Reply::Watching(count));
        self.tell_refers(name, true, unused);
    }

    fn list_tube_used(&mut self, conn: ConnId) {
        self.counters.list_tube_used += 1;
        let Some(session) = self.sessions.get_mut(conn) else { return };
        session.reply(&Reply::Using(self.tubes.get(session.used).name()));
        self.touch_session(conn, false);
    }

    fn list_tubes_watched(&mut self, conn: ConnId) {
        self.counters.list_tubes_watched += 1;
        let Some(session) = self.sessions.get_mut(conn) else { return };
        let body = stats::list_body(session.watched.iter().map(|tube| self.tubes.get(*tube).name()));
        session.reply(&Reply::Ok(body.as_bytes()));
        self.touch_session(conn, false);
    }

    fn kick(&mut self, conn: ConnId, bound: u32) {
        self.counters.kick += 1;
        let Some(session) = self.sessions.get(conn) else { return };
        let name = self.tubes.get(session.used).shared_name();
        self.log(conn, true, |open| open.builder.kick(conn.0, name.as_bytes(), bound));
    }

    /// A tube that only a client uses or watches exists too, though the engine does not know it.
    fn pause_tube(&mut self, conn: ConnId, name: &str, delay: u32) {
        self.counters.pause_tube += 1;
        let referenced = self.tubes.find(name).is_some();
        if referenced || !self.clustered {
            return self.log_pause(conn, name, delay, referenced);
        }
        self.run_or_hold(conn, Held::Read(ReadCommand::PauseTube(name.into(), delay)));
    }

    pub(super) fn log_pause(&mut self, conn: ConnId, name: &str, delay: u32, referenced: bool) {
        self.log(conn, true, |open| open.builder.pause_tube(conn.0, name.as_bytes(), delay, referenced));
    }

    // ---- commands that wait for earlier answers ----

    /// Runs a command that needs all earlier ones answered, now or when they are.
    fn run_or_hold(&mut self, conn: ConnId, held: Held) {
        let Some(session) = self.sessions.get_mut(conn) else { return };
        if session.slots.is_empty() {
            self.run(conn, held);
        } else {
            session.blocked = Blocked::Held(held);
        }
    }

    fn run(&mut self, conn: ConnId, held: Held) {
        match held {
            Held::Reserve { timeout } => self.begin_reserve(conn, timeout),
            Held::Read(read) => self.begin_read(conn, read),
            Held::Quit => {
                if let Some(session) = self.sessions.get_mut(conn) {
                    session.blocked = Blocked::Closing;
                    self.touch_session(conn, true);
                }
            }
        }
    }

    /// Runs what was held, if nothing is owed before it any longer.
    pub(super) fn run_held(&mut self, conn: ConnId) {
        let Some(session) = self.sessions.get_mut(conn) else { return };
        if !session.slots.is_empty() {
            return;
        }
        match take_held(session) {
            Some(held) => self.run(conn, held),
            None => self.touch_session(conn, true),
        }
    }
}

fn take_held(session: &mut Session) -> Option<Held> {
    match std::mem::take(&mut session.blocked) {
        Blocked::Held(held) => Some(held),
        other @ (Blocked::No
        | Blocked::Reading(_)
        | Blocked::Reserving(_)
        | Blocked::Slowed(..)
        | Blocked::Closing) => {
            session.blocked = other;
            None
        }
    }
}
