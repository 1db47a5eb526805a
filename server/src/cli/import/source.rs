//! A running beanstalkd that jobs are taken from.
//!
//! Ready jobs are reserved, a batch at a time, from one tube. Delayed and buried ones, and ready ones of a paused tube, are
//! looked up with `peek-*` and reserved by number. A server that knows no `reserve-job` (before 1.12) gives those one by
//! one, not reserved: a worker may take such a job while it is copied.

use beanpole_client::{ClientReply, Command, Connection, Error, JobId, Priority, Stats};
use bytes::Bytes;

use super::super::admin::{Failure, UNREACHABLE};
use super::account::State;
use super::target::{BATCH_BYTES, Copy};

/// The most jobs that are held at once. Few, because a job of TTR 1 must be through before it expires.
const HELD_MAX: u64 = 64;

/// A connection to the server that the jobs come from.
pub struct Source {
    connection: Connection,
    /// The one tube that is watched.
    watched: String,
    used: String,
    /// The largest body it may have.
    pub max_job_size: u64,
    held_max: usize,
    knows_reserve_job: bool,
}

/// What came of deleting a job there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It will not be handed out there again.
    Deleted,
    /// Somebody else holds it, or has deleted it: its TTR had passed.
    Elsewhere,
}

/// Jobs of a tube by state.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub ready: u64,
    pub delayed: u64,
    pub buried: u64,
    pub reserved: u64,
    /// Seconds for which the tube is still paused.
    pub paused_s: u64,
}

impl Source {
    /// Connects, and asks how large jobs may be.
    pub async fn connect(address: &str) -> Result<Source, Failure> {
        let unreachable = |error: &dyn std::fmt::Display| {
            Failure::new(UNREACHABLE, format!("{error}; is beanstalkd running there?"))
        };
        let mut connection = Connection::connect(address).await.map_err(|error| unreachable(&error))?;
        let stats = connection.stats().await.map_err(|error| unreachable(&format!("{address}: {error}")))?;
        let max_job_size =
            stats.number("max-job-size").unwrap_or(u64::from(beanpole_protocol::DEFAULT_MAX_JOB_SIZE));
        let held_max = (BATCH_BYTES as u64 / max_job_size.max(1)).clamp(1, HELD_MAX);
        Ok(Source {
            connection,
            watched: "default".to_owned(),
            used: "default".to_owned(),
            max_job_size,
            held_max: usize::try_from(held_max).expect("at most 64"),
            knows_reserve_job: true,
        })
    }

    /// All tubes there.
    pub async fn tubes(&mut self) -> Result<Vec<String>, Error> {
        self.connection.list_tubes().await
    }

