//! The door: what every client's connection passes before anything is spent on it. It decides by [`super::limits`], and tells.
//!
//! The admin server and the nodes' own port have no such door: operators and peers are never refused by it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::limits::{Account, Address, Limits, Reason, Table, Verdict, WINDOW_US};
use crate::admission::Events;

/// See the module.
pub struct Door {
    table: Mutex<Table>,
    began: Instant,
    /// Where operators read of bans.
    events: Arc<Events>,
}

/// A ban, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BanView {
    /// Who is not let in.
    pub address: Address,
    /// For how much longer, in milliseconds.
    pub left_ms: u64,
    /// Connections refused since it began.
    pub refused: u64,
}

/// A connection that was let in; dropped with it.
pub struct Pass {
    door: Arc<Door>,
    from: Option<Address>,
    since_us: u64,
}

impl Door {
    /// A door without limits.
    pub fn new(events: Arc<Events>) -> Door {
        Door { table: Mutex::default(), began: Instant::now(), events }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Limits from now on.
    pub fn set_limits(&self, limits: Limits) {
        self.table.lock().set_limits(limits);
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.table.lock().limits()
    }

    /// Lets a client in, or not; `ip`: none for one that has no address. Who is not let in is to be closed at once.
    pub fn enter(self: &Arc<Self>, ip: Option<IpAddr>) -> Option<Pass> {
        let (now_us, from) = (self.now_us(), ip.map(Address::of));
        let verdict = self.table.lock().knock(now_us, from);
        match verdict {
            Verdict::In => Some(Pass { door: self.clone(), from, since_us: now_us }),
            Verdict::Refused { why, tell, ban } => {
                if tell {
                    self.tell_refusal(why, from);
                }
                if let Some(address) = from.filter(|_| ban) {
                    self.tell_ban(address);
                }
                None
            }
        }
    }

    fn tell_refusal(&self, why: Reason, from: Option<Address>) {
        let Limits { total, per_address, accepts_per_second, .. } = self.limits();
        let from = from.map_or_else(|| "a unix socket".to_owned(), |address| address.to_string());
        let limit = match why {
            Reason::Total => format!("--max-connections is {total}"),
            Reason::PerAddress => format!("--max-connections-per-address is {per_address}"),
            Reason::Rate => format!("--max-accepts-per-second is {accepts_per_second}"),
            Reason::Banned => "it is banned; see `beanpole conns bans`".to_owned(),
        };
        tracing::warn!(from, "connections are refused: {limit}; more of them within 10 s are only counted");
    }

    fn tell_ban(&self, address: Address) {
        if !self.table.lock().tells_ban(self.now_us()) {
            return;
        }
        let Limits { ban_after, ban_us, .. } = self.limits();
        let text = format!(
            "{address} is banned for {} s: {ban_after} of its connections were refused, or dropped soon after they were \
             opened, within 10 s; look at that client, or let it in again with `beanpole conns bans clear {address}`",
            ban_us / 1_000_000
        );
        tracing::warn!("{text}");
        self.events.note("ban", text);
    }

    /// Bans in force.
    pub fn bans(&self) -> Vec<BanView> {
        let now_us = self.now_us();
        let table = self.table.lock();
        let view = |(address, ban): (Address, super::limits::Ban)| BanView {
            address,
            left_ms: (ban.until_us - now_us).div_ceil(1000),
            refused: ban.refused,
        };
        table.bans(now_us).map(view).collect()
    }

    /// Ends the ban of an address, or all; answers how many there were.
    pub fn clear_bans(&self, address: Option<Address>) -> usize {
        self.table.lock().clear_bans(self.now_us(), address)
    }

    /// Connections refused so far, by reason.
    pub fn refused(&self) -> [(Reason, u64); Reason::ALL.len()] {
        self.table.lock().refused()
    }

    /// What every address did that is kept account of.
    pub fn accounts(&self) -> Vec<(Address, Account)> {
        self.table.lock().accounts().map(|(address, account)| (address, *account)).collect()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let now_us = self.door.now_us();
        let soon = now_us < self.since_us + WINDOW_US;
        let banned = self.door.table.lock().leave(now_us, self.from, soon);
        if let Some(address) = self.from.filter(|_| banned) {
            self.door.tell_ban(address);
        }
    }
}
