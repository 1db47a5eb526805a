//! `beanpole conns`: who is connected, who does most, who is not let in.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::admin::{self, Ask, Failure, NO, Output, USAGE, YES};
use super::cluster::print_table;
use super::tube::escaped;
use crate::admin::conns::{AddressRow, BanRow, ConnRow, Conns, Done, Top};
use crate::units::Size;

/// Tubes that a connection watches and that are shown.
const WATCHES_SHOWN: usize = 3;

/// The flags of `beanpole conns`.
#[derive(Args, Debug)]
pub struct ConnsArgs {
    #[command(flatten)]
    ask: Ask,
    /// Show those that have most of this
    #[arg(long, value_name = "WHAT", default_value = "rate")]
    top: Top,
    /// Show so many
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
    limit: usize,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Close connections at once; jobs that they hold are ready again
    Kill {
        /// A connection's id as `beanpole conns` shows it, an address, or an IPv6 network as ADDRESS/64
        #[arg(value_name = "ID|ADDRESS")]
        which: String,
    },
    /// Show addresses that are not let in for a while
    Bans {
        #[command(subcommand)]
        verb: Option<BansVerb>,
    },
}

#[derive(Subcommand, Debug)]
enum BansVerb {
    /// Let an address in again
    Clear {
        /// The address, or an IPv6 network
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        address: Option<String>,
        /// All of them
        #[arg(long)]
        all: bool,
    },
}

/// Runs the verb.
pub fn run(args: &ConnsArgs) -> ExitCode {
    let ask = &args.ask;
    admin::finish(match &args.verb {
        None => show(ask, args.top, args.limit),
        Some(Verb::Kill { which }) => kill(ask, which),
        Some(Verb::Bans { verb: None }) => bans(ask),
        Some(Verb::Bans { verb: Some(BansVerb::Clear { address, .. }) }) => clear(ask, address.as_deref()),
    })
}

/// One node's answer, or why there is none.
type Answer<T> = (u64, Result<T, Failure>);

/// Asks all nodes of the cluster at once. That some do not answer is said on standard error; that none does is a failure.
fn every<T: Send>(
    ask: &Ask,
    only: Option<u64>,
    request: impl Fn(&str) -> Result<T, Failure> + Sync,
) -> Result<Vec<(u64, T)>, Failure> {
    let (asked, cluster) = admin::cluster(ask)?;
    if let Some(only) = only {
        cluster.member(only)?;
    }
    let nodes =
        cluster.nodes.iter().map(|node| node.report.id).filter(|id| only.is_none_or(|only| *id == only));
    let answers: Vec<Answer<T>> = std::thread::scope(|scope| {
        let one = |id: u64| {
            let address = match cluster.nodes.iter().find(|node| node.report.id == id) {
                _ if id == cluster.node_id => asked.clone(),
                Some(node) => node.report.admin.clone(),
                None => String::new(),
            };
            let request = &request;
            (
                id,
                scope.spawn(move || match address.as_str() {
                    "" => Err(Failure::new(admin::UNREACHABLE, "its admin address is not known here")),
                    address => request(address),
                }),
            )
        };
        let asked: Vec<_> = nodes.map(one).collect();
        asked.into_iter().map(|(id, thread)| (id, thread.join().expect("a request does not panic"))).collect()
    });
    let mut good = Vec::new();
    let mut last = None;
    for (id, answer) in answers {
        match answer {
            Ok(answer) => good.push((id, answer)),
            Err(failure) => {
                eprintln!("beanpole: node {id}: {}", failure.message);
                last = Some(failure);
            }
        }
    }
    match last {
        Some(failure) if good.is_empty() => Err(failure),
        Some(_) | None => Ok(good),
    }
}

/// What all nodes that answer tell, added up.
#[derive(Default, Serialize)]
struct All {
    nodes: Vec<NodeRow>,
    top: Vec<ConnRow>,
    addresses: Vec<AddressRow>,
}

#[derive(Serialize)]
struct NodeRow {
    node: u64,
    connections: u64,
    max_connections: u64,
    bans: u64,
}

impl All {
    fn of(answers: Vec<Conns>, top: Top, limit: usize) -> All {
        let mut all = All::default();
        let mut sums: BTreeMap<String, AddressRow> = BTreeMap::new();
        for conns in answers {
            let Conns { node, connections, max_connections, bans, .. } = conns;
            all.nodes.push(NodeRow { node, connections, max_connections, bans });
            all.top.extend(conns.top);
            for row in conns.addresses {
                add(sums.entry(row.address.clone()).or_default(), row);
            }
        }
        all.top.sort_by_key(|row| std::cmp::Reverse(row.key(top)));
        all.top.truncate(limit);
        all.addresses = sums.into_values().collect();
        all.addresses.sort_by_key(|row| std::cmp::Reverse(row.key(top)));
        all
    }

