//! Where jobs lie: 32 bytes each in a slab, found by id through pages of 64, and side tables for what few
//! jobs have.
//!
//! ```text
//!   id ──► node of 4,096 ids ──► page of 64 ids ──► slot ──► Packed ──► Terms     shared with jobs that are alike
//!                                                              │
//!                                                              └──► Side ──► Counts   once it was handed out, buried, kicked
//!                                                                     ├────► Hold     while it is reserved
//!                                                                     └────► u64      due stamp of a delayed job,
//!                                                                                     place in the order of burying
//! ```

use std::collections::BTreeMap;

use super::policy::Reason;
use super::record::{Packed, Record, Terms, TermsTable};
use super::slab::Slab;
use super::types::JobState;

const CHUNK: usize = 512;
/// Of the side tables, which few jobs need.
const SIDE_CHUNK: usize = 128;
const PAGE: usize = 64;
const PAGES: usize = 64;
/// Ids of one node of the index.
const NODE: u64 = (PAGE * PAGES) as u64;

/// How often things happened to a job.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub reserves: u32,
    pub timeouts: u32,
    pub releases: u32,
    pub buries: u32,
    pub kicks: u32,
}

/// A reservation.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Hold {
    /// Lease clock value at which it runs out.
    pub deadline: u64,
    /// The session, in the live epoch of `node`.
    pub conn: u64,
    /// The want it answered; 0 for `reserve-job`.
    pub want: u64,
    /// Counts all reservations: a session's jobs return in the order it got them.
    pub seq: u64,
    pub node: u32,
}

/// Where a job is, with all that belongs to it there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Ready,
    /// Until a stamp.
    Delayed(u64),
    /// Place in the order of burying.
    Buried(u64),
    Reserved(Hold),
}

impl Place {
    pub fn state(&self) -> JobState {
        match self {
            Place::Ready => JobState::Ready,
            Place::Delayed(_) => JobState::Delayed,
            Place::Buried(_) => JobState::Buried,
            Place::Reserved(_) => JobState::Reserved,
        }
    }
}

/// What only some jobs have: slots + 1 of their counts, and of their mark or hold, by state.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Side {
    counts: u32,
    mark: u32,
}

/// All jobs.
#[derive(Default)]
pub(super) struct Jobs {
    index: Index,
    records: Slab<Packed, CHUNK>,
    terms: TermsTable,
    sides: Slab<Side, SIDE_CHUNK>,
    counts: Slab<Counts, SIDE_CHUNK>,
    marks: Slab<u64, SIDE_CHUNK>,
    holds: Slab<Hold, SIDE_CHUNK>,
}

impl Jobs {
    /// The job's slot.
    pub fn find(&self, id: u64) -> Option<u32> {
        self.index.get(id)
    }

    /// Bytes of memory that they hold; those of the trees' nodes by rule of thumb.
    pub fn bytes(&self) -> usize {
        let sides = self.sides.bytes() + self.counts.bytes() + self.marks.bytes() + self.holds.bytes();
        self.index.bytes() + self.records.bytes() + self.terms.bytes() + sides
    }

    /// The jobs of the first page that has one with that id or a higher one, from that id on.
    pub fn page_from(&self, id: u64) -> Option<impl Iterator<Item = (u64, u32)>> {
        self.index.page_from(id)
    }

    /// Every job, by id.
    pub fn for_each(&self, f: &mut dyn FnMut(u64, u32)) {
        self.index.for_each(f);
    }

    /// Adds a job; it is ready as far as its record goes.
    pub fn insert(&mut self, id: u64, record: &Record) -> u32 {
        let terms = self.terms.add(record.terms);
        let slot = self.records.insert(Packed::new(record, terms));
        self.index.insert(id, slot);
        slot
    }

    /// Adds a job of an image, as [`Jobs::insert`] does. Jobs come by id, and none is found before all of them are
    /// there: end with [`Jobs::loaded`].
    pub fn load(&mut self, page: &mut Page, id: u64, record: &Record) -> u32 {
        let terms = self.terms.add(record.terms);
        let slot = self.records.insert(Packed::new(record, terms));
        if page.number != id / PAGE as u64 {
            self.loaded(std::mem::replace(page, Page::new(id)));
        }
        page.slots[place_of(id)] = slot + 1;
        page.jobs += 1;
        slot
    }

