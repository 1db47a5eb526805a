#!/bin/sh
# Runs real clients from their registries against a server:
#   tests/clients/run.sh                     beanpole, built in release mode
#   tests/clients/run.sh --binary PATH       another build of it
#   tests/clients/run.sh --beanstalkd        Debian's beanstalkd: do the sessions describe the protocol?
# Needs python3 with venv, and PyPI and crates.io within reach (or their mirrors, as pip and cargo are configured).
exec python3 "$(dirname "$0")/run.py" "$@"
