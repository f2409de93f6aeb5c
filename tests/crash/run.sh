#!/bin/sh
# Crashes real kernels in QEMU and judges their dumps. Run docs/quickstart.sh and tests/run.sh first.
# Arguments go to pytest.
set -eu
cd "$(dirname "$0")/../.."

sh tests/crash/setup.sh
exec .venv/bin/python -m pytest -q tests/crash "$@"
