//! What the verbs share that speak the protocol as any client does: where the servers are, and what errors mean for the exit
//! code.

use std::net::Ipv6Addr;
use std::process::ExitCode;
use std::time::Duration;

use beanpole_client::{Connection, Error, JobId};

use super::admin::{self, Failure, NO, REFUSED, TIMED_OUT, UNREACHABLE, USAGE};
use crate::units::Span;

/// How long a server may take to be reached, or to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Where the servers are.
#[derive(clap::Args, Debug, Clone)]
pub struct Addr {
    /// Where the server listens for clients; of several, nodes of one cluster, the first that can be reached is asked
    #[arg(
        long,
        env = "BEANPOLE_ADDR",
        value_name = "HOST:PORT,...",
        default_value = "127.0.0.1:11300",
        value_delimiter = ',',
        value_parser = address
    )]
    pub addr: Vec<String>,
}

impl Addr {
    /// A connection to the first that can be reached.
    pub async fn connect(&self) -> Result<Connection, Failure> {
        let mut last = "no --addr is given".to_owned();
        for address in &self.addr {
            match Connection::connect_within(address.as_str(), LIMIT).await {
                Ok(connection) => return Ok(connection.with_timeout(LIMIT)),
                Err(error) => last = error.to_string(),
            }
        }
        Err(Failure::new(
            UNREACHABLE,
            format!("{last}; is the server running, and is --addr where it listens?"),
        ))
    }
}

/// Refuses what can be no server's address, before anybody takes it for a server that is away.
pub fn address(text: &str) -> Result<String, String> {
    let text = text.trim();
    let is_one = match text.strip_prefix("unix:") {
        Some(path) => !path.is_empty(),
        None => is_host_and_port(text),
    };
    if is_one {
        Ok(text.to_owned())
    } else {
        Err("an address is HOST:PORT (port 1 to 65535) or unix:/path".to_owned())
    }
}

fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_port =
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    // Without brackets nobody knows where an IPv6 address ends.
    let is_host = match host.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner
            .is_some_and(|inner| inner.split('%').next().is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok())),
        None => !host.is_empty() && !host.contains([':', ']', '/']) && !host.contains(char::is_whitespace),
    };
    is_port && is_host
}

/// Runs a verb in a runtime of its own; the exit code.
pub fn run(verb: impl Future<Output = Result<u8, Failure>>) -> ExitCode {
    admin::finish(block_on(verb))
}

/// Runs a verb in a runtime of its own.
pub fn block_on(verb: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::new(NO, format!("cannot start: {error}")))?.block_on(verb)
}

/// What an error of a connection is for the one who typed the command.
pub fn failure(error: &Error) -> Failure {
    let code = match error {
        Error::BadTubeName(_) | Error::BadPutKey(_) | Error::BodyTooLong(_) => USAGE,
        Error::NotFound { .. } => NO,
        Error::Refused { .. } => REFUSED,
        Error::NoReply { .. } => TIMED_OUT,
        Error::RepliesOutstanding(_)
        | Error::NothingAsked
        | Error::NotSent { .. }
        | Error::OutcomeUnknown { .. }
        | Error::Unexpected { .. }
        | Error::Malformed { .. } => UNREACHABLE,
    };
    Failure::new(code, error.to_string())
}

/// As [`failure`], of a command about one job.
pub fn of_job(id: JobId, error: &Error) -> Failure {
    let failure = failure(error);
    Failure::new(failure.code, format!("job {id}: {}", failure.message))
}

/// As [`failure`], with other words for `NOT_FOUND`.
pub fn or_missing(error: &Error, missing: impl Into<String>) -> Failure {
    if matches!(error, Error::NotFound { .. }) { Failure::new(NO, missing) } else { failure(error) }
}

/// The protocol knows whole seconds; never less than was asked for.
pub fn seconds(span: Span) -> u32 {
    u32::try_from(span.0.div_ceil(1000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_an_address_is_one() {
        for good in ["127.0.0.1:1", "queue.example:65535", "[::1]:11300", "unix:/run/b.sock", " a:1"] {
            assert_eq!(address(good), Ok(good.trim().to_owned()));
        }
        for bad in [
            "",
            "foo",
            "127.0.0.1",
            "127.0.0.1:99999",
            "a:0",
            "a:",
            "a:+1",
            ":1",
            "::1",
            "::1:5",
            "[a]:5",
            "a b:1",
            "unix:",
        ] {
            assert!(address(bad).is_err_and(|why| why.contains("HOST:PORT")), "{bad}");
        }
    }

    #[test]
    fn seconds_are_rounded_up() {
        assert_eq!([0, 1, 1000, 1001, u64::MAX].map(|ms| seconds(Span(ms))), [0, 1, 1, 2, u32::MAX]);
    }
}
