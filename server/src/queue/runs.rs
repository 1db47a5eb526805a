//! An ordered set in short sorted runs: denser than a B-tree of keys, and as fast where a queue is busy, at
//! both ends.
//!
//! ```text
//!   front: [ 3 5 9 ]      rest: { 12: [ 12 13 20 ],  31: [ 33 34 ],  50: [ 51 ] }
//!          all smaller          key <= every element of its run < next key
//! ```
//!
//! The smallest keys are in `front`; an emptied front is replaced by the first run of `rest`. A run that is
//! full is halved, except the last one when a key comes after it: that starts a new run, so keys that come in
//! order fill their runs.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

/// Keys of a run at most.
const RUN_MAX: usize = 128;
/// A run shorter than this is joined with the one before it, if both together leave room.
const RUN_MIN: usize = RUN_MAX / 4;
/// Two runs are joined up to this length.
const JOINED_MAX: usize = RUN_MAX * 3 / 4;
/// A run has memory for this many keys at least.
const ROOM_MIN: usize = 4;
/// An empty set keeps memory for this many keys.
const KEEP_MAX: usize = 16;

/// See the module.
pub(super) struct Runs<K> {
    front: VecDeque<K>,
    rest: BTreeMap<K, VecDeque<K>>,
    len: usize,
    /// Keys for which there is memory, in all runs.
    room: usize,
}

impl<K> Default for Runs<K> {
    fn default() -> Self {
        Runs { front: VecDeque::new(), rest: BTreeMap::new(), len: 0, room: 0 }
    }
}

impl<K: Copy + Ord> Runs<K> {
    /// Keys in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes of memory that it holds; those of the tree's nodes by rule of thumb.
    pub fn bytes(&self) -> usize {
        let node = (size_of::<K>() + size_of::<VecDeque<K>>()) * 3 / 2;
        self.room * size_of::<K>() + self.rest.len() * node
    }

    /// The smallest key.
    pub fn first(&self) -> Option<K> {
        self.front.front().copied()
    }

    /// The largest key.
    pub fn last(&self) -> Option<K> {
        let run = self.rest.last_key_value().map_or(&self.front, |(_, run)| run);
        run.back().copied()
    }

    /// Adds a key that is not in it.
    pub fn insert(&mut self, key: K) {
        self.len += 1;
        let in_front = self.rest.first_key_value().is_none_or(|(first, _)| key < *first);
        if in_front {
            return self.insert_front(key);
        }
        let (low, run) = self.rest.range_mut(..=key).next_back().expect("the key is not below the first run");
        if run.len() < RUN_MAX {
            self.room += put_in_order(run, key);
            return;
        }
        let low = *low;
        let is_last = self.rest.last_key_value().is_some_and(|(last, _)| *last == low);
        let run = self.rest.get_mut(&low).expect("found a moment ago");
        if is_last && run.back().is_some_and(|back| *back < key) {
            return self.begin_run(key);
        }
        let (upper, grown) = halve(run, key);
        self.add_run(upper, grown);
    }

    /// Adds keys that are in order, each once, and not in it. Every run is rebuilt once at most, however many of them go
    /// into it: for as many keys as there are runs, or more, this is faster than one by one.
    pub fn extend(&mut self, mut keys: &[K]) {
        self.len += keys.len();
        while let Some(first) = keys.first() {
            let next = match self.rest.range((Bound::Excluded(*first), Bound::Unbounded)).next() {
                Some((low, _)) => keys.partition_point(|key| key < low),
                None => keys.len(),
            };
            let (part, others) = keys.split_at(next);
            self.extend_run(part);
            keys = others;
        }
    }

    /// Adds keys that all belong into the same run.
    fn extend_run(&mut self, part: &[K]) {
        let first = part[0];
        let is_last = self.rest.last_key_value().is_none_or(|(low, _)| *low <= first);
        let run = match self.rest.range_mut(..=first).next_back() {
            Some((_, run)) => run,
            None => &mut self.front,
        };
        let before = run.capacity();
        let behind = run.back().is_none_or(|back| *back < first);
        if run.len() + part.len() <= RUN_MAX {
            grow_for(run, part.len());
            run.extend(part);
            self.room = self.room + run.capacity() - before;
            if !behind {
                run.make_contiguous().sort();
            }
            return;
        }
        let mut all: Vec<K> = run.iter().copied().chain(part.iter().copied()).collect();
        // Keys that come in order fill their runs; else there is room for more in each.
        let piece =
            if behind && is_last { RUN_MAX } else { all.len().div_ceil(all.len().div_ceil(RUN_MAX * 3 / 4)) };
        all.sort();
        let (own, others) = all.split_at(piece);
        run.clear();
        grow_for(run, own.len());
        run.extend(own);
        self.room = self.room + run.capacity() - before;
        for piece in others.chunks(piece) {
            self.add_run(piece.to_vec().into(), 0);
        }
    }

