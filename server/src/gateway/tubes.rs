//! What this gateway's clients have to do with tubes: who uses, watches and waits.
//!
//! `use`, `watch` and `ignore` never enter the log; they live here, and commands carry the tube names they need. A tube
//! is remembered while a client uses or watches it; whether it holds jobs is the engine's business.

use std::collections::HashMap;
use std::sync::Arc;

use crate::leader::Clients;

/// A tube that some client uses or watches. Valid while it is referenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TubeRef(u32);

/// One tube as this gateway's clients see it.
pub struct Tube {
    name: Arc<str>,
    using: u32,
    watching: u32,
    waiting: u32,
    /// The leader does not know the newest counts.
    untold: bool,
}

impl Tube {
    /// Clients that use and watch it.
    pub fn clients(&self) -> Clients {
        Clients { using: self.using, watching: self.watching }
    }

    /// The tube's name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The tube's name, to be kept.
    pub fn shared_name(&self) -> Arc<str> {
        self.name.clone()
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
    pub fn waiting(&self) -> u32 {
        self.waiting
    }
}

/// All tubes that this gateway's clients use or watch.
#[derive(Default)]
pub struct TubeTable {
    by_name: HashMap<Arc<str>, TubeRef>,
    slots: Vec<Option<Tube>>,
    free: Vec<u32>,
    /// Tubes whose counts changed since they were told, and perhaps some that are gone.
    untold: Vec<TubeRef>,
}

impl TubeTable {
    fn get_or_insert(&mut self, name: &str) -> TubeRef {
        if let Some(tube) = self.by_name.get(name) {
            return *tube;
        }
        let name: Arc<str> = name.into();
        let tube = Tube { name: name.clone(), using: 0, watching: 0, waiting: 0, untold: false };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                u32::try_from(self.slots.len() - 1).expect("each tube needs a client, and those are fewer")
            }
        };
        self.slots[slot as usize] = Some(tube);
        self.by_name.insert(name, TubeRef(slot));
        TubeRef(slot)
    }

    /// The tube behind a reference that a session holds.
    pub fn get(&self, tube: TubeRef) -> &Tube {
        self.slots[tube.0 as usize].as_ref().expect("a referenced tube stays")
    }

    fn get_mut(&mut self, tube: TubeRef) -> &mut Tube {
        self.slots[tube.0 as usize].as_mut().expect("a referenced tube stays")
    }

    /// The tube, whose counts are about to change.
    fn change(&mut self, tube: TubeRef) -> &mut Tube {
        if !std::mem::replace(&mut self.get_mut(tube).untold, true) {
            self.untold.push(tube);
        }
        self.get_mut(tube)
    }

    /// The tubes whose counts changed since this was asked last, each once.
    pub fn take_untold(&mut self) -> Vec<(Arc<str>, Clients)> {
        let mut untold = std::mem::take(&mut self.untold);
        let slots = &mut self.slots;
        let told = untold.drain(..).filter_map(|tube| {
            let tube = slots[tube.0 as usize].as_mut()?;
            std::mem::replace(&mut tube.untold, false).then(|| (tube.name.clone(), tube.clients()))
        });
        told.collect()
    }

    /// A tube by name, if any client uses or watches it.
    pub fn find(&self, name: &str) -> Option<TubeRef> {
        self.by_name.get(name).copied()
    }

    /// Counts a client that uses the tube from now on.
    pub fn add_using(&mut self, name: &str) -> TubeRef {
        let tube = self.get_or_insert(name);
        self.change(tube).using += 1;
        tube
    }

    /// Counts a client that watches the tube from now on.
    pub fn add_watching(&mut self, name: &str) -> TubeRef {
        let tube = self.get_or_insert(name);
        self.change(tube).watching += 1;
        tube
    }

    /// A client uses it no longer; answers the name if nobody uses or watches it now.
    pub fn drop_using(&mut self, tube: TubeRef) -> Option<Arc<str>> {
        self.change(tube).using -= 1;
        self.forget_if_unused(tube)
    }

    /// A client watches it no longer; answers the name if nobody uses or watches it now.
    pub fn drop_watching(&mut self, tube: TubeRef) -> Option<Arc<str>> {
        self.change(tube).watching -= 1;
        self.forget_if_unused(tube)
    }

    fn forget_if_unused(&mut self, tube: TubeRef) -> Option<Arc<str>> {
        let entry = self.get(tube);
        if entry.using > 0 || entry.watching > 0 {
            return None;
        }
        debug_assert!(entry.waiting == 0, "who waits also watches");
        let entry = self.slots[tube.0 as usize].take().expect("it was there a line ago");
        self.by_name.remove(&entry.name);
        self.free.push(tube.0);
        Some(entry.name)
    }

    /// Counts a blocked reserve that looks here.
    pub fn wait(&mut self, tube: TubeRef) {
        self.get_mut(tube).waiting += 1;
    }

    /// A reserve that looked here is over.
    pub fn stop_waiting(&mut self, tube: TubeRef) {
        self.get_mut(tube).waiting -= 1;
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
        assert_eq!(tubes.take_untold(), [("a".into(), Clients { using: 1, watching: 1 })]);
        assert_eq!(tubes.drop_using(used), None);
        assert_eq!(tubes.drop_watching(watched).as_deref(), Some("a"));
        assert_eq!(tubes.find("a"), None);
        assert_eq!(tubes.iter().count(), 0);
        assert_eq!(tubes.take_untold(), [], "what is gone was told");
    }
}
