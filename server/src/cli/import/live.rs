//! `beanpole import live HOST:PORT`: drains a running beanstalkd.
//!
//! The order of each batch is the promise: reserved there, put here and acknowledged from disk, then deleted there. Whatever
//! ends the run in between, each job is in at least one of the two places. A job whose copy was acknowledged and whose delete
//! was not comes twice. What was reserved becomes ready there when the connection ends, also if it was delayed or buried
//! before; a run that fails in an orderly way buries and delays it again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use clap::Args;

use super::super::admin::{Failure, NO, REFUSED, UNREACHABLE, USAGE, YES};
use super::super::client::address;
use super::super::progress::Progress;
use super::account::{Account, State};
use super::source::{Gone, Source};
use super::target::{Broken, Copy, Placed, Target};
use super::{Common, Interrupt};

/// The order in which the jobs of a tube are taken.
const STATES: [State; 3] = [State::Ready, State::Delayed, State::Buried];

/// The flags of `beanpole import live`.
#[derive(Args, Debug)]
pub struct LiveArgs {
    /// The beanstalkd to drain
    #[arg(value_name = "HOST:PORT", value_parser = address)]
    from: String,
    #[command(flatten)]
    common: Common,
}

/// Drains, reports.
pub async fn run(args: &LiveArgs, interrupt: &Interrupt) -> Result<u8, Failure> {
    if !args.common.dry_run {
        check_apart(&args.from, &args.common.to)?;
    }
    let mut source = Source::connect(&args.from).await?;
    let mut account = Account::default();
    if args.common.dry_run {
        dry_run(&mut source, &mut account).await.map_err(|error| lost(args, &error))?;
        account.print(args.common.output, true);
        return Ok(YES);
    }
    let target = Target::connect(&args.common.to).await?;
    check_sizes(&source, &target)?;
    let mut drain = Drain { args, source, target, account, progress: Progress::new("import"), interrupt };
    let mut result = drain.all().await;
    if result.is_ok() {
        result = drain.tell_rest().await.map_err(|error| lost(args, &error));
    }
    drain.progress.clear();
    if drain.account.jobs() > 0 {
        drain.account.note("job ids are new: a beanstalkd's cannot be kept");
    }
    drain.account.print(args.common.output, false);
    result?;
    Ok(if drain.account.is_complete() { YES } else { NO })
}

async fn dry_run(source: &mut Source, account: &mut Account) -> Result<(), beanpole_client::Error> {
    for tube in source.tubes().await? {
        let Some(counts) = source.counts(&tube).await? else { continue };
        account.add_many(&tube, State::Ready, counts.ready, 0);
        account.add_many(&tube, State::Delayed, counts.delayed, 0);
        account.add_many(&tube, State::Buried, counts.buried, 0);
        account.skip("reserved by workers there; they go on with them, or give them back", counts.reserved);
        note_pause(account, &tube, counts.paused_s);
    }
    account.note("a running server tells how many jobs it has, not how many bytes");
    Ok(())
}

fn note_pause(account: &mut Account, tube: &str, paused_s: u64) {
    if paused_s > 0 {
        account.note(format!("tube {tube} is paused there for {paused_s} s more, and not here"));
    }
}

/// A job that does not fit would be found when others are gone already.
fn check_sizes(source: &Source, target: &Target) -> Result<(), Failure> {
    if source.max_job_size <= target.max_job_size {
        return Ok(());
    }
    let message = format!(
        "jobs there may have {} bytes, and --to takes only {}: start it with --max-job-size {}",
        source.max_job_size, target.max_job_size, source.max_job_size
    );
    Err(Failure::new(REFUSED, message))
}

/// A server that is drained into itself is never empty.
fn check_apart(from: &str, to: &str) -> Result<(), Failure> {
    let (source, target) = (places(from), places(to));
    if !source.iter().any(|place| target.contains(place)) {
        return Ok(());
    }
    let message = format!("{from} and --to {to} are the same server: --to must be another one");
    Err(Failure::new(USAGE, message))
}

/// Where a server may be.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// None if the address cannot be resolved: then the connect says why.
fn places(address: &str) -> Vec<Place> {
    if let Some(path) = address.strip_prefix("unix:") {
        return vec![Place::Unix(std::fs::canonicalize(path).unwrap_or_else(|_| path.into()))];
    }
    let resolved = address.to_socket_addrs().map(Iterator::collect::<Vec<_>>).unwrap_or_default();
    resolved.into_iter().map(|place| Place::Tcp(reached(place))).collect()
}

