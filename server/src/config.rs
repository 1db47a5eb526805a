//! Where a server's settings come from: flag > environment > file > default.
//!
//! Flags and environment are read by clap into [`ServeArgs`] (each flag has its twin, `BEANPOLE_DATA_DIR` for
//! `--data-dir`); the file is TOML whose keys are the flags' names. [`Settings`] is the merged result, and the
//! only thing the rest of the server looks at.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

use crate::net::Limits;
use crate::units::{Size, Span};
use beanpole_protocol::MAX_JOB_SIZE_LIMIT;

/// The port between nodes when an address names only a host.
const PEER_PORT: u16 = 11390;
/// The smallest segment that makes sense: room for the largest default job and its record.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;
/// A server needs this much before the first job.
const MEMORY_LIMIT_MIN: u64 = 64 << 20;
/// A shorter ban is none ...
const BAN_MS_MIN: u64 = 1000;
/// ... and a longer one is for a firewall.
const BAN_MS_MAX: u64 = 7 * 86_400_000;
/// Segments are mapped whole and their offsets are 32 bit.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// The flags of `beanpole serve`. Every value is optional here: absent means "ask the next source".
#[derive(Args, Debug, Default, Clone)]
pub struct ServeArgs {
    /// TOML file with the same names as the flags, e.g. data-dir = "/var/lib/beanpole"
    #[arg(long, env = "BEANPOLE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Directory that holds the jobs; made if missing [default: ./beanpole-data]
    #[arg(long, short = 'b', env = "BEANPOLE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Where clients connect: HOST:PORT, HOST (port 11300), or unix:/path [default: 127.0.0.1:11300]
    #[arg(long, short = 'l', env = "BEANPOLE_LISTEN", value_name = "ADDR")]
    pub listen: Option<String>,

    /// Port for clients, when --listen names only a host
    #[arg(long, short = 'p', env = "BEANPOLE_PORT", value_name = "PORT")]
    pub port: Option<u16>,

    /// Where the admin HTTP listens, or "off" [default: 127.0.0.1:11380]
    #[arg(long, env = "BEANPOLE_ADMIN_LISTEN", value_name = "ADDR")]
    pub admin_listen: Option<String>,

    /// This node's number in its cluster: 1 or more, never used again for another machine [default: 1]
    #[arg(long, env = "BEANPOLE_NODE_ID", value_name = "N")]
    pub node_id: Option<u32>,

    /// Where the other nodes reach this one: HOST:PORT
    #[arg(long, env = "BEANPOLE_PEER_LISTEN", value_name = "ADDR")]
    pub peer_listen: Option<String>,

    /// The nodes that a new cluster begins with, this one included: 1=HOST:PORT,2=HOST:PORT,3=HOST:PORT
    #[arg(long, env = "BEANPOLE_PEERS", value_name = "LIST")]
    pub peers: Option<String>,

    /// Largest job body that a put may carry, e.g. 65535 or 1MiB, at most 1GiB [default: 65535]
    #[arg(long, short = 'z', env = "BEANPOLE_MAX_JOB_SIZE", value_name = "SIZE")]
    pub max_job_size: Option<Size>,

    /// Size of one segment file of the log [default: 64MiB]
    #[arg(long, env = "BEANPOLE_SEGMENT_SIZE", value_name = "SIZE")]
    pub segment_size: Option<Size>,

    /// Bytes of log after which a new snapshot is taken [default: 128MiB]
    #[arg(long, env = "BEANPOLE_SNAPSHOT_EVERY", value_name = "SIZE")]
    pub snapshot_every: Option<Size>,

    /// Bytes of log to keep behind the newest snapshot [default: 256MiB]
    #[arg(long, env = "BEANPOLE_LOG_RETENTION", value_name = "SIZE")]
    pub log_retention: Option<Size>,

    /// Bytes per second at which everything on the disk is read once a week to find damage; 0: only when asked [default: 8MiB]
    #[arg(long, env = "BEANPOLE_SCRUB_RATE", value_name = "SIZE")]
    pub scrub_rate: Option<Size>,

    /// Memory that the server may use; puts are slowed and refused before it is used up. The limits of cgroups and of the
    /// machine hold as well [default: those limits]
    #[arg(long, env = "BEANPOLE_MEMORY_LIMIT", value_name = "SIZE")]
    pub memory_limit: Option<Size>,

