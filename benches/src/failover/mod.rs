//! `beanpole bench failover`: steady load on all nodes of a cluster while nodes die, and an account of every job.

pub mod admin;
pub mod dev_cluster;
