#!/bin/sh
# Makes a new chroot of a Debian release, with this machine's settings of apt and pip: sh tests/chroot.sh RELEASE ROOT
# [ARCHITECTURE]. Run it as root on Debian. ROOT.log has what debootstrap said. tests/enter.sh runs a command in it.
set -eu
release=$1 root=$2 architecture=${3:-$(dpkg --print-architecture)}
if ! command -v debootstrap >/dev/null; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends debootstrap
fi
. /etc/os-release
mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $VERSION_CODENAME" 'Component: main' | head -n 1)
emulate=
[ "$architecture" = "$(dpkg --print-architecture)" ] || emulate="sh $(dirname "$0")/emulate.sh;"
unshare --mount sh -euc "$emulate"'exec debootstrap --variant=minbase --include=ca-certificates "$@"' \
    sh --arch="$architecture" "$release" "$root" "$mirror" >"$root.log" || {
    cat "$root.log"
    exit 1
}
apt-config dump Acquire >"$root/etc/apt/apt.conf.d/host"
[ ! -e /etc/pip.conf ] || cp /etc/pip.conf "$root/etc"
[ ! -d /usr/local/share/ca-certificates ] || cp -r /usr/local/share/ca-certificates "$root/usr/local/share"
sh "$(dirname "$0")/enter.sh" "$root" update-ca-certificates
