"""Witnesses notice a VMCOREINFO that is wrong, what is in doubt is kept, and good vmcores raise no doubt."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command import Run
from crashbuilder import crash
from files import TESTDATA
from kernelbuilder import Synthetic
from note import Note, copy_of
from scenes import FREE, KERNEL
from wrongfields import doubts, noticed

import vmfilter
from vmfilter import native
from vmfilter.arch import x86_64
from vmfilter.errors import KernelError, UsageError
from vmfilter.formats.vmcoreinfo import Vmcoreinfo
from vmfilter.frames.classes import PageClass
from vmfilter.kernel.kernel import Kernel
from vmfilter.kernel.search import understand
from vmfilter.kernel.struct_page import NO_TYPE, struct_page
from vmfilter.kernel.zones import Start, Zones, read_zones
from vmfilter.pages.classify import Classifier
from vmfilter.pages.doubts import Doubt, Witnesses, counted_pages, used_pages
from vmfilter.reader import open_dump

VMCORES = ["x86_64-5.10", "x86_64-7.2", "arm64-6.12", "loongarch64-7.2", "ppc64le-7.2", "riscv64-7.2-sv48"]
WITH_ZONES = ["x86_64-7.2", "arm64-6.12", "ppc64le-6.12"]


@pytest.fixture
def note(real: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Note]:
    def get(name: str) -> Note:
        return copy_of(real(name), tmp_path / "vmcore")

    return get


@pytest.mark.parametrize("name", VMCORES)
def test_no_wrong_field_loses_a_page_of_the_kernel_or_keeps_many_others_in_silence(
    real: Callable[[str], Path], note: Callable[[str], Note], tmp_path: Path, name: str
) -> None:
    flags = real(name).with_name(f"{name}.kpageflags")
    assert noticed(note(name), flags, tmp_path / "dump").noticed > 15


@pytest.mark.parametrize("path", sorted(TESTDATA.glob("*.vmcore.zst")), ids=lambda path: path.name.split(".vmcore")[0])
def test_a_good_vmcore_raises_no_doubt(real: Callable[[str], Path], path: Path) -> None:
    try:
        assert doubts(real(path.name.removesuffix(".vmcore.zst"))) == []
    except KernelError:
        assert "reserved" in path.name  # a vmcore without struct pages


@pytest.mark.parametrize("name", WITH_ZONES)
def test_the_report_compares_free_pages_with_the_kernels_own_count(
    real: Callable[[str], Path], run: Run, tmp_path: Path, name: str
) -> None:
    result = vmfilter.filter_dump(real(name), tmp_path / "dump")
    assert result.free
    assert result.free.found == result.free.counted > 5000
    n = f"{result.free.found:,}"
    assert (
        f"checked against the kernel's own counts: free {n} of {n}\n" in run("filter", "--dry-run", real(name), "x").out
    )


def test_the_lists_lead_to_the_same_zones_as_the_symbol(real: Callable[[str], Path]) -> None:
    with open_dump(real("x86_64-7.2")) as dump:
        page_size, info, kernel, _, _ = understand(dump)
        assert info
        assert kernel
        classifier = Classifier(dump, page_size, kernel)
        by_symbol = read_zones(kernel, Start([], (0, 0), 0))
        kernel.info = Vmcoreinfo(info.text.replace("SYMBOL(node_data)", "SYMBOL(none)"))
        witnesses = Witnesses(kernel, classifier)
        by_lists = read_zones(kernel, witnesses.start)
        assert read_zones(kernel, Start([], (0, 0), 0)) is None
        node = kernel.memory.read_word(int(re.search(r"SYMBOL\(node_data\)=(.+)", info.text)[1], 16))  # type: ignore[index]
        kernel.info = Vmcoreinfo(re.sub(r"SYMBOL\(node_data\)=.+", f"SYMBOL(contig_page_data)={node:x}", info.text))
        by_the_only_node = read_zones(kernel, Start([], (0, 0), 0))
        kernel.info = Vmcoreinfo(info.text.replace("LENGTH(zone.free_area)=11", "LENGTH(zone.free_area)=63"))
        assert read_zones(kernel, Start([], (0, 0), 0)) is None, "lists beyond the end of a zone"
    assert by_symbol == by_lists == by_the_only_node
    assert by_lists
    assert by_lists.in_use[1] == 11553  # of 11590 pages of cache and processes; CPUs have not added all


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("5.10", "NUMBER(PG_slab)=40", "OFFSET(page.flags) or NUMBER(PG_private)"),  # above all flags
        ("7.2", "NUMBER(PG_hwpoison)=40", "OFFSET(page.flags) or NUMBER(PG_private)"),
        (
            "7.2",
            "NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)=-268435456",
            "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE) or NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)",
        ),
        (
            "7.2",
            "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-1",
            "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE), OFFSET(page._refcount) or OFFSET(page.lru)",
        ),
        ("7.2", "OFFSET(page.private)=56", "OFFSET(page.private)"),  # the order of free blocks
        ("6.6", "NUMBER(PG_hugetlb)=9", "NUMBER(PG_hugetlb) or the destructor"),
        ("7.2", "OFFSET(page.compound_info)=24", "OFFSET(page.mapping) or OFFSET(page.compound_head)"),
        ("7.2", "OFFSET(page.compound_info)=0", "NUMBER(PG_lru)"),  # a third of the anonymous pages, in many places
    ],
)
def test_a_witness_names_the_field_that_is_wrong(note: Callable[[str], Note], name: str, wrong: str, said: str) -> None:
    key, _, value = wrong.partition("=")
    assert said in [doubt.field for doubt in doubts(note(f"x86_64-{name}").write({key: int(value)}))]


NO_LISTS = native.Lists(**dict.fromkeys(native.Lists._fields, 0) | {"free_blocks": [4000]})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, []),
        ({"refused": 571}, []),  # one in eight
        ({"refused": 572}, ["572 free blocks have an impossible order or link"]),
        ({"too_large": 1}, []),
        ({"too_large": 2}, ["2 free blocks are larger than it says that blocks can be"]),
        ({"unknown_huge": 1}, []),
        ({"unknown_huge": 2}, ["2 huge pages have an unknown page type, and none is hugetlb"]),
        ({"unknown_huge": 2, "hugetlb": 1}, []),
        ({"unused": 16_000}, []),
        ({"unused": 16_001}, ["16001 unused pages are in no free block"]),
        ({"free_blocks": [0]}, ["no free page is found"]),
    ],
)
def test_pages_in_no_list_or_an_impossible_one_are_a_doubt(
    real: Callable[[str], Path], found: dict[str, Any], said: list[str]
) -> None:
    with open_dump(real("x86_64-6.12-small")) as dump:  # without zones
        page_size, _, kernel, _, _ = understand(dump)
        assert kernel
        witnesses = Witnesses(kernel, Classifier(dump, page_size, kernel))
    classifier = SimpleNamespace(lists=NO_LISTS._replace(**found))
    counted, doubts_of_lists = witnesses.free_pages(classifier, 1 << 15)  # type: ignore[arg-type]
    assert (counted, [doubt.evidence for doubt in doubts_of_lists]) == (None, said)


def test_huge_pages_in_a_list_are_a_doubt_where_a_flag_or_number_marks_hugetlb(real: Callable[[str], Path]) -> None:
    with open_dump(real("x86_64-5.10")) as dump:
        page_size, _, kernel, _, _ = understand(dump)
        assert kernel
        classifier = Classifier(dump, page_size, kernel)
        for _ in classifier.windows():
            pass
        witnesses, lists = Witnesses(kernel, classifier), classifier.lists
    assert not witnesses.free_pages(SimpleNamespace(lists=lists), 1 << 15)[1]  # type: ignore[arg-type]
    wrong = lists._replace(hugetlb=0, unknown_huge=2)
    (doubt,) = witnesses.free_pages(SimpleNamespace(lists=wrong), 1 << 15)[1]  # type: ignore[arg-type]
    assert doubt.evidence == "2 huge pages are on no LRU list, and none is hugetlb"
    assert doubt.field == "NUMBER(PG_hugetlb) or the destructor"


def test_nothing_is_excluded_by_struct_pages_of_another_size(note: Callable[[str], Note], tmp_path: Path) -> None:
    result = vmfilter.filter_dump(note("arm64-6.12").write({"SIZE(page)": 56}), tmp_path / "dump")
    assert "OFFSET(page.flags) or SIZE(page) may be wrong: " in "".join(result.warnings)
    assert result.excluded_classes == {PageClass.PMEM_USERDATA, PageClass.EXCLUDED}


def test_mem_usage_and_stats_count_what_filtering_keeps(note: Callable[[str], Note], tmp_path: Path, run: Run) -> None:
    vmcore = note("x86_64-7.2").write(WRONG)
    s = vmfilter.filter_dump(vmcore, tmp_path / "dump")
    for command, kept in (("stats", "kept"), ("mem-usage", "kept_at_most")):
        done = run(command, "--json", vmcore)
        data = json.loads(done.out)
        assert data["levels"]["31"][kept] == s.kept + s.zero * (command == "mem-usage")
        assert "OFFSET(page.mapping) may be wrong" in done.err
        assert "OFFSET(page.mapping) may be wrong" in "".join(data["warnings"])


def test_stats_says_that_free_pages_are_kept_needlessly(note: Callable[[str], Note], run: Run) -> None:
    vmcore = note("x86_64-7.2").write({"LENGTH(zone.free_area)": 9})
    assert "LENGTH(zone.free_area) may be wrong: " in run("stats", vmcore).err


# What to do with a doubt

WRONG = {"OFFSET(page.mapping)": 32}


def test_what_is_in_doubt_is_kept(note: Callable[[str], Note], tmp_path: Path) -> None:
    wrong = note("x86_64-7.2")
    result = vmfilter.filter_dump(wrong.write(WRONG), tmp_path / "dump")
    assert result.excluded_classes.isdisjoint({PageClass.USER, PageClass.CACHE, PageClass.CACHE_PRIVATE})
    assert PageClass.FREE in result.excluded_classes
    assert "OFFSET(page.mapping) may be wrong" in "".join(result.warnings)
    assert all(warning.endswith("; all cache and user pages are kept") for warning in result.warnings)
    with open_dump(tmp_path / "dump") as dump:
        assert dump.header.level == 1 | 16  # the level of what is excluded, so that it can be filtered again


def test_a_doubt_ends_the_run_before_it_writes_if_asked(note: Callable[[str], Note], tmp_path: Path, run: Run) -> None:
    vmcore = note("x86_64-7.2").write(WRONG)
    done = run("filter", "-q", "--on-doubt", "fail", vmcore, tmp_path / "dump")
    assert done.status == 5
    assert "OFFSET(page.mapping) or NUMBER(PG_lru) may be wrong: " in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "dump").exists()


def test_a_wrong_count_of_free_pages_ends_the_run_as_well(note: Callable[[str], Note], tmp_path: Path) -> None:
    vmcore = note("x86_64-7.2").write({"LENGTH(zone.free_area)": 9})
    with pytest.raises(
        KernelError,
        match=r"free blocks are larger than it says that blocks can be; "
        r"on_doubt='keep' writes a dump that keeps what is in doubt$",
    ):
        vmfilter.filter_dump(vmcore, tmp_path / "dump", on_doubt="fail")
    assert [p.name for p in tmp_path.iterdir()] == ["vmcore"]


def test_vmcoreinfo_is_trusted_if_asked(note: Callable[[str], Note], tmp_path: Path) -> None:
    result = vmfilter.filter_dump(note("x86_64-7.2").write(WRONG), tmp_path / "dump", on_doubt="trust")
    assert PageClass.USER in result.excluded_classes
    assert "pages are excluded all the same" in "".join(result.warnings)


@pytest.mark.parametrize(("flatten", "said"), [(False, "all free pages are kept"), (True, "excluded all the same")])
def test_more_free_pages_than_the_kernel_counts_are_kept(
    real: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flatten: bool, said: str
) -> None:
    """All of them are classified before that is known. What a stream has sent by then cannot be taken back."""
    monkeypatch.setattr(
        "vmfilter.pages.doubts.read_zones", lambda *known: read_zones(*known)._replace(counted=9, free=9)
    )
    result = vmfilter.filter_dump(real("x86_64-7.2"), tmp_path / "dump", flatten=flatten)
    assert (PageClass.FREE in result.excluded_classes) == flatten
    (warning,) = result.warnings
    assert f"free pages are found, and the kernel counts 9; {said}" in warning.replace("free pages are ex", "ex")
    if not flatten:
        with open_dump(tmp_path / "dump") as dump:
            assert dump.header.level == 31 - 16


def test_a_doubt_about_what_the_level_keeps_is_not_told(note: Callable[[str], Note], tmp_path: Path) -> None:
    assert not vmfilter.filter_dump(note("x86_64-7.2").write(WRONG), tmp_path / "dump", level=17).warnings


def test_other_words_than_keep_fail_and_trust_are_refused(real: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="on_doubt 'hope' is none of keep, fail, trust"):
        vmfilter.filter_dump(real("x86_64-7.2"), tmp_path / "dump", on_doubt="hope")


# What proves itself, page by page

INFO = """\
OSRELEASE=6.18.0
SIZE(page)=64
OFFSET(page.flags)=0
OFFSET(page.lru)=8
OFFSET(page.compound_head)=8
OFFSET(page.mapping)=24
OFFSET(page.private)=40
OFFSET(page._mapcount)=48
OFFSET(page._refcount)=52
LENGTH(zone.free_area)=11
NUMBER(PG_lru)=5
NUMBER(PG_head_mask)=64
NUMBER(PG_private)=14
NUMBER(PG_swapcache)=10
NUMBER(PG_swapbacked)=17
NUMBER(PG_hwpoison)=21
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-268435456
NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)=-251658240
NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)=-201326592
NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)=-184549376
NUMBER(PAGE_UNACCEPTED_MAPCOUNT_VALUE)=-150994944
"""
LAYOUT = struct_page(Vmcoreinfo(INFO), x86_64.ARCH).layout
AREA = native.Areas((1 << 48) - 1, [(0x888000000000, 0x888100000000)])
IN_A_LIST, POISON = 0xFFFF888000123450, 0xDEAD000000000100
HEAD, RESERVED, NOTHING = 1 << 6, 1 << 13, 0xFFFFFFFF
BUDDY, OFFLINE, HUGETLB, KMALLOC, UNACCEPTED = (top << 24 for top in (0xF0, 0xF1, 0xF4, 0xF8, 0xF7))


def page(kind: int, link: int = IN_A_LIST, private: int = 0, flags: int = 0, mapping: int = 0, users: int = 0) -> bytes:
    return struct.pack("<6Q2I8x", flags, link, link, mapping, 0, private, kind, users)


def tail(flags: int = 0) -> bytes:
    return struct.pack("<6QI12x", flags, IN_A_LIST | 1, 0, 0, 0, 0, NOTHING)


def classes_of(*pages: bytes) -> list[int]:
    classes = bytearray([KERNEL]) * len(pages)
    assert native.Classifier(LAYOUT, AREA).classify(b"".join(pages), 0, classes)
    return [c & 15 for c in classes]


@pytest.mark.parametrize("kind", [BUDDY, UNACCEPTED])
def test_a_free_block_is_in_a_list(kind: int) -> None:
    assert classes_of(page(kind)) == [FREE]
    assert classes_of(page(kind, link=POISON)) == [KERNEL]


def test_a_hugetlb_page_is_in_a_list() -> None:
    pair = page(HUGETLB, flags=HEAD), tail(flags=1)
    assert classes_of(*pair) == [PageClass.USER] * 2
    assert classes_of(page(HUGETLB, POISON, flags=HEAD), pair[1]) == [KERNEL] * 2


@pytest.mark.parametrize(("link", "wanted"), [(IN_A_LIST, PageClass.USER), (POISON, KERNEL)])
def test_a_hugetlb_page_by_its_destructor_is_in_a_list_too(link: int, wanted: int) -> None:
    by_destructor = {"order": (17, 1), "destructor": (16, 1), "destructor_value": 2, "destructor_mask": 0xFF}
    first_tail = struct.pack("<3Q24xI12x", 0, IN_A_LIST | 1, 2 | 1 << 8, NOTHING)
    classes = bytearray([KERNEL]) * 2
    layout = LAYOUT._replace(hugetlb=NO_TYPE, **by_destructor)
    native.Classifier(layout, AREA).classify(page(NOTHING, link, flags=HEAD) + first_tail, 0, classes)
    assert [c & 15 for c in classes] == [wanted] * 2


@pytest.mark.parametrize(
    ("marked", "link", "flags", "found"),
    [
        (1 << 8, IN_A_LIST, HEAD, (1, 0)),  # as hugetlb's head is on a kernel of 6.6 to 6.8
        (0, IN_A_LIST, HEAD, (0, 1)),
        (0, POISON, HEAD, (0, 0)),  # the kernel's own: in no list
        (0, IN_A_LIST, HEAD | 1 << 5, (0, 0)),  # page cache
    ],
)
def test_a_huge_page_in_a_list_is_hugetlb_or_on_lru(marked: int, link: int, flags: int, found: tuple[int, int]) -> None:
    by_flag = {"order": (0, 1), "destructor": (0, 8), "destructor_value": 1 << 8, "destructor_mask": 1 << 8}
    classifier = native.Classifier(LAYOUT._replace(hugetlb=NO_TYPE, **by_flag), AREA)
    classifier.classify(page(NOTHING, link, flags=flags) + tail(flags=9 | marked), 0, bytearray([KERNEL]) * 2)
    assert (classifier.lists.hugetlb, classifier.lists.unknown_huge) == found


def test_a_compound_page_is_not_offline() -> None:
    assert classes_of(page(OFFLINE)) == [PageClass.OFFLINE]
    assert classes_of(page(OFFLINE, flags=HEAD), tail()) == [KERNEL] * 2


@pytest.mark.parametrize("inside", [page(NOTHING, flags=RESERVED), page(NOTHING, users=1)])
def test_reserved_and_used_pages_in_a_free_block_stay_the_kernels(inside: bytes) -> None:
    pages = [page(BUDDY, private=4), *[page(NOTHING)] * 15]
    pages[5] = pages[12] = inside
    assert classes_of(*pages) == [KERNEL if i in (5, 12) else FREE for i in range(16)]


def test_free_blocks_are_counted_by_order_and_refused_ones_apart() -> None:
    classifier = native.Classifier(LAYOUT, AREA)
    pages = [page(BUDDY, private=1), page(NOTHING), page(BUDDY), page(BUDDY, private=3), *[page(BUDDY, POISON)] * 2]
    classifier.classify(b"".join(pages), 0, bytearray([KERNEL]) * len(pages))
    assert classifier.lists.free_blocks[:3] == [1, 1, 0]
    assert classifier.lists.refused == 3


@pytest.mark.parametrize(
    ("one", "unused"),
    [(page(NOTHING), 1), (page(0), 0), (page(NOTHING, users=1), 0), (tail(), 0)],
    ids=["unused", "mapped", "used", "tail"],
)
def test_pages_that_nobody_uses_are_counted(one: bytes, unused: int) -> None:
    classifier = native.Classifier(LAYOUT, AREA)
    assert classifier.classify(one, 0, bytearray([KERNEL]))
    assert classifier.lists.unused == unused


def test_what_two_classifiers_counted_is_added() -> None:
    lone, tails = page(NOTHING), [tail(flags=1), tail(flags=9), *[tail()] * 510]
    free = [page(BUDDY, private=12), lone, page(BUDDY, private=1), page(NOTHING, users=1), page(BUDDY, POISON), lone]
    used = [page(NOTHING, flags=HEAD | 1 << 5, mapping=IN_A_LIST | anonymous) for anonymous in (0, 1)]
    pairs = [one for head in (*used, page(HUGETLB, flags=HEAD)) for one in (head, tails[0])]
    huge = [page(0xFA << 24, flags=HEAD), *tails[1:]]
    alone, one, other = (native.Classifier(LAYOUT, AREA) for _ in range(3))
    for pfn, pages, by in (0, free + pairs, one), (1 << 12, huge + pairs, other):
        for classifier in alone, by:
            classifier.classify(b"".join(pages), pfn, bytearray([KERNEL]) * len(pages))
    one.resume(other)
    assert one.lists == alone.lists
    assert one.lists.hugetlb_blocks[:2] == one.lists.user_blocks[:2] == one.lists.cache_blocks[:2] == [0, 2]
    assert all(any(n) if isinstance(n, list) else n for n in one.lists)
    assert not any(any(n) if isinstance(n, list) else n for n in other.lists)


@pytest.mark.parametrize(("kind", "unknown"), [(0xFA << 24, 1), (KMALLOC, 0), (BUDDY, 0)])
def test_huge_pages_of_unknown_type_are_counted(kind: int, unknown: int) -> None:
    classifier = native.Classifier(LAYOUT, AREA)
    pages = [page(kind, flags=HEAD), tail(flags=9), *[tail()] * 510]
    classifier.classify(b"".join(pages), 0, bytearray([KERNEL]) * len(pages))
    assert classifier.lists.unknown_huge == unknown


RULES = "zone", "cache", "anon", "lru", "hugetlb", "poison", "compound", "slab"
LRU, SLAB, HWPOISON, ZONE = 1 << 5, 1 << 9, 1 << 21, 1 << 63
CACHE, USER = PageClass.CACHE, PageClass.USER


@pytest.mark.parametrize(
    ("rule", "pages", "classes", "verdict"),
    [
        ("zone", [page(NOTHING), page(NOTHING, flags=ZONE), page(NOTHING)], [KERNEL] * 3, (3, 1)),
        ("zone", [page(NOTHING, flags=ZONE), page(NOTHING)], [PageClass.HOLE, KERNEL], (1, 0)),
        ("cache", [page(NOTHING, mapping=IN_A_LIST), page(NOTHING, mapping=7)], [CACHE] * 2, (2, 1)),
        ("anon", [page(NOTHING, mapping=IN_A_LIST | 1), page(NOTHING, mapping=7)], [USER] * 2, (2, 1)),
        ("lru", [page(NOTHING, flags=LRU), page(NOTHING)], [USER] * 2, (2, 1)),
        ("hugetlb", [page(HUGETLB, flags=HEAD), tail(flags=1), page(HUGETLB)], [USER] * 3, (2, 1)),
        (
            "poison",
            [page(NOTHING, flags=HWPOISON), page(KMALLOC, flags=HWPOISON)],
            [PageClass.HWPOISON] * 2,
            (2, 1),
        ),
        (
            "compound",
            [page(NOTHING, flags=HEAD), tail(), page(NOTHING, flags=HEAD), page(NOTHING)],
            [KERNEL] * 4,
            (2, 1),
        ),
        (
            "slab",
            [page(NOTHING, flags=SLAB), page(NOTHING, flags=SLAB | LRU), page(NOTHING, flags=LRU)],
            [KERNEL] * 3,
            (2, 1),
        ),
    ],
)
def test_each_rule(rule: str, pages: list[bytes], classes: list[int], verdict: tuple[int, int]) -> None:
    classifier = native.Classifier(LAYOUT._replace(slab=SLAB), AREA)
    for calls in 1, 2:
        classifier.check(b"".join(pages), bytes(classes))
        found = classifier.verdict
        assert len(found) == native.RULES == len(RULES)
        tested, broken = (calls * count for count in verdict)
        assert found[RULES.index(rule)] == (tested, broken, calls if broken else 0)


@pytest.mark.parametrize(
    ("found", "counts", "cpus", "loses"),
    [
        (13542, {"file": 7000, "anonymous": 6450}, 2, None),
        (0, {"file": 7000, "anonymous": 6450}, 2, False),
        (30000, {"file": 7000, "anonymous": 6450}, 2, True),
        (9000, {"file": 7000, "anonymous": 6450, "swap cache": 4400}, 2, None),  # those are counted twice
        (30000, {"file": 7000, "anonymous": 6450}, 256, None),  # the CPUs have not added theirs
        (30000, {"file": 7000}, 2, None),
        (900, {"file": 0, "anonymous": 0}, 2, None),
    ],
)
def test_pages_in_use_are_as_many_as_the_kernel_counts(
    found: int, counts: dict[str, int], cpus: int, loses: bool | None
) -> None:
    doubts = list(used_pages(found, counts, cpus))
    assert [doubt.loses for doubt in doubts] == ([] if loses is None else [loses])


@pytest.mark.parametrize(
    ("in_use", "found", "cpus", "suspect"),
    [
        ((11553, 9), 11590, 2, False),
        ((38945, 11553), 11590, 2, False),  # a counter of free pages is before those of LRU lists
        ((11553, 11553), 9900, 2, True),
        ((11553, 11553), 9900, 4, False),  # the CPUs have not added theirs
        ((900, 900), 0, 2, False),
    ],
)
def test_pages_in_use_that_no_lru_list_has_are_suspect(
    real: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    in_use: tuple[int, int],
    found: int,
    cpus: int,
    suspect: bool,
) -> None:
    monkeypatch.setattr("vmfilter.pages.doubts.read_zones", lambda *known: Zones(9, 9, [], in_use))
    with open_dump(real("x86_64-7.2")) as dump:
        page_size, _, kernel, _, _ = understand(dump)
        assert kernel
        assert Witnesses(kernel, Classifier(dump, page_size, kernel)).suspect(found, cpus) == suspect


def test_types_lead_to_the_counters_of_pages_in_use(tmp_path: Path) -> None:
    c = crash()
    task, node = c.task(0, "swapper/0"), c.room()
    c.types.enum("node_stat_item", {"NR_FILE_PAGES": 0, "NR_ANON_MAPPED": 1})
    c.word(node, 7000)
    c.word(node + 8, 6450)
    c.write([task], vm_node_stat=node)
    with c.s.opened(tmp_path) as (_, kernel):
        assert counted_pages(kernel, 13542, 2) == []
        (doubt,) = counted_pages(kernel, 30000, 2)
    assert doubt.evidence == "30000 pages of page cache and anonymous memory are found, and the kernel counts 13450"


def test_without_types_nothing_is_said_of_pages_in_use(tmp_path: Path) -> None:
    with Synthetic().opened(tmp_path) as (_, kernel):
        assert counted_pages(kernel, 30000, 2) == []


@pytest.mark.parametrize(("in_use", "said"), [((11553, 11553), []), ((4000, 300), [11590])])
def test_filter_asks_for_the_counters_only_if_lru_lists_have_other_numbers_of_pages(
    real: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_use: tuple[int, int],
    said: list[int],
) -> None:
    asked: list[int] = []

    def counted(_: Kernel, found: int, cpus: int) -> list[Doubt]:
        asked.append(found)
        return [*used_pages(found, {"file": 2000, "anonymous": 2000}, cpus)]

    monkeypatch.setattr("vmfilter.run.counted_pages", counted)
    monkeypatch.setattr("vmfilter.pages.doubts.read_zones", lambda *known: read_zones(*known)._replace(in_use=in_use))
    result = vmfilter.filter_dump(real("x86_64-7.2"), tmp_path / "dump")
    assert asked == said
    assert (PageClass.USER in result.excluded_classes) == (not said)
    evidence = "11590 pages of page cache and anonymous memory are found, and the kernel counts 4000"
    assert [warning.partition("wrong: ")[2] for warning in result.warnings] == [
        f"{evidence}; all cache and user pages are kept" for _ in said
    ]
