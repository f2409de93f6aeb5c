"""Generates the support matrix: `.venv/bin/python docs/support_matrix.py [FILE]`, by default docs/support-matrix.md.

All of it is from testdata/: the names of real vmcores and of VMCOREINFO texts, and the page size in them.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections import defaultdict
from pathlib import Path

import zstandard

DOCS = Path(__file__).parent
TESTDATA = DOCS.parent / "testdata"
COLUMNS = 100
MACHINES = ("x86_64", "arm64", "ppc64le", "riscv64", "s390x", "loongarch64", "i386", "arm")
UTS = {"aarch64": "arm64", "i686": "i386", "armv7l": "arm"}
"""Names of machines in utsname that are not those of vmfilter."""
UNSUPPORTED = "2.6"
"""Kernel of which testdata/ has a text only to see it refused."""
NOTES_AT = 1 << 16
"""Bytes at the beginning of a vmcore that have the notes, if any has VMCOREINFO."""
INTRODUCTION = """\
# Support matrix

Kernel, machine and page size, each cell with its proof. `docs/support_matrix.py` makes this page of
what is in `testdata/`: run it again when that changes.

- **R**: a test filters a real vmcore of it. Most dumps are compared with `/proc/kpageflags` of that
  machine (`tests/kernel/test_real.py`, `tests/kernel/test_pmem.py`).
- **V**: VMCOREINFO of that kernel is read, and what vmfilter takes from it is compared with the
  kernel's sources (`tests/kernel/test_published.py`). No dump of it was filtered.

Pages have 4 KiB unless the head says otherwise. An empty cell is a kernel of which no dump is at
hand: every form of page table is also exercised on synthetic kernels, as is every form of struct
page since 3.10 ([architectures.md](architectures.md), [kernels.md](kernels.md)).
"""


def page_size(text: bytes, name: str) -> str:
    """Return the page size that VMCOREINFO gives or, in dumps by QEMU without a note, that the name gives."""
    given = re.search(rb"PAGESIZE=(\d+)", text)
    named = re.search(r"-(\d+)k\b", name)
    return f"{int(given[1]) // 1024}K" if given else f"{named[1]}K" if named else "4K"


def real() -> dict[str, bytes]:
    """Return the beginning of each real vmcore by its name."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    found = {}
    for path in TESTDATA.glob("*.vmcore.zst"):
        with path.open("rb") as file, unpacker.stream_reader(file) as stream:
            found[path.name.removesuffix(".vmcore.zst")] = stream.read(NOTES_AT)
    return dict(sorted(found.items()))


def main() -> None:
    """Write the page."""
    proofs = defaultdict[tuple[str, str, str], list[str]](list)
    letters = dict[tuple[str, str, str], str]()
    texts = {f"vmcoreinfo/{p.stem}": p.read_bytes() for p in sorted((TESTDATA / "vmcoreinfo").glob("*.txt"))}
    for letter, files in ("R", real()), ("V", texts):
        for name, text in files.items():
            machine, release = name.rpartition("/")[2].split("-", 1)
            version = ".".join(release.split(".")[:2]).partition("-")[0]
            if version == UNSUPPORTED:
                continue
            cell = version, UTS.get(machine, machine), page_size(text, name)
            letters.setdefault(cell, letter)
            proofs[cell].append(f"`{name}`")
    versions = sorted({version for version, _, _ in proofs}, key=lambda v: [int(n) for n in v.split(".")])
    columns = sorted({cell[1:] for cell in proofs}, key=lambda c: (MACHINES.index(c[0]), int(c[1][:-1])))
    heads = [machine if size == "4K" else f"{machine} {size}" for machine, size in columns]
    rows = [[version, *(letters.get((version, *column), "") for column in columns)] for version in versions]
    lines = ["|".join(["", *row, ""]) for row in (["kernel", *heads], ["---"] * (len(heads) + 1), *rows)]
    parts = [INTRODUCTION, "\n".join(lines) + "\n"]
    for column, head in zip(columns, heads, strict=True):
        parts.append(f"## {head}\n")
        proven = [version for version in versions if (version, *column) in proofs]
        items = [f"- {version}: {', '.join(proofs[version, *column])}" for version in proven]
        wrapped = [textwrap.fill(i, COLUMNS, subsequent_indent="  ", break_on_hyphens=False) for i in items]
        parts.append("\n".join(wrapped) + "\n")
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "support-matrix.md"
    target.write_text("\n".join(parts), encoding="utf-8")


main()
