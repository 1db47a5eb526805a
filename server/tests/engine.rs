//! The queue engine, driven without log, clock or network: stories told as scripts, random histories against
//! a naive model, and the state's image.

#[path = "engine/banned.rs"]
mod banned;
#[path = "engine/bulk.rs"]
mod bulk;
#[path = "engine/due.rs"]
mod due;
#[path = "engine/entries.rs"]
mod entries;
#[path = "engine/format.rs"]
mod format;
#[path = "engine/late.rs"]
mod late;
#[path = "engine/model.rs"]
mod model;
#[path = "engine/policies.rs"]
mod policies;
#[path = "engine/random.rs"]
mod random;
#[path = "engine/scripts.rs"]
mod scripts;
#[path = "engine/snapshots.rs"]
mod snapshots;
