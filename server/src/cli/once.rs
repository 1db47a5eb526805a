//! `beanpole cluster put-once`: the window in which a put with a key is done once.

use std::time::{Duration, Instant};

use clap::Args;

use super::admin::{self, Ask, Failure, Output, TIMED_OUT, YES};
use super::tube::{change, on_any};
use crate::admin::once::Window;
use crate::units::Span;

/// How long a change may take to apply on the node that was asked.
const APPLIES_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The flags of `beanpole cluster put-once`.
#[derive(Args, Debug)]
pub struct OnceArgs {
    /// A key is known for this long: 90s, 15m, 24h
    #[arg(long, value_name = "D")]
    window: Option<Span>,
    /// So many keys are known, the newest ones; up to 262144
    #[arg(long, value_name = "N")]
    keys: Option<u64>,
}

/// Runs the verb.
pub fn run(ask: &Ask, args: &OnceArgs) -> Result<u8, Failure> {
    let mut query = Vec::new();
    query.extend(args.window.map(|window| format!("window_ms={}", window.0)));
    query.extend(args.keys.map(|keys| format!("keys={keys}")));
    if !query.is_empty() {
        let path = format!("/api/v1/put-once?{}", query.join("&"));
        change(ask, "PUT", &path)?;
    }
    let begun = Instant::now();
    loop {
        let window: Window = on_any(ask, |address| admin::get(address, "/api/v1/put-once"))?;
        let is_set = args.window.is_none_or(|span| span.0 == window.window_ms)
            && args.keys.is_none_or(|keys| keys == window.keys_max);
        if is_set {
            print(ask, &window);
            return Ok(YES);
        }
        if begun.elapsed() > APPLIES_WITHIN {
            return Err(Failure::new(TIMED_OUT, "it was asked for and is not in force yet: look again"));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn print(ask: &Ask, window: &Window) {
    match ask.output {
        Output::Json => println!("{}", serde_json::to_value(window).unwrap_or_default()),
        Output::Table => {
            let Window { window_ms, keys_max, keys } = *window;
            println!("a key is known for {}, and {keys_max} keys at most; {keys} are kept", Span(window_ms));
        }
    }
}
