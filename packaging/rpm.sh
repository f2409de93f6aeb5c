#!/bin/sh
# Makes the RPM packages of a source distribution, and checks the spec with rpmlint: sh packaging/rpm.sh SDIST [FOLDER]. Where
# rpmbuild's own Python lacks what the build needs, as on Debian, it takes that of .venv, and does not ask for packages.
set -eu
sdist=$(realpath "$1")
out=$(realpath -m "${2:-dist}")
cd "$(dirname "$0")/.."
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
mkdir "$top/SOURCES"
cp "$sdist" "$top/SOURCES"
set -- --define "_topdir $top"
if ! command -v dnf zypper >/dev/null; then
    .venv/bin/python -m venv "$top/venv"
    "$top/venv/bin/python" -m pip install -q wheel "setuptools>=77" "cffi>=1.16" "lz4>=4.3" "zstandard>=0.22"
    set -- "$@" --nodeps --define "__python3 $top/venv/bin/python"
fi
rpmbuild -bb --quiet "$@" packaging/vmfilter.spec
mkdir -p "$out"
find "$top/RPMS" -name '*.rpm' -exec cp {} "$out" \;
rpmlint -r packaging/vmfilter.rpmlintrc packaging/vmfilter.spec
ls -l "$out"
