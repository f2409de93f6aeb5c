#!/bin/sh
# Installs what vmfilter needs on Debian, builds it into .venv, and filters a real vmcore of testdata/.
# As root it installs missing system packages; as a user it continues without them.
set -eu
cd "$(dirname "$0")/.."

packages="python3 python3-venv python3-dev gcc libc6-dev zstd
          libisal-dev libdeflate-dev liblzo2-dev libsnappy-dev libzstd-dev liblz4-dev"
missing=
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ]; then
        apt-get update -q
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $missing
    else
        echo "Not root: continuing without the features that need these packages:$missing"
    fi
fi

python=${PYTHON:-python3}
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install -q --upgrade pip
.venv/bin/python -m pip install -q .
.venv/bin/vmfilter --version

mkdir -p build/quickstart
.venv/bin/python tests/support/unpack.py testdata/x86_64-6.12-small.vmcore.zst build/quickstart/vmcore
.venv/bin/vmfilter filter --stats --force build/quickstart/vmcore build/quickstart/first.dump
ls -l build/quickstart
