//! A member of a cluster without a process: what `serve` starts, over a disk, a network and clocks that the caller brings, with
//! clients that connect within the process. Whole clusters fit into one thread that way.
//!
//! ```text
//!   caller ── connect ──► connection task ─► gateway ─► leader ─► log ─► disk and network of the caller
//!      ◄── witness ─────────────── every entry as it applies ◄──────────┘
//! ```

use std::sync::Arc;

use beanpole_protocol::stats::ServerStats;
use beanpole_raft::{
    Bodies, BodyAddr, Fatal, Node, Options, Payload, SnapshotImage, StartError, StateMachine,
};
use parking_lot::Mutex;
use tokio::task::AbortHandle;

pub use crate::clock::TimeSource;
pub use crate::net::memory::{Client, Probe};

use crate::clock::Clocks;
use crate::cluster::report::Addresses;
use crate::gateway::{Facts, Gateway, is_intact};
use crate::net::{self, memory};
use crate::node::{Machine, Shared, reply};
use crate::serve::{NoBodies, SETTLE_MAX, take_part, wind_up};

/// Learns what a node does.
pub trait Witness: Send + Sync + 'static {
    /// The node's state is now that after entry `index`: the entry was applied, or a snapshot of that index restored. `history`
    /// is the hash of everything that entries have done up to there.
    fn state(&self, index: u64, history: u64);
}

/// What a node is made of.
pub struct Parts {
    /// The log's settings, with disk, network and peers.
    pub options: Options,
    /// The node's clocks.
    pub time: Box<dyn TimeSource>,
    /// Who looks on.
    pub witness: Arc<dyn Witness>,
    /// The longest body that clients may put, in bytes.
    pub max_job_size: u32,
}

/// A running node. Dropping it ends it as a crash of its process does.
pub struct Embedded {
    shared: Arc<Shared>,
    node: Node,
    tasks: [AbortHandle; 2],
    max_job_size: u32,
    clients: Mutex<Vec<memory::Breaker>>,
}

impl Embedded {
    /// Starts a node; it looks for its peers, forms or joins the cluster and serves clients by itself.
    ///
    /// # Errors
    /// See [`StartError`].
    ///
    /// # Panics
    /// When the node's number does not fit 32 bits.
    pub async fn start(parts: Parts) -> Result<Self, StartError> {
        let Parts { mut options, time, witness, max_job_size } = parts;
        options.body_check = Some(is_intact);
        let id = u32::try_from(options.node_id).expect("a node's number fits 32 bits");
        let gateway = Gateway::new(id, Clocks::new(time), Box::new(NoBodies), Box::new(Nothing));
        let shared = Shared::new(gateway);
        shared.set_addresses(Addresses::default());
        let replies = tokio::spawn(reply(shared.clone())).abort_handle();
        let machine = Watched { machine: Machine::new(shared.clone()), shared: shared.clone(), witness };
        let node = Node::start(options, machine).await.inspect_err(|_| replies.abort())?;
        let part = tokio::spawn(take_part(shared.clone(), node.clone(), false)).abort_handle();
        Ok(Embedded { shared, node, tasks: [replies, part], max_job_size, clients: Mutex::default() })
    }

    /// A client connects; none while the node sends clients elsewhere.
    pub fn connect(&self) -> Option<Client> {
        if self.shared.gateway.lock().turns_away() {
            return None;
        }
        let (client, stream, breaker) = memory::connection();
        let mut clients = self.clients.lock();
        clients.retain(|client| !client.is_over());
        clients.push(breaker);
        net::serve_client(net::Stream::Memory(stream), None, None, &self.shared, self.max_job_size);
        Some(client)
    }

    /// The log under it.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Whether commands are answered now.
    pub fn is_ready(&self) -> bool {
        self.shared.gateway.lock().is_ready()
    }

    /// The highest index applied, jobs that the state holds, and the hash of all history.
    pub fn state(&self) -> (u64, u64, u64) {
        let gateway = self.shared.gateway.lock();
        let engine = gateway.engine();
        (engine.applied(), engine.totals().held(), engine.history())
    }

    /// Resolves when the node can no longer work: its process would end.
    pub async fn fatal(&self) -> Fatal {
        self.node.fatal().await
    }

    /// Ends in an orderly way: hands over, lets clients go, finishes what is under way, as the end of a process does that was
    /// asked to stop.
    pub async fn stop(&self) {
        tokio::time::timeout(SETTLE_MAX, wind_up(&self.shared, &self.node, true)).await.ok();
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        for client in &*self.clients.lock() {
            client.break_now();
        }
    }
}

/// There is no process to tell of.
pub(crate) struct Nothing;

impl Facts for Nothing {
    fn fill<'a>(&'a self, stats: &mut ServerStats<'a>) {
        stats.version = env!("CARGO_PKG_VERSION");
    }

    fn memory_bytes(&self) -> u64 {
        0
    }
}

/// The machine, with somebody who looks on.
struct Watched {
    machine: Machine,
    shared: Arc<Shared>,
    witness: Arc<dyn Witness>,
}

impl Watched {
    fn tell(&self, index: u64) {
        let history = self.shared.gateway.lock().engine().history();
        self.witness.state(index, history);
    }
}

impl StateMachine for Watched {
    fn attach(&mut self, bodies: Bodies) {
        self.machine.attach(bodies);
    }

    fn term_began(&mut self, term: u64) {
        self.machine.term_began(term);
    }

    fn apply(&mut self, index: u64, payload: &Payload) {
        self.machine.apply(index, payload);
        self.tell(index);
    }

    fn applied(&mut self, index: u64) {
        self.machine.applied(index);
    }

    fn snapshot(&mut self) -> Box<dyn SnapshotImage> {
        self.machine.snapshot()
    }

    fn restore(&mut self, index: u64, image: &mut dyn std::io::Read) -> std::io::Result<()> {
        self.machine.restore(index, image)?;
        // The state may be of an earlier entry: blank and membership entries are not the engine's.
        let applied = self.shared.gateway.lock().engine().applied();
        self.tell(applied);
        Ok(())
    }

    fn brought_forward(&mut self, index: u64) {
        self.machine.brought_forward(index);
    }

    fn for_each_live(&self, f: &mut dyn FnMut(BodyAddr)) {
        self.machine.for_each_live(f);
    }
}
