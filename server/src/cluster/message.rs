//! The bytes between a gateway and the leader on another node. Little-endian; one message per link message.
//!
//! ```text
//! to the leader                                      from the leader
//!   1 Hello    term u64, wall u64                      1 Reached  barrier u64, index u64, elsewhere*
//!   2 Batch    the batch (see queue/batch.rs)          2 Renewed  sent u64, stamp u64, lease u64
//!   3 Want     epoch u64, conn u64, number u64,        3 Again    the barriers asked so far found no quorum
//!              once u8, tubes u16, tube*
//!   4 Unwant   epoch u64, conn u64, number u64
//!   5 Refers   using u32, watching u32, tube
//!   6 Told
//!   7 Barrier  number u64, all u8, tube*
//!   8 Renew    sent u64, wall u64, its report         4 Reports  all nodes' reports
//!   9 Lost     job u64, index u64, offset u32,         5 Word     state u8, gap u32: what puts meet
//!              length u32
//! tube: length u8, bytes      elsewhere: using u32, watching u32, waiting u32, tube
//! ```
//!
//! Which node speaks is known from the link. `sent` is the gateway's own clock and only comes back to it.

use std::sync::Arc;

use beanpole_raft::{BodyAddr, Payload};
use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::admission::Stance;
use crate::gateway::Barrier;
use crate::leader::{About, Clients, Elsewhere, ToLeader};
use crate::queue::SessionId;

mod tag {
    pub const HELLO: u8 = 1;
    pub const BATCH: u8 = 2;
    pub const WANT: u8 = 3;
    pub const UNWANT: u8 = 4;
    pub const REFERS: u8 = 5;
    pub const TOLD: u8 = 6;
    pub const BARRIER: u8 = 7;
    pub const RENEW: u8 = 8;
    pub const LOST: u8 = 9;

    pub const REACHED: u8 = 1;
    pub const RENEWED: u8 = 2;
    pub const AGAIN: u8 = 3;
    pub const REPORTS: u8 = 4;
    pub const WORD: u8 = 5;
}

/// What a gateway's node says.
#[derive(Debug)]
pub(super) enum Up {
    /// The first word: the term whose leader is meant, and this node's wall clock.
    Hello { term: u64, wall: u64 },
    /// For the leader's state machine.
    Tell(ToLeader),
    /// How far is the log committed now? And what is asked of other nodes' clients.
    Barrier(Barrier),
    /// Is there a leader with a quorum? `sent` is given back. And this node's wall clock, and how it is.
    Renew { sent: u64, wall: u64, report: Bytes },
}

/// What the leader's node says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Down {
    /// What was committed when this barrier was asked is up to `index`; and what was asked besides.
    Reached { barrier: u64, index: u64, elsewhere: Vec<Elsewhere> },
    /// The leader had its quorum after the renewal came; and its clocks.
    Renewed { sent: u64, stamp: u64, lease: u64 },
    /// Barriers and renewals asked so far could not be confirmed.
    Again,
    /// How all nodes are.
    Reports(Bytes),
    /// What puts meet in the whole cluster from now on.
    Word(Stance),
}

/// A message that is none: the other side speaks another version, or is broken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message between nodes cannot be read")]
pub(super) struct Unreadable;

