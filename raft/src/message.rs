//! The consensus messages as bytes: bodies of frames. None of openraft's own encodings is used.
//!
//! ```text
//! position   term u64   index u64 (all ones: none)
//! ballot     term u64   node u64   committed u8
//! append     stream u64  ballot of the leader  position before  position committed  count u32
//!            then per entry: kind u8  term u64  index u64  length u32      then all payloads, one after the other
//! appended   outcome u8: 0 accepted, 1 conflict at, 2 higher ballot    then the position, or the ballot
//! vote       ballot of the candidate  position of its last entry  handover u8
//! voted      ballot of the voter  position of its last entry  granted u8
//! handover   ballot of the leader  node to lead u64  position it must have
//! taken      outcome u8: 0 accepted, 1 the ballot is another, 2 the log is behind
//! ```
//!
//! A stream is one run of pipelined appends: a conflict ends it, and what was sent behind the conflict is void.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};

use crate::format::{Ballot, Kind, Position};
use crate::types::{Entry, TypeConfig, Vote, entry_record, record_entry};

/// An index that no entry has.
const NO_INDEX: u64 = u64::MAX;
/// Payloads shorter than this are copied out of the buffer in which they arrived, in bytes; longer ones are most of it.
const COPIED_BELOW: usize = 16 << 10;
/// Bytes that describe one entry of an append.
const ENTRY_HEAD: usize = 21;

const NORMAL: u8 = 0;
const BLANK: u8 = 1;
const MEMBERSHIP: u8 = 2;

pub(crate) fn put_position(out: &mut BytesMut, position: Option<Position>) {
    let position = position.unwrap_or(Position { term: 0, index: NO_INDEX });
    out.put_u64_le(position.term);
    out.put_u64_le(position.index);
}

fn put_ballot(out: &mut BytesMut, vote: Vote) {
    let ballot = Ballot::from(vote);
    out.put_u64_le(ballot.term);
    out.put_u64_le(ballot.node);
    out.put_u8(u8::from(ballot.committed));
}

/// Takes numbers off the front of a body; `None` when it is too short or makes no sense.
pub(crate) struct Take(pub(crate) Bytes);

impl Take {
    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.0.try_get_u8().ok()
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.0.try_get_u32_le().ok()
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.0.try_get_u64_le().ok()
    }

    pub(crate) fn u128(&mut self) -> Option<u128> {
        self.0.try_get_u128_le().ok()
    }

    pub(crate) fn flag(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            2..=u8::MAX => None,
        }
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Option<Bytes> {
        (len <= self.0.len()).then(|| self.0.split_to(len))
    }

    pub(crate) fn text(&mut self) -> Option<String> {
        let len = self.u32()? as usize;
        String::from_utf8(self.bytes(len)?.to_vec()).ok()
    }

    /// The outer `None` is a body that is too short, the inner one a position that is none.
    pub(crate) fn position(&mut self) -> Option<Option<Position>> {
        let position = Position { term: self.u64()?, index: self.u64()? };
        Some((position.index != NO_INDEX).then_some(position))
    }

    fn vote(&mut self) -> Option<Vote> {
        let (term, node, committed) = (self.u64()?, self.u64()?, self.flag()?);
        Some(Ballot { term, node, committed }.into())
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// The parts of an append's body: one that describes, then the payloads as they are.
pub(crate) fn encode_append(stream: u64, request: &AppendEntriesRequest<TypeConfig>) -> Vec<Bytes> {
    let entries = &request.entries;
    let mut head = BytesMut::with_capacity(64 + ENTRY_HEAD * entries.len());
    head.put_u64_le(stream);
    put_ballot(&mut head, request.vote);
    put_position(&mut head, request.prev_log_id.map(Into::into));
    put_position(&mut head, request.leader_commit.map(Into::into));
    head.put_u32_le(u32::try_from(entries.len()).expect("one request has few entries"));
    let mut parts = vec![Bytes::new()];
    for entry in entries {
        let (kind, payload) = entry_record(entry);
        head.put_u8(kind_code(kind));
        let position = Position::from(entry.log_id);
        head.put_u64_le(position.term);
        head.put_u64_le(position.index);
        head.put_u32_le(u32::try_from(payload.len()).expect("a payload is bounded"));
        parts.extend(payload.parts().iter().filter(|part| !part.is_empty()).cloned());
    }
    parts[0] = head.freeze();
    parts
}

/// The kind of an entry as it travels.
pub(crate) fn kind_code(kind: Kind) -> u8 {
    match kind {
        Kind::Normal => NORMAL,
        Kind::Blank => BLANK,
        Kind::Membership => MEMBERSHIP,
        Kind::State
        | Kind::Vote
        | Kind::Truncate
        | Kind::Purge
        | Kind::Committed
        | Kind::Footer
        | Kind::Pieces => {
            unreachable!("entries are of the entry kinds")
        }
    }
}

/// The stream and the request.
pub(crate) fn decode_append(body: Bytes) -> Option<(u64, AppendEntriesRequest<TypeConfig>)> {
    let mut take = Take(body);
    let (stream, vote) = (take.u64()?, take.vote()?);
    let (prev, commit) = (take.position()?, take.position()?);
    let count = take.u32()? as usize;
    let mut heads = Take(take.bytes(count.checked_mul(ENTRY_HEAD)?)?);
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        entries.push(decode_entry(&mut heads, &mut take)?);
    }
    take.end()?;
    let (prev_log_id, leader_commit) = (prev.map(Into::into), commit.map(Into::into));
    Some((stream, AppendEntriesRequest { vote, prev_log_id, entries, leader_commit }))
}

