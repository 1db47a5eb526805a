//! Limits on clients' connections, as a pure state machine: who is let in, by what each address did lately.
//!
//! ```text
//!   knock(from) ─► banned? ─► too many in all? ─► too many of this address? ─► too fast? ─► in
//!                    │              │                      │                       │
//!                    └──────────────┴── refused, counted ──┴───────────────────────┴─► many of them: banned
//!   leave(from, soon) ─► many that were dropped soon after they were opened ─────────► banned
//! ```
//!
//! Everything is bounded: an address is kept account of while it has connections, which are limited themselves, and so are a few
//! thousand others of late; when there are more, those that were not heard of for the longest time are forgotten. An IPv6 client
//! has a whole /64 to choose its address from, so that counts as one.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// Addresses without connections that are kept account of.
const IDLE_MAX: usize = 4096;
/// Bans in force, at most; the one that ends first makes room for another.
pub const BANS_MAX: usize = 1024;
/// Connections that are refused, or dropped this soon after they were opened, are counted over windows of this length, in
/// microseconds.
pub const WINDOW_US: u64 = 10_000_000;
/// Accepts are counted over windows of this length, in microseconds.
const SECOND_US: u64 = 1_000_000;
/// Addresses whose refusals, and whose bans, are told in a window; the others are only counted.
const TOLD_MAX: u32 = 16;

/// What connections are limited to; 0 is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// All connections.
    pub total: usize,
    /// Those of one address.
    pub per_address: usize,
    /// Connections that one address may open in a second.
    pub accepts_per_second: u32,
    /// So many connections of an address, refused or dropped within one window, have it banned.
    pub ban_after: u32,
    /// How long a ban lasts, in microseconds.
    pub ban_us: u64,
    /// Loopback addresses may be banned too.
    pub ban_loopback: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            total: 0,
            per_address: 0,
            accepts_per_second: 0,
            ban_after: 0,
            ban_us: 60_000_000,
            ban_loopback: false,
        }
    }
}

/// Whom limits are for: an IPv4 address, or an IPv6 network of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(IpAddr);

impl Address {
    /// The address that counts for a client at this one.
    pub fn of(ip: IpAddr) -> Address {
        match ip.to_canonical() {
            IpAddr::V6(v6) if !v6.is_loopback() => {
                Address(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into())
            }
            ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => Address(ip),
        }
    }

    fn is_loopback(self) -> bool {
        self.0.is_loopback()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V6(v6) if !v6.is_loopback() => write!(f, "{v6}/64"),
            IpAddr::V4(_) | IpAddr::V6(_) => self.0.fmt(f),
        }
    }
}

impl FromStr for Address {
    type Err = std::net::AddrParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_suffix("/64").unwrap_or(text).parse().map(Address::of)
    }
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There are as many as may be.
    Total,
    /// Its address has as many as it may.
    PerAddress,
    /// Its address opened as many in this second as it may.
    Rate,
    /// Its address is banned.
    Banned,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 4] = [Reason::Total, Reason::PerAddress, Reason::Rate, Reason::Banned];

    /// Its name in metrics and lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Total => "total",
            Reason::PerAddress => "per-address",
            Reason::Rate => "rate",
            Reason::Banned => "banned",
        }
    }
}

/// What becomes of a connection that is being accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is let in.
    In,
    /// It is closed.
    Refused {
        /// Why.
        why: Reason,
        /// Nobody was told of this address lately.
        tell: bool,
        /// Its address is banned from now on.
        ban: bool,
    },
}

/// What one address did, since it is kept account of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Connections that it has.
    pub open: usize,
    /// Connections that were let in.
    pub opened: u64,
    /// Connections that were refused.
    pub refused: u64,
    second_us: u64,
    in_second: u32,
    window_us: u64,
    /// Connections that were refused, or dropped soon, in this window.
    flaps: u32,
    told_us: Option<u64>,
    last_us: u64,
}

impl Account {
    /// Brings the windows up to date.
    fn pass(&mut self, now_us: u64) {
        self.last_us = now_us;
        if now_us >= self.second_us + SECOND_US {
            (self.second_us, self.in_second) = (now_us, 0);
        }
        if now_us >= self.window_us + WINDOW_US {
            (self.window_us, self.flaps) = (now_us, 0);
        }
    }
}

/// An address that is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    /// When it ends, in microseconds of the caller's clock.
    pub until_us: u64,
    /// Connections refused since it began.
    pub refused: u64,
}

/// Lines of one kind: the window, and how many it had.
#[derive(Clone, Copy, Debug, Default)]
struct Lines {
    window_us: u64,
    count: u32,
}

