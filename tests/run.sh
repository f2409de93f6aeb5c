#!/bin/sh
# Builds vmfilter with warnings as errors, checks it, and runs all its tests; docs/quickstart.sh comes first.
# Arguments go to pytest: `sh tests/run.sh -k codec`, or `sh tests/run.sh -n 0 -x` for one test after the other.
# That of a real crash is apart, `sh tests/crash/run.sh`: as root of a Debian 12, and not in each worker.
set -eu
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
VMFILTER_CFLAGS=-Werror .venv/bin/python -m pip install -q -e '.[test]'
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest -q -n auto -m 'not crash' "$@"
