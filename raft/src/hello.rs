//! How two nodes meet: the first frames of every connection, in which each says who it is and may refuse the
//! other.
//!
//! ```text
//! hello     magic "BEANPEER"  protocol u32  purpose u8  node wanted u64  facts
//! welcome   protocol u32  facts
//! refused   reason u8  cluster u128  text
//! facts     cluster u128 (0: none yet)  node u64  instance u128  boots u64  boot u64  last entry: position
//!           plan u32  member u8  address: length u32, text
//!
//! connecting ── hello ──> accepting      refused: both sides log the reason, the connection closes
//!            <─ welcome ─                then frames of the purpose follow, in both directions
//! ```
//!
//! What comes after `protocol` is read only when the version is one that this release speaks.

use std::fmt;
use std::io;

use bytes::{BufMut, BytesMut};
use tokio::io::{ReadHalf, WriteHalf};

use crate::cluster::Cluster;
use crate::format::Position;
use crate::frame::{BODY_MAX, Frame, FrameKind, FrameReader, OutFrame, write_frame};
use crate::identity::id_text;
use crate::message::{Take, put_position};
use crate::net::Wire;

/// The version of everything that travels between nodes. Peers must speak the same.
const PROTOCOL: u32 = 1;
const MAGIC: &[u8; 8] = b"BEANPEER";
/// The longest hello, welcome or refusal.
const HELLO_MAX: usize = 4 << 10;
/// The longest text in one of them, in bytes.
const TEXT_MAX: usize = 1024;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To learn who is there; it ends after the welcome.
    Probe,
    /// Consensus messages.
    Raft,
    /// One snapshot.
    Snapshot,
    /// The product's own messages.
    Link,
    /// One question for bodies.
    Ask,
}

impl Purpose {
    const ALL: [Self; 5] = [Self::Probe, Self::Raft, Self::Snapshot, Self::Link, Self::Ask];

    fn code(self) -> u8 {
        self as u8
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|purpose| purpose.code() == code)
    }
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Its cluster; 0 while it has none.
    pub(crate) cluster: u128,
    pub(crate) node: u64,
    pub(crate) instance: u128,
    pub(crate) boots: u64,
    /// This start, a random number.
    pub(crate) boot: u64,
    /// The last entry of its log.
    pub(crate) last: Option<Position>,
    /// A checksum of the ids of the members that it was told to begin with.
    pub(crate) plan: u32,
    /// Whether it knows the other one as a member of its cluster.
    pub(crate) member: bool,
    /// Where it says that it is reached.
    pub(crate) address: String,
}

impl Facts {
    fn put(&self, out: &mut BytesMut) {
        out.put_u128_le(self.cluster);
        out.put_u64_le(self.node);
        out.put_u128_le(self.instance);
        out.put_u64_le(self.boots);
        out.put_u64_le(self.boot);
        put_position(out, self.last);
        out.put_u32_le(self.plan);
        out.put_u8(u8::from(self.member));
        put_text(out, &self.address);
    }

    fn take(take: &mut Take) -> Option<Self> {
        Some(Self {
            cluster: take.u128()?,
            node: take.u64()?,
            instance: take.u128()?,
            boots: take.u64()?,
            boot: take.u64()?,
            last: take.position()?,
            plan: take.u32()?,
            member: take.flag()?,
            address: take.text()?,
        })
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    // Addresses and reasons are short; what is longer is cut rather than refused.
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.put_u32_le(u32::try_from(end).expect("a short text"));
    out.put_slice(&text.as_bytes()[..end]);
}

/// Why a node will not talk to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// They belong to different clusters.
    OtherCluster,
    /// They speak different versions.
    Version,
    /// Another node was expected at this address, or it is the node itself.
    OtherNode,
    /// The node belongs to no cluster yet.
    Unformed,
    /// The node was known with another data directory.
    OtherInstance,
    /// The data directory is an old copy: it was opened more often before.
    OldCopy,
    /// The log ends before an entry that the node had acknowledged.
    LostEntries,
    /// The node was removed from the cluster.
    Removed,
    /// The node that refuses was itself refused by others and takes no part.
    NoPart,
}

