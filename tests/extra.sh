#!/usr/bin/env bash
# The suites that need more than `cargo test --workspace`: time (50 kills under load, 100 random sequences, networks cut for ten
# seconds, a minute without servers, random faults), Debian's beanstalkd, strace, libfaketime, FUSE and root, PyPI. A test that cannot run says SKIPPED and its name.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked -p beanpole
export BEANPOLE_BIN=${CARGO_TARGET_DIR:-$PWD/target}/release/beanpole

echo "--- long suites, and those that need a program"
BEANPOLE_EXTRA=1 cargo test --locked -p beanpole-tests --release ${EXTRA_TARGETS:---test extra --test wire_oracle --test differential --test partition_long --test namespaces --test clocks --test power_cut --test import --test programs} -- ${EXTRA_FILTER:-}

echo "--- random faults"
cargo run --locked -p beanpole-tests --release --bin chaos -- --seconds "${CHAOS_SECONDS:-90}"

echo "--- the power goes at every step of a workload with snapshots, purges and compaction"
cargo test --locked -p beanpole-raft --lib -- --ignored --nocapture cut_at_every_step

echo "--- the client crate against beanstalkd"
cargo test --locked -p beanpole-client --release --test beanstalkd -- --ignored

echo "--- real clients"
code=0
bash tests/clients/run.sh --binary "$BEANPOLE_BIN" || code=$?
# 3 says that a client could not be installed, by name; anything else is a failure.
if [ "$code" != 0 ] && [ "$code" != 3 ]; then
    exit "$code"
fi