    fn begin_run(&mut self, key: K) {
        self.add_run(VecDeque::from([key]), 0);
    }

    /// Adds a run after another one grew by room for so many keys.
    fn add_run(&mut self, run: VecDeque<K>, grown: usize) {
        self.room += run.capacity() + grown;
        self.rest.insert(*run.front().expect("a new run has a key"), run);
    }

    fn insert_front(&mut self, key: K) {
        if self.front.len() < RUN_MAX {
            self.room += put_in_order(&mut self.front, key);
            return;
        }
        if self.rest.is_empty() && self.front.back().is_some_and(|back| *back < key) {
            return self.begin_run(key);
        }
        let (upper, grown) = halve(&mut self.front, key);
        self.add_run(upper, grown);
    }

    /// Takes the smallest key.
    pub fn pop_first(&mut self) -> Option<K> {
        let key = self.front.pop_front()?;
        self.len -= 1;
        self.refill_front();
        Some(key)
    }

    /// Takes a key; false if it is not in it.
    pub fn remove(&mut self, key: K) -> bool {
        if self.rest.first_key_value().is_none_or(|(first, _)| key < *first) {
            let Ok(place) = self.front.binary_search(&key) else { return false };
            self.front.remove(place);
            self.len -= 1;
            self.refill_front();
            return true;
        }
        let (low, run) = self.rest.range_mut(..=key).next_back().expect("the key is not below the first run");
        let Ok(place) = run.binary_search(&key) else { return false };
        run.remove(place);
        self.len -= 1;
        if run.len() < RUN_MIN {
            let low = *low;
            self.join_with_previous(low);
        }
        true
    }

    /// Every key in order.
    pub fn iter(&self) -> impl Iterator<Item = K> {
        self.front.iter().chain(self.rest.values().flatten()).copied()
    }

    /// The keys from `key` on, in order.
    pub fn from(&self, key: K) -> impl Iterator<Item = K> {
        let front = self.front.range(self.front.partition_point(|k| *k < key)..);
        let first = self.rest.range(..=key).next_back();
        let first = first.map(|(_, run)| run.range(run.partition_point(|k| *k < key)..));
        let later = self.rest.range((Bound::Excluded(key), Bound::Unbounded)).flat_map(|(_, run)| run);
        front.chain(first.into_iter().flatten()).chain(later).copied()
    }

    fn refill_front(&mut self) {
        if !self.front.is_empty() {
            return;
        }
        if let Some((_, run)) = self.rest.pop_first() {
            self.room -= self.front.capacity();
            self.front = run;
        } else if self.front.capacity() > KEEP_MAX {
            self.room -= self.front.capacity();
            self.front = VecDeque::new();
        }
    }

    fn join_with_previous(&mut self, low: K) {
        let short = self.rest.get(&low).map_or(0, VecDeque::len);
        let previous = match self.rest.range_mut(..low).next_back() {
            Some((_, previous)) => previous,
            None => &mut self.front,
        };
        if short == 0 || previous.len() + short <= JOINED_MAX {
            // Taken out below; the borrow of `previous` ends first.
            let run = self.rest.remove(&low).unwrap_or_default();
            let previous = match self.rest.range_mut(..low).next_back() {
                Some((_, previous)) => previous,
                None => &mut self.front,
            };
            let before = previous.capacity() + run.capacity();
            previous.extend(run);
            self.room = self.room + previous.capacity() - before;
        }
    }
}

/// Makes room for so many keys more, and for some that may follow, but never for more than a run has.
fn grow_for<K>(run: &mut VecDeque<K>, more: usize) {
    let wanted = run.len() + more;
    if wanted > run.capacity() {
        run.reserve_exact(wanted.next_power_of_two().clamp(ROOM_MIN, RUN_MAX.max(wanted)) - run.len());
    }
}

