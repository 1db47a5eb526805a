//! `beanpole serve`: from settings to a running node, and its orderly end.
//!
//! The order matters. The ports are bound first, so that a taken one is reported before the data directory is touched;
//! connections are accepted from then on, and their commands wait until the log has been recovered.

mod facts;
mod logging;
mod signals;

use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use beanpole_raft::{BodyAddr, BodyError, Fatal, Node, Opening, Options, Peering, StartError, TcpNet};
use bytes::BytesMut;

use crate::admin;
use crate::admission::{self, State};
use crate::clock::{Clocks, SystemTimeSource};
use crate::cluster::{self, report::Addresses};
use crate::config::{ConfigError, ServeArgs, Settings};
use crate::gateway::{BodySource, Gateway, is_intact};
use crate::net::{self, BindError, Bound};
use crate::node::{Machine, Shared, may_stay_awake, pump, reply};
pub use facts::ProcessFacts;
use signals::Ending;

/// How long a stopping server waits for what is under way. Replies that a client does not read are not waited for longer.
pub(crate) const SETTLE_MAX: Duration = Duration::from_millis(700);
/// Clients that hold a job when the server stops have this long to finish it, in microseconds.
const LET_GO_WITHIN_US: u64 = 150_000;
/// How long a stopping server waits for clients to close.
const LET_GO_MAX: Duration = Duration::from_millis(300);
/// How often a stopping server looks whether it has settled.
const SETTLE_POLL: Duration = Duration::from_millis(2);

/// How often a start that takes long is told of.
const TELL_PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// The log's ring takes this part of a small budget ...
const RING_PART: u64 = 16;
/// ... but at least a full entry and the next one.
const RING_BYTES_MIN: usize = 4 << 20;
/// Proposals under way take this part of a small budget ...
const INFLIGHT_PART: u64 = 8;
/// ... but at least as many full entries as may be under way.
const INFLIGHT_BYTES_MIN: usize = 8 << 20;

/// Clients' connections that there may always be.
const CONNECTIONS_MIN: usize = 16;

/// Exit code of a start that was refused: bad settings, a taken port, an unusable data directory.
const EXIT_REFUSED: u8 = 2;
/// Exit code of a server whose storage failed while it ran.
const EXIT_FAILED: u8 = 1;

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("the system refuses what every server needs: {0}")]
    System(#[from] std::io::Error),
}

/// Runs a server until it is told to stop.
pub fn main(args: &ServeArgs) -> ExitCode {
    match prepare(args) {
        Ok(prepared) => prepared.run(),
        Err(refusal) => refused(&refusal),
    }
}

fn refused(refusal: &Refusal) -> ExitCode {
    eprintln!("beanpole: {refusal}");
    ExitCode::from(EXIT_REFUSED)
}

/// Everything that can be refused before a runtime exists.
struct Prepared {
    settings: Settings,
    clients: Bound,
    admin: Option<Bound>,
    peers: Option<Bound>,
}

fn prepare(args: &ServeArgs) -> Result<Prepared, Refusal> {
    let mut settings = Settings::load(args)?;
    logging::init(settings.log_level, settings.log_format);
    let files = raise_file_limit();
    settings.connections.total = connections_of(settings.connections.total, files);
    set_oom_score(settings.oom_score_adj);
    let clients = net::bind(&settings.listen, "listen")?;
    let admin = settings.admin_listen.as_ref().map(|at| net::bind(at, "admin-listen")).transpose()?;
    let peers =
        settings.peering.as_ref().map(|peering| net::bind(&peering.listen, "peer-listen")).transpose()?;
    Ok(Prepared { settings, clients, admin, peers })
}

/// Every client is a file descriptor: takes as many as we may, and answers how many that are.
fn raise_file_limit() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return u64::MAX };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(soft, hard, %error, "cannot raise the limit on open files");
            soft
        }
    }
}

/// How many clients there may be with so many open files: segments, peers and operators need some as well. `asked`: by the
/// settings, or 0.
fn connections_of(asked: usize, files: u64) -> usize {
    let most = usize::try_from(files / 4 * 3).unwrap_or(usize::MAX).max(CONNECTIONS_MIN);
    if asked > most {
        tracing::warn!(
            asked,
            most,
            files,
            "max-connections is more than the limit on open files allows (ulimit -n)"
        );
    }
    if asked == 0 { most } else { asked.min(most) }
}

/// How readily the kernel kills this process, if the settings say so.
fn set_oom_score(value: Option<i16>) {
    let Some(value) = value else { return };
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", value.to_string()) {
        tracing::warn!(value, %error, "cannot set oom-score-adj; lowering it needs CAP_SYS_RESOURCE");
    }
}

