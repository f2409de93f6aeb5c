#!/bin/sh
# Installs the programs of Debian that tests run beside vmfilter; without one of them the tests that need it are skipped.
set -eu
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
    cpio dracut-core e2fsprogs groff-base initramfs-tools-core systemd udev
