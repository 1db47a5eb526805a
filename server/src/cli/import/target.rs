//! Where jobs are put: one connection to a Beanpole, a batch at a time.
//!
//! A job that was buried is put with a long delay, reserved by its number and buried, so that no worker can take it in
//! between; if the import dies there, it becomes ready after that delay, and is not lost.

use std::time::{Duration, Instant};

use beanpole_client::{ClientReply, Command, Connection, Error, JobId, Priority, PutOptions, Tube};
use bytes::Bytes;

use super::super::admin::{Failure, NO, TIMED_OUT, UNREACHABLE};
use super::account::State;

/// Jobs of a batch.
pub const BATCH_JOBS: usize = 256;
/// Bytes of bodies after which a batch is full.
pub const BATCH_BYTES: usize = 4 << 20;
/// Delay of a job that is to be buried, until it is.
const UNTIL_BURIED_S: u32 = 3_600;
/// A server that takes no jobs is tried again for so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is tried.
const TRY_EVERY: Duration = Duration::from_millis(500);

/// A job as it is to be.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Its number in the place it comes from.
    pub id: u64,
    /// Where it belongs.
    pub tube: String,
    /// What it is to be after the put.
    pub state: State,
    /// Its priority.
    pub pri: u32,
    /// Seconds until it is ready; 0 unless it is delayed.
    pub delay_s: u32,
    /// Seconds a worker may hold it.
    pub ttr_s: u32,
    /// Its bytes.
    pub body: Bytes,
}

/// What came of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It is on disk, as it should be.
    Done,
    /// It is longer than the server takes.
    TooBig,
}

/// A failure, and which jobs of the batch are certainly in place.
#[derive(Debug)]
pub struct Broken {
    /// What happened.
    pub failure: Failure,
    /// For each job of the batch; none when it is not there, or nobody knows.
    pub placed: Vec<Option<Placed>>,
}

/// A connection to the server that the jobs go to.
pub struct Target {
    address: String,
    connection: Connection,
    /// The tube in use.
    tube: String,
    /// The largest body it takes.
    pub max_job_size: u64,
}

impl Target {
    /// Connects and asks what the server takes.
    pub async fn connect(address: &str) -> Result<Target, Failure> {
        let help = "is Beanpole running, and is --to its address?";
        let unreachable =
            |error: &dyn std::fmt::Display| Failure::new(UNREACHABLE, format!("{error}; {help}"));
        let mut connection = Connection::connect(address).await.map_err(|error| unreachable(&error))?;
        let stats = connection.stats().await.map_err(|error| unreachable(&format!("{address}: {error}")))?;
        let max_job_size = stats.number("max-job-size").unwrap_or(0);
        Ok(Target { address: address.to_owned(), connection, tube: "default".to_owned(), max_job_size })
    }

    /// Puts all of them and waits until every one is on disk. While the server takes no jobs it waits.
    pub async fn put_all(&mut self, batch: &[Copy]) -> Result<Vec<Placed>, Broken> {
        let mut placed = vec![None; batch.len()];
        let begun = Instant::now();
        while let Err(Refused(why)) = match self.round(batch, &mut placed).await {
            Ok(outcome) => outcome,
            Err(error) => return Err(Broken { failure: self.lost(&error), placed }),
        } {
            if begun.elapsed() > PATIENCE {
                let message = format!(
                    "{} takes no jobs: {why}, for {} s; see its log, make room, and run this again",
                    self.address,
                    PATIENCE.as_secs()
                );
                return Err(Broken { failure: Failure::new(TIMED_OUT, message), placed });
            }
            tokio::time::sleep(TRY_EVERY).await;
        }
        Ok(placed.into_iter().map(|placed| placed.expect("the round was complete")).collect())
    }

