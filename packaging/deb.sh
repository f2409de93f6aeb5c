#!/bin/sh
# Makes the Debian packages in a new chroot of a release, checks them with lintian, and tests them with autopkgtest in
# another: sh packaging/deb.sh [RELEASE] [FOLDER]. Run it as root on Debian. Debian 13 (trixie) is the oldest release with
# setuptools and cffi as new as needed.
set -eu
cd "$(dirname "$0")/.."
release=${1:-trixie}
out=$(realpath -m "${2:-dist}")
folder=$(mktemp -d -p /var/tmp vmfilter-deb.XXXXXX)
trap 'rm -rf --one-file-system "$folder"' EXIT
trap 'exit 1' HUP INT TERM
root=$folder/root
sh tests/chroot.sh "$release" "$root"
cp -a "$root" "$folder/clean"

mkdir "$root/build" "$root/build/source"
git archive HEAD | tar -x -C "$root/build/source"
sh tests/enter.sh "$root" sh -euc '
    cd /build/source
    apt-get update -q
    apt-get install -qy --no-install-recommends build-essential lintian
    apt-get build-dep -qy --no-install-recommends .
    dpkg-buildpackage -us -uc
    lintian --allow-root --fail-on error,warning ../*.changes'

mkdir "$folder/clean/built"
cp "$root"/build/*.deb "$root"/build/*.dsc "$root"/build/*.tar.xz "$root"/build/*.changes "$folder/clean/built"
sh tests/enter.sh "$folder/clean" sh -euc '
    apt-get update -q
    apt-get install -qy --no-install-recommends autopkgtest dpkg-dev
    autopkgtest /built/*.changes -- null'

mkdir -p "$out"
cp "$folder"/clean/built/* "$out"
ls -l "$out"
