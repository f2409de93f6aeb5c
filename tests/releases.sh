#!/bin/sh
# Runs the README's commands in new chroots of Debian releases, as root and as a user: `sh tests/releases.sh trixie`, or
# without arguments on all three. Run it as root on Debian; the chroots use this machine's settings of apt and pip. It
# takes a quarter of an hour per release.
#
# Only packaging depends on the release. A run on all three records the checksums of what packaging consists of in
# tests/releases.passed; .ci/run compares them, and runs this only if packaging has changed since.
set -eu
cd "$(dirname "$0")/.."
releases="sid trixie bookworm"
packaging="MANIFEST.in pyproject.toml setup.py docs/quickstart.sh
           tests/chroot.sh tests/enter.sh tests/packages.sh tests/releases.sh tests/run.sh
           $(find vmfilter/integration -type f -not -name '*.pyc' | LC_ALL=C sort)"

# Runs in its own namespaces, so that no mount outlives it.
in_a_chroot='
release=$1 root=$2
mkdir "$root"
mount --bind "$root" "$root" # tests call unshare --mount, which fails if / is no mount point
sh tests/chroot.sh "$release" "$root"
chroot "$root" useradd --create-home user
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
chroot "$root" unshare --mount true # or tests would be skipped

for user in root user; do
    home=$(chroot "$root" getent passwd "$user" | cut -d : -f 6)
    mkdir "$root$home/vmfilter"
    tar -c --exclude=./.git --exclude=./.venv --exclude=./build --exclude=__pycache__ --exclude="*.so" . |
        tar -x --no-same-owner -C "$root$home/vmfilter"
    chroot "$root" chown -R "$user:" "$home/vmfilter"
    commands="sh docs/quickstart.sh"
    [ "$user" = user ] || commands="$commands; sh tests/packages.sh"
    for command in "$commands" "sh tests/run.sh -rs"; do
        echo "== $release, $user: $command"
        chroot --userspec="$user:" "$root" env -i HOME="$home" LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin \
            http_proxy="${http_proxy-}" https_proxy="${https_proxy-}" no_proxy="${no_proxy-}" \
            sh -euc "cd ~/vmfilter; $command"
    done
done'

folder=$(mktemp -d -p /var/tmp vmfilter-releases.XXXXXX)
trap 'rm -rf --one-file-system "$folder"' EXIT
trap 'exit 1' HUP INT TERM
# shellcheck disable=SC2086
for release in ${*:-$releases}; do
    unshare --mount --pid --fork --kill-child sh -euc "$in_a_chroot" sh "$release" "$folder/$release"
    rm -rf --one-file-system "${folder:?}/$release"
done
# shellcheck disable=SC2086
[ $# != 0 ] || sha256sum $packaging >tests/releases.passed