    /// Who has most of each, in a line each.
    fn most(&self) -> Vec<String> {
        let connections: u64 = self.nodes.iter().map(|node| node.connections).sum();
        let of = |key: fn(&AddressRow) -> u64| self.addresses.iter().max_by_key(|row| key(row));
        let mut lines = Vec::new();
        let mut say = |what: &str, row: Option<&AddressRow>, value: fn(&AddressRow) -> u64, of: String| {
            if let Some(row) = row.filter(|row| value(row) > 0) {
                lines.push(format!("most {what}: {} with {}{of}", row.address, value(row)));
            }
        };
        let open: fn(&AddressRow) -> u64 = |row| row.connections;
        let tried: fn(&AddressRow) -> u64 = |row| row.opened_per_s + row.refused_per_s;
        let commands: fn(&AddressRow) -> u64 = |row| row.commands_per_s;
        let bytes: fn(&AddressRow) -> u64 = |row| row.bytes_per_s;
        let reserved: fn(&AddressRow) -> u64 = |row| row.reserved;
        say("connections", of(open), open, format!(" of {connections}"));
        say("connections opened or refused", of(tried), tried, " a second".to_owned());
        say("commands", of(commands), commands, " a second".to_owned());
        say("bytes", of(bytes), bytes, " a second".to_owned());
        say("jobs reserved", of(reserved), reserved, String::new());
        lines
    }
}

/// Adds what another node tells of an address.
fn add(sum: &mut AddressRow, row: AddressRow) {
    sum.address = row.address;
    let fields = [
        (&mut sum.connections, row.connections),
        (&mut sum.opened_per_s, row.opened_per_s),
        (&mut sum.refused_per_s, row.refused_per_s),
        (&mut sum.opened, row.opened),
        (&mut sum.refused, row.refused),
        (&mut sum.commands_per_s, row.commands_per_s),
        (&mut sum.bytes_per_s, row.bytes_per_s),
        (&mut sum.reserved, row.reserved),
        (&mut sum.buffers, row.buffers),
    ];
    for (sum, value) in fields {
        *sum += value;
    }
}

fn show(ask: &Ask, top: Top, limit: usize) -> Result<u8, Failure> {
    let word = clap::ValueEnum::to_possible_value(&top).map_or_else(String::new, |v| v.get_name().to_owned());
    let path = format!("/api/v1/conns?top={word}&limit={limit}");
    let answers = every(ask, None, |address| admin::get::<Conns>(address, &path))?;
    let all = All::of(answers.into_iter().map(|(_, conns)| conns).collect(), top, limit);
    if ask.output == Output::Json {
        println!("{:#}", serde_json::to_value(&all).unwrap_or_default());
        return Ok(YES);
    }
    for NodeRow { node, connections, max_connections, bans } in &all.nodes {
        println!("node {node}: {connections} of {max_connections} connections, {bans} addresses banned");
    }
    all.most().iter().for_each(|line| println!("{line}"));
    println!();
    print_table(&address_rows(&all, limit));
    println!();
    print_table(&conn_rows(&all));
    Ok(YES)
}

fn address_rows(all: &All, limit: usize) -> Vec<[String; 8]> {
    let head = ["address", "conns", "opened/s", "refused/s", "commands/s", "bytes/s", "reserved", "buffers"];
    let row = |row: &AddressRow| {
        [
            row.address.clone(),
            row.connections.to_string(),
            row.opened_per_s.to_string(),
            row.refused_per_s.to_string(),
            row.commands_per_s.to_string(),
            row.bytes_per_s.to_string(),
            row.reserved.to_string(),
            Size(row.buffers).to_string(),
        ]
    };
    let rows = all.addresses.iter().take(limit).map(row);
    std::iter::once(head.map(str::to_owned)).chain(rows).collect()
}

