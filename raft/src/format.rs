//! The layout of a segment file, version 1. Everything is little-endian; no number is platform-sized.
//!
//! ```text
//! 0        segment header, 64 bytes
//! 64       records, each starting at a multiple of 8; the first is a state record
//! ...      a sealed segment's last record is its footer
//! ...      zeros, or in a reused file what was written in its earlier lives
//! end-32   trailer of a sealed segment: where the footer is
//!
//! header   0 magic "BEANSEG1"  8 version u32  12 use u32  16 segment id u64  24 epoch u64
//!          32 seed of the life before u32  36 zero [24]  60 crc u32
//! record   0 crc u32  4 payload length u32  8 kind u8  9 zero [3]  12 durable u32  16 index u64  24 term u64
//!          32 payload, then zeros up to a multiple of 8
//! trailer  0 magic "BEANEND1"  8 footer offset u64  16 epoch u64  24 zero u32  28 crc u32
//! ```
//!
//! A record's CRC is seeded with the segment's id and epoch, so that neither a record of another segment nor
//! one of an earlier use of the same file passes for valid. `durable` is the offset up to which the segment
//! was known to be synced when the record was written: damage below a later record's `durable` cannot be the
//! trace of a crash.
//!
//! `use` is 0 for a file that was blank, and 2 for one that was a segment before: its records count as blank space, by
//! their seed.
//!
//! A segment whose header says `use` 1 (bodies) is no part of the ordered stream: it holds what is left of entries that
//! were purged here, or that came with a snapshot of another node, in rising order and with gaps, and its footer
//! lists their indexes too. The lowest bit of an offset in that footer says that the record is of kind `pieces`.

use std::fmt;

/// The version of every format in this module.
pub(crate) const VERSION: u32 = 1;
/// Length of the segment header; the first record starts here.
pub(crate) const HEADER_LEN: usize = 64;
/// Length of a record's fixed part.
pub(crate) const HEAD_LEN: usize = 32;
/// Length of the trailer at the very end of a sealed segment.
pub(crate) const TRAILER_LEN: usize = 32;
/// Records start at multiples of this.
pub(crate) const ALIGN: usize = 8;
/// The longest payload of a record.
pub(crate) const MAX_PAYLOAD: usize = crate::Payload::MAX_LEN;
/// Set in the offset of an entry of a body segment of which only pieces are left; offsets are aligned.
pub(crate) const IN_PIECES: u32 = 1;
/// Length of an encoded [`LogState`].
pub(crate) const STATE_LEN: usize = 72;
/// Length of a footer without its offsets.
const FOOTER_FIXED: usize = STATE_LEN + 24;

const SEGMENT_MAGIC: &[u8; 8] = b"BEANSEG1";
const TRAILER_MAGIC: &[u8; 8] = b"BEANEND1";
/// Stands for "none" where an index is expected.
const NO_INDEX: u64 = u64::MAX;

/// A place in the log: the entry's index and the term it was written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) term: u64,
    pub(crate) index: u64,
}

/// Whom this node voted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ballot {
    pub(crate) term: u64,
    pub(crate) node: u64,
    /// Whether a quorum granted it, so that the node leads the term.
    pub(crate) committed: bool,
}

