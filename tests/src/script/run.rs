//! Runs a script against a fresh server.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::pattern::{Bindings, Pattern};
use super::{Action, ClientDeed, Script, Step, Window};
use crate::connection::Connection;
use crate::server::{Kind, Server, Setup};
use crate::wait;

/// How long "nothing yet" listens. It can only hide a fault, never invent one, so it may be short.
const SILENCE: Duration = Duration::from_millis(40);

/// How often a connection that speaks says something.
const SPEAK_EVERY: Duration = Duration::from_millis(50);

/// A script that did not go as written.
#[derive(Debug, thiserror::Error)]
#[error(
    "{script}:{line}: {source_line}\n    {what}\n  the conversation so far:\n{transcript}  stderr of the {kind:?}: {stderr}"
)]
pub struct Failure {
    /// File of the script.
    pub script: String,
    /// Line in it.
    pub line: usize,
    /// The line as written.
    pub source_line: String,
    /// What happened instead.
    pub what: String,
    /// Bytes sent and received before, shortened.
    pub transcript: String,
    /// The product that was under test.
    pub kind: Kind,
    /// The end of its stderr.
    pub stderr: String,
}

/// Runs a script against a server that is started for it as `setup` says.
pub fn run(script: &Script, setup: &Setup) -> Result<(), Box<Failure>> {
    let mut setup = setup.clone().flags(&script.flags);
    if script.steps.iter().any(|step| matches!(step.action, Action::CrashAndRestart)) {
        setup = setup.persistent();
    }
    let server = Server::try_start(&setup).map_err(|error| {
        Box::new(Failure {
            script: script.path.display().to_string(),
            line: 0,
            source_line: "(the start)".into(),
            what: error.to_string(),
            transcript: String::new(),
            kind: setup.kind(),
            stderr: String::new(),
        })
    })?;
    let mut run = Run {
        server,
        peers: BTreeMap::new(),
        speaker: None,
        observer: None,
        bindings: Bindings::new(),
        transcript: String::new(),
    };
    for step in &script.steps {
        run.step(step).map_err(|what| {
            Box::new(Failure {
                script: script.path.display().to_string(),
                line: step.line,
                source_line: step.source.clone(),
                what,
                transcript: run.transcript.clone(),
                kind: run.server.kind(),
                stderr: run.server.stderr(),
            })
        })?;
    }
    run.finish(script)
}

/// A named connection of a script.
struct Peer {
    connection: Connection,
    /// When it connected or last sent something.
    since: Instant,
    /// Set by a line `OK n`: the announced and the read number of body bytes.
    body: Option<(usize, usize)>,
}

struct Run {
    server: Server,
    peers: BTreeMap<String, Peer>,
    /// The connection that speaks until the next line has been read.
    speaker: Option<String>,
    /// Asks for stats while the script waits.
    observer: Option<Connection>,
    bindings: Bindings,
    transcript: String,
}

impl Run {
    fn step(&mut self, step: &Step) -> Result<(), String> {
        match &step.action {
            Action::Send { connection, text, bytewise } => self.send(connection, text, *bytewise),
            Action::Expect { connection, pattern, within } => {
                self.expect(connection, pattern, within.as_ref())
            }
            Action::ExpectBody { connection, pattern } => self.expect_body(connection, pattern),
            Action::ExpectNothing { connection } => self.expect_nothing(connection),
            Action::ExpectClosed { connection } => self.expect_closed(connection),
            Action::Client { connection, deed } => self.client(connection, *deed),
            Action::SignalUsr1 => {
                self.server.signal(Signal::SIGUSR1);
                Ok(())
            }
            Action::CrashAndRestart => {
                self.peers.clear();
                self.observer = None;
                self.server.crash_and_restart();
                self.note("*", "crashed and restarted", b"");
                Ok(())
            }
            Action::Wait { command, key, value } => self.wait(command, key, value),
        }
    }

