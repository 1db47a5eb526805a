//! A job as its handler sees it.

use crate::stats::Stats;
use crate::{Error, JobId};
use bytes::Bytes;
use std::time::Duration;
use tokio::sync::watch;

/// What a server tells of a job when it is handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobInfo {
    /// The server's name for it.
    pub id: JobId,
    /// The tube that it came from.
    pub tube: String,
    /// Its priority; kept when it is tried again.
    pub pri: u32,
    /// How long it may be held without a touch. The worker touches it by itself.
    pub ttr: Duration,
    /// How often it was handed out, this time included: 1 is the first time.
    pub attempt: u64,
    /// How long ago it was put.
    pub age: Duration,
}

impl JobInfo {
    /// Reads an answer to `stats-job`; what a server leaves out has a careful value.
    pub(super) fn read(id: JobId, stats: &Stats) -> Result<JobInfo, Error> {
        let number = |key: &str| stats.number(key);
        let unclear = Error::Unexpected { verb: "stats-job", reply: "OK without a tube" };
        Ok(JobInfo {
            id,
            tube: stats.get("tube").ok_or(unclear)?.to_owned(),
            pri: number("pri").and_then(|pri| u32::try_from(pri).ok()).unwrap_or(1024),
            ttr: Duration::from_secs(number("ttr").unwrap_or(1).max(1)),
            attempt: number("reserves").unwrap_or(1).max(1),
            age: Duration::from_secs(number("age").unwrap_or(0)),
        })
    }
}

/// A job that is being worked on.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// What is known of the job.
    pub info: JobInfo,
    /// Its body.
    pub body: Bytes,
    pub(super) lost: watch::Receiver<bool>,
}

impl Delivery {
    /// Whether the job is no longer held: the connection was lost, or its time to run was over. Somebody else may be handed
    /// it; what this handler still does may be done twice.
    pub fn is_lost(&self) -> bool {
        *self.lost.borrow()
    }

    /// Resolves when the job is no longer held. Handlers that must not run beside another one select on it.
    pub async fn lost(&mut self) {
        if self.lost.wait_for(|lost| *lost).await.is_err() {
            // The worker has finished with the job in an orderly way: it will not be lost any more.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stats_job_says_is_read_and_what_it_omits_is_careful() {
        let stats = Stats::parse("---\nid: 7\ntube: \"a\"\npri: 5\nage: 90\nttr: 30\nreserves: 3\n");
        let info = JobInfo::read(JobId(7), &stats).unwrap();
        assert_eq!((info.tube.as_str(), info.pri, info.attempt), ("a", 5, 3));
        assert_eq!((info.ttr.as_secs(), info.age.as_secs()), (30, 90));
        let info = JobInfo::read(JobId(7), &Stats::parse("---\ntube: a\n")).unwrap();
        assert_eq!((info.pri, info.attempt, info.ttr.as_secs()), (1024, 1, 1));
        assert!(JobInfo::read(JobId(7), &Stats::parse("---\n")).is_err());
    }
}