/// What a state record repeats at the start of each segment, so that older ones can go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogState {
    pub(crate) ballot: Option<Ballot>,
    pub(crate) last: Option<Position>,
    pub(crate) committed: Option<Position>,
    pub(crate) purged: Option<Position>,
}

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The whole [`LogState`] and where the previous segment's records end.
    State,
    /// An entry with a payload of the state machine.
    Normal,
    /// An entry without payload.
    Blank,
    /// An entry that carries a membership.
    Membership,
    /// A vote.
    Vote,
    /// Entries from `index` on are void; later records of those indexes replace them.
    Truncate,
    /// Entries up to `index` are no longer part of the log.
    Purge,
    /// Entries up to `index` are known to be committed.
    Committed,
    /// The end of a sealed segment.
    Footer,
    /// Parts of an entry, in a body segment: see [`crate::pieces`].
    Pieces,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::State => 1,
            Self::Normal => 2,
            Self::Blank => 3,
            Self::Membership => 4,
            Self::Vote => 5,
            Self::Truncate => 6,
            Self::Purge => 7,
            Self::Committed => 8,
            Self::Footer => 9,
            Self::Pieces => 10,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::State),
            2 => Some(Self::Normal),
            3 => Some(Self::Blank),
            4 => Some(Self::Membership),
            5 => Some(Self::Vote),
            6 => Some(Self::Truncate),
            7 => Some(Self::Purge),
            8 => Some(Self::Committed),
            9 => Some(Self::Footer),
            10 => Some(Self::Pieces),
            0 | 11..=u8::MAX => None,
        }
    }

    /// Whether it is an entry of the log, whatever it carries.
    pub(crate) fn is_entry(self) -> bool {
        match self {
            Self::Normal | Self::Blank | Self::Membership => true,
            Self::State
            | Self::Vote
            | Self::Truncate
            | Self::Purge
            | Self::Committed
            | Self::Footer
            | Self::Pieces => false,
        }
    }

    /// Whether it may stand in a body segment, behind its state record.
    pub(crate) fn holds_bodies(self) -> bool {
        self.is_entry() || self == Self::Pieces
    }
}

impl Kind {
    /// What people call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Normal => "entry",
            Self::Blank => "blank",
            Self::Membership => "membership",
            Self::Vote => "vote",
            Self::Truncate => "truncate",
            Self::Purge => "purge",
            Self::Committed => "committed",
            Self::Footer => "footer",
            Self::Pieces => "pieces",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The fixed part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) len: u32,
    pub(crate) durable: u32,
    pub(crate) index: u64,
    pub(crate) term: u64,
}

impl Head {
    /// The encoded head of a record whose payload consists of `parts`.
    pub(crate) fn encode<'a>(&self, seed: u32, parts: impl Iterator<Item = &'a [u8]>) -> [u8; HEAD_LEN] {
        let mut record = self.begin(seed);
        for part in parts {
            record.update(part);
        }
        record.finish()
    }

    /// Begins a record whose payload is not at hand as a whole.
    pub(crate) fn begin(&self, seed: u32) -> OpenRecord {
        let mut out = [0; HEAD_LEN];
        out[4..8].copy_from_slice(&self.len.to_le_bytes());
        out[8] = self.kind.code();
        out[12..16].copy_from_slice(&self.durable.to_le_bytes());
        out[16..24].copy_from_slice(&self.index.to_le_bytes());
        out[24..32].copy_from_slice(&self.term.to_le_bytes());
        let mut crc = crc32fast::Hasher::new_with_initial(seed);
        crc.update(&out[4..]);
        OpenRecord { head: out, crc }
    }

    /// Reads a head without checking its CRC; `None` when it cannot be one.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEAD_LEN] = bytes.first_chunk()?;
        let kind = Kind::from_code(bytes[8])?;
        let len = u32_at(bytes, 4);
        if bytes[9..12] != [0; 3] || len as usize > MAX_PAYLOAD {
            return None;
        }
        let durable = u32_at(bytes, 12);
        Some(Self { kind, len, durable, index: u64_at(bytes, 16), term: u64_at(bytes, 24) })
    }

    /// How many bytes the record takes, padding included.
    pub(crate) fn record_len(&self) -> u64 {
        record_len(self.len as usize)
    }
}

/// How many bytes a record with a payload of `len` bytes takes, padding included.
pub(crate) fn record_len(len: usize) -> u64 {
    (HEAD_LEN + len).next_multiple_of(ALIGN) as u64
}

/// A head that waits for its payload, in any number of pieces.
pub(crate) struct OpenRecord {
    head: [u8; HEAD_LEN],
    crc: crc32fast::Hasher,
}

impl OpenRecord {
    pub(crate) fn update(&mut self, payload: &[u8]) {
        self.crc.update(payload);
    }

    /// The encoded head, once the whole payload was seen.
    pub(crate) fn finish(mut self) -> [u8; HEAD_LEN] {
        self.head[..4].copy_from_slice(&self.crc.finalize().to_le_bytes());
        self.head
    }
}

/// A record's CRC, started from its head and to be fed with its payload in any number of pieces.
pub(crate) struct RecordCrc {
    expected: u32,
    hasher: crc32fast::Hasher,
}

