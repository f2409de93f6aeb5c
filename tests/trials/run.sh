#!/bin/sh
# Installs vmfilter in a new chroot of a Debian release as a user would, makes a first dump, and removes it again:
#
#     sh tests/trials/run.sh RELEASE WAY FILE...
#
# RELEASE is bookworm, trixie or sid. WAY is venv, pipx (FILE: a wheel, or a source distribution) or deb (FILEs: the
# packages). packaging/wheel.sh and packaging/deb.sh make them. Run it as root on Debian; the chroot uses this machine's
# settings of apt and pip. It fails if the first dump takes more than a minute, or if anything is left behind. A wheel for
# aarch64 is tried on an emulated CPU, which takes ten times as long.
set -eu
release=$1 way=$2
shift 2
files=$(realpath "$@")
cd "$(dirname "$0")/../.."

folder=$(mktemp -d -p /var/tmp vmfilter-trial.XXXXXX)
trap 'rm -rf --one-file-system "$folder"' EXIT
trap 'exit 1' HUP INT TERM
root=$folder/root
case $files in
*aarch64.whl) architecture=arm64 most=600 ;;
*) architecture= most=60 ;;
esac
sh tests/chroot.sh "$release" "$root" "$architecture"
mkdir "$root/given"
for file in $files; do
    cp "$file" "$root/given"
done
cp testdata/x86_64-6.12-small.vmcore.zst "$root/given/vmcore.zst"
cp tests/trials/"$way".sh "$root/given/way.sh"
cp tests/trials/inside.sh "$root/given"
sh tests/enter.sh "$root" sh -eu /given/inside.sh $most
echo "== $release, $way: passed"
