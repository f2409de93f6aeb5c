"""The struct page of one kernel, as the C core wants it: offsets, flag masks, page types.

VMCOREINFO is asked first. What depends on the kernel's version all the same is here and nowhere else, with the commit
or version that made it so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmfilter.errors import KernelError
from vmfilter.native import Field, PageLayout, PageType

if TYPE_CHECKING:
    from vmfilter.arch import Arch
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo

NOTHING = (0, 0)
"""A field that there is not: offset, width."""
NO_TYPE = (1, 0)
"""A page type that matches nothing: value, mask."""

_UNEXPORTED_COMPOUND = ((4, 4), (4, 5))
"""Versions that have the compound page of 4.4 and, before their stable updates, export nothing of it."""
_MIN_SIZE, _MAX_SIZE = 32, 1024
_MASKS = ("tail_mask", "swapcache", "destructor_value")  # computed, so they may not fit
_FIELDS = ("flags", "mapcount", "mapping", "private_", "tail", "order", "destructor")
_DEFAULT_FREE_ORDERS = 11  # MAX_ORDER of every kernel that does not export LENGTH(zone.free_area)


class StructPage(NamedTuple):
    """The struct page of one kernel.

    Attributes:
        layout: its members, flags and types, as the C core wants them.
        warnings: what VMCOREINFO lacks, one line each.

    """

    layout: PageLayout
    warnings: tuple[str, ...]


def _required(value: int | None, what: str) -> int:
    if value is None:
        raise KernelError(f"VMCOREINFO lacks {what}: pages cannot be classified")
    return value


class _Source:
    """VMCOREINFO, asked in the terms of struct page."""

    def __init__(self, info: Vmcoreinfo) -> None:
        self.info = info

    def offset(self, member: str) -> int:
        return _required(self.info.offset(f"page.{member}"), f"OFFSET(page.{member})")

    def bit(self, name: str) -> int:
        """Mask of a flag; 0 where the kernel does not have it."""
        number = self.info.number(name)
        if number is None:
            return 0
        if not 0 <= number < 64:
            raise KernelError(f"VMCOREINFO has NUMBER({name})={number}, which is no bit")
        return 1 << number

    def page_type(self, name: str) -> PageType:
        """Value and mask of a page type, by the _mapcount of a page that has it."""
        number = self.info.number(name)
        if number is None:
            return NO_TYPE
        value = number & 0xFFFFFFFF
        # Since 6.12 (4ffca5a96678) the top byte is the type and the rest is the owner's; before, types were bits, of
        # which the pages here have one only, and before 4.18 (6e292b9be7f4) values.
        mask = 0xFF000000 if value & 0x00FFFFFF == 0 else 0xFFFFFFFF
        return value, mask


def struct_page(info: Vmcoreinfo, arch: Arch) -> StructPage:
    """Gather what one kernel's struct page looks like.

    Raises:
        KernelError: VMCOREINFO lacks something without which pages cannot be told apart.

    """
    source = _Source(info)
    size = _required(info.size("page"), "SIZE(page)")
    if not _MIN_SIZE <= size <= _MAX_SIZE:
        raise KernelError(f"VMCOREINFO has SIZE(page)={size}, which cannot be")
    word = arch.abi.word
    head = _head_mask(info, source)
    tail, tail_mask = _tail(info, source, word, head)
    order, destructor, destructor_value, destructor_mask = _compound(info, source, arch, size)
    warnings = []
    if not head:
        warnings.append("VMCOREINFO lacks NUMBER(PG_head_mask): pages of huge pages may be kept needlessly")
    free_orders = info.length("zone.free_area") or _DEFAULT_FREE_ORDERS
    if not 0 < free_orders <= 64:
        raise KernelError(f"VMCOREINFO has LENGTH(zone.free_area)={free_orders}, which cannot be")
    layout = PageLayout(
        size=size,
        swap=arch.abi.swapped,
        flags=(source.offset("flags"), word),
        mapcount=(source.offset("_mapcount"), 4),
        mapping=(source.offset("mapping"), word),
        private_=(source.offset("private"), word),
        tail=tail,
        tail_mask=tail_mask,
        lru=_required(source.bit("PG_lru") or None, "NUMBER(PG_lru)"),
        private_data=_required(source.bit("PG_private") or None, "NUMBER(PG_private)"),
        swapcache=_swapcache(source),
        slab=source.bit("PG_slab"),
        hwpoison=source.bit("PG_hwpoison"),
        head=head,
        buddy=_required_type(source.page_type("PAGE_BUDDY_MAPCOUNT_VALUE")),
        hugetlb=source.page_type("PAGE_HUGETLB_MAPCOUNT_VALUE"),
        offline=source.page_type("PAGE_OFFLINE_MAPCOUNT_VALUE"),
        unaccepted=source.page_type("PAGE_UNACCEPTED_MAPCOUNT_VALUE"),
        order=order,
        destructor=destructor,
        destructor_value=destructor_value,
        destructor_mask=destructor_mask,
        free_orders=free_orders,
    )
    for name in _FIELDS:
        offset, width = getattr(layout, name)
        if not 0 <= offset <= size - width:
            raise KernelError(f"VMCOREINFO puts {name} at {offset} of a struct page of {size} bytes")
    for name in _MASKS:
        if not 0 <= getattr(layout, name) < 1 << 64:
            raise KernelError(f"VMCOREINFO puts {name} outside the 64 bits of a member of struct page")
    return StructPage(layout, tuple(warnings))


def _required_type(value: PageType) -> PageType:
    if value == NO_TYPE:
        _required(None, "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)")
    return value


def _swapcache(source: _Source) -> int:
    """Mask of the flags that a page in the swap cache has, all of them."""
    swapcache, private = source.bit("PG_swapcache"), source.bit("PG_private")
    swapbacked = source.bit("PG_swapbacked")
    # Since 4.10 (6326fec1122c) PG_swapcache shares its bit with a flag of file systems, which lies before PG_private,
    # and only a page with PG_swapbacked is in the swap cache. That is exported since 4.17 (1cbf29da3628); in between
    # it is six flags after PG_private.
    if swapcache and not swapbacked and swapcache < private:
        swapbacked = private << 6
    return swapcache and swapcache | swapbacked


def _head_mask(info: Vmcoreinfo, source: _Source) -> int:
    """Mask of PG_head."""
    mask = info.number("PG_head_mask")
    if mask is not None:
        return mask & (1 << 64) - 1
    # Exported since 3.16. Before, a 64-bit kernel had PG_head at 14 and PG_tail at 15, between
    # PG_private (11) and PG_swapcache (16).
    before_3_16 = (0, 0) < info.version() < (3, 16)
    if before_3_16 and source.bit("PG_private") == 1 << 11 and source.bit("PG_swapcache") == 1 << 16:
        return 1 << 14
    return 0


def _tail(info: Vmcoreinfo, source: _Source, word: int, head: int) -> tuple[Field, int]:
    """Field and mask that tell a tail page."""
    # compound_head since 4.4 (1d798ca3f164), compound_info since 7.1; bit 0 says tail in both.
    for member in ("compound_head", "compound_info"):
        offset = info.offset(f"page.{member}")
        if offset is not None:
            return (offset, word), 1
    if info.version() in _UNEXPORTED_COMPOUND:
        return (source.offset("lru"), word), 1
    # Before, PG_tail, the flag after PG_head.
    return (source.offset("flags"), word), head << 1


def _compound(info: Vmcoreinfo, source: _Source, arch: Arch, size: int) -> tuple[Field, Field, int, int]:
    """Order and destructor of a compound page in its first tail page; value and mask of hugetlb's destructor."""
    word = arch.abi.word
    hugetlb_id = info.number("HUGETLB_PAGE_DTOR")
    order, dtor = info.offset("page.compound_order"), info.offset("page.compound_dtor")
    if order is None:
        # 6.3 to 6.5 (1c5509be58f6) export them relative to the head page.
        order, dtor = info.offset("folio._folio_order"), info.offset("folio._folio_dtor")
        order = None if order is None else order - size
        dtor = None if dtor is None else dtor - size
    if order is not None:
        # The destructor's number comes right before the order, in a field of the same width: unsigned int (or u16) up
        # to 4.15, u8 since (036e7aa49fb2).
        width = order - dtor if dtor is not None and order - dtor in (1, 2, 4) else 1
        if dtor is None or hugetlb_id is None:
            return (order, width), NOTHING, 0, 0
        return (order, width), (dtor, width), hugetlb_id & (1 << 8 * width) - 1, (1 << 8 * width) - 1
    if info.version() in _UNEXPORTED_COMPOUND and info.offset("page.compound_head") is None:
        # compound_head, the destructor and the order lie where a head has lru, as unsigned long and two unsigned int.
        lru = source.offset("lru")
        return (lru + word + 4, 4), (lru + word, 4), hugetlb_id or 2, (1 << 32) - 1
    if info.offset("page.compound_head") is None and info.offset("page.compound_info") is None:
        # Before 4.4: the tail's lru is two pointers, the destructor's address and the order.
        lru = source.offset("lru")
        function = info.symbol("free_huge_page")  # exported since 3.16
        field = NOTHING if function is None else (lru, word)
        return (lru + word, word), field, function or 0, (1 << 64) - 1
    # Since 6.6 (ebc1baf5c9b4) the order is the low byte of the first tail's flags, and until 6.8 (d99e3140a4d3 made
    # it a page type) the bit PG_hugetlb there says hugetlb.
    flags = source.offset("flags")
    low_byte = flags if arch.abi.byteorder == "little" else flags + word - 1
    bit = source.bit("PG_hugetlb")
    return (low_byte, 1), (flags, word) if bit else NOTHING, bit, bit