fn conn_rows(all: &All) -> Vec<[String; 12]> {
    let head = [
        "id",
        "node",
        "address",
        "age",
        "uses",
        "watches",
        "reserved",
        "waits",
        "buffers",
        "commands/s",
        "bytes/s",
        "last",
    ];
    let row = |row: &ConnRow| {
        [
            row.id.clone(),
            row.node.to_string(),
            row.address.clone(),
            format!("{}s", row.age_ms / 1000),
            row.uses.clone(),
            watches(row),
            row.reserved.to_string(),
            if row.waiting { "yes" } else { "" }.to_owned(),
            Size(row.buffers as u64).to_string(),
            row.commands_per_s.to_string(),
            row.bytes_per_s.to_string(),
            row.last.clone(),
        ]
    };
    std::iter::once(head.map(str::to_owned)).chain(all.top.iter().map(row)).collect()
}

fn watches(row: &ConnRow) -> String {
    let shown: Vec<&str> = row.watches.iter().take(WATCHES_SHOWN).map(String::as_str).collect();
    match row.watching.saturating_sub(shown.len()) {
        0 => shown.join(","),
        more => format!("{} and {more} more", shown.join(",")),
    }
}

fn kill(ask: &Ask, which: &str) -> Result<u8, Failure> {
    let (only, query) = match id(which) {
        Some((node, number)) => (Some(node), format!("number={number}")),
        None if which.trim_end_matches("/64").parse::<std::net::IpAddr>().is_ok() => {
            (None, format!("address={}", escaped(which)))
        }
        None => {
            let message = format!("{which:?} is neither a connection's id, as 1-17, nor an address");
            return Err(Failure::new(USAGE, message));
        }
    };
    let path = format!("/api/v1/conns?{query}");
    done(ask, only, &path, "connections closed")
}

/// `NODE-NUMBER`.
fn id(text: &str) -> Option<(u64, u64)> {
    let (node, number) = text.split_once('-')?;
    Some((node.parse().ok()?, number.parse().ok()?))
}

/// Has every node, or one, do something, and tells to how many it was done: exit code 1 if there were none.
fn done(ask: &Ask, only: Option<u64>, path: &str, what: &str) -> Result<u8, Failure> {
    let answers = every(ask, only, |address| {
        let text = admin::change("DELETE", address, path)?;
        read::<Done>(&text)
    })?;
    let count: usize = answers.iter().map(|(_, done)| done.count).sum();
    match ask.output {
        Output::Json => println!("{}", serde_json::json!({ "count": count })),
        Output::Table => println!("{count} {what}"),
    }
    Ok(if count > 0 { YES } else { NO })
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, Failure> {
    let unclear = |error| Failure::new(admin::UNREACHABLE, format!("{text:?}: {error}"));
    serde_json::from_str(text).map_err(unclear)
}

fn bans(ask: &Ask) -> Result<u8, Failure> {
    let answers = every(ask, None, |address| admin::get::<Vec<BanRow>>(address, "/api/v1/bans"))?;
    let all: Vec<BanRow> = answers.into_iter().flat_map(|(_, bans)| bans).collect();
    if ask.output == Output::Json {
        println!("{:#}", serde_json::to_value(&all).unwrap_or_default());
        return Ok(YES);
    }
    if all.is_empty() {
        println!("no address is banned");
        return Ok(YES);
    }
    let mut rows = vec![["address", "node", "for", "refused"].map(str::to_owned)];
    for BanRow { node, address, left_ms, refused } in all {
        let left = format!("{} s", left_ms.div_ceil(1000));
        rows.push([address, node.to_string(), left, refused.to_string()]);
    }
    print_table(&rows);
    Ok(YES)
}

fn clear(ask: &Ask, address: Option<&str>) -> Result<u8, Failure> {
    let query = address.map_or_else(String::new, |address| format!("?address={}", escaped(address)));
    done(ask, None, &format!("/api/v1/bans{query}"), "bans cleared")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(node: u64, address: &str, connections: u64) -> Conns {
        let row = AddressRow { address: address.to_owned(), connections, ..AddressRow::default() };
        Conns { node, connections, addresses: vec![row], ..Conns::default() }
    }

    #[test]
    fn an_address_is_one_over_all_nodes() {
        let answers = vec![told(1, "10.0.0.1", 5), told(2, "10.0.0.2", 7), told(3, "10.0.0.1", 4)];
        let all = All::of(answers, Top::Held, 20);
        let sums: Vec<_> = all.addresses.iter().map(|row| (row.address.as_str(), row.connections)).collect();
        assert_eq!(sums, [("10.0.0.1", 9), ("10.0.0.2", 7)]);
        assert_eq!(all.most(), ["most connections: 10.0.0.1 with 9 of 16"]);
    }

    #[test]
    fn an_id_is_a_node_and_a_number() {
        assert_eq!((id("2-17"), id("10.0.0.1"), id("2-x")), (Some((2, 17)), None, None));
    }
}
