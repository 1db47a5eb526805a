//! Counting the bodies that a state references, once it was read from a snapshot: every one is looked for, and its segment
//! counts it.
//!
//! A state names its bodies about in the order in which they were written. So the next one mostly lies in the same entry as
//! the one before, or in the same segment: only else the table of segments is asked.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::bodies::is_within;
use crate::payload::BodyAddr;
use crate::segment::{Segment, SegmentTable, Span};

/// See the module. What it counted shows in the segments when it is dropped.
pub(crate) struct Census<'a> {
    table: &'a SegmentTable,
    /// Where the last body was found.
    near: Option<Near>,
    /// How often the table was asked.
    #[cfg(test)]
    pub(crate) asked: usize,
}

struct Near {
    segment: Arc<Segment>,
    /// If the segment holds an entry of one of these indexes, its bodies are there and not elsewhere.
    range: RangeInclusive<u64>,
    /// The last entry.
    index: u64,
    span: Span,
    /// Counted and not told to the segment yet.
    bytes: u64,
    bodies: u64,
}

impl<'a> Census<'a> {
    /// Of bodies in the segments of `table`, which nobody changes meanwhile but by adding to it.
    pub(crate) fn new(table: &'a SegmentTable) -> Self {
        Self {
            table,
            near: None,
            #[cfg(test)]
            asked: 0,
        }
    }

    /// Counts a body; answers whether it is stored.
    pub(crate) fn count(&mut self, addr: BodyAddr) -> bool {
        if !self.find(addr.index) {
            return false;
        }
        let Some(near) = &mut self.near else { return false };
        let stored = is_within(near.span, addr);
        if stored {
            near.bytes += u64::from(addr.len);
            near.bodies += 1;
        }
        stored
    }

    /// Makes the entry of `index` the near one, if there is such an entry.
    fn find(&mut self, index: u64) -> bool {
        if let Some(near) = &mut self.near {
            if near.index == index {
                return true;
            }
            if near.range.contains(&index)
                && let Some(span) = near.segment.span(index)
            {
                (near.index, near.span) = (index, span);
                return true;
            }
        }
        #[cfg(test)]
        {
            self.asked += 1;
        }
        let Some((segment, range)) = self.table.body_holder(index) else { return false };
        let Some(span) = segment.span(index) else { return false };
        self.tell();
        self.near = Some(Near { segment, range, index, span, bytes: 0, bodies: 0 });
        true
    }

    fn tell(&mut self) {
        if let Some(near) = self.near.take() {
            near.segment.retain(near.bytes, near.bodies);
        }
    }
}

impl Drop for Census<'_> {
    fn drop(&mut self) {
        self.tell();
    }
}
