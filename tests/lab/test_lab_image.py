"""Real kernels whose VMCOREINFO is reduced, in the note and in memory: the same pages are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from kdumpreader import Kdump

import vmfilter

pytestmark = pytest.mark.lab

LEFT = {
    "kallsyms": (b"OSRELEASE", b"BUILD-ID", b"PAGESIZE", b"SYMBOL(kallsyms"),
    "nothing": (b"nothing begins so",),
    "no layout": (b"OSRELEASE", b"PAGESIZE", b"SYMBOL", b"NUMBER(phys_base", b"NUMBER(kimage_voffset", b"NUMBER(VA_"),
}
"""Beginnings of the lines that are left."""


def reduced(vmcore: Path, left: tuple[bytes, ...], to: Path) -> int:
    """Copy a vmcore and reduce each VMCOREINFO in it; return their number."""
    data, at, count = bytearray(vmcore.read_bytes()), 0, 0
    while (at := data.find(b"OSRELEASE=", at)) >= 0:
        end = next(i for i in range(at, len(data)) if not 0 < data[i] < 0x80)
        lines = bytes(data[at:end]).splitlines(keepends=True)
        if any(line.startswith(b"SYMBOL(init_uts_ns)") for line in lines):
            data[at:end] = b"".join(line for line in lines if line.startswith(left)).ljust(end - at, b"\0")
            count += 1
        at = end
    to.write_bytes(data)
    return count


@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("name", ["x86-6.12", "x86-7.2", "arm64-6.12", "ppc64-6.12"])
def test_the_same_pages_are_kept(lab: Callable[[str], Path], tmp_path: Path, name: str, left: str) -> None:
    assert reduced(lab(name), LEFT[left], tmp_path / "vmcore") > 1
    vmfilter.filter_dump(lab(name), tmp_path / "whole", compress="none")
    result = vmfilter.filter_dump(tmp_path / "vmcore", tmp_path / "reduced", compress="none")
    assert Kdump(tmp_path / "reduced").kept == Kdump(tmp_path / "whole").kept
    assert result.free is not None
    assert any("the kernel's own" in line for line in result.warnings)


@pytest.mark.parametrize("left", ["kallsyms", "nothing"])
def test_the_kernel_of_riscv64_is_found(lab: Callable[[str], Path], tmp_path: Path, left: str) -> None:
    """Its vmcore lacks what the kernel allocated early, so no level but 0 and 1 works, whatever VMCOREINFO says."""
    assert reduced(lab("riscv64-6.12"), LEFT[left], tmp_path / "vmcore") > 1
    with vmfilter.open_dump(tmp_path / "vmcore") as dump:
        assert dump.kernel is not None
        assert dump.kernel.release == "6.12.94+deb13-riscv64"
        assert dump.kernel.symbol("_stext")