    /// Puts those that are not in place yet, all in one go.
    async fn round(
        &mut self,
        batch: &[Copy],
        placed: &mut [Option<Placed>],
    ) -> Result<Result<(), Refused>, Error> {
        let wanted: Vec<usize> = (0..batch.len()).filter(|at| placed[*at].is_none()).collect();
        let mut uses = Vec::with_capacity(wanted.len());
        for at in &wanted {
            uses.push(self.send_put(&batch[*at])?);
        }
        let mut refused = Ok(());
        let mut to_bury = Vec::new();
        for (at, with_use) in wanted.into_iter().zip(uses) {
            if with_use {
                expect_using(&self.connection.recv().await?)?;
            }
            let reply = self.connection.recv().await?;
            if let ClientReply::Inserted(id) = reply {
                if batch[at].state == State::Buried {
                    to_bury.push((at, id));
                } else {
                    placed[at] = Some(Placed::Done);
                }
            } else if reply == ClientReply::JobTooBig {
                placed[at] = Some(Placed::TooBig);
            } else if matches!(reply, ClientReply::OutOfMemory | ClientReply::Draining) {
                refused = Err(Refused(reply.word()));
            } else {
                return Err(Error::Unexpected { verb: "put", reply: reply.word() });
            }
        }
        self.bury(batch, placed, &to_bury).await?;
        Ok(refused)
    }

    /// Sends one put; whether a `use` went before it.
    fn send_put(&mut self, copy: &Copy) -> Result<bool, Error> {
        let with_use = self.tube != copy.tube;
        if with_use {
            let tube =
                Tube::new(copy.tube.as_bytes()).ok_or_else(|| Error::BadTubeName(copy.tube.clone()))?;
            self.connection.send(&Command::Use(tube));
            self.tube.clone_from(&copy.tube);
        }
        let delay_s = if copy.state == State::Buried { UNTIL_BURIED_S } else { copy.delay_s };
        let options = PutOptions { pri: copy.pri, delay_s, ttr_s: copy.ttr_s };
        self.connection.send_put(&copy.body, options)?;
        Ok(with_use)
    }

    async fn bury(
        &mut self,
        batch: &[Copy],
        placed: &mut [Option<Placed>],
        jobs: &[(usize, JobId)],
    ) -> Result<(), Error> {
        for (at, id) in jobs {
            self.connection.send(&Command::ReserveJob(*id));
            self.connection.send(&Command::Bury { id: *id, pri: Priority(batch[*at].pri) });
        }
        for (at, _) in jobs {
            let reserved = self.connection.recv().await?;
            let buried = self.connection.recv().await?;
            // Not found: somebody took it by its number and dealt with it. It is there, or done.
            if !matches!(reserved, ClientReply::Reserved { .. } | ClientReply::NotFound) {
                return Err(Error::Unexpected { verb: "reserve-job", reply: reserved.word() });
            }
            if !matches!(buried, ClientReply::Buried | ClientReply::NotFound) {
                return Err(Error::Unexpected { verb: "bury", reply: buried.word() });
            }
            placed[*at] = Some(Placed::Done);
        }
        Ok(())
    }

    fn lost(&self, error: &Error) -> Failure {
        let code = match error {
            Error::NotSent { .. } | Error::OutcomeUnknown { .. } | Error::NoReply { .. } => UNREACHABLE,
            Error::BadTubeName(_)
            | Error::BadPutKey(_)
            | Error::BodyTooLong(_)
            | Error::RepliesOutstanding(_)
            | Error::NothingAsked
            | Error::Refused { .. }
            | Error::NotFound { .. }
            | Error::Unexpected { .. }
            | Error::Malformed { .. } => NO,
        };
        Failure::new(code, format!("{}: {error}", self.address))
    }
}

/// The server takes no jobs now, in its own word.
struct Refused(&'static str);

fn expect_using(reply: &ClientReply) -> Result<(), Error> {
    if let ClientReply::Using(_) = reply {
        Ok(())
    } else {
        Err(Error::Unexpected { verb: "use", reply: reply.word() })
    }
}