    /// Makes the jobs of the last page known.
    pub fn loaded(&mut self, page: Page) {
        if page.jobs > 0 {
            self.index.insert_page(page);
        }
    }

    /// Forgets a job that has neither mark nor hold.
    pub fn remove(&mut self, id: u64, slot: u32) -> Record {
        self.set_counts(slot, Counts::default());
        let record = self.record(slot);
        let packed = self.records.remove(slot);
        debug_assert!(packed.side == 0, "it has neither mark nor hold");
        self.terms.remove(packed.terms());
        self.index.remove(id);
        record
    }

    pub fn record(&self, slot: u32) -> Record {
        let packed = &self.records[slot];
        Record {
            body: packed.body(),
            created_us: packed.created_us(),
            pri: packed.pri,
            terms: self.terms.get(packed.terms()),
        }
    }

    pub fn state(&self, slot: u32) -> JobState {
        self.records[slot].state()
    }

    /// Slot of its tube.
    pub fn tube(&self, slot: u32) -> u32 {
        self.terms(slot).tube
    }

    pub fn terms(&self, slot: u32) -> Terms {
        self.terms.get(self.records[slot].terms())
    }

    pub fn set_pri(&mut self, slot: u32, pri: u32) {
        self.records[slot].pri = pri;
    }

    pub fn set_delay(&mut self, slot: u32, delay_s: u32) {
        self.set_terms(slot, Terms { delay_s, ..self.terms(slot) });
    }

    /// Moves a job that is in no order to another tube.
    pub fn set_tube(&mut self, slot: u32, tube: u32) {
        self.set_terms(slot, Terms { tube, ..self.terms(slot) });
    }

    /// Notes what a policy did with a job.
    pub fn set_reason(&mut self, slot: u32, reason: Reason) {
        self.set_terms(slot, Terms { reason, ..self.terms(slot) });
    }

    fn set_terms(&mut self, slot: u32, terms: Terms) {
        if self.terms(slot) == terms {
            return;
        }
        let record = &mut self.records[slot];
        let before = record.terms();
        record.set_terms(self.terms.add(terms));
        self.terms.remove(before);
    }

    pub fn counts(&self, slot: u32) -> Counts {
        match self.side(slot).counts {
            0 => Counts::default(),
            counts => self.counts[counts - 1],
        }
    }

    /// Changes the counts; a job whose counts are all 0 keeps none.
    pub fn count(&mut self, slot: u32, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts(slot);
        change(&mut counts);
        self.set_counts(slot, counts);
    }

    pub fn set_counts(&mut self, slot: u32, counts: Counts) {
        let mut side = self.side(slot);
        match (side.counts, counts == Counts::default()) {
            (0, true) => return,
            (0, false) => side.counts = self.counts.insert(counts) + 1,
            (at, false) => {
                self.counts[at - 1] = counts;
                return;
            }
            (at, true) => {
                side.counts = 0;
                self.counts.remove(at - 1);
            }
        }
        self.set_side(slot, side);
    }

    fn side(&self, slot: u32) -> Side {
        match self.records[slot].side {
            0 => Side::default(),
            side => self.sides[side - 1],
        }
    }

    fn set_side(&mut self, slot: u32, side: Side) {
        let record = &mut self.records[slot];
        match (record.side, side == Side::default()) {
            (0, true) => {}
            (0, false) => record.side = self.sides.insert(side) + 1,
            (at, false) => self.sides[at - 1] = side,
            (at, true) => {
                record.side = 0;
                self.sides.remove(at - 1);
            }
        }
    }

    pub fn place(&self, slot: u32) -> Place {
        match self.state(slot) {
            JobState::Ready => Place::Ready,
            JobState::Delayed => Place::Delayed(self.mark(slot)),
            JobState::Buried => Place::Buried(self.mark(slot)),
            JobState::Reserved => Place::Reserved(*self.hold(slot)),
        }
    }