fn decode_entry(heads: &mut Take, payloads: &mut Take) -> Option<Entry> {
    let kind = kind_of(heads.u8()?)?;
    let position = Position { term: heads.u64()?, index: heads.u64()? };
    let len = heads.u32()? as usize;
    record_entry(kind, position, own(payloads.bytes(len)?))
}

/// A payload that is kept for long, and counted by its length, must not hold on to the buffer that it arrived in.
fn own(payload: Bytes) -> Bytes {
    if payload.len() < COPIED_BELOW { Bytes::copy_from_slice(&payload) } else { payload }
}

/// The kind that a code stands for.
pub(crate) fn kind_of(code: u8) -> Option<Kind> {
    match code {
        NORMAL => Some(Kind::Normal),
        BLANK => Some(Kind::Blank),
        MEMBERSHIP => Some(Kind::Membership),
        3..=u8::MAX => None,
    }
}

pub(crate) fn encode_appended(result: &StreamAppendResult<TypeConfig>) -> Bytes {
    let mut out = BytesMut::with_capacity(18);
    match result {
        Ok(matching) => {
            out.put_u8(0);
            put_position(&mut out, matching.map(Into::into));
        }
        Err(StreamAppendError::Conflict(at)) => {
            out.put_u8(1);
            put_position(&mut out, Some((*at).into()));
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            out.put_u8(2);
            put_ballot(&mut out, *vote);
        }
    }
    out.freeze()
}

pub(crate) fn decode_appended(body: Bytes) -> Option<StreamAppendResult<TypeConfig>> {
    let mut take = Take(body);
    let result = match take.u8()? {
        0 => Ok(take.position()?.map(Into::into)),
        1 => Err(StreamAppendError::Conflict(take.position()??.into())),
        2 => Err(StreamAppendError::HigherVote(take.vote()?)),
        3..=u8::MAX => return None,
    };
    take.end()?;
    Some(result)
}

/// A vote by itself.
pub(crate) fn encode_ballot(vote: Vote) -> Bytes {
    let mut out = BytesMut::with_capacity(17);
    put_ballot(&mut out, vote);
    out.freeze()
}

pub(crate) fn decode_ballot(body: Bytes) -> Option<Vote> {
    let mut take = Take(body);
    let vote = take.vote()?;
    take.end()?;
    Some(vote)
}

pub(crate) fn encode_vote(request: &VoteRequest<TypeConfig>) -> Bytes {
    let mut out = BytesMut::with_capacity(34);
    put_ballot(&mut out, request.vote);
    put_position(&mut out, request.last_log_id.map(Into::into));
    out.put_u8(u8::from(request.leadership_transfer));
    out.freeze()
}

pub(crate) fn decode_vote(body: Bytes) -> Option<VoteRequest<TypeConfig>> {
    let mut take = Take(body);
    let (vote, last) = (take.vote()?, take.position()?);
    let leadership_transfer = take.flag()?;
    take.end()?;
    Some(VoteRequest { vote, last_log_id: last.map(Into::into), leadership_transfer })
}

pub(crate) fn encode_voted(response: &VoteResponse<TypeConfig>) -> Bytes {
    let mut out = BytesMut::with_capacity(34);
    put_ballot(&mut out, response.vote);
    put_position(&mut out, response.last_log_id.map(Into::into));
    out.put_u8(u8::from(response.vote_granted));
    out.freeze()
}

pub(crate) fn decode_voted(body: Bytes) -> Option<VoteResponse<TypeConfig>> {
    let mut take = Take(body);
    let (vote, last, vote_granted) = (take.vote()?, take.position()?, take.flag()?);
    take.end()?;
    Some(VoteResponse { vote, vote_granted, last_log_id: last.map(Into::into) })
}

pub(crate) fn encode_handover(request: &TransferLeaderRequest<TypeConfig>) -> Bytes {
    let mut out = BytesMut::with_capacity(41);
    put_ballot(&mut out, *request.from_leader());
    out.put_u64_le(*request.to_node_id());
    put_position(&mut out, request.last_log_id().map(|id| (*id).into()));
    out.freeze()
}

pub(crate) fn decode_handover(body: Bytes) -> Option<TransferLeaderRequest<TypeConfig>> {
    let mut take = Take(body);
    let (from, to, last) = (take.vote()?, take.u64()?, take.position()?);
    take.end()?;
    Some(TransferLeaderRequest::new(from, to, last.map(Into::into)))
}

pub(crate) fn encode_taken(response: &TransferLeaderResponse<TypeConfig>) -> Bytes {
    let code = match response {
        Ok(()) => 0,
        Err(TransferLeaderError::VoteChanged { .. }) => 1,
        Err(TransferLeaderError::LogNotFlushed { .. }) => 2,
    };
    Bytes::copy_from_slice(&[code])
}

