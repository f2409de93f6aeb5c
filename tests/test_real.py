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
# and its pages wait on per-CPU lists; others waited to be put on an LRU list, and are on it by now.
LOST, KEPT_NEEDLESSLY = 70, 100
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
