#!/bin/sh
# Builds the C core with clang (tests/run.sh: gcc), warnings as errors, with AddressSanitizer and
# UndefinedBehaviorSanitizer in it, and runs the tests that reach it. It is built in a copy of the tree, so the normal
# build stays as it is. Run tests/run.sh first. Arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
sh tests/clang.sh

python=$PWD/.venv/bin/python
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
cp -r LICENSE MANIFEST.in README.md bench csrc docs pyproject.toml setup.py testdata tests vmfilter "$tree"
cd "$tree"
rm -f vmfilter/_core*
sanitizers="-fsanitize=address,undefined -shared-libasan"
CC=clang VMFILTER_CFLAGS="-Werror -g -O1 $sanitizers -fno-sanitize-recover=all" LDFLAGS=$sanitizers \
	"$python" -m pip install -q --no-deps --target built .
mv built/vmfilter/_core* vmfilter/

# Not those with children that have another LD_PRELOAD, or little address space: they cannot load this core.
[ $# -gt 0 ] || set -- tests/unit/test_native.py tests/unit/test_codec.py tests/unit/test_dedup.py \
	tests/unit/test_frame_set.py tests/kernel/test_classify.py tests/kernel/test_page_tables.py \
	tests/kernel/test_kinds.py tests/kernel/test_search.py tests/formats/test_checksums.py \
	tests/formats/test_convert.py tests/formats/test_kdump.py tests/formats/test_qemu.py -k 'not little_memory'
export PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0:log_path="$tree/report"
export UBSAN_OPTIONS=print_stacktrace=1:log_path="$tree/report"
LD_PRELOAD=$(clang -print-file-name="libclang_rt.asan-$(uname -m).so") \
	"$python" -m pytest -q -n auto -m 'not crash and not lab' -p no:cacheprovider "$@" && exit
cat "$tree"/report* 2>/dev/null
exit 1
