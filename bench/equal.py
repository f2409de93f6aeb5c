#!/usr/bin/env python3
"""Prove that a refactoring changes no dump: two builds of vmfilter must make the same files, byte for byte.

    bench/equal.py OLD_VMFILTER NEW_VMFILTER VMCORE ... [--short] [--texts] [--cache FILE] [--jobs N]

Each build runs every line of MATRIX on each vmcore; with --short, for large vmcores, every line of SHORT. The exit
status of each line and the content of every file that it makes are compared; with --texts also what it prints, except
times and progress. The exit status is 1 if anything differs.

Dumps are made in a temporary folder, below TMPDIR. Each job needs up to four times the size of its vmcore there, or
ten times the size of a dump.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

# Lines of bash, run in order in a folder with the file vmcore. A line with {a,b} stands for one with a and one with b.
# Files called new* are removed after each line; all others stay for the lines that follow.
MATRIX = """
vmfilter filter -d 1 --compress lzo vmcore kdump
vmfilter filter -d 17 --format elf vmcore elf
vmfilter filter -d 1 vmcore - | cat > flat
vmfilter filter -d 17 --flatten --format elf vmcore flatelf
vmfilter filter -d 1 --split vmcore part1 part2
echo $(($(stat -c %s kdump) * 9 / 10)) > limit
vmfilter filter -d 1 --compress lzo --limit $(<limit) vmcore limited
head -c -400K kdump > cut
cp --sparse=always vmcore cutelf; truncate -s -20M cutelf
cp kdump damaged; truncate -s -20K damaged; head -c 20K /dev/zero >> damaged

vmfilter filter -d {0,1,2,4,8,16,17,31,32,63} --compress {lzo,zstd} vmcore new
vmfilter filter -d 1 --compress {zlib,zlib:6,snappy,zstd:3,lz4,none} vmcore new
vmfilter filter -d 31 --compress {zlib,snappy} vmcore new
vmfilter filter -d {0,63} --format elf vmcore new
vmfilter filter -d 31 {--compress zlib vmcore - | cat > new,vmcore - > new,--flatten --compress lzo vmcore new}
vmfilter filter -d 2 --format elf vmcore - | cat > new
vmfilter filter -d {0,31} --split vmcore new1 new2
vmfilter filter -d 17 --split --compress snappy vmcore new1 new2 new3
vmfilter filter -d {0,31} --dedup vmcore new
vmfilter filter -d 1 --dedup {vmcore - | cat > new,--split vmcore new1 new2}
vmfilter filter -d 1 --compress lzo --limit {100K,3M} vmcore new
vmfilter filter -d 1 --compress lzo --limit $(<limit) {--flatten vmcore new,vmcore - | cat > new}
vmfilter filter -d 1 --limit 3M --format elf vmcore new
vmfilter filter -d 1 -j 2 --compress zlib vmcore new
vmfilter filter -d 1 -j {1,7} {--compress zlib,--dedup,--compress lzo --limit $(<limit)} vmcore new
vmfilter filter -d 1 --max-memory 8M vmcore new
vmfilter filter -d {0,63} --include-pmem-userdata vmcore new
vmfilter filter -d 31 --include-pmem-userdata {--format elf vmcore new,--split vmcore new1 new2}
vmfilter filter -d 31 --dry-run --stats vmcore new
vmfilter filter --dry-run {--format elf vmcore new,--flatten vmcore new,--split vmcore new1 new2}

vmfilter filter -d 31 {kdump,elf,flat,flatelf,part1 part2,limited,cut,cutelf,damaged,part1} new
vmfilter filter -d 63 {kdump,elf} new
vmfilter filter -d 0 {kdump,cutelf} new
vmfilter filter -d 31 --format elf {kdump,cutelf} new
vmfilter filter -d 31 --split --parts 2 part1 part2 new1 new2 new3
vmfilter filter -d 31 - new < vmcore
cat {kdump,flat,elf} | vmfilter filter -d 31 - new
{zstd -q1 < kdump,gzip -n1 < flat} | vmfilter filter -d 31 - new
vmfilter convert {vmcore,kdump,elf,flat,flatelf,part2 part1,limited,cut,damaged} new
vmfilter convert {--compress zlib,--compress none,--flatten,--dedup} kdump new
vmfilter convert --format elf {kdump,part1 part2} new
vmfilter convert kdump - | cat > new
vmfilter reassemble {part1 part2,part2 part1,part1} new
vmfilter rearrange new < {flat,flatelf,kdump}
vmfilter filter -d 31 vmcore - | vmfilter rearrange new
head -c -300K flat | vmfilter rearrange new

