//! What entries may hold: a number in the state that rises once all members know what it stands for.
//!
//! | level | entries may hold | what applies differently |
//! |---|---|---|
//! | 0 | commands 1 to 20 | – |
//! | 1 | bulk operations, policies, puts with a key | a put counts its hops |
//!
//! While nodes of different releases are members, all of them must do the same with the same entry. So a node proposes
//! nothing that a level below the replicated one does not have, and the leader raises the level when every member has
//! told that it knows the next. A member that comes with an older release afterwards stops at the first such entry and
//! says that it must be upgraded.

use super::engine::Engine;

/// The highest level that this release knows.
pub const LEVEL: u32 = 1;

impl Engine {
    /// The level in force.
    #[must_use]
    pub fn level(&self) -> u32 {
        self.level
    }

    /// It never falls: a leader that did not know of the last rise proposes it once more, without effect.
    pub(super) fn raise_level(&mut self, level: u32) {
        self.level = self.level.max(level);
    }
}
