//! Bodies and entries from peers, in the place of those that do not check out here.
//!
//! ```text
//! who misses bodies                                every other member
//!   Ask: entry, (offset, length) of each     ──>     reads them, checks them
//!   <──   Answer: which it has, their bytes          or says that it is behind, which is no answer
//!   checks them again
//! ```
//!
//! A connection of its own for each question, so that neither appends nor heartbeats wait for it. All members are
//! asked at the same time; the first one that has a body whole is believed. Only committed entries are answered for:
//! under one index there is one of them.
//!
//! ```text
//! question   index u64  count u32            then per body: offset u32  length u32
//! answer     behind u8  term u64  count u32  then per body: there u8    then the bytes of those that are
//! ```
//!
//! A question for no body is one for the whole entry; the answer goes on with `there u8`, and if it is, `kind u8` and the
//! payload. That is for who reads the log: to apply it, or to send it to a follower.

mod answer;
mod ask;
mod fetch;

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use crate::format::Kind;
use crate::message::{Take, kind_code, kind_of};

pub(crate) use answer::serve;
pub(crate) use fetch::{Fetched, fetch, fetch_entry, fetch_one};

/// Bodies asked for at once, at most.
pub(crate) const BODIES_MAX: usize = 1024;
/// Their bytes at most, unless one alone is longer.
pub(crate) const BYTES_MAX: u64 = 4 << 20;
/// How long is waited for the answers to one question, ...
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// ... and longer by this for every MiB that is asked for; an entry of unknown length may be as long as so many MiB.
const PER_MIB: Duration = Duration::from_millis(100);
const ENTRY_MIB: u32 = 64;

/// Some bodies of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) index: u64,
    /// Offset and length of each, in bytes of the entry's payload; none for the whole entry.
    pub(crate) bodies: Vec<(u32, u32)>,
}

/// What a member has of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// It does not know yet what was committed under that index.
    pub(crate) behind: bool,
    /// The entry's term; 0 when it does not know.
    pub(crate) term: u64,
    /// Those that check out.
    pub(crate) bodies: Vec<Option<Bytes>>,
    /// The whole entry, if that was asked for and is there.
    pub(crate) entry: Option<(Kind, Vec<Bytes>)>,
}

impl Question {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(12 + 8 * self.bodies.len());
        out.put_u64_le(self.index);
        out.put_u32_le(u32::try_from(self.bodies.len()).expect("few bodies are asked for at once"));
        for (offset, len) in &self.bodies {
            out.put_u32_le(*offset);
            out.put_u32_le(*len);
        }
        out.freeze()
    }

    fn decode(body: Bytes) -> Option<Self> {
        let mut take = Take(body);
        let (index, count) = (take.u64()?, take.u32()? as usize);
        if count > BODIES_MAX {
            return None;
        }
        let bodies: Option<Vec<_>> = (0..count).map(|_| Some((take.u32()?, take.u32()?))).collect();
        take.end()?;
        let question = Self { index, bodies: bodies? };
        question.is_bounded().then_some(question)
    }

    /// How long is waited for answers.
    fn patience(&self) -> Duration {
        let bytes: u64 = self.bodies.iter().map(|(_, len)| u64::from(*len)).sum();
        let mib =
            if self.bodies.is_empty() { ENTRY_MIB } else { u32::try_from(bytes >> 20).unwrap_or(u32::MAX) };
        ANSWER_WITHIN + PER_MIB * mib
    }

    fn is_bounded(&self) -> bool {
        let bytes: u64 = self.bodies.iter().map(|(_, len)| u64::from(*len)).sum();
        self.bodies.len() <= 1 || bytes <= BYTES_MAX
    }
}

impl Answer {
    fn encode(self) -> Vec<Bytes> {
        let mut head = BytesMut::with_capacity(13 + self.bodies.len());
        head.put_u8(u8::from(self.behind));
        head.put_u64_le(self.term);
        head.put_u32_le(u32::try_from(self.bodies.len()).expect("few bodies are asked for at once"));
        for body in &self.bodies {
            head.put_u8(u8::from(body.is_some()));
        }
        let whole = match self.entry {
            Some((kind, payload)) => {
                head.put_slice(&[1, kind_code(kind)]);
                payload
            }
            None if self.bodies.is_empty() => {
                head.put_u8(0);
                Vec::new()
            }
            None => Vec::new(),
        };
        let mut parts = vec![head.freeze()];
        parts.extend(self.bodies.into_iter().flatten());
        parts.extend(whole);
        parts
    }