    /// How readily the kernel kills this process when memory runs out, -1000 (never) to 1000; lowering it needs privileges
    /// [default: unchanged]
    #[arg(long, env = "BEANPOLE_OOM_SCORE_ADJ", value_name = "N", allow_negative_numbers = true)]
    pub oom_score_adj: Option<i16>,

    /// Limits on clients' connections.
    #[command(flatten)]
    pub connections: ConnectionArgs,

    /// Least severe log line to print: error, warn, info, debug or trace [default: info]
    #[arg(long, env = "BEANPOLE_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,

    /// Form of the log lines on standard error [default: text]
    #[arg(long, env = "BEANPOLE_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// More log lines; twice for even more (as beanstalkd's -V)
    #[arg(short = 'V', action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// Limits on clients' connections. Operators' and other nodes' are not concerned.
#[derive(Args, Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ConnectionArgs {
    /// Clients' connections at once [default: three quarters of the limit on open files]
    #[arg(long, env = "BEANPOLE_MAX_CONNECTIONS", value_name = "N")]
    pub max_connections: Option<u64>,

    /// Connections at once of one address, or of one /64 network of IPv6 [default: no limit]
    #[arg(long, env = "BEANPOLE_MAX_CONNECTIONS_PER_ADDRESS", value_name = "N")]
    pub max_connections_per_address: Option<u64>,

    /// Connections that one address may open in a second [default: no limit]
    #[arg(long, env = "BEANPOLE_MAX_ACCEPTS_PER_SECOND", value_name = "N")]
    pub max_accepts_per_second: Option<u32>,

    /// An address of which so many connections are refused, or dropped soon after they were opened, within 10 s is banned for
    /// a while [default: never]
    #[arg(long, env = "BEANPOLE_BAN_AFTER", value_name = "N")]
    pub ban_after: Option<u32>,

    /// How long a ban lasts, 1s to 7d [default: 60s]
    #[arg(long, env = "BEANPOLE_BAN_TIME", value_name = "D")]
    pub ban_time: Option<Span>,

    /// Ban loopback addresses too
    #[arg(long, env = "BEANPOLE_BAN_LOOPBACK", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub ban_loopback: Option<bool>,
}

impl ConnectionArgs {
    /// What they say, else what `other` says, else the defaults. How many connections there may be in all is not known here.
    fn limits(&self, other: &ConnectionArgs) -> Result<Limits, ConfigError> {
        let count = |name, value: Option<u64>, other: Option<u64>| {
            let value = value.or(other).map(|value| checked_count(name, value)).transpose()?;
            Ok(value.map_or(0, |value| usize::try_from(value).unwrap_or(usize::MAX)))
        };
        let default = Limits::default();
        let ban_ms = self.ban_time.or(other.ban_time).map_or(default.ban_us / 1000, |span| span.0);
        if !(BAN_MS_MIN..=BAN_MS_MAX).contains(&ban_ms) {
            return Err(ConfigError::OutOfRange {
                setting: "ban-time",
                value: Span(ban_ms).to_string(),
                limits: format!("between {} and {}", Span(BAN_MS_MIN), Span(BAN_MS_MAX)),
            });
        }
        Ok(Limits {
            total: count("max-connections", self.max_connections, other.max_connections)?,
            per_address: count(
                "max-connections-per-address",
                self.max_connections_per_address,
                other.max_connections_per_address,
            )?,
            accepts_per_second: self.max_accepts_per_second.or(other.max_accepts_per_second).unwrap_or(0),
            ban_after: self.ban_after.or(other.ban_after).unwrap_or(0),
            ban_us: ban_ms * 1000,
            ban_loopback: self.ban_loopback.or(other.ban_loopback).unwrap_or(false),
        })
    }
}

fn checked_count(setting: &'static str, value: u64) -> Result<u64, ConfigError> {
    if value > 0 {
        return Ok(value);
    }
    let limits = "at least 1; leave it out for no limit of its own".to_owned();
    Err(ConfigError::OutOfRange { setting, value: value.to_string(), limits })
}

