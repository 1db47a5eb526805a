//! `beanpole work -- COMMAND`: a command for each job.
//!
//! ```text
//!   job ──► COMMAND: the body on standard input, BEANPOLE_JOB_ID, BEANPOLE_TUBE, BEANPOLE_ATTEMPT in its environment
//!   0 ──► deleted        65 ──► buried        anything else, or a signal ──► tried again later, buried after --attempts
//! ```
//!
//! A command that cannot be started says nothing about its job: the job is given back and never buried for that.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use beanpole_client::{
    Address, Backoff, Delivery, Ending, Hook, JobInfo, Retries, Verdict, Worker, WorkerCounts, WorkerEvent,
    WorkerSettings,
};
use clap::Args;
use nix::sys::signal::{Signal as NixSignal, killpg};
use nix::unistd::{AccessFlags, Pid};
use tokio::io::AsyncWriteExt;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::admin::{Failure, NO, USAGE, YES};
use super::client::{self, Addr};
use crate::units::Span;

/// `EX_DATAERR`: the job itself is bad and will never work.
const BURY_CODE: i32 = 65;

/// The flags of `beanpole work`.
#[derive(Args, Debug)]
pub struct WorkArgs {
    /// A tube to take jobs from; may be given more than once
    #[arg(short, long = "tube", value_name = "TUBE", default_value = "default")]
    tubes: Vec<String>,
    /// How many jobs are worked on at once
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = at_least_one::<usize>)]
    jobs: usize,
    /// At most N jobs of one tube at once; may be given more than once
    #[arg(long = "limit", value_name = "TUBE=N")]
    limits: Vec<Limit>,
    /// A job that was handed out so often and failed again is buried
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = at_least_one::<u64>)]
    attempts: u64,
    /// Time before a failed job is tried again: at first, and at most; it doubles with each attempt
    #[arg(long, value_name = "D,D", default_value = "1s,10m")]
    backoff: Waits,
    /// After SIGTERM or Ctrl-C: how long commands may take to end, before they are killed and their jobs given back
    #[arg(long, value_name = "D", default_value = "30s")]
    grace: Span,
    #[command(flatten)]
    addr: Addr,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// `TUBE=N`.
#[derive(Clone, Debug)]
struct Limit(String, usize);

impl FromStr for Limit {
    type Err = String;
    fn from_str(text: &str) -> Result<Limit, String> {
        let (tube, limit) = text.rsplit_once('=').ok_or("write TUBE=N")?;
        Ok(Limit(tube.to_owned(), at_least_one(limit)?))
    }
}

/// A number that is not 0.
fn at_least_one<T: FromStr + PartialOrd + From<u8>>(text: &str) -> Result<T, String> {
    let number: T = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if number < T::from(1) { Err("it must be at least 1".to_owned()) } else { Ok(number) }
}

/// `D,D`: the first wait and the longest one.
#[derive(Clone, Copy, Debug)]
struct Waits(Span, Span);

impl FromStr for Waits {
    type Err = String;
    fn from_str(text: &str) -> Result<Waits, String> {
        let (first, max) = text.split_once(',').ok_or("write two durations: 1s,10m")?;
        let span = |text: &str| text.parse().map_err(|error: crate::units::UnitError| error.to_string());
        let (first, max): (Span, Span) = (span(first)?, span(max)?);
        if first.0 > max.0 {
            return Err(format!("the first wait, {first}, is above the longest, {max}"));
        }
        Ok(Waits(first, max))
    }
}

/// Runs the verb.
pub fn run(args: &WorkArgs) -> ExitCode {
    client::run(work(args))
}

async fn work(args: &WorkArgs) -> Result<u8, Failure> {
    let path = std::env::var_os("PATH");
    check_command(&args.command[0], path.as_deref()).map_err(|why| {
        Failure::new(USAGE, format!("cannot run {:?}: {why}; no job was taken", args.command[0]))
    })?;
    let Waits(first, max) = args.backoff;
    let backoff = Backoff { first: Duration::from_millis(first.0), max: Duration::from_millis(max.0) };
    let settings = WorkerSettings {
        tubes: args.tubes.clone(),
        concurrency: args.jobs,
        limits: args.limits.iter().map(|Limit(tube, limit)| (tube.clone(), *limit)).collect(),
        // Attempts are counted in `verdict`: not each of them was one of the command.
        retries: Retries { backoff, attempts_max: u64::MAX },
        hook: Hook::new(teller()),
        ..WorkerSettings::new(args.addr.addr.clone())
    };
    let (command, attempts_max): (Arc<[String]>, u64) = (args.command.clone().into(), args.attempts);
    let no_signals = |error: std::io::Error| Failure::new(NO, format!("cannot listen for signals: {error}"));
    let mut ends = Ends::listen().map_err(no_signals)?;
    let worker = Worker::start(settings, move |job| one(command.clone(), attempts_max, job));
    let worker = worker.map_err(|error| Failure::new(USAGE, error.to_string()))?;
    ends.wait().await;
    let grace = Duration::from_millis(args.grace.0);
    eprintln!("beanpole: no more jobs; {} are under way and have {} to end", worker.busy(), args.grace);
    let counts = tokio::select! {
        counts = worker.stop(grace) => counts,
        // The second time: commands are killed at once, and their jobs go back as the connections end.
        () = ends.wait() => return Err(Failure::new(NO, "ended before the jobs were")),
    };
    let WorkerCounts { done, retried, buried, returned, .. } = counts;
    eprintln!(
        "beanpole: {done} jobs done, {retried} to be tried again, {buried} buried, {returned} given back"
    );
    Ok(YES)
}

