//! Asking a node's admin HTTP: what the verbs `cluster` and `node` stand on.

use std::process::ExitCode;
use std::time::Duration;

use serde::de::DeserializeOwned;

pub use crate::cluster::report::{Cluster, Member};

/// Longest wait for an answer of a node.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Yes, done.
pub const YES: u8 = 0;
/// No, unhealthy.
pub const NO: u8 = 1;
/// The command line cannot be understood, or does not fit the cluster.
pub const USAGE: u8 = 2;
/// No node answers.
pub const UNREACHABLE: u8 = 3;
/// Refused, because it would be unsafe.
pub const REFUSED: u8 = 4;
/// It did not come about in time.
pub const TIMED_OUT: u8 = 5;

/// Which node to ask, and how to show what it says.
#[derive(clap::Args, Debug, Clone)]
pub struct Ask {
    /// Admin addresses of one or more nodes; the first that answers is asked
    #[arg(
        long,
        env = "BEANPOLE_ADMIN",
        value_name = "HOST:PORT,...",
        default_value = "127.0.0.1:11380",
        value_delimiter = ',',
        global = true
    )]
    pub admin: Vec<String>,

    /// How to show the answer
    #[arg(long, short = 'o', value_name = "FORM", default_value = "table", global = true)]
    pub output: Output,
}

/// How an answer is shown.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Table,
    /// For scripts.
    Json,
}

/// What went wrong, and the exit code that says so.
#[derive(Debug)]
pub struct Failure {
    /// The process's exit code.
    pub code: u8,
    /// For people: what, why, and what to do.
    pub message: String,
}

impl Failure {
    /// A failure with its exit code.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Failure { code, message: message.into() }
    }
}

/// Prints what failed and gives the exit code.
pub fn finish(result: Result<u8, Failure>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("beanpole: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

impl Cluster {
    /// The leader's entry.
    pub fn leader(&self) -> Option<&Member> {
        self.nodes.iter().find(|node| Some(node.report.id) == self.leader_id)
    }

    /// The entry of a node, or a failure that names those there are.
    pub fn member(&self, id: u64) -> Result<&Member, Failure> {
        self.nodes.iter().find(|node| node.report.id == id).ok_or_else(|| {
            let known: Vec<String> = self.nodes.iter().map(|node| node.report.id.to_string()).collect();
            Failure::new(USAGE, format!("there is no node {id} in the cluster, only {}", known.join(", ")))
        })
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .timeout_connect(Some(Duration::from_secs(2)))
        .http_status_as_error(false)
        .build()
        .into()
}

/// What the first node that answers says of the cluster, and where it was asked.
pub fn cluster(ask: &Ask) -> Result<(String, Cluster), Failure> {
    let mut last = String::new();
    for address in &ask.admin {
        match get::<Cluster>(address, "/api/v1/cluster") {
            Ok(cluster) => return Ok((address.clone(), cluster)),
            Err(failure) => last = failure.message,
        }
    }
    Err(Failure::new(UNREACHABLE, format!("{last}; is the node running, and is --admin its admin address?")))
}

/// Reads JSON from one node.
pub fn get<T: DeserializeOwned>(address: &str, path: &str) -> Result<T, Failure> {
    let unreachable =
        |error: ureq::Error| Failure::new(UNREACHABLE, format!("http://{address}{path}: {error}"));
    let mut answer = agent().get(format!("http://{address}{path}")).call().map_err(unreachable)?;
    if answer.status() != 200 {
        let text = answer.body_mut().read_to_string().unwrap_or_default();
        return Err(Failure::new(
            UNREACHABLE,
            format!("http://{address}{path}: {} {}", answer.status(), text.trim()),
        ));
    }
    answer.body_mut().read_json().map_err(unreachable)
}

/// Asks for a change; answers the text of a success. A refusal is a failure with the node's reason.
pub fn change(method: &str, address: &str, path: &str) -> Result<String, Failure> {
    let url = format!("http://{address}{path}");
    let request = ureq::http::Request::builder().method(method).uri(&url).body(());
    let request = request.map_err(|error| Failure::new(USAGE, format!("{url}: {error}")))?;
    let answer = agent().run(request);
    let mut answer = answer.map_err(|error| Failure::new(UNREACHABLE, format!("{url}: {error}")))?;
    let text = answer.body_mut().read_to_string().unwrap_or_default().trim().to_owned();
    match answer.status().as_u16() {
        200..=299 => Ok(text),
        408 | 504 => Err(Failure::new(TIMED_OUT, text)),
        400 | 404 | 405 => Err(Failure::new(USAGE, text)),
        503 => Err(Failure::new(UNREACHABLE, text)),
        _ => Err(Failure::new(REFUSED, text)),
    }
}
