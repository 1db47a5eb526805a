//! What a leader must know of a gateway's batch before it is applied: whose sections it has, and which tubes or jobs its
//! commands may make ready, so that waiting reserves can be offered in the same entry.

use beanpole_raft::Payload;

use super::decode::{Batch, ClientCommand, Command, DecodeError, NodeCommand};
use super::types::{Gateway, SessionId};

/// One thing that a batch holds, in the order of the batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Item<'a> {
    /// The following items belong to this gateway's section of this number (0 outside any life).
    Section(Gateway, u64),
    /// A job becomes ready in a tube.
    ReadyIn(&'a str),
    /// Up to so many buried or delayed jobs of a tube become ready.
    Kick(&'a str, u32),
    /// One job may become ready.
    ReadyJob(u64),
    /// A session ends: its wants are void, and what it holds becomes ready.
    Closed(SessionId),
    /// Something else that may make jobs ready: the end of a pause, a hand-out taken back, a new life of a gateway.
    MayReady,
}

/// Passes what the batch holds to `f`. Commands that make nothing ready are left out.
///
/// # Errors
/// When the batch cannot be read: another release wrote it, or it is not one.
pub fn outline<'a>(batch: &'a Payload, mut f: impl FnMut(Item<'a>)) -> Result<(), DecodeError> {
    let read = Batch::open(batch)?;
    let mut reader = read.commands;
    for _ in 0..read.sections {
        let section = reader.section()?;
        let gateway = section.gateway;
        f(Item::Section(gateway, section.sequence));
        for _ in 0..section.commands {
            match reader.command()? {
                Command::Client(conn, command) => {
                    let session = SessionId { node: gateway.node, epoch: gateway.epoch, conn };
                    if let Some(item) = client_item(session, command) {
                        f(item);
                    }
                }
                Command::Node(
                    NodeCommand::GatewayUp { .. }
                    | NodeCommand::GatewayGone { .. }
                    | NodeCommand::Bulk(_)
                    | NodeCommand::Policy { .. },
                ) => f(Item::MayReady),
                Command::Node(
                    NodeCommand::TubeGone { .. }
                    | NodeCommand::SetDraining { .. }
                    | NodeCommand::Mark { .. }
                    | NodeCommand::Leave { .. }
                    | NodeCommand::BodyLost { .. }
                    | NodeCommand::Level { .. }
                    | NodeCommand::OnceWindow { .. },
                ) => {}
            }
        }
    }
    reader.end()
}

fn client_item<'a>(session: SessionId, command: ClientCommand<'a>) -> Option<Item<'a>> {
    match command {
        ClientCommand::Put(put) => (put.delay_s == 0).then_some(Item::ReadyIn(put.tube)),
        ClientCommand::Release { id, delay_s, .. } => (delay_s == 0).then_some(Item::ReadyJob(id)),
        ClientCommand::Kick { tube, bound } => Some(Item::Kick(tube, bound)),
        ClientCommand::KickJob { id } => Some(Item::ReadyJob(id)),
        ClientCommand::SessionClosed { .. } => Some(Item::Closed(session)),
        ClientCommand::PauseTube { .. } | ClientCommand::Unreserve { .. } => Some(Item::MayReady),
        ClientCommand::ReserveJob { .. }
        | ClientCommand::Delete { .. }
        | ClientCommand::Bury { .. }
        | ClientCommand::Touch { .. }
        | ClientCommand::Noop => None,
    }
}
