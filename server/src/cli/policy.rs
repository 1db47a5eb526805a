//! `beanpole tube policy` and `beanpole tube show`: limits and rules of tubes.

use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use super::admin::{self, Ask, Failure, NO, Output, TIMED_OUT, USAGE, YES};
use super::tube::{change, escaped, on_any};
use crate::admin::policy::{DerivedRow, PolicyRow, Shown};
use crate::units::{Size, Span};

/// How long a change may take to apply on the node that was asked.
const APPLIES_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The flags of `beanpole tube policy`.
#[derive(Args, Debug)]
pub struct PolicyArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Set limits and rules; what is not named stays as it is. `off` takes one away, as 0 does: it means no limit
    Set(Box<SetArgs>),
    /// Show the policy of a tube or pattern
    Get {
        /// A tube's name, or the beginning of names and `*`
        pattern: String,
    },
    /// Remove a policy
    Rm {
        /// A tube's name, or the beginning of names and `*`
        pattern: String,
    },
    /// List all policies
    Ls,
}

#[derive(Args, Debug)]
struct SetArgs {
    /// A tube's name, or the beginning of names and `*`; the exact name counts before the longest beginning
    pattern: String,
    /// A job that comes back after so many deliveries goes to the dead tube, or is buried
    #[arg(long, value_name = "N|off")]
    max_deliveries: Option<OrOff<u32>>,
    /// Where jobs go that were delivered too often, or are too old
    #[arg(long, value_name = "TUBE|off")]
    dead_tube: Option<String>,
    /// A job that comes back waits for MIN, twice as long after each further delivery, at most MAX; 10 % jitter unless given
    #[arg(long, value_name = "MIN,MAX[,JITTER%]|off")]
    retry_backoff: Option<OrOff<Backoff>>,
    /// So many jobs are reserved at once, in the whole cluster
    #[arg(long, value_name = "N|off")]
    max_reserved: Option<OrOff<u64>>,
    /// Jobs in the tube; a put beyond it gets OUT_OF_MEMORY
    #[arg(long, value_name = "N|off")]
    max_jobs: Option<OrOff<u64>>,
    /// Bytes of the bodies in the tube
    #[arg(long, value_name = "SIZE|off")]
    max_bytes: Option<OrOff<Size>>,
    /// Puts a second
    #[arg(long, value_name = "N|off")]
    max_put_rate: Option<OrOff<u32>>,
    /// Older jobs go to the dead tube, or are dropped: 90s, 15m, 24h, 7d
    #[arg(long, value_name = "D|off")]
    max_age: Option<OrOff<Span>>,
    /// A job that is ready for longer raises the alarm ready-age: 90s, 15m, 24h, 7d
    #[arg(long, value_name = "D|off")]
    alarm_ready_age: Option<OrOff<Span>>,
    /// A put on a connection that holds a job is one hop more than that job; beyond so many it gets OUT_OF_MEMORY
    #[arg(long, value_name = "N|off")]
    max_hops: Option<OrOff<u8>>,
    /// Refuse puts
    #[arg(long, value_name = "on|off", action = clap::ArgAction::Set, value_parser = on_off)]
    pause_input: Option<bool>,
    /// Hand out nothing
    #[arg(long, value_name = "on|off", action = clap::ArgAction::Set, value_parser = on_off)]
    pause_output: Option<bool>,
}

/// A value, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OrOff<T>(Option<T>);

impl<T: FromStr<Err: std::fmt::Display>> FromStr for OrOff<T> {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(OrOff(None)),
            _ => text.parse().map(|value| OrOff(Some(value))).map_err(|error: T::Err| error.to_string()),
        }
    }
}

/// How long a job that comes back waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Backoff {
    min_ms: u64,
    max_ms: u64,
    jitter: u8,
}

impl FromStr for Backoff {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let mut span = || {
            let part = parts.next().ok_or("it is MIN,MAX or MIN,MAX,JITTER%")?;
            part.parse::<Span>().map_err(|error| error.to_string())
        };
        let (Span(min_ms), Span(max_ms)) = (span()?, span()?);
        let jitter = parts.next().map_or(Ok(10), |part| part.trim_end_matches('%').parse::<u8>());
        let jitter = jitter.ok().filter(|jitter| *jitter <= 100).ok_or("the jitter is 0% to 100%")?;
        match parts.next() {
            None if min_ms <= max_ms && min_ms > 0 => Ok(Backoff { min_ms, max_ms, jitter }),
            None => Err("MIN must be above 0 and not above MAX".to_owned()),
            Some(_) => Err("it is MIN,MAX or MIN,MAX,JITTER%".to_owned()),
        }
    }
}