impl Prepared {
    fn run(self) -> ExitCode {
        // This is the thread that serves.
        beanpole_raft::take_short_turns();
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(e) => return refused(&e.into()),
        };
        let code = match runtime.block_on(self.serve()) {
            Ok(code) => code,
            Err(refusal) => refused(&refusal),
        };
        // A cold read that hangs on a broken disk must not hold up the end.
        runtime.shutdown_background();
        code
    }

    async fn serve(self) -> Result<ExitCode, Refusal> {
        let Prepared { settings, clients, admin, peers } = self;
        let mut ending = Ending::listen()?;
        let facts = ProcessFacts::gather(settings.max_job_size, settings.segment_size);
        let clocks = Clocks::new(Box::new(SystemTimeSource::default()));
        let gateway = Gateway::new(settings.node_id, clocks, Box::new(NoBodies), Box::new(facts.clone()));
        let shared = Shared::new(gateway);
        shared.set_addresses(Addresses {
            listen: clients.address(),
            admin: admin.as_ref().map_or_else(String::new, Bound::address),
            started_ms: unix_ms(),
        });
        shared.door.set_limits(settings.connections);
        admission::watch(&shared, settings.memory_limit)?;
        tracing::info!(
            clients = clients.address(),
            admin = admin.as_ref().map(Bound::address),
            peers = peers.as_ref().map(Bound::address),
            data_dir = %settings.data_dir.display(),
            version = env!("CARGO_PKG_VERSION"),
            "listening"
        );
        signals::drain_on_usr1(shared.clone())?;
        let listener = clients.into_listener()?;
        let accepting = tokio::spawn(net::serve_connections(listener, shared.clone(), settings.max_job_size));
        tokio::spawn(reply(shared.clone()));
        let started = std::time::Instant::now();
        let options = options(&settings, peers, shared.admission.memory().reading.budget)?;
        let opening = options.opening.clone();
        let admin = admin::Admin::start(admin, shared.clone(), opening.clone())?;
        let clustered = options.peering.is_some();
        let node = tokio::select! {
            node = Node::start(options, Machine::new(shared.clone())) => node?,
            never = tell_progress(&opening, started) => match never {},
            () = ending.asked() => return Ok(ExitCode::SUCCESS),
        };
        let jobs = shared.gateway.lock().engine().totals().held();
        tracing::info!(jobs, ms = started.elapsed().as_millis() as u64, "the log is open");
        facts.set_node(node.clone());
        tokio::spawn(hold_scrub(shared.clone(), node.clone()));
        admission::watch_alarms(&shared, node.clone())?;
        admin.set_node(node.clone());
        let working = if clustered {
            tokio::spawn(take_part(shared.clone(), node.clone(), may_stay_awake()))
        } else {
            tokio::spawn(take_office(shared.clone(), node.clone(), started))
        };

        let code = tokio::select! {
            fatal = node.fatal() => storage_failed(&fatal),
            () = ending.asked() => {
                admin.set_stopping();
                accepting.abort();
                finish(&shared, &node, clustered, &mut ending).await
            }
        };
        working.abort();
        Ok(code)
    }
}

/// Tells in the log how far a start is that takes long. Never ends.
async fn tell_progress(opening: &Opening, started: std::time::Instant) -> Infallible {
    loop {
        tokio::time::sleep(TELL_PROGRESS_EVERY).await;
        tracing::info!(at = %opening.step(), ms = started.elapsed().as_millis() as u64, "starting");
    }
}

/// Milliseconds since the Unix epoch, for people.
fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// `budget`: memory that may be used, in bytes; 0 if that is not known.
fn options(settings: &Settings, peers: Option<Bound>, budget: u64) -> std::io::Result<Options> {
    let mut options = Options::new(&settings.data_dir);
    if budget > 0 {
        let part = |of: u64| usize::try_from(budget / of).unwrap_or(usize::MAX);
        options.ring_bytes = part(RING_PART).clamp(RING_BYTES_MIN, options.ring_bytes);
        options.max_inflight_bytes =
            part(INFLIGHT_PART).clamp(INFLIGHT_BYTES_MIN, options.max_inflight_bytes);
    }
    options.node_id = u64::from(settings.node_id);
    if let (Some(peering), Some(Bound::Tcp(listener))) = (&settings.peering, peers) {
        let own = peering.peers.get(&u64::from(settings.node_id));
        options.peering = Some(Peering {
            net: Arc::new(TcpNet::from_std(listener)?),
            address: own.cloned().unwrap_or_else(|| peering.listen.to_string()),
            peers: peering.peers.clone(),
        });
    }
    options.body_check = Some(is_intact);
    options.scrub_bytes_per_s = settings.scrub_rate;
    options.segment_bytes = settings.segment_size;
    options.snapshot_log_bytes = settings.snapshot_every;
    options.log_retention_bytes = settings.log_retention;
    Ok(options)
}

