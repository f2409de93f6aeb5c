#!/bin/sh
# Installs clang with its sanitizers and libFuzzer if they are missing and this is root on Debian. Fails if they stay so.
set -eu

works() {
    probe=$(mktemp)
    echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' |
        clang -fsanitize=fuzzer,address,undefined -x c - -o "$probe" 2>/dev/null && status=0 || status=1
    rm -f "$probe"
    return $status
}

if ! works && [ "$(id -u)" = 0 ]; then
    apt-get update -q
    release=$(apt-cache depends clang | sed -n 's/.*Depends: clang-\([0-9]*\)$/\1/p')
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends clang "libclang-rt-$release-dev"
fi
works