/// The system takes a connect to the address of all for one to this machine.
fn reached(mut place: SocketAddr) -> SocketAddr {
    let here: IpAddr = match place.ip().to_canonical() {
        IpAddr::V4(ip) => if ip.is_unspecified() { Ipv4Addr::LOCALHOST } else { ip }.into(),
        IpAddr::V6(ip) => if ip.is_unspecified() { Ipv6Addr::LOCALHOST } else { ip }.into(),
    };
    place.set_ip(here);
    place
}

fn lost(args: &LiveArgs, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(UNREACHABLE, format!("{}: {error}; run the same command again to go on", args.from))
}

struct Drain<'a> {
    args: &'a LiveArgs,
    source: Source,
    target: Target,
    account: Account,
    progress: Progress,
    interrupt: &'a Interrupt,
}

impl Drain<'_> {
    /// Goes over all tubes until a round finds nothing: producers may still be at work.
    async fn all(&mut self) -> Result<(), Failure> {
        loop {
            let before = self.account.jobs();
            for tube in self.source.tubes().await.map_err(|error| lost(self.args, &error))? {
                for state in STATES {
                    self.some(&tube, state).await?;
                }
            }
            if self.account.jobs() == before {
                return Ok(());
            }
        }
    }

    async fn some(&mut self, tube: &str, state: State) -> Result<(), Failure> {
        loop {
            if self.interrupt.wanted() {
                return Err(Failure::new(NO, "interrupted; run the same command again to go on"));
            }
            let taken = self.source.take(tube, state).await.map_err(|error| lost(self.args, &error))?;
            if taken.is_empty() {
                return Ok(());
            }
            self.move_over(&taken).await?;
            self.progress.jobs(self.account.jobs(), None, self.account.bytes());
        }
    }

    /// Puts a batch and deletes it there, or gives back what is not certainly here.
    async fn move_over(&mut self, taken: &[Copy]) -> Result<(), Failure> {
        let (placed, failure) = match self.target.put_all(taken).await {
            Ok(placed) => (placed.into_iter().map(Some).collect(), None),
            Err(Broken { failure, placed }) => (placed, Some(failure)),
        };
        let of = |wanted: fn(&Option<Placed>) -> bool| -> Vec<&Copy> {
            taken.iter().zip(&placed).filter(|(_, placed)| wanted(placed)).map(|(copy, _)| copy).collect()
        };
        let here = of(|placed| *placed == Some(Placed::Done));
        let not_here = of(|placed| *placed != Some(Placed::Done));
        let gone = self.source.delete(&here).await.map_err(|error| lost(self.args, &error))?;
        for (copy, gone) in here.into_iter().zip(gone) {
            self.account.add(&copy.tube, copy.state, copy.body.len() as u64);
            if gone == Gone::Elsewhere {
                self.account.note(format!(
                    "job {} of tube {} was taken by a worker there while it was copied: it is done twice",
                    copy.id, copy.tube
                ));
            }
        }
        self.source.give_back(&not_here).await.map_err(|error| lost(self.args, &error))?;
        match failure {
            Some(failure) => Err(Failure::new(failure.code, self.go_on(&failure.message))),
            None if not_here.is_empty() => Ok(()),
            None => Err(Failure::new(
                REFUSED,
                self.go_on("a job is longer than --to takes; raise its --max-job-size"),
            )),
        }
    }

    fn go_on(&self, why: &str) -> String {
        format!(
            "{why}; what was not certainly put is back at {}: run the same command again to go on",
            self.args.from
        )
    }

    /// What is still there when nothing more can be taken.
    async fn tell_rest(&mut self) -> Result<(), beanpole_client::Error> {
        for tube in self.source.tubes().await? {
            let Some(counts) = self.source.counts(&tube).await? else { continue };
            let why = "reserved by workers there; when they are done with them, run the same command again";
            self.account.skip(why, counts.reserved);
            note_pause(&mut self.account, &tube, counts.paused_s);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_under_its_other_names() {
        for (from, to) in [
            ("127.0.0.1:7", "127.0.0.1:7"),
            ("localhost:7", "127.0.0.1:7"),
            ("0.0.0.0:7", "127.0.0.1:7"),
            ("[::ffff:127.0.0.1]:7", "127.0.0.1:7"),
            ("unix:/tmp/../tmp/", "unix:/tmp"),
        ] {
            assert!(check_apart(from, to).is_err_and(|failure| failure.code == USAGE), "{from} {to}");
        }
        assert!(check_apart("127.0.0.1:7", "127.0.0.1:8").is_ok());
        assert!(check_apart("127.0.0.1:7", "127.0.0.2:7").is_ok());
        assert!(check_apart("127.0.0.1:7", "unix:/tmp").is_ok());
    }
}