/// Least severe log line that is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Only what ends the process or loses service.
    Error,
    /// What an operator should look at.
    Warn,
    /// One line per event an operator would ask about.
    Info,
    /// Connections and snapshots in detail.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The level's name as the log filter wants it.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line, for log shippers.
    Json,
}

/// The merged, checked settings of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Directory of segments, snapshots and identity.
    pub data_dir: PathBuf,
    /// Where clients connect.
    pub listen: Listen,
    /// Where the admin HTTP listens; none switches it off.
    pub admin_listen: Option<Listen>,
    /// This node's number.
    pub node_id: u32,
    /// Where peers connect, and who they are; none: this node is a cluster by itself.
    pub peering: Option<PeerSettings>,
    /// Largest body of a put, in bytes.
    pub max_job_size: u32,
    /// Size of a segment file, in bytes.
    pub segment_size: u64,
    /// Bytes of log between snapshots.
    pub snapshot_every: u64,
    /// Bytes of log kept behind the newest snapshot.
    pub log_retention: u64,
    /// Bytes per second at which the disk is looked through for damage; 0: only when asked.
    pub scrub_rate: u64,
    /// Memory that the process may use, in bytes, if less than cgroups and machine allow.
    pub memory_limit: Option<u64>,
    /// The process's own `oom_score_adj`; none leaves it as it is.
    pub oom_score_adj: Option<i16>,
    /// What clients' connections are limited to; their number is 0 unless it was given.
    pub connections: Limits,
    /// Least severe log line to print.
    pub log_level: LogLevel,
    /// Form of log lines.
    pub log_format: LogFormat,
}

/// How a node finds the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSettings {
    /// Where peers connect.
    pub listen: Listen,
    /// The nodes that a new cluster begins with: number -> address. Empty for a node that is let into a cluster later.
    pub peers: BTreeMap<u64, String>,
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A TCP port of a host name or address.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port; 0 lets the system choose.
        port: u16,
    },
    /// A unix socket's path.
    Unix(PathBuf),
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Listen::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Listen::Tcp { host, port } => write!(f, "{host}:{port}"),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why the settings cannot be used. Every message names the setting and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}; check the path given by --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML, or a value has the wrong type.
    #[error("the configuration file {path} is not valid: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        message: String,
    },
    /// The file has a key that does not exist.
    #[error("the configuration file {path} has an unknown key {key:?}; did you mean {nearest:?}?")]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key as written.
        key: String,
        /// The known key that looks most like it.
        nearest: &'static str,
    },
    /// A value is outside its limits.
    #[error("{setting} is {value}, but must be {limits}")]
    OutOfRange {
        /// The flag's name.
        setting: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        limits: String,
    },
    /// The list of peers cannot be understood, or does not fit the other settings.
    #[error(
        "peers {value:?}: {why}; write --peers 1=HOST:PORT,2=HOST:PORT,3=HOST:PORT with this node among them"
    )]
    Peers {
        /// What was given.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// A setting is missing that another one needs.
    #[error("{setting} needs {needs} as well")]
    Missing {
        /// The setting that is there.
        setting: &'static str,
        /// The one that is not.
        needs: &'static str,
    },
    /// An address cannot be understood.
    #[error("{setting} {value:?} is not an address: {why}; use HOST:PORT, HOST or unix:/path")]
    Address {
        /// The flag's name.
        setting: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        why: String,
    },
}

/// The file's keys: the long flags' names.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    data_dir: Option<PathBuf>,
    listen: Option<String>,
    port: Option<u16>,
    admin_listen: Option<String>,
    node_id: Option<u32>,
    peer_listen: Option<String>,
    peers: Option<String>,
    max_job_size: Option<FileSize>,
    segment_size: Option<FileSize>,
    snapshot_every: Option<FileSize>,
    log_retention: Option<FileSize>,
    scrub_rate: Option<FileSize>,
    memory_limit: Option<FileSize>,
    oom_score_adj: Option<i16>,
    #[serde(flatten)]
    connections: ConnectionArgs,
    log_level: Option<LogLevel>,
    log_format: Option<LogFormat>,
}

