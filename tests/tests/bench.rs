//! `beanpole bench` against a real server.

use std::process::Command;

use beanpole_tests::server::{Server, Setup};
use serde_json::Value;

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

/// A short run's report.
fn report(arguments: &[&str]) -> Value {
    let setup = Setup::beanpole(BIN);
    let short = ["--connections", "4", "--warmup", "100ms", "--duration", "400ms", "-o", "json"];
    let output =
        Command::new(setup.binary()).args(["bench", "cycle"]).args(short).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn it_tells_what_the_server_writes_for_each_byte_of_log() {
    let server = Server::start(&Setup::beanpole(BIN));
    let addr = server.addr().to_string();
    let admin = server.admin_addr().to_string();
    let report = report(&["--addr", &addr, "--admin", &admin]);
    let number = |name: &str| report["disk"][name].as_f64().unwrap_or_else(|| panic!("{name} in {report}"));
    let cycles = report["operations"]["cycle"]["count"].as_f64().unwrap();
    assert_eq!(number("nodes"), 1.0);
    // Each cycle's put carries a body of 256 bytes. Entries under way at either end of the window are not all counted in it.
    assert!(cycles > 0.0 && number("logged_bytes") > 200.0 * cycles, "{report}");
    let ratio = number("written_bytes") / number("logged_bytes");
    assert!((number("amplification") - ratio).abs() < 1e-9, "{report}");
}

#[test]
fn a_node_that_cannot_be_asked_is_no_reason_to_fail() {
    let server = Server::start(&Setup::beanpole(BIN));
    let nobody = format!("127.0.0.1:{}", beanpole_tests::server::free_port());
    let report = report(&["--addr", &server.addr().to_string(), "--admin", &nobody]);
    assert!(report["disk"].is_null() && report["verification"]["ok"].as_bool().unwrap(), "{report}");
}
