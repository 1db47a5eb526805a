//! Stories as text: `tests/scripts/*.txt`. Each block of `>` lines is one entry (or a question), and what
//! follows it is what came of it. `UPDATE_SCRIPTS=1 cargo test -p beanpole --test engine` writes the files
//! anew; read the diff.
//!
//! ```text
//! > +2s                                time before the entry: both clocks; `stamp +2s`, `lease +2s`: one of them
//! > put p TUBE [pri=] [delay=] [ttr=] [bytes=]
//! > reserve-job w ID | delete w ID | release w ID [pri=] [delay=] | bury w ID [pri=] | touch w ID
//! > kick w TUBE BOUND | kick-job w ID | pause w TUBE SECONDS [unused] | noop w
//! > closed w [WANT...] | unreserve w WANT ID
//! > offer w WANT TUBE...               w's want may be served by this entry
//! > up NODE NONCE | gone NODE EPOCH | tube-gone TUBE | draining on|off
//! > lost ID [other]                  no voter has the job's body, or another one that it does not have
//! > level LEVEL
//! > purge NONCE TUBE | move NONCE TUBE TO | kick-all NONCE TUBE   each [states=ready,...] [older=2s] [limit=N]
//! > put-once w KEY TUBE [bytes=] | once-window 2s KEYS
//! > policy PATTERN [max-jobs=3 ...] | policy-off PATTERN
//! > section NODE EPOCH SEQUENCE        commands below are in a section of their own
//! > ? job ID | tube TUBE | totals | tubes | peeks TUBE | session w | due | due-in 2s | bulks | tally TUBE | once
//! > ? restart                          the state goes through its image
//! ```
//!
//! Clients are named freely: a name is a connection of node 1, `2:name` of node 2. Node 1 is up from the
//! start with epoch 1.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use beanpole::queue::{
    BulkVerb, BulkView, Effects, Engine, Gateway, JobState, Outcome, Policy, RefusedWhy, SessionId, Tally,
};
use beanpole_raft::BodyAddr;

use crate::entries::{Bulk, Cmd, Entry, Offered, Sect};
use crate::snapshots::{image, restore};

#[test]
fn scripts() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut paths: Vec<_> = fs::read_dir(&directory).unwrap().map(|file| file.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    assert!(!paths.is_empty(), "no scripts in {}", directory.display());
    let mut wrong = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let told = Teller::new().tell(&text);
        if told == text {
            continue;
        }
        if std::env::var_os("UPDATE_SCRIPTS").is_some() {
            fs::write(&path, told).unwrap();
        } else {
            wrong.push(format!("{}:\n{}", path.display(), difference(&text, &told)));
        }
    }
    assert!(wrong.is_empty(), "scripts that end differently:\n{}", wrong.join("\n"));
}

fn difference(text: &str, told: &str) -> String {
    let (mut expected, mut actual) = (text.lines(), told.lines());
    for number in 1.. {
        match (expected.next(), actual.next()) {
            (a, b) if a != b => {
                let shown = |line: Option<&str>| line.unwrap_or("(end)").to_owned();
                return format!("line {number}\n  expected: {}\n  actual:   {}", shown(a), shown(b));
            }
            (None, None) => break,
            _ => {}
        }
    }
    "lines end differently".to_owned()
}

/// Runs one script.
struct Teller {
    engine: Engine,
    index: u64,
    stamp: u64,
    lease: u64,
    clients: Vec<String>,
}

/// A second, in microseconds.
const S: u64 = 1_000_000;

impl Teller {
    fn new() -> Self {
        let mut teller =
            Teller { engine: Engine::new(), index: 0, stamp: 1000 * S, lease: 100 * S, clients: vec![] };
        let mut up = Entry::default();
        let (gateway, commands) = (Gateway { node: 1, epoch: 0 }, vec![Cmd::Up { nonce: 1 }]);
        up.sections.push(Sect { gateway, sequence: 0, commands });
        teller.apply(up);
        teller
    }

