#!/bin/sh
# Changes single lines of vmfilter, and tells which changes no test notices. Run docs/quickstart.sh first.
# Arguments: how many changes (300, which take an hour on a busy machine), then files, if not all that mutants.py lists.
# It makes and removes many files: TMPDIR=/dev/shm is fastest, but has no O_DIRECT, which mutants of direct_io.py need.
set -eu
cd "$(dirname "$0")/../.."

venv=build/mutants/venv
[ -x $venv/bin/python ] || .venv/bin/python -m venv $venv
$venv/bin/python -m pip install -q --no-deps universalmutator==1.14.1 # another release makes other mutants of the same seed
exec nice -n 10 $venv/bin/python tests/mutants/mutants.py "$@"