impl Up {
    pub fn encode(self) -> Payload {
        let mut out = BytesMut::with_capacity(64);
        match self {
            Up::Hello { term, wall } => {
                out.put_u8(tag::HELLO);
                out.put_u64_le(term);
                out.put_u64_le(wall);
            }
            Up::Tell(ToLeader::Batch(batch)) => {
                let mut parts = vec![Bytes::from_static(&[tag::BATCH])];
                parts.extend_from_slice(batch.parts());
                return Payload::from_parts(parts);
            }
            Up::Tell(ToLeader::Want { session, number, tubes, once }) => {
                out.put_u8(tag::WANT);
                put_want(&mut out, session, number);
                out.put_u8(u8::from(once));
                out.put_u16_le(u16::try_from(tubes.len()).unwrap_or(u16::MAX));
                for tube in tubes.iter().take(usize::from(u16::MAX)) {
                    put_tube(&mut out, tube);
                }
            }
            Up::Tell(ToLeader::Unwant { session, number }) => {
                out.put_u8(tag::UNWANT);
                put_want(&mut out, session, number);
            }
            Up::Tell(ToLeader::Refers { tube, clients }) => {
                out.put_u8(tag::REFERS);
                put_clients(&mut out, clients);
                put_tube(&mut out, &tube);
            }
            Up::Tell(ToLeader::Told) => out.put_u8(tag::TOLD),
            Up::Tell(ToLeader::Lost { job, body }) => {
                out.put_u8(tag::LOST);
                out.put_u64_le(job);
                out.put_u64_le(body.index);
                out.put_u32_le(body.offset);
                out.put_u32_le(body.len);
            }
            Up::Barrier(Barrier { number, about }) => {
                out.put_u8(tag::BARRIER);
                out.put_u64_le(number);
                out.put_u8(u8::from(about == About::AllTubes));
                if let About::Tubes(tubes) = about {
                    tubes.iter().for_each(|tube| put_tube(&mut out, tube));
                }
            }
            Up::Renew { sent, wall, report } => {
                out.put_u8(tag::RENEW);
                out.put_u64_le(sent);
                out.put_u64_le(wall);
                return Payload::from_parts(vec![out.freeze(), report]);
            }
        }
        out.freeze().into()
    }

    /// Reads a message of the node.
    pub fn decode(node: u32, message: Bytes) -> Result<Up, Unreadable> {
        let mut rest = &message[..];
        let up = match rest.try_get_u8().map_err(|_| Unreadable)? {
            tag::HELLO => Up::Hello { term: u64_of(&mut rest)?, wall: u64_of(&mut rest)? },
            tag::BATCH => return Ok(Up::Tell(ToLeader::Batch(message.slice(1..).into()))),
            tag::WANT => {
                let (session, number) = want_of(node, &mut rest)?;
                let once = rest.try_get_u8().map_err(|_| Unreadable)? != 0;
                let count = rest.try_get_u16_le().map_err(|_| Unreadable)?;
                let tubes = (0..count).map(|_| tube_of(&mut rest)).collect::<Result<_, _>>()?;
                Up::Tell(ToLeader::Want { session, number, tubes, once })
            }
            tag::UNWANT => {
                let (session, number) = want_of(node, &mut rest)?;
                Up::Tell(ToLeader::Unwant { session, number })
            }
            tag::REFERS => {
                let clients = clients_of(&mut rest)?;
                Up::Tell(ToLeader::Refers { tube: tube_of(&mut rest)?, clients })
            }
            tag::TOLD => Up::Tell(ToLeader::Told),
            tag::LOST => {
                let (job, index) = (u64_of(&mut rest)?, u64_of(&mut rest)?);
                let body = BodyAddr { index, offset: u32_of(&mut rest)?, len: u32_of(&mut rest)? };
                Up::Tell(ToLeader::Lost { job, body })
            }
            tag::BARRIER => Up::Barrier(barrier_of(&mut rest)?),
            tag::RENEW => {
                let (sent, wall) = (u64_of(&mut rest)?, u64_of(&mut rest)?);
                return Ok(Up::Renew { sent, wall, report: message.slice(message.len() - rest.len()..) });
            }
            _ => return Err(Unreadable),
        };
        if rest.is_empty() { Ok(up) } else { Err(Unreadable) }
    }
}

