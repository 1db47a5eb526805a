//! The golden scripts of the wire against Beanpole. `wire_oracle.rs` runs them against beanstalkd.

mod wire_suite;

use beanpole_tests::server::Setup;

#[test]
fn every_script_for_beanpole_agrees_with_it() {
    wire_suite::run_all(&Setup::beanpole(env!("CARGO_BIN_EXE_beanpole-under-test")));
}
