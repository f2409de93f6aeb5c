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

folder=$(mktemp -d -p /var/tmp vmfilter-trial.XXXXXX)
trap 'rm -rf --one-file-system "$folder"' EXIT
trap 'exit 1' HUP INT TERM
root=$folder/root
sh tests/chroot.sh "$release" "$root"
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
