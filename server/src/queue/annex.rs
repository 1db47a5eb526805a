//! The part of the image that a state of level 0 does not have: written as one block, because it is small.
//!
//! ```text
//! level u32, length u32, section*          section: kind u8, length u32, bytes
//!   1 bulks     running u32, bulk*, done u32, view*
//!   2 policies  policy u32, (pattern, policy as in an entry)*
//!   3 extras    refused u64, dead u64, expired u64: of all tubes ever; tubes u32, by birth:
//!               (birth u64, refused u64, dead u64, expired u64, paid u64, sweep u64)*
//!   4 sweep     bulk: the one under way
//!   5 once      window u64, keys at most u64, keys u32, (stamp u64, id u64, length u16, tube, space, key)*, oldest first
//! bulk: view, states u8, until u64, last id u64, last seq u64, left u64, stage u8, key u64, u64
//! view: nonce u64, verb u8, tube, to, done u64, looked u64, total u64
//! tube: length u8, bytes
//! ```
//!
//! A section that is empty is left out. An unknown one is refused: a part of the state must not get lost.

use super::batch::put_policy;
use super::bulk::{Bulk, BulkVerb, BulkView, Bulks, Cursor, States};
use super::decode as entry;
use super::engine::Engine;
use super::once::Once;
use super::policy::{Extra, Policies, Tally};
use super::types::JobState;

const BULKS: u8 = 1;
const POLICIES: u8 = 2;
const EXTRAS: u8 = 3;
const SWEEP: u8 = 4;
const ONCE: u8 = 5;

/// What is wrong with an annex.
pub(super) type Wrong = &'static str;

impl Engine {
    /// The annex, with level and length before it; empty at level 0.
    pub(super) fn annex(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if self.level == 0 {
            return out;
        }
        out.extend_from_slice(&self.level.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        if !self.bulks.running.is_empty() || !self.bulks.done.is_empty() {
            section(&mut out, BULKS, |out| put_bulks(out, &self.bulks));
        }
        if self.policies.len() > 0 {
            section(&mut out, POLICIES, |out| put_policies(out, &self.policies));
        }
        if !self.policies.extras.is_empty() || self.policies.total != Tally::default() {
            section(&mut out, EXTRAS, |out| put_extras(out, &self.policies));
        }
        if let Some(sweep) = &self.policies.sweep {
            section(&mut out, SWEEP, |out| put_bulk(out, sweep));
        }
        if !self.once.is_plain() {
            section(&mut out, ONCE, |out| put_once(out, &self.once));
        }
        set_length(&mut out, 4);
        out
    }

    /// Takes in what is behind the annex's length.
    pub(super) fn read_annex(&mut self, bytes: &[u8]) -> Result<(), Wrong> {
        let mut annex = Reader(bytes);
        while !annex.0.is_empty() {
            let kind = annex.u8()?;
            let len = annex.u32()? as usize;
            let mut section = Reader(annex.take(len)?);
            match kind {
                BULKS => self.bulks = bulks(&mut section)?,
                POLICIES => read_policies(&mut section, &mut self.policies)?,
                EXTRAS => read_extras(&mut section, &mut self.policies)?,
                ONCE => self.once = once(&mut section)?,
                SWEEP => self.policies.sweep = Some(bulk(&mut section)?),
                _ => return Err("it has a section of an unknown kind"),
            }
            if !section.0.is_empty() {
                return Err("a section of it is too long");
            }
        }
        Ok(())
    }
}

// ---- writing ----

fn section(out: &mut Vec<u8>, kind: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(kind);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    set_length(out, at);
}

/// Fills in the length of what follows the four bytes at `at`.
fn set_length(out: &mut [u8], at: usize) {
    let len = u32::try_from(out.len() - at - 4).expect("all its parts are bounded");
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
}

fn put_u64s<const N: usize>(out: &mut Vec<u8>, numbers: [u64; N]) {
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u32::try_from(count).expect("all its parts are bounded").to_le_bytes());
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    out.push(u8::try_from(name.len()).expect("a tube's name has at most 200 bytes"));
    out.extend_from_slice(name.as_bytes());
}

fn put_bulks(out: &mut Vec<u8>, bulks: &Bulks) {
    put_count(out, bulks.running.len());
    for bulk in &bulks.running {
        put_bulk(out, bulk);
    }
    put_count(out, bulks.done.len());
    for view in &bulks.done {
        put_view(out, view);
    }
}

fn put_bulk(out: &mut Vec<u8>, bulk: &Bulk) {
    put_view(out, &bulk.view);
    out.push(bulk.states.bits());
    put_u64s(out, [bulk.until_us, bulk.last_id, bulk.last_seq, bulk.left]);
    out.push(match bulk.at.stage {
        None => 0,
        Some(JobState::Delayed) => 1,
        Some(JobState::Buried) => 2,
        Some(JobState::Ready | JobState::Reserved) => 3,
    });
    put_u64s(out, [bulk.at.key.0, bulk.at.key.1]);
}

