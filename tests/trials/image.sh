#!/bin/sh
# Builds the image of packaging/Dockerfile with buildah, and makes a first dump in it, without a network:
#
#     sh tests/trials/image.sh
#
# No registry is asked: what the Dockerfile calls debian:trixie-slim is a new chroot, with this machine's settings of apt
# and pip. Run it as root on Debian.
set -eu
cd "$(dirname "$0")/../.."
if ! command -v buildah >/dev/null; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends buildah
fi
folder=$(mktemp -d -p /var/tmp vmfilter-image.XXXXXX)
trap 'rm -rf --one-file-system "$folder"' EXIT
trap 'exit 1' HUP INT TERM
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s/storage"\nrunroot = "%s/run"\n' "$folder" "$folder" >"$folder/conf"
export CONTAINERS_STORAGE_CONF="$folder/conf"

base=$(sed -n 's/^FROM \([^ ]*\)$/\1/p' packaging/Dockerfile)
sh tests/chroot.sh trixie "$folder/root"
container=$(buildah from scratch)
buildah add -q "$container" "$folder/root" /
buildah commit -q --rm "$container" "$base"
mkdir "$folder/source" "$folder/dumps"
git archive HEAD | tar -x -C "$folder/source"
buildah build -q --isolation chroot --pull-never -t vmfilter -f packaging/Dockerfile "$folder/source"

.venv/bin/python tests/support/unpack.py testdata/x86_64-6.12-small.vmcore.zst "$folder/dumps/vmcore"
container=$(buildah from --pull-never vmfilter)
program=$(buildah inspect --format '{{index .OCIv1.Config.Entrypoint 0}}' "$container")
in_image() {
    unshare --net buildah run --isolation chroot --volume "$folder/dumps:/dumps" "$container" "$program" "$@"
}
in_image --version
in_image filter -d 31 vmcore dump
in_image verify --against vmcore dump
in_image info dump | head -n 12
echo "== packaging/Dockerfile: passed"
