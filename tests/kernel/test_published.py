"""VMCOREINFO of kernels that are not at hand gives the layout, memory model and log that their sources say.

testdata/vmcoreinfo contains the texts. What is expected of each is below, written from the kernel's sources
(include/linux/mm_types.h, page-flags.h and mmzone.h, kernel/printk/) and never by running vmfilter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from files import TESTDATA

from vmfilter.arch import Arch, arch_of_uts
from vmfilter.errors import KernelError
from vmfilter.formats.elf import Load
from vmfilter.formats.vmcoreinfo import Vmcoreinfo
from vmfilter.frames.classes import PageClass
from vmfilter.kernel.kernel import Kernel
from vmfilter.kernel.log import KernelLog
from vmfilter.kernel.struct_page import NO_TYPE, NOTHING, struct_page
from vmfilter.native import Classifier

FOLDER = TESTDATA / "vmcoreinfo"
DOCUMENT = TESTDATA.parent / "docs" / "kernels.md"


class Form(NamedTuple):
    """struct page and page flags of a range of kernels.

    Attributes:
        bits: page flags of x86, by name without PG_; "compound" instead of "head" if PG_compound marks heads and tails.
            Only x86 and ia64 have PG_uncached, before PG_hwpoison.
        mapping, mapcount, private: members, in bytes.
        tail: member whose bit 0 marks a tail; None: a flag does.
        order, order_width, dtor: in the first tail page; width None: a long.
        hugetlb: value of the destructor of hugetlb pages; a string: the symbol with that value, or the flag in place of
            a destructor; None: there is none, or it is not exported.
        types: _mapcount of typed pages, by names of PageLayout.

    """

    bits: Mapping[str, int]
    mapping: int
    mapcount: int
    private: int
    tail: int | None
    order: int
    order_width: int | None
    dtor: int
    hugetlb: int | str | None
    types: Mapping[str, int]


_3_10 = {"lru": 5, "slab": 7, "reserved": 10, "private": 11, "head": 14, "tail": 15, "swapcache": 16, "hwpoison": 23}
_4_2_SPARSE = {"lru": 5, "slab": 7, "reserved": 10, "private": 11, "compound": 14, "swapcache": 15}
_4_2_SPARSE |= {"reclaim": 17, "hwpoison": 22}
_4_4 = {"lru": 5, "slab": 7, "reserved": 10, "private": 11, "head": 14, "swapcache": 15, "hwpoison": 22}
# PG_waiters, v4.10; PG_swapcache means swap cache only with PG_swapbacked since then.
_4_10 = {"lru": 5, "slab": 8, "swapcache": 9, "reserved": 11, "private": 12, "head": 15, "swapbacked": 18}
_4_10 |= {"hwpoison": 22}
# PG_workingset, v4.20; one vendor's 4.16 has it too.
_5_0 = {"lru": 4, "slab": 9, "swapcache": 10, "reserved": 12, "private": 13, "head": 16, "swapbacked": 19}
_5_0 |= {"hwpoison": 23}
_6_6 = {"lru": 5, "head": 6, "hugetlb": 8, "slab": 11, "swapcache": 12, "reserved": 14, "private": 15, "swapbacked": 19}
_6_11 = {"lru": 5, "head": 6, "swapcache": 11, "reserved": 13, "private": 14, "swapbacked": 18}
_VALUES = {"buddy": 0xFFFFFF80}  # -128
_BITS = {"buddy": 0xFFFFFF7F, "table": 0xFFFFFBFF}  # types are bits that are clear, v4.18: 0x80, 0x400
_BITS_5_11 = _BITS | {"table": 0xFFFFFDFF}  # PG_kmemcg is gone: 0x200
_BITS_6_11 = {"buddy": 0xBFFFFFFF, "table": 0xEFFFFFFF, "hugetlb": 0xFBFFFFFF, "slab_type": 0xFDFFFFFF}
_OLD = Form(_3_10, 8, 24, 48, None, 40, None, 32, None, _VALUES)
_LRU = _OLD._replace(hugetlb="free_huge_page")
_NEW = Form(_4_10, 24, 48, 40, 8, 17, 1, 16, 2, _BITS)

FORMS = {
    "3.10": _OLD,
    "3.16": _LRU,
    "4.4": Form(_4_4, 8, 24, 48, 32, 44, 4, 40, 2, _VALUES),
    "4.10": Form(_4_10, 8, 24, 48, 32, 44, 4, 40, 2, _VALUES),
    "4.16-vendor": Form(_5_0, 8, 24, 48, 32, 41, 1, 40, 2, _VALUES),
    "4.18": _NEW,
    "5.0": _NEW._replace(bits=_5_0),
    "5.11": _NEW._replace(bits=_5_0, types=_BITS_5_11),
    "6.6": Form(_6_6, 24, 48, 40, 8, 0, 1, 0, "hugetlb", _BITS_5_11),
    "6.11": Form(_6_11, 24, 48, 40, 8, 0, 1, 0, None, _BITS_6_11),
}
# 32-bit kernels: words and pointers have 4 bytes. Where the head has lru, the first tail has two words, or a word and
# two u16.
_OLD_NARROW = _OLD._replace(mapping=4, mapcount=12, private=28, order=24, dtor=20)
NARROW = {
    "3.10": _OLD_NARROW,
    "3.16": _OLD_NARROW._replace(hugetlb="free_huge_page"),
    "4.2-sparse": _OLD_NARROW._replace(hugetlb="free_huge_page", bits=_4_2_SPARSE),
    "4.4": Form(_4_4, 4, 12, 28, 20, 26, 2, 24, 2, _VALUES),
}


class Expected(NamedTuple):
    """What the sources say of one kernel.

    Attributes:
        form: key of FORMS, or of NARROW on 32-bit machines.
        size: bytes of struct page, as configured.
        memory: "sections" (SPARSEMEM_EXTREME), "static" (SPARSEMEM without), "nodes" (DISCONTIGMEM), "flat"; followed
            by log2 of a section's bytes.
        log: "log" or "printk_log" (records, by the name of their structure), "ring" or "ring+8" (printk_ringbuffer,
            without and with last_finalized_id).
        without: a flag that the configuration leaves out.

    """

    form: str
    size: int
    memory: str
    log: str
    without: str = ""


KERNELS = {
    "aarch64-4.18.0-147.5.1.el8_1": Expected("4.18", 64, "sections 30", "printk_log"),
    "aarch64-4.19.90-24.4.v2101.ky10": Expected("4.18", 64, "sections 30", "printk_log"),
    "aarch64-4.19.90-52.22.v2207.ky10": Expected("4.18", 64, "sections 30", "printk_log"),
    "aarch64-4.9.0-13-arm64": Expected("4.4", 64, "sections 30", "printk_log", "hwpoison"),
    "aarch64-5.10-android12": Expected("5.0", 64, "sections 27", "ring+8", "hwpoison"),
    "aarch64-5.10-android13": Expected("5.0", 64, "sections 27", "ring", "hwpoison"),
    "armv7l-4.9.0-13-armmp-lpae": Expected("4.4", 36, "flat", "printk_log", "hwpoison"),
    "i686-3.11.6-4-desktop": Expected("3.10", 36, "nodes", "printk_log", "hwpoison"),
    "i686-3.13.0-24-generic": Expected("3.10", 32, "flat", "printk_log"),
    "i686-3.16.0-6-686-pae": Expected("3.16", 32, "flat", "printk_log"),
    "i686-4.2.0-16-generic": Expected("4.2-sparse", 40, "static 29", "printk_log"),
    "ppc64le-4.19.0-17-powerpc64le": Expected("4.18", 64, "sections 24", "printk_log"),
    "ppc64le-4.9.0-13-powerpc64le": Expected("4.4", 64, "sections 24", "printk_log"),
    "ppc64le-5.10.0-8-powerpc64le": Expected("5.0", 64, "sections 24", "ring"),
    "s390x-4.19.0-17-s390x": Expected("4.18", 64, "sections 28", "printk_log", "hwpoison"),
    "s390x-4.9.0-13-s390x": Expected("4.4", 64, "sections 28", "printk_log", "hwpoison"),
    "s390x-5.10.0-8-s390x": Expected("5.0", 64, "sections 28", "ring", "hwpoison"),
    "x86_64-3.10.0-1062.9.1.el7": Expected("3.10", 64, "sections 27", "log"),
    "x86_64-3.10.0-1127.19.1.el7": Expected("3.10", 64, "sections 27", "log"),
    "x86_64-3.10.0-1160.24.1.el7": Expected("3.10", 64, "sections 27", "log"),
    "x86_64-3.10.0-229.el7": Expected("3.10", 64, "sections 27", "log"),
    "x86_64-3.10.0-327.el7": Expected("3.10", 64, "sections 27", "log"),
    "x86_64-3.10.0-514.el7": Expected("3.10", 64, "sections 27", "log"),
    "x86_64-3.10.0-693.el7": Expected("3.10", 64, "sections 27", "log"),
    "x86_64-3.10.0-862.el7": Expected("3.10", 64, "sections 27", "log"),
    "x86_64-3.10.0-957.5.1.el7": Expected("3.10", 64, "sections 27", "log"),
    "x86_64-3.11.10-301.fc20": Expected("3.10", 64, "sections 27", "printk_log"),
    "x86_64-3.11.6-4-desktop": Expected("3.10", 56, "sections 27", "printk_log"),
    "x86_64-3.16.0-30-generic": Expected("3.16", 64, "sections 27", "printk_log"),
    "x86_64-3.16.0-6-amd64": Expected("3.16", 56, "sections 27", "printk_log"),
    "x86_64-3.19.0-42-generic": Expected("3.16", 64, "sections 27", "printk_log"),
    "x86_64-4.10.0-14-generic": Expected("4.10", 64, "sections 27", "printk_log"),
    "x86_64-4.12.14-94.41-default": Expected("4.10", 64, "sections 27", "printk_log"),
    "x86_64-4.15.0-42-generic": Expected("4.10", 64, "sections 27", "printk_log"),
    "x86_64-4.16.18-197": Expected("4.16-vendor", 64, "sections 27", "printk_log"),
    "x86_64-4.18.0-240.10.1.el8_3": Expected("4.18", 64, "sections 27", "printk_log"),
    "x86_64-4.18.0-25-generic": Expected("4.18", 64, "sections 27", "printk_log"),
    "x86_64-4.18.0-305.12.1.el8_4": Expected("4.18", 64, "sections 27", "printk_log"),
    "x86_64-4.18.0-348.20.1.el8_5": Expected("4.18", 64, "sections 27", "printk_log"),
    "x86_64-4.18.0-372.19.1.el8_6": Expected("4.18", 64, "sections 27", "ring"),
    "x86_64-4.19.90-2107.6.0.0248.35.oe1": Expected("4.18", 64, "sections 27", "printk_log"),
    "x86_64-4.2.0-22-generic": Expected("3.16", 64, "sections 27", "printk_log"),
    "x86_64-4.4.0-21-generic": Expected("4.4", 64, "sections 27", "printk_log"),
    "x86_64-5.0.0-29-generic": Expected("5.0", 64, "sections 27", "printk_log"),
    "x86_64-6.11-mainline": Expected("6.11", 64, "sections 27", "ring+8", "hwpoison"),
    "x86_64-6.2.15-100.fc36": Expected("5.11", 64, "sections 27", "ring+8"),
    "x86_64-6.6-mainline": Expected("6.6", 64, "sections 27", "ring+8", "hwpoison"),
    "x86_64-6.8-mainline": Expected("6.6", 64, "sections 27", "ring+8", "hwpoison"),
}
TOO_OLD = "x86_64-2.6.35.11-83.fc14"
# What a machine adds to a text that lacks addresses: any will do, since the test lays out memory to match.
PLACES = {
    "SYMBOL(swapper_pg_dir)": "c1000000",
    "SYMBOL(mem_section)": "c2000000",
    "SYMBOL(log_buf)": "c3000000",
    "SYMBOL(log_buf_len)": "c3000008",
    "SYMBOL(log_first_idx)": "c3000010",
    "SYMBOL(log_next_idx)": "c3000018",
    "SYMBOL(prb)": "c3000020",
    "LENGTH(node_data)": "8",
    "NUMBER(phys_base)": "0",
    "NUMBER(VA_BITS)": "48",
    "NUMBER(kimage_voffset)": "0",
    "NUMBER(PHYS_OFFSET)": "0",
}

each_kernel = pytest.mark.parametrize("name", KERNELS)


def head(path: Path) -> dict[str, str]:
    """Return the comments before the text: distribution, machine, seen, source."""
    return dict(re.findall(r"^# (\w+): (.+)$", path.read_text(), re.MULTILINE))


class Machine:
    """A kernel of testdata/vmcoreinfo, with memory that the test writes; the rest of memory is zeros."""

    def __init__(self, name: str) -> None:
        path = FOLDER / f"{name}.txt"
        said = head(path)
        self.arch: Arch = arch_of_uts(name, said["machine"])
        self.word, self.order = self.arch.abi.word, self.arch.abi.byteorder
        text = "".join(line for line in path.read_text().splitlines(True) if not line.startswith("#"))
        self.bare = Vmcoreinfo(text)
        expected = KERNELS[name]
        absent = ["SYMBOL(log_" if expected.log.startswith("ring") else "SYMBOL(prb"]
        absent += [] if expected.memory.startswith(("sections", "static")) else ["SYMBOL(mem_section"]
        absent += [] if expected.memory == "nodes" else ["LENGTH(node_data"]
        for key, value in PLACES.items():
            if f"{key}=" not in text and not key.startswith(tuple(absent)):
                text += f"{key}={value}\n"
        self.info = Vmcoreinfo(text)
        self.page = self.info.plain_number("PAGESIZE") or 0
        self.bytes: dict[int, int] = {}
        self.root = self.arch.roots(self.info, [Load(0, 1 << 32, 0)])[0]

    def write(self, at: int, data: bytes) -> None:
        self.bytes.update(enumerate(data, at))

    def put(self, at: int, value: int, size: int = 0) -> None:
        self.write(at, value.to_bytes(size or self.word, self.order))

    def put_symbol(self, name: str, value: int, size: int = 0) -> None:
        symbol = self.info.symbol(name)
        assert symbol is not None
        self.put(symbol, value, size)

    def put_member(self, at: int, member: str, value: int, size: int = 0) -> None:
        offset = self.info.offset(member)
        assert offset is not None
        self.put(at + offset, value, size)

    def read(self, vaddr: int, size: int) -> bytes:
        return bytes(self.bytes.get(at, 0) for at in range(vaddr, vaddr + size))

    def read_int(self, vaddr: int, size: int) -> int:
        return int.from_bytes(self.read(vaddr, size), self.order)

    def read_word(self, vaddr: int) -> int:
        return self.read_int(vaddr, self.word)

    def kernel(self, known: int = 0) -> Kernel:
        """Return the kernel, as if its page tables mapped this memory; known is an address of RAM."""
        kernel = Kernel.__new__(Kernel)
        kernel.__dict__.update(
            info=self.info,
            page_size=self.page,
            memory=self,
            _dump=SimpleNamespace(arch=self.arch, blocks=lambda size: iter([known]), most_memory=1 << 64),
        )
        return kernel


# The texts


def test_every_text_is_expected_and_says_where_it_was_seen() -> None:
    files = {path.stem: head(path) for path in FOLDER.glob("*.txt")}
    assert set(files) == {*KERNELS, TOO_OLD}
    for name, said in files.items():
        assert list(said) == ["distribution", "machine", "seen", "source"], name
        assert name.startswith(f"{said['machine']}-"), name
        assert said["source"].startswith("https://"), name


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_the_texts_are_keys_and_numbers(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    form = r"(OSRELEASE=[\w.+-]+|(BUILD-ID|PAGESIZE|KERNELOFFSET|CRASHTIME|CONFIG_\w+)=\w+|[A-Z]+\([\w.]+\)=-?\w+)"
    assert [line for line in lines if not re.fullmatch(form, line)] == []
    keys = [line.partition("=")[0] for line in lines]
    assert len(keys) == len(set(keys))


# struct page


@each_kernel
def test_struct_page_is_that_of_the_sources(name: str) -> None:
    machine, expected = Machine(name), KERNELS[name]
    word = machine.word
    form = (FORMS if word == 8 else NARROW)[expected.form]
    is_x86 = machine.arch.name in ("i686", "x86_64")
    bits = {flag: 1 << bit - (flag == "hwpoison" and not is_x86) for flag, bit in form.bits.items()}
    bits |= dict.fromkeys(expected.without.split(), 0)
    layout = struct_page(machine.bare, machine.arch).layout
    assert layout.size == expected.size
    assert (layout.flags, layout.mapcount) == ((0, word), (form.mapcount, 4))
    assert (layout.mapping, layout.private_) == ((form.mapping, word), (form.private, word))
    said = {flag: getattr(layout, flag) for flag in ("lru", "slab", "hwpoison", "reserved")}
    assert said == {flag: bits.get(flag, 0) for flag in said}
    assert layout.private_data == bits["private"]
    assert layout.swapcache == bits["swapcache"] | bits.get("swapbacked", 0)
    assert layout.head == bits.get("head", bits.get("compound"))
    if form.tail is not None:
        assert (layout.tail, layout.tail_mask) == ((form.tail, word), 1)
    elif "compound" in bits:  # a tail has both flags
        assert (layout.tail, layout.tail_mask) == ((0, word), bits["compound"] | bits["reclaim"])
    else:
        assert (layout.tail, layout.tail_mask) == ((0, word), bits["tail"])
    width = form.order_width or word
    assert layout.order == (form.order, width)
    if form.hugetlb is None:
        assert layout.destructor == NOTHING
    elif form.hugetlb == "hugetlb":
        flag = bits["hugetlb"]
        said_flag = (layout.destructor, layout.destructor_value, layout.destructor_mask)
        assert said_flag == ((form.dtor, word), flag, flag)
    else:
        value = machine.info.symbol(form.hugetlb) if isinstance(form.hugetlb, str) else form.hugetlb
        assert (layout.destructor, layout.destructor_value) == ((form.dtor, width), value)
    types = {name: getattr(layout, name) for name in ("buddy", "table", "hugetlb", "slab_type", "unaccepted")}
    assert types == {name: (form.types[name], 0xFFFFFFFF) if name in form.types else NO_TYPE for name in types}


@pytest.mark.parametrize("name", [name for name, expected in KERNELS.items() if expected.form == "4.4"])
def test_before_its_stable_update_4_4_has_the_same_layout(name: str) -> None:
    # OFFSET(page.compound_*) and NUMBER(HUGETLB_PAGE_DTOR) came with v4.6, and with 4.4.10 and 4.5.4.
    machine = Machine(name)
    lines = [line for line in machine.bare.text.splitlines() if "compound" not in line and "_DTOR" not in line]
    older = [re.sub(r"^OSRELEASE=.*", "OSRELEASE=4.5.0", line) for line in lines]
    before = struct_page(Vmcoreinfo("\n".join(older)), machine.arch).layout
    form = (FORMS if machine.word == 8 else NARROW)["4.4"]
    assert (before.tail, before.tail_mask) == ((form.tail, machine.word), 1)
    assert before.order == (form.order, form.order_width)
    assert (before.destructor, before.destructor_value) == ((form.dtor, form.order_width), 2)


def test_pg_compound_with_pg_reclaim_marks_tails() -> None:
    machine = Machine("i686-4.2.0-16-generic")
    layout = struct_page(machine.bare, machine.arch).layout
    pages = bytearray(6 * layout.size)

    def put(index: int, flags: tuple[str, ...], mapping: int = 0) -> None:
        at = index * layout.size
        pages[at : at + 4] = sum(1 << _4_2_SPARSE[flag] for flag in flags).to_bytes(4, "little")
        pages[at + 4 : at + 8] = mapping.to_bytes(4, "little")
        pages[at + 12 : at + 16] = b"\xff" * 4  # _mapcount

    put(0, ("lru", "compound"), 0xC0001001)  # anonymous memory
    for tail in (1, 2, 3):
        put(tail, ("compound", "reclaim"))
    pages[layout.size + 24 : layout.size + 28] = (2).to_bytes(4, "little")  # compound_order
    put(4, ("lru", "swapcache"))
    put(5, ("lru", "reclaim"))
    classes = bytearray([PageClass.KERNEL] * 6)
    assert Classifier(layout).classify(pages, 0, classes)
    assert [*classes] == [PageClass.USER] * 4 + [PageClass.CACHE] * 2


def test_without_mapcount_a_kernel_is_too_old() -> None:
    text = (FOLDER / f"{TOO_OLD}.txt").read_text()
    with pytest.raises(KernelError, match=r"^VMCOREINFO lacks OFFSET\(page\._mapcount\)"):
        struct_page(Vmcoreinfo(text), arch_of_uts("", "x86_64"))


# Where the struct pages are

MEMMAP = 0xA0000000
SECTION = 3


def write_sections(machine: Machine, bits: int, *, static: bool) -> None:
    """Write one present section, and after the array of roots a pointer to another, as other data could look."""
    word, size = machine.word, machine.info.size("mem_section")
    array, length = machine.info.symbol("mem_section"), machine.info.length("mem_section")
    assert size
    assert array is not None
    pages = (1 << bits) // machine.page
    mask = (1 << 8 * word) - 1
    encoded = MEMMAP - SECTION * pages * (machine.info.size("page") or 0) & mask | 7
    root = array if static else 0xB0000000
    if not static:
        machine.put(array, root)
    machine.put_member(root + SECTION * size, "mem_section.section_mem_map", encoded)
    if length and not static:
        machine.put(array + length * word, 0xB8000000)
        machine.put_member(0xB8000000, "mem_section.section_mem_map", encoded)


def write_node(machine: Machine, at: int, frames: int) -> None:
    machine.put_member(at, "pglist_data.node_start_pfn", 0)
    machine.put_member(at, "pglist_data.node_spanned_pages", frames)
    machine.put_member(at, "pglist_data.node_mem_map", MEMMAP)


@each_kernel
def test_struct_pages_are_where_the_sources_put_them(name: str) -> None:
    machine, (kind, _, bits) = Machine(name), KERNELS[name].memory.partition(" ")
    size = KERNELS[name].size
    if kind in ("sections", "static"):
        pages = (1 << int(bits)) // machine.page
        write_sections(machine, int(bits), static=kind == "static")
        model = machine.kernel(SECTION << int(bits)).memory_model
        assert model.section_pages == pages
        assert [numbers for numbers, _ in model.runs()] == [range(SECTION, SECTION + 1)]
        first = SECTION * pages
    else:
        at = 0xD0000000
        if kind == "nodes":
            machine.put_symbol("node_data", at)
        else:
            symbol = machine.info.symbol("contig_page_data")
            assert symbol is not None
            at = symbol
        first = 0
        write_node(machine, at, 1000)
        model = machine.kernel().memory_model
        assert list(model.runs()) == []
    assert model.struct_page == size
    assert model.stretch(first + 5, first + 10) == (first + 10, MEMMAP + 5 * size)


# The log


def write_records(machine: Machine, name: str) -> None:
    """Write a record as struct printk_log, or struct log, is in kernel/printk/printk.c."""
    header = 16
    size = header + 8
    buffer = 0xE0000000
    for symbol, value, width in (("log_buf", buffer, 0), ("log_buf_len", 4096, 4), ("log_first_idx", 0, 4)):
        machine.put_symbol(symbol, value, width)
    machine.put_symbol("log_next_idx", size, 4)
    lengths = b"".join(n.to_bytes(2, machine.order) for n in (size, 5, 0))
    level = 6 << 5 if machine.order == "little" else 6
    machine.write(buffer, (7).to_bytes(8, machine.order) + lengths + bytes([3, level]) + b"hello")
    assert machine.info.size(name) == header


def write_ring(machine: Machine, *, last_finalized: bool) -> None:
    """Write a ring of two descriptors, the last of which is used, as in kernel/printk/printk_ringbuffer.h."""
    word, ring, descs, infos, text = 8, 0xE0000000, 0xE0001000, 0xE0002000, 0xE0003000
    machine.put_symbol("prb", ring)
    machine.put(ring, 1, 4)
    ids = 5 + last_finalized
    for i, value in enumerate((descs, infos, 1, 1), 1):
        machine.put(ring + i * word, value)
    machine.put(ring + ids * word, 12, 4)
    machine.put(ring + (ids + 1) * word, text)
    for i, value in enumerate((2 << 62 | 1, 0, 2 * word)):  # finalized
        machine.put(descs + (3 + i) * word, value)
    machine.put(text, 1)
    machine.write(text + word, b"hello")
    level = 6 << 5 if machine.order == "little" else 6
    numbers = (1).to_bytes(8, machine.order) + (7).to_bytes(8, machine.order) + (5).to_bytes(2, machine.order)
    machine.write(infos + 88, numbers + bytes([3, level]))


@each_kernel
def test_the_log_has_the_form_of_the_sources(name: str) -> None:
    machine, form = Machine(name), KERNELS[name].log
    if form.startswith("ring"):
        write_ring(machine, last_finalized=form == "ring+8")
    else:
        write_records(machine, form)
    (record,) = KernelLog(machine.kernel()).records()
    assert (record.text, record.ts_nsec, record.level, record.facility) == (b"hello", 7, 6, 3)


# The document


def rows(text: str) -> Iterator[str]:
    """Yield the rows of the table that docs/kernels.md has for the texts."""
    letters = {url: letter for letter, url in re.findall(r"^- (\w\d): (https://\S+),", text, re.MULTILINE)}

    def order(path: Path) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", path.stem.partition("-")[2])]

    for path in sorted(sorted(FOLDER.glob("*.txt")), key=order):
        said, expected = head(path), KERNELS.get(path.stem)
        source = letters[said["source"].partition(": ")[0]]
        kernel = f"{path.stem.partition('-')[2]} | {said['distribution']} | {said['machine']} | {source}"
        results = f"{expected.size}, {expected.form} | {expected.memory} | {expected.log}" if expected else "- | - | -"
        yield f"| {kernel} | {results} |"


def test_the_document_has_a_row_for_each() -> None:
    text = DOCUMENT.read_text()
    assert f"VMCOREINFO of {len(KERNELS) + 1} of them" in " ".join(text.split())
    assert [line for line in text.splitlines() if re.search(r"\| [TW]\d \|", line)] == [*rows(text)]
