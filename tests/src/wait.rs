//! Waiting for a condition with a deadline, the only kind of waiting that the tests do.

use std::time::{Duration, Instant};

/// How long a condition is given before a test calls it a failure. Generous, because it is only ever
/// reached by a fault: a loaded machine with two cores must not make tests fail.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(2);

/// Looks at `condition` until it gives a value; `None` when [`PATIENCE`] has passed without one.
pub fn until<T>(condition: impl FnMut() -> Option<T>) -> Option<T> {
    until_within(PATIENCE, condition)
}

/// Looks at `condition` until it gives a value; `None` when `limit` has passed without one.
pub fn until_within<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(POLL);
    }
}