/// The signals that ask for an end.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    fn listen() -> std::io::Result<Ends> {
        Ok(Ends { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Whether the system could run this: it would fail for each job, and spend all their attempts.
fn check_command(name: &str, path: Option<&OsStr>) -> Result<(), String> {
    if name.contains('/') {
        return check_program(Path::new(name));
    }
    if name.is_empty() {
        return Err("it has no name".to_owned());
    }
    // What the C library looks through when there is no PATH.
    let mut why = "it is in no directory of PATH".to_owned();
    for directory in std::env::split_paths(path.unwrap_or(OsStr::new("/bin:/usr/bin"))) {
        let program = directory.join(name);
        match check_program(&program) {
            Ok(()) => return Ok(()),
            Err(reason) if program.is_file() => why = format!("{}: {reason}", program.display()),
            Err(_) => {}
        }
    }
    Err(why)
}

fn check_program(path: &Path) -> Result<(), String> {
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is no file".to_owned());
    }
    nix::unistd::eaccess(path, AccessFlags::X_OK).map_err(|_| "it is not executable".to_owned())
}

/// One job.
async fn one(command: Arc<[String]>, attempts_max: u64, job: Delivery) -> Verdict {
    match execute(&command, &job).await {
        Ok(status) => verdict(&job.info, attempts_max, status),
        Err(error) => {
            eprintln!("beanpole: job {}: {}: {error}", job.info.id, command[0]);
            Verdict::Retry { after: None }
        }
    }
}

async fn execute(command: &[String], job: &Delivery) -> std::io::Result<ExitStatus> {
    let mut child = tokio::process::Command::new(&command[0])
        .args(&command[1..])
        .env("BEANPOLE_JOB_ID", job.info.id.to_string())
        .env("BEANPOLE_TUBE", &job.info.tube)
        .env("BEANPOLE_ATTEMPT", job.info.attempt.to_string())
        .env("BEANPOLE_PRI", job.info.pri.to_string())
        .stdin(Stdio::piped())
        // Ctrl-C is for this process, which lets its commands finish.
        .process_group(0)
        .spawn()?;
    let mut group = Group(child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw));
    let input = child.stdin.take();
    let body = job.body.clone();
    let write = async move {
        let Some(mut input) = input else { return };
        // A command need not read its job.
        let _unread = input.write_all(&body).await;
    };
    let wait = async {
        let status = child.wait().await;
        // From here on the number may be another's. What the command left running is its own affair.
        group.0 = None;
        status
    };
    let (status, ()) = tokio::join!(wait, write);
    status
}

/// A command and what it started, killed when its job is taken from it.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0.take() {
            // An error means that nothing of it is left.
            let _gone = killpg(leader, NixSignal::SIGKILL);
        }
    }
}

fn verdict(job: &JobInfo, attempts_max: u64, status: ExitStatus) -> Verdict {
    match status.code() {
        Some(0) => Verdict::Done,
        Some(BURY_CODE) => Verdict::Bury,
        Some(_) | None => {
            eprintln!("beanpole: job {} of {}, attempt {}: {status}", job.id, job.tube, job.attempt);
            if job.attempt >= attempts_max { Verdict::Bury } else { Verdict::Retry { after: None } }
        }
    }
}

/// Tells on standard error what somebody who looks on wants to know; of each server only changes.
fn teller() -> impl Fn(&WorkerEvent<'_>) + Send + Sync {
    let away: Mutex<HashSet<String>> = Mutex::default();
    let change = move |address: &Address, is_away: bool| {
        let mut away = away.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if is_away { away.insert(address.to_string()) } else { away.remove(&address.to_string()) }
    };
    move |event| match event {
        WorkerEvent::Connected { address } if change(address, false) => {
            eprintln!("beanpole: {address} is back")
        }
        WorkerEvent::Disconnected { address, why } if change(address, true) => {
            eprintln!("beanpole: {address}: {why}")
        }
        WorkerEvent::Lost { job, why } => eprintln!("beanpole: job {} may come again: {why}", job.id),
        WorkerEvent::Finished { job, ending: Ending::Bury, .. } => {
            eprintln!("beanpole: job {} of {} is buried after attempt {}", job.id, job.tube, job.attempt);
        }
        WorkerEvent::Connected { .. }
        | WorkerEvent::Disconnected { .. }
        | WorkerEvent::Started { .. }
        | WorkerEvent::Touched { .. }
        | WorkerEvent::Panicked { .. }
        | WorkerEvent::Finished { .. }
        | WorkerEvent::Returned { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_cannot_be_run_is_found_out_before_any_job() {
        let path = Some(OsStr::new("/nowhere:/usr/bin:/bin"));
        assert_eq!(check_command("sh", path), Ok(()));
        assert_eq!(check_command("sh", None), Ok(()));
        assert_eq!(check_command("/bin/sh", None), Ok(()));
        for (name, says) in [
            ("no-such-command", "in no directory of PATH"),
            ("", "no name"),
            ("./nope.sh", "No such file"),
            ("/tmp", "no file"),
            ("/etc/passwd", "not executable"),
        ] {
            assert!(check_command(name, path).is_err_and(|why| why.contains(says)), "{name}");
        }
    }

    #[test]
    fn waits_and_counts_that_make_no_sense_are_refused() {
        assert!("1s,1s".parse::<Waits>().is_ok());
        assert!("5s,1s".parse::<Waits>().is_err_and(|why| why.contains("above the longest")));
        assert_eq!(at_least_one::<u64>("1"), Ok(1));
        for bad in ["0", "-1", "x"] {
            assert!(at_least_one::<u64>(bad).is_err(), "{bad}");
        }
        assert!("mail=0".parse::<Limit>().is_err_and(|why| why.contains("at least 1")));
    }
}