    /// What waits in a tube; none when it is gone.
    pub async fn counts(&mut self, tube: &str) -> Result<Option<Counts>, Error> {
        let stats = match self.connection.stats_tube(tube).await {
            Ok(stats) => stats,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let number = |key| stats.number(key).unwrap_or(0);
        Ok(Some(Counts {
            ready: number("current-jobs-ready"),
            delayed: number("current-jobs-delayed"),
            buried: number("current-jobs-buried"),
            reserved: number("current-jobs-reserved"),
            paused_s: number("pause-time-left"),
        }))
    }

    /// Some jobs of a tube, held by this connection; none when nothing is left of that state.
    pub async fn take(&mut self, tube: &str, state: State) -> Result<Vec<Copy>, Error> {
        if state == State::Ready {
            let taken = self.reserve(tube).await?;
            if !taken.is_empty() {
                return Ok(taken);
            }
        }
        self.look_up(tube, state).await
    }

    /// Ready jobs, the way a worker gets them.
    async fn reserve(&mut self, tube: &str) -> Result<Vec<Copy>, Error> {
        if self.watched != tube {
            self.connection.watch(tube).await?;
            let before = std::mem::replace(&mut self.watched, tube.to_owned());
            self.connection.ignore(&before).await?;
        }
        for _ in 0..self.held_max {
            self.connection.send(&Command::ReserveWithTimeout(0));
        }
        let mut held = Vec::new();
        for _ in 0..self.held_max {
            let reply = self.connection.recv().await?;
            if let ClientReply::Reserved { id, data } = reply {
                held.push((id, data));
            } else if !matches!(reply, ClientReply::TimedOut | ClientReply::DeadlineSoon) {
                return Err(Error::Unexpected { verb: "reserve-with-timeout", reply: reply.word() });
            }
        }
        for (id, _) in &held {
            self.connection.send(&Command::StatsJob(*id));
        }
        let mut taken = Vec::with_capacity(held.len());
        for (id, body) in held {
            let Some(stats) = job_stats(self.connection.recv().await?)? else { continue };
            taken.push(copy(id, tube, State::Ready, &stats, body));
        }
        Ok(taken)
    }

    /// Jobs of one state, from the head of their order.
    async fn look_up(&mut self, tube: &str, state: State) -> Result<Vec<Copy>, Error> {
        if self.used != tube {
            self.connection.use_tube(tube).await?;
            tube.clone_into(&mut self.used);
        }
        let mut taken = Vec::new();
        for _ in 0..self.held_max {
            let found = match state {
                State::Ready => self.connection.peek_ready().await,
                State::Delayed => self.connection.peek_delayed().await,
                State::Buried => self.connection.peek_buried().await,
            };
            let job = match found {
                Ok(job) => job,
                Err(Error::NotFound { .. }) => break,
                Err(error) => return Err(error),
            };
            // Before it is reserved: after that, the time left is that of its TTR.
            self.connection.send(&Command::StatsJob(job.id));
            if self.knows_reserve_job {
                self.connection.send(&Command::ReserveJob(job.id));
            }
            let stats = job_stats(self.connection.recv().await?)?;
            let Some(held) = self.held().await? else { continue };
            if let Some(stats) = stats {
                taken.push(copy(job.id, tube, state, &stats, job.body));
            }
            if !held {
                break;
            }
        }
        Ok(taken)
    }

    /// Whether the job that was looked up is held now; none when somebody else was quicker.
    async fn held(&mut self) -> Result<Option<bool>, Error> {
        if !self.knows_reserve_job {
            return Ok(Some(false));
        }
        let reply = self.connection.recv().await?;
        if let ClientReply::Reserved { .. } = reply {
            Ok(Some(true))
        } else if reply == ClientReply::NotFound {
            Ok(None)
        } else if matches!(reply, ClientReply::UnknownCommand | ClientReply::BadFormat) {
            // To a beanstalkd that does not know the word it is a `reserve` with too much behind it.
            self.knows_reserve_job = false;
            Ok(Some(false))
        } else {
            Err(Error::Unexpected { verb: "reserve-job", reply: reply.word() })
        }
    }

    /// Deletes jobs whose copies are on disk.
    pub async fn delete(&mut self, jobs: &[&Copy]) -> Result<Vec<Gone>, Error> {
        for job in jobs {
            self.connection.send(&Command::Delete(JobId(job.id)));
        }
        let mut gone = Vec::with_capacity(jobs.len());
        for _ in jobs {
            let reply = self.connection.recv().await?;
            if reply == ClientReply::Deleted {
                gone.push(Gone::Deleted);
            } else if reply == ClientReply::NotFound {
                gone.push(Gone::Elsewhere);
            } else {
                return Err(Error::Unexpected { verb: "delete", reply: reply.word() });
            }
        }
        Ok(gone)
    }

    /// Puts jobs back to where they were.
    pub async fn give_back(&mut self, jobs: &[&Copy]) -> Result<(), Error> {
        for job in jobs {
            let (id, pri) = (JobId(job.id), Priority(job.pri));
            self.connection.send(&match job.state {
                State::Ready | State::Delayed => Command::Release { id, pri, delay: job.delay_s },
                State::Buried => Command::Bury { id, pri },
            });
        }
        for _ in jobs {
            // Not found: it was not held, or no longer, and is back by itself.
            self.connection.recv().await?;
        }
        Ok(())
    }
}

/// The reply to `stats-job`; none when the job is gone.
fn job_stats(reply: ClientReply) -> Result<Option<Stats>, Error> {
    if let ClientReply::Ok(body) = reply {
        Ok(Some(Stats::parse(&String::from_utf8_lossy(&body))))
    } else if reply == ClientReply::NotFound {
        Ok(None)
    } else {
        Err(Error::Unexpected { verb: "stats-job", reply: reply.word() })
    }
}

/// A job as it is to be at the other end: a delayed one keeps what is left of its delay.
fn copy(id: JobId, tube: &str, state: State, stats: &Stats, body: Bytes) -> Copy {
    let number = |key| u32::try_from(stats.number(key).unwrap_or(0)).unwrap_or(u32::MAX);
    let delay_s = if state == State::Delayed && stats.get("state") == Some("delayed") {
        number("time-left")
    } else {
        0
    };
    Copy { id: id.0, tube: tube.to_owned(), state, pri: number("pri"), delay_s, ttr_s: number("ttr"), body }
}
