//! The types that openraft is instantiated with, and their translation to and from our own.
//!
//! openraft is a pre-release: none of its types appears in a file or in this crate's public interface.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::vote::leader_id_std::{self, CommittedLeaderId};
use openraft::{EntryPayload, RaftTypeConfig};

use crate::format::{Ballot, Kind, Position, u32_at, u64_at};
use crate::payload::Payload;
use crate::proposal::Answer;

/// Instantiates openraft.
#[derive(Debug, Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = Payload;
    type R = ();
    type NodeId = u64;
    type Node = Member;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = EntryPayload<Payload, u64, Member>;
    type Entry = Entry;
    // The crate that the note recommends instead is the very one that this name leads to.
    #[allow(deprecated)]
    type AsyncRuntime = openraft::impls::TokioRuntime;
    type Responder<T>
        = Answer<T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::AnyError;
}

pub(crate) type LeaderId = leader_id_std::LeaderId<u64, u64>;
pub(crate) type Vote = openraft::Vote<LeaderId>;
pub(crate) type LogId = openraft::LogId<CommittedLeaderId<u64>>;
pub(crate) type Entry = openraft::Entry<CommittedLeaderId<u64>, EntryPayload<Payload, u64, Member>>;
pub(crate) type Membership = openraft::Membership<u64, Member>;
pub(crate) type StoredMembership = openraft::StoredMembership<CommittedLeaderId<u64>, u64, Member>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId<u64>, u64, Member>;
pub(crate) type RaftSnapshot =
    openraft::Snapshot<CommittedLeaderId<u64>, u64, Member, crate::snapshot::SnapshotFile>;
pub(crate) type IOFlushed = openraft::storage::IOFlushed<TypeConfig>;

/// What the membership says of a node besides its number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Member {
    /// Where its peers reach it, `host:port`; empty while it is alone.
    pub(crate) address: String,
}

impl From<LogId> for Position {
    fn from(id: LogId) -> Self {
        Self { term: id.committed_leader_id().term, index: id.index() }
    }
}

impl From<Position> for LogId {
    fn from(position: Position) -> Self {
        Self::new_term_index(position.term, position.index)
    }
}

impl From<Vote> for Ballot {
    fn from(vote: Vote) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
    }
}

impl From<Ballot> for Vote {
    fn from(ballot: Ballot) -> Self {
        if ballot.committed {
            Self::new_committed(ballot.term, ballot.node)
        } else {
            Self::new(ballot.term, ballot.node)
        }
    }
}

/// The record kind and payload of an entry.
pub(crate) fn entry_record(entry: &Entry) -> (Kind, Payload) {
    match &entry.payload {
        EntryPayload::Blank => (Kind::Blank, Payload::default()),
        EntryPayload::Normal(payload) => (Kind::Normal, payload.clone()),
        EntryPayload::Membership(membership) => {
            (Kind::Membership, Payload::from(encode_membership(membership)))
        }
    }
}

/// The entry that a record of an entry kind carries; `None` when its payload makes no sense.
pub(crate) fn record_entry(kind: Kind, position: Position, payload: Bytes) -> Option<Entry> {
    let payload = match kind {
        Kind::Normal => EntryPayload::Normal(Payload::from(payload)),
        Kind::Blank => EntryPayload::Blank,
        Kind::Membership => EntryPayload::Membership(decode_membership(&payload)?),
        Kind::State
        | Kind::Vote
        | Kind::Truncate
        | Kind::Purge
        | Kind::Committed
        | Kind::Footer
        | Kind::Pieces => {
            return None;
        }
    };
    Some(Entry { log_id: position.into(), payload })
}

/// Version of the membership encoding.
const MEMBERSHIP_VERSION: u32 = 1;

/// `[version u32][configs u32]` then per config `[n u32][voter u64]*`, then `[nodes u32]` and per node
/// `[id u64][address length u32][address]`.
pub(crate) fn encode_membership(membership: &Membership) -> Vec<u8> {
    let mut out = Vec::new();
    let count = |n: usize| u32::try_from(n).expect("a membership has few nodes").to_le_bytes();
    out.extend_from_slice(&MEMBERSHIP_VERSION.to_le_bytes());
    out.extend_from_slice(&count(membership.get_joint_config().len()));
    for config in membership.get_joint_config() {
        out.extend_from_slice(&count(config.len()));
        for voter in config {
            out.extend_from_slice(&voter.to_le_bytes());
        }
    }
    out.extend_from_slice(&count(membership.nodes().count()));
    for (id, member) in membership.nodes() {
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(&count(member.address.len()));
        out.extend_from_slice(member.address.as_bytes());
    }
    out
}

/// The inverse of [`encode_membership`]; `None` when the bytes are not one.
pub(crate) fn decode_membership(bytes: &[u8]) -> Option<Membership> {
    let mut rest = bytes;
    if take_u32(&mut rest)? != MEMBERSHIP_VERSION {
        return None;
    }
    let mut configs = Vec::new();
    for _ in 0..take_u32(&mut rest)? {
        let mut config = BTreeSet::new();
        for _ in 0..take_u32(&mut rest)? {
            config.insert(u64_at(take(&mut rest, 8)?, 0));
        }
        configs.push(config);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..take_u32(&mut rest)? {
        let id = u64_at(take(&mut rest, 8)?, 0);
        let len = take_u32(&mut rest)?;
        let address = String::from_utf8(take(&mut rest, len as usize)?.to_vec()).ok()?;
        nodes.insert(id, Member { address });
    }
    if !rest.is_empty() {
        return None;
    }
    if configs.is_empty() && nodes.is_empty() {
        return Some(Membership::default());
    }
    Membership::new(configs, nodes).ok()
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(head)
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    take(rest, 4).map(|bytes| u32_at(bytes, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Joint configs, learners and addresses survive; a cut or longer encoding is refused.
    #[test]
    fn membership_round_trip() {
        let nodes: BTreeMap<u64, Member> =
            (1..=4).map(|id| (id, Member { address: format!("host{id}:1") })).collect();
        let joint = Membership::new(vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3])], nodes).unwrap();
        for membership in [joint, Membership::default()] {
            let mut bytes = encode_membership(&membership);
            assert_eq!(decode_membership(&bytes), Some(membership));
            assert_eq!(decode_membership(&bytes[..bytes.len() - 1]), None);
            bytes.push(0);
            assert_eq!(decode_membership(&bytes), None);
        }
    }
}