impl Lines {
    /// Whether there may be one more now.
    fn may_be_more(&mut self, now_us: u64) -> bool {
        if now_us >= self.window_us + WINDOW_US {
            *self = Lines { window_us: now_us, count: 0 };
        }
        self.count += 1;
        self.count <= TOLD_MAX
    }
}

/// All addresses of late.
#[derive(Default)]
pub struct Table {
    limits: Limits,
    accounts: HashMap<Address, Account>,
    /// Accounts with connections.
    present: usize,
    /// Connections, those without an address included.
    open: usize,
    bans: BTreeMap<Address, Ban>,
    /// By [`Reason`], in the order of its list.
    refused: [u64; Reason::ALL.len()],
    told: Lines,
    told_bans: Lines,
    told_total_us: Option<u64>,
}

impl Table {
    /// Limits from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Connections refused so far, by reason.
    pub fn refused(&self) -> [(Reason, u64); Reason::ALL.len()] {
        Reason::ALL.map(|reason| (reason, self.refused[reason as usize]))
    }

    /// Every address that is kept account of.
    pub fn accounts(&self) -> impl Iterator<Item = (Address, &Account)> {
        self.accounts.iter().map(|(address, account)| (*address, account))
    }

    /// Bans in force, by address.
    pub fn bans(&self, now_us: u64) -> impl Iterator<Item = (Address, Ban)> {
        let lasts = move |(_, ban): &(&Address, &Ban)| ban.until_us > now_us;
        self.bans.iter().filter(lasts).map(|(address, ban)| (*address, *ban))
    }

    /// Ends the ban of an address, or all; answers how many there were.
    pub fn clear_bans(&mut self, now_us: u64, address: Option<Address>) -> usize {
        self.bans.retain(|_, ban| ban.until_us > now_us);
        match address {
            Some(address) => usize::from(self.bans.remove(&address).is_some()),
            None => std::mem::take(&mut self.bans).len(),
        }
    }

    /// A connection is to be accepted at `now_us`, which never runs backwards. `from`: none for one that has no address, as over
    /// a unix socket; only the limit of all holds for that.
    pub fn knock(&mut self, now_us: u64, from: Option<Address>) -> Verdict {
        let Some(address) = from else { return self.knock_unknown(now_us) };
        if let Some(ban) = self.bans.get_mut(&address) {
            if ban.until_us > now_us {
                ban.refused += 1;
                return self.refuse(now_us, address, Reason::Banned);
            }
            self.bans.remove(&address);
        }
        let Limits { per_address, accepts_per_second, .. } = self.limits;
        let is_full = self.is_full();
        let account = self.accounts.entry(address).or_default();
        account.pass(now_us);
        let why = if is_full {
            Reason::Total
        } else if per_address > 0 && account.open >= per_address {
            Reason::PerAddress
        } else if accepts_per_second > 0 && account.in_second >= accepts_per_second {
            Reason::Rate
        } else {
            account.in_second += 1;
            account.opened += 1;
            account.open += 1;
            self.present += usize::from(account.open == 1);
            self.open += 1;
            return Verdict::In;
        };
        self.refuse(now_us, address, why)
    }

    fn knock_unknown(&mut self, now_us: u64) -> Verdict {
        if !self.is_full() {
            self.open += 1;
            return Verdict::In;
        }
        self.refused[Reason::Total as usize] += 1;
        Verdict::Refused { why: Reason::Total, tell: self.tells_total(now_us), ban: false }
    }

    fn is_full(&self) -> bool {
        self.limits.total > 0 && self.open >= self.limits.total
    }

    fn refuse(&mut self, now_us: u64, address: Address, why: Reason) -> Verdict {
        self.refused[why as usize] += 1;
        let account = self.accounts.entry(address).or_default();
        account.pass(now_us);
        account.refused += 1;
        let ban = match why {
            // It is nobody's fault in particular that all are too many.
            Reason::Total | Reason::Banned => false,
            Reason::PerAddress | Reason::Rate => self.flapped(now_us, address),
        };
        let tell = match why {
            Reason::Total => self.tells_total(now_us),
            Reason::PerAddress | Reason::Rate | Reason::Banned => self.tells(now_us, address),
        };
        self.forget_some();
        Verdict::Refused { why, tell, ban }
    }

    /// A connection that was let in is over. `soon`: within one window. Answers whether its address is banned from now on.
    pub fn leave(&mut self, now_us: u64, from: Option<Address>, soon: bool) -> bool {
        self.open -= 1;
        let Some(address) = from else { return false };
        let account = self.accounts.get_mut(&address).expect("it is kept while it has connections");
        account.pass(now_us);
        account.open -= 1;
        self.present -= usize::from(account.open == 0);
        let banned = soon && self.flapped(now_us, address);
        self.forget_some();
        banned
    }