const KEYS: &[&str] = &[
    "data-dir",
    "listen",
    "port",
    "admin-listen",
    "node-id",
    "peer-listen",
    "peers",
    "max-job-size",
    "segment-size",
    "snapshot-every",
    "log-retention",
    "scrub-rate",
    "memory-limit",
    "oom-score-adj",
    "max-connections",
    "max-connections-per-address",
    "max-accepts-per-second",
    "ban-after",
    "ban-time",
    "ban-loopback",
    "log-level",
    "log-format",
];

/// A size in the file: a number of bytes, or text with a unit.
#[derive(Debug, Clone, Copy)]
struct FileSize(Size);

impl<'de> Deserialize<'de> for FileSize {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Bytes(u64),
            Text(String),
        }
        match Raw::deserialize(d)? {
            Raw::Bytes(n) => Ok(FileSize(Size(n))),
            Raw::Text(text) => text.parse().map(FileSize).map_err(serde::de::Error::custom),
        }
    }
}

impl Settings {
    /// Merges flags and environment (`args`) with the file they name and the defaults.
    pub fn load(args: &ServeArgs) -> Result<Settings, ConfigError> {
        let file = match &args.config {
            Some(path) => read_file(path)?,
            None => File::default(),
        };
        Settings::merge(args, file)
    }

    fn merge(args: &ServeArgs, file: File) -> Result<Settings, ConfigError> {
        let listen = args.listen.clone().or(file.listen);
        let port = args.port.or(file.port);
        let size = |flag: Option<Size>, key: Option<FileSize>, default: u64| {
            flag.or(key.map(|k| k.0)).unwrap_or(Size(default)).0
        };
        let max_job_size =
            size(args.max_job_size, file.max_job_size, u64::from(beanpole_protocol::DEFAULT_MAX_JOB_SIZE));
        let settings = Settings {
            data_dir: args.data_dir.clone().or(file.data_dir).unwrap_or_else(|| "./beanpole-data".into()),
            listen: parse_listen("listen", listen.as_deref().unwrap_or("127.0.0.1"), port, 11300)?,
            admin_listen: match args.admin_listen.clone().or(file.admin_listen).as_deref() {
                Some("off") => None,
                other => Some(parse_listen("admin-listen", other.unwrap_or("127.0.0.1:11380"), None, 11380)?),
            },
            node_id: checked_node_id(args.node_id.or(file.node_id).unwrap_or(1))?,
            peering: peering(
                args.node_id.or(file.node_id),
                args.peer_listen.clone().or(file.peer_listen),
                args.peers.clone().or(file.peers),
            )?,
            max_job_size: checked("max-job-size", max_job_size, 1, u64::from(MAX_JOB_SIZE_LIMIT))? as u32,
            segment_size: checked(
                "segment-size",
                size(args.segment_size, file.segment_size, 64 << 20),
                SEGMENT_BYTES_MIN,
                SEGMENT_BYTES_MAX,
            )?,
            snapshot_every: checked(
                "snapshot-every",
                size(args.snapshot_every, file.snapshot_every, 128 << 20),
                1 << 20,
                1 << 40,
            )?,
            log_retention: checked(
                "log-retention",
                size(args.log_retention, file.log_retention, 256 << 20),
                0,
                1 << 50,
            )?,
            scrub_rate: checked("scrub-rate", size(args.scrub_rate, file.scrub_rate, 8 << 20), 0, 1 << 40)?,
            memory_limit: args
                .memory_limit
                .or(file.memory_limit.map(|key| key.0))
                .map(|limit| checked("memory-limit", limit.0, MEMORY_LIMIT_MIN, u64::MAX))
                .transpose()?,
            oom_score_adj: oom_score_adj(args.oom_score_adj.or(file.oom_score_adj))?,
            connections: args.connections.limits(&file.connections)?,
            log_level: verbosity(args.verbose, args.log_level.or(file.log_level).unwrap_or(LogLevel::Info)),
            log_format: args.log_format.or(file.log_format).unwrap_or(LogFormat::Text),
        };
        Ok(settings)
    }
}

