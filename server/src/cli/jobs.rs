//! `beanpole reserve|delete|kick|bury|peek|stats`: the protocol's words for people and scripts.

use std::io::Write;
use std::process::ExitCode;

use beanpole_client::{Connection, Error, Job, JobId, Reserve, Stats};
use clap::Args;

use super::admin::{Failure, NO, Output, TIMED_OUT, YES};
use super::client::{self, Addr, failure, of_job, or_missing, seconds};
use crate::units::Span;

/// The flags of `beanpole reserve`.
#[derive(Args, Debug)]
pub struct ReserveArgs {
    /// The tubes to take a job from
    #[arg(default_value = "default")]
    tubes: Vec<String>,
    /// How long to wait for a job; for ever if not given. 0s: only look
    #[arg(long, value_name = "D")]
    timeout: Option<Span>,
    /// Delete the job after it was printed; else it is given back when the command ends
    #[arg(long)]
    delete: bool,
    #[command(flatten)]
    addr: Addr,
    /// Form of the job; as JSON a body that is no UTF-8 is null, and its bytes are in body_hex
    #[arg(short, long, default_value = "table", value_name = "FORM")]
    output: Output,
}

/// The flags of `beanpole delete`.
#[derive(Args, Debug)]
pub struct DeleteArgs {
    /// The jobs; not those that a worker holds
    #[arg(required = true, value_name = "ID")]
    ids: Vec<u64>,
    #[command(flatten)]
    addr: Addr,
}

/// The flags of `beanpole kick`.
#[derive(Args, Debug)]
pub struct KickArgs {
    /// The tube whose jobs are made ready: buried ones if there are any, else delayed ones
    #[arg(required_unless_present = "job", conflicts_with = "job")]
    tube: Option<String>,
    /// So many at most
    #[arg(value_name = "N", default_value_t = 1)]
    bound: u32,
    /// One job by its number instead
    #[arg(long, value_name = "ID")]
    job: Option<u64>,
    #[command(flatten)]
    addr: Addr,
}

/// The flags of `beanpole bury`.
#[derive(Args, Debug)]
pub struct BuryArgs {
    /// The job; not one that a worker holds
    #[arg(value_name = "ID")]
    id: u64,
    #[command(flatten)]
    addr: Addr,
}

/// The flags of `beanpole peek`.
#[derive(Args, Debug)]
pub struct PeekArgs {
    /// The job
    #[arg(value_name = "ID", required_unless_present_any = ["ready", "delayed", "buried"])]
    id: Option<u64>,
    /// The next ready job of a tube
    #[arg(long, value_name = "TUBE", conflicts_with_all = ["id", "delayed", "buried"])]
    ready: Option<String>,
    /// The delayed job of a tube that becomes ready first
    #[arg(long, value_name = "TUBE", conflicts_with_all = ["id", "buried"])]
    delayed: Option<String>,
    /// The job of a tube that was buried first
    #[arg(long, value_name = "TUBE", conflicts_with = "id")]
    buried: Option<String>,
    #[command(flatten)]
    addr: Addr,
    /// Form of the job; as JSON a body that is no UTF-8 is null, and its bytes are in body_hex
    #[arg(short, long, default_value = "table", value_name = "FORM")]
    output: Output,
}

/// The flags of `beanpole stats`.
#[derive(Args, Debug)]
pub struct StatsArgs {
    /// Of a job
    #[arg(long, value_name = "ID", conflicts_with = "tube")]
    job: Option<u64>,
    /// Of a tube
    #[arg(long, value_name = "TUBE")]
    tube: Option<String>,
    #[command(flatten)]
    addr: Addr,
    /// Form of the answer
    #[arg(short, long, default_value = "table", value_name = "FORM")]
    output: Output,
}