    /// What a connection still has to say when the story is over is a fault as well.
    fn finish(mut self, script: &Script) -> Result<(), Box<Failure>> {
        let leftover =
            self.peers.iter_mut().find_map(|(name, peer)| peer.connection.has_unread().then(|| name.clone()));
        let Some(name) = leftover else { return Ok(()) };
        Err(Box::new(Failure {
            script: script.path.display().to_string(),
            line: script.steps.last().map_or(0, |step| step.line),
            source_line: "(the end)".into(),
            what: format!("connection {name} received more than the script expects"),
            transcript: self.transcript,
            kind: self.server.kind(),
            stderr: self.server.stderr(),
        }))
    }

    fn peer(&mut self, name: &str) -> &mut Peer {
        if !self.peers.contains_key(name) {
            let peer = Peer { connection: self.server.connect(), since: Instant::now(), body: None };
            self.peers.insert(name.to_string(), peer);
        }
        self.peers.get_mut(name).expect("inserted above")
    }

    fn send(&mut self, name: &str, text: &str, bytewise: bool) -> Result<(), String> {
        let bytes = Pattern::parse(text)?.fill(&self.bindings)?;
        self.note(name, ">", &bytes);
        let peer = self.peer(name);
        peer.since = Instant::now();
        let chunk_len = if bytewise { 1 } else { bytes.len().max(1) };
        for chunk in bytes.chunks(chunk_len) {
            peer.connection.send(chunk).map_err(|error| format!("cannot send: {error}"))?;
        }
        Ok(())
    }

    fn expect(&mut self, name: &str, pattern: &str, within: Option<&Window>) -> Result<(), String> {
        let pattern = Pattern::parse(pattern)?;
        self.let_speak(name)?;
        let since_of = within.and_then(|window| window.after.as_deref()).unwrap_or(name);
        let since = self.peer(since_of).since;
        let peer = self.peer(name);
        let line = peer.connection.line().map_err(|error| {
            format!("no line came ({error}); pending: {:?}", shown(peer.connection.pending()))
        })?;
        let after_s = since.elapsed().as_secs_f64();
        let body = peer.body.take();
        if let Some(announced) = ok_length(&line) {
            peer.body = Some((announced, 0));
        }
        self.note(name, "<", &line);
        if let Some((announced, read)) = body
            && announced != read
        {
            return Err(format!("the body was announced with {announced} bytes but has {read}"));
        }
        if !pattern.matches(&line, &mut self.bindings) {
            return Err(format!("got {:?}", shown(&line)));
        }
        match within {
            Some(Window { from_s, to_s, .. }) if !(from_s..=to_s).contains(&&after_s) => {
                Err(format!("came after {after_s:.3} s, not within {from_s}..{to_s} s"))
            }
            _ => Ok(()),
        }
    }

    /// Lets the speaker speak, if there is one, until something has arrived for `listener`.
    fn let_speak(&mut self, listener: &str) -> Result<(), String> {
        let Some(speaker) = self.speaker.take() else { return Ok(()) };
        let deadline = Instant::now() + wait::PATIENCE;
        let silent = |error: std::io::Error| format!("{speaker} cannot speak: {error}");
        while Instant::now() < deadline {
            let heard = self.peer(listener).connection.is_silent_for(SPEAK_EVERY).map_err(silent)?;
            if !heard {
                break;
            }
            self.peer(&speaker).connection.command("list-tube-used").map_err(silent)?;
        }
        Ok(())
    }

    fn expect_body(&mut self, name: &str, pattern: &str) -> Result<(), String> {
        if pattern == "..." {
            return self.expect_rest(name);
        }
        let unquoted = self.server.kind() == Kind::Beanstalkd;
        let mut pattern = Pattern::parse(pattern)?;
        let peer = self.peer(name);
        let mut line = peer.connection.lf_line().map_err(|error| format!("no body line came: {error}"))?;
        if let Some((_, read)) = &mut peer.body {
            *read += line.len() + 1;
        }
        self.note(name, "=", &line);
        if unquoted {
            line.retain(|byte| *byte != b'"');
            pattern = pattern.without_quotes();
        }
        let matched = pattern.matches(&line, &mut self.bindings);
        if matched { Ok(()) } else { Err(format!("got {:?}", shown(&line))) }
    }

