//! What happened on this node that an operator would ask about: the newest few, for the admin server. Each is a line in the log
//! as well.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;

/// Events kept; older ones are in the log only.
const EVENTS_MAX: usize = 256;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Counts events of this process from 1, so that a reader notices what it missed.
    pub number: u64,
    /// When, in milliseconds since the Unix epoch by this node's clock.
    pub at_ms: u64,
    /// Which kind: `memory`, `loop`, `ban`, `alarm`.
    pub kind: &'static str,
    /// What happened, with numbers and what to do.
    pub text: String,
}

/// The newest events, oldest first.
#[derive(Default)]
pub struct Events(Mutex<(u64, VecDeque<Event>)>);

impl Events {
    /// Notes one.
    pub fn note(&self, kind: &'static str, text: String) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let at_ms = since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        let mut events = self.0.lock();
        events.0 += 1;
        let number = events.0;
        if events.1.len() == EVENTS_MAX {
            events.1.pop_front();
        }
        events.1.push_back(Event { number, at_ms, kind, text });
    }

    /// All that are kept, oldest first.
    pub fn all(&self) -> Vec<Event> {
        self.0.lock().1.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stay_and_their_numbers_tell_what_is_gone() {
        let events = Events::default();
        for number in 1..=EVENTS_MAX + 3 {
            events.note("memory", number.to_string());
        }
        let all = events.all();
        assert_eq!((all.len(), all[0].number, all[0].text.as_str()), (EVENTS_MAX, 4, "4"));
    }
}
