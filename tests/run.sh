#!/bin/sh
# Builds vmfilter with warnings as errors, checks it, and runs all its tests. Run docs/quickstart.sh first.
# Arguments go to pytest: `sh tests/run.sh -k codec`, or `sh tests/run.sh -n 0 -x` to run tests one after the other.
# The tests with real crashes are separate, in `sh tests/crash/run.sh`: they need root on Debian 12, and run once.
set -eu
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
VMFILTER_CFLAGS=-Werror .venv/bin/python -m pip install -q -e '.[test]'
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest -q -n auto -m 'not crash' "$@"
