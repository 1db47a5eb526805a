//! One slot: a connection that waits for a job, and goes on with whichever node serves.

use super::handling::Holding;
use super::job::{Delivery, JobInfo};
use super::limits::{self, Place};
use super::{Shared, Verdict, WorkerEvent, WorkerState};
use crate::commands::{Job, Reserve};
use crate::connection::Connection;
use crate::error::Error;
use crate::roster::Pick;
use crate::{ClientReply, Command, Tube};
use rand::rngs::SmallRng;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;

/// A connection and what it watches.
pub(super) struct Seat {
    pub(super) node: usize,
    pub(super) connection: Connection,
    watched: Vec<String>,
}

pub(super) struct Slot<H> {
    pub(super) shared: Arc<Shared<H>>,
    pub(super) state: watch::Receiver<WorkerState>,
    pub(super) random: SmallRng,
}

impl<H, F, V> Slot<H>
where
    H: Fn(Delivery) -> F + Send + Sync + 'static,
    F: Future<Output = V> + Send + 'static,
    V: Into<Verdict> + Send + 'static,
{
    pub(super) fn new(
        shared: Arc<Shared<H>>,
        state: watch::Receiver<WorkerState>,
        random: SmallRng,
    ) -> Slot<H> {
        Slot { shared, state, random }
    }

    /// Works until the worker is to end.
    pub(super) async fn run(mut self) {
        let mut seat = None;
        loop {
            let state = *self.state.borrow_and_update();
            match state {
                WorkerState::Running => {}
                WorkerState::Quiet => {
                    seat = None;
                    if self.state.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                WorkerState::Terminate => return,
            }
            let current = match seat.take() {
                Some(current) => Some(current),
                None => self.connect().await,
            };
            if let Some(current) = current {
                seat = self.turn(current).await;
            }
        }
    }

    /// Waits for a job and deals with it. Gives the connection back if it is still of use.
    async fn turn(&mut self, seat: Seat) -> Option<Seat> {
        let mut seat = self.go_home(seat).await;
        let shared = self.shared.clone();
        let (tubes, places) = self.unless_told(shared.limits.wait()).await?;
        let state = self.state.clone();
        let waited = tokio::select! {
            waited = self.wait_for_job(&mut seat, &tubes) => waited,
            // The connection goes: what it may be handed at this moment is ready again at once.
            () = told(state) => return None,
        };
        match waited {
            Ok(None) => Some(seat),
            Ok(Some((job, info))) => {
                let place = limits::keep(places, &info.tube);
                self.work(seat, job, info, place).await
            }
            Err(error) => {
                self.lost(&seat, &error.to_string());
                None
            }
        }
    }

    async fn work(&mut self, seat: Seat, job: Job, info: JobInfo, place: Option<Place>) -> Option<Seat> {
        self.shared.busy.send_modify(|busy| *busy += 1);
        let seat = Holding::new(self, seat, info).handle(job.body).await;
        drop(place);
        self.shared.busy.send_modify(|busy| *busy -= 1);
        seat
    }

    async fn wait_for_job(&self, seat: &mut Seat, tubes: &[String]) -> Result<Option<(Job, JobInfo)>, Error> {
        seat.watch(tubes).await?;
        // Not to wait at all would be to ask without end.
        let wait_s = u32::try_from(self.shared.settings.wait.as_secs()).unwrap_or(u32::MAX).max(1);
        let reserve = seat.connection.reserve_with_timeout(wait_s).await?;
        self.shared.roster(|roster| roster.worked(seat.node));
        match reserve {
            Reserve::TimedOut | Reserve::DeadlineSoon => Ok(None),
            Reserve::Job(job) => match seat.connection.stats_job(job.id).await {
                Ok(stats) => {
                    let info = JobInfo::read(job.id, &stats)?;
                    Ok(Some((job, info)))
                }
                // Its time to run was over before it was looked at.
                Err(Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    /// Waits for `event`, unless the worker is told to do something else meanwhile.
    async fn unless_told<T>(&self, event: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            value = event => Some(value),
            () = told(self.state.clone()) => None,
        }
    }

    /// Connects to one node or another, for as long as it takes; none when the worker is told to do something else.
    async fn connect(&self) -> Option<Seat> {
        loop {
            match self.shared.roster(|roster| roster.pick(Instant::now())) {
                Pick::Connect(node) => {
                    if let Some(seat) = self.unless_told(self.open(node)).await? {
                        return Some(seat);
                    }
                }
                Pick::WaitUntil(at) => self.unless_told(tokio::time::sleep_until(at)).await?,
            }
        }
    }

    /// Changes to a node that is preferred to the present one, if one is there again.
    async fn go_home(&self, seat: Seat) -> Seat {
        let limit = self.shared.settings.connect_timeout;
        match self.shared.roster(|roster| roster.better_than(seat.node, Instant::now(), limit)) {
            Some(better) => self.open(better).await.unwrap_or(seat),
            None => seat,
        }
    }

    /// Connects to a node and hears from it: a process that is frozen takes connections, too.
    async fn open(&self, node: usize) -> Option<Seat> {
        let settings = &self.shared.settings;
        let address = settings.addresses[node].clone();
        let opened = async {
            let connected = Connection::connect_within(address.clone(), settings.connect_timeout).await;
            let mut connection = connected.map_err(|error| error.to_string())?;
            connection.set_timeout(Some(settings.connect_timeout));
            connection.list_tube_used().await.map_err(|error| error.to_string())?;
            connection.set_timeout(Some(settings.reply_timeout));
            Ok::<_, String>(connection)
        };
        match opened.await {
            Ok(connection) => {
                tracing::debug!(%address, "connected");
                self.shared.tell(&WorkerEvent::Connected { address: &address });
                Some(Seat { node, connection, watched: vec![Tube::DEFAULT.as_str().to_owned()] })
            }
            Err(why) => {
                self.gone(node, &why);
                None
            }
        }
    }

    /// A connection is of no more use.
    pub(super) fn lost(&self, seat: &Seat, why: &str) {
        self.gone(seat.node, why);
    }

    fn gone(&self, node: usize, why: &str) {
        let address = &self.shared.settings.addresses[node];
        tracing::debug!(%address, why, "disconnected");
        self.shared.roster(|roster| roster.failed(node, Instant::now()));
        self.shared.tell(&WorkerEvent::Disconnected { address, why });
    }
}

/// Resolves when the worker is told to take no more jobs, or is gone.
async fn told(mut state: watch::Receiver<WorkerState>) {
    // An error means that the worker is gone.
    let _gone = state.wait_for(|state| *state != WorkerState::Running).await;
}

/// Resolves when the worker is told to give back what it has, or is gone.
pub(super) async fn terminated(mut state: watch::Receiver<WorkerState>) {
    // An error means that the worker is gone.
    let _gone = state.wait_for(|state| *state == WorkerState::Terminate).await;
}

impl Seat {
    /// Watches these tubes and no others, in one round trip, or none.
    async fn watch(&mut self, tubes: &[String]) -> Result<(), Error> {
        let named = |name: &str| Tube::new(name.as_bytes()).is_some();
        debug_assert!(tubes.iter().all(|tube| named(tube)), "the settings were checked");
        let new = tubes.iter().filter(|tube| !self.watched.contains(tube));
        let old = self.watched.iter().filter(|tube| !tubes.contains(tube));
        // First the new ones: the last tube cannot be ignored.
        let watches = new.filter_map(|tube| Some(Command::Watch(Tube::new(tube.as_bytes())?)));
        let ignores = old.filter_map(|tube| Some(Command::Ignore(Tube::new(tube.as_bytes())?)));
        for command in watches.chain(ignores) {
            self.connection.send(&command);
        }
        while self.connection.unanswered() > 0 {
            let reply = self.connection.answer(std::time::Duration::ZERO).await?;
            let ClientReply::Watching(_) = reply else {
                return Err(Error::Unexpected { verb: "watch", reply: reply.word() });
            };
        }
        self.watched = tubes.to_vec();
        Ok(())
    }
}