    /// Counts a connection that was refused or dropped soon; true if its address is banned for that.
    fn flapped(&mut self, now_us: u64, address: Address) -> bool {
        let Limits { ban_after, ban_us, ban_loopback, .. } = self.limits;
        let Some(account) = self.accounts.get_mut(&address) else { return false };
        account.flaps += 1;
        let is_exempt = address.is_loopback() && !ban_loopback;
        if ban_after == 0 || account.flaps < ban_after || is_exempt || self.bans.contains_key(&address) {
            return false;
        }
        account.flaps = 0;
        self.bans.retain(|_, ban| ban.until_us > now_us);
        if self.bans.len() >= BANS_MAX {
            let first = self.bans.iter().min_by_key(|(_, ban)| ban.until_us).map(|(address, _)| *address);
            if let Some(first) = first {
                self.bans.remove(&first);
            }
        }
        self.bans.insert(address, Ban { until_us: now_us + ban_us, refused: 0 });
        true
    }

    // ---- lines ----

    /// Whether to tell of an address: once in a window, and not of too many.
    fn tells(&mut self, now_us: u64, address: Address) -> bool {
        let Some(account) = self.accounts.get_mut(&address) else { return false };
        let is_new = account.told_us.is_none_or(|at| now_us >= at + WINDOW_US);
        if !is_new || !self.told.may_be_more(now_us) {
            return false;
        }
        account.told_us = Some(now_us);
        true
    }

    /// Whether to tell of a ban that began: not of too many in a window.
    pub fn tells_ban(&mut self, now_us: u64) -> bool {
        self.told_bans.may_be_more(now_us)
    }

    fn tells_total(&mut self, now_us: u64) -> bool {
        let is_new = self.told_total_us.is_none_or(|at| now_us >= at + WINDOW_US);
        if is_new {
            self.told_total_us = Some(now_us);
        }
        is_new
    }

    // ---- bounds ----

