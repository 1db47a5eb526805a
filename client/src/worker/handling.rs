//! One job in its handler: touched while that lasts, and dealt with when it is over.

use super::WorkerEvent;
use super::job::{Delivery, JobInfo};
use super::retry::{Ending, Verdict};
use super::slot::{Seat, Slot, terminated};
use crate::error::Error;
use bytes::Bytes;
use std::any::Any;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tracing::Instrument;

/// A handler that was cancelled has this long to notice before its job is given back all the same.
const CANCEL_MAX: Duration = Duration::from_secs(5);

/// A job that is held.
pub(super) struct Holding<'a, H> {
    slot: &'a mut Slot<H>,
    /// None when the connection is lost.
    seat: Option<Seat>,
    info: JobInfo,
    lost: watch::Sender<bool>,
    /// Why the job is no longer held, if so.
    why_lost: Option<String>,
}

/// How a handler came to its end.
enum Came {
    /// By itself.
    ToVerdict(Verdict),
    /// It was cancelled.
    ToNothing,
}

/// Cancels the handler when the slot goes.
struct Running(JoinHandle<Verdict>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<'a, H, F, V> Holding<'a, H>
where
    H: Fn(Delivery) -> F + Send + Sync + 'static,
    F: Future<Output = V> + Send + 'static,
    V: Into<Verdict> + Send + 'static,
{
    pub(super) fn new(slot: &'a mut Slot<H>, seat: Seat, info: JobInfo) -> Holding<'a, H> {
        let (lost, _) = watch::channel(false);
        Holding { slot, seat: Some(seat), info, lost, why_lost: None }
    }

    /// Runs the handler and does what it says. Gives the connection back if it is still of use.
    pub(super) async fn handle(mut self, body: Bytes) -> Option<Seat> {
        let begun = Instant::now();
        self.tell(&WorkerEvent::Started { job: &self.info });
        let span = tracing::info_span!(
            "job",
            id = self.info.id.0,
            tube = self.info.tube,
            attempt = self.info.attempt
        );
        let delivery = Delivery { info: self.info.clone(), body, lost: self.lost.subscribe() };
        let shared = self.slot.shared.clone();
        let handler = async move { (shared.handler)(delivery).await.into() };
        let came = self.attend(Running(tokio::spawn(handler.instrument(span)))).await;
        match came {
            Came::ToVerdict(verdict) => {
                let ending = self.slot.shared.settings.retries.decide(
                    verdict,
                    self.info.attempt,
                    &mut self.slot.random,
                );
                self.end(ending, begun.elapsed()).await;
            }
            Came::ToNothing => self.give_back().await,
        }
        self.seat
    }

    fn tell(&self, event: &WorkerEvent<'_>) {
        self.slot.shared.tell(event);
    }

    /// Waits for the handler, and touches its job meanwhile.
    async fn attend(&mut self, mut running: Running) -> Came {
        let every = self.info.ttr / 2;
        let mut touch_at = Instant::now() + every;
        loop {
            tokio::select! {
                result = &mut running.0 => return Came::ToVerdict(self.verdict(result)),
                () = terminated(self.slot.state.clone()) => {
                    running.0.abort();
                    // Whether it ended by this or by itself at the last moment, or not yet.
                    return match tokio::time::timeout(CANCEL_MAX, &mut running.0).await {
                        Ok(Ok(verdict)) => Came::ToVerdict(verdict),
                        Ok(Err(_)) | Err(_) => Came::ToNothing,
                    };
                }
                why = closed(&mut self.seat) => self.connection_lost(&why),
                () = tokio::time::sleep_until(touch_at), if self.why_lost.is_none() => {
                    touch_at = Instant::now() + every;
                    self.touch().await;
                }
            }
        }
    }

    /// What a handler said; a panic is a failed attempt.
    fn verdict(&self, result: Result<Verdict, JoinError>) -> Verdict {
        let panic = match result.map_err(JoinError::try_into_panic) {
            Ok(verdict) => return verdict,
            Err(Ok(panic)) => said(panic.as_ref()),
            Err(Err(_)) => "it was cancelled".to_owned(),
        };
        tracing::error!(job = self.info.id.0, tube = self.info.tube, panic, "the handler panicked");
        self.tell(&WorkerEvent::Panicked { job: &self.info, message: &panic });
        Verdict::Retry { after: None }
    }

    async fn touch(&mut self) {
        let Some(seat) = &mut self.seat else { return };
        match seat.connection.touch(self.info.id).await {
            Ok(()) => self.tell(&WorkerEvent::Touched { job: &self.info }),
            Err(Error::NotFound { .. }) => self.not_held("its time to run was over"),
            Err(error) => self.connection_lost(&error.to_string()),
        }
    }

    fn not_held(&mut self, why: &str) {
        self.why_lost = Some(why.to_owned());
        self.lost.send_replace(true);
    }

    fn connection_lost(&mut self, why: &str) {
        if let Some(seat) = self.seat.take() {
            self.slot.lost(&seat, why);
        }
        self.not_held(why);
    }

    /// Does with the job what was decided. That it cannot be done is no failure: the job comes again.
    async fn end(&mut self, ending: Ending, took: Duration) {
        match self.carry_out(ending).await {
            Ok(()) => self.tell(&WorkerEvent::Finished { job: &self.info, ending, took }),
            Err(why) => self.tell(&WorkerEvent::Lost { job: &self.info, why: &why }),
        }
    }

    async fn carry_out(&mut self, ending: Ending) -> Result<(), String> {
        let (id, pri) = (self.info.id, self.info.pri);
        let seat = match (&mut self.seat, &self.why_lost) {
            (Some(seat), None) => seat,
            // It may be ready again with nobody holding it: what is done need not be done once more.
            (Some(seat), Some(_)) if ending == Ending::Delete => seat,
            (_, why) => return Err(why.clone().unwrap_or_default()),
        };
        let answer = match ending {
            Ending::Delete => seat.connection.delete(id).await,
            Ending::Release { delay_s } => seat.connection.release(id, pri, delay_s).await,
            Ending::Bury => seat.connection.bury(id, pri).await,
        };
        match answer {
            Ok(()) => Ok(()),
            Err(Error::NotFound { .. }) => {
                Err(self.why_lost.take().unwrap_or_else(|| "it was no longer held".to_owned()))
            }
            Err(error) => {
                let why = error.to_string();
                self.connection_lost(&why);
                Err(why)
            }
        }
    }

    /// The worker ends before the handler did: somebody else may do the job at once.
    async fn give_back(&mut self) {
        let Some(seat) = &mut self.seat else { return };
        match seat.connection.release(self.info.id, self.info.pri, 0).await {
            Ok(()) => self.tell(&WorkerEvent::Returned { job: &self.info }),
            Err(error) => self.tell(&WorkerEvent::Lost { job: &self.info, why: &error.to_string() }),
        }
    }
}

/// Resolves when the connection is lost; never when there is none.
async fn closed(seat: &mut Option<Seat>) -> String {
    match seat {
        Some(seat) => seat.connection.closed().await.to_string(),
        None => std::future::pending().await,
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".to_owned())
}