    /// Sets the state of a job that has neither mark nor hold.
    pub fn set_place(&mut self, slot: u32, place: Place) {
        let mark = match place {
            Place::Ready => 0,
            Place::Delayed(mark) | Place::Buried(mark) => self.marks.insert(mark) + 1,
            Place::Reserved(hold) => self.holds.insert(hold) + 1,
        };
        self.records[slot].set_state(place.state());
        if mark != 0 {
            let side = Side { mark, ..self.side(slot) };
            self.set_side(slot, side);
        }
    }

    /// The slot of its mark or hold.
    fn mark_slot(&self, slot: u32) -> u32 {
        self.side(slot).mark.checked_sub(1).expect("its state has one")
    }

    fn clear_mark_slot(&mut self, slot: u32) -> u32 {
        let mark = self.mark_slot(slot);
        let side = Side { mark: 0, ..self.side(slot) };
        self.set_side(slot, side);
        mark
    }

    pub fn mark(&self, slot: u32) -> u64 {
        self.marks[self.mark_slot(slot)]
    }

    pub fn clear_mark(&mut self, slot: u32) -> u64 {
        let mark = self.clear_mark_slot(slot);
        self.marks.remove(mark)
    }

    /// The reservation, if it is reserved.
    pub fn held(&self, slot: u32) -> Option<&Hold> {
        (self.state(slot) == JobState::Reserved).then(|| self.hold(slot))
    }

    pub fn hold(&self, slot: u32) -> &Hold {
        &self.holds[self.mark_slot(slot)]
    }

    pub fn hold_mut(&mut self, slot: u32) -> &mut Hold {
        let hold = self.mark_slot(slot);
        &mut self.holds[hold]
    }

    pub fn clear_hold(&mut self, slot: u32) -> Hold {
        let hold = self.clear_mark_slot(slot);
        self.holds.remove(hold)
    }
}

/// A page of the index being filled.
pub(super) struct Page {
    /// It has the ids from 64 times this on.
    number: u64,
    slots: Box<[u32; PAGE]>,
    jobs: u8,
}

impl Page {
    fn new(id: u64) -> Self {
        Page { number: id / PAGE as u64, slots: Box::new([0; PAGE]), jobs: 0 }
    }
}

impl Default for Page {
    fn default() -> Self {
        Page::new(0)
    }
}

/// From id to slot. Ids are dense and rise, so whole pages fill and empty together.
#[derive(Default)]
struct Index {
    nodes: BTreeMap<u64, Box<Node>>,
    /// Pages that there are, in all nodes.
    pages: usize,
    /// The page of the last insert: kept though empty, because the next id likely falls on it.
    newest: u64,
}

struct Node {
    /// Slot + 1 of each id; 0 where there is no job.
    pages: [Option<Box<[u32; PAGE]>>; PAGES],
    /// Jobs of each page.
    counts: [u8; PAGES],
    /// Pages that are there, one bit each.
    live: u64,
}

impl Default for Node {
    fn default() -> Self {
        Node { pages: [const { None }; PAGES], counts: [0; PAGES], live: 0 }
    }
}

fn page_of(id: u64) -> usize {
    (id % NODE) as usize / PAGE
}

fn place_of(id: u64) -> usize {
    (id % PAGE as u64) as usize
}

impl Index {
    fn bytes(&self) -> usize {
        self.nodes.len() * (size_of::<Node>() + 24) + self.pages * size_of::<[u32; PAGE]>()
    }

    fn get(&self, id: u64) -> Option<u32> {
        let page = self.nodes.get(&(id / NODE))?.pages[page_of(id)].as_ref()?;
        page[place_of(id)].checked_sub(1)
    }

    fn insert(&mut self, id: u64, slot: u32) {
        let newest = id / PAGE as u64;
        let before = std::mem::replace(&mut self.newest, newest);
        if before != newest {
            self.drop_if_empty(before * PAGE as u64);
        }
        let node = self.nodes.entry(id / NODE).or_default();
        let page = page_of(id);
        self.pages += usize::from(node.pages[page].is_none());
        let entry = &mut node.pages[page].get_or_insert_with(|| Box::new([0; PAGE]))[place_of(id)];
        assert!(*entry == 0, "job {id} is there already");
        *entry = slot + 1;
        node.counts[page] += 1;
        node.live |= 1 << page;
    }