    /// Reads the answer to `question`.
    fn decode(body: Bytes, question: &Question) -> Option<Self> {
        let mut take = Take(body);
        let (behind, term, count) = (take.flag()?, take.u64()?, take.u32()? as usize);
        if count != question.bodies.len() {
            return None;
        }
        let there: Option<Vec<bool>> = (0..count).map(|_| take.flag()).collect();
        let mut bodies = Vec::with_capacity(count);
        for (there, (_, len)) in there?.into_iter().zip(&question.bodies) {
            bodies.push(if there { Some(take.bytes(*len as usize)?) } else { None });
        }
        let mut entry = None;
        if count == 0 && take.flag()? {
            let kind = kind_of(take.u8()?)?;
            let len = take.0.len();
            entry = Some((kind, vec![take.bytes(len)?]));
        }
        take.end()?;
        Some(Self { behind, term, bodies, entry })
    }
}

/// Cuts a list of bodies into questions that are not too large.
pub(crate) fn questions(index: u64, bodies: &[(u32, u32)]) -> Vec<Question> {
    let mut questions: Vec<Question> = Vec::new();
    for body in bodies {
        match questions.last_mut() {
            Some(last) if last.bodies.len() < BODIES_MAX => {
                last.bodies.push(*body);
                if last.is_bounded() {
                    continue;
                }
                last.bodies.pop();
            }
            Some(_) | None => {}
        }
        questions.push(Question { index, bodies: vec![*body] });
    }
    questions
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Questions and answers survive, and no cut passes, nor a question for too much.
    #[test]
    fn messages() {
        let question = Question { index: 7, bodies: vec![(3, 2), (9, 4), (20, 0)] };
        let bytes = question.encode();
        assert_eq!(Question::decode(bytes.clone()), Some(question.clone()));
        let bodies = vec![Some("ab".into()), None, Some(Bytes::new())];
        let answer = Answer { behind: false, term: 5, bodies, entry: None };
        let whole = Bytes::from(answer.clone().encode().concat());
        assert_eq!(Answer::decode(whole.clone(), &question), Some(answer));
        assert!((0..bytes.len()).all(|len| Question::decode(bytes.slice(..len)).is_none()));
        assert!((0..whole.len()).all(|len| Answer::decode(whole.slice(..len), &question).is_none()));
        let long = u32::try_from(BYTES_MAX).unwrap();
        assert!(Question::decode(Question { index: 1, bodies: vec![(0, long), (1, 1)] }.encode()).is_none());
        assert!(Question::decode(Question { index: 1, bodies: vec![(0, long + 1)] }.encode()).is_some());
        let many = Question { index: 1, bodies: vec![(0, 0); BODIES_MAX + 1] };
        assert!(Question::decode(many.encode()).is_none());
    }

    /// So do those about a whole entry.
    #[test]
    fn entries() {
        let question = Question { index: 7, bodies: Vec::new() };
        assert_eq!(Question::decode(question.encode()), Some(question.clone()));
        let there = Some((Kind::Membership, vec![Bytes::from("payload")]));
        for entry in [None, there, Some((Kind::Blank, vec![Bytes::new()]))] {
            let answer = Answer { behind: false, term: 5, bodies: Vec::new(), entry };
            let whole = Bytes::from(answer.clone().encode().concat());
            assert_eq!(Answer::decode(whole.clone(), &question), Some(answer));
            assert!(Answer::decode(whole.slice(..13), &question).is_none());
        }
    }

    /// However many bodies there are, and however long: every question is bounded, and none is forgotten.
    #[test]
    fn bounded_questions() {
        let long = u32::try_from(BYTES_MAX / 3).unwrap();
        let bodies: Vec<(u32, u32)> =
            (0..3000).map(|at| (at, if at % 500 == 7 { long } else { 10 })).chain([(9, long * 4)]).collect();
        let asked = questions(4, &bodies);
        assert!(asked.iter().all(|question| Question::decode(question.encode()).is_some()));
        assert_eq!(asked.iter().flat_map(|question| question.bodies.clone()).collect::<Vec<_>>(), bodies);
        assert!(questions(4, &[]).is_empty());
    }
}
