//! Tests that reach inside: the storage suite of openraft, damaged segments, power cuts, disk use.

mod damage;
mod disk_use;
mod failures;
mod machine;
mod power;
mod restart;
mod rig;
mod suite;
