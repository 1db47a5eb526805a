//! Black-box tests of the whole server: real processes, real sockets, real disks.
//!
//! No test here uses Beanpole's own protocol or client crates; the programs of users in `bin/`, which are under test, do.
//! The text client in [`connection`] is an independent witness: a fault shared by our encoder and our decoder would be
//! invisible to a test that used both. The same suites run against Debian's `beanstalkd`, which is the oracle.
//!
//! ```text
//!   tests/wire*.rs, scripts/wire/   golden scripts    --> script
//!   tests/differential.rs           random lockstep   --> differential
//!   tests/crash.rs                  kill -9           --> crash
//!   tests/robustness.rs, ...        hostile clients   --> server, connection, procfs
//!   tests/cluster.rs                nodes that die    --> cluster
//!   tests/partition.rs              cut networks      --> failover
//!   tests/namespaces.rs             dropped packets   --> namespaces, failover
//!   tests/membership.rs             who belongs       --> cluster
//!   tests/clocks.rs                 clocks that jump  --> chaos, cluster
//!   tests/power_cut.rs              disks that forget --> forgetful_disk, cluster
//!   tests/pressure.rs               little memory     --> cgroup, flood, server, cluster
//!   tests/connections.rs            storms of clients --> server, cluster, operator, procfs
//!   tests/incidents_*.rs            known outages     --> incidents, server, operator
//!   tests/alarms.rs                 what is wrong     --> cluster, server, operator
//!   bin/chaos.rs                    random faults     --> chaos
//!   tests/sim.rs                    simulated time    --> sim
//!   tests/programs.rs               users' programs   --> program, cluster
//!   tests/words.rs                  the client's verbs --> operator, server
//! ```
//!
//! `README.md` of this crate says how each suite is run and what it needs.

pub mod admin;
pub mod cgroup;
pub mod chaos;
pub mod cluster;
pub mod connection;
pub mod crash;
pub mod differential;
pub mod extra;
pub mod failover;
pub mod flood;
pub mod forgetful_disk;
pub mod incidents;
pub mod namespaces;
pub mod operator;
pub mod procfs;
pub mod program;
pub mod script;
pub mod server;
pub mod sim;
pub mod wait;
