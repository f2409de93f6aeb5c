#!/bin/sh
# Installs vmfilter in a new chroot of a Debian release as a user would, makes a first dump, and removes it again:
#
#     sh tests/trials/run.sh RELEASE WAY FILE...
#
# RELEASE is bookworm, trixie or sid. WAY is venv, pipx (FILE: a wheel, or a source distribution) or deb (FILEs: the
# packages). packaging/wheel.sh and packaging/deb.sh make them. Run it as root on Debian; the chroot uses this machine's
# settings of apt and pip. It fails if the first dump takes more than a minute, or if anything is left behind.
set -eu
release=$1 way=$2
shift 2
files=$(realpath "$@")
cd "$(dirname "$0")/../.."

if ! command -v debootstrap >/dev/null; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends debootstrap
fi
. /etc/os-release
mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $VERSION_CODENAME" 'Component: main' | head -n 1)
folder=$(mktemp -d -p /var/tmp vmfilter-trial.XXXXXX)
trap 'rm -rf --one-file-system "$folder"' EXIT
trap 'exit 1' HUP INT TERM
root=$folder/root
debootstrap --variant=minbase --include=ca-certificates "$release" "$root" "$mirror" >"$folder/log" || {
    cat "$folder/log"
    exit 1
}
apt-config dump Acquire >"$root/etc/apt/apt.conf.d/host"
[ ! -e /etc/pip.conf ] || cp /etc/pip.conf "$root/etc"
[ ! -d /usr/local/share/ca-certificates ] || cp -r /usr/local/share/ca-certificates "$root/usr/local/share"
chroot "$root" update-ca-certificates >"$folder/log"
mkdir "$root/given"
for file in $files; do
    cp "$file" "$root/given"
done
cp testdata/x86_64-6.12-small.vmcore.zst "$root/given/vmcore.zst"
cp tests/trials/"$way".sh "$root/given/way.sh"
cp tests/trials/inside.sh "$root/given"
# In its own namespaces, so that no mount outlives it.
unshare --mount --pid --fork --kill-child sh -euc '
    mount -t proc proc "$1/proc"
    mount --rbind /dev "$1/dev"
    chroot "$1" env -i HOME=/root LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin \
        http_proxy="${http_proxy-}" https_proxy="${https_proxy-}" no_proxy="${no_proxy-}" sh -eu /given/inside.sh
' sh "$root"
echo "== $release, $way: passed"
