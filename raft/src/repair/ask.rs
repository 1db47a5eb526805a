//! Asking the other members.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::cluster::Cluster;
use crate::damage::BodyCheck;
use crate::format::Kind;
use crate::frame::{BODY_MAX, FrameKind, OutFrame, write_frame};
use crate::hello::{self, MeetError, Purpose, late_refusal};

use super::{Answer, Question};

/// What came of a question.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Each body, and from whom it is.
    pub(crate) bodies: Vec<Option<(u64, Bytes)>>,
    /// The entry's term, if anybody knew.
    pub(crate) term: Option<u64>,
    /// The whole entry, if that was asked for: from whom it is, its term, its kind and its payload.
    pub(crate) entry: Option<(u64, u64, Kind, Vec<Bytes>)>,
    /// Which nodes have not got each body.
    lacking: Vec<BTreeSet<u64>>,
    /// All voters.
    voters: BTreeSet<u64>,
    /// This node.
    node: u64,
}

impl Asked {
    /// Voters whose word is missing that they have not got the `n`-th body. None when nothing is known of the members.
    pub(crate) fn doubt(&self, n: usize) -> Option<Vec<u64>> {
        if self.voters.is_empty() {
            return None;
        }
        let others = self.voters.iter().filter(|voter| **voter != self.node);
        Some(others.filter(|voter| !self.lacking[n].contains(voter)).copied().collect())
    }

    fn take(&mut self, from: u64, answer: Answer, question: &Question, check: Option<BodyCheck>) {
        if answer.behind {
            return;
        }
        if answer.term > 0 {
            self.term.get_or_insert(answer.term);
        }
        if let Some((kind, payload)) = answer.entry {
            self.entry.get_or_insert((from, answer.term, kind, payload));
        }
        for (n, body) in answer.bodies.into_iter().enumerate() {
            match body {
                Some(body) if check.is_none_or(|check| check(&body)) => {
                    self.bodies[n].get_or_insert((from, body));
                }
                Some(_) => {
                    let (index, offset) = (question.index, question.bodies[n].0);
                    tracing::warn!(from, index, offset, "a body came damaged from a peer");
                }
                None => {
                    self.lacking[n].insert(from);
                }
            }
        }
    }
}

/// Asks all other members, until all bodies are there or everybody has answered, or not answered in time.
pub(crate) async fn ask(cluster: &Arc<Cluster>, question: &Question) -> Asked {
    let members: BTreeMap<u64, String> = cluster.members();
    let count = question.bodies.len();
    let mut asked = Asked {
        bodies: vec![None; count],
        term: None,
        entry: None,
        lacking: vec![BTreeSet::new(); count],
        voters: cluster.voters(),
        node: cluster.node,
    };
    let others = members.iter().filter(|(id, _)| **id != cluster.node);
    let mut answers: FuturesUnordered<_> = others
        .map(|(id, address)| async {
            let answer =
                tokio::time::timeout(question.patience(), ask_one(cluster, *id, address, question)).await;
            (*id, answer)
        })
        .collect();
    while let Some((from, answer)) = answers.next().await {
        match answer {
            Ok(Ok(answer)) => asked.take(from, answer, question, cluster.log.damage.check),
            Ok(Err(error)) => tracing::debug!(from, %error, "a peer did not answer for a body"),
            Err(_) => tracing::debug!(from, "a peer did not answer for a body in time"),
        }
        if asked.entry.is_some() || count > 0 && asked.bodies.iter().all(Option::is_some) {
            break;
        }
    }
    asked
}

async fn ask_one(
    cluster: &Arc<Cluster>,
    to: u64,
    address: &str,
    question: &Question,
) -> Result<Answer, MeetError> {
    let mut conn = hello::connect(cluster, to, address, Purpose::Ask).await?;
    conn.reader.expect(BODY_MAX, question.patience());
    write_frame(&mut conn.writer, OutFrame::new(FrameKind::Ask, 0, vec![question.encode()])).await?;
    loop {
        let frame = conn.reader.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        match frame.kind {
            FrameKind::Alive => {}
            FrameKind::Answer => {
                let answer = Answer::decode(frame.body, question);
                return answer.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData).into());
            }
            FrameKind::Hello
            | FrameKind::Welcome
            | FrameKind::Refused
            | FrameKind::Ask
            | FrameKind::Append
            | FrameKind::Heartbeat
            | FrameKind::Vote
            | FrameKind::PreVote
            | FrameKind::Handover
            | FrameKind::Message
            | FrameKind::Snapshot => return Err(late_refusal(frame)),
        }
    }
}
