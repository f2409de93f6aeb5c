"""Node and zone in a struct page's flags: how many bits they have, and what the zones are called."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vmfilter.errors import KernelError
from vmfilter.formats.vmcoreinfo import Vmcoreinfo
from vmfilter.kernel.zone_bits import Zone, zone_bits

ZONE, FREE_AREA, NAME = 1664, 256, 184
FIRST, STRINGS = 0x88001000, 0x82000000

# Zones, and log2 of nodes, as in Debian's kernels: /boot/config-* has CONFIG_ZONE_* and CONFIG_NODES_SHIFT.
CLOUD = ("DMA32", "Normal", "Movable", "Device"), 6
BUILDS = {
    "x86_64": (("DMA", "DMA32", "Normal", "Movable", "Device"), 10),
    "x86_64 cloud": CLOUD,
    "ppc64le": (("Normal", "Movable", "Device"), 8),
    "one node": (("DMA", "Normal", "HighMem", "Movable"), 0),
}


class Memory:
    """Struct zones with names."""

    def __init__(self, names: tuple[str, ...], word: int) -> None:
        self._word = word
        self._at = dict[int, bytes]()
        for i, name in enumerate(names):
            self._at[FIRST + i * ZONE + NAME] = (STRINGS + i * 8).to_bytes(word, "little")
            self._at[STRINGS + i * 8] = name.encode().ljust(8, b"\0")

    def read(self, vaddr: int, size: int) -> bytes | None:
        return self._at.get(vaddr, bytes(8))[:size]

    def read_word(self, vaddr: int) -> int | None:
        return int.from_bytes(self.read(vaddr, self._word) or b"", "little")


def kernel(names: tuple[str, ...], shift: int, word: int = 8, extra: str = "") -> Any:
    zones = len(names)
    lists = (2 if shift else 1) * ((zones << shift) + 1) * 2 * word
    text = f"""\
SIZE(zone)={ZONE}
OFFSET(zone.free_area)={FREE_AREA}
OFFSET(pglist_data.node_zones)=0
OFFSET(pglist_data.nr_zones)={zones * ZONE + lists}
{extra}"""
    return SimpleNamespace(abi=SimpleNamespace(word=word), info=Vmcoreinfo(text), memory=Memory(names, word))


@pytest.mark.parametrize("name", BUILDS)
def test_the_zones_have_the_kernels_own_names(name: str) -> None:
    names, shift = BUILDS[name]
    bits = zone_bits(kernel(names, shift), FIRST)
    assert bits.names == names
    of_zone = (len(names) - 1).bit_length()
    assert bits.shift == 64 - shift - of_zone
    flags = (1 << 63 if shift else 0) | (len(names) - 1) << bits.shift | 0xFFFF
    node = 1 << shift - 1 if shift else 0
    assert bits.zone(flags >> bits.shift & bits.mask) == Zone(node, len(names) - 1, names[-1])


def test_without_names_zones_have_numbers() -> None:
    bits = zone_bits(kernel(*CLOUD), None)
    assert bits.zone(2) == Zone(0, 2, "2")
    assert bits.shift == 64 - 6 - 2


def test_a_zone_that_no_kernel_has_is_not_known() -> None:
    names, shift = BUILDS["ppc64le"]
    assert zone_bits(kernel(names, shift), FIRST).zone(3) is None


def test_32_bit_flags_begin_with_the_section() -> None:
    extra = "SYMBOL(mem_section)=c1000000\nNUMBER(MAX_PHYSMEM_BITS)=36\nNUMBER(SECTION_SIZE_BITS)=29\n"
    assert zone_bits(kernel(*BUILDS["one node"], word=4, extra=extra), FIRST).shift == 32 - 7 - 2


@pytest.mark.parametrize(
    "extra",
    [
        "SYMBOL(mem_section)=c1000000\n",
        "SYMBOL(mem_section)=c1000000\nNUMBER(MAX_PHYSMEM_BITS)=64\nNUMBER(SECTION_SIZE_BITS)=29\n",
    ],
)
def test_impossible_widths_are_refused(extra: str) -> None:
    wrong = kernel(*BUILDS["one node"], word=4, extra=extra)
    with pytest.raises(KernelError, match="leave no bits for node and zone"):
        zone_bits(wrong, FIRST)


@pytest.mark.parametrize("extra", ["LENGTH(node_data)=4\n", "SIZE(zone)=1600\n"])
def test_sizes_that_fit_no_number_of_zones_are_refused(extra: str) -> None:
    with pytest.raises(KernelError, match="does not tell which bits"):
        zone_bits(kernel(*CLOUD, extra=extra), FIRST)


def test_two_numbers_of_zones_that_fit_are_refused_without_names() -> None:
    """As those of 16 KiB pages on arm64: 3 zones of 64 nodes and 5 of 16 give the same size."""
    extra = "SIZE(zone)=1792\nOFFSET(pglist_data.nr_zones)=11552\n"
    with pytest.raises(KernelError, match="does not tell which bits"):
        zone_bits(kernel(*CLOUD, extra=extra), None)
