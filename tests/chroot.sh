#!/bin/sh
# Makes a new chroot of a Debian release, with this machine's settings of apt and pip: sh tests/chroot.sh RELEASE ROOT.
# Run it as root on Debian. ROOT.log has what debootstrap said.
set -eu
release=$1 root=$2
if ! command -v debootstrap >/dev/null; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends debootstrap
fi
. /etc/os-release
mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $VERSION_CODENAME" 'Component: main' | head -n 1)
debootstrap --variant=minbase --include=ca-certificates "$release" "$root" "$mirror" >"$root.log" || {
    cat "$root.log"
    exit 1
}
apt-config dump Acquire >"$root/etc/apt/apt.conf.d/host"
[ ! -e /etc/pip.conf ] || cp /etc/pip.conf "$root/etc"
[ ! -d /usr/local/share/ca-certificates ] || cp -r /usr/local/share/ca-certificates "$root/usr/local/share"
chroot "$root" update-ca-certificates