impl RecordCrc {
    pub(crate) fn new(seed: u32, head: &[u8; HEAD_LEN]) -> Self {
        let mut hasher = crc32fast::Hasher::new_with_initial(seed);
        hasher.update(&head[4..]);
        Self { expected: u32_at(head, 0), hasher }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    pub(crate) fn matches(self) -> bool {
        self.hasher.finalize() == self.expected
    }
}

/// What seeds the CRC of each record of a segment.
pub(crate) fn seed(id: u64, epoch: u64) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&id.to_le_bytes());
    crc.update(&epoch.to_le_bytes());
    crc.finalize()
}

/// The start of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) id: u64,
    pub(crate) epoch: u64,
    pub(crate) contents: Contents,
}

/// What lies in a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contents {
    /// A part of the log, then zeros.
    Log,
    /// What is left of entries that were purged, or that came with a snapshot.
    Bodies,
    /// A part of the log, then what is left of an earlier life of the file.
    LogInReused {
        /// Seeds the CRC of the records of the life before.
        old_seed: u32,
    },
}

impl Contents {
    pub(crate) fn is_bodies(self) -> bool {
        self == Self::Bodies
    }

    /// The use that the header tells, and the seed of the life before.
    fn encode(self) -> (u32, u32) {
        match self {
            Self::Log => (0, 0),
            Self::Bodies => (1, 0),
            Self::LogInReused { old_seed } => (2, old_seed),
        }
    }

    fn decode(tag: u32, old_seed: u32) -> Option<Self> {
        match tag {
            0 => Some(Self::Log),
            1 => Some(Self::Bodies),
            2 => Some(Self::LogInReused { old_seed }),
            3..=u32::MAX => None,
        }
    }
}

/// Why the first bytes of a file are no segment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadHeader {
    /// Of another format version.
    Version(u32),
    /// Not a header, or damaged.
    Damaged,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..8].copy_from_slice(SEGMENT_MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let (tag, old_seed) = self.contents.encode();
        out[12..16].copy_from_slice(&tag.to_le_bytes());
        out[32..36].copy_from_slice(&old_seed.to_le_bytes());
        out[16..24].copy_from_slice(&self.id.to_le_bytes());
        out[24..32].copy_from_slice(&self.epoch.to_le_bytes());
        let crc = crc32fast::hash(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        let bytes: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or(BadHeader::Damaged)?;
        if &bytes[..8] != SEGMENT_MAGIC || crc32fast::hash(&bytes[..60]) != u32_at(bytes, 60) {
            return Err(BadHeader::Damaged);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(BadHeader::Version(version));
        }
        let contents = Contents::decode(u32_at(bytes, 12), u32_at(bytes, 32)).ok_or(BadHeader::Damaged)?;
        Ok(Self { id: u64_at(bytes, 16), epoch: u64_at(bytes, 24), contents })
    }
}

/// The encoded trailer of a segment whose footer is at `footer`.
pub(crate) fn encode_trailer(header: &SegmentHeader, footer: u64) -> [u8; TRAILER_LEN] {
    let mut out = [0; TRAILER_LEN];
    out[..8].copy_from_slice(TRAILER_MAGIC);
    out[8..16].copy_from_slice(&footer.to_le_bytes());
    out[16..24].copy_from_slice(&header.epoch.to_le_bytes());
    let mut crc = crc32fast::Hasher::new_with_initial(seed(header.id, header.epoch));
    crc.update(&out[..28]);
    out[28..].copy_from_slice(&crc.finalize().to_le_bytes());
    out
}

/// Where the trailer says that the footer is; `None` when there is no valid trailer.
pub(crate) fn decode_trailer(header: &SegmentHeader, bytes: &[u8]) -> Option<u64> {
    let bytes: &[u8; TRAILER_LEN] = bytes.first_chunk()?;
    let mut crc = crc32fast::Hasher::new_with_initial(seed(header.id, header.epoch));
    crc.update(&bytes[..28]);
    if &bytes[..8] != TRAILER_MAGIC || crc.finalize() != u32_at(bytes, 28) {
        return None;
    }
    Some(u64_at(bytes, 8))
}

