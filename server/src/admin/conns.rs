//! Clients' connections of this node, as operators see them: who does most, one by one and by address; closing them; bans.
//!
//! Rates need two looks, a moment apart. Each look goes through the sessions in slices, so that clients do not wait for it, and
//! what is answered is bounded: the first few of each order.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};

use super::View;
use super::change::Refusal;
use super::metrics::{Labels, gauge};
use crate::gateway::conns::{Conn, Traffic, Which};
use crate::net::{Account, Address};

/// Connections and addresses in one answer when the request does not say.
const LIMIT_DEFAULT: usize = 20;
/// The same at most.
const LIMIT_MAX: usize = 1000;
/// Between the two looks, in milliseconds, when the request does not say ...
const SAMPLE_DEFAULT_MS: u64 = 1000;
/// ... and at most.
const SAMPLE_MAX_MS: u64 = 10_000;
/// Places of the table of sessions that are looked at before clients get their turn.
const SLICE: usize = 1024;
/// The name of what has no address.
const LOCAL: &str = "local";

/// What those that are shown have most of.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Top {
    /// Bytes a second, both ways.
    Bytes,
    /// Commands a second; of addresses also connections opened and refused.
    #[default]
    Rate,
    /// Jobs reserved.
    Reserved,
    /// Memory of buffers; of addresses, connections.
    Held,
}

/// One connection.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnRow {
    /// `NODE-NUMBER`: what it is killed by.
    pub id: String,
    /// The node that it is connected to.
    pub node: u64,
    /// The client's address and port; `local` over a unix socket.
    pub address: String,
    /// Milliseconds since it was opened.
    pub age_ms: u64,
    /// Where its puts go.
    pub uses: String,
    /// The first few tubes that it watches.
    pub watches: Vec<String>,
    /// How many it watches.
    pub watching: usize,
    /// Jobs that it holds.
    pub reserved: u64,
    /// It waits for a job.
    pub waiting: bool,
    /// Bytes of memory in its buffers.
    pub buffers: usize,
    /// Commands since it was opened.
    pub commands: u64,
    /// Bytes received since it was opened.
    pub bytes_in: u64,
    /// Bytes sent since it was opened.
    pub bytes_out: u64,
    /// Commands a second, just now.
    pub commands_per_s: u64,
    /// Bytes a second, both ways, just now.
    pub bytes_per_s: u64,
    /// Its last command.
    pub last: String,
}

/// All connections of one address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AddressRow {
    /// An IPv4 address, or an IPv6 network; `local` for what came over a unix socket.
    pub address: String,
    /// Connections that it has.
    pub connections: u64,
    /// Connections that it opened a second, just now.
    pub opened_per_s: u64,
    /// Connections of it that were refused a second, just now.
    pub refused_per_s: u64,
    /// Connections that were let in, since it is kept account of.
    pub opened: u64,
    /// Connections that were refused, since it is kept account of.
    pub refused: u64,
    /// Commands a second, just now.
    pub commands_per_s: u64,
    /// Bytes a second, both ways, just now.
    pub bytes_per_s: u64,
    /// Jobs that its connections hold.
    pub reserved: u64,
    /// Bytes of memory in its connections' buffers.
    pub buffers: u64,
}

impl AddressRow {
    /// What it is ordered by.
    pub fn key(&self, top: Top) -> (u64, u64) {
        let opens = self.opened_per_s + self.refused_per_s;
        match top {
            Top::Bytes => (self.bytes_per_s, self.connections),
            Top::Rate => (self.commands_per_s + opens, self.connections),
            Top::Reserved => (self.reserved, self.connections),
            Top::Held => (self.connections, self.buffers),
        }
    }
}

impl ConnRow {
    /// What it is ordered by.
    pub fn key(&self, top: Top) -> (u64, u64) {
        match top {
            Top::Bytes => (self.bytes_per_s, self.bytes_in + self.bytes_out),
            Top::Rate => (self.commands_per_s, self.commands),
            Top::Reserved => (self.reserved, self.commands),
            Top::Held => (self.buffers as u64, self.bytes_in),
        }
    }
}

/// What one node tells of its connections.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Conns {
    /// The node.
    pub node: u64,
    /// Connections that it has.
    pub connections: u64,
    /// Connections that it may have.
    pub max_connections: u64,
    /// Bans in force.
    pub bans: u64,
    /// Those that have most of what was asked for.
    pub top: Vec<ConnRow>,
    /// Addresses that have most of anything.
    pub addresses: Vec<AddressRow>,
}

#[derive(Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    top: Top,
    limit: Option<usize>,
    sample_ms: Option<u64>,
}

