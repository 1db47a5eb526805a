//! The golden scripts of the wire against Debian's beanstalkd: they describe the protocol, not us.

mod wire_suite;

use beanpole_tests::extra;
use beanpole_tests::server::Setup;

#[test]
fn every_script_for_beanstalkd_agrees_with_it() {
    if extra::skip_unless_wanted("wire_oracle") {
        return;
    }
    match Setup::beanstalkd() {
        Some(setup) => wire_suite::run_all(&setup),
        None => extra::skipped("wire_oracle", "beanstalkd is not installed"),
    }
}
