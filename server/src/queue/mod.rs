//! The queue engine: tubes and jobs as a deterministic function of the log.
//!
//! ```text
//!                 ┌──────────────────────────── Engine ────────────────────────────┐
//!   entry ──────► │ decode ► due transitions ► commands ► offers                   │ ──► Effects
//!  (index,        │             │                  │         │                     │     outcomes, hand-outs,
//!   stamp, lease) │             └──── tubes, jobs, holders, gateways ──────────────│     bodies kept and let go
//!                 └────────────────────────────────────────────────────────────────┘
//! ```
//!
//! State and entry decide everything: there is no clock, no IO, no randomness, no float and no order of a
//! hash table in here (a test scans this directory for them). Two nodes that applied the same entries have
//! the same state, and write the same bytes as its image.
//!
//! - `batch`, `decode`: the entry's format; `outline`: what a leader reads of a batch before it is applied
//! - `types`: what callers see
//! - `engine`: the state, and how an entry runs; `commands`, `due`, `offers`, `gateways`: its parts; `moves`:
//!   a job from one state to another
//! - `reads`: looking at the state; `history`: a hash of all that was done, to compare nodes by
//! - `policy`: limits and rules of tubes
//! - `once`: puts with a key
//! - `bulk`: operations on many jobs, a slice with each entry; `level`: what all members know to apply
//! - `snapshot`, `kept`, `image`, `annex`, `restore`, `fields`: the state as bytes
//! - `verify`: whether it is sound
//! - `jobs`, `tubes`, `reserved`: what is kept; `slab`, `runs`, `names`: in what

mod annex;
mod batch;
mod bulk;
mod commands;
mod decode;
mod due;
mod engine;
mod fields;
mod gateways;
mod history;
mod image;
mod jobs;
mod kept;
mod level;
mod moves;
mod names;
mod offers;
mod once;
mod outline;
mod policy;
mod reads;
mod record;
mod reserved;
mod restore;
mod runs;
mod slab;
mod snapshot;
mod tubes;
mod types;
mod verify;

pub use batch::{BATCH_VERSION, BODY_OVERHEAD, BatchBuilder};
pub use bulk::{BULKS_MAX, BulkCount, BulkOrder, BulkVerb, BulkView, States};
pub use decode::DecodeError;
pub use engine::Engine;
pub use image::IMAGE_VERSION;
pub use level::LEVEL;
pub use once::{ONCE_KEYS, ONCE_KEYS_MAX, ONCE_WINDOW_US};
pub use outline::{Item, outline};
pub use policy::{Derived, LateTube, POLICIES_MAX, Policy, Reason, Tally};
pub use snapshot::SnapshotCursor;
pub use types::{
    Due, Effects, Gateway, GatewayUp, Handout, JobState, JobView, Mark, Outcome, Refused, RefusedWhy,
    SessionId, Totals, TubeView, URGENT_BELOW,
};
