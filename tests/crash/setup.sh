#!/bin/sh
# Installs what the tests of real crashes need, on Debian 12, as root: QEMU 10 (from backports: 7.2 miscompiles
# cmpxchg16b, which kills capture kernels), initramfs-tools, and, unpacked in build/crash/debian, a cloud kernel with
# its debug information, and kdump-tools. What is already there is kept.
set -eu
cd "$(dirname "$0")/../.."
export DEBIAN_FRONTEND=noninteractive
. /etc/os-release

updated=
update() {
    [ -n "$updated" ] || apt-get update -q
    updated=yes
}

missing=
for package in busybox-static cpio e2fsprogs gcc initramfs-tools-core kexec-tools libc6-dev zstd; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
    update
    echo kexec-tools kexec-tools/load_kexec boolean false | debconf-set-selections # it is for the guest
    # shellcheck disable=SC2086
    apt-get install -qy --no-install-recommends $missing
fi

if ! qemu-system-x86_64 --version 2>/dev/null | grep -q 'version [1-9][0-9]'; then
    backports="$VERSION_CODENAME-backports"
    update
    if [ -z "$(apt-get indextargets "Codename: $backports")" ]; then
        uri=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $VERSION_CODENAME" 'Component: main' | head -n 1)
        echo "deb $uri $backports main" > "/etc/apt/sources.list.d/$backports.list"
        updated=
    fi
    update
    apt-get install -qy --no-install-recommends -t "$backports" qemu-system-x86
fi

if [ ! -d build/crash/debian ]; then
    update
    rm -rf build/crash/debs build/crash/unpacked
    mkdir -p build/crash/debs build/crash/unpacked
    kernel=$(apt-cache depends linux-image-6.12-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p')
    cd build/crash/debs
    apt-get -q -o APT::Sandbox::User=root download "$kernel" "$kernel-dbg" kdump-tools
    for package in "$kernel"_*.deb kdump-tools_*.deb; do
        dpkg-deb -x "$package" ../unpacked
    done
    # Unpack only vmlinux, not the modules' debug information. tar stops early, so hide dpkg-deb's complaint about that.
    vmlinux="usr/lib/debug/boot/vmlinux-${kernel#linux-image-}"
    dpkg-deb --fsys-tarfile "$kernel-dbg"_*.deb 2>/dev/null | tar -x --occurrence=1 -C ../unpacked "./$vmlinux"
    cd ..
    rm -r debs
    mv unpacked debian
fi
