#!/bin/sh
# Makes the Debian packages in a new chroot of a release, and checks them with lintian: sh packaging/deb.sh [RELEASE]
# [FOLDER]. Run it as root on Debian. Debian 13 (trixie) is the oldest release with setuptools and cffi as new as needed.
set -eu
cd "$(dirname "$0")/.."
release=${1:-trixie}
out=$(realpath -m "${2:-dist}")
folder=$(mktemp -d -p /var/tmp vmfilter-deb.XXXXXX)
trap 'rm -rf --one-file-system "$folder"' EXIT
trap 'exit 1' HUP INT TERM
root=$folder/root
sh tests/chroot.sh "$release" "$root"
mkdir "$root/build" "$root/build/source"
git archive HEAD | tar -x -C "$root/build/source"
unshare --mount --pid --fork --kill-child sh -euc '
    mount -t proc proc "$1/proc"
    chroot "$1" env -i HOME=/root LANG=C.UTF-8 PATH=/usr/bin:/bin:/usr/sbin:/sbin DEBIAN_FRONTEND=noninteractive \
        http_proxy="${http_proxy-}" https_proxy="${https_proxy-}" no_proxy="${no_proxy-}" sh -euc "
        cd /build/source
        apt-get update -q
        apt-get install -qy --no-install-recommends build-essential lintian
        apt-get build-dep -qy --no-install-recommends .
        dpkg-buildpackage -us -uc
        lintian --allow-root --fail-on error,warning ../*.changes"
' sh "$root"
mkdir -p "$out"
cp "$root"/build/*.deb "$root"/build/*.dsc "$root"/build/*.tar.xz "$root"/build/*.changes "$out"
ls -l "$out"
