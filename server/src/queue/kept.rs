//! Jobs as they were when an image was begun: kept from the moment they change until their turn in it comes.
//!
//! ```text
//!   far:   group of 4,096 ids ──► which of them are kept, and their records as an image has them, in the order of saving
//!            │ its turn is next
//!   near:    └──► by id, unpacked ──► into the image
//! ```
//!
//! A record in the form of the image takes some 10 to 30 bytes. So what changes while an image is taken costs less
//! memory than the jobs themselves, however many they are and in whatever order they change.

use std::collections::BTreeMap;
use std::collections::btree_map::OccupiedEntry;

use super::fields::Fields;
use super::image::{Before, SavedJob, write_job};

/// Ids of a group.
const GROUP: u64 = 4096;
/// Words of a group's bits.
const WORDS: usize = (GROUP / 64) as usize;
/// A group's records get room for so much more each time: few bytes at first, and never much more than is needed.
const ROOM_MIN: usize = 64;

/// See the module.
#[derive(Default)]
pub(super) struct Kept {
    near: BTreeMap<u64, SavedJob>,
    far: BTreeMap<u64, Group>,
    /// Bytes of memory of the groups.
    far_bytes: usize,
}

struct Group {
    /// One bit for each id that is kept.
    known: Box<[u64; WORDS]>,
    /// Records are written as they differ from this one.
    base: Before,
    records: Vec<u8>,
}

impl Kept {
    /// Whether the job is kept already.
    pub fn knows(&self, id: u64) -> bool {
        let in_group = |group: &Group| group.known[word_of(id)] & bit_of(id) != 0;
        self.near.contains_key(&id) || self.far.get(&(id / GROUP)).is_some_and(in_group)
    }

    /// Keeps a job that is not kept yet.
    pub fn add(&mut self, job: &SavedJob) {
        let number = job.id / GROUP;
        let group = self.far.entry(number).or_insert_with(|| {
            self.far_bytes += size_of::<Group>() * 3 / 2 + size_of::<[u64; WORDS]>();
            let base = Before { id: number * GROUP, ..Before::next(job) };
            Group { known: Box::new([0; WORDS]), base, records: Vec::new() }
        });
        group.known[word_of(job.id)] |= bit_of(job.id);
        let before = group.records.capacity();
        if before - group.records.len() < ROOM_MIN {
            group.records.reserve_exact(ROOM_MIN + before / 4);
        }
        write_job(&group.base, job, &mut group.records);
        self.far_bytes += group.records.capacity() - before;
    }

    /// Unpacks the next group, if its turn may come before or with the job `next`, the first that was not changed; without
    /// one all that is left is kept. Answers an id up to which, itself not included, all that is kept is at hand.
    pub fn bring(&mut self, next: Option<u64>) -> u64 {
        let near = self.near.first_key_value().map(|(id, _)| *id);
        let next = next.into_iter().chain(near).min();
        if let Some(group) = self.far.first_entry()
            && next.is_none_or(|next| group.key() * GROUP <= next)
        {
            let group = group.remove();
            self.far_bytes -=
                size_of::<Group>() * 3 / 2 + size_of::<[u64; WORDS]>() + group.records.capacity();
            let mut fields = Fields::new(&group.records);
            while !fields.is_empty() {
                let job = fields.u8().and_then(|flags| fields.job(flags, &group.base));
                let job = job.expect("it was written here");
                self.near.insert(job.id, job);
            }
        }
        self.far.first_key_value().map_or(u64::MAX, |(number, _)| number * GROUP)
    }

    /// The first of those at hand.
    pub fn first(&mut self) -> Option<OccupiedEntry<'_, u64, SavedJob>> {
        self.near.first_entry()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.near.is_empty() && self.far.is_empty()
    }

    /// Bytes of memory that they hold; those of the trees' nodes by rule of thumb.
    pub fn bytes(&self) -> usize {
        self.far_bytes + self.near.len() * size_of::<SavedJob>() * 3 / 2
    }
}

fn word_of(id: u64) -> usize {
    (id % GROUP / 64) as usize
}

fn bit_of(id: u64) -> u64 {
    1 << (id % 64)
}
