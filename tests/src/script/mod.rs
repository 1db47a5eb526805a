//! Golden scripts of the wire: stories that a person can read, run byte for byte against a server.
//!
//! ```text
//! # A put wakes a worker that waits.
//! server: both
//!
//! A> reserve
//! A< nothing yet
//! B> put 0 0 60 5
//! B> hello
//! B< INSERTED {id}
//! A< RESERVED {id} 5
//! A< hello
//! ```
//!
//! The header: `server:` is `both`, `beanpole` or `beanstalkd`; the latter two need `why:`. `flags:` are
//! added to the command line. A connection opens where it is first named. Then, line by line:
//!
//! | line | meaning |
//! |---|---|
//! | `A> text` | sends the text and CRLF, as one write |
//! | `A>\| text` | sends the text only: pipelines, odd line ends |
//! | `A>~ text` | the same, each byte its own write |
//! | `A< pattern` | the next line (up to CRLF) matches |
//! | `A<[1.0..10] pattern` | and came so many seconds after the last send or connect on A |
//! | `B<[1.0..10 after A] pattern` | the same, after the last send on A |
//! | `A= pattern` | the next line of a stats body (up to LF) matches; lengths are checked against `OK n` |
//! | `A= ...` | whatever else the body has |
//! | `A< nothing yet` | nothing arrives for a moment |
//! | `A< closed` | the server closes |
//! | `A! half-close`, `A! close`, `A! reset`, `A! open` | what the client does to its connection |
//! | `A! speaks` | until the next line is read, A says something now and then: for beanstalkd only |
//! | `! signal USR1` | a signal to the server |
//! | `! crash and restart` | `kill -9`, start on the same directory; connections are gone |
//! | `! wait stats-tube t current-waiting 1` | polls on a hidden connection until the value is there |
//!
//! Bounds of time: the lower one is exact, for a server must never be early. The upper one only tells
//! "when it was due" from "much later" or "never", and leaves a loaded machine many seconds.
//!
//! `A! speaks` is there because beanstalkd 1.12 now and then forgets the time to run of a silent worker's
//! job: it lets go of a connection's timer when that fires in the very microsecond of the deadline, which
//! "has not passed yet", and arms it again only when the connection says something (its issues 262 and
//! 380). A script in which a ttr runs out lets the worker speak meanwhile. Beanpole needs no reminder and
//! gets none.
//!
//! Text knows `\r \n \t \0 \\ \xNN`, `{a*100}` (a hundred times a), `{name}` (captured before). Patterns
//! know also `{name}` (captures a word when it is new), `{#}` a number, `{3..5}` a number in that range
//! and `{_}` anything.

mod pattern;
mod run;

use std::path::{Path, PathBuf};

pub use pattern::{Bindings, Pattern};
pub use run::{Failure, run};

use crate::server::Kind;

/// One script file, parsed.
#[derive(Debug, Clone)]
pub struct Script {
    /// Where it lies, for failure messages.
    pub path: PathBuf,
    /// The servers it describes.
    pub servers: Vec<Kind>,
    /// Arguments that the server needs for it.
    pub flags: Vec<String>,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// One line of a script.
#[derive(Debug, Clone)]
pub struct Step {
    /// Line number in the file, from 1.
    pub line: usize,
    /// The line as written.
    pub source: String,
    /// What it says.
    pub action: Action,
}

/// What a line of a script does.
#[derive(Debug, Clone)]
pub enum Action {
    /// Writes bytes; `bytewise` writes them one by one.
    Send {
        /// Name of the connection.
        connection: String,
        /// What is written, with `{}` not yet filled in.
        text: String,
        /// One write per byte.
        bytewise: bool,
    },
    /// Reads a line that ends in CRLF.
    Expect {
        /// Name of the connection.
        connection: String,
        /// What the line must look like.
        pattern: String,
        /// When it must arrive.
        within: Option<Window>,
    },
    /// Reads a line of a body, that ends in LF.
    ExpectBody {
        /// Name of the connection.
        connection: String,
        /// What the line must look like.
        pattern: String,
    },
    /// Sees that nothing arrives.
    ExpectNothing {
        /// Name of the connection.
        connection: String,
    },
    /// Sees the server close.
    ExpectClosed {
        /// Name of the connection.
        connection: String,
    },
    /// Does something to a connection.
    Client {
        /// Name of the connection.
        connection: String,
        /// What.
        deed: ClientDeed,
    },
    /// Sends SIGUSR1 to the server.
    SignalUsr1,
    /// `kill -9` and a start on the same directory.
    CrashAndRestart,
    /// Polls a stats command until a key has a value.
    Wait {
        /// The whole stats command.
        command: String,
        /// The key in its body.
        key: String,
        /// The value waited for.
        value: String,
    },
}

/// When a line must arrive.
#[derive(Debug, Clone)]
pub struct Window {
    /// Seconds after the last send, at least.
    pub from_s: f64,
    /// Seconds after the last send, at most.
    pub to_s: f64,
    /// The connection whose last send counts, if it is another one than that which reads.
    pub after: Option<String>,
}

/// What a client can do to its connection besides talking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientDeed {
    /// Connects.
    Open,
    /// Closes.
    Close,
    /// Closes its sending side.
    HalfClose,
    /// Closes with a TCP reset.
    Reset,
    /// Says something now and then until the next line has been read, if the server is beanstalkd.
    Speak,
}