/// The answer to `request`, whose own figures stand in for the ones that do not travel.
pub(crate) fn decode_taken(
    body: Bytes,
    request: &TransferLeaderRequest<TypeConfig>,
) -> Option<TransferLeaderResponse<TypeConfig>> {
    let mut take = Take(body);
    let code = take.u8()?;
    take.end()?;
    let vote = *request.from_leader();
    match code {
        0 => Some(Ok(())),
        1 => Some(Err(TransferLeaderError::VoteChanged { expected: vote, actual: vote })),
        2 => {
            let expected = request.last_log_id().copied();
            Some(Err(TransferLeaderError::LogNotFlushed { expected, actual: None }))
        }
        3..=u8::MAX => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use openraft::EntryPayload;

    use super::*;
    use crate::payload::Payload;
    use crate::types::{Member, Membership};

    fn at(term: u64, index: u64) -> Option<crate::types::LogId> {
        Some(Position { term, index }.into())
    }

    fn entry(index: u64, payload: EntryPayload<Payload, u64, Member>) -> Entry {
        Entry { log_id: Position { term: 3, index }.into(), payload }
    }

    fn request() -> AppendEntriesRequest<TypeConfig> {
        let nodes: BTreeMap<u64, Member> =
            (1..=2).map(|id| (id, Member { address: format!("h:{id}") })).collect();
        let membership = Membership::new(vec![BTreeSet::from([1, 2])], nodes).unwrap();
        let parts = vec![Bytes::from_static(b"head"), Bytes::from(vec![9; 5000])];
        let entries = vec![
            entry(8, EntryPayload::Normal(Payload::from_parts(parts))),
            entry(9, EntryPayload::Blank),
            entry(10, EntryPayload::Membership(membership)),
            entry(11, EntryPayload::Normal(Payload::default())),
        ];
        let vote = Vote::new_committed(3, 1);
        AppendEntriesRequest { vote, prev_log_id: at(2, 7), entries, leader_commit: None }
    }

    /// What is kept of an append is as long as it says: a short payload does not hold on to the buffer that it came in.
    #[test]
    fn short_payloads_are_copied_and_long_ones_are_not() {
        let normal = |len| EntryPayload::Normal(Payload::from(vec![7; len]));
        let entries = vec![entry(1, normal(COPIED_BELOW - 1)), entry(2, normal(COPIED_BELOW))];
        let request = AppendEntriesRequest { entries, ..request() };
        let body = Bytes::from(encode_append(1, &request).concat());
        let (_, decoded) = decode_append(body.clone()).unwrap();
        assert_eq!(decoded.entries, request.entries);
        let lies_in_body = |entry: &Entry| match &entry.payload {
            EntryPayload::Normal(payload) => body.as_ptr_range().contains(&payload.parts()[0].as_ptr()),
            EntryPayload::Blank | EntryPayload::Membership(_) => false,
        };
        assert_eq!(decoded.entries.iter().map(lies_in_body).collect::<Vec<_>>(), [false, true]);
    }

    /// Entries of all kinds survive; the large part of a payload is passed on as it is; no cut passes.
    #[test]
    fn append() {
        let request = request();
        let parts = encode_append(77, &request);
        let EntryPayload::Normal(payload) = &request.entries[0].payload else { panic!() };
        assert_eq!(parts[2].as_ptr(), payload.parts()[1].as_ptr());
        let body = Bytes::from(parts.concat());
        let (stream, decoded) = decode_append(body.clone()).unwrap();
        assert_eq!((stream, decoded.vote, decoded.prev_log_id), (77, request.vote, request.prev_log_id));
        assert_eq!((decoded.leader_commit, &decoded.entries), (None, &request.entries));
        for len in (0..body.len()).step_by(13) {
            assert!(decode_append(body.slice(..len)).is_none());
        }
    }

    /// Answers, votes and handovers survive, and no cut passes.
    #[test]
    fn small_messages() {
        let vote = Vote::new(4, 2);
        for result in [
            Ok(None),
            Ok(at(0, 0)),
            Err(StreamAppendError::Conflict(at(2, 9).unwrap())),
            Err(StreamAppendError::HigherVote(vote)),
        ] {
            let body = encode_appended(&result);
            assert_eq!(decode_appended(body.clone()), Some(result));
            assert!(decode_appended(body.slice(..body.len() - 1)).is_none());
        }
        for leadership_transfer in [false, true] {
            let request = VoteRequest { vote, last_log_id: at(3, 8), leadership_transfer };
            assert_eq!(decode_vote(encode_vote(&request)), Some(request));
            let response = VoteResponse { vote, vote_granted: leadership_transfer, last_log_id: None };
            assert_eq!(decode_voted(encode_voted(&response)), Some(response));
        }
        let request = TransferLeaderRequest::new(vote, 7, at(3, 8));
        let body = encode_handover(&request);
        assert_eq!(decode_handover(body.clone()), Some(request));
        assert!(decode_handover(body.slice(1..)).is_none());
    }
}