    fn insert_page(&mut self, Page { number, slots, jobs }: Page) {
        let id = number * PAGE as u64;
        let node = self.nodes.entry(id / NODE).or_default();
        let page = page_of(id);
        assert!(node.pages[page].is_none(), "the jobs from {id} on are there already");
        self.pages += 1;
        self.newest = number;
        node.pages[page] = Some(slots);
        node.counts[page] = jobs;
        node.live |= 1 << page;
    }

    fn remove(&mut self, id: u64) {
        let node = self.nodes.get_mut(&(id / NODE)).expect("the job is there");
        let page = page_of(id);
        node.pages[page].as_mut().expect("the job is there")[place_of(id)] = 0;
        node.counts[page] -= 1;
        if node.counts[page] == 0 && id / PAGE as u64 != self.newest {
            self.drop_if_empty(id);
        }
    }

    /// Drops the page of this id, and its node, if they hold no job.
    fn drop_if_empty(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&(id / NODE)) else { return };
        let page = page_of(id);
        if node.counts[page] > 0 {
            return;
        }
        self.pages -= usize::from(node.pages[page].take().is_some());
        node.live &= !(1 << page);
        if node.live == 0 {
            self.nodes.remove(&(id / NODE));
        }
    }

    fn for_each(&self, f: &mut dyn FnMut(u64, u32)) {
        for (number, node) in &self.nodes {
            for (page, slots) in node.pages.iter().enumerate() {
                let base = number * NODE + (page * PAGE) as u64;
                let slots = slots.iter().flat_map(|slots| slots.iter().enumerate());
                slots
                    .filter(|(_, slot)| **slot > 0)
                    .for_each(|(place, slot)| f(base + place as u64, slot - 1));
            }
        }
    }

    fn page_from(&self, id: u64) -> Option<impl Iterator<Item = (u64, u32)>> {
        let mut pages = self.nodes.range(id / NODE..).flat_map(|(number, node)| {
            let first = number * NODE;
            let pages = node.pages.iter().enumerate().skip(page_of(id.max(first)));
            pages.filter_map(move |(page, slots)| Some((first + (page * PAGE) as u64, slots.as_deref()?)))
        });
        pages.find_map(|(base, slots)| {
            let mut jobs = jobs_of_page(base, slots, id).peekable();
            jobs.peek().is_some().then_some(jobs)
        })
    }
}

/// Ids and slots of a page that begins with id `base`, from `id` on.
fn jobs_of_page(base: u64, slots: &[u32; PAGE], id: u64) -> impl Iterator<Item = (u64, u32)> {
    let from = id.saturating_sub(base) as usize;
    let slots = slots.iter().enumerate().skip(from).filter(|(_, slot)| **slot > 0);
    slots.map(move |(place, slot)| (base + place as u64, slot - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_and_walked_in_order() {
        let mut index = Index::default();
        let ids = [1, 2, 63, 64, 65, 4095, 4096, 4097, 70_000, 1 << 40];
        for (slot, id) in ids.iter().enumerate() {
            index.insert(*id, slot as u32);
        }
        let mut walked = Vec::new();
        let mut at = 0;
        while let Some(jobs) = index.page_from(at) {
            for (id, slot) in jobs {
                assert_eq!(index.get(id), Some(slot));
                walked.push(id);
                at = id + 1;
            }
        }
        assert_eq!(walked, ids);
        assert_eq!((index.get(3), index.get(4098), index.get(1 << 50)), (None, None, None));
    }

    #[test]
    fn empty_pages_are_given_back_but_for_the_newest() {
        let mut index = Index::default();
        for id in 1..=10_000 {
            index.insert(id, id as u32);
        }
        for id in 1..=10_000 {
            index.remove(id);
        }
        let pages: u32 = index.nodes.values().map(|node| node.live.count_ones()).sum();
        assert_eq!((index.nodes.len(), pages, index.pages), (1, 1, 1));
        index.insert(20_000, 1);
        assert_eq!(index.nodes.len(), 1);
        assert_eq!(index.page_from(0).and_then(|mut jobs| jobs.next()), Some((20_000, 1)));
    }
}