/// The settings that make a node one of several; all or none of them are given.
fn peering(
    node_id: Option<u32>,
    listen: Option<String>,
    peers: Option<String>,
) -> Result<Option<PeerSettings>, ConfigError> {
    let Some(listen) = listen else {
        return match peers {
            Some(_) => Err(ConfigError::Missing { setting: "peers", needs: "peer-listen" }),
            None => Ok(None),
        };
    };
    let node_id = node_id.ok_or(ConfigError::Missing { setting: "peer-listen", needs: "node-id" })?;
    let listen = match parse_listen("peer-listen", &listen, None, PEER_PORT)? {
        Listen::Unix(path) => {
            let why = "nodes reach each other over TCP".to_owned();
            return Err(ConfigError::Address {
                setting: "peer-listen",
                value: path.display().to_string(),
                why,
            });
        }
        tcp @ Listen::Tcp { .. } => tcp,
    };
    let peers = match peers {
        Some(list) => parse_peers(&list, node_id)?,
        None => BTreeMap::new(),
    };
    Ok(Some(PeerSettings { listen, peers }))
}

fn parse_peers(list: &str, own: u32) -> Result<BTreeMap<u64, String>, ConfigError> {
    let bad = |why: String| ConfigError::Peers { value: list.to_owned(), why };
    let mut peers = BTreeMap::new();
    for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let (id, address) = item.split_once('=').ok_or_else(|| bad(format!("{item:?} has no \"=\"")))?;
        let id: u32 = id.trim().parse().map_err(|_| bad(format!("{id:?} is not a node's number")))?;
        if id == 0 {
            return Err(bad("nodes are numbered from 1".to_owned()));
        }
        let address = parse_listen("peers", address.trim(), None, PEER_PORT)?;
        if let Listen::Unix(_) = address {
            return Err(bad("nodes reach each other over TCP".to_owned()));
        }
        if peers.insert(u64::from(id), address.to_string()).is_some() {
            return Err(bad(format!("node {id} is there twice")));
        }
    }
    if !peers.contains_key(&u64::from(own)) {
        return Err(bad(format!("this node, {own}, is not among them")));
    }
    Ok(peers)
}

fn oom_score_adj(value: Option<i16>) -> Result<Option<i16>, ConfigError> {
    match value {
        Some(value) if !(-1000..=1000).contains(&value) => Err(ConfigError::OutOfRange {
            setting: "oom-score-adj",
            value: value.to_string(),
            limits: "between -1000 and 1000".to_owned(),
        }),
        value => Ok(value),
    }
}

/// `-V` raises the level, never lowers it.
fn verbosity(count: u8, level: LogLevel) -> LogLevel {
    match (count, level) {
        (0, level) => level,
        (1, LogLevel::Error | LogLevel::Warn | LogLevel::Info | LogLevel::Debug) => LogLevel::Debug,
        (1.., _) => LogLevel::Trace,
    }
}

/// A size within its limits.
fn checked(setting: &'static str, value: u64, min: u64, max: u64) -> Result<u64, ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(value);
    }
    let limits = match max {
        // No limit is no number to show.
        u64::MAX => format!("at least {}", Size(min)),
        max => format!("between {} and {}", Size(min), Size(max)),
    };
    Err(ConfigError::OutOfRange { setting, value: Size(value).to_string(), limits })
}

/// Node 0 is nobody.
fn checked_node_id(id: u32) -> Result<u32, ConfigError> {
    if id > 0 {
        return Ok(id);
    }
    let limits = format!("between 1 and {}", u32::MAX);
    Err(ConfigError::OutOfRange { setting: "node-id", value: id.to_string(), limits })
}

fn parse_listen(
    setting: &'static str,
    text: &str,
    port: Option<u16>,
    default_port: u16,
) -> Result<Listen, ConfigError> {
    let bad = |why: &str| ConfigError::Address { setting, value: text.to_owned(), why: why.to_owned() };
    if let Some(path) = text.strip_prefix("unix:") {
        if path.is_empty() {
            return Err(bad("the path is empty"));
        }
        return Ok(Listen::Unix(path.into()));
    }
    if text.is_empty() {
        return Err(bad("it is empty"));
    }
    // A bare IPv6 address has colons of its own.
    if text.parse::<IpAddr>().is_ok() {
        return Ok(Listen::Tcp { host: text.to_owned(), port: port.unwrap_or(default_port) });
    }
    match text.rsplit_once(':') {
        None => Ok(Listen::Tcp { host: text.to_owned(), port: port.unwrap_or(default_port) }),
        Some((host, digits)) => {
            let own = digits.parse::<u16>().map_err(|_| bad("the port is not a number up to 65535"))?;
            let host = host.trim_start_matches('[').trim_end_matches(']');
            if host.is_empty() {
                return Err(bad("the host is missing"));
            }
            if port.is_some_and(|port| port != own) {
                return Err(bad("--port names another port"));
            }
            Ok(Listen::Tcp { host: host.to_owned(), port: own })
        }
    }
}