vmfilter makedumpfile -d 31 {-c,-l,-E,--message-level 31} vmcore new
vmfilter makedumpfile -F -l -d 31 vmcore > new
vmfilter makedumpfile -F -E -d 31 vmcore | cat > new
vmfilter makedumpfile --split -c -d 17 vmcore new1 new2
vmfilter makedumpfile --reassemble part1 part2 new
vmfilter makedumpfile -R new < flat
vmfilter makedumpfile -l -L $(<limit) -d {1,31} vmcore new
vmfilter makedumpfile -l -L $(<limit) -d 1,31 vmcore new
vmfilter makedumpfile -d 31 {-c,-E} kdump new
vmfilter makedumpfile --dump-dmesg vmcore new
vmfilter makedumpfile -c -d 31 {--num-threads 2,--dry-run --show-stats,-D} vmcore new
vmfilter makedumpfile --mem-usage vmcore

vmfilter dmesg {vmcore,kdump,--json vmcore} > new
vmfilter info --vmcoreinfo vmcore > new
vmfilter info {vmcore,kdump,part1 part2,part1,limited,cut}
vmfilter info --pages kdump
vmfilter mem-usage vmcore
vmfilter verify {kdump,part1 part2,part1,limited,cut,damaged}
vmfilter verify kdump --against vmcore
"""
SHORT = """
vmfilter filter -d 1 --compress lzo vmcore kdump
vmfilter filter -d {1,17,31} --compress {zlib,lzo,snappy,zstd} vmcore new
vmfilter filter -d {0,63} vmcore new
vmfilter filter -d 31 --format elf vmcore new
vmfilter filter -d 17 vmcore - | cat > new
vmfilter filter -d 17 --split vmcore new1 new2 new3
vmfilter filter -d 1 -j {1,7} --dedup vmcore new
vmfilter filter -d 1 --limit 20M vmcore new
vmfilter filter -d {31,63} --include-pmem-userdata vmcore new
vmfilter filter -d 31 kdump new
vmfilter convert {kdump,--format elf kdump,--compress zlib kdump} new
vmfilter makedumpfile {-c,-E} -d 31 vmcore new
vmfilter dmesg {vmcore,--json vmcore,--level --caller vmcore,--since-clear vmcore} > new
vmfilter mem-usage vmcore
vmfilter verify kdump --against vmcore
"""
_PROGRESS = re.compile(r"\r[^\r\n]*|^(Classify|Writ|Verify)ing pages .*\n", re.MULTILINE)
_SECONDS = re.compile(r" +[\d.]+ s(econds)?$", re.MULTILINE)


class Output(NamedTuple):
    """Result of a line: its exit status, the digest of each file that it made, and what it printed."""

    status: int
    files: dict[str, str]
    text: str


def lines_of(matrix: str) -> Iterator[str]:
    """Have every line that a matrix stands for."""
    for template in filter(None, matrix.split("\n")):
        parts = [part.split(",") if i % 2 else [part] for i, part in enumerate(re.split("{(.+?)}", template))]
        yield from map("".join, itertools.product(*parts))


def _digest(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def run(vmfilter: str, vmcore: Path, matrix: str) -> dict[str, Output]:
    """Run a matrix on a vmcore; return the result of each line."""
    program = shutil.which(vmfilter) or sys.exit(f"{vmfilter}: no such program")
    outputs = {}
    with tempfile.TemporaryDirectory(prefix="equal-") as name:
        folder = Path(name)
        (folder / "bin").mkdir()
        (folder / "bin/vmfilter").symlink_to(Path(program).absolute())
        (folder / "vmcore").symlink_to(vmcore.absolute())
        environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
        for line in lines_of(matrix):
            before = set(folder.iterdir())
            ended = subprocess.run(
                ["bash", "-o", "pipefail", "-c", line],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
            )
            made = sorted(set(folder.iterdir()) - before)
            said = (ended.stdout + ended.stderr).decode(errors="replace")
            text = _SECONDS.sub(" N s", _PROGRESS.sub("", said)).replace(name, "")
            outputs[line] = Output(ended.returncode, {path.name: _digest(path) for path in made}, text)
            for path in made:
                if path.name.startswith("new"):
                    path.unlink()
    return outputs


def differences(old: Output, new: Output, texts: bool) -> Iterator[str]:
    """Describe the differences between two results of a line."""
    if old.status != new.status:
        yield f"exit status {new.status}, was {old.status}"
    for name in sorted(old.files.keys() | new.files.keys()):
        if name not in new.files:
            yield f"does not make {name}"
        elif name not in old.files:
            yield f"makes {name}"
        elif old.files[name] != new.files[name]:
            yield f"{name} has other bytes"
    if texts:
        for line in difflib.unified_diff(old.text.splitlines(), new.text.splitlines(), n=0, lineterm=""):
            if not line.startswith(("---", "+++", "@@")):
                yield line


class Cache:
    """Results of the old build, in a JSON file. A changed vmcore, or another matrix, invalidates them."""

    def __init__(self, path: Path | None, matrix: str) -> None:
        """Read the file if it exists; without a path, keep nothing."""
        self._path = path
        self._matrix = hashlib.sha256(matrix.encode()).hexdigest()
        self._known = json.loads(path.read_text()) if path and path.exists() else {}

    def get(self, vmcore: Path) -> dict[str, Output] | None:
        """Return the old build's results for a vmcore, or None."""
        known = self._known.get(self._key(vmcore))
        return known and {line: Output(*made) for line, made in known.items()}

    def put(self, vmcore: Path, outputs: dict[str, Output]) -> None:
        """Keep the old build's results."""
        self._known[self._key(vmcore)] = outputs
        if self._path:
            aside = self._path.with_name(f"{self._path.name}.{os.getpid()}")  # another run may be reading it
            aside.write_text(json.dumps(self._known, indent=1) + "\n")
            aside.replace(self._path)

    def _key(self, vmcore: Path) -> str:
        stat = vmcore.stat()
        return f"{vmcore.name} {stat.st_size} {stat.st_mtime_ns} {self._matrix}"


