//! Every command as a method: sends it, waits for its reply, and turns that into a type or an [`Error`].

use crate::connection::Connection;
use crate::error::{Error, Refusal};
use crate::stats::{Stats, parse_list};
use beanpole_protocol::{ClientReply, Command, JobId, Priority, Tube};
use bytes::Bytes;
use std::time::Duration;

/// A job as it was handed out or shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The server's name for it.
    pub id: JobId,
    /// Its body, without the CRLF.
    pub body: Bytes,
}

/// What came of a reserve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reserve {
    /// A job, now held by this connection for its time to run.
    Job(Job),
    /// No job came within the timeout.
    TimedOut,
    /// No job came, and a job this connection holds has at most a second left: finish, touch or release it.
    DeadlineSoon,
}

/// How a job is to be queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutOptions {
    /// Smaller numbers are handed out first; below 1024 is urgent.
    pub pri: u32,
    /// Seconds before the job becomes ready.
    pub delay_s: u32,
    /// Seconds a worker may hold it; 0 counts as 1.
    pub ttr_s: u32,
}

impl Default for PutOptions {
    /// Priority 1024, no delay, 60 s to run.
    fn default() -> Self {
        PutOptions { pri: 1024, delay_s: 0, ttr_s: 60 }
    }
}

/// Producing.
impl Connection {
    /// Chooses the tube that this connection puts into. At first it is `default`.
    pub async fn use_tube(&mut self, tube: &str) -> Result<(), Error> {
        let reply = self.call(&Command::Use(named(tube)?)).await?;
        if let ClientReply::Using(_) = reply { Ok(()) } else { Err(refused("use", &reply)) }
    }

    /// Puts a job into the used tube. `Ok` = the server has it (and, if it is durable, keeps it through a
    /// crash).
    ///
    /// [`Error::OutcomeUnknown`] = it may have it: putting again can make two.
    pub async fn put(&mut self, body: &[u8], options: PutOptions) -> Result<JobId, Error> {
        self.expect_idle()?;
        self.send_put(body, options)?;
        let reply = self.answer(Duration::ZERO).await?;
        if let ClientReply::Inserted(id) = reply { Ok(id) } else { Err(refused("put", &reply)) }
    }
}

/// Producing without doubt: a Beanpole's own command.
impl Connection {
    /// Puts a job once for its key: when a put with this key was taken into the used tube not long ago, that one's id is
    /// the answer, and nothing is put. So after [`Error::OutcomeUnknown`] the same may be sent again, over another connection.
    /// A server that does not know the command answers [`Refusal::UnknownCommand`] and takes the body for commands.
    pub async fn put_once(&mut self, key: &str, body: &[u8], options: PutOptions) -> Result<JobId, Error> {
        self.expect_idle()?;
        self.send_put_once(key, body, options)?;
        let reply = self.answer(Duration::ZERO).await?;
        if let ClientReply::Inserted(id) = reply { Ok(id) } else { Err(refused("put-once", &reply)) }
    }

    /// Whether the server knows [`put_once`](Self::put_once). Asked with the bare word, which has no effect on any server.
    pub async fn knows_put_once(&mut self) -> Result<bool, Error> {
        self.expect_idle()?;
        self.send_line(b"put-once \r\n", "put-once");
        let reply = self.answer(Duration::ZERO).await?;
        if reply == ClientReply::BadFormat {
            Ok(true)
        } else if reply == ClientReply::UnknownCommand {
            Ok(false)
        } else {
            Err(Error::Unexpected { verb: "put-once", reply: reply.word() })
        }
    }
}

/// Working.
impl Connection {
    /// Adds a tube to those this connection reserves from; returns how many those are.
    pub async fn watch(&mut self, tube: &str) -> Result<u64, Error> {
        let reply = self.call(&Command::Watch(named(tube)?)).await?;
        if let ClientReply::Watching(count) = reply { Ok(count) } else { Err(refused("watch", &reply)) }
    }

    /// Takes a tube from those this connection reserves from; returns how many are left. The last one cannot
    /// be taken away ([`Refusal::NotIgnored`]).
    pub async fn ignore(&mut self, tube: &str) -> Result<u64, Error> {
        let reply = self.call(&Command::Ignore(named(tube)?)).await?;
        if let ClientReply::Watching(count) = reply { Ok(count) } else { Err(refused("ignore", &reply)) }
    }

