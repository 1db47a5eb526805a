//! Reading an entry, without copying anything. Entries come from our own [`super::BatchBuilder`] through a
//! checksummed log; still nothing here trusts a length.

use beanpole_raft::Payload;

use super::batch::{BATCH_VERSION, BODY_OVERHEAD, PREFIX_BYTES, tag};
use super::bulk::{BulkOrder, BulkVerb, States};
use super::level::LEVEL;
use super::policy::Policy;
use super::types::{Gateway, SessionId};

/// Why an entry cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a release that this one does not know.
    #[error("its format version is {0}, and this release reads version {BATCH_VERSION}: upgrade this node")]
    Version(u8),
    /// A flag that this release does not know.
    #[error("it has flags {0:#04x}, which this release does not know: upgrade this node")]
    Flags(u8),
    /// It ends in the middle of something.
    #[error("its head is cut short at byte {0}")]
    Short(usize),
    /// An unknown command.
    #[error("it has a command with tag {0}, which this release does not know: upgrade this node")]
    Tag(u8),
    /// All other members know what this release does not.
    #[error(
        "it raises the cluster to level {0}, and this release knows levels up to {LEVEL}: upgrade this node"
    )]
    Level(u32),
    /// An unknown bulk operation.
    #[error("it has a bulk operation of kind {0}, which this release does not know: upgrade this node")]
    Verb(u8),
    /// A name that is not UTF-8.
    #[error("a tube's name is not text")]
    TubeName,
    /// A client's command in a section of epoch 0.
    #[error("a client's command is outside any gateway's life")]
    OutsideLife,
    /// Fewer body bytes than its puts announce.
    #[error("a body is cut short")]
    Body,
    /// Bytes that belong to nothing.
    #[error("{0} bytes are left over")]
    LeftOver(usize),
}