impl Reason {
    const ALL: [Self; 9] = [
        Self::OtherCluster,
        Self::Version,
        Self::OtherNode,
        Self::Unformed,
        Self::OtherInstance,
        Self::OldCopy,
        Self::LostEntries,
        Self::Removed,
        Self::NoPart,
    ];

    fn code(self) -> u8 {
        self as u8
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }

    /// Whether a node that is refused for this must take no part: it may have forgotten what it promised.
    pub(crate) fn is_about_identity(self) -> bool {
        match self {
            Self::OtherInstance | Self::OldCopy | Self::LostEntries | Self::Removed => true,
            Self::OtherCluster | Self::Version | Self::OtherNode | Self::Unformed | Self::NoPart => false,
        }
    }
}

/// A refusal, and what an operator should read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    /// The cluster of the node that refuses.
    pub(crate) cluster: u128,
    pub(crate) text: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum MeetError {
    /// The other node refuses.
    RefusedBy(Refusal),
    /// This node refuses the other one, and has said so.
    Refuses {
        /// Which node that is; 0 when it did not get as far as saying so.
        peer: u64,
        refusal: Refusal,
    },
    Io(io::Error),
}

impl From<io::Error> for MeetError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<io::ErrorKind> for MeetError {
    fn from(kind: io::ErrorKind) -> Self {
        Self::Io(kind.into())
    }
}

impl fmt::Display for MeetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RefusedBy(refusal) => write!(f, "refused by the peer: {refusal}"),
            Self::Refuses { refusal, .. } => write!(f, "the peer is refused: {refusal}"),
            Self::Io(error) => write!(f, "{error}"),
        }
    }
}

/// A connection on which both have introduced themselves.
pub(crate) struct Conn {
    /// The other one.
    pub(crate) peer: Facts,
    pub(crate) reader: FrameReader<ReadHalf<Box<dyn Wire>>>,
    pub(crate) writer: WriteHalf<Box<dyn Wire>>,
}

/// Connects to node `wanted` at `address`.
pub(crate) async fn connect(
    cluster: &Cluster,
    wanted: u64,
    address: &str,
    purpose: Purpose,
) -> Result<Conn, MeetError> {
    let met = async {
        let wire = cluster.net.connect(address).await?;
        knock(cluster, wire, wanted, purpose).await
    };
    match tokio::time::timeout(cluster.timing.meet, met).await {
        Ok(met) => met,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer").into()),
    }
}

async fn knock(
    cluster: &Cluster,
    wire: Box<dyn Wire>,
    wanted: u64,
    purpose: Purpose,
) -> Result<Conn, MeetError> {
    let (reader, mut writer) = tokio::io::split(wire);
    let mut reader = FrameReader::new(reader, HELLO_MAX, cluster.timing.meet);
    write_frame(&mut writer, hello(&cluster.facts(wanted), wanted, purpose)).await?;
    let answer = reader.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let peer = match parse_answer(answer)? {
        Answer::Welcome(peer) => peer,
        Answer::OtherProtocol(theirs) => {
            let refusal = other_protocol(cluster, theirs);
            return Err(MeetError::Refuses { peer: wanted, refusal });
        }
        Answer::Refused(refusal) => return Err(MeetError::RefusedBy(refusal)),
    };
    let admitted = if peer.node == wanted {
        cluster.admit(&peer, purpose).await
    } else {
        Err(other_node(cluster, wanted, peer.node))
    };
    if let Err(refusal) = admitted {
        write_frame(&mut writer, refused(&refusal)).await.ok();
        return Err(MeetError::Refuses { peer: wanted, refusal });
    }
    Ok(ready(cluster, peer, reader, writer))
}

fn ready(
    cluster: &Cluster,
    peer: Facts,
    mut reader: FrameReader<ReadHalf<Box<dyn Wire>>>,
    writer: WriteHalf<Box<dyn Wire>>,
) -> Conn {
    reader.expect(BODY_MAX, cluster.timing.silence);
    Conn { peer, reader, writer }
}