fn on_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("it is on or off".to_owned()),
    }
}

/// Runs the verb.
pub fn run(ask: &Ask, args: &PolicyArgs) -> Result<u8, Failure> {
    match &args.verb {
        Verb::Set(args) => set(ask, args),
        Verb::Get { pattern } => {
            print(ask, &[find(ask, pattern)?.ok_or_else(|| unknown(pattern))?]);
            Ok(YES)
        }
        Verb::Rm { pattern } => {
            find(ask, pattern)?.ok_or_else(|| unknown(pattern))?;
            let path = format!("/api/v1/policies?pattern={}", escaped(pattern));
            change(ask, "DELETE", &path)?;
            wait(ask, pattern, None)
        }
        Verb::Ls => {
            print(ask, &list(ask)?);
            Ok(YES)
        }
    }
}

fn unknown(pattern: &str) -> Failure {
    Failure::new(NO, format!("there is no policy for {pattern}"))
}

fn list(ask: &Ask) -> Result<Vec<PolicyRow>, Failure> {
    on_any(ask, |address| admin::get(address, "/api/v1/policies"))
}

fn find(ask: &Ask, pattern: &str) -> Result<Option<PolicyRow>, Failure> {
    Ok(list(ask)?.into_iter().find(|row| row.pattern == pattern))
}

fn set(ask: &Ask, args: &SetArgs) -> Result<u8, Failure> {
    let before = find(ask, &args.pattern)?;
    let empty = PolicyRow { pattern: args.pattern.clone(), ..PolicyRow::default() };
    let row = args.applied_to(before.clone().unwrap_or_else(|| empty.clone()));
    if row == empty {
        return match before {
            None => Err(Failure::new(
                USAGE,
                "name at least one limit or rule; 0 and off mean no limit, see --help",
            )),
            Some(_) => {
                let message = "nothing would be left of it: use `beanpole tube policy rm`";
                Err(Failure::new(USAGE, message))
            }
        };
    }
    if let Some(why) = row.own_dead_tube() {
        return Err(Failure::new(USAGE, why));
    }
    let path = format!("/api/v1/policies?{}", query(&row));
    change(ask, "PUT", &path)?;
    wait(ask, &args.pattern, Some(&row))
}

impl SetArgs {
    /// The policy with what this sets.
    fn applied_to(&self, mut row: PolicyRow) -> PolicyRow {
        fn put<T: Copy, V>(to: &mut V, value: Option<OrOff<T>>, off: V, of: impl FnOnce(T) -> V) {
            if let Some(OrOff(value)) = value {
                *to = value.map_or(off, of);
            }
        }
        put(&mut row.max_deliveries, self.max_deliveries, 0, |n| n);
        put(&mut row.max_reserved, self.max_reserved, 0, |n| n);
        put(&mut row.max_jobs, self.max_jobs, 0, |n| n);
        put(&mut row.max_bytes, self.max_bytes, 0, |size| size.0);
        put(&mut row.max_put_rate, self.max_put_rate, 0, |n| n);
        put(&mut row.max_age_ms, self.max_age, 0, |span| span.0);
        put(&mut row.alarm_ready_age_ms, self.alarm_ready_age, 0, |span| span.0);
        put(&mut row.max_hops, self.max_hops, 0, |n| n);
        if let Some(OrOff(backoff)) = self.retry_backoff {
            let Backoff { min_ms, max_ms, jitter } = backoff.unwrap_or_default();
            (row.backoff_min_ms, row.backoff_max_ms, row.backoff_jitter) = (min_ms, max_ms, jitter);
        }
        if let Some(dead) = &self.dead_tube {
            row.dead_tube = if dead == "off" { String::new() } else { dead.clone() };
        }
        row.pause_input = self.pause_input.unwrap_or(row.pause_input);
        row.pause_output = self.pause_output.unwrap_or(row.pause_output);
        row
    }
}

/// All that a policy sets, as a query.
fn query(row: &PolicyRow) -> String {
    let json = serde_json::to_value(row).unwrap_or_default();
    let fields = json.as_object().into_iter().flatten();
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    fields.map(|(name, value)| format!("{name}={}", escaped(&text(value)))).collect::<Vec<_>>().join("&")
}

