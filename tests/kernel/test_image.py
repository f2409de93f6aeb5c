"""A kernel whose VMCOREINFO says little or nothing: its own symbols and types make up for it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from command import Run
from imagebuilder import Described, described
from kdumpreader import Kdump

import vmfilter
from vmfilter.errors import KernelError
from vmfilter.frames.classes import PageClass
from vmfilter.kernel.search import vmcoreinfo_of
from vmfilter.reader import open_dump

KALLSYMS = "OSRELEASE=", "PAGESIZE=", "SYMBOL(kallsyms_"
LAYOUTS = [("relative", False), ("relative", True), ("place", True), ("absolute", False)]
LEFT = {"kallsyms": KALLSYMS, "nothing": ("CRASHTIME",), "no note": ()}
"""Beginnings of the lines that VMCOREINFO has."""


@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize(("layout", "late"), LAYOUTS)
def test_a_kernel_that_exports_nothing_is_filtered(tmp_path: Path, layout: str, late: bool, left: str) -> None:
    s = described(layout, late)
    s.note, s.left = left != "no note", LEFT[left]
    result = vmfilter.filter_dump(s.write(tmp_path / "vmcore"), tmp_path / "dump")
    assert (result.classes[PageClass.FREE], result.classes[PageClass.CACHE]) == (16, 1)
    said = "it has no VMCOREINFO" if left == "no note" else "its VMCOREINFO does not lead to the kernel"
    assert any(f"{said}; the kernel's own symbols and types replace it" in line for line in result.warnings)


def test_the_new_dump_has_the_vmcoreinfo_that_was_made(tmp_path: Path, run: Run) -> None:
    s = described()
    vmfilter.filter_dump(s.write(tmp_path / "vmcore"), tmp_path / "dump")
    text = run("info", "--vmcoreinfo", tmp_path / "dump").out.splitlines()
    assert {"OFFSET(page._mapcount)=48", "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-268435456"} <= {*text}
    assert not [
        line for line in vmfilter.filter_dump(tmp_path / "dump", tmp_path / "again").warnings if "types" in line
    ]


def test_sequences_between_markers_and_tokens_hide_no_symbols(tmp_path: Path) -> None:
    s = described(late=False, sequences=bytes(i % 251 + 1 for i in range(3 * 711)))
    assert vmfilter.filter_dump(s.write(tmp_path / "vmcore"), tmp_path / "dump").classes[PageClass.FREE] == 16


@pytest.mark.parametrize(
    "lacks", ["OFFSET(page.mapping)", "SIZE(page)", "NUMBER(PG_lru)", "OFFSET(mem_section", "NUMBER(PAGE_SLAB"]
)
def test_what_vmcoreinfo_lacks_comes_from_types(tmp_path: Path, lacks: str) -> None:
    s = described()
    s.left, s.without = ("OSRELEASE", "PAGESIZE", "SYMBOL", "OFFSET", "SIZE", "NUMBER", "LENGTH"), (lacks,)
    result = vmfilter.filter_dump(s.write(tmp_path / "vmcore"), tmp_path / "dump")
    assert (result.classes[PageClass.FREE], result.classes[PageClass.CACHE]) == (16, 1)
    assert any(lacks.strip("(") in line and "types (BTF) complete it" in line for line in result.warnings)


ALL = "OSRELEASE", "PAGESIZE", "SYMBOL", "OFFSET", "SIZE", "NUMBER", "LENGTH"
PRIVATE, SAME_PLACE = "OFFSET(page.private)=48", "OFFSET(page._mapcount) or OFFSET(page.private) may be wrong: "
TWINS = "NUMBER(PG_lru)=6", "NUMBER(PG_lru) or NUMBER(PG_head_mask) may be wrong: both have the same value"
CORRECTED = "; the kernel's own types (BTF) replace {} by {}, and no witness contradicts that"


def doubtful(*wrong: str, btf: bool = True) -> Described:
    s = described(btf=btf)
    s.left, s.wrong = ALL, wrong
    for pfn in range(s.text // s.page, s.text // s.page + 64):  # reserved, and in no list
        lru = s.vmemmap_at + 64 * pfn + 8
        s.put_raw(pfn, struct.pack("<6Q2I8x", 1 << 13, lru, lru, 0, 0, 0, 0xFFFFFFFF, 1))
    return s


@pytest.mark.parametrize(
    ("wrong", "right", "doubt"),
    [
        (PRIVATE, 40, f"{SAME_PLACE}both have the same place"),
        (TWINS[0], 5, TWINS[1]),
        ("NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)=-184549376", -201326592, "both have the same value"),
    ],
)
def test_types_correct_what_a_witness_convicts(tmp_path: Path, wrong: str, right: int, doubt: str) -> None:
    vmfilter.filter_dump(doubtful().write(tmp_path / "vmcore"), tmp_path / "good")
    result = vmfilter.filter_dump(doubtful(wrong).write(tmp_path / "vmcore"), tmp_path / "dump")
    assert (result.classes[PageClass.FREE], result.classes[PageClass.CACHE]) == (16, 1)
    assert Kdump(tmp_path / "dump").kept == Kdump(tmp_path / "good").kept
    (said,) = result.warnings
    assert doubt in said
    assert said.endswith(CORRECTED.format(wrong, right))
    with open_dump(tmp_path / "dump") as dump:  # its VMCOREINFO is right, so no reader doubts it
        info = vmcoreinfo_of(dump)
    assert info
    assert f"{wrong.partition('=')[0]}={right}" in info.text.splitlines()


HUGETLB = "NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)=-218103808"
UNKNOWN = "huge pages have an unknown page type, and none is hugetlb"
HUGE = 5 * 512, 7 * 512  # frames that no sample of struct pages includes


def seen_as_a_whole(*wrong: str, btf: bool = True) -> Described:
    """Return a machine on which only the whole classification shows what is wrong."""
    s = doubtful(*wrong, btf=btf)
    for pfn in HUGE:
        s.compound(pfn, 9, hugetlb=True)
        s.free(pfn + 2048, 9)
    return s


@pytest.mark.parametrize(
    ("wrong", "right", "doubt", "options"),
    [
        (HUGETLB, -201326592, f"2 {UNKNOWN}", {}),
        (HUGETLB, -201326592, f"2 {UNKNOWN}", {"format": "elf"}),
        (HUGETLB, -201326592, f"2 {UNKNOWN}", {"on_doubt": "fail", "sha256": True}),
        ("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-1", -268435456, "no free page is found", {}),
        ("LENGTH(zone.free_area)=9", 11, "2 free blocks are larger than it says that blocks can be", {}),
    ],
)
def test_types_correct_what_only_the_whole_classification_shows(
    tmp_path: Path, wrong: str, right: int, doubt: str, options: dict[str, Any]
) -> None:
    good = vmfilter.filter_dump(seen_as_a_whole().write(tmp_path / "vmcore"), tmp_path / "good", **options)
    result = vmfilter.filter_dump(seen_as_a_whole(wrong).write(tmp_path / "vmcore"), tmp_path / "dump", **options)
    assert result.classes == good.classes
    assert (result.classes[PageClass.FREE], result.classes[PageClass.USER]) == (16 + 1024, 1024)
    (said,) = result.warnings
    assert f"{doubt}{CORRECTED.format(wrong, right)}" in said
    if "format" not in options:
        assert Kdump(tmp_path / "dump").kept == Kdump(tmp_path / "good").kept


def test_what_a_stream_has_sent_is_not_taken_back(tmp_path: Path) -> None:
    vmcore = seen_as_a_whole(HUGETLB).write(tmp_path / "vmcore")
    result = vmfilter.filter_dump(vmcore, tmp_path / "dump", flatten=True)
    assert result.classes[PageClass.USER] == 0
    (said,) = result.warnings
    assert said.endswith(f"{UNKNOWN}; user pages may be kept needlessly")


def test_a_doubt_that_types_settle_is_no_reason_to_fail(tmp_path: Path) -> None:
    vmcore = doubtful(PRIVATE).write(tmp_path / "vmcore")
    assert PageClass.FREE in vmfilter.filter_dump(vmcore, tmp_path / "dump", on_doubt="fail").excluded_classes


@pytest.mark.parametrize(
    ("btf", "more"), [(False, []), (True, ["NUMBER(PG_slab)=5"])], ids=["no types", "what they do not have"]
)
def test_what_types_do_not_settle_is_kept(tmp_path: Path, btf: bool, more: list[str]) -> None:
    s = doubtful(PRIVATE, btf=btf)
    s.extra += more
    result = vmfilter.filter_dump(s.write(tmp_path / "vmcore"), tmp_path / "dump")
    assert PageClass.FREE not in result.excluded_classes
    assert any(SAME_PLACE in said for said in result.warnings)
    assert not any("replace" in said for said in result.warnings)


@pytest.mark.parametrize(
    ("options", "said"), [({"on_doubt": "trust"}, "are excluded all the same"), ({"level": 17}, "")]
)
def test_types_are_not_read_if_nobody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    monkeypatch.delattr("vmfilter.kernel.types.mend.corrected")
    result = vmfilter.filter_dump(doubtful(TWINS[0]).write(tmp_path / "vmcore"), tmp_path / "dump", **options)
    assert all(said in line for line in result.warnings)
    assert bool(result.warnings) == bool(said)


@pytest.mark.parametrize(
    ("wrong", "right", "said"),
    [
        ("SIZE(page)=5000", 64, "VMCOREINFO has SIZE(page)=5000, which is impossible"),
        ("OFFSET(page.mapping)=25", 24, "VMCOREINFO puts mapping at 25 of struct page, which is not aligned"),
        ("SIZE(mem_section)=5", 16, "VMCOREINFO puts section_mem_map at 0 of a struct mem_section of 5 bytes"),
        ("OFFSET(page.private)=x", 40, "VMCOREINFO has OFFSET(page.private)='x', which is not a 64-bit number"),
    ],
)
def test_types_correct_what_cannot_be(tmp_path: Path, wrong: str, right: int, said: str) -> None:
    result = vmfilter.filter_dump(doubtful(wrong).write(tmp_path / "vmcore"), tmp_path / "dump")
    assert (result.classes[PageClass.FREE], result.classes[PageClass.CACHE]) == (16, 1)
    assert f"{said}; the kernel's own types (BTF) replace {wrong} by {right}" in result.warnings[0]


def test_all_that_classify_take_what_types_correct(tmp_path: Path, run: Run) -> None:
    vmcore = doubtful(PRIVATE).write(tmp_path / "vmcore")
    for command in "mem-usage", "stats", "estimate":
        done = run(command, vmcore)
        assert done.status == 0
        assert done.err.count("replace OFFSET(page.private)=48 by 40, and no witness contradicts that") == 1


def test_without_types_the_reason_stays(tmp_path: Path) -> None:
    s = described(btf=False)
    s.left = KALLSYMS
    with pytest.raises(KernelError, match="lacks the symbol of the kernel's page tables"):
        vmfilter.filter_dump(s.write(tmp_path / "vmcore"), tmp_path / "dump")


def test_info_says_that_the_image_was_read_and_the_new_dump_where_its_symbols_are(run: Run, tmp_path: Path) -> None:
    s = described()
    s.left = LEFT["nothing"]
    vmcore = s.write(tmp_path / "vmcore")
    texts = json.loads(run("info", "--json", vmcore).out)["vmcoreinfo"]
    assert [text["place"] for text in texts if text["used"]] == ["the kernel's image"]
    vmfilter.filter_dump(vmcore, tmp_path / "dump")
    with open_dump(tmp_path / "dump") as dump:
        info = vmcoreinfo_of(dump)
    assert info
    assert all(info.symbol(f"kallsyms_{name}") for name in ("names", "token_table", "token_index"))
