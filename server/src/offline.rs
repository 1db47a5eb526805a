//! The state of a node that does not run: what backups are checked and loaded with, and survivors recovered.

use beanpole_raft::StateMachine;

use crate::clock::{Clocks, SystemTimeSource};
use crate::embedded::Nothing;
use crate::gateway::Gateway;
use crate::node::{Machine, Shared};
use crate::serve::NoBodies;

/// A state that nobody serves clients from.
pub fn state(node: u32) -> Box<dyn StateMachine> {
    let clocks = Clocks::new(Box::new(SystemTimeSource::default()));
    let gateway = Gateway::new(node, clocks, Box::new(NoBodies), Box::new(Nothing));
    Box::new(Machine::new(Shared::new(gateway)))
}
