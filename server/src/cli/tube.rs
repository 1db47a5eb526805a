//! `beanpole tube`: which tubes there are, a pause, many jobs of a tube at once.
//! Limits and rules of tubes are in [`super::policy`].

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use super::admin::{self, Ask, Failure, Output, REFUSED, TIMED_OUT, UNREACHABLE, YES};
use super::client::{self, Addr, or_missing, seconds};
use super::policy::{self, PolicyArgs};
use super::progress::Progress;
use crate::admin::bulk::{Bulk, Counted};
use crate::units::Span;

/// How often an operation is looked at while it is under way.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What is refused may be taken a moment later: the cluster may have begun just now, or be busy with others.
const REFUSED_MAX: Duration = Duration::from_secs(2);
/// An operation that no node knows after this long is asked for again: the entry may have been lost with its node.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// No node has known anything of an operation for this long.
const UNHEARD_MAX: Duration = Duration::from_secs(30);

/// The flags of `beanpole tube`.
#[derive(Args, Debug)]
pub struct TubeArgs {
    #[command(flatten)]
    ask: Ask,
    #[command(subcommand)]
    verb: Verb,
}

/// Which jobs: never those that a worker holds.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum StateArg {
    Ready,
    Delayed,
    Buried,
    All,
}

impl StateArg {
    fn as_str(self) -> &'static str {
        match self {
            StateArg::Ready => "ready",
            StateArg::Delayed => "delayed",
            StateArg::Buried => "buried",
            StateArg::All => "all",
        }
    }
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Delete jobs of a tube; jobs that a worker holds stay
    Purge {
        /// The tube
        name: String,
        /// Only jobs in this state
        #[arg(long, value_name = "S", default_value = "all")]
        state: StateArg,
        /// Only jobs that were put longer ago than this: 90s, 15m, 24h, 7d
        #[arg(long, value_name = "D")]
        older_than: Option<Span>,
        /// Delete nothing, say how many jobs it would be
        #[arg(long)]
        dry_run: bool,
    },
    /// Move jobs to another tube; they keep id, state, priority and counts, and jobs that a worker holds stay
    Move {
        /// The tube that they are in
        from: String,
        /// The tube that they go to
        to: String,
        /// Only jobs in this state
        #[arg(long, value_name = "S", default_value = "all")]
        state: StateArg,
        /// Only jobs that were put longer ago than this: 90s, 15m, 24h, 7d
        #[arg(long, value_name = "D")]
        older_than: Option<Span>,
    },
    /// Make buried and delayed jobs ready
    Kick {
        /// The tube
        name: String,
        /// All buried and all delayed jobs
        #[arg(long, required_unless_present = "bound", conflicts_with = "bound")]
        all: bool,
        /// So many: buried ones if there are any, else delayed ones, as the command `kick` does
        #[arg(value_name = "N")]
        bound: Option<u64>,
    },
    /// List all tubes and how many jobs they have
    List,
    /// Hand out nothing of a tube for a while; jobs can be put, and those that workers hold go on
    Pause {
        /// The tube
        name: String,
        /// For how long: 90s, 15m; 0s ends a pause
        #[arg(value_name = "D")]
        span: Span,
        #[command(flatten)]
        addr: Addr,
    },
    /// Show a tube: its jobs, its policy, and what that did
    Show {
        /// The tube
        name: String,
    },
    /// Limits and rules of tubes
    Policy(PolicyArgs),
}

/// Runs the verb.
pub fn run(args: &TubeArgs) -> ExitCode {
    admin::finish(verb(&args.ask, &args.verb))
}

async fn pause(addr: &Addr, name: &str, span: Span) -> Result<u8, Failure> {
    let mut connection = addr.connect().await?;
    let paused = connection.pause_tube(name, seconds(span)).await;
    paused.map_err(|error| or_missing(&error, format!("there is no tube {name}")))?;
    println!(
        "{name} is {}",
        if span.0 == 0 { "not paused".to_owned() } else { format!("paused for {span}") }
    );
    Ok(YES)
}

/// A page of `/api/v1/tubes`.
#[derive(serde::Deserialize)]
struct Page {
    tubes: Vec<serde_json::Value>,
    next: Option<String>,
}

fn list(ask: &Ask) -> Result<u8, Failure> {
    if ask.output == Output::Table {
        println!("{:<32} {:>9} {:>9} {:>9} {:>9}", "TUBE", "READY", "RESERVED", "DELAYED", "BURIED");
    }
    let mut query = String::new();
    loop {
        let page: Page = on_any(ask, |address| admin::get(address, &format!("/api/v1/tubes{query}")))?;
        for tube in &page.tubes {
            let text = |key: &str| tube[key].as_str().unwrap_or("?").to_owned();
            let number = |key: &str| tube[key].as_u64().unwrap_or(0);
            let counts = ["ready", "reserved", "delayed", "buried"].map(number);
            match ask.output {
                Output::Json => println!("{tube}"),
                Output::Table => {
                    let [ready, reserved, delayed, buried] = counts;
                    let paused = if tube["paused"] == true { "  paused" } else { "" };
                    println!(
                        "{:<32} {ready:>9} {reserved:>9} {delayed:>9} {buried:>9}{paused}",
                        text("name")
                    );
                }
            }
        }
        match page.next {
            Some(last) => query = format!("?after={}", escaped(&last)),
            None => return Ok(YES),
        }
    }
}

