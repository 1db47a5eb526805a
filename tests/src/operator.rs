//! `beanpole tube ...` and others, as an operator types them.

use std::process::{Command, Stdio};

use crate::server::Setup;

/// Runs `tube` and these words against the node with this admin address; the exit code and all that was printed.
pub fn tube(binary: &str, admin: &str, words: &str) -> (i32, String) {
    run(binary, admin, &format!("tube {words}"))
}

/// The same of any verb.
pub fn run(binary: &str, admin: &str, words: &str) -> (i32, String) {
    let mut words = words.split_whitespace();
    let words = words.next().into_iter().chain(["--admin", admin]).chain(words);
    let program = Setup::beanpole(binary);
    let output = Command::new(program.binary()).args(words).stdin(Stdio::null()).output().unwrap();
    let text = [&output.stdout[..], &output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&text).trim().to_owned())
}

/// The same; panics unless it succeeds.
pub fn succeed(binary: &str, admin: &str, words: &str) -> String {
    let (code, text) = tube(binary, admin, words);
    assert_eq!(code, 0, "{words}: {text}");
    text
}

/// Each of these ends with this exit code and says this.
pub fn expect_refusals(binary: &str, admin: &str, refusals: &[(&str, i32, &str)]) {
    for (words, code, said) in refusals {
        let (got, text) = tube(binary, admin, words);
        assert!(got == *code && text.contains(said), "{words}: {got} {text}");
    }
}