/// Answers by how many keys the run's memory grew.
fn put_in_order<K: Copy + Ord>(run: &mut VecDeque<K>, key: K) -> usize {
    let before = run.capacity();
    grow_for(run, 1);
    if run.back().is_none_or(|back| *back < key) {
        run.push_back(key);
    } else {
        let place = run.partition_point(|k| *k < key);
        debug_assert!(run[place] != key, "keys are distinct");
        run.insert(place, key);
    }
    run.capacity() - before
}

/// Splits a full run and puts the key into its half; answers the upper half, and by how many keys the memory of the lower one
/// grew.
fn halve<K: Copy + Ord>(run: &mut VecDeque<K>, key: K) -> (VecDeque<K>, usize) {
    let mut upper = run.split_off(RUN_MAX / 2);
    let below = upper.front().is_some_and(|first| key < *first);
    let grown = put_in_order(if below { &mut *run } else { &mut upper }, key);
    (upper, if below { grown } else { 0 })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn check(runs: &Runs<u32>, model: &BTreeSet<u32>) {
        assert_eq!(runs.len(), model.len());
        assert_eq!((runs.first(), runs.last()), (model.first().copied(), model.last().copied()));
        assert!(runs.iter().eq(model.iter().copied()));
        assert!(
            runs.front.len() <= RUN_MAX && runs.rest.values().all(|run| (1..=RUN_MAX).contains(&run.len()))
        );
        assert!(!runs.front.is_empty() || runs.rest.is_empty());
        let room = runs.front.capacity() + runs.rest.values().map(VecDeque::capacity).sum::<usize>();
        assert_eq!(runs.room, room, "the account of its memory is exact");
    }

    #[test]
    fn keys_that_come_in_order_fill_their_runs() {
        let mut runs = Runs::default();
        for key in 0..RUN_MAX as u32 * 10 {
            runs.insert(key);
        }
        assert_eq!(runs.rest.len(), 9);
        while runs.pop_first().is_some() {}
        assert_eq!((runs.len(), runs.front.capacity(), runs.rest.len()), (0, 0, 0));
        let keys: Vec<u32> = (0..RUN_MAX as u32 * 10).collect();
        for batch in keys.chunks(RUN_MAX * 2 + 5) {
            runs.extend(batch);
        }
        assert_eq!((runs.rest.len(), runs.room), (9, RUN_MAX * 10));
    }

    #[test]
    fn what_is_left_after_many_removals_is_joined() {
        let mut runs = Runs::default();
        for key in 0..10_000u32 {
            runs.insert(key);
        }
        for key in (0..10_000).filter(|key| key % 50 != 0) {
            assert!(runs.remove(key));
        }
        assert!(runs.rest.len() <= 200 / RUN_MIN, "{} runs for 200 keys", runs.rest.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn behaves_as_a_tree_of_keys(ops in prop::collection::vec((0u8..8, 0u32..3000), 1..3000)) {
            let (mut runs, mut model) = (Runs::default(), BTreeSet::new());
            for (op, key) in ops {
                match op {
                    0..=3 => if model.insert(key) { runs.insert(key) },
                    4 => prop_assert_eq!(runs.pop_first(), model.pop_first()),
                    5..=6 => prop_assert_eq!(runs.remove(key), model.remove(&key)),
                    _ => prop_assert!(runs.from(key).take(200).eq(model.range(key..).take(200).copied())),
                }
            }
            check(&runs, &model);
        }

        /// Keys that come together are where they would be had they come one by one.
        #[test]
        fn sorted_batches(batches in prop::collection::vec(prop::collection::btree_set(0u32..20_000, 0..1500), 1..12)) {
            let (mut runs, mut model) = (Runs::default(), BTreeSet::new());
            for batch in batches {
                let keys: Vec<u32> = batch.difference(&model).copied().collect();
                runs.extend(&keys);
                model.extend(keys);
                check(&runs, &model);
                // Some go again, so that runs have gaps.
                for key in batch.iter().filter(|key| *key % 3 == 0) {
                    prop_assert_eq!(runs.remove(*key), model.remove(key));
                }
            }
            check(&runs, &model);
        }

        #[test]
        fn dense_random_order(keys in prop::collection::vec(0u32..100_000, 1..6000)) {
            let (mut runs, mut model) = (Runs::default(), BTreeSet::new());
            for key in &keys {
                if model.insert(*key) { runs.insert(*key) }
            }
            check(&runs, &model);
            for key in &keys {
                prop_assert_eq!(runs.remove(*key), model.remove(key));
            }
            check(&runs, &model);
        }
    }
}