    /// Keeps the newest half of the accounts without connections when there are too many.
    fn forget_some(&mut self) {
        if self.accounts.len() - self.present <= IDLE_MAX {
            return;
        }
        let idle = self.accounts.values().filter(|account| account.open == 0);
        let mut times: Vec<u64> = idle.map(|account| account.last_us).collect();
        let (_, middle, _) = times.select_nth_unstable(IDLE_MAX / 2);
        let oldest = *middle;
        // Those of the very same moment go too, so that it never has to be done again at once.
        self.accounts.retain(|_, account| account.open > 0 || account.last_us > oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    fn table(limits: Limits) -> Table {
        let mut table = Table::default();
        table.set_limits(limits);
        table
    }

    fn at(text: &str) -> Option<Address> {
        Some(text.parse().unwrap())
    }

    fn why(verdict: Verdict) -> Option<Reason> {
        match verdict {
            Verdict::In => None,
            Verdict::Refused { why, .. } => Some(why),
        }
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        assert_eq!(at("2001:db8:1:2:3:4:5:6"), at("2001:db8:1:2::/64"));
        assert_ne!(at("2001:db8:1:2::1"), at("2001:db8:1:3::1"));
        assert_eq!(at("::ffff:10.0.0.1"), at("10.0.0.1"));
        for text in ["10.0.0.1", "2001:db8:1:2::/64", "::1"] {
            assert_eq!(at(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn nothing_is_limited_unless_it_is_said() {
        let mut table = table(Limits::default());
        for number in 0..100_000 {
            assert_eq!(table.knock(number, at("10.0.0.1")), Verdict::In);
        }
        for number in 0..100_000 {
            assert!(!table.leave(number, at("10.0.0.1"), true));
        }
        assert_eq!(table.bans(0).count(), 0);
    }

    #[test]
    fn all_and_each_are_limited_and_who_leaves_makes_room() {
        let mut table = table(Limits { total: 3, per_address: 2, ..Limits::default() });
        assert_eq!(table.knock(0, at("10.0.0.1")), Verdict::In);
        assert_eq!(table.knock(0, at("10.0.0.1")), Verdict::In);
        assert_eq!(why(table.knock(0, at("10.0.0.1"))), Some(Reason::PerAddress));
        assert_eq!(table.knock(0, None), Verdict::In);
        assert_eq!(why(table.knock(0, at("10.0.0.2"))), Some(Reason::Total));
        assert_eq!(why(table.knock(0, None)), Some(Reason::Total));
        table.leave(1, at("10.0.0.1"), false);
        assert_eq!(table.knock(1, at("10.0.0.2")), Verdict::In);
        assert_eq!(
            table.refused().map(|(reason, count)| (reason.as_str(), count)),
            [("total", 2), ("per-address", 1), ("rate", 0), ("banned", 0)]
        );
    }

    #[test]
    fn an_address_opens_so_many_a_second_and_others_as_many() {
        let mut table = table(Limits { accepts_per_second: 2, ..Limits::default() });
        for second in 100..110 {
            for address in ["10.0.0.1", "10.0.0.2"] {
                let answers: Vec<_> = (0..4).map(|n| why(table.knock(second * S + n, at(address)))).collect();
                assert_eq!(answers, [None, None, Some(Reason::Rate), Some(Reason::Rate)]);
            }
        }
    }

    #[test]
    fn who_opens_and_drops_many_is_banned_for_a_time() {
        let mut table = table(Limits { ban_after: 5, ban_us: 60 * S, ..Limits::default() });
        let flap = |table: &mut Table, now: u64, from: &str| {
            assert_eq!(table.knock(now, at(from)), Verdict::In);
            table.leave(now, at(from), true)
        };
        for turn in 0..4 {
            assert!(!flap(&mut table, 100 * S + turn, "10.0.0.1"));
        }
        // Slowly, or by connections that last, it may go on for ever.
        for turn in 1..100 {
            assert!(!flap(&mut table, 100 * S + turn * 4 * S, "10.0.0.2"));
            assert_eq!(table.knock(100 * S + turn, at("10.0.0.3")), Verdict::In);
            assert!(!table.leave(100 * S + turn, at("10.0.0.3"), false));
        }
        assert!(flap(&mut table, 101 * S, "10.0.0.1"), "the fifth within ten seconds");
        assert_eq!(why(table.knock(160 * S, at("10.0.0.1"))), Some(Reason::Banned));
        assert_eq!(table.bans(160 * S).map(|(_, ban)| ban.refused).collect::<Vec<_>>(), [1]);
        assert!(!flap(&mut table, 161 * S, "10.0.0.1"), "its time is over");
        assert_eq!(table.bans(161 * S).count(), 0);
    }

    #[test]
    fn who_is_refused_again_and_again_is_banned_too_and_a_ban_can_be_cleared() {
        let limits = Limits { per_address: 1, ban_after: 3, ..Limits::default() };
        let mut table = table(limits);
        assert_eq!(table.knock(0, at("10.0.0.1")), Verdict::In);
        let refused = |ban, tell| Verdict::Refused { why: Reason::PerAddress, tell, ban };
        let answers: Vec<Verdict> = (0..3).map(|n| table.knock(n, at("10.0.0.1"))).collect();
        assert_eq!(answers, [refused(false, true), refused(false, false), refused(true, false)]);
        assert_eq!(why(table.knock(5, at("10.0.0.1"))), Some(Reason::Banned));
        assert_eq!((table.clear_bans(6, at("10.0.0.9")), table.clear_bans(6, at("10.0.0.1"))), (0, 1));
        assert_eq!(why(table.knock(7, at("10.0.0.1"))), Some(Reason::PerAddress));
    }

    #[test]
    fn loopback_is_banned_only_if_that_is_said() {
        for (ban_loopback, banned) in [(false, false), (true, true)] {
            let mut table = table(Limits { ban_after: 1, ban_loopback, ..Limits::default() });
            for from in ["127.0.0.2", "::1"] {
                assert_eq!(table.knock(0, at(from)), Verdict::In);
                assert_eq!(table.leave(0, at(from), true), banned);
            }
        }
    }

    #[test]
    fn addresses_bans_and_lines_are_bounded() {
        let limits = Limits { ban_after: 1, accepts_per_second: 1, ..Limits::default() };
        let mut table = table(limits);
        let mut told = 0;
        for number in 0..20_000u32 {
            let from = Some(Address::of(std::net::Ipv4Addr::from_bits(0x0a00_0000 | number).into()));
            let now = u64::from(number);
            assert_eq!(table.knock(now, from), Verdict::In);
            if let Verdict::Refused { tell, ban, .. } = table.knock(now, from) {
                assert!(ban);
                told += u32::from(tell);
            }
            table.leave(now, from, false);
            assert!(table.accounts.len() <= IDLE_MAX + 1 && table.bans.len() <= BANS_MAX);
        }
        assert_eq!(told, TOLD_MAX);
        assert_eq!((table.present, table.open), (0, 0));
    }
}
