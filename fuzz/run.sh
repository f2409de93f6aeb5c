#!/bin/sh
# Fuzzes vmfilter: run.sh [SECONDS] [TARGET...], 120 seconds and all targets by default. Prints a line for each target.
# Exit status 1: something was found. It installs what it needs into build/fuzz/, and clang if it runs as root on Debian.
set -eu
cd "$(dirname "$0")/.."

case ${1:-} in
'' | *[!0-9]*) seconds=120 ;;
*) seconds=$1 && shift ;;
esac

# What cannot be had is an error in CI, and elsewhere a line.
missing() {
    echo "fuzz/run.sh: $1"
    [ -z "${CI:-}" ] || exit 1
}

mkdir -p build/fuzz
[ -x build/fuzz/venv/bin/python ] || "${PYTHON:-python3}" -m venv build/fuzz/venv
python=build/fuzz/venv/bin/python
$python -m pip install -q '.[fuzz]' || {
    missing "atheris cannot be installed: no Python target is fuzzed"
    $python -m pip install -q '.[test]'
}

if sh tests/clang.sh; then
    sed -n 's/^    ("\(HAVE_[A-Z0-9]*\)", "\([^"]*\)", "\([a-z0-9]*\)".*/\1 \2 \3/p' setup.py |
    while read -r macro header library; do
        printf '#include <stddef.h>\n#include <%s>\n' "$header" | clang -E -x c - >/dev/null 2>&1 || continue
        echo "-D$macro=1 -l$library"
    done >build/fuzz/flags
    # shellcheck disable=SC2046
    clang -std=c11 -g -O1 -Wall -Wextra -Werror -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Icsrc \
        fuzz/core.c csrc/*.c $(cat build/fuzz/flags) -o build/fuzz/core
else
    rm -f build/fuzz/core
    missing "clang with libFuzzer cannot be installed: no target of the C core is fuzzed"
fi

PYTHONPATH=fuzz:tests/support exec $python fuzz/run.py "$seconds" "$@"