/// All scripts of a directory, sorted by name. Panics on one that cannot be parsed.
pub fn load_all(dir: &Path) -> Vec<Script> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", dir.display()))
        .map(|entry| entry.expect("a readable directory").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    paths.sort();
    paths.iter().map(|path| load(path)).collect()
}

/// Reads and parses one script; panics with file and line when it is not well formed.
pub fn load(path: &Path) -> Script {
    let text = std::fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    parse(path, &text).unwrap_or_else(|(line, what)| panic!("{}:{line}: {what}", path.display()))
}

fn parse(path: &Path, text: &str) -> Result<Script, (usize, String)> {
    let mut servers = Vec::new();
    let mut has_reason = false;
    let mut flags = Vec::new();
    let mut steps = Vec::new();
    for (line, source) in (1..).zip(text.lines()) {
        if source.trim().is_empty() || source.starts_with('#') {
            continue;
        }
        if let Some(value) = source.strip_prefix("server:") {
            servers = parse_servers(value.trim()).ok_or((line, "server: both|beanpole|beanstalkd".into()))?;
        } else if source.starts_with("why:") {
            has_reason = true;
        } else if let Some(value) = source.strip_prefix("flags:") {
            flags = value.split_whitespace().map(str::to_string).collect();
        } else {
            let action = parse_action(source).ok_or((line, format!("not understood: {source}")))?;
            steps.push(Step { line, source: source.to_string(), action });
        }
    }
    match servers.len() {
        0 => Err((1, "no server: line".into())),
        1 if !has_reason => Err((1, "a script for one server says why: it is".into())),
        _ => Ok(Script { path: path.to_path_buf(), servers, flags, steps }),
    }
}

fn parse_servers(value: &str) -> Option<Vec<Kind>> {
    match value {
        "both" => Some(vec![Kind::Beanpole, Kind::Beanstalkd]),
        "beanpole" => Some(vec![Kind::Beanpole]),
        "beanstalkd" => Some(vec![Kind::Beanstalkd]),
        _ => None,
    }
}

fn parse_action(source: &str) -> Option<Action> {
    if let Some(order) = source.strip_prefix("! ") {
        return parse_server_order(order);
    }
    let mark_at = source.find(['>', '<', '=', '!'])?;
    let (name, rest) = source.split_at(mark_at);
    if name.is_empty() || !name.chars().all(char::is_alphanumeric) {
        return None;
    }
    let connection = name.to_string();
    let (mark, rest) = rest.split_at(1);
    match mark {
        ">" => Some(parse_send(connection, rest)),
        "<" => parse_expect(connection, rest),
        "=" => Some(Action::ExpectBody { connection, pattern: one_space_off(rest) }),
        _ => {
            let deed = match rest.trim() {
                "open" => ClientDeed::Open,
                "close" => ClientDeed::Close,
                "half-close" => ClientDeed::HalfClose,
                "reset" => ClientDeed::Reset,
                "speaks" => ClientDeed::Speak,
                _ => return None,
            };
            Some(Action::Client { connection, deed })
        }
    }
}

fn parse_send(connection: String, rest: &str) -> Action {
    if let Some(text) = rest.strip_prefix('|') {
        Action::Send { connection, text: one_space_off(text), bytewise: false }
    } else if let Some(text) = rest.strip_prefix('~') {
        Action::Send { connection, text: one_space_off(text), bytewise: true }
    } else {
        Action::Send { connection, text: one_space_off(rest) + "\\r\\n", bytewise: false }
    }
}

fn parse_expect(connection: String, rest: &str) -> Option<Action> {
    if let Some(timed) = rest.strip_prefix('[') {
        let (window, pattern) = timed.split_once(']')?;
        let within = Some(parse_window(window)?);
        return Some(Action::Expect { connection, pattern: one_space_off(pattern), within });
    }
    match rest {
        " nothing yet" => Some(Action::ExpectNothing { connection }),
        " closed" => Some(Action::ExpectClosed { connection }),
        _ => Some(Action::Expect { connection, pattern: one_space_off(rest), within: None }),
    }
}

fn parse_window(text: &str) -> Option<Window> {
    let (range, after) = match text.split_once(" after ") {
        Some((range, name)) => (range, Some(name.to_string())),
        None => (text, None),
    };
    let (from, to) = range.split_once("..")?;
    Some(Window { from_s: from.parse().ok()?, to_s: to.parse().ok()?, after })
}

fn parse_server_order(order: &str) -> Option<Action> {
    match order {
        "signal USR1" => Some(Action::SignalUsr1),
        "crash and restart" => Some(Action::CrashAndRestart),
        _ => {
            let words: Vec<&str> = order.strip_prefix("wait ")?.split(' ').collect();
            let [command @ .., key, value] = words.as_slice() else { return None };
            Some(Action::Wait { command: command.join(" "), key: (*key).into(), value: (*value).into() })
        }
    }
}

/// The space behind a mark belongs to the mark; what is behind it belongs to the text.
fn one_space_off(text: &str) -> String {
    text.strip_prefix(' ').unwrap_or(text).to_string()
}