pub(super) async fn list(State(view): State<Arc<View>>, Query(asked): Query<Asked>) -> Json<Conns> {
    let limit = asked.limit.unwrap_or(LIMIT_DEFAULT).min(LIMIT_MAX);
    let sample_ms = asked.sample_ms.unwrap_or(SAMPLE_DEFAULT_MS).clamp(1, SAMPLE_MAX_MS);
    let before = Look::first(&view).await;
    tokio::time::sleep(Duration::from_millis(sample_ms)).await;
    let (conns, accounts) = (second(&view).await, view.shared.door.accounts());
    let node = u64::from(view.shared.gateway.lock().node());
    let rows: Vec<ConnRow> = conns.iter().map(|conn| before.row(node, conn)).collect();
    let addresses = before.addresses(&conns, &rows, &accounts);
    Json(Conns {
        node,
        connections: rows.len() as u64,
        max_connections: view.shared.door.limits().total as u64,
        bans: view.shared.door.bans().len() as u64,
        top: first_of(rows, limit, |row| row.key(asked.top)),
        addresses: most_of_anything(addresses, limit),
    })
}

/// The first look.
struct Look {
    at: tokio::time::Instant,
    traffic: HashMap<u64, Traffic>,
    accounts: HashMap<Address, Account>,
}

impl Look {
    async fn first(view: &View) -> Look {
        let mut found = Vec::new();
        let mut place = Some(0);
        while let Some(from) = place {
            place = view.shared.gateway.lock().traffic_from(from, SLICE, &mut found);
            tokio::task::yield_now().await;
        }
        let accounts = view.shared.door.accounts().into_iter().collect();
        Look { at: tokio::time::Instant::now(), traffic: found.into_iter().collect(), accounts }
    }

    fn per_s(&self, count: u64) -> u64 {
        let ms = u64::try_from(self.at.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        count.saturating_mul(1000) / ms
    }

    fn row(&self, node: u64, conn: &Conn) -> ConnRow {
        // One that is new since then has done all that it did since then.
        let before = self.traffic.get(&conn.number).copied().unwrap_or_default();
        let now = conn.traffic;
        let bytes = |traffic: Traffic| traffic.bytes_in + traffic.bytes_out;
        ConnRow {
            id: format!("{node}-{}", conn.number),
            node,
            address: conn.from.map_or_else(|| LOCAL.to_owned(), |from| from.to_string()),
            age_ms: conn.age_us / 1000,
            uses: conn.used.to_string(),
            watches: conn.watched.iter().map(|tube| tube.to_string()).collect(),
            watching: conn.watching,
            reserved: conn.reserved,
            waiting: conn.waiting,
            buffers: conn.buffers,
            commands: now.commands,
            bytes_in: now.bytes_in,
            bytes_out: now.bytes_out,
            commands_per_s: self.per_s(now.commands - before.commands),
            bytes_per_s: self.per_s(bytes(now) - bytes(before)),
            last: now.last.to_owned(),
        }
    }

    /// Sums of the rows by address, with what the door knows of each.
    fn addresses(
        &self,
        conns: &[Conn],
        rows: &[ConnRow],
        accounts: &[(Address, Account)],
    ) -> Vec<AddressRow> {
        let mut sums: HashMap<Option<Address>, AddressRow> = HashMap::new();
        for (conn, row) in conns.iter().zip(rows) {
            let sum = sums.entry(conn.from.map(|from| Address::of(from.ip()))).or_default();
            sum.connections += 1;
            sum.commands_per_s += row.commands_per_s;
            sum.bytes_per_s += row.bytes_per_s;
            sum.reserved += row.reserved;
            sum.buffers += row.buffers as u64;
        }
        for (address, now) in accounts {
            let sum = sums.entry(Some(*address)).or_default();
            let before = self.accounts.get(address).copied().unwrap_or_default();
            (sum.opened, sum.refused) = (now.opened, now.refused);
            sum.opened_per_s = self.per_s(now.opened.saturating_sub(before.opened));
            sum.refused_per_s = self.per_s(now.refused.saturating_sub(before.refused));
        }
        let named = |(address, row): (Option<Address>, AddressRow)| AddressRow {
            address: address.map_or_else(|| LOCAL.to_owned(), |address| address.to_string()),
            ..row
        };
        sums.into_iter().map(named).collect()
    }
}

async fn second(view: &View) -> Vec<Conn> {
    let mut found = Vec::new();
    let mut place = Some(0);
    while let Some(from) = place {
        place = view.shared.gateway.lock().conns_from(from, SLICE, &mut found);
        tokio::task::yield_now().await;
    }
    found
}

fn first_of<T, K: Ord>(mut rows: Vec<T>, limit: usize, key: impl Fn(&T) -> K) -> Vec<T> {
    rows.sort_by_key(|row| Reverse(key(row)));
    rows.truncate(limit);
    rows
}

/// Those that are among the first in some order, so that sums over nodes find whoever does most in all of them.
fn most_of_anything(mut rows: Vec<AddressRow>, limit: usize) -> Vec<AddressRow> {
    let mut wanted = BTreeSet::new();
    for top in [Top::Bytes, Top::Rate, Top::Reserved, Top::Held] {
        rows.sort_by_key(|row| Reverse(row.key(top)));
        wanted.extend(rows.iter().take(limit).map(|row| row.address.clone()));
    }
    rows.retain(|row| wanted.contains(&row.address));
    rows
}

// ---- closing ----

#[derive(Deserialize)]
pub(super) struct Meant {
    number: Option<u64>,
    address: Option<String>,
}

/// What was done to so many connections, or bans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// How many there were.
    pub count: usize,
}