/// Does a member's part in a cluster of several nodes. `stays_awake`: see [`may_stay_awake`].
pub(crate) async fn take_part(shared: Arc<Shared>, node: Node, stays_awake: bool) {
    {
        let mut gateway = shared.gateway.lock();
        gateway.join_cluster();
        gateway.begin(rand::random());
    }
    tokio::join!(cluster::run(shared.clone(), node.clone()), pump(shared, node, stays_awake));
}

/// Looking for damage waits while memory is short.
async fn hold_scrub(shared: Arc<Shared>, node: Node) {
    let mut stance = shared.admission.watch_own();
    loop {
        node.hold_scrub(stance.borrow_and_update().state != State::Open);
        if stance.changed().await.is_err() {
            return;
        }
    }
}

/// Waits for the log, announces the gateway, and proposes batches from then on.
async fn take_office(shared: Arc<Shared>, node: Node, started: std::time::Instant) {
    if node.ready().await.is_err() {
        return;
    }
    let status = node.status();
    shared.gateway.lock().begin(rand::random());
    shared.take_office(status.term);
    let jobs = shared.gateway.lock().engine().totals().held();
    tracing::info!(
        node = status.node_id,
        term = status.term,
        jobs,
        last_index = status.last_index,
        ms = started.elapsed().as_millis() as u64,
        "serving"
    );
    pump(shared, node, may_stay_awake()).await;
}

/// Hands over, lets the clients go, waits for what is under way and its replies, and closes the log.
async fn finish(shared: &Shared, node: &Node, clustered: bool, ending: &mut Ending) -> ExitCode {
    tracing::info!("stopping: finishing what is under way");
    tokio::select! {
        settled = tokio::time::timeout(SETTLE_MAX, wind_up(shared, node, clustered)) => match settled {
            Ok(()) => tracing::info!("stopped"),
            Err(_) => tracing::warn!("stopped with replies that a client did not read"),
        },
        () = ending.asked_again() => tracing::warn!("stopped at once, as asked again"),
    }
    ExitCode::SUCCESS
}

/// What an orderly end consists of, in its order. A caller that has waited for [`SETTLE_MAX`] ends the process anyway.
pub(crate) async fn wind_up(shared: &Shared, node: &Node, clustered: bool) {
    if clustered {
        hand_over(node).await;
    }
    let_go(shared).await;
    {
        let mut gateway = shared.gateway.lock();
        gateway.stop();
        shared.wake_for(&gateway);
    }
    settle(shared).await;
    if clustered {
        {
            let mut gateway = shared.gateway.lock();
            gateway.part();
            gateway.flush(usize::MAX);
            gateway.retire();
            shared.wake_for(&gateway);
        }
        settle(shared).await;
    }
    node.shutdown().await;
}

/// Closes clients' connections between two commands, as far as that is soon done.
async fn let_go(shared: &Shared) {
    {
        let mut gateway = shared.gateway.lock();
        gateway.let_go(LET_GO_WITHIN_US);
        shared.wake_for(&gateway);
    }
    let gone = async {
        while shared.gateway.lock().connections() > 0 {
            tokio::time::sleep(SETTLE_POLL).await;
        }
    };
    // Those that are left do not read what they are owed, or go on sending.
    tokio::time::timeout(LET_GO_MAX, gone).await.ok();
}

async fn settle(shared: &Shared) {
    while !shared.gateway.lock().is_settled() {
        tokio::time::sleep(SETTLE_POLL).await;
    }
}

/// Another node leads before this one stops, so that clients of the others hardly notice.
async fn hand_over(node: &Node) {
    let status = node.status();
    if status.leader != Some(status.node_id) || status.voters.len() < 2 {
        return;
    }
    match node.transfer_leader(None).await {
        Ok(leader) => tracing::info!(leader, "another node leads now"),
        Err(error) => {
            tracing::warn!(%error, "no other node took over before this one stops; they will elect one")
        }
    }
}

/// What is not fsynced is not acknowledged; nothing more can be promised, so the process ends.
fn storage_failed(fatal: &Fatal) -> ExitCode {
    tracing::error!(%fatal, "storage failed; nothing was acknowledged that is not on disk");
    eprintln!("beanpole: {fatal}");
    ExitCode::from(EXIT_FAILED)
}

/// Stands in until the log is open; no body can be asked for before that.
pub(crate) struct NoBodies;

impl BodySource for NoBodies {
    fn read_now(&self, addr: BodyAddr, _out: &mut BytesMut) -> Result<bool, BodyError> {
        Err(BodyError::Unknown(addr))
    }
    fn retain(&self, _addr: BodyAddr) {}
    fn release(&self, _addr: BodyAddr) {}
    fn no_space(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_files_for_the_rest() {
        assert_eq!(connections_of(0, 1024), 768);
        assert_eq!(connections_of(5000, 1024), 768);
        assert_eq!(connections_of(100, 1024), 100);
        assert_eq!(connections_of(0, 10), CONNECTIONS_MIN);
    }
}
