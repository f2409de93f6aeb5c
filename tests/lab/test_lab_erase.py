"""Erasing on real kernels: makedumpfile erases the same bytes, and a key is nowhere in any form of output."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Run
from files import Shared
from judges import LAB, LARGE, VMCORES, debug_vmlinux, peer_is_here
from kdumpreader import content
from unpack import unpack_sparse

import vmfilter

pytestmark = pytest.mark.lab

Lab = Callable[[str], Path]
KERNEL = "linux-image-6.12.95+deb12-cloud-amd64"
CONFIG = """\
erase saved_command_line
erase init_task.comm
erase init_uts_ns.name.nodename
[vmlinux]
erase init_task.cred size 64
for m in modules.next within module:list
    erase m.name
endfor
"""
KEY, BYTES = "base_crng", 32  # drivers/char/random.c: the key of the random number generator comes first
FORMS = {
    "kdump": ["--compress", "zstd"],
    "uncompressed": ["--compress", "none"],
    "identical pages once": ["--compress", "lzo", "--dedup"],
    "elf": ["--format", "elf"],
    "flattened": ["--flatten", "--compress", "zlib"],
    "flattened elf": ["--flatten", "--format", "elf"],
    "split": ["--split"],
}
"""Forms of output, by options of filter."""


def test_makedumpfile_erases_the_same_bytes(lab: Lab, run: Run, tmp_path: Path) -> None:
    if not peer_is_here("makedumpfile", "-h"):
        pytest.skip("makedumpfile is not available here")
    vmlinux, theirs, ours, whole = debug_vmlinux(KERNEL), *(tmp_path / name for name in ("theirs", "ours", "whole"))
    (tmp_path / "conf").write_text(CONFIG)
    line = ["-d", "31", "-c", "--config", str(tmp_path / "conf"), "-x", str(vmlinux), str(lab("x86-6.12"))]
    peer = [sys.executable, str(LAB / "lab" / "peer.py"), "makedumpfile"]
    subprocess.run([*peer, *line, str(theirs)], check=True, capture_output=True, timeout=600)
    assert run("makedumpfile", "--message-level", 4, *line, ours).status == 0
    vmfilter.filter_dump(lab("x86-6.12"), whole)
    found, wanted, before = content(ours), content(theirs), content(whole)
    assert found.keys() == wanted.keys() == before.keys()
    assert [pfn for pfn in found if found[pfn] != wanted[pfn]] == []
    changed = [sum(a != b for a, b in zip(found[pfn], before[pfn], strict=True)) for pfn in found]
    assert sum(1 for count in changed if count) > 4
    assert sum(changed) > 100


def unpack_vmlinux(to: Path) -> None:
    """Unpack the vmlinux of x86-pmem2 and x86-pmem3, which have no types of their own."""
    unpack_sparse(VMCORES / "vmlinux-pmem.zst", to)


def rearranged(flattened: bytes) -> bytes:
    """Return the file that a flattened one stands for."""
    out, at = bytearray(), 4096
    while (record := struct.unpack_from(">qq", flattened, at))[0] >= 0:
        offset, size = record
        out.extend(bytes(max(offset + size - len(out), 0)))
        out[offset : offset + size] = flattened[at + 16 : at + 16 + size]
        at += 16 + size
    return bytes(out)


def everything(form: str, made: Path) -> bytes:
    """Return all that a dump contains: its bytes as they are, and its pages without compression."""
    paths = [made, made.with_name("second")] if form == "split" else [made]
    raw = b"".join(path.read_bytes() for path in paths)
    if form.startswith("flattened"):
        paths = [made.with_name("rearranged")]
        paths[0].write_bytes(rearranged(raw))
    pages = [page for path in paths if "elf" not in form for _, page in sorted(content(path).items())]
    return b"".join([raw, paths[0].read_bytes() if "elf" in form else b"", *pages])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LARGE)
def test_a_key_is_nowhere_in_a_dump(lab: Lab, run: Run, shared: Shared, tmp_path: Path, name: str, form: str) -> None:
    with vmfilter.open_dump(lab(name)) as dump:
        assert dump.kernel is not None
        key = dump.read_virtual(dump.kernel.symbol(KEY), BYTES)
    assert len({*key}) > 16
    what, types = (f"{KEY}.key", ["--vmlinux", shared("lab-vmlinux-pmem", unpack_vmlinux)])
    if "pmem" not in name:
        what, types = f"(char [{BYTES}]){KEY}", []
    (tmp_path / "conf").write_text(f"erase {what}\n")
    outputs = [tmp_path / "made", *([tmp_path / "second"] if form == "split" else [])]
    for rules, erased in ([], False), (["--config", tmp_path / "conf"], True):
        assert run("filter", "-q", "--force", "-d", 31, *FORMS[form], *rules, *types, lab(name), *outputs).status == 0
        found = everything(form, outputs[0])
        assert (key in found) == (not erased)
        assert (b"X" * BYTES in found) or not erased