/// The verbs of this file.
#[derive(Debug)]
pub enum Words<'a> {
    Reserve(&'a ReserveArgs),
    Delete(&'a DeleteArgs),
    Kick(&'a KickArgs),
    Bury(&'a BuryArgs),
    Peek(&'a PeekArgs),
    Stats(&'a StatsArgs),
}

/// Runs a verb.
pub fn run(words: &Words<'_>) -> ExitCode {
    client::run(async {
        match words {
            Words::Reserve(args) => reserve(args).await,
            Words::Delete(args) => delete(args).await,
            Words::Kick(args) => kick(args).await,
            Words::Bury(args) => bury(args).await,
            Words::Peek(args) => peek(args).await,
            Words::Stats(args) => stats(args).await,
        }
    })
}

async fn reserve(args: &ReserveArgs) -> Result<u8, Failure> {
    let mut connection = args.addr.connect().await?;
    for tube in &args.tubes {
        connection.watch(tube).await.map_err(|error| failure(&error))?;
    }
    if !args.tubes.iter().any(|tube| tube == "default") {
        connection.ignore("default").await.map_err(|error| failure(&error))?;
    }
    let reserved = match args.timeout {
        Some(timeout) => connection.reserve_with_timeout(seconds(timeout)).await,
        None => connection.reserve().await,
    };
    let Reserve::Job(job) = reserved.map_err(|error| failure(&error))? else {
        let waited = args.timeout.unwrap_or(Span(0));
        return Err(Failure::new(TIMED_OUT, format!("no job came within {waited}")));
    };
    let stats = connection.stats_job(job.id).await.map_err(|error| of_job(job.id, &error))?;
    print(&job, Some(&stats), args.output)?;
    if args.delete {
        connection.delete(job.id).await.map_err(|error| of_job(job.id, &error))?;
    }
    if args.output == Output::Table {
        let tube = stats.get("tube").unwrap_or("?");
        let end = if args.delete { "deleted" } else { "given back" };
        eprintln!("job {} of {tube}, {end}", job.id);
    }
    Ok(YES)
}

/// A body as it is and a line's end, or JSON that holds every byte of it.
fn print(job: &Job, stats: Option<&Stats>, output: Output) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = match output {
        Output::Table => out.write_all(&job.body).and_then(|()| out.write_all(b"\n")),
        Output::Json => {
            let mut json = stats.map_or_else(serde_json::Map::new, to_json);
            json.insert("id".into(), job.id.0.into());
            add_body(&mut json, &job.body);
            writeln!(out, "{}", serde_json::Value::Object(json))
        }
    };
    // A job that nobody has read must not be deleted.
    written.and_then(|()| out.flush()).map_err(|error| Failure::new(NO, format!("standard output: {error}")))
}

/// The job may be deleted next: bytes that are no text must not be lost.
fn add_body(json: &mut serde_json::Map<String, serde_json::Value>, body: &[u8]) {
    if let Ok(text) = std::str::from_utf8(body) {
        json.insert("body".into(), text.into());
    } else {
        json.insert("body".into(), serde_json::Value::Null);
        let hex: String = body.iter().map(|byte| format!("{byte:02x}")).collect();
        json.insert("body_hex".into(), hex.into());
    }
}

fn to_json(stats: &Stats) -> serde_json::Map<String, serde_json::Value> {
    let value = |text: &str| text.parse::<u64>().map_or_else(|_| text.into(), serde_json::Value::from);
    stats.iter().map(|(key, text)| (key.to_owned(), value(text))).collect()
}

async fn delete(args: &DeleteArgs) -> Result<u8, Failure> {
    let mut connection = args.addr.connect().await?;
    let mut missing = Vec::new();
    for id in args.ids.iter().map(|id| JobId(*id)) {
        match connection.delete(id).await {
            Ok(()) => println!("deleted {id}"),
            Err(Error::NotFound { .. }) => missing.push(id.to_string()),
            Err(error) => return Err(of_job(id, &error)),
        }
    }
    if missing.is_empty() {
        return Ok(YES);
    }
    Err(Failure::new(NO, format!("not there, or held by a worker: {}", missing.join(", "))))
}

async fn kick(args: &KickArgs) -> Result<u8, Failure> {
    let mut connection = args.addr.connect().await?;
    if let Some(id) = args.job.map(JobId) {
        let kicked = connection.kick_job(id).await;
        kicked.map_err(|error| or_missing(&error, format!("job {id} is neither buried nor delayed")))?;
        println!("1 jobs kicked");
        return Ok(YES);
    }
    connection.use_tube(args.tube.as_deref().unwrap_or("default")).await.map_err(|error| failure(&error))?;
    let kicked = connection.kick(args.bound).await.map_err(|error| failure(&error))?;
    println!("{kicked} jobs kicked");
    Ok(YES)
}

async fn bury(args: &BuryArgs) -> Result<u8, Failure> {
    let (mut connection, id) = (args.addr.connect().await?, JobId(args.id));
    let taken = connection.reserve_job(id).await;
    let missing = format!("job {id} is not there, or a worker holds it");
    let held = taken.map_err(|error| or_missing(&error, missing))?.id;
    let stats = connection.stats_job(held).await.map_err(|error| of_job(id, &error))?;
    let pri = stats.number("pri").and_then(|pri| u32::try_from(pri).ok()).unwrap_or(1024);
    connection.bury(held, pri).await.map_err(|error| of_job(id, &error))?;
    println!("buried {id}");
    Ok(YES)
}

async fn peek(args: &PeekArgs) -> Result<u8, Failure> {
    let mut connection = args.addr.connect().await?;
    let found = peeked(args, &mut connection).await;
    let job = found.map_err(|error| or_missing(&error, "there is no such job"))?;
    let stats = match args.output {
        // It may be gone by now; then there is only its body to show.
        Output::Json => connection.stats_job(job.id).await.ok(),
        Output::Table => None,
    };
    print(&job, stats.as_ref(), args.output)?;
    if args.output == Output::Table {
        eprintln!("job {}", job.id);
    }
    Ok(YES)
}

async fn peeked(args: &PeekArgs, connection: &mut Connection) -> Result<Job, Error> {
    if let Some(id) = args.id {
        return connection.peek(JobId(id)).await;
    }
    let tube = args.ready.as_ref().or(args.delayed.as_ref()).or(args.buried.as_ref());
    connection.use_tube(tube.map_or("default", String::as_str)).await?;
    if args.ready.is_some() {
        connection.peek_ready().await
    } else if args.delayed.is_some() {
        connection.peek_delayed().await
    } else {
        connection.peek_buried().await
    }
}

async fn stats(args: &StatsArgs) -> Result<u8, Failure> {
    let mut connection = args.addr.connect().await?;
    let stats = match (args.job, &args.tube) {
        (Some(id), _) => connection.stats_job(JobId(id)).await.map_err(|error| of_job(JobId(id), &error))?,
        (None, Some(tube)) => connection.stats_tube(tube).await.map_err(|error| failure(&error))?,
        (None, None) => connection.stats().await.map_err(|error| failure(&error))?,
    };
    match args.output {
        Output::Json => println!("{}", serde_json::Value::Object(to_json(&stats))),
        Output::Table => stats.iter().for_each(|(key, value)| println!("{key}: {value}")),
    }
    Ok(YES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_byte_of_a_body_is_lost_in_json() {
        let json = |body: &[u8]| {
            let mut json = serde_json::Map::new();
            add_body(&mut json, body);
            serde_json::Value::Object(json).to_string()
        };
        assert_eq!(json("ü".as_bytes()), r#"{"body":"ü"}"#);
        assert_eq!(json(b"\x00\xffa"), r#"{"body":null,"body_hex":"00ff61"}"#);
    }
}