/// Until the node that was asked follows it.
fn wait(ask: &Ask, pattern: &str, row: Option<&PolicyRow>) -> Result<u8, Failure> {
    let begun = Instant::now();
    while find(ask, pattern)?.as_ref() != row {
        if begun.elapsed() > APPLIES_WITHIN {
            return Err(Failure::new(TIMED_OUT, "it was asked for and is not in force yet: look again"));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    if let Some(row) = row {
        print(ask, std::slice::from_ref(row));
    }
    Ok(YES)
}

fn print(ask: &Ask, rows: &[PolicyRow]) {
    if ask.output == Output::Json {
        println!("{:#}", serde_json::to_value(rows).unwrap_or_default());
        return;
    }
    for row in rows {
        println!("{}: {}", row.pattern, words(row));
    }
}

/// What is set, in the words of the flags.
fn words(row: &PolicyRow) -> String {
    let mut words = Vec::new();
    let mut say = |name: &str, value: String| words.push(format!("{name} {value}"));
    let numbers = [
        ("max-deliveries", u64::from(row.max_deliveries)),
        ("max-reserved", row.max_reserved),
        ("max-jobs", row.max_jobs),
        ("max-put-rate", u64::from(row.max_put_rate)),
        ("max-hops", u64::from(row.max_hops)),
    ];
    for (name, value) in numbers.into_iter().filter(|(_, value)| *value > 0) {
        say(name, value.to_string());
    }
    if row.max_bytes > 0 {
        say("max-bytes", Size(row.max_bytes).to_string());
    }
    for (name, ms) in [("max-age", row.max_age_ms), ("alarm-ready-age", row.alarm_ready_age_ms)] {
        if ms > 0 {
            say(name, Span(ms).to_string());
        }
    }
    if row.backoff_min_ms > 0 {
        let (min, max) = (Span(row.backoff_min_ms), Span(row.backoff_max_ms));
        say("retry-backoff", format!("{min},{max},{}%", row.backoff_jitter));
    }
    if !row.dead_tube.is_empty() {
        say("dead-tube", row.dead_tube.clone());
    }
    for (name, on) in [("pause-input", row.pause_input), ("pause-output", row.pause_output)] {
        if on {
            say(name, "on".to_owned());
        }
    }
    words.join(", ")
}

/// `beanpole tube show NAME`.
pub fn show(ask: &Ask, name: &str) -> Result<u8, Failure> {
    let path = format!("/api/v1/tubes/show?tube={}", escaped(name));
    let shown: Shown = on_any(ask, |address| admin::get(address, &path))?;
    if ask.output == Output::Json {
        println!("{:#}", serde_json::to_value(&shown).unwrap_or_default());
        return Ok(YES);
    }
    let Shown { ready, reserved, delayed, buried, bytes, .. } = shown;
    println!("{name}: {ready} ready, {reserved} reserved, {delayed} delayed, {buried} buried; {bytes} bytes");
    if let Some(policy) = &shown.policy {
        println!("policy: {}", words(policy));
    }
    println!("{} puts refused, {} jobs dead, {} expired", shown.refused, shown.dead, shown.expired);
    for DerivedRow { from, rate, hops, suspect, .. } in &shown.derived {
        let doubt = if *suspect { "; a loop is suspected" } else { "" };
        println!("put by workers that hold jobs of {from}: {rate} a second, {hops} hops deep{doubt}");
    }
    Ok(YES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backoff_is_two_or_three_words() {
        let read = |text: &str| text.parse::<OrOff<Backoff>>();
        let backoff = |min_ms, max_ms, jitter| Ok(OrOff(Some(Backoff { min_ms, max_ms, jitter })));
        assert_eq!(read("1s,1m"), backoff(1000, 60_000, 10));
        assert_eq!(read("500ms,5s,0%"), backoff(500, 5000, 0));
        assert_eq!(read("off"), Ok(OrOff(None)));
        for bad in ["1s", "5s,1s", "1s,2s,300%", "1s,2s,3%,4", "0s,1s", "x,y"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_query_says_everything() {
        let row = PolicyRow { pattern: "a/*".into(), max_jobs: 5, pause_input: true, ..PolicyRow::default() };
        let query = query(&row);
        for part in ["pattern=a%2F%2A", "max_jobs=5", "pause_input=true", "dead_tube=&", "max_age_ms=0"] {
            assert!(query.contains(part), "{part} in {query}");
        }
        assert_eq!(words(&row), "max-jobs 5, pause-input on");
    }
}
