#!/bin/sh
# Lets real kernels crash in QEMU and judges their dumps; docs/quickstart.sh and tests/run.sh come first.
# Arguments go to pytest.
set -eu
cd "$(dirname "$0")/../.."

sh tests/crash/setup.sh
exec .venv/bin/python -m pytest -q tests/crash "$@"
