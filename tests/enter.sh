#!/bin/sh
# Runs a command as root in a chroot that tests/chroot.sh made: sh tests/enter.sh ROOT COMMAND... It has namespaces of its
# own, so that no mount and no process outlives it.
set -eu
root=$(realpath "$1")
shift
cd "$(dirname "$0")/.."
exec unshare --mount --pid --fork --kill-child sh -euc '
    root=$1
    shift
    chroot "$root" true 2>/dev/null || sh tests/emulate.sh
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    exec chroot "$root" env -i HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin \
        http_proxy="${http_proxy-}" https_proxy="${https_proxy-}" no_proxy="${no_proxy-}" "$@"
' sh "$root" "$@"
