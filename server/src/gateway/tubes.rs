//! What this gateway's clients have to do with tubes: who uses, watches and waits.
//!
//! `use`, `watch` and `ignore` never enter the log; they live here, and commands carry the tube names they need. A tube
//! is remembered while a client uses or watches it; whether it holds jobs is the engine's business.

use std::collections::{BTreeMap, HashMap};

use super::session::ConnId;

/// A tube that some client uses or watches. Valid while it is referenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TubeRef(u32);

/// A place in the order of waiting reserves: lower waits longer.
pub type Ticket = u64;

/// One tube as this gateway's clients see it.
pub struct Tube {
    name: Box<str>,
    using: u32,
    watching: u32,
    /// Blocked reserves that watch this tube and are not offered to a batch, longest waiting first.
    waiting: BTreeMap<Ticket, ConnId>,
}

impl Tube {
    /// The tube's name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Clients whose `put` goes here.
    pub fn using(&self) -> u32 {
        self.using
    }
    /// Clients whose `reserve` looks here.
    pub fn watching(&self) -> u32 {
        self.watching
    }
    /// Clients blocked in a `reserve` that looks here.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

/// All tubes that this gateway's clients use or watch.
#[derive(Default)]
pub struct TubeTable {
    by_name: HashMap<Box<str>, TubeRef>,
    slots: Vec<Option<Tube>>,
    free: Vec<u32>,
}

impl TubeTable {
    fn get_or_insert(&mut self, name: &str) -> TubeRef {
        if let Some(tube) = self.by_name.get(name) {
            return *tube;
        }
        let tube = Tube { name: name.into(), using: 0, watching: 0, waiting: BTreeMap::new() };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                u32::try_from(self.slots.len() - 1).expect("each tube needs a client, and those are fewer")
            }
        };
        self.slots[slot as usize] = Some(tube);
        self.by_name.insert(name.into(), TubeRef(slot));
        TubeRef(slot)
    }

    /// The tube behind a reference that a session holds.
    pub fn get(&self, tube: TubeRef) -> &Tube {
        self.slots[tube.0 as usize].as_ref().expect("a referenced tube stays")
    }

    fn get_mut(&mut self, tube: TubeRef) -> &mut Tube {
        self.slots[tube.0 as usize].as_mut().expect("a referenced tube stays")
    }

    /// A tube by name, if any client uses or watches it.
    pub fn find(&self, name: &str) -> Option<TubeRef> {
        self.by_name.get(name).copied()
    }

    /// Counts a client that uses the tube from now on.
    pub fn add_using(&mut self, name: &str) -> TubeRef {
        let tube = self.get_or_insert(name);
        self.get_mut(tube).using += 1;
        tube
    }

    /// Counts a client that watches the tube from now on.
    pub fn add_watching(&mut self, name: &str) -> TubeRef {
        let tube = self.get_or_insert(name);
        self.get_mut(tube).watching += 1;
        tube
    }

    /// A client uses it no longer; answers the name if nobody uses or watches it now.
    pub fn drop_using(&mut self, tube: TubeRef) -> Option<Box<str>> {
        self.get_mut(tube).using -= 1;
        self.forget_if_unused(tube)
    }

    /// A client watches it no longer; answers the name if nobody uses or watches it now.
    pub fn drop_watching(&mut self, tube: TubeRef) -> Option<Box<str>> {
        self.get_mut(tube).watching -= 1;
        self.forget_if_unused(tube)
    }

    fn forget_if_unused(&mut self, tube: TubeRef) -> Option<Box<str>> {
        let entry = self.get(tube);
        if entry.using > 0 || entry.watching > 0 {
            return None;
        }
        debug_assert!(entry.waiting.is_empty(), "who waits also watches");
        let entry = self.slots[tube.0 as usize].take().expect("it was there a line ago");
        self.by_name.remove(&entry.name);
        self.free.push(tube.0);
        Some(entry.name)
    }

    /// Puts a blocked reserve into the tube's order of waiting.
    pub fn wait(&mut self, tube: TubeRef, ticket: Ticket, conn: ConnId) {
        self.get_mut(tube).waiting.insert(ticket, conn);
    }

    /// Takes a reserve out of the tube's order of waiting.
    pub fn stop_waiting(&mut self, tube: TubeRef, ticket: Ticket) {
        self.get_mut(tube).waiting.remove(&ticket);
    }

    /// Who has waited longest for the tube.
    pub fn longest_waiting(&self, tube: TubeRef) -> Option<ConnId> {
        self.get(tube).waiting.first_key_value().map(|(_, conn)| *conn)
    }

    /// Every tube with a client, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Tube> {
        self.slots.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tube_lives_while_somebody_uses_or_watches_it() {
        let mut tubes = TubeTable::default();
        let used = tubes.add_using("a");
        let watched = tubes.add_watching("a");
        assert_eq!(used, watched);
        assert_eq!(tubes.drop_using(used), None);
        assert_eq!(tubes.drop_watching(watched).as_deref(), Some("a"));
        assert_eq!(tubes.find("a"), None);
        assert_eq!(tubes.iter().count(), 0);
    }

    #[test]
    fn who_waits_longest_is_served_first() {
        let mut tubes = TubeTable::default();
        let tube = tubes.add_watching("a");
        tubes.wait(tube, 2, ConnId(20));
        tubes.wait(tube, 1, ConnId(10));
        assert_eq!(tubes.longest_waiting(tube), Some(ConnId(10)));
        tubes.stop_waiting(tube, 1);
        assert_eq!(tubes.longest_waiting(tube), Some(ConnId(20)));
        assert_eq!(tubes.get(tube).waiting(), 1);
    }
}
