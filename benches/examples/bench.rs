//! `beanpole bench` on its own: `cargo run --release -p beanpole-bench --example bench -- cycle --addr
//! HOST:PORT`.

use beanpole_bench::{BenchArgs, run};
use clap::Parser;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "bench", version)]
struct Cli {
    #[command(flatten)]
    bench: BenchArgs,
}

fn main() -> ExitCode {
    run(Cli::parse().bench)
}