fn verb(ask: &Ask, verb: &Verb) -> Result<u8, Failure> {
    match verb {
        Verb::Purge { name, state, older_than, dry_run } => {
            let path = selection("purge", name, *state, *older_than);
            if *dry_run { count(ask, &path) } else { work(ask, "purge", &path) }
        }
        Verb::Move { from, to, state, older_than } => {
            let path = selection("move", from, *state, *older_than);
            work(ask, "move", &format!("{path}&to={}", escaped(to)))
        }
        Verb::Kick { name, bound, .. } => {
            let limit = bound.map_or(String::new(), |bound| format!("&limit={bound}"));
            work(ask, "kick", &format!("/api/v1/tubes/kick?tube={}{limit}", escaped(name)))
        }
        Verb::List => list(ask),
        Verb::Pause { name, span, addr } => client::block_on(pause(addr, name, *span)),
        Verb::Show { name } => policy::show(ask, name),
        Verb::Policy(args) => policy::run(ask, args),
    }
}

fn selection(verb: &str, tube: &str, state: StateArg, older_than: Option<Span>) -> String {
    let older = older_than.map_or(0, |span| span.0);
    let tube = escaped(tube);
    format!("/api/v1/tubes/{verb}?tube={tube}&states={}&older_ms={older}", state.as_str())
}

/// A value in a query.
pub fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let one = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(one).collect()
}

fn count(ask: &Ask, path: &str) -> Result<u8, Failure> {
    let answer = on_any(ask, |address| admin::change("POST", address, &format!("{path}&dry_run=true")))?;
    let counted: Counted = read(&answer)?;
    match ask.output {
        Output::Json => println!("{answer}"),
        Output::Table => println!("{} jobs would be purged", counted.jobs),
    }
    Ok(YES)
}

/// Asks for an operation and stays until it is done. A node that goes away meanwhile does not matter: it is in the log.
fn work(ask: &Ask, what: &'static str, path: &str) -> Result<u8, Failure> {
    // Any number that was not used before; JSON readers keep 53 bits.
    let nonce = rand::random::<u64>() >> 11 | 1;
    let order = format!("{path}&nonce={nonce}");
    change(ask, "POST", &order)?;
    let mut progress = Progress::new(what);
    let (mut heard, mut asked) = (Instant::now(), Instant::now());
    loop {
        match on_any(ask, |address| admin::get::<Bulk>(address, &format!("/api/v1/bulk/{nonce}"))) {
            Ok(bulk) if !bulk.running => {
                progress.clear();
                report(ask, &bulk);
                return Ok(YES);
            }
            Ok(bulk) => {
                heard = Instant::now();
                progress.jobs(bulk.looked, Some(bulk.total.max(bulk.looked)), 0);
            }
            Err(failure) if heard.elapsed() > UNHEARD_MAX => {
                let message = format!("nothing is known of operation {nonce}: {}", failure.message);
                return Err(Failure::new(TIMED_OUT, message));
            }
            Err(_) if asked.elapsed() > AGAIN_AFTER => {
                asked = Instant::now();
                let _unheard = on_any(ask, |address| admin::change("POST", address, &order));
            }
            Err(_) => {}
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Asks any node for a change, and for a moment again while that is refused.
pub fn change(ask: &Ask, method: &str, path: &str) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        match on_any(ask, |address| admin::change(method, address, path)) {
            Ok(_) => return Ok(()),
            Err(failure) if failure.code != REFUSED || begun.elapsed() > REFUSED_MAX => return Err(failure),
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

fn report(ask: &Ask, bulk: &Bulk) {
    match ask.output {
        Output::Json => println!("{}", serde_json::to_value(bulk).unwrap_or_default()),
        Output::Table => {
            let done = match bulk.verb.as_str() {
                "purge" => "purged",
                "move" => "moved",
                _ => "kicked",
            };
            println!("{} jobs {done}", bulk.done);
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Failure> {
    let unclear = |error: serde_json::Error| Failure::new(UNREACHABLE, format!("{text:?}: {error}"));
    serde_json::from_str(text).map_err(unclear)
}

/// Asks one node after the other until one does not say that it cannot.
pub fn on_any<T>(ask: &Ask, request: impl Fn(&str) -> Result<T, Failure>) -> Result<T, Failure> {
    let mut last = Failure::new(UNREACHABLE, "no --admin address is given");
    for address in &ask.admin {
        match request(address) {
            Err(failure) if failure.code == UNREACHABLE => last = failure,
            other => return other,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn every_name_of_a_tube_fits_a_query() {
        assert_eq!(escaped("a-Z0+/;.$_()"), "a-Z0%2B%2F%3B.%24_%28%29");
    }
}
