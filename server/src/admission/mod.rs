//! Pressure becomes a clear answer to `put` before it becomes an OOM kill.
//!
//! ```text
//!   limits (cgroups up the tree, the machine, --memory-limit)      bounds
//!        │  what cannot be taken back, against each of them
//!        ▼
//!   Reading ──► Gate ──► Stance: open, shedding (puts are slowed), closed (puts are refused)
//!   own node     │          │
//!                │          ├─ in the node's report ──► leader: the worst of all voters ──► every gateway
//!                │          └─ this node's gateway, at once
//!                └─ one line in the log and one event for each change
//! ```
//!
//! Only `put` is ever slowed or refused: what empties the queue works from the reserve that the gate keeps free. Nothing is
//! refused in apply, and the engine knows nothing of all this. Resident memory is no signal, because mapped segments fill
//! whatever there is; what counts is memory that the kernel cannot take back.
//!
//! - `gate`: from readings to a stance, a pure state machine
//! - `bounds`: what limits this process, and how much of it is used
//! - `sensor`: readings, one after the other, on a thread of their own
//! - `events`: what happened, for operators
//! - `alarms`: what is wrong until it is over, a pure state machine
//! - `conditions`: what they are raised for

pub mod alarms;
mod bounds;
mod conditions;
mod events;
mod gate;
mod sensor;

pub use alarms::{Alarm, Name as AlarmName, Severity};
pub use conditions::watch_alarms;
pub use events::{Event, Events};
pub use gate::{Stance, State};
pub use sensor::{Admission, Memory, Parts, watch};