impl LogState {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let ballot = self.ballot.unwrap_or(Ballot { term: 0, node: 0, committed: false });
        out.extend_from_slice(&[
            u8::from(self.ballot.is_some()),
            u8::from(ballot.committed),
            0,
            0,
            0,
            0,
            0,
            0,
        ]);
        out.extend_from_slice(&ballot.term.to_le_bytes());
        out.extend_from_slice(&ballot.node.to_le_bytes());
        for position in [self.last, self.committed, self.purged] {
            encode_position(position, out);
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; STATE_LEN] = bytes.first_chunk()?;
        let ballot = Ballot { term: u64_at(bytes, 8), node: u64_at(bytes, 16), committed: flag(bytes[1])? };
        Some(Self {
            ballot: flag(bytes[0])?.then_some(ballot),
            last: decode_position(bytes, 24),
            committed: decode_position(bytes, 40),
            purged: decode_position(bytes, 56),
        })
    }
}

/// The payload of a state record: the state, and where the records of the segment before it end (its footer's
/// offset), 0 when there is none.
pub(crate) struct StateRecord {
    pub(crate) state: LogState,
    pub(crate) previous_id: u64,
    pub(crate) previous_end: u64,
}

impl StateRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(STATE_LEN + 16);
        self.state.encode(&mut out);
        out.extend_from_slice(&self.previous_id.to_le_bytes());
        out.extend_from_slice(&self.previous_end.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let state = LogState::decode(bytes)?;
        let rest: &[u8; 16] = bytes.get(STATE_LEN..)?.try_into().ok()?;
        Some(Self { state, previous_id: u64_at(rest, 0), previous_end: u64_at(rest, 8) })
    }
}

/// What a sealed segment says about itself, so that a restart need not scan it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Footer {
    /// The state after the segment's last record.
    pub(crate) state: LogState,
    /// The lowest index that a truncate record in the segment made void.
    pub(crate) truncated_from: Option<u64>,
    /// The index of the first entry that the segment contributes.
    pub(crate) first: u64,
    /// Where each entry's record starts, from `first` on.
    pub(crate) offsets: Vec<u32>,
    /// The index of each entry of a body segment; empty where entries are consecutive.
    pub(crate) indexes: Vec<u64>,
}

impl Footer {
    /// How long the payload of a footer of `entries` entries is.
    pub(crate) fn len(entries: usize) -> usize {
        FOOTER_FIXED + 4 * entries
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::len(self.offsets.len()));
        self.state.encode(&mut out);
        out.extend_from_slice(&self.truncated_from.unwrap_or(NO_INDEX).to_le_bytes());
        out.extend_from_slice(&self.first.to_le_bytes());
        out.extend_from_slice(&(self.offsets.len() as u64).to_le_bytes());
        for offset in &self.offsets {
            out.extend_from_slice(&offset.to_le_bytes());
        }
        for index in &self.indexes {
            out.extend_from_slice(&index.to_le_bytes());
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let state = LogState::decode(bytes)?;
        let fixed = bytes.get(STATE_LEN..FOOTER_FIXED)?;
        let count = usize::try_from(u64_at(fixed, 16)).ok()?;
        let (table, indexes) = bytes[FOOTER_FIXED..].split_at_checked(count.checked_mul(4)?)?;
        if !indexes.is_empty() && indexes.len() != count.checked_mul(8)? {
            return None;
        }
        let offsets = table.chunks_exact(4).map(|chunk| u32_at(chunk, 0)).collect();
        let indexes = indexes.chunks_exact(8).map(|chunk| u64_at(chunk, 0)).collect();
        let truncated_from = Some(u64_at(fixed, 0)).filter(|index| *index != NO_INDEX);
        Some(Self { state, truncated_from, first: u64_at(fixed, 8), offsets, indexes })
    }
}

/// The payload of a vote record.
pub(crate) fn encode_ballot(ballot: &Ballot) -> [u8; 24] {
    let mut out = [0; 24];
    out[..8].copy_from_slice(&ballot.term.to_le_bytes());
    out[8..16].copy_from_slice(&ballot.node.to_le_bytes());
    out[16] = u8::from(ballot.committed);
    out
}