    /// Further lines, as many as were announced.
    fn expect_rest(&mut self, name: &str) -> Result<(), String> {
        let peer = self.peer(name);
        while let Some((announced, read)) = peer.body
            && read < announced
        {
            let line = peer.connection.lf_line().map_err(|error| format!("no body line came: {error}"))?;
            peer.body = Some((announced, read + line.len() + 1));
        }
        Ok(())
    }

    fn expect_nothing(&mut self, name: &str) -> Result<(), String> {
        let peer = self.peer(name);
        match peer.connection.is_silent_for(SILENCE) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("got {:?}", shown(peer.connection.pending()))),
            Err(error) => Err(format!("the connection broke: {error}")),
        }
    }

    fn expect_closed(&mut self, name: &str) -> Result<(), String> {
        let peer = self.peer(name);
        let closed = peer.connection.is_closed_by_server();
        let pending = shown(peer.connection.pending());
        self.peers.remove(name);
        if closed { Ok(()) } else { Err(format!("it did not close; pending: {pending:?}")) }
    }

    fn client(&mut self, name: &str, deed: ClientDeed) -> Result<(), String> {
        self.note(name, "!", format!("{deed:?}").as_bytes());
        let broken = |error: std::io::Error| format!("{deed:?}: {error}");
        match deed {
            ClientDeed::Open => {
                self.peer(name);
            }
            ClientDeed::HalfClose => self.peer(name).connection.half_close().map_err(broken)?,
            ClientDeed::Speak if self.server.kind() == Kind::Beanstalkd => {
                self.speaker = Some(name.to_string());
            }
            ClientDeed::Speak => {}
            ClientDeed::Close => {
                self.peers.remove(name);
            }
            ClientDeed::Reset => {
                let peer = self.peers.remove(name).ok_or("reset of a connection that is not open")?;
                peer.connection.reset().map_err(broken)?;
            }
        }
        Ok(())
    }

    fn wait(&mut self, command: &str, key: &str, value: &str) -> Result<(), String> {
        let fill = |text: &str| -> Result<String, String> {
            Ok(String::from_utf8_lossy(&Pattern::parse(text)?.fill(&self.bindings)?).into_owned())
        };
        let (command, value) = (fill(command)?, fill(value)?);
        let mut last = String::new();
        let server = &self.server;
        let observer = self.observer.get_or_insert_with(|| server.connect());
        let seen = wait::until(|| match observer.command(&command) {
            Ok(reply) => {
                last = reply.stat(key).unwrap_or(reply.line);
                (last == value).then_some(())
            }
            Err(error) => {
                last = format!("{:?}", error.kind() == ErrorKind::UnexpectedEof);
                None
            }
        });
        self.note("*", "waited for", format!("{command} {key} {value}").as_bytes());
        seen.ok_or(format!("{command}: {key} is {last}, never {value}"))
    }

    fn note(&mut self, name: &str, mark: &str, bytes: &[u8]) {
        self.transcript.push_str(&format!("    {name} {mark} {}\n", shown(bytes)));
    }
}

/// The length that a line `OK n` announces.
fn ok_length(line: &[u8]) -> Option<usize> {
    std::str::from_utf8(line).ok()?.strip_prefix("OK ")?.parse().ok()
}

/// Bytes for people: escaped, and shortened in the middle of nowhere.
fn shown(bytes: &[u8]) -> String {
    const LONGEST: usize = 300;
    let text = bytes[..bytes.len().min(LONGEST)].escape_ascii().to_string();
    if bytes.len() > LONGEST { format!("{text}... ({} bytes)", bytes.len()) } else { text }
}
