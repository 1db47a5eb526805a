//! Getting bodies that are damaged here.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use super::ask::{Asked, ask};
use super::{Question, questions};
use crate::damage::Peers;
use crate::error::BodyError;
use crate::format::Position;
use crate::log::Log;
use crate::payload::{BodyAddr, Payload};
use crate::types::{Entry, record_entry};

/// How long a reader waits for its turn to ask for one body.
const TURN_WITHIN: Duration = Duration::from_secs(2);

/// One body, for somebody who waits for it.
pub(crate) async fn fetch_one(log: &Log, addr: BodyAddr) -> Result<Bytes, BodyError> {
    let unavailable = |missing: &str| BodyError::Unavailable { addr, missing: missing.to_owned() };
    let cluster = match log.damage.peers() {
        Peers::None => {
            log.damage.count_lost();
            return Err(BodyError::Lost(addr));
        }
        Peers::Gone => return Err(unavailable("the node is stopping")),
        Peers::Some(cluster) => cluster,
    };
    let question = Question { index: addr.index, bodies: vec![(addr.offset, addr.len)] };
    let asked = async {
        let _turn = log.damage.asking.acquire().await.expect("never closed");
        ask(&cluster, &question).await
    };
    let limit = TURN_WITHIN + question.patience();
    let Ok(asked) = tokio::time::timeout(limit, asked).await else {
        return Err(unavailable("others are asked for first, or do not answer in time"));
    };
    if let Some((from, body)) = &asked.bodies[0] {
        log.damage.count_fetched(1);
        tracing::info!(
            index = addr.index,
            offset = addr.offset,
            from,
            "a body that is damaged here came from a peer"
        );
        return Ok(body.clone());
    }
    match asked.doubt(0) {
        None => Err(unavailable("nothing is known of the members")),
        Some(silent) if silent.is_empty() => {
            log.damage.count_lost();
            Err(BodyError::Lost(addr))
        }
        Some(silent) => Err(unavailable(&format!("of the voters {silent:?} have not answered for it"))),
    }
}

/// Bodies of one entry that came from peers.
pub(crate) struct Fetched {
    pub(crate) bodies: Vec<Bytes>,
    /// The entry's term, if anybody knew.
    pub(crate) term: Option<u64>,
    /// Who had them.
    pub(crate) from: BTreeSet<u64>,
}

/// All of some bodies of an entry, or why they cannot be had now.
pub(crate) async fn fetch(log: &Log, index: u64, bodies: &[(u32, u32)]) -> Result<Fetched, String> {
    let cluster = match log.damage.peers() {
        Peers::None => return Err("there is no other node to ask".to_owned()),
        Peers::Gone => return Err("the node is stopping".to_owned()),
        Peers::Some(cluster) => cluster,
    };
    let mut fetched = Fetched { bodies: Vec::with_capacity(bodies.len()), term: None, from: BTreeSet::new() };
    for question in questions(index, bodies) {
        let asked = {
            let _turn = log.damage.asking.acquire().await.expect("never closed");
            ask(&cluster, &question).await
        };
        fetched.term = fetched.term.or(asked.term);
        for n in 0..question.bodies.len() {
            let Some((from, body)) = asked.bodies[n].clone() else {
                return Err(missing(&question, &asked, n));
            };
            fetched.from.insert(from);
            fetched.bodies.push(body);
        }
    }
    log.damage.count_fetched(bodies.len() as u64);
    Ok(fetched)
}

/// An entry of the log that is damaged here and known to be committed, or why it cannot be had now.
pub(crate) async fn fetch_entry(log: &Log, index: u64) -> Result<Entry, String> {
    let cluster = match log.damage.peers() {
        Peers::None => return Err("there is no other node to ask".to_owned()),
        Peers::Gone => return Err("the node is stopping".to_owned()),
        Peers::Some(cluster) => cluster,
    };
    let asked = {
        let _turn = log.damage.asking.acquire().await.expect("never closed");
        ask(&cluster, &Question { index, bodies: Vec::new() }).await
    };
    let (from, term, kind, payload) = asked.entry.ok_or("no other node that answers has it")?;
    let payload = Payload::from_parts(payload).to_bytes();
    let entry = record_entry(kind, Position { term, index }, payload);
    let entry = entry.ok_or("what came is no entry")?;
    log.damage.count_fetched(1);
    tracing::info!(index, from, "an entry of the log that is damaged here came from a peer");
    Ok(entry)
}

fn missing(question: &Question, asked: &Asked, n: usize) -> String {
    let (index, offset) = (question.index, question.bodies[n].0);
    match asked.doubt(n) {
        Some(silent) if silent.is_empty() => {
            format!("no voter has the body at entry {index} offset {offset}")
        }
        Some(silent) => format!("the voters {silent:?} have not answered for entry {index} offset {offset}"),
        None => "nothing is known of the members".to_owned(),
    }
}