fn read_file(path: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse_file(path, &text)
}

fn parse_file(path: &Path, text: &str) -> Result<File, ConfigError> {
    let parse = |e: toml::de::Error| ConfigError::Parse { path: path.to_owned(), message: e.to_string() };
    let table: toml::Table = toml::from_str(text).map_err(parse)?;
    for key in table.keys() {
        if !KEYS.contains(&key.as_str()) {
            return Err(ConfigError::UnknownKey {
                path: path.to_owned(),
                key: key.clone(),
                nearest: nearest_key(key),
            });
        }
    }
    toml::from_str(text).map_err(parse)
}

/// The known key with the smallest edit distance to a mistyped one.
fn nearest_key(key: &str) -> &'static str {
    KEYS.iter().min_by_key(|known| edit_distance(key, known)).copied().unwrap_or("data-dir")
}

/// Levenshtein distance over bytes; keys are short ASCII.
fn edit_distance(a: &str, b: &str) -> usize {
    let b = b.as_bytes();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(args: &ServeArgs, file: &str) -> Settings {
        Settings::merge(args, parse_file(Path::new("t.toml"), file).unwrap()).unwrap()
    }

    #[test]
    fn defaults_need_no_configuration() {
        let s = merged(&ServeArgs::default(), "");
        assert_eq!(s.listen.to_string(), "127.0.0.1:11300");
        assert_eq!(s.admin_listen.unwrap().to_string(), "127.0.0.1:11380");
        assert_eq!(s.data_dir, PathBuf::from("./beanpole-data"));
        assert_eq!(s.max_job_size, 65_535);
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let file = "listen = \"0.0.0.0:1\"\nmax-job-size = \"1MiB\"\nsegment-size = 2097152\n";
        let args = ServeArgs { listen: Some("10.0.0.1:2".into()), ..ServeArgs::default() };
        let s = merged(&args, file);
        assert_eq!(s.listen.to_string(), "10.0.0.1:2");
        assert_eq!(s.max_job_size, 1 << 20);
        assert_eq!(s.segment_size, 2 << 20);
    }

    #[test]
    fn an_unknown_key_names_the_nearest_one() {
        let e = parse_file(Path::new("t.toml"), "data_dri = \"x\"").unwrap_err();
        assert!(e.to_string().contains("did you mean \"data-dir\""), "{e}");
    }

    #[test]
    fn beanstalkd_aliases_for_address_and_port_work_together() {
        let args = ServeArgs { listen: Some("0.0.0.0".into()), port: Some(11311), ..ServeArgs::default() };
        assert_eq!(merged(&args, "").listen.to_string(), "0.0.0.0:11311");
        let v6 = ServeArgs { listen: Some("::1".into()), ..ServeArgs::default() };
        assert_eq!(merged(&v6, "").listen.to_string(), "[::1]:11300");
        let unix = ServeArgs { listen: Some("unix:/tmp/b.sock".into()), ..ServeArgs::default() };
        assert_eq!(merged(&unix, "").listen, Listen::Unix("/tmp/b.sock".into()));
    }

    #[test]
    fn values_out_of_range_say_the_range() {
        let args = ServeArgs { max_job_size: Some(Size(2 << 30)), ..ServeArgs::default() };
        let e = Settings::merge(&args, File::default()).unwrap_err().to_string();
        assert!(e.contains("max-job-size is 2GiB") && e.contains("1GiB"), "{e}");
        let args = ServeArgs { node_id: Some(0), ..ServeArgs::default() };
        let e = Settings::merge(&args, File::default()).unwrap_err().to_string();
        assert_eq!(e, "node-id is 0, but must be between 1 and 4294967295");
        let args = ServeArgs { listen: Some("a:b".into()), ..ServeArgs::default() };
        assert!(Settings::merge(&args, File::default()).is_err());
    }

    #[test]
    fn memory_settings_are_checked() {
        let s = merged(&ServeArgs::default(), "memory-limit = \"256MiB\"\noom-score-adj = -500\n");
        assert_eq!((s.memory_limit, s.oom_score_adj), (Some(256 << 20), Some(-500)));
        let small = ServeArgs { memory_limit: Some(Size(1 << 20)), ..ServeArgs::default() };
        let e = Settings::merge(&small, File::default()).unwrap_err().to_string();
        assert_eq!(e, "memory-limit is 1MiB, but must be at least 64MiB");
        let far = ServeArgs { oom_score_adj: Some(1001), ..ServeArgs::default() };
        assert!(Settings::merge(&far, File::default()).is_err());
    }

    #[test]
    fn limits_of_connections_come_from_flags_and_file() {
        let file =
            "max-connections-per-address = 100\nban-after = 50\nban-time = \"5m\"\nban-loopback = true\n";
        let flags =
            ConnectionArgs { ban_after: Some(7), max_connections: Some(9), ..ConnectionArgs::default() };
        let limits = merged(&ServeArgs { connections: flags, ..ServeArgs::default() }, file).connections;
        assert_eq!((limits.total, limits.per_address, limits.accepts_per_second), (9, 100, 0));
        assert_eq!((limits.ban_after, limits.ban_us, limits.ban_loopback), (7, 300_000_000, true));
        assert_eq!(merged(&ServeArgs::default(), "").connections, Limits::default());
        for bad in [
            ConnectionArgs { max_connections: Some(0), ..ConnectionArgs::default() },
            ConnectionArgs { ban_time: Some(Span(1)), ..ConnectionArgs::default() },
        ] {
            let args = ServeArgs { connections: bad, ..ServeArgs::default() };
            assert!(Settings::merge(&args, File::default()).is_err());
        }
    }

    #[test]
    fn verbosity_only_ever_raises_the_level() {
        assert_eq!(verbosity(1, LogLevel::Info), LogLevel::Debug);
        assert_eq!(verbosity(1, LogLevel::Trace), LogLevel::Trace);
        assert_eq!(verbosity(2, LogLevel::Error), LogLevel::Trace);
        assert_eq!(verbosity(0, LogLevel::Error), LogLevel::Error);
    }

    #[test]
    fn a_node_of_several_needs_its_number_its_address_and_a_list_with_itself() {
        let args = |id: Option<u32>, listen: Option<&str>, peers: Option<&str>| ServeArgs {
            node_id: id,
            peer_listen: listen.map(Into::into),
            peers: peers.map(Into::into),
            ..ServeArgs::default()
        };
        let load = |args: &ServeArgs| Settings::merge(args, File::default()).map_err(|e| e.to_string());
        let all = Some("1=10.0.0.1:7,2=10.0.0.2, 3=[::1]:9");
        let peering = load(&args(Some(2), Some("0.0.0.0:7"), all)).unwrap().peering.unwrap();
        assert_eq!(peering.listen.to_string(), "0.0.0.0:7");
        let listed: Vec<_> = peering.peers.iter().map(|(id, at)| format!("{id}={at}")).collect();
        assert_eq!(listed, ["1=10.0.0.1:7", "2=10.0.0.2:11390", "3=[::1]:9"]);
        assert_eq!(load(&args(None, None, None)).unwrap().peering, None);
        for (args, says) in [
            (args(Some(4), Some("0.0.0.0:7"), all), "this node, 4, is not among them"),
            (args(None, Some("0.0.0.0:7"), all), "peer-listen needs node-id"),
            (args(Some(1), None, all), "peers needs peer-listen"),
            (args(Some(1), Some("unix:/x"), all), "over TCP"),
            (args(Some(1), Some(":7"), Some("1=a:1,1=b:1")), "there twice"),
            (args(Some(1), Some("0.0.0.0:7"), Some("a:1")), "has no"),
        ] {
            let error = load(&args).unwrap_err();
            assert!(error.contains(says) || says == "there twice" && error.contains("address"), "{error}");
        }
    }
}
