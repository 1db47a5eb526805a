//! `beanpole put`: a job for each line of standard input, or one from a file.

use std::collections::VecDeque;
use std::io::{BufRead, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use beanpole_client::{Keys, Outcome, Producer, ProducerSettings, PutOptions, Rejection, SpoolSettings};
use clap::Args;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::admin::{Failure, NO, REFUSED, TIMED_OUT, USAGE, YES};
use super::client::{self, Addr, seconds};
use crate::units::Span;

/// Jobs that are under way at a time, and read ahead.
const UNDER_WAY_MAX: usize = 256;

/// The flags of `beanpole put`.
#[derive(Args, Debug)]
pub struct PutArgs {
    /// The tube
    #[arg(default_value = "default")]
    tube: String,
    /// One job, whose body is this file as it is; `-` is standard input
    #[arg(long, value_name = "F")]
    file: Option<PathBuf>,
    /// Smaller numbers are handed out first
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pri: u32,
    /// Time before a job becomes ready: 90s, 15m, 24h
    #[arg(long, value_name = "D", default_value = "0s")]
    delay: Span,
    /// Time that a worker may hold a job without touching it
    #[arg(long, value_name = "D", default_value = "60s")]
    ttr: Span,
    /// Put once for this key, however often the command is run; line N of standard input has the key KEY-N
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// How long to try, over all addresses, before a job counts as not put
    #[arg(long, value_name = "D", default_value = "30s")]
    deadline: Span,
    /// A directory that keeps what no server takes; the next `put` with it puts that first
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    #[command(flatten)]
    addr: Addr,
}

/// Runs the verb.
pub fn run(args: &PutArgs) -> ExitCode {
    client::run(put(args))
}

async fn put(args: &PutArgs) -> Result<u8, Failure> {
    let settings = ProducerSettings {
        tube: args.tube.clone(),
        deadline: std::time::Duration::from_millis(args.deadline.0),
        keys: Keys::Random,
        spool: args.spool.clone().map(SpoolSettings::new),
        ..ProducerSettings::new(args.addr.addr.clone())
    };
    let producer = Producer::start(settings).map_err(|error| Failure::new(USAGE, error.to_string()))?;
    let mut account = Account::default();
    if let Some(path) = &args.file {
        let body =
            read_file(path).map_err(|error| Failure::new(USAGE, format!("{}: {error}", path.display())))?;
        account.note(one(producer.clone(), body, args.key.clone(), options(args)).await);
    } else {
        lines(&producer, args, &mut account).await?;
    }
    producer.close().await;
    account.finish()
}

fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    if path == Path::new("-") {
        let mut body = Vec::new();
        std::io::stdin().lock().read_to_end(&mut body)?;
        return Ok(body);
    }
    std::fs::read(path)
}

fn options(args: &PutArgs) -> PutOptions {
    PutOptions { pri: args.pri, delay_s: seconds(args.delay), ttr_s: seconds(args.ttr) }
}

async fn one(producer: Producer, body: Vec<u8>, key: Option<String>, options: PutOptions) -> Outcome {
    match key {
        Some(key) => producer.put_once(&key, body, options).await,
        None => producer.put(body, options).await,
    }
}

/// Many are under way at once; outcomes are told in the order of the lines.
async fn lines(producer: &Producer, args: &PutArgs, account: &mut Account) -> Result<(), Failure> {
    let mut input = read_lines();
    let mut under_way: VecDeque<JoinHandle<Outcome>> = VecDeque::new();
    let mut number = 0_u64;
    while let Some(line) = input.recv().await {
        let body = line.map_err(|error| Failure::new(NO, format!("standard input: {error}")))?;
        number += 1;
        let key = args.key.as_ref().map(|key| format!("{key}-{number}"));
        under_way.push_back(tokio::spawn(one(producer.clone(), body, key, options(args))));
        while under_way.len() >= UNDER_WAY_MAX || under_way.front().is_some_and(JoinHandle::is_finished) {
            let Some(first) = under_way.pop_front() else { break };
            account.note(first.await.unwrap_or(Outcome::Unknown));
        }
    }
    for put in under_way {
        account.note(put.await.unwrap_or(Outcome::Unknown));
    }
    Ok(())
}

/// Standard input is read by a thread of its own: reading it waits.
fn read_lines() -> mpsc::Receiver<std::io::Result<Vec<u8>>> {
    let (sender, lines) = mpsc::channel(UNDER_WAY_MAX);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().split(b'\n') {
            // The verb has ended.
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// What came of the jobs.
#[derive(Default)]
struct Account {
    put: u64,
    spooled: u64,
    unknown: u64,
    rejected: u64,
    /// The first reason, and its exit code.
    why: Option<(u8, String)>,
}

impl Account {
    /// One line for each job: its number, or a word.
    fn note(&mut self, outcome: Outcome) {
        let line = match outcome {
            Outcome::Inserted(id) => {
                self.put += 1;
                id.to_string()
            }
            Outcome::Spooled => {
                self.spooled += 1;
                "spooled".to_owned()
            }
            Outcome::Unknown => {
                self.unknown += 1;
                self.why
                    .get_or_insert_with(|| (NO, "no answer came; the job may be there or not".to_owned()));
                "unknown".to_owned()
            }
            Outcome::Rejected(why) => {
                self.rejected += 1;
                self.why.get_or_insert_with(|| (code(&why), why.to_string()));
                "rejected".to_owned()
            }
        };
        let mut out = std::io::stdout().lock();
        // Nobody reads on: the jobs are put all the same.
        let _unread = writeln!(out, "{line}");
    }

    fn finish(self) -> Result<u8, Failure> {
        let Account { put, spooled, unknown, rejected, why } = self;
        match why {
            None => Ok(YES),
            Some((code, why)) => {
                let message = format!(
                    "{put} jobs put, {spooled} spooled, {rejected} rejected, {unknown} unknown; the first: {why}"
                );
                Err(Failure::new(code, message))
            }
        }
    }
}

fn code(why: &Rejection) -> u8 {
    match why {
        Rejection::Refused(_) | Rejection::SpoolFull => REFUSED,
        Rejection::NotTaken(_) => TIMED_OUT,
        Rejection::BadKey(_) | Rejection::BodyTooLong(_) => USAGE,
        Rejection::NotSpooled(_) | Rejection::Closed => NO,
    }
}