impl Down {
    pub fn encode(&self) -> Payload {
        let mut out = BytesMut::with_capacity(32);
        match self {
            Down::Reached { barrier, index, elsewhere } => {
                out.put_u8(tag::REACHED);
                out.put_u64_le(*barrier);
                out.put_u64_le(*index);
                for Elsewhere { tube, clients, waiting } in elsewhere {
                    put_clients(&mut out, *clients);
                    out.put_u32_le(*waiting);
                    put_tube(&mut out, tube);
                }
            }
            Down::Renewed { sent, stamp, lease } => {
                out.put_u8(tag::RENEWED);
                out.put_u64_le(*sent);
                out.put_u64_le(*stamp);
                out.put_u64_le(*lease);
            }
            Down::Again => out.put_u8(tag::AGAIN),
            Down::Reports(reports) => {
                out.put_u8(tag::REPORTS);
                return Payload::from_parts(vec![out.freeze(), reports.clone()]);
            }
            Down::Word(stance) => {
                out.put_u8(tag::WORD);
                out.put_u8(stance.state as u8);
                out.put_u32_le(stance.gap_us);
            }
        }
        out.freeze().into()
    }

    pub fn decode(message: &Bytes) -> Result<Down, Unreadable> {
        let mut rest = &message[..];
        let down = match rest.try_get_u8().map_err(|_| Unreadable)? {
            tag::REACHED => {
                let (barrier, index) = (u64_of(&mut rest)?, u64_of(&mut rest)?);
                let elsewhere = until_end(&mut rest, elsewhere_of)?;
                Down::Reached { barrier, index, elsewhere }
            }
            tag::RENEWED => Down::Renewed {
                sent: u64_of(&mut rest)?,
                stamp: u64_of(&mut rest)?,
                lease: u64_of(&mut rest)?,
            },
            tag::AGAIN => Down::Again,
            tag::REPORTS => return Ok(Down::Reports(message.slice(1..))),
            tag::WORD => {
                let (state, gap_us) = (rest.try_get_u8().map_err(|_| Unreadable)?, u32_of(&mut rest)?);
                Down::Word(Stance::from_parts(state, gap_us).ok_or(Unreadable)?)
            }
            _ => return Err(Unreadable),
        };
        if rest.is_empty() { Ok(down) } else { Err(Unreadable) }
    }
}

fn put_want(out: &mut BytesMut, session: SessionId, number: u64) {
    out.put_u64_le(session.epoch);
    out.put_u64_le(session.conn);
    out.put_u64_le(number);
}

fn want_of(node: u32, rest: &mut &[u8]) -> Result<(SessionId, u64), Unreadable> {
    let (epoch, conn) = (u64_of(rest)?, u64_of(rest)?);
    Ok((SessionId { node, epoch, conn }, u64_of(rest)?))
}

fn put_clients(out: &mut BytesMut, clients: Clients) {
    out.put_u32_le(clients.using);
    out.put_u32_le(clients.watching);
}

fn clients_of(rest: &mut &[u8]) -> Result<Clients, Unreadable> {
    Ok(Clients { using: u32_of(rest)?, watching: u32_of(rest)? })
}

fn elsewhere_of(rest: &mut &[u8]) -> Result<Elsewhere, Unreadable> {
    let (clients, waiting) = (clients_of(rest)?, u32_of(rest)?);
    Ok(Elsewhere { tube: tube_of(rest)?, clients, waiting })
}

fn barrier_of(rest: &mut &[u8]) -> Result<Barrier, Unreadable> {
    let number = u64_of(rest)?;
    let all = rest.try_get_u8().map_err(|_| Unreadable)? != 0;
    let tubes = until_end(rest, tube_of)?;
    let about = match (all, tubes.is_empty()) {
        (true, true) => About::AllTubes,
        (true, false) => return Err(Unreadable),
        (false, true) => About::Nothing,
        (false, false) => About::Tubes(tubes),
    };
    Ok(Barrier { number, about })
}

/// As many as there are.
fn until_end<T>(
    rest: &mut &[u8],
    mut one: impl FnMut(&mut &[u8]) -> Result<T, Unreadable>,
) -> Result<Vec<T>, Unreadable> {
    let mut all = Vec::new();
    while !rest.is_empty() {
        all.push(one(rest)?);
    }
    Ok(all)
}

