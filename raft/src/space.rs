//! What a node takes on, by the room that is left on its disk.
//!
//! ```text
//!             free < low                    the next segment cannot be made
//!    open ───────────────────> shedding ──────────────────────────────────> closed
//!      ^                        │    ^                                        │
//!      └── free >= high ────────┘    └──────── it was made ───────────────────┘
//! ```
//!
//! Below the low mark nothing is taken on that adds to what is kept. What is left by then is for what makes room: the
//! records of deletes, the image of a snapshot, what compaction writes before it gives more back. The log behind the
//! snapshot, which is kept to bring others forward, goes first.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::disk::DiskSpace;

/// What is taken on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Space {
    /// Everything.
    #[default]
    Open,
    /// Nothing that adds to what is kept. Everything else is logged as usual, and room is made.
    Shedding,
    /// As before; and what is left of the segment being written is all the room there is. When it is used up nothing
    /// is acknowledged until there is room.
    Closed,
}

/// Between which amounts of free space, in bytes, the states change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marks {
    /// Less than this is too little.
    pub(crate) low: u64,
    /// This is enough again.
    pub(crate) high: u64,
}

/// How many segments' room is kept free.
const SEGMENTS_KEPT: u64 = 3;
/// At most this part of the disk is kept free: a small one must still be of use.
const PART_KEPT: u64 = 8;

impl Marks {
    /// The marks on a disk of `total` bytes, where segments and the image of the state have these lengths.
    pub(crate) fn new(total: u64, segment: u64, image: u64) -> Self {
        let low = (SEGMENTS_KEPT * segment + image).min(total / PART_KEPT);
        Self { low, high: low + segment.min(low / 2) }
    }
}

impl Space {
    /// The state after a look at the disk: so much is free, and the last attempt to make a segment failed or not.
    pub(crate) fn next(self, free: u64, failing: bool, marks: &Marks) -> Self {
        if failing {
            return Self::Closed;
        }
        match self {
            Self::Open if free >= marks.low => Self::Open,
            Self::Shedding | Self::Closed if free >= marks.high => Self::Open,
            Self::Open | Self::Shedding | Self::Closed => Self::Shedding,
        }
    }
}

/// The disk is looked at no more often than this.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The state, and when it was last brought up to date.
#[derive(Default)]
pub(crate) struct Watch {
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    space: Space,
    looked: Option<Instant>,
}

impl Watch {
    /// The state as of the last look.
    pub(crate) fn space(&self) -> Space {
        self.seen.lock().space
    }

    /// The state now, or as of a moment ago; whether it has just become another one. `look` answers what is free, and the
    /// marks.
    pub(crate) fn look(
        &self,
        failing: bool,
        look: impl FnOnce() -> Option<(DiskSpace, Marks)>,
    ) -> (Space, bool) {
        let mut seen = self.seen.lock();
        let before = seen.space;
        let now = Instant::now();
        let fresh = seen.looked.is_some_and(|looked| now.duration_since(looked) < LOOK_EVERY);
        if fresh && failing == (before == Space::Closed) {
            return (before, false);
        }
        seen.looked = Some(now);
        // A disk that does not tell has room, unless there is proof of the contrary.
        let unknown = (DiskSpace { free: u64::MAX, total: u64::MAX }, Marks { low: 0, high: 0 });
        let (disk, marks) = look().unwrap_or(unknown);
        seen.space = before.next(disk.free, failing, &marks);
        (seen.space, seen.space != before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A day in the life of a disk: what is free, whether a segment could be made, and what follows.
    #[test]
    fn script() {
        let marks = Marks::new(100 << 30, 64 << 20, 8 << 20);
        assert_eq!(marks, Marks { low: 200 << 20, high: 264 << 20 });
        let script = "
            5000 made   open
             201 made   open
             199 made   shedding
             230 made   shedding
             263 made   shedding
             264 made   open
             230 made   open
              90 made   shedding
              10 failed closed
             300 failed closed
             210 made   shedding
              10 failed closed
             900 made   open
               0 failed closed
               0 made   shedding
        ";
        let mut space = Space::Open;
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let free: u64 = words[0].parse().unwrap();
            space = space.next(free << 20, words[1] == "failed", &marks);
            assert_eq!(format!("{space:?}").to_lowercase(), words[2], "{line}");
        }
    }

    /// However small the disk, some of it is for use, and the way back is longer than the way in.
    #[test]
    fn small_disks() {
        for total in [0, 1 << 20, 200 << 20, 1 << 30, 1 << 40] {
            let marks = Marks::new(total, 64 << 20, 500 << 20);
            assert!(marks.low <= total / 8 && marks.high <= total / 4, "{total}: {marks:?}");
            assert!(marks.high > marks.low || marks.low < 2, "{total}: {marks:?}");
        }
    }

    /// The disk is asked now and then only, but at once when a segment could not be made.
    #[tokio::test(start_paused = true)]
    async fn looks_now_and_then() {
        let watch = Watch::default();
        let marks = Marks { low: 100, high: 150 };
        let free = |free| move || Some((DiskSpace { free, total: 1000 }, marks));
        assert_eq!(watch.look(false, free(500)), (Space::Open, false));
        assert_eq!(watch.look(false, free(5)), (Space::Open, false));
        assert_eq!(watch.look(true, free(5)), (Space::Closed, true));
        assert_eq!(watch.look(true, free(500)), (Space::Closed, false));
        assert_eq!(watch.look(false, free(120)), (Space::Shedding, true));
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(watch.look(false, || None), (Space::Open, true));
        assert_eq!(watch.space(), Space::Open);
    }
}
