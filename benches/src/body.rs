//! What a job of this program looks like inside, and how a received one is judged.
//!
//! Every body says which run, which producer and which of its jobs it is, when it was sent and how long it
//! must be, under a CRC. So the receiving side needs no list of what was sent to tell a whole job from a
//! damaged one, and one run's jobs from another's.
//!
//! ```text
//!  0      4      8              16        20        24            32            40                  length
//!  | BPj1 | crc  | run id (u64) | producer | length | sequence    | sent at, ns | filler: 0..251 ... |
//!         ^ CRC-32 of everything behind it           (integers little-endian)
//! ```

use std::ops::RangeInclusive;
use std::str::FromStr;

/// The smallest body this program can send, in bytes: the stamp alone.
pub const STAMP_BYTES: u32 = 40;

/// The largest body this program sends, in bytes (the protocol's highest `-z`).
pub const BODY_BYTES_MAX: u32 = 1 << 30;

const MAGIC: &[u8; 4] = b"BPj1";
/// The filler repeats with a prime period, so a shifted or swapped page never looks right.
const FILLER_PERIOD: u32 = 251;

/// How long bodies are: one length for all, or a range that the sequence number walks through.
///
/// Written `256`, `4KiB` or `100..4KiB` on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodySize(RangeInclusive<u32>);

impl BodySize {
    /// All bodies `bytes` long. `None` below [`STAMP_BYTES`] or above [`BODY_BYTES_MAX`].
    pub fn fixed(bytes: u32) -> Option<BodySize> {
        BodySize::between(bytes, bytes)
    }

    /// Bodies of `low` to `high` bytes, both included, evenly spread.
    pub fn between(low: u32, high: u32) -> Option<BodySize> {
        (STAMP_BYTES <= low && low <= high && high <= BODY_BYTES_MAX).then_some(BodySize(low..=high))
    }

    /// The length of one job's body, in bytes: the same at every call, so the receiver can check it.
    pub fn length(&self, producer: u32, sequence: u64) -> u32 {
        let (low, high) = (*self.0.start(), *self.0.end());
        if low == high {
            return low;
        }
        let span = u64::from(high - low) + 1;
        low + u32::try_from(mix(sequence ^ (u64::from(producer) << 40)) % span).expect("below a u32 span")
    }

    /// The longest body of the range, in bytes.
    pub fn longest(&self) -> u32 {
        *self.0.end()
    }
}

impl std::fmt::Display for BodySize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.start() == self.0.end() {
            write!(f, "{}", self.0.start())
        } else {
            write!(f, "{}..{}", self.0.start(), self.0.end())
        }
    }
}

impl FromStr for BodySize {
    type Err = String;

    fn from_str(text: &str) -> Result<BodySize, String> {
        let (low, high) = match text.split_once("..") {
            Some((low, high)) => (parse_bytes(low)?, parse_bytes(high)?),
            None => (parse_bytes(text)?, parse_bytes(text)?),
        };
        BodySize::between(low, high).ok_or_else(|| {
            format!(
                "a body is {STAMP_BYTES} bytes (its stamp and CRC) to 1GiB long, and a range goes from low to high"
            )
        })
    }
}

/// Reads `300`, `4KiB`, `1MiB`, `1GiB` (also `4K`, `4k`): bytes, powers of 1024.
fn parse_bytes(text: &str) -> Result<u32, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        other => return Err(format!("'{other}' is no unit of size; use B, KiB, MiB or GiB")),
    };
    let number: u64 = number.parse().map_err(|_| format!("'{text}' is no size"))?;
    number
        .checked_mul(scale)
        .and_then(|bytes| u32::try_from(bytes).ok())
        .ok_or_else(|| format!("'{text}' is more than 1GiB"))
}

/// Spreads the bits of `x` (the finaliser of splitmix64).
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What a body says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The run that sent it.
    pub run: u64,
    /// The number of its producer within the run.
    pub producer: u32,
    /// Its number among its producer's jobs, from 0.
    pub sequence: u64,
    /// When its put was written, in nanoseconds since the run's start.
    pub sent_ns: u64,
}

/// The verdict on a received body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Whole, and of this run.
    Ours(Stamp),
    /// Whole, of another run of this program.
    OtherRun(Stamp),
    /// Stamped by this program, and changed since.
    Damaged {
        /// Whether the (perhaps damaged) stamp names this run.
        names_this_run: bool,
    },
    /// Nothing of this program's.
    Foreign,
}