    /// The script with what really happens in place of what it says.
    fn tell(&mut self, text: &str) -> String {
        let mut told = String::new();
        let mut block: Vec<&str> = Vec::new();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            if let Some(command) = line.strip_prefix("> ") {
                writeln!(told, "{line}").unwrap();
                block.push(command);
                if lines.peek().is_none_or(|next| !next.starts_with("> ")) {
                    told.push_str(&self.block(&block));
                    block.clear();
                }
            } else if line.is_empty() || line.starts_with('#') {
                writeln!(told, "{line}").unwrap();
            }
        }
        self.engine.verify().unwrap();
        told
    }

    fn block(&mut self, lines: &[&str]) -> String {
        if let Some(question) = lines[0].strip_prefix("? ") {
            let mut told = self.answer(&question.split(' ').collect::<Vec<_>>());
            for line in &lines[1..] {
                let question = line.strip_prefix("? ").expect("questions are not mixed with commands");
                told += &self.answer(&question.split(' ').collect::<Vec<_>>());
            }
            return told;
        }
        let mut entry = Entry::default();
        for line in lines {
            self.line(&mut entry, &line.split_whitespace().collect::<Vec<_>>());
        }
        self.apply(entry)
    }

    fn apply(&mut self, mut entry: Entry) -> String {
        self.index += 1;
        (entry.stamp, entry.lease) = (self.stamp, self.lease);
        let mut effects = Effects::default();
        self.engine.apply(self.index, &entry.payload(), &mut effects);
        self.engine.verify().unwrap();
        self.effects(&effects)
    }

    // ---- what is said ----

    fn line(&mut self, entry: &mut Entry, words: &[&str]) {
        match words {
            ["stamp", step] => self.stamp += time(step),
            ["lease", step] => self.lease += time(step),
            [step] if step.starts_with('+') => {
                self.stamp += time(step);
                self.lease += time(step);
            }
            ["offer", who, want, tubes @ ..] => {
                let tubes = tubes.iter().map(|tube| tube.to_string()).collect();
                entry.offers.push(Offered { session: self.session(who), want: number(want), tubes });
            }
            ["section", node, epoch, sequence] => {
                let gateway = Gateway { node: number(node) as u32, epoch: number(epoch) };
                entry.sections.push(Sect { gateway, sequence: number(sequence), commands: vec![] });
            }
            _ => {
                let (node, command) = self.command(words);
                self.section(entry, node).commands.push(command);
            }
        }
    }

    /// The section that a command of the node goes to: the last one if it is the node's, else a new one, next
    /// in sequence.
    fn section<'e>(&self, entry: &'e mut Entry, node: u32) -> &'e mut Sect {
        if entry.sections.last().is_none_or(|section| node != 0 && section.gateway.node != node) {
            let epoch = self.engine.live_epoch(node).unwrap_or(0);
            let before = entry.sections.iter().filter(|section| section.gateway.node == node).count();
            let sequence = self.engine.last_sequence(node).unwrap_or(0) + 1 + before as u64;
            entry.sections.push(Sect { gateway: Gateway { node, epoch }, sequence, commands: vec![] });
        }
        entry.sections.last_mut().unwrap()
    }

    fn command(&mut self, words: &[&str]) -> (u32, Cmd) {
        let named = |name: &str, default: u32| {
            let value = words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            value.map_or(default, |value| number(value) as u32)
        };
        let (pri, delay, ttr) = (named("pri", 1024), named("delay", 0), named("ttr", 60));
        match words {
            ["up", node, nonce] => return (number(node) as u32, Cmd::Up { nonce: number(nonce) }),
            ["gone", node, epoch] => {
                let gateway = Gateway { node: number(node) as u32, epoch: number(epoch) };
                return (0, Cmd::Gone { gateway });
            }
            ["tube-gone", tube] => return (0, Cmd::TubeGone { tube: tube.to_string() }),
            ["lost", id, other @ ..] => {
                let id = number(id);
                let body =
                    self.engine.job(id).map_or(BodyAddr { index: 0, offset: 0, len: 0 }, |job| job.body);
                let index = body.index + other.len() as u64;
                return (0, Cmd::Lost { id, body: BodyAddr { index, ..body } });
            }
            ["level", level] => return (0, Cmd::Level { level: number(level) as u32 }),
            ["once-window", window, keys] => {
                return (0, Cmd::OnceWindow { window_us: time(window), keys: number(keys) });
            }
            ["policy", pattern, ..] => {
                return (0, Cmd::Policy { pattern: pattern.to_string(), policy: Some(policy(&words[2..])) });
            }
            ["policy-off", pattern] => {
                return (0, Cmd::Policy { pattern: pattern.to_string(), policy: None });
            }
            ["purge", nonce, tube, ..] => {
                return (0, Cmd::Bulk(bulk(Bulk::all(number(nonce), BulkVerb::Purge, tube, ""), words)));
            }
            ["move", nonce, tube, to, ..] => {
                return (0, Cmd::Bulk(bulk(Bulk::all(number(nonce), BulkVerb::Move, tube, to), words)));
            }
            ["kick-all", nonce, tube, ..] => {
                return (0, Cmd::Bulk(bulk(Bulk::all(number(nonce), BulkVerb::Kick, tube, ""), words)));
            }
            ["draining", on] => return (0, Cmd::Draining { on: *on == "on" }),
            _ => {}
        }
        let SessionId { node, conn, .. } = self.session(words[1]);
        let id = words.get(2).and_then(|id| id.parse().ok()).unwrap_or(0);
        let tube = || words[2].to_owned();
        let command = match words[0] {
            "put" => Cmd::Put { conn, tube: tube(), pri, delay, ttr, bytes: named("bytes", 0) as usize },
            "put-once" => {
                let (key, tube) = (words[2].to_owned(), words[3].to_owned());
                Cmd::PutOnce { conn, key, tube, bytes: named("bytes", 0) as usize }
            }
            "reserve-job" => Cmd::ReserveJob { conn, id },
            "delete" => Cmd::Delete { conn, id },
            "release" => Cmd::Release { conn, id, pri, delay },
            "bury" => Cmd::Bury { conn, id, pri },
            "touch" => Cmd::Touch { conn, id },
            "kick" => Cmd::Kick { conn, tube: tube(), bound: number(words[3]) as u32 },
            "kick-job" => Cmd::KickJob { conn, id },
            "pause" => {
                let referenced = words.get(4) != Some(&"unused");
                Cmd::Pause { conn, tube: tube(), delay: number(words[3]) as u32, referenced }
            }
            "closed" => {
                Cmd::Closed { conn, undelivered: words[2..].iter().map(|want| number(want)).collect() }
            }
            "unreserve" => Cmd::Unreserve { conn, want: id, id: number(words[3]) },
            "noop" => Cmd::Noop { conn },
            other => panic!("unknown command `{other}`"),
        };
        (node, command)
    }

    fn session(&mut self, name: &str) -> SessionId {
        let node = name.split_once(':').map_or(1, |(node, _)| number(node) as u32);
        let at = self.clients.iter().position(|client| client == name).unwrap_or_else(|| {
            self.clients.push(name.to_owned());
            self.clients.len() - 1
        });
        let epoch = self.engine.live_epoch(node).unwrap_or(0);
        SessionId { node, epoch, conn: at as u64 + 1 }
    }

    // ---- what is told ----

    fn name(&self, session: SessionId) -> &str {
        &self.clients[session.conn as usize - 1]
    }

    fn effects(&self, effects: &Effects) -> String {
        let mut told = String::new();
        for up in &effects.gateways_up {
            writeln!(told, "node {} is up, epoch {}", up.node, up.epoch).unwrap();
        }
        for (id, tube) in &effects.lost {
            writeln!(told, "job {id} of {tube} is lost").unwrap();
        }
        for refused in &effects.refused {
            let why = match refused.why {
                RefusedWhy::Duplicate => "a duplicate",
                RefusedWhy::Gap => "a gap",
                RefusedWhy::NotLive => "not live",
            };
            let (gateway, last) = (refused.gateway, refused.last);
            let (node, epoch) = (gateway.node, gateway.epoch);
            writeln!(
                told,
                "refused node {node} epoch {epoch} sequence {}: {why}, last {last}",
                refused.sequence
            )
            .unwrap();
        }
        for (session, outcome) in &effects.outcomes {
            writeln!(told, "{}: {}", self.name(*session), words_of(outcome)).unwrap();
        }
        for handout in &effects.handouts {
            let who = self.name(handout.session);
            writeln!(told, "{who}: want {} gets job {}", handout.want, handout.id).unwrap();
        }
        for (session, want) in &effects.unmatched {
            writeln!(told, "{}: want {want} gets nothing", self.name(*session)).unwrap();
        }
        if effects.retained.len() + effects.released.len() > 0 {
            writeln!(told, "bodies: {} kept, {} let go", effects.retained.len(), effects.released.len())
                .unwrap();
        }
        if !effects.ready_tubes.is_empty() {
            writeln!(told, "ready in: {}", effects.ready_tubes.join(" ")).unwrap();
        }
        if !effects.emptied.is_empty() {
            writeln!(told, "empty: {}", effects.emptied.join(" ")).unwrap();
        }
        told
    }

    fn answer(&mut self, question: &[&str]) -> String {
        match question {
            ["job", id] => self.job(number(id)),
            ["tube", tube] => self.tube(tube),
            ["totals"] => {
                let t = self.engine.totals();
                format!(
                    "{} ready ({} urgent), {} reserved, {} delayed, {} buried; {} put, {} timeouts, {} tubes\n",
                    t.ready, t.urgent, t.reserved, t.delayed, t.buried, t.total_jobs, t.timeouts, t.tubes
                )
            }
            ["tubes"] => self.engine.tube_names().collect::<Vec<_>>().join(" ") + "\n",
            ["peeks", tube] => {
                let shown = |id: Option<u64>| id.map_or("none".to_owned(), |id| id.to_string());
                let tube = tube.as_bytes();
                format!(
                    "ready {}, delayed {}, buried {}, to hand out {}\n",
                    shown(self.engine.peek_ready(tube)),
                    shown(self.engine.peek_delayed(tube)),
                    shown(self.engine.peek_buried(tube)),
                    self.engine.has_ready(tube)
                )
            }
            ["session", who] => {
                let session = self.session(who);
                match self.engine.session_deadline(session) {
                    Some(deadline) => format!("{who} has {} left\n", shown_time(deadline - self.lease)),
                    None => format!("{who} holds nothing\n"),
                }
            }
            ["due"] => {
                let due = self.engine.next_due();
                let left = |at: Option<u64>, now: u64| {
                    at.map_or("never".to_owned(), |at| format!("in {}", shown_time(at.saturating_sub(now))))
                };
                format!("stamp {}, lease {}\n", left(due.stamp, self.stamp), left(due.lease, self.lease))
            }
            ["due-in", time_left] => {
                let left = time(time_left);
                format!("{} transitions\n", self.engine.due_now(self.stamp + left, self.lease + left))
            }
            ["once"] => {
                let (window, most, keys) = self.engine.once_window();
                format!("{keys} keys of {most}, for {}\n", shown_time(window))
            }
            ["tally", tube] => {
                let Tally { refused, dead, expired } = self.engine.tally_of(tube.as_bytes());
                let bytes = self.engine.tube(tube.as_bytes()).map_or(0, |tube| tube.bytes);
                format!("{tube}: {bytes} bytes; {refused} refused, {dead} dead, {expired} expired\n")
            }
            ["bulks"] => {
                let shown = |bulk: &BulkView| {
                    let to = if bulk.to.is_empty() { String::new() } else { format!(" to {}", bulk.to) };
                    let state = if bulk.running { "goes on" } else { "done" };
                    let (verb, tube) = (bulk.verb.as_str(), &bulk.tube);
                    format!("{} {verb} {tube}{to}: {} of {}, {state}\n", bulk.nonce, bulk.done, bulk.total)
                };
                self.engine.bulks().map(shown).collect()
            }
            ["restart"] => {
                let image = image(&mut self.engine, 1000);
                self.engine = restore(&image);
                "restarted\n".to_owned()
            }
            other => panic!("unknown question {other:?}"),
        }
    }

    fn job(&self, id: u64) -> String {
        let Some(job) = self.engine.job(id) else { return format!("no job {id}\n") };
        let mut told = format!("job {id} is {} in {}", job.state.as_str(), job.tube);
        match job.state {
            JobState::Ready | JobState::Buried => {}
            JobState::Delayed => {
                write!(told, ", {} left", shown_time(job.due_us.saturating_sub(self.stamp))).unwrap();
            }
            JobState::Reserved => {
                let holder = self.name(job.holder.unwrap());
                write!(told, " by {holder}, {} left", shown_time(job.due_us.saturating_sub(self.lease)))
                    .unwrap();
            }
        }
        write!(told, "; pri {}, delay {}, ttr {}", job.pri, job.delay_s, job.ttr_s).unwrap();
        write!(told, ", age {}", shown_time(self.stamp - job.created_us)).unwrap();
        let counts = [
            ("reserves", job.reserves),
            ("timeouts", job.timeouts),
            ("releases", job.releases),
            ("buries", job.buries),
            ("kicks", job.kicks),
        ];
        for (name, count) in counts {
            if count > 0 {
                write!(told, ", {name} {count}").unwrap();
            }
        }
        if job.hops > 0 {
            write!(told, ", hops {}", job.hops).unwrap();
        }
        if let Some(reason) = job.reason.as_str() {
            write!(told, ", because of {reason}").unwrap();
        }
        told + "\n"
    }

    fn tube(&self, name: &str) -> String {
        let Some(t) = self.engine.tube(name.as_bytes()) else { return format!("no tube {name}\n") };
        let mut told = format!(
            "{name}: {} ready ({} urgent), {} reserved, {} delayed, {} buried; {} put, {} deleted",
            t.ready, t.urgent, t.reserved, t.delayed, t.buried, t.total_jobs, t.cmd_delete
        );
        if t.cmd_pause > 0 {
            let left = shown_time(t.pause_left_us(self.stamp));
            write!(told, "; paused {} times, now for {} s, {left} left", t.cmd_pause, t.pause_s).unwrap();
        }
        told + "\n"
    }
}

