//! The server as a program of this package, so that `cargo test` builds it and tests can name it.

use std::process::ExitCode;

fn main() -> ExitCode {
    beanpole::main()
}
