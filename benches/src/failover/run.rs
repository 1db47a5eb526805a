//! One run: load on all nodes while the plan of faults is carried out, a drain, and the account.
//!
//! ```text
//!   0                                          duration                 all jobs settled, or grace over
//!   ├── producers, workers, holders, faults ──────┼── workers drain ────────┤ over
//! ```

use super::account::Account;
use super::args::{FailoverArgs, NodeAddress};
use super::clients::{Client, Log, Role};
use super::dev::Dev;
use super::faults::{self, Events};
use super::hand;
use super::report::{Outcome, Report};
use super::wire::Wire;
use crate::environment::random_id;
use beanpole_protocol::Command;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a node may take to answer before the run begins.
const REACH_LIMIT: Duration = Duration::from_secs(10);
/// How often the drain is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// The drain ends when nothing was handed out for this long, so that what was doubled comes to light.
const QUIET_NS: u64 = 500_000_000;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The arguments make no sense together.
    #[error("{0}")]
    Usage(String),
    /// The local cluster did not come up.
    #[error("{0}")]
    Dev(std::io::Error),
    /// A node cannot be reached before anything went wrong.
    #[error("node {name} at {address} does not answer: {source}")]
    Unreachable {
        /// The node.
        name: String,
        /// Its address.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What all threads of a run share.
pub struct Shared {
    /// What was asked for.
    pub settings: FailoverArgs,
    /// A number no other run has: in every body and in the tube's name.
    pub run: u64,
    /// The run's own tube.
    pub tube: String,
    /// The nodes under load.
    pub nodes: Vec<NodeAddress>,
    /// The fate of every job.
    pub account: Mutex<Account>,
    /// What went wrong.
    pub events: Mutex<Events>,
    started: Instant,
    draining: AtomicBool,
    over: AtomicBool,
}

impl Shared {
    fn new(settings: &FailoverArgs, nodes: Vec<NodeAddress>) -> Shared {
        let run = random_id();
        Shared {
            settings: settings.clone(),
            run,
            tube: format!("failover-{run:016x}"),
            nodes,
            account: Mutex::new(Account::new(settings.producers as usize, settings.ttr)),
            events: Mutex::new(Events::default()),
            started: Instant::now(),
            draining: AtomicBool::new(false),
            over: AtomicBool::new(false),
        }
    }

    /// Nanoseconds since the beginning of the load.
    pub fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// No more jobs are put; those that are there are worked off.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Everybody goes home.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

/// Carries out one run.
pub fn measure(args: &FailoverArgs) -> Result<Report, RunError> {
    check(args)?;
    let mut dev = if args.dev { Some(Dev::start(args).map_err(RunError::Dev)?) } else { None };
    let nodes = match &dev {
        Some(dev) => dev.addresses().map_err(RunError::Dev)?,
        None => args.nodes.clone(),
    };
    nodes.iter().try_for_each(reach)?;
    let shared = Shared::new(args, nodes);
    let outcome = load(&shared, dev.as_ref());
    let states = dev.as_ref().map(Dev::compare);
    let report = Report::new(&shared, &outcome, states, dev.as_ref().map(Dev::log));
    if let Some(dev) = &mut dev
        && !report.ok
    {
        dev.keep();
    }
    Ok(report)
}

fn check(args: &FailoverArgs) -> Result<(), RunError> {
    for fault in &args.faults {
        if fault.at >= args.duration {
            let (at, duration) = (fault.at, args.duration);
            return Err(RunError::Usage(format!("a fault at {at:?} is not within --duration {duration:?}")));
        }
        if fault.target.needs_dev() && !args.dev {
            let target = &fault.target;
            return Err(RunError::Usage(format!("who is {target}? Only --dev knows; give a pid, or --dev")));
        }
        if let Some(name) = &fault.node
            && !args.dev
            && !args.nodes.iter().any(|node| node.name == *name)
        {
            return Err(RunError::Usage(format!("no node is called {name}; see --nodes")));
        }
    }
    Ok(())
}

fn reach(node: &NodeAddress) -> Result<(), RunError> {
    let asked = Wire::open(&node.address, REACH_LIMIT)
        .and_then(|mut wire| wire.ask(&Command::ListTubeUsed, REACH_LIMIT));
    asked.map(|_| ()).map_err(|source| RunError::Unreachable {
        name: node.name.clone(),
        address: node.address.clone(),
        source,
    })
}

fn load(shared: &Shared, dev: Option<&Dev>) -> Outcome {
    std::thread::scope(|scope| {
        let clients: Vec<_> = roles(&shared.settings)
            .into_iter()
            .enumerate()
            .map(|(number, (role, turn))| {
                let client = Client::new(shared, number, role, turn % shared.nodes.len());
                scope.spawn(move || client.run())
            })
            .collect();
        scope.spawn(move || hand::carry_out(shared, dev));
        scope.spawn(|| faults::watch(shared));
        std::thread::sleep(shared.settings.duration);
        let load_ns = shared.now_ns();
        shared.draining.store(true, Ordering::Relaxed);
        let drained = drain(shared);
        let drain_ns = shared.now_ns() - load_ns;
        shared.over.store(true, Ordering::Relaxed);
        let logs: Vec<Log> =
            clients.into_iter().map(|c| c.join().expect("a client does not panic")).collect();
        Outcome { logs, load_ns, drain_ns, drained }
    })
}

/// The roles of all clients, with each one's number within its role: that decides its first node.
fn roles(settings: &FailoverArgs) -> Vec<(Role, usize)> {
    let worker = Role::Work { hold: settings.hold, counted: true };
    let holder = Role::Work { hold: settings.hold_long, counted: false };
    let producers = (0..settings.producers as usize).map(|n| (Role::Produce { producer: n }, n));
    let workers = (0..settings.workers as usize).map(|n| (worker, n));
    let holders = (0..settings.holders as usize).map(|n| (holder, n));
    producers.chain(workers).chain(holders).collect()
}

/// Waits until every acknowledged job is settled and nothing comes any more; false when the time is over before.
fn drain(shared: &Shared) -> bool {
    let begun = shared.now_ns();
    let deadline = begun + shared.settings.grace.as_nanos() as u64;
    loop {
        let now = shared.now_ns();
        let (open, last) = {
            let account = shared.account.lock();
            (account.open(), account.last_handout_ns())
        };
        if open == 0 && now.saturating_sub(last.max(begun)) >= QUIET_NS {
            return true;
        }
        if now >= deadline {
            return open == 0;
        }
        std::thread::sleep(LOOK);
    }
}
