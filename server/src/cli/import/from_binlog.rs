//! `beanpole import binlog DIR`: puts the jobs of a beanstalkd that is stopped, by number, so that those of equal
//! priority keep their order.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use super::super::admin::{Failure, NO, REFUSED, USAGE, YES};
use super::super::progress::Progress;
use super::account::{Account, State};
use super::binlog::{self, Binlog, BinlogError, Job};
use super::target::{BATCH_BYTES, BATCH_JOBS, Broken, Copy, Placed, Target};
use super::{Common, Interrupt};

/// The flags of `beanpole import binlog`.
#[derive(Args, Debug)]
pub struct BinlogArgs {
    /// beanstalkd's -b
    dir: PathBuf,
    #[command(flatten)]
    common: Common,
    /// Go on after this job, as an interrupted run says
    #[arg(long, value_name = "ID", default_value_t = 0)]
    after: u64,
    /// Read although a beanstalkd uses the directory; what it writes meanwhile is not seen, and its jobs come twice
    #[arg(long)]
    even_if_running: bool,
}

/// Reads, puts, reports.
pub async fn run(args: &BinlogArgs, interrupt: &Interrupt) -> Result<u8, Failure> {
    refuse_running(args)?;
    let mut binlog = binlog::read(&args.dir).map_err(|error| {
        let code = match error {
            BinlogError::None(_) | BinlogError::Io { .. } => USAGE,
            BinlogError::Version { .. } => REFUSED,
        };
        Failure::new(code, error.to_string())
    })?;
    let mut account = Account::default();
    tell_unread(&binlog, &mut account);
    let jobs: Vec<Job> =
        binlog.jobs.range(args.after.saturating_add(1)..).map(|(_, job)| job.clone()).collect();
    binlog.jobs.clear();
    let result = if args.common.dry_run {
        dry_run(&mut binlog, &jobs, &mut account);
        Ok(())
    } else {
        put(args, &mut binlog, &jobs, &mut account, interrupt).await
    };
    if !args.common.dry_run && account.jobs() > 0 {
        account.note("job ids are new: a beanstalkd's cannot be kept");
    }
    account.print(args.common.output, args.common.dry_run);
    result?;
    let whole =
        account.is_complete() && binlog.missing.is_empty() && binlog.unread.iter().all(|part| part.torn);
    Ok(if whole { YES } else { NO })
}

fn refuse_running(args: &BinlogArgs) -> Result<(), Failure> {
    if args.even_if_running {
        return Ok(());
    }
    match binlog::is_locked(&args.dir) {
        Ok(false) => Ok(()),
        Ok(true) => Err(Failure::new(
            REFUSED,
            format!(
                "{}: a beanstalkd is running on this directory; stop it first, or use `beanpole import live HOST:PORT`, \
                 or read it all the same with --even-if-running",
                args.dir.display()
            ),
        )),
        Err(error) => Err(Failure::new(
            USAGE,
            format!("{}: {error}; give beanstalkd's -b directory", args.dir.display()),
        )),
    }
}

fn tell_unread(binlog: &Binlog, account: &mut Account) {
    for part in &binlog.unread {
        let what = if part.torn {
            "the write under way when beanstalkd ended; it was never complete"
        } else {
            "jobs in it are missing here, and jobs that it says were deleted may be back"
        };
        let (file, why) = (part.file.display(), &part.why);
        account.note(format!(
            "{file}: {} bytes from offset {} not read: {why}: {what}",
            part.bytes, part.offset
        ));
    }
    for number in &binlog.missing {
        account.note(format!("binlog.{number} is missing between others: its jobs are not here"));
    }
}

fn dry_run(binlog: &mut Binlog, jobs: &[Job], account: &mut Account) {
    for job in jobs {
        match binlog.body(job) {
            Ok(body) => account.add(&job.tube, job.state, body.len() as u64),
            Err(error) => account.skip(unreadable(job, &error), 1),
        }
    }
}

fn unreadable(job: &Job, error: &std::io::Error) -> String {
    format!("job {}: {error}", job.id)
}

async fn put(
    args: &BinlogArgs,
    binlog: &mut Binlog,
    jobs: &[Job],
    account: &mut Account,
    interrupt: &Interrupt,
) -> Result<(), Failure> {
    let mut target = Target::connect(&args.common.to).await?;
    let mut progress = Progress::new("import");
    let mut left = jobs;
    let mut after = args.after;
    while !left.is_empty() {
        if interrupt.wanted() {
            return Err(go_on(args, after, &Failure::new(NO, "interrupted")));
        }
        let (taken, batch) = next_batch(binlog, left, account);
        match target.put_all(&batch).await {
            Ok(placed) => {
                let placed: Vec<_> = placed.into_iter().map(Some).collect();
                count(&batch, &placed, target.max_job_size, account);
            }
            Err(Broken { failure, placed }) => {
                count(&batch, &placed, target.max_job_size, account);
                return Err(go_on(args, after, &failure));
            }
        }
        after = left[taken - 1].id;
        left = &left[taken..];
        progress.jobs((jobs.len() - left.len()) as u64, Some(jobs.len() as u64), account.bytes());
    }
    Ok(())
}

/// As many jobs as a batch takes, and how many were looked at for it.
fn next_batch(binlog: &mut Binlog, left: &[Job], account: &mut Account) -> (usize, Vec<Copy>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let now_ns = i64::try_from(now).unwrap_or(i64::MAX);
    let (mut batch, mut bytes, mut taken) = (Vec::new(), 0, 0);
    for job in left {
        if batch.len() == BATCH_JOBS || bytes >= BATCH_BYTES {
            break;
        }
        taken += 1;
        match binlog.body(job) {
            Ok(body) => {
                bytes += body.len();
                batch.push(copy(job, body, now_ns));
            }
            Err(error) => account.skip(unreadable(job, &error), 1),
        }
    }
    (taken, batch)
}

fn copy(job: &Job, body: bytes::Bytes, now_ns: i64) -> Copy {
    let delay_s = job.delay_s(now_ns);
    // Its time came while nobody served it.
    let state = if job.state == State::Delayed && delay_s == 0 { State::Ready } else { job.state };
    Copy { id: job.id, tube: job.tube.to_string(), state, pri: job.pri, delay_s, ttr_s: job.ttr_s, body }
}

fn count(batch: &[Copy], placed: &[Option<Placed>], max_job_size: u64, account: &mut Account) {
    for (copy, placed) in batch.iter().zip(placed) {
        match placed {
            Some(Placed::Done) => account.add(&copy.tube, copy.state, copy.body.len() as u64),
            Some(Placed::TooBig) => account.skip(
                format!(
                    "longer than the server's --max-job-size {max_job_size}; raise it and run this again"
                ),
                1,
            ),
            None => {}
        }
    }
}

fn go_on(args: &BinlogArgs, after: u64, failure: &Failure) -> Failure {
    let message = format!(
        "{}; go on with `beanpole import binlog {} --to {} --after {after}` (jobs of the batch that was under way \
         may come twice)",
        failure.message,
        args.dir.display(),
        args.common.to
    );
    Failure::new(failure.code, message)
}
