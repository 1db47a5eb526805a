//! `beanpole serve`: from settings to a running node, and its orderly end.
//!
//! The order matters. The ports are bound first, so that a taken one is reported before the data directory is touched;
//! connections are accepted from then on, and their commands wait until the log has been recovered.

mod facts;
mod logging;
mod signals;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use beanpole_raft::{BodyAddr, BodyError, Fatal, Node, Options, StartError};
use bytes::BytesMut;

use crate::admin;
use crate::clock::{Clocks, SystemTimeSource};
use crate::config::{ConfigError, ServeArgs, Settings};
use crate::gateway::{BodySource, Gateway};
use crate::net::{self, BindError, Bound};
use crate::node::{Machine, Shared, pump, reply};
pub use facts::ProcessFacts;
use signals::Ending;

/// The number of a node that is a cluster by itself.
const NODE_ID: u32 = 1;
/// How long a stopping server waits for what is under way. Replies that a client does not read are not waited for longer.
const SETTLE_MAX: Duration = Duration::from_millis(700);
/// How often a stopping server looks whether it has settled.
const SETTLE_POLL: Duration = Duration::from_millis(2);

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
}

fn prepare(args: &ServeArgs) -> Result<Prepared, Refusal> {
    let settings = Settings::load(args)?;
    logging::init(settings.log_level, settings.log_format);
    raise_file_limit();
    let clients = net::bind(&settings.listen, "listen")?;
    let admin = settings.admin_listen.as_ref().map(|at| net::bind(at, "admin-listen")).transpose()?;
    Ok(Prepared { settings, clients, admin })
}

/// Every client is a file descriptor: take as many as we may.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

impl Prepared {
    fn run(self) -> ExitCode {
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
        let Prepared { settings, clients, admin } = self;
        let mut ending = Ending::listen()?;
        let facts = ProcessFacts::gather(settings.max_job_size, settings.segment_size);
        let clocks = Clocks::new(Box::new(SystemTimeSource::default()));
        let shared = Shared::new(Gateway::new(NODE_ID, clocks, Box::new(NoBodies), Box::new(facts.clone())));
        tracing::info!(
            clients = clients.address(),
            admin = admin.as_ref().map(Bound::address),
            data_dir = %settings.data_dir.display(),
            version = env!("CARGO_PKG_VERSION"),
            "listening"
        );
        signals::drain_on_usr1(shared.clone())?;
        let listener = clients.into_listener()?;
        let accepting = tokio::spawn(net::serve_connections(listener, shared.clone(), settings.max_job_size));
        tokio::spawn(reply(shared.clone()));
        let admin = admin::Admin::start(admin, shared.clone())?;

        let started = std::time::Instant::now();
        let node = tokio::select! {
            node = Node::start(options(&settings), Machine::new(shared.clone())) => node?,
            () = ending.asked() => return Ok(ExitCode::SUCCESS),
        };
        facts.set_node(node.clone());
        admin.set_node(node.clone());
        let pumping = tokio::spawn(take_office(shared.clone(), node.clone(), started));

        let code = tokio::select! {
            fatal = node.fatal() => storage_failed(&fatal),
            () = ending.asked() => {
                admin.set_stopping();
                accepting.abort();
                finish(&shared, &node, &mut ending).await
            }
        };
        pumping.abort();
        Ok(code)
    }
}

fn options(settings: &Settings) -> Options {
    let mut options = Options::new(&settings.data_dir);
    options.node_id = u64::from(NODE_ID);
    options.segment_bytes = settings.segment_size;
    options.snapshot_log_bytes = settings.snapshot_every;
    options.log_retention_bytes = settings.log_retention;
    options
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
    pump(shared, node).await;
}

/// Takes no more commands, waits for those under way and their replies, and closes the log.
async fn finish(shared: &Shared, node: &Node, ending: &mut Ending) -> ExitCode {
    tracing::info!("stopping: finishing what is under way");
    shared.gateway.lock().stop();
    shared.wake_pump();
    let settled = async {
        while !shared.gateway.lock().is_settled() {
            tokio::time::sleep(SETTLE_POLL).await;
        }
        node.shutdown().await;
    };
    tokio::select! {
        settled = tokio::time::timeout(SETTLE_MAX, settled) => match settled {
            Ok(()) => tracing::info!("stopped"),
            Err(_) => tracing::warn!("stopped with replies that a client did not read"),
        },
        () = ending.asked_again() => tracing::warn!("stopped at once, as asked again"),
    }
    ExitCode::SUCCESS
}

/// What is not fsynced is not acknowledged; nothing more can be promised, so the process ends.
fn storage_failed(fatal: &Fatal) -> ExitCode {
    tracing::error!(%fatal, "storage failed; nothing was acknowledged that is not on disk");
    eprintln!("beanpole: {fatal}");
    ExitCode::from(EXIT_FAILED)
}

/// Stands in until the log is open; no body can be asked for before that.
struct NoBodies;

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
