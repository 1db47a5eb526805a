//! Tests that reach inside: the storage suite of openraft, damaged segments, power cuts, disk use; and clusters
//! on a network in memory.

mod amnesia;
mod backup;
mod cluster_rig;
mod compaction;
mod cuts;
mod damage;
mod disk_use;
mod failover;
mod failures;
mod flips;
mod forming;
mod handover;
mod links;
mod machine;
mod membership;
mod opening;
mod power;
mod repair;
mod rescue;
mod restart;
mod reuse;
mod rig;
mod steps;
mod suite;
mod tcp;
mod transfer;
mod transfer_rig;