pub(crate) fn decode_ballot(bytes: &[u8]) -> Option<Ballot> {
    let bytes: &[u8; 24] = bytes.try_into().ok()?;
    Some(Ballot { term: u64_at(bytes, 0), node: u64_at(bytes, 8), committed: flag(bytes[16])? })
}

pub(crate) fn encode_position(position: Option<Position>, out: &mut Vec<u8>) {
    let position = position.unwrap_or(Position { term: 0, index: NO_INDEX });
    out.extend_from_slice(&position.term.to_le_bytes());
    out.extend_from_slice(&position.index.to_le_bytes());
}

pub(crate) fn decode_position(bytes: &[u8], at: usize) -> Option<Position> {
    let position = Position { term: u64_at(bytes, at), index: u64_at(bytes, at + 8) };
    (position.index != NO_INDEX).then_some(position)
}

fn flag(byte: u8) -> Option<bool> {
    match byte {
        0 => Some(false),
        1 => Some(true),
        2..=u8::MAX => None,
    }
}

/// The number at `at`; the caller has checked that the bytes are there.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The number at `at`; the caller has checked that the bytes are there.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> LogState {
        LogState {
            ballot: Some(Ballot { term: 3, node: 2, committed: true }),
            last: Some(Position { term: 3, index: 90 }),
            committed: Some(Position { term: 2, index: 80 }),
            purged: None,
        }
    }

    /// What is encoded decodes to the same, and a changed byte anywhere does not pass.
    #[test]
    fn round_trips() {
        let header = SegmentHeader { id: 7, epoch: 99, contents: Contents::Log };
        for contents in [Contents::Log, Contents::Bodies, Contents::LogInReused { old_seed: 5 }] {
            let header = SegmentHeader { contents, ..header };
            let mut bytes = header.encode();
            assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
            bytes[20] ^= 1;
            assert_eq!(SegmentHeader::decode(&bytes), Err(BadHeader::Damaged));
        }

        let trailer = encode_trailer(&header, 4096);
        assert_eq!(decode_trailer(&header, &trailer), Some(4096));
        assert_eq!(decode_trailer(&SegmentHeader { id: 8, ..header }, &trailer), None);

        let mut footer = Footer {
            state: state(),
            truncated_from: Some(5),
            first: 10,
            offsets: vec![64, 128, 1 << 31],
            indexes: Vec::new(),
        };
        assert_eq!(footer.encode().len(), Footer::len(3));
        for indexes in [vec![], vec![10, 400, 1 << 40]] {
            footer.indexes = indexes;
            let bytes = footer.encode();
            assert_eq!(Footer::decode(&bytes).as_ref(), Some(&footer));
            assert_eq!(Footer::decode(&bytes[..bytes.len() - 1]), None);
        }

        let record = StateRecord { state: LogState::default(), previous_id: 4, previous_end: 5 };
        let back = StateRecord::decode(&record.encode()).unwrap();
        assert_eq!((back.state, back.previous_id, back.previous_end), (LogState::default(), 4, 5));
        let ballot = Ballot { term: 1, node: 2, committed: false };
        assert_eq!(decode_ballot(&encode_ballot(&ballot)), Some(ballot));
    }

    /// The CRC covers head and payload and is bound to the segment.
    #[test]
    fn record_crc() {
        let head = Head { kind: Kind::Normal, len: 5, durable: 64, index: 3, term: 1 };
        let bytes = head.encode(seed(1, 2), [b"he".as_slice(), b"llo"].into_iter());
        assert_eq!(Head::parse(&bytes), Some(head));
        let check = |seed, head: &[u8; HEAD_LEN], payload: &[u8]| {
            let mut crc = RecordCrc::new(seed, head);
            crc.update(payload);
            crc.matches()
        };
        assert!(check(seed(1, 2), &bytes, b"hello"));
        assert!(!check(seed(1, 3), &bytes, b"hello"));
        assert!(!check(seed(1, 2), &bytes, b"hellp"));
        let mut damaged = bytes;
        damaged[30] ^= 4;
        assert!(!check(seed(1, 2), &damaged, b"hello"));
        assert_eq!(Head::parse(&[0; HEAD_LEN]), None);
    }
}