/// Answers who connects: what for, and the connection when both agree.
pub(crate) async fn accept(cluster: &Cluster, wire: Box<dyn Wire>) -> Result<(Purpose, Conn), MeetError> {
    let met = tokio::time::timeout(cluster.timing.meet, answer(cluster, wire)).await;
    met.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no hello").into()))
}

async fn answer(cluster: &Cluster, wire: Box<dyn Wire>) -> Result<(Purpose, Conn), MeetError> {
    let (reader, mut writer) = tokio::io::split(wire);
    let mut reader = FrameReader::new(reader, HELLO_MAX, cluster.timing.meet);
    let hello = reader.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let parsed = match parse_hello(hello)? {
        Ok(parsed) => parsed,
        Err(theirs) => {
            let refusal = other_protocol(cluster, theirs);
            write_frame(&mut writer, refused(&refusal)).await?;
            return Err(MeetError::Refuses { peer: 0, refusal });
        }
    };
    let admitted = if parsed.wanted == cluster.node {
        cluster.admit(&parsed.facts, parsed.purpose).await
    } else {
        Err(other_node(cluster, parsed.wanted, cluster.node))
    };
    if let Err(refusal) = admitted {
        write_frame(&mut writer, refused(&refusal)).await?;
        return Err(MeetError::Refuses { peer: parsed.facts.node, refusal });
    }
    write_frame(&mut writer, welcome(&cluster.facts(parsed.facts.node))).await?;
    Ok((parsed.purpose, ready(cluster, parsed.facts, reader, writer)))
}

/// What a frame that should not be there says, once a connection is up: a refusal that came late, or nonsense.
pub(crate) fn late_refusal(frame: Frame) -> MeetError {
    match parse_answer(frame) {
        Ok(Answer::Refused(refusal)) => MeetError::RefusedBy(refusal),
        Ok(Answer::Welcome(_) | Answer::OtherProtocol(_)) => damaged().into(),
        Err(error) => error.into(),
    }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a frame that belongs here")
}

fn other_protocol(cluster: &Cluster, theirs: u32) -> Refusal {
    let text = format!("it speaks version {theirs} of the peer protocol, this node {PROTOCOL}");
    Refusal { reason: Reason::Version, cluster: cluster.id(), text }
}

fn other_node(cluster: &Cluster, wanted: u64, found: u64) -> Refusal {
    let text = format!("node {wanted} was looked for and node {found} was found; check the addresses");
    Refusal { reason: Reason::OtherNode, cluster: cluster.id(), text }
}

struct Hello {
    purpose: Purpose,
    wanted: u64,
    facts: Facts,
}

fn hello(facts: &Facts, wanted: u64, purpose: Purpose) -> OutFrame {
    let mut out = BytesMut::new();
    out.put_slice(MAGIC);
    out.put_u32_le(PROTOCOL);
    out.put_u8(purpose.code());
    out.put_u64_le(wanted);
    facts.put(&mut out);
    OutFrame::new(FrameKind::Hello, 0, vec![out.freeze()])
}

/// The hello, or the other version that its sender speaks.
fn parse_hello(frame: Frame) -> io::Result<Result<Hello, u32>> {
    let mut take = Take(frame.body);
    let known =
        frame.kind == FrameKind::Hello && take.bytes(MAGIC.len()).is_some_and(|magic| magic == MAGIC[..]);
    let protocol = take.u32().filter(|_| known).ok_or_else(damaged)?;
    if protocol != PROTOCOL {
        return Ok(Err(protocol));
    }
    let parsed = || {
        let purpose = Purpose::from_code(take.u8()?)?;
        let hello = Hello { purpose, wanted: take.u64()?, facts: Facts::take(&mut take)? };
        take.end()?;
        Some(hello)
    };
    parsed().map(Ok).ok_or_else(damaged)
}

fn welcome(facts: &Facts) -> OutFrame {
    let mut out = BytesMut::new();
    out.put_u32_le(PROTOCOL);
    facts.put(&mut out);
    OutFrame::new(FrameKind::Welcome, 0, vec![out.freeze()])
}