pub(super) async fn kill(
    State(view): State<Arc<View>>,
    Query(meant): Query<Meant>,
) -> Result<Json<Done>, Refusal> {
    let bad = |text: &str| (StatusCode::BAD_REQUEST, format!("{text:?} is not an address\n"));
    let which = match (&meant.number, &meant.address) {
        (Some(number), None) => Which::Number(*number),
        (None, Some(text)) if text.contains('/') => Which::Address(text.parse().map_err(|_| bad(text))?),
        (None, Some(text)) => Which::Ip(text.parse().map_err(|_| bad(text))?),
        (None, None) | (Some(_), Some(_)) => {
            return Err((StatusCode::BAD_REQUEST, "name a number or an address\n".to_owned()));
        }
    };
    let mut gateway = view.shared.gateway.lock();
    let count = gateway.kill(which);
    view.shared.wake_for(&gateway);
    drop(gateway);
    tracing::info!(?which, count, "connections are closed by an operator's word");
    Ok(Json(Done { count }))
}

// ---- bans ----

/// An address that is not let in.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BanRow {
    /// The node that does not let it in.
    pub node: u64,
    /// An IPv4 address, or an IPv6 network.
    pub address: String,
    /// For how much longer, in milliseconds.
    pub left_ms: u64,
    /// Connections refused since it began.
    pub refused: u64,
}

pub(super) async fn bans(State(view): State<Arc<View>>) -> Json<Vec<BanRow>> {
    let node = u64::from(view.shared.gateway.lock().node());
    let row = |ban: crate::net::BanView| BanRow {
        node,
        address: ban.address.to_string(),
        left_ms: ban.left_ms,
        refused: ban.refused,
    };
    Json(view.shared.door.bans().into_iter().map(row).collect())
}

#[derive(Deserialize)]
pub(super) struct Pardoned {
    /// All without it.
    address: Option<String>,
}

pub(super) async fn clear_bans(
    State(view): State<Arc<View>>,
    Query(pardoned): Query<Pardoned>,
) -> Result<Json<Done>, Refusal> {
    let read = |text: &String| {
        let bad = |_| (StatusCode::BAD_REQUEST, format!("{text:?} is not an address\n"));
        text.parse::<Address>().map_err(bad)
    };
    let address = pardoned.address.as_ref().map(read).transpose()?;
    Ok(Json(Done { count: view.shared.door.clear_bans(address) }))
}

// ---- metrics ----

/// Limits of connections and what they refused, as metrics.
pub(super) fn metrics(registry: &mut Registry, view: &View) {
    let door = &view.shared.door;
    let refused = Family::<Labels, Counter>::default();
    for (reason, count) in door.refused() {
        refused.get_or_create(&vec![("reason", reason.as_str().to_owned())]).inc_by(count);
    }
    registry.register("connections_refused", "Client connections closed where they were accepted", refused);
    let total = door.limits().total as u64;
    gauge(registry, "connections_max", "Client connections that this node may have", total);
    gauge(registry, "bans", "Addresses whose connections are refused for a while", door.bans().len() as u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(address: &str, connections: u64, opened_per_s: u64, bytes_per_s: u64) -> AddressRow {
        AddressRow {
            address: address.to_owned(),
            connections,
            opened_per_s,
            bytes_per_s,
            ..AddressRow::default()
        }
    }

    #[test]
    fn whoever_does_most_of_anything_is_among_those_that_are_told() {
        let mut rows: Vec<AddressRow> = (0..100).map(|n| row(&format!("10.0.0.{n}"), 1, 1, n)).collect();
        rows.push(row("crowd", 20_000, 0, 0));
        rows.push(row("storm", 0, 5_000, 0));
        let told = most_of_anything(rows, 2);
        for name in ["crowd", "storm", "10.0.0.99", "10.0.0.98"] {
            assert!(told.iter().any(|row| row.address == name), "{name} in {told:?}");
        }
        assert!(told.len() <= 8, "{told:?}");
    }
}
