#!/bin/sh
# Installs the Debian packages of programs that tests run. Tests whose program is missing are skipped.
set -eu
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
    cpio dracut-core e2fsprogs fish groff-base initramfs-tools-core systemd udev zsh
