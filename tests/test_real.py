"""Real vmcores of real kernels, against what those kernels said of their pages themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import kpageflags
import pytest
from kdumpreader import Kdump

import vmfilter
from vmfilter.levels import PageClass

# A few dozen frames change hands between the copy of kpageflags and the panic: the program that made the copy ends,
# and its pages wait on per-CPU lists.
LOST, KEPT_NEEDLESSLY = 60, 100
KERNELS = ["5.10", "6.1", "6.12-hvo", "6.12-la57", "6.12-small", "6.18", "7.2-hvo"]
HWPOISONED = ["6.12-hvo", "6.12-la57", "6.18", "7.2-hvo"]


@pytest.mark.parametrize("name", KERNELS)
def test_level_31_agrees_with_the_kernels_own_account(real: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    vmcore = real(f"x86_64-{name}")
    vmfilter.filter_dump(vmcore, tmp_path / "dump")
    dump = Kdump(tmp_path / "dump")
    table = kpageflags.table(vmcore.with_name(vmcore.name + ".kpageflags"), dump.present, dump.kept)
    lost = sum(table.get(kind, (0, 0))[1] for kind in kpageflags.KERNELS_OWN)
    kept_needlessly = sum(kept for kind, (kept, _) in table.items() if kind not in kpageflags.KERNELS_OWN)
    assert lost <= LOST, table
    assert kept_needlessly <= KEPT_NEEDLESSLY, table
    for kind in ("free", "cache", "anonymous"):
        assert table[kind][1] > 2000, f"{kind}: too few to tell anything, {table}"
    assert table["hugetlb"] == (0, 2048)
    assert table["slab"][0] > 1000
    assert table["slab"][1] == table["reserved"][1] == 0


# Name, first frame in the dump, frames of the kernel's own that are left out, frames of others that are kept. QEMU's
# dumps are of running guests, a while after the copy: the buffers that it went through have been freed since.
OTHER_MACHINES = [
    ("ppc64le-6.12", 0, 60, 110),
    ("ppc64le-6.12-64k", 0, 4, 24),
    ("ppc64le-6.1-64k", 0, 12, 15),
    ("ppc64le-7.2", 0, 75, 75),
    ("ppc64le-6.12-64k-hash-qemu", 0, 16, 10),
    ("ppc64le-6.12-hash-qemu", 0, 2, 35),
    ("s390x-6.12-qemu", 0, 400, 30),
    ("i386-6.1-qemu", 0, 8, 25),
    ("i386-6.1-pae-qemu", 0, 6, 40),
    ("arm-6.12-qemu", 0x40000, 20, 20),
    ("arm-6.12-lpae-qemu", 0x40000, 460, 30),
    ("x86_64-6.12-qemu", 0, 10, 25),
]


@pytest.mark.parametrize(("name", "first", "lost", "kept_needlessly"), OTHER_MACHINES)
def test_level_31_on_other_machines_and_in_other_dumps(
    real: Callable[[str], Path], tmp_path: Path, name: str, first: int, lost: int, kept_needlessly: int
) -> None:
    vmcore = real(name)
    vmfilter.filter_dump(vmcore, tmp_path / "dump")
    dump = Kdump(tmp_path / "dump")
    path = vmcore.with_name(vmcore.name + ".kpageflags")
    table = kpageflags.table(path, dump.present, dump.kept, dump.order, first)
    assert sum(table.get(kind, (0, 0))[1] for kind in kpageflags.KERNELS_OWN) <= lost, table
    found = sum(kept for kind, (kept, _) in table.items() if kind not in kpageflags.KERNELS_OWN)
    assert found <= kept_needlessly, table
    for kind in ("free", "cache", "anonymous"):
        assert table[kind][1] > 2000 * 4096 // dump.block_size, f"{kind}: too few to tell anything, {table}"
    assert table["slab"][0] > 200
    assert table["slab"][1] == table["reserved"][1] == 0


@pytest.mark.parametrize("name", [row[0] for row in OTHER_MACHINES])
def test_every_page_of_another_machine_is_its_own(real: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    vmfilter.filter_dump(real(name), tmp_path / "dump", level=1)
    dump = Kdump(tmp_path / "dump")
    assert len(dump.kept) == len(dump.present) > 4000
    with vmfilter.open_dump(real(name)) as source:
        first = dump.phys_base // dump.block_size if source.arch.counts_from_ram else 0
        for i, (pfn, content) in enumerate(dump.pages()):
            if i % 16 == 0 or content.strip(b"\0"):
                assert source.read((first + pfn) * dump.block_size, dump.block_size) in (content, None)


# What libkdumpfile (in drgn) can translate of these: not 4K pages of ppc64, nor s390x since 6.10, and not arm's frames,
# which it counts from 0 where crash and makedumpfile count from phys_base. In QEMU's dumps of x86 it begins at the
# tables that CR3 held, which strip.py leaves out.
TRANSLATED = ["ppc64le-6.12-64k", "ppc64le-6.1-64k", "ppc64le-6.12-64k-hash-qemu"]


@pytest.mark.parametrize("name", TRANSLATED)
def test_libkdumpfile_reads_the_kernels_name_by_virtual_address(
    real: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    drgn = pytest.importorskip("drgn")
    vmfilter.filter_dump(real(name), tmp_path / "dump")
    prog = drgn.Program()
    prog.set_core_dump(str(tmp_path / "dump"))
    told = dict(line.split("=", 1) for line in prog["VMCOREINFO"].string_().decode().splitlines())
    at = int(told["SYMBOL(init_uts_ns)"], 16) + int(told["OFFSET(uts_namespace.name)"])
    name_fields = [bytes(prog.read(at + 65 * i, 65)).split(b"\0")[0].decode() for i in range(6)]
    assert name_fields == Kdump(tmp_path / "dump").utsname
    assert (name_fields[0], name_fields[2]) == ("Linux", told["OSRELEASE"])


# kdumpid's name of the architecture; its version is the kernel's
KDUMPID = {"ppc64le": "ppc64", "s390x": "s390x", "i386": "ia32", "arm": "arm", "x86_64": "x86_64"}


@pytest.mark.lab
@pytest.mark.parametrize("name", [row[0] for row in OTHER_MACHINES])
def test_kdumpid_knows_architecture_and_kernel(real: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    from test_lab import judge, peer_is_here

    if not peer_is_here("kdumpid", "--version"):
        pytest.skip("kdumpid cannot be had here")
    vmfilter.filter_dump(real(name), tmp_path / "dump")
    said = judge("peer.py", "kdumpid", tmp_path / "dump").split()
    assert said[said.index("Arch:") + 1] == KDUMPID[name.split("-")[0]]
    assert said[said.index("Version:") + 1] == Kdump(tmp_path / "dump").utsname[2]


@pytest.mark.parametrize("name", HWPOISONED)
@pytest.mark.parametrize("level", [0, 1, 31])
def test_a_hwpoisoned_page_is_in_no_dump(real: Callable[[str], Path], tmp_path: Path, name: str, level: int) -> None:
    vmcore = real(f"x86_64-{name}")
    flags = kpageflags.array("Q", vmcore.with_name(vmcore.name + ".kpageflags").read_bytes())
    poisoned = {pfn for pfn, f in enumerate(flags) if kpageflags.kind(f) == "hwpoison"}
    statistics = vmfilter.filter_dump(vmcore, tmp_path / "dump", level=level)
    dump = Kdump(tmp_path / "dump")
    assert len(poisoned) == 1
    assert poisoned <= set(dump.present)
    assert not poisoned & set(dump.kept)
    assert statistics.classes[PageClass.HWPOISON] == 1


def test_five_levels_of_page_tables_are_really_walked(real: Callable[[str], Path]) -> None:
    from vmfilter.kernel import Kernel, Vmcoreinfo

    with vmfilter.open_dump(real("x86_64-6.12-la57")) as dump:
        info = Vmcoreinfo.of(dump)
        assert info is not None
        assert info.number("pgtable_l5_enabled") == 1
        assert Kernel(dump, info).uts.release.startswith(b"6.12.95")


def test_every_bit_of_the_level_leaves_out_just_its_classes(real: Callable[[str], Path], tmp_path: Path) -> None:
    vmcore = real("x86_64-6.12-small")
    whole = vmfilter.filter_dump(vmcore, tmp_path / "0", level=0)
    c = whole.classes
    wanted = {
        1: 0,
        2: c[PageClass.CACHE],
        4: c[PageClass.CACHE] + c[PageClass.CACHE_PRIVATE],
        8: c[PageClass.USER],
        16: c[PageClass.FREE],
        32: 0,
    }
    for level, count in wanted.items():
        vmfilter.filter_dump(vmcore, tmp_path / str(level), level=level, compress="lzo")
        dump = Kdump(tmp_path / str(level))
        assert len(dump.present) - len(dump.kept) == count, level
    assert min(wanted[2], wanted[8], wanted[16]) > 500