/// What the words say; times are in milliseconds.
fn policy(words: &[&str]) -> Policy {
    let mut policy = Policy::default();
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((word, "1"));
        match name {
            "max-deliveries" => policy.max_deliveries = number(value) as u32,
            "dead-tube" => policy.dead_tube = Some(value.into()),
            "backoff-min" => policy.backoff_min_ms = number(value),
            "backoff-max" => policy.backoff_max_ms = number(value),
            "backoff-jitter" => policy.backoff_jitter = number(value) as u8,
            "max-reserved" => policy.max_reserved = number(value),
            "max-jobs" => policy.max_jobs = number(value),
            "max-bytes" => policy.max_bytes = number(value),
            "max-put-rate" => policy.max_put_rate = number(value) as u32,
            "max-age" => policy.max_age_ms = number(value),
            "alarm-ready-age" => policy.alarm_ready_age_ms = number(value),
            "max-hops" => policy.max_hops = number(value) as u8,
            "pause-input" => policy.pause_input = true,
            "pause-output" => policy.pause_output = true,
            other => panic!("`{other}` is no part of a policy"),
        }
    }
    policy
}

/// With what the words besides say.
fn bulk(all: Bulk, words: &[&str]) -> Bulk {
    let named = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let state = |name: &str| match name {
        "ready" => JobState::Ready,
        "delayed" => JobState::Delayed,
        "buried" => JobState::Buried,
        other => panic!("`{other}` is no state of a bulk operation"),
    };
    Bulk {
        states: named("states").map_or(all.states, |states| states.split(',').map(state).collect()),
        older_us: named("older").map_or(0, time),
        limit: named("limit").map_or(u64::MAX, number),
        ..all
    }
}

fn words_of(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Inserted(id) => format!("inserted {id}"),
        Outcome::NotFound => "not found".into(),
        Outcome::Deleted => "deleted".into(),
        Outcome::Released => "released".into(),
        Outcome::Buried => "buried".into(),
        Outcome::Touched => "touched".into(),
        Outcome::Kicked(count) => format!("kicked {count}"),
        Outcome::KickedJob => "kicked".into(),
        Outcome::Paused => "paused".into(),
        Outcome::Reserved { id, .. } => format!("reserved {id}"),
        Outcome::Noop => "nothing".into(),
        Outcome::Draining => "draining".into(),
        Outcome::OverLimit => "over a limit".into(),
    }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("`{word}` is no number"))
}

/// `+2s`, `500ms`.
fn time(word: &str) -> u64 {
    let word = word.trim_start_matches('+');
    match word.strip_suffix("ms") {
        Some(ms) => number(ms) * 1000,
        None => number(word.strip_suffix('s').unwrap_or_else(|| panic!("`{word}` is no time"))) * S,
    }
}

fn shown_time(us: u64) -> String {
    match us % S {
        0 => format!("{}s", us / S),
        _ => format!("{}ms", us / 1000),
    }
}