/// A command of an entry; fields as in the format of [`super::batch`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Command<'a> {
    /// A node's or the leader's own.
    Node(NodeCommand<'a>),
    /// A connection's.
    Client(u64, ClientCommand<'a>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NodeCommand<'a> {
    GatewayUp { nonce: u64 },
    GatewayGone { gateway: Gateway },
    TubeGone { tube: &'a str },
    SetDraining { on: bool },
    Mark { nonce: u64 },
    Leave { node: u32, on: bool },
    BodyLost { id: u64, index: u64, offset: u32 },
    Level { level: u32 },
    Bulk(BulkOrder<'a>),
    Policy { pattern: &'a str, policy: Option<PolicyBytes<'a>> },
    OnceWindow { window_us: u64, keys: u64 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ClientCommand<'a> {
    Put(Put<'a>),
    ReserveJob { id: u64 },
    Delete { id: u64 },
    Release { id: u64, pri: u32, delay_s: u32 },
    Bury { id: u64, pri: u32 },
    Touch { id: u64 },
    Kick { tube: &'a str, bound: u32 },
    KickJob { id: u64 },
    PauseTube { tube: &'a str, delay_s: u32, referenced: bool },
    SessionClosed { undelivered: Wants<'a> },
    Unreserve { want: u64, id: u64 },
    Noop,
}

/// A put; its body is the next in the entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Put<'a> {
    pub tube: &'a str,
    pub pri: u32,
    pub delay_s: u32,
    pub ttr_s: u32,
    /// Length of the body with what surrounds it.
    pub body_len: u32,
    /// Of a `put-once`.
    pub key: Option<&'a str>,
}

/// A policy, as it lies in the entry; it was read once without an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PolicyBytes<'a>(&'a [u8]);

impl PolicyBytes<'_> {
    pub fn read(self) -> Policy {
        Reader { bytes: self.0, at: 0 }.policy().expect("it was read when the command was")
    }
}

/// A list of wants, as it lies in the entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wants<'a>(&'a [u8]);

impl Wants<'_> {
    pub fn contains(self, want: u64) -> bool {
        self.0.chunks_exact(8).any(|bytes| bytes == want.to_le_bytes())
    }
}

/// The beginning of a section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Section {
    pub gateway: Gateway,
    pub sequence: u64,
    pub commands: u32,
}

/// The beginning of an offer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Offer {
    pub session: SessionId,
    pub want: u64,
    pub tubes: u16,
}

/// An entry that is being read.
#[derive(Clone, Copy)]
pub(super) struct Batch<'a> {
    pub stamp: u64,
    pub lease: u64,
    pub sections: u16,
    /// At the first section.
    pub commands: Reader<'a>,
    /// At the first offer.
    pub offers: Reader<'a>,
    pub offer_count: u32,
    /// Where the first body begins in the payload.
    pub bodies_at: u32,
}

impl<'a> Batch<'a> {
    /// Reads what is before the sections.
    pub fn open(payload: &'a Payload) -> Result<Self, DecodeError> {
        let part: &[u8] = payload.parts().first().map_or(&[], |part| part);
        let mut prefix = Reader { bytes: part, at: 0 };
        match (prefix.u8()?, prefix.u8()?) {
            (BATCH_VERSION, 0) => {}
            (BATCH_VERSION, flags) => return Err(DecodeError::Flags(flags)),
            (version, _) => return Err(DecodeError::Version(version)),
        }
        prefix.u16()?;
        let len = prefix.u32()? as usize;
        let bytes = part.get(PREFIX_BYTES..PREFIX_BYTES + len).ok_or(DecodeError::Short(part.len()))?;
        let mut head = Reader { bytes, at: 0 };
        let (stamp, lease) = (head.u64()?, head.u64()?);
        let offers_at = head.u32()? as usize;
        let sections = head.u16()?;
        let mut offers = Reader { bytes, at: offers_at };
        let offer_count = offers.u32()?;
        let bodies_at = (PREFIX_BYTES + len) as u32;
        let commands = Reader { bytes: &bytes[..offers_at], at: head.at };
        Ok(Batch { stamp, lease, sections, commands, offers, offer_count, bodies_at })
    }
}

/// A place in an entry's head.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    pub fn section(&mut self) -> Result<Section, DecodeError> {
        let gateway = Gateway { node: self.u32()?, epoch: self.u64()? };
        Ok(Section { gateway, sequence: self.u64()?, commands: self.u32()? })
    }

    pub fn offer(&mut self) -> Result<Offer, DecodeError> {
        let session = SessionId { node: self.u32()?, epoch: self.u64()?, conn: self.u64()? };
        Ok(Offer { session, want: self.u64()?, tubes: self.u16()? })
    }

    pub fn command(&mut self) -> Result<Command<'a>, DecodeError> {
        Ok(Command::Node(match self.u8()? {
            tag::GATEWAY_UP => NodeCommand::GatewayUp { nonce: self.u64()? },
            tag::GATEWAY_GONE => {
                NodeCommand::GatewayGone { gateway: Gateway { node: self.u32()?, epoch: self.u64()? } }
            }
            tag::TUBE_GONE => NodeCommand::TubeGone { tube: self.tube()? },
            tag::SET_DRAINING => NodeCommand::SetDraining { on: self.u8()? != 0 },
            tag::MARK => NodeCommand::Mark { nonce: self.u64()? },
            tag::BODY_LOST => {
                NodeCommand::BodyLost { id: self.u64()?, index: self.u64()?, offset: self.u32()? }
            }
            tag::LEAVE => NodeCommand::Leave { node: self.u32()?, on: self.u8()? != 0 },
            tag::LEVEL => NodeCommand::Level { level: self.level()? },
            tag::BULK => NodeCommand::Bulk(self.bulk()?),
            tag::POLICY => self.set_policy()?,
            tag::ONCE_WINDOW => NodeCommand::OnceWindow { window_us: self.u64()?, keys: self.u64()? },
            tag => return Ok(Command::Client(self.u64()?, self.client_command(tag)?)),
        }))
    }

    fn client_command(&mut self, tag: u8) -> Result<ClientCommand<'a>, DecodeError> {
        Ok(match tag {
            tag::PUT => ClientCommand::Put(self.put()?),
            tag::PUT_ONCE => {
                let put = self.put()?;
                ClientCommand::Put(Put { key: Some(self.tube()?), ..put })
            }
            tag::RESERVE_JOB => ClientCommand::ReserveJob { id: self.u64()? },
            tag::DELETE => ClientCommand::Delete { id: self.u64()? },
            tag::RELEASE => {
                ClientCommand::Release { id: self.u64()?, pri: self.u32()?, delay_s: self.u32()? }
            }
            tag::BURY => ClientCommand::Bury { id: self.u64()?, pri: self.u32()? },
            tag::TOUCH => ClientCommand::Touch { id: self.u64()? },
            tag::KICK => ClientCommand::Kick { bound: self.u32()?, tube: self.tube()? },
            tag::KICK_JOB => ClientCommand::KickJob { id: self.u64()? },
            tag::PAUSE_TUBE => {
                let (delay_s, referenced) = (self.u32()?, self.u8()? != 0);
                ClientCommand::PauseTube { tube: self.tube()?, delay_s, referenced }
            }
            tag::SESSION_CLOSED => {
                let wants = self.u32()? as usize;
                ClientCommand::SessionClosed { undelivered: Wants(self.take(wants.saturating_mul(8))?) }
            }
            tag::UNRESERVE => ClientCommand::Unreserve { want: self.u64()?, id: self.u64()? },
            tag::NOOP => ClientCommand::Noop,
            unknown => return Err(DecodeError::Tag(unknown)),
        })
    }

    fn put(&mut self) -> Result<Put<'a>, DecodeError> {
        let (pri, delay_s, ttr_s) = (self.u32()?, self.u32()?, self.u32()?);
        let body_len = self.u32()?.checked_add(BODY_OVERHEAD as u32).ok_or(DecodeError::Body)?;
        Ok(Put { tube: self.tube()?, pri, delay_s, ttr_s, body_len, key: None })
    }

    fn set_policy(&mut self) -> Result<NodeCommand<'a>, DecodeError> {
        let on = self.u8()? != 0;
        let pattern = self.tube()?;
        let start = self.at;
        if on {
            self.policy()?;
        }
        let policy = on.then(|| PolicyBytes(&self.bytes[start..self.at]));
        Ok(NodeCommand::Policy { pattern, policy })
    }

    /// The rest of what [`super::batch`] writes of a policy.
    pub fn policy(&mut self) -> Result<Policy, DecodeError> {
        let mut policy = Policy {
            max_deliveries: self.u32()?,
            backoff_min_ms: self.u64()?,
            backoff_max_ms: self.u64()?,
            backoff_jitter: self.u8()?,
            max_reserved: self.u64()?,
            max_jobs: self.u64()?,
            max_bytes: self.u64()?,
            max_put_rate: self.u32()?,
            max_age_ms: self.u64()?,
            alarm_ready_age_ms: self.u64()?,
            max_hops: self.u8()?,
            ..Policy::default()
        };
        let pauses = self.u8()?;
        (policy.pause_input, policy.pause_output) = (pauses & 1 != 0, pauses & 2 != 0);
        let dead_tube = self.tube()?;
        policy.dead_tube = (!dead_tube.is_empty()).then(|| dead_tube.into());
        Ok(policy)
    }

    fn level(&mut self) -> Result<u32, DecodeError> {
        let level = self.u32()?;
        if level > LEVEL { Err(DecodeError::Level(level)) } else { Ok(level) }
    }

    fn bulk(&mut self) -> Result<BulkOrder<'a>, DecodeError> {
        let nonce = self.u64()?;
        let verb = self.u8()?;
        let verb = BulkVerb::of_code(verb).ok_or(DecodeError::Verb(verb))?;
        let states = States::of_bits(self.u8()?);
        let (older_us, limit) = (self.u64()?, self.u64()?);
        Ok(BulkOrder { nonce, verb, states, older_us, limit, tube: self.tube()?, to: self.tube()? })
    }

    pub fn tube(&mut self) -> Result<&'a str, DecodeError> {
        let len = self.u8()?;
        std::str::from_utf8(self.take(len as usize)?).map_err(|_| DecodeError::TubeName)
    }

    /// What was not read yet.
    pub fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<(), DecodeError> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            left => Err(DecodeError::LeftOver(left)),
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let end = self.at.saturating_add(len);
        let taken = self.bytes.get(self.at..end).ok_or(DecodeError::Short(self.at))?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        Ok(self.take(N)?.try_into().expect("take answers as many bytes as asked for"))
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }
    fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}
