//! What this node has of what another one misses.

use std::io;
use std::sync::Arc;

use crate::bodies;
use crate::cluster::Cluster;
use crate::format::Position;
use crate::frame::{FrameKind, OutFrame, write_frame};
use crate::hello::{Conn, MeetError, late_refusal};
use crate::log::Log;
use crate::payload::BodyAddr;
use crate::types::{Entry, entry_record};

use super::{Answer, Question};

/// Answers the one question of a connection. Few are answered at the same time; the others wait.
pub(crate) async fn serve(cluster: &Arc<Cluster>, mut conn: Conn) -> Result<(), MeetError> {
    let question = loop {
        let frame = conn.reader.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        match frame.kind {
            FrameKind::Ask => break Question::decode(frame.body),
            FrameKind::Alive => {}
            FrameKind::Hello
            | FrameKind::Welcome
            | FrameKind::Refused
            | FrameKind::Append
            | FrameKind::Heartbeat
            | FrameKind::Vote
            | FrameKind::PreVote
            | FrameKind::Handover
            | FrameKind::Answer
            | FrameKind::Message
            | FrameKind::Snapshot => return Err(late_refusal(frame)),
        }
    };
    let question = question.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    let _one = cluster.answering.acquire().await.expect("never closed");
    let log = cluster.log.clone();
    let answer = cluster.log.blocking(move || Ok(look(&log, &question))).await?;
    write_frame(&mut conn.writer, OutFrame::new(FrameKind::Answer, 0, answer.encode())).await?;
    Ok(())
}

/// Reads what was asked for. May block.
fn look(log: &Log, question: &Question) -> Answer {
    let index = question.index;
    if !log.is_settled(index) {
        return Answer { behind: true, term: 0, bodies: vec![None; question.bodies.len()], entry: None };
    }
    let body = |(offset, len): &(u32, u32)| {
        let addr = BodyAddr { index, offset: *offset, len: *len };
        bodies::read_sound(log, addr).ok().flatten()
    };
    let bodies: Vec<_> = question.bodies.iter().map(body).collect();
    let entry = if bodies.is_empty() { whole(log, index) } else { None };
    let known = || bodies::term_of(log, index).unwrap_or(0);
    let term = entry.as_ref().map_or_else(known, |entry| Position::from(entry.log_id).term);
    let entry = entry.map(|entry| {
        let (kind, payload) = entry_record(&entry);
        (kind, payload.parts().to_vec())
    });
    Answer { behind: false, term, bodies, entry }
}

/// An entry of the log, if it is there and checks out.
fn whole(log: &Log, index: u64) -> Option<Entry> {
    let entry = log.read(index..index + 1).ok()?.into_iter().next()?;
    (entry.log_id.index == index).then_some(entry)
}