def main() -> None:
    """Parse the command line, run, compare, print."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("old", help="vmfilter command of the old build")
    parser.add_argument("new", help="vmfilter command of the new build")
    parser.add_argument("vmcores", nargs="+", type=Path, metavar="VMCORE")
    parser.add_argument("--short", action="store_true", help="run the short matrix")
    parser.add_argument("--texts", action="store_true", help="compare what is printed as well")
    parser.add_argument("--cache", type=Path, metavar="FILE", help="keeps what OLD made; remove it if OLD changes")
    parser.add_argument("--jobs", type=int, default=2, help="vmcores at a time (default: %(default)s)")
    options = parser.parse_args()
    matrix = SHORT if options.short else MATRIX
    cache = Cache(options.cache, matrix)

    def both(vmcore: Path) -> tuple[dict[str, Output], dict[str, Output]]:
        return cache.get(vmcore) or run(options.old, vmcore, matrix), run(options.new, vmcore, matrix)

    total = equal = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for vmcore, (old, new) in zip(options.vmcores, pool.map(both, options.vmcores), strict=True):
            if cache.get(vmcore) is None:
                cache.put(vmcore, old)
            for line in old:
                found = list(differences(old[line], new[line], options.texts))
                for difference in found:
                    print(f"{vmcore}: {line}: {difference}", flush=True)
                total += 1
                equal += not found
            print(f"{vmcore}: {len(old)} outputs", file=sys.stderr, flush=True)
    print(f"{total} outputs, {equal} equal")
    sys.exit(equal < total)


if __name__ == "__main__":
    main()