fn put_tube(out: &mut BytesMut, tube: &str) {
    out.put_u8(u8::try_from(tube.len()).expect("a tube's name has at most 200 bytes"));
    out.extend_from_slice(tube.as_bytes());
}

fn tube_of(rest: &mut &[u8]) -> Result<Arc<str>, Unreadable> {
    let len = usize::from(rest.try_get_u8().map_err(|_| Unreadable)?);
    let (name, tail) = rest.split_at_checked(len).filter(|_| len > 0).ok_or(Unreadable)?;
    *rest = tail;
    std::str::from_utf8(name).map(Arc::from).map_err(|_| Unreadable)
}

fn u32_of(rest: &mut &[u8]) -> Result<u32, Unreadable> {
    rest.try_get_u32_le().map_err(|_| Unreadable)
}

fn u64_of(rest: &mut &[u8]) -> Result<u64, Unreadable> {
    rest.try_get_u64_le().map_err(|_| Unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::State;

    /// Every message survives, and none that is cut short or longer is taken for one.
    #[test]
    fn round_trip() {
        let session = SessionId { node: 3, epoch: 8, conn: 9 };
        let tubes: Vec<Arc<str>> = vec!["a".into(), "b".repeat(200).into()];
        let ups = [
            Up::Hello { term: 4, wall: 5 },
            Up::Tell(ToLeader::Want { session, number: 2, tubes, once: true }),
            Up::Tell(ToLeader::Unwant { session, number: 2 }),
            Up::Tell(ToLeader::Refers { tube: "t".into(), clients: Clients { using: 1, watching: 2 } }),
            Up::Tell(ToLeader::Told),
            Up::Tell(ToLeader::Lost { job: 7, body: BodyAddr { index: 8, offset: 9, len: 10 } }),
            Up::Barrier(Barrier { number: 1, about: About::AllTubes }),
            Up::Barrier(Barrier { number: 2, about: About::Tubes(vec!["t".into(), "u".into()]) }),
        ];
        for up in ups {
            let shown = format!("{up:?}");
            let bytes = up.encode().to_bytes();
            assert_eq!(format!("{:?}", Up::decode(3, bytes.clone()).unwrap()), shown);
            assert!(Up::decode(3, bytes.slice(..bytes.len() - 1)).is_err(), "{shown}");
            assert!(Up::decode(3, [&bytes[..], &[0]].concat().into()).is_err(), "{shown}");
        }
        for down in [
            Down::Reached {
                barrier: 1,
                index: 2,
                elsewhere: vec![Elsewhere {
                    tube: "t".into(),
                    clients: Clients { using: 3, watching: 4 },
                    waiting: 5,
                }],
            },
            Down::Renewed { sent: 3, stamp: 4, lease: 5 },
            Down::Again,
            Down::Word(Stance { state: State::Shedding, gap_us: 70_000 }),
        ] {
            let bytes = down.encode().to_bytes();
            assert_eq!(Down::decode(&bytes).unwrap(), down);
            assert!(Down::decode(&bytes.slice(..bytes.len() - 1)).is_err());
        }
        let renew = Up::Renew { sent: u64::MAX, wall: 7, report: "x".into() };
        let shown = format!("{renew:?}");
        assert_eq!(format!("{:?}", Up::decode(3, renew.encode().to_bytes()).unwrap()), shown);
        let reports = Down::Reports("y".into());
        assert_eq!(Down::decode(&reports.encode().to_bytes()).unwrap(), reports);
        let batch = Payload::from_parts(vec![Bytes::from("head"), Bytes::from("body")]);
        let bytes = Up::Tell(ToLeader::Batch(batch)).encode().to_bytes();
        let up = Up::decode(1, bytes).unwrap();
        let Up::Tell(ToLeader::Batch(batch)) = up else { panic!("{up:?}") };
        assert_eq!(batch.to_bytes(), "headbody");
    }
}