fn put_policies(out: &mut Vec<u8>, policies: &Policies) {
    put_count(out, policies.len());
    for (pattern, policy) in policies.iter() {
        put_name(out, &pattern);
        put_policy(out, policy);
    }
}

fn put_once(out: &mut Vec<u8>, once: &Once) {
    put_u64s(out, [once.window_us, once.keys_max]);
    put_count(out, once.iter().len());
    for (at, name, id) in once.iter() {
        put_u64s(out, [at, id]);
        let len = u16::try_from(name.len()).expect("names and keys are short");
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(name);
    }
}

fn put_extras(out: &mut Vec<u8>, policies: &Policies) {
    put_u64s(out, [policies.total.refused, policies.total.dead, policies.total.expired]);
    put_count(out, policies.extras.len());
    for (born, extra) in &policies.extras {
        let Tally { refused, dead, expired } = extra.tally;
        put_u64s(out, [*born, refused, dead, expired, extra.paid_ns, extra.sweep_at]);
    }
}

fn put_view(out: &mut Vec<u8>, view: &BulkView) {
    put_u64s(out, [view.nonce]);
    out.push(view.verb.code());
    put_name(out, &view.tube);
    put_name(out, &view.to);
    put_u64s(out, [view.done, view.looked, view.total]);
}

// ---- reading ----

fn bulks(from: &mut Reader<'_>) -> Result<Bulks, Wrong> {
    let mut bulks = Bulks::default();
    for _ in 0..from.u32()? {
        bulks.running.push_back(bulk(from)?);
    }
    for _ in 0..from.u32()? {
        bulks.done.push_back(view(from, false)?);
    }
    Ok(bulks)
}

fn read_policies(from: &mut Reader<'_>, policies: &mut Policies) -> Result<(), Wrong> {
    for _ in 0..from.u32()? {
        let pattern = from.name()?.to_owned();
        let mut entry = entry::Reader::new(from.0);
        let policy = entry.policy().map_err(|_| "a policy cannot be read")?;
        from.0 = entry.rest();
        policies.set(&pattern, Some(policy));
    }
    Ok(())
}

fn once(from: &mut Reader<'_>) -> Result<Once, Wrong> {
    let mut once = Once::new(from.u64()?, from.u64()?);
    for _ in 0..from.u32()? {
        let (at, id) = (from.u64()?, from.u64()?);
        let len = usize::from(u16::from_le_bytes(from.array()?));
        once.add(at, from.take(len)?, id);
    }
    Ok(once)
}

fn tally(from: &mut Reader<'_>) -> Result<Tally, Wrong> {
    Ok(Tally { refused: from.u64()?, dead: from.u64()?, expired: from.u64()? })
}

fn read_extras(from: &mut Reader<'_>, policies: &mut Policies) -> Result<(), Wrong> {
    policies.total = tally(from)?;
    for _ in 0..from.u32()? {
        let (born, tally) = (from.u64()?, tally(from)?);
        policies.restore_extra(born, Extra { tally, paid_ns: from.u64()?, sweep_at: from.u64()? });
    }
    Ok(())
}

fn bulk(from: &mut Reader<'_>) -> Result<Bulk, Wrong> {
    let view = view(from, true)?;
    let states = States::of_bits(from.u8()?);
    let (until_us, last_id, last_seq, left) = (from.u64()?, from.u64()?, from.u64()?, from.u64()?);
    let stage = match from.u8()? {
        0 => None,
        1 => Some(JobState::Delayed),
        2 => Some(JobState::Buried),
        3 => Some(JobState::Ready),
        _ => return Err("a bulk operation is at no place"),
    };
    let at = Cursor { stage, key: (from.u64()?, from.u64()?) };
    Ok(Bulk { view, states, until_us, last_id, last_seq, left, at })
}

fn view(from: &mut Reader<'_>, running: bool) -> Result<BulkView, Wrong> {
    let nonce = from.u64()?;
    let verb = BulkVerb::of_code(from.u8()?).ok_or("a bulk operation is of an unknown kind")?;
    let (tube, to) = (from.name()?.into(), from.name()?.into());
    let (done, looked, total) = (from.u64()?, from.u64()?, from.u64()?);
    Ok(BulkView { nonce, verb, tube, to, done, looked, total, running })
}

/// What is not read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Wrong> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or("it is cut short")?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Wrong> {
        Ok(self.take(N)?.try_into().expect("take answers as many bytes as asked for"))
    }

    fn u8(&mut self) -> Result<u8, Wrong> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, Wrong> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Wrong> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn name(&mut self) -> Result<&'a str, Wrong> {
        let len = usize::from(self.u8()?);
        std::str::from_utf8(self.take(len)?).map_err(|_| "a name is not text")
    }
}
