//! The bytes of one log entry, and the address of a body inside them.
//!
//! A [`Payload`] is logically one run of bytes, physically one or more [`Bytes`]: a large job body read from
//! a socket stays where it was read and goes to the segment by a gathering write, without a copy.

use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

/// One log entry's payload: logically contiguous bytes in one or more parts. Cloning copies no bytes.
#[derive(Clone)]
pub struct Payload {
    parts: Parts,
    len: usize,
}

#[derive(Clone)]
enum Parts {
    One(Bytes),
    Many(Arc<[Bytes]>),
}

impl Payload {
    /// The longest payload one entry may carry: [`crate::Node::propose`] refuses longer ones. A body is at
    /// most 1 GiB (the protocol's limit), and the rest is room for its batch.
    pub const MAX_LEN: usize = (1 << 30) + (64 << 20);

    /// Joins `parts` in order, without copying them. Empty parts are dropped.
    ///
    /// # Panics
    /// When the parts sum up to more than `usize::MAX` bytes, which no memory can hold.
    #[must_use]
    pub fn from_parts(mut parts: Vec<Bytes>) -> Self {
        parts.retain(|part| !part.is_empty());
        let len = parts.iter().map(Bytes::len).sum();
        let parts = match parts.len() {
            0 => Parts::One(Bytes::new()),
            1 => Parts::One(parts.pop().expect("its length is one")),
            2.. => Parts::Many(parts.into()),
        };
        Self { parts, len }
    }

    /// The number of bytes of all parts together.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The parts in order; none of them is empty unless the whole payload is.
    #[must_use]
    pub fn parts(&self) -> &[Bytes] {
        match &self.parts {
            Parts::One(part) => std::slice::from_ref(part),
            Parts::Many(parts) => parts,
        }
    }

    /// The `len` bytes at `offset`. Copies nothing when they lie within one part.
    ///
    /// # Panics
    /// When the range is not within the payload.
    #[must_use]
    pub fn slice(&self, offset: usize, len: usize) -> Bytes {
        let mut first = None;
        let mut joined = BytesMut::new();
        self.each_slice(offset, len, |part, at| match &first {
            None if at.len() == len => first = Some(part.slice_ref(at)),
            None => {
                joined.reserve(len);
                joined.extend_from_slice(at);
                first = Some(Bytes::new());
            }
            Some(_) => joined.extend_from_slice(at),
        });
        match first {
            Some(whole) if joined.is_empty() => whole,
            Some(_) | None => joined.freeze(),
        }
    }

    /// Appends the `len` bytes at `offset` to `out`.
    ///
    /// # Panics
    /// When the range is not within the payload.
    pub fn copy_to(&self, offset: usize, len: usize, out: &mut BytesMut) {
        out.reserve(len);
        self.each_slice(offset, len, |_, at| out.extend_from_slice(at));
    }

    /// All bytes in one piece: a cheap clone when there is one part, else a copy.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        self.slice(0, self.len)
    }

    fn each_slice<'a>(&'a self, offset: usize, len: usize, mut f: impl FnMut(&'a Bytes, &'a [u8])) {
        let end = offset.checked_add(len).expect("a range of memory fits usize");
        assert!(end <= self.len, "payload range {offset}..{end} of {} bytes", self.len);
        let mut start = 0;
        for part in self.parts() {
            let stop = start + part.len();
            if stop > offset && start < end {
                let from = offset.max(start) - start;
                let to = end.min(stop) - start;
                f(part, &part[from..to]);
            }
            start = stop;
        }
    }
}

impl Default for Payload {
    fn default() -> Self {
        Self::from(Bytes::new())
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        let len = bytes.len();
        Self { parts: Parts::One(bytes), len }
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from(Bytes::from(bytes))
    }
}

/// Equal when the bytes are, however they are cut into parts.
impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.to_bytes() == other.to_bytes()
    }
}

impl Eq for Payload {}

/// Says how long it is, never what it contains: payloads are users' data and may be large.
impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes in {} parts)", self.len, self.parts().len())
    }
}

/// As its `Debug`.
impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Where a body lies: the same on every node, because it names the entry, not the file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct BodyAddr {
    /// The log index of the entry that carries it.
    pub index: u64,
    /// Where it starts within the entry's payload, in bytes.
    pub offset: u32,
    /// How long it is, in bytes.
    pub len: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every range of a payload in any number of parts reads as that of the joined bytes, and a range within
    /// one part is not copied.
    #[test]
    fn slices() {
        let parts: Vec<Bytes> = ["abc", "", "d", "efghij", "kl"].into_iter().map(Bytes::from).collect();
        let payload = Payload::from_parts(parts.clone());
        assert_eq!((payload.len(), payload.parts().len()), (12, 4));
        let whole = payload.to_bytes();
        assert_eq!(whole, "abcdefghijkl");
        for from in 0..=12 {
            for to in from..=12 {
                assert_eq!(payload.slice(from, to - from), whole[from..to]);
                let mut out = BytesMut::from("x");
                payload.copy_to(from, to - from, &mut out);
                assert_eq!(out[1..], whole[from..to]);
            }
        }
        assert_eq!(payload.slice(5, 3).as_ptr(), parts[3][1..].as_ptr());
        assert_eq!(payload, Payload::from(whole));
        assert!(Payload::from_parts(Vec::new()).is_empty());
    }

    /// A range beyond the end is the caller's mistake.
    #[test]
    #[should_panic(expected = "payload range")]
    fn beyond_the_end() {
        drop(Payload::from(Bytes::from("abc")).slice(1, 3));
    }
}