    /// Waits for a job, for ever if need be: the connection's timeout does not count. A server that is cut off without a
    /// word is noticed only by [`reserve_with_timeout`](Self::reserve_with_timeout).
    pub async fn reserve(&mut self) -> Result<Reserve, Error> {
        self.expect_idle()?;
        self.send(&Command::Reserve);
        let reply = self.recv().await?;
        reserved("reserve", reply)
    }

    /// Waits for a job for at most `timeout_s` seconds (0 = not at all; at most 2147483647).
    pub async fn reserve_with_timeout(&mut self, timeout_s: u32) -> Result<Reserve, Error> {
        self.expect_idle()?;
        self.send(&Command::ReserveWithTimeout(timeout_s));
        let reply = self.answer(Duration::from_secs(timeout_s.into())).await?;
        reserved("reserve-with-timeout", reply)
    }

    /// Takes one certain job that is ready, delayed or buried, of any tube.
    pub async fn reserve_job(&mut self, id: JobId) -> Result<Job, Error> {
        let reply = self.call(&Command::ReserveJob(id)).await?;
        if let ClientReply::Reserved { id, data } = reply {
            Ok(Job { id, body: data })
        } else {
            Err(refused("reserve-job", &reply))
        }
    }

    /// Deletes a job that this connection holds, or that nobody does. `Ok` = it will never be handed out
    /// again.
    pub async fn delete(&mut self, id: JobId) -> Result<(), Error> {
        let reply = self.call(&Command::Delete(id)).await?;
        if let ClientReply::Deleted = reply { Ok(()) } else { Err(refused("delete", &reply)) }
    }

    /// Gives a held job back, with a new priority, after `delay_s` seconds.
    pub async fn release(&mut self, id: JobId, pri: u32, delay_s: u32) -> Result<(), Error> {
        let reply = self.call(&Command::Release { id, pri: Priority(pri), delay: delay_s }).await?;
        if let ClientReply::Released = reply { Ok(()) } else { Err(refused("release", &reply)) }
    }

    /// Puts a held job aside until it is kicked.
    pub async fn bury(&mut self, id: JobId, pri: u32) -> Result<(), Error> {
        let reply = self.call(&Command::Bury { id, pri: Priority(pri) }).await?;
        if let ClientReply::Buried = reply { Ok(()) } else { Err(refused("bury", &reply)) }
    }

    /// Starts a held job's time to run anew.
    pub async fn touch(&mut self, id: JobId) -> Result<(), Error> {
        let reply = self.call(&Command::Touch(id)).await?;
        if let ClientReply::Touched = reply { Ok(()) } else { Err(refused("touch", &reply)) }
    }
}

/// Looking and tending.
impl Connection {
    /// Shows a job in any state.
    pub async fn peek(&mut self, id: JobId) -> Result<Job, Error> {
        let reply = self.call(&Command::Peek(id)).await?;
        found("peek", reply)
    }

    /// Shows the used tube's next ready job.
    pub async fn peek_ready(&mut self) -> Result<Job, Error> {
        let reply = self.call(&Command::PeekReady).await?;
        found("peek-ready", reply)
    }

    /// Shows the used tube's delayed job that becomes ready first.
    pub async fn peek_delayed(&mut self) -> Result<Job, Error> {
        let reply = self.call(&Command::PeekDelayed).await?;
        found("peek-delayed", reply)
    }

    /// Shows the used tube's job that was buried first.
    pub async fn peek_buried(&mut self) -> Result<Job, Error> {
        let reply = self.call(&Command::PeekBuried).await?;
        found("peek-buried", reply)
    }

    /// Makes up to `bound` jobs of the used tube ready: its buried ones if there are any, else its delayed
    /// ones. Returns how many.
    pub async fn kick(&mut self, bound: u32) -> Result<u64, Error> {
        let reply = self.call(&Command::Kick(bound)).await?;
        if let ClientReply::Kicked(count) = reply { Ok(count) } else { Err(refused("kick", &reply)) }
    }

    /// Makes one buried or delayed job ready.
    pub async fn kick_job(&mut self, id: JobId) -> Result<(), Error> {
        let reply = self.call(&Command::KickJob(id)).await?;
        if let ClientReply::KickedJob = reply { Ok(()) } else { Err(refused("kick-job", &reply)) }
    }

    /// Hands out nothing of `tube` for `delay_s` seconds; 0 ends a pause.
    pub async fn pause_tube(&mut self, tube: &str, delay_s: u32) -> Result<(), Error> {
        let reply = self.call(&Command::PauseTube { tube: named(tube)?, delay: delay_s }).await?;
        if let ClientReply::Paused = reply { Ok(()) } else { Err(refused("pause-tube", &reply)) }
    }