/// Writes and judges the bodies of one run, in one buffer that is used again for each.
pub struct Bodies {
    run: u64,
    size: BodySize,
    /// The filler of every sequence number is a window of this.
    filler: Vec<u8>,
    buffer: Vec<u8>,
}

impl Bodies {
    /// Bodies of run `run`.
    pub fn new(run: u64, size: BodySize) -> Bodies {
        let longest = size.longest();
        let filler = (0..longest + FILLER_PERIOD)
            .map(|i| u8::try_from(i % FILLER_PERIOD).expect("below 251"))
            .collect();
        Bodies { run, size, filler, buffer: vec![0; longest as usize] }
    }

    /// The body of one job, whole with its CRC.
    pub fn stamp(&mut self, producer: u32, sequence: u64, sent_ns: u64) -> &[u8] {
        let length = self.size.length(producer, sequence);
        let body = &mut self.buffer[..length as usize];
        body[0..4].copy_from_slice(MAGIC);
        body[8..16].copy_from_slice(&self.run.to_le_bytes());
        body[16..20].copy_from_slice(&producer.to_le_bytes());
        body[20..24].copy_from_slice(&length.to_le_bytes());
        body[24..32].copy_from_slice(&sequence.to_le_bytes());
        body[32..40].copy_from_slice(&sent_ns.to_le_bytes());
        let shift = (sequence % u64::from(FILLER_PERIOD)) as usize;
        let filler_length = body.len() - STAMP_BYTES as usize;
        body[STAMP_BYTES as usize..].copy_from_slice(&self.filler[shift..shift + filler_length]);
        let crc = crc32fast::hash(&body[8..]);
        body[4..8].copy_from_slice(&crc.to_le_bytes());
        body
    }

    /// Judges a received body.
    pub fn judge(&self, body: &[u8]) -> Verdict {
        if body.len() < STAMP_BYTES as usize || body[0..4] != *MAGIC {
            return Verdict::Foreign;
        }
        let run = read_u64(body, 8);
        let ours = run == self.run;
        if crc32fast::hash(&body[8..]) != read_u32(body, 4) || read_u32(body, 20) as usize != body.len() {
            return Verdict::Damaged { names_this_run: ours };
        }
        let stamp = Stamp {
            run,
            producer: read_u32(body, 16),
            sequence: read_u64(body, 24),
            sent_ns: read_u64(body, 32),
        };
        if !ours {
            Verdict::OtherRun(stamp)
        } else if self.size.length(stamp.producer, stamp.sequence) as usize == body.len() {
            Verdict::Ours(stamp)
        } else {
            Verdict::Damaged { names_this_run: true }
        }
    }
}

fn read_u32(body: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(body[at..at + 4].try_into().expect("four bytes"))
}

fn read_u64(body: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(body[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_comes_back_as_it_was_stamped() {
        for size in ["40", "256", "40..1000"] {
            let mut bodies = Bodies::new(7, size.parse().unwrap());
            for sequence in [0, 1, 250, 251, 1_000_000] {
                let body = bodies.stamp(3, sequence, 99).to_vec();
                let stamp = Stamp { run: 7, producer: 3, sequence, sent_ns: 99 };
                assert_eq!(bodies.judge(&body), Verdict::Ours(stamp));
                let other = Bodies::new(8, size.parse().unwrap());
                assert_eq!(other.judge(&body), Verdict::OtherRun(stamp));
            }
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let mut bodies = Bodies::new(7, BodySize::fixed(64).unwrap());
        let whole = bodies.stamp(0, 5, 1).to_vec();
        for bit in 0..whole.len() * 8 {
            let mut body = whole.clone();
            body[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(bodies.judge(&body), Verdict::Ours(_) | Verdict::OtherRun(_)), "bit {bit}");
        }
        for length in 0..whole.len() {
            assert!(!matches!(bodies.judge(&whole[..length]), Verdict::Ours(_) | Verdict::OtherRun(_)));
        }
    }

    #[test]
    fn sizes_are_read_and_bounded() {
        assert_eq!("4KiB".parse(), Ok(BodySize::fixed(4096).unwrap()));
        assert_eq!("100..1k".parse(), Ok(BodySize::between(100, 1024).unwrap()));
        for bad in ["39", "", "x", "10..5", "200..100", "2GiB", "5 apples", "9999999999999999999999"] {
            assert!(bad.parse::<BodySize>().is_err(), "{bad}");
        }
        let size = BodySize::between(50, 60).unwrap();
        let seen: std::collections::BTreeSet<u32> = (0..1000).map(|s| size.length(1, s)).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), (50..=60).collect::<Vec<_>>());
    }
}