fn refused(refusal: &Refusal) -> OutFrame {
    let mut out = BytesMut::new();
    out.put_u8(refusal.reason.code());
    out.put_u128_le(refusal.cluster);
    put_text(&mut out, &refusal.text);
    OutFrame::new(FrameKind::Refused, 0, vec![out.freeze()])
}

enum Answer {
    Welcome(Facts),
    OtherProtocol(u32),
    Refused(Refusal),
}

fn parse_answer(frame: Frame) -> io::Result<Answer> {
    let mut take = Take(frame.body);
    let parsed = match frame.kind {
        FrameKind::Welcome => match take.u32() {
            Some(PROTOCOL) => Facts::take(&mut take).map(Answer::Welcome),
            other => return other.map(Answer::OtherProtocol).ok_or_else(damaged),
        },
        FrameKind::Refused => take_refusal(&mut take).map(Answer::Refused),
        FrameKind::Hello
        | FrameKind::Alive
        | FrameKind::Append
        | FrameKind::Heartbeat
        | FrameKind::Vote
        | FrameKind::PreVote
        | FrameKind::Handover
        | FrameKind::Answer
        | FrameKind::Message
        | FrameKind::Snapshot
        | FrameKind::Ask => None,
    };
    parsed.filter(|_| take.end().is_some()).ok_or_else(damaged)
}

fn take_refusal(take: &mut Take) -> Option<Refusal> {
    let reason = Reason::from_code(take.u8()?)?;
    Some(Refusal { reason, cluster: take.u128()?, text: take.text()? })
}

/// How an unknown or known cluster reads in a log line.
pub(crate) fn cluster_text(id: u128) -> String {
    if id == 0 { "no cluster".to_owned() } else { format!("cluster {}", id_text(id)) }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn facts() -> Facts {
        Facts {
            cluster: 5 << 70,
            node: 3,
            instance: 7 << 90,
            boots: 12,
            boot: 99,
            last: Some(Position { term: 4, index: 99 }),
            plan: 17,
            member: true,
            address: "host:1".into(),
        }
    }

    async fn carried(frame: OutFrame) -> Frame {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, frame).await.unwrap();
        let mut reader = FrameReader::new(&bytes[..], HELLO_MAX, std::time::Duration::from_secs(1));
        reader.next().await.unwrap().unwrap()
    }

    /// Hello, welcome and every refusal arrive as they were sent.
    #[tokio::test]
    async fn round_trips() {
        for purpose in Purpose::ALL {
            let frame = carried(hello(&facts(), 9, purpose)).await;
            let parsed = parse_hello(frame.clone()).unwrap().ok().unwrap();
            assert_eq!((parsed.purpose, parsed.wanted, parsed.facts), (purpose, 9, facts()));
            let cut = frame.body.slice(..frame.body.len() - 1);
            assert!(parse_hello(Frame { body: cut, ..frame }).is_err());
        }
        let Ok(Answer::Welcome(welcomed)) = parse_answer(carried(welcome(&facts())).await) else { panic!() };
        assert_eq!(welcomed, facts());
        for reason in Reason::ALL {
            let refusal = Refusal { reason, cluster: 8, text: "why".into() };
            let Ok(Answer::Refused(read)) = parse_answer(carried(refused(&refusal)).await) else { panic!() };
            assert_eq!(read, refusal);
        }
    }

    /// Another version is recognised whatever follows it; something else than a hello is not one.
    #[tokio::test]
    async fn versions() {
        let frame = carried(hello(&facts(), 9, Purpose::Raft)).await;
        let mut body = frame.body.to_vec();
        body[8] = 2;
        body.truncate(14);
        let other = Frame { body: Bytes::from(body.clone()), ..frame.clone() };
        assert_eq!(parse_hello(other).unwrap().err(), Some(2));
        body[0] ^= 1;
        assert!(parse_hello(Frame { body: body.into(), ..frame }).is_err());
    }
}
