//! A durable replicated log: segments, snapshots, consensus. Knows no tube and no job.
//!
//! ```text
//! Node ── propose ──> openraft ── Store ──> Log ── queue ──> flush thread ──> segments
//!   │                    └── Machine ──> StateMachine (the caller's)   ^           │
//!   └── Bodies ── read ──> ring of recent entries, or segment map ─────┴───────────┘
//! keeper: snapshot by bytes of log ──> purge ──> dead segments unlinked, sparse ones rewritten
//! ```
//!
//! The log is the database: a payload lies once, in its segment; the state machine keeps addresses of bodies
//! ([`BodyAddr`]) and says which are still referenced ([`Bodies::retain`]). A node is a lone voter or, with
//! [`Peering`], a member of a cluster that forms by itself. No type of the consensus library is visible from
//! outside, in a file, or on the wire.
//!
//! ```text
//! openraft ─ network ─> peer (a line each) ─┐                 ┌─> serve ─> openraft
//!                                   hello ──┴── frame ── net ─┤
//! Link ─────────────────────────────────────┘                 └─> Link
//! forming: a new cluster    members, changes: who belongs to it    peers: whom this node remembers
//! ```

mod append;
pub mod backup;
mod bodies;
mod body_segment;
mod campaign;
mod census;
mod changes;
mod cluster;
mod compact;
mod completion;
mod damage;
mod disk;
mod error;
mod flush;
mod format;
mod forming;
mod forward;
mod frame;
mod handover;
mod hello;
mod identity;
pub mod inspect;
mod keeper;
mod leadership;
mod link;
mod log;
mod machine;
mod members;
mod message;
mod net;
mod network;
mod node;
mod offline;
mod open;
mod opening;
mod options;
mod output;
mod payload;
mod peer;
mod peers;
mod pieces;
mod prepare;
mod progress;
mod proposal;
mod recover;
mod repair;
pub mod rescue;
mod ring;
mod scan;
mod scrub;
mod segment;
mod serve;
mod sim;
mod snapshot;
mod space;
mod spare;
mod state;
mod store;
#[cfg(test)]
mod tests;
mod transfer;
mod turns;
mod types;

pub use bodies::{Bodies, DiskUsage};
pub use damage::{BodyCheck, DamageTotals};
pub use disk::{Access, Disk, DiskFile, DiskLock, DiskMap, DiskSpace, FaultDisk, RealDisk};
pub use error::{
    BodyError, Corruption, Fatal, LinkClosed, LinkError, MembershipError, NotProposed, ReadError,
    SnapshotError, StartError, TransferError,
};
pub use leadership::Leadership;
pub use link::{Link, LinkReceiver, LinkSender};
pub use net::{Net, TcpNet, Wire};
pub use node::{LogMemory, Node, Role, Status};
pub use opening::{Opening, OpeningStep};
pub use options::{Options, Peering};
pub use payload::{BodyAddr, Payload};
pub use progress::MemberStatus;
pub use proposal::{Outcome, Proposal};
pub use scrub::ScrubStatus;
pub use sim::{SimHub, SimNet};
pub use space::Space;
pub use state::{SnapshotImage, StateMachine};
pub use turns::take_short_turns;
