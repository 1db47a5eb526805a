//! A slab in chunks: values at stable `u32` slots, without ever moving a value to grow.
//!
//! ```text
//!   slot = chunk * N + place
//!   chunks: [ 0 ]──► used bits, N values      full
//!           [ 1 ]──► used bits, N values      has room ──┐
//!           [ 2 ]    given back               vacant     │ open: {1}
//! ```
//!
//! The lowest chunk with room is filled first, so that chunks at the end become empty, and an empty chunk's
//! memory is given back (one is kept, so that a state that swings around a chunk's edge does not allocate
//! each time).

use std::collections::BTreeSet;
use std::ops::{Index, IndexMut};

/// Words of used bits: chunks have at most 512 places.
const WORDS: usize = 8;

/// See the module.
pub(super) struct Slab<T, const N: usize> {
    chunks: Vec<Option<Box<Chunk<T>>>>,
    /// Chunks with room.
    open: BTreeSet<u32>,
    /// Places in `chunks` whose memory was given back.
    vacant: BTreeSet<u32>,
}

/// What a tree's entry takes beside its key, by rule of thumb.
const TREE_ENTRY_BYTES: usize = 8;

struct Chunk<T> {
    used: [u64; WORDS],
    count: usize,
    values: Box<[T]>,
}

impl<T: Default, const N: usize> Default for Slab<T, N> {
    fn default() -> Self {
        const { assert!(N <= WORDS * 64) };
        Slab { chunks: Vec::new(), open: BTreeSet::new(), vacant: BTreeSet::new() }
    }
}

impl<T: Default, const N: usize> Slab<T, N> {
    /// Stores a value and answers its slot.
    pub fn insert(&mut self, value: T) -> u32 {
        let number = match self.open.first() {
            Some(number) => *number,
            None => self.add_chunk(),
        };
        let chunk = self.chunks[number as usize].as_mut().expect("an open chunk has memory");
        let place = chunk.first_free();
        chunk.used[place / 64] |= 1 << (place % 64);
        chunk.values[place] = value;
        chunk.count += 1;
        if chunk.count == N {
            self.open.remove(&number);
        }
        number * N as u32 + place as u32
    }

    /// Takes the value out of a slot in use.
    pub fn remove(&mut self, slot: u32) -> T {
        let (number, place) = (slot / N as u32, slot as usize % N);
        let chunk = self.chunks[number as usize].as_mut().expect("a slot in use has a chunk");
        let bit = 1 << (place % 64);
        assert!(chunk.used[place / 64] & bit != 0, "slot {slot} is not in use");
        chunk.used[place / 64] &= !bit;
        let value = std::mem::take(&mut chunk.values[place]);
        if chunk.count == N {
            self.open.insert(number);
        }
        chunk.count -= 1;
        if chunk.count == 0 && self.open.len() > 1 {
            self.open.remove(&number);
            self.vacant.insert(number);
            self.chunks[number as usize] = None;
        }
        value
    }

    /// Bytes of memory that it holds, without what its values hold elsewhere.
    pub fn bytes(&self) -> usize {
        let live = self.chunks.len() - self.vacant.len();
        let chunk = size_of::<Chunk<T>>() + N * size_of::<T>();
        let tree = (self.open.len() + self.vacant.len()) * TREE_ENTRY_BYTES;
        live * chunk + self.chunks.capacity() * size_of::<usize>() + tree
    }

    /// The value, if the slot is in use.
    pub fn get(&self, slot: u32) -> Option<&T> {
        let (number, place) = (slot as usize / N, slot as usize % N);
        let chunk = self.chunks.get(number)?.as_ref()?;
        (chunk.used[place / 64] & (1 << (place % 64)) != 0).then(|| &chunk.values[place])
    }

    fn add_chunk(&mut self) -> u32 {
        let values = std::iter::repeat_with(T::default).take(N).collect();
        let chunk = Some(Box::new(Chunk { used: [0; WORDS], count: 0, values }));
        let number = match self.vacant.pop_first() {
            Some(number) => {
                self.chunks[number as usize] = chunk;
                number
            }
            None => {
                self.chunks.push(chunk);
                u32::try_from(self.chunks.len() - 1).expect("slots are u32, and memory ends before them")
            }
        };
        self.open.insert(number);
        number
    }
}

impl<T> Chunk<T> {
    fn first_free(&self) -> usize {
        for (word, used) in self.used.iter().enumerate() {
            if *used != u64::MAX {
                return word * 64 + used.trailing_ones() as usize;
            }
        }
        unreachable!("an open chunk has room")
    }
}

impl<T: Default, const N: usize> Index<u32> for Slab<T, N> {
    type Output = T;
    fn index(&self, slot: u32) -> &T {
        let chunk = self.chunks[slot as usize / N].as_ref().expect("a slot in use has a chunk");
        &chunk.values[slot as usize % N]
    }
}

impl<T: Default, const N: usize> IndexMut<u32> for Slab<T, N> {
    fn index_mut(&mut self, slot: u32) -> &mut T {
        let chunk = self.chunks[slot as usize / N].as_mut().expect("a slot in use has a chunk");
        &mut chunk.values[slot as usize % N]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_reused_lowest_first() {
        let mut slab = Slab::<u64, 64>::default();
        let slots: Vec<u32> = (0..200).map(|value| slab.insert(value)).collect();
        assert_eq!(slots, (0..200).collect::<Vec<u32>>());
        assert_eq!(slab.remove(70), 70);
        assert_eq!(slab.remove(3), 3);
        assert_eq!(slab.get(3), None);
        assert_eq!(slab.insert(1000), 3);
        assert_eq!(slab.insert(1001), 70);
        assert_eq!(slab[70], 1001);
        assert_eq!(slab.insert(1002), 200);
    }

    #[test]
    fn empty_chunks_give_their_memory_back() {
        let mut slab = Slab::<u64, 64>::default();
        for value in 0..640 {
            slab.insert(value);
        }
        for slot in 64..640 {
            slab.remove(slot);
        }
        assert_eq!(slab.chunks.iter().flatten().count(), 2, "the full one and one to grow into");
        for value in 0..576 {
            slab.insert(value);
        }
        assert_eq!(slab.chunks.len(), 10, "places of chunks are reused");
        assert!((10 * 64 * 8..10 * 64 * 8 + 2000).contains(&slab.bytes()), "{}", slab.bytes());
    }
}