    /// The server's counters.
    pub async fn stats(&mut self) -> Result<Stats, Error> {
        let reply = self.call(&Command::Stats).await?;
        Ok(Stats::parse(&text("stats", reply)?))
    }

    /// A tube's counters.
    pub async fn stats_tube(&mut self, tube: &str) -> Result<Stats, Error> {
        let reply = self.call(&Command::StatsTube(named(tube)?)).await?;
        Ok(Stats::parse(&text("stats-tube", reply)?))
    }

    /// A job's state and counters.
    pub async fn stats_job(&mut self, id: JobId) -> Result<Stats, Error> {
        let reply = self.call(&Command::StatsJob(id)).await?;
        Ok(Stats::parse(&text("stats-job", reply)?))
    }

    /// The names of all tubes.
    pub async fn list_tubes(&mut self) -> Result<Vec<String>, Error> {
        let reply = self.call(&Command::ListTubes).await?;
        Ok(parse_list(&text("list-tubes", reply)?))
    }

    /// The tube that this connection puts into.
    pub async fn list_tube_used(&mut self) -> Result<String, Error> {
        let reply = self.call(&Command::ListTubeUsed).await?;
        if let ClientReply::Using(tube) = reply { Ok(tube) } else { Err(refused("list-tube-used", &reply)) }
    }

    /// The tubes that this connection reserves from.
    pub async fn list_tubes_watched(&mut self) -> Result<Vec<String>, Error> {
        let reply = self.call(&Command::ListTubesWatched).await?;
        Ok(parse_list(&text("list-tubes-watched", reply)?))
    }
}

fn named(tube: &str) -> Result<Tube<'_>, Error> {
    Tube::new(tube.as_bytes()).ok_or_else(|| Error::BadTubeName(tube.to_owned()))
}

fn reserved(verb: &'static str, reply: ClientReply) -> Result<Reserve, Error> {
    if let ClientReply::Reserved { id, data } = reply {
        Ok(Reserve::Job(Job { id, body: data }))
    } else if reply == ClientReply::TimedOut {
        Ok(Reserve::TimedOut)
    } else if reply == ClientReply::DeadlineSoon {
        Ok(Reserve::DeadlineSoon)
    } else {
        Err(refused(verb, &reply))
    }
}

fn found(verb: &'static str, reply: ClientReply) -> Result<Job, Error> {
    if let ClientReply::Found { id, data } = reply {
        Ok(Job { id, body: data })
    } else {
        Err(refused(verb, &reply))
    }
}

fn text(verb: &'static str, reply: ClientReply) -> Result<String, Error> {
    if let ClientReply::Ok(body) = reply {
        Ok(String::from_utf8_lossy(&body).into_owned())
    } else {
        Err(refused(verb, &reply))
    }
}

/// The error that a reply other than the hoped-for one is.
fn refused(verb: &'static str, reply: &ClientReply) -> Error {
    match refusal(reply) {
        Some(refusal) => Error::Refused { verb, refusal },
        None if *reply == ClientReply::NotFound => Error::NotFound { verb },
        None => Error::Unexpected { verb, reply: reply.word() },
    }
}

/// What a reply refuses, if it does.
pub(crate) fn refusal(reply: &ClientReply) -> Option<Refusal> {
    Some(match reply {
        ClientReply::BuriedPut(id) => Refusal::Buried(*id),
        ClientReply::OutOfMemory => Refusal::OutOfMemory,
        ClientReply::InternalError => Refusal::InternalError,
        ClientReply::Draining => Refusal::Draining,
        ClientReply::BadFormat => Refusal::BadFormat,
        ClientReply::UnknownCommand => Refusal::UnknownCommand,
        ClientReply::ExpectedCrlf => Refusal::ExpectedCrlf,
        ClientReply::JobTooBig => Refusal::JobTooBig,
        ClientReply::NotIgnored => Refusal::NotIgnored,
        ClientReply::NotFound
        | ClientReply::Inserted(_)
        | ClientReply::Using(_)
        | ClientReply::DeadlineSoon
        | ClientReply::TimedOut
        | ClientReply::Reserved { .. }
        | ClientReply::Deleted
        | ClientReply::Released
        | ClientReply::Buried
        | ClientReply::Touched
        | ClientReply::Watching(_)
        | ClientReply::Found { .. }
        | ClientReply::Kicked(_)
        | ClientReply::KickedJob
        | ClientReply::Paused
        | ClientReply::Ok(_) => return None,
    })
}
