# `just verify` is read-only and what CI runs first; `just fix` mends what can be mended.

default: verify

verify:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo test --workspace
    RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --workspace --no-deps --document-private-items

fix:
    cargo fmt --all
    cargo clippy --workspace --all-targets --fix --allow-dirty

# Everything CI runs, real beanstalkd and real clients included.
ci:
    bash .ci/run

# beanstalkd in memory, beanstalkd -b -f0 and beanpole in one run, with ratios.
compare *ARGS:
    cargo build --release
    python3 benches/compare.py {{ARGS}}
