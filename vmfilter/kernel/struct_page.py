"""The layout of one kernel's struct page for the C core: offsets, flag masks, page types.

VMCOREINFO decides if it can. Everything else that depends on the kernel version is here and nowhere else, with the
commit, subject and version that changed it.
"""

from __future__ import annotations

from vmfilter.errors import KernelError
from vmfilter.lean import TYPE_CHECKING, NamedTuple, suppress
from vmfilter.native import Field, PageLayout, PageType

if TYPE_CHECKING:
    from vmfilter.arch import Arch
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo

NOTHING = (0, 0)
"""An absent field: offset, width."""
NO_TYPE = (1, 0)
"""A page type that matches nothing: value, mask."""

_UNEXPORTED_COMPOUND = ((4, 4), (4, 5))
"""Versions with page.compound_head that do not export it, nor order and destructor, before their stable updates."""
_MIN_SIZE, _MAX_SIZE = 32, 1024
_MASKS = ("tail_mask", "swapcache", "destructor_value")  # computed, so they may not fit
_FIELDS = ("flags", "mapcount", "mapping", "private_", "tail", "order", "destructor")
_EXPORTED_SINCE = {
    "PG_swapcache": (2, 6),
    # d99e3140a4d3 ("mm: turn folio_test_hugetlb into a PageType"), v6.9, took the last two out of CONFIG_HUGETLB_PAGE;
    # 46df8e73a4a3 ("mm: free up PG_slab"), v6.10, made the first.
    "PAGE_SLAB_MAPCOUNT_VALUE": (6, 10),
    "PAGE_HUGETLB_MAPCOUNT_VALUE": (6, 10),
    "PAGE_OFFLINE_MAPCOUNT_VALUE": (6, 10),
}
"""Numbers that every kernel exports, whatever its configuration, and since when."""
_HUGETLB_DTOR = 2
"""Of enum compound_dtor_id, in every kernel that has it."""
_DEFAULT_FREE_ORDERS = 11  # MAX_ORDER of all kernels that do not export LENGTH(zone.free_area)


class StructPage(NamedTuple):
    """The struct page of one kernel.

    Attributes:
        layout: its members, flags and types, for the C core.
        warnings: non-fatal gaps in VMCOREINFO, one line each.

    """

    layout: PageLayout
    warnings: tuple[str, ...]


def _required(value: int | None, what: str) -> int:
    if value is None:
        raise KernelError(f"VMCOREINFO lacks {what}: pages cannot be classified")
    return value


class _Source:
    """VMCOREINFO in terms of struct page."""

    def __init__(self, info: Vmcoreinfo) -> None:
        self.info = info

    def offset(self, member: str) -> int:
        return _required(self.info.offset(f"page.{member}"), f"OFFSET(page.{member})")

    def optional(self, member: str) -> int | None:
        """Offset of a member that only proves others; None if it is unknown or no number."""
        with suppress(KernelError):
            return self.info.offset(f"page.{member}")
        return None

    def bit(self, name: str) -> int:
        """Mask of a page flag; 0 if the kernel does not have it."""
        number = self.info.number(name)
        if number is None:
            return 0
        if not 0 <= number < 64:
            raise KernelError(f"VMCOREINFO has NUMBER({name})={number}, which is not a bit number")
        return 1 << number

    def page_type(self, name: str) -> PageType:
        """Value and mask of a page type; NO_TYPE if the kernel does not have it."""
        number = self.info.number(name)
        if number is None:
            return NO_TYPE
        value = number & 0xFFFFFFFF
        # VMCOREINFO gives the _mapcount of a page of this type. Since 4ffca5a96678 ("mm: support only one page_type per
        # page"), v6.12, its top byte is the type, and the owner uses the rest. Before, the whole _mapcount identifies
        # these pages: types were bits, of which they have only one, and before 6e292b9be7f4 ("mm: split page_type out
        # from _mapcount"), v4.18, values.
        mask = 0xFF000000 if value & 0x00FFFFFF == 0 else 0xFFFFFFFF
        return value, mask


def size_of(info: Vmcoreinfo) -> int:
    """Return the size of struct page in bytes. Raises KernelError if VMCOREINFO lacks it, or it is impossible."""
    size = _required(info.size("page"), "SIZE(page)")
    if not _MIN_SIZE <= size <= _MAX_SIZE:
        raise KernelError(f"VMCOREINFO has SIZE(page)={size}, which is impossible")
    return size


def struct_page(info: Vmcoreinfo, arch: Arch) -> StructPage:
    """Return the layout of one kernel's struct page.

    Args:
        info: the kernel's VMCOREINFO.
        arch: its architecture.

    Raises:
        KernelError: VMCOREINFO contradicts itself, or lacks something that classification needs.

    """
    source, size = _Source(info), size_of(info)
    word = arch.abi.word
    head = _head_mask(info, source)
    tail, tail_mask = _tail(info, source, word, head)
    order, destructor, destructor_value, destructor_mask = _compound(info, source, arch, size)
    links = source.optional("lru")
    # Renamed by 0139aa7b7fa1 ("mm: rename _count, field of the struct page, to _refcount"), v4.7.
    users = source.optional("_refcount") or source.optional("_count")
    warnings = []
    if not head:
        warnings.append("VMCOREINFO lacks NUMBER(PG_head_mask): tail pages of huge pages may be kept needlessly")
    missing = [name for name, since in _EXPORTED_SINCE.items() if info.version() >= since and info.number(name) is None]
    if missing:
        names = ", ".join(f"NUMBER({name})" for name in missing)
        warnings.append(f"VMCOREINFO lacks {names}, which all such kernels export: pages may be kept needlessly")
    if destructor == NOTHING and _exports_compound(info):
        warnings.append(
            "VMCOREINFO has compound_order, compound_dtor or HUGETLB_PAGE_DTOR as no kernel has them: "
            "huge pages may be kept needlessly"
        )
    free_orders = info.length("zone.free_area") or _DEFAULT_FREE_ORDERS
    if not 0 < free_orders <= 64:
        raise KernelError(f"VMCOREINFO has LENGTH(zone.free_area)={free_orders}, which is impossible")
    layout = PageLayout(
        size=size,
        swap=arch.abi.swapped,
        flags=(source.offset("flags"), word),
        mapcount=(source.offset("_mapcount"), 4),
        mapping=(source.offset("mapping"), word),
        private_=(source.offset("private"), word),
        tail=tail,
        tail_mask=tail_mask,
        refcount=_optional(users, 4, size),
        next=_optional(links, word, size),
        prev=_optional(None if links is None else links + word, word, size),
        lru=_required(source.bit("PG_lru") or None, "NUMBER(PG_lru)"),
        private_data=_required(source.bit("PG_private") or None, "NUMBER(PG_private)"),
        swapcache=_swapcache(source),
        slab=source.bit("PG_slab"),
        hwpoison=source.bit("PG_hwpoison"),
        head=head,
        reserved=source.bit("PG_private") >> 1,  # not exported, but PG_reserved precedes PG_private in every kernel
        buddy=_required_type(source.page_type("PAGE_BUDDY_MAPCOUNT_VALUE")),
        hugetlb=source.page_type("PAGE_HUGETLB_MAPCOUNT_VALUE"),
        offline=source.page_type("PAGE_OFFLINE_MAPCOUNT_VALUE"),
        unaccepted=source.page_type("PAGE_UNACCEPTED_MAPCOUNT_VALUE"),
        slab_type=source.page_type("PAGE_SLAB_MAPCOUNT_VALUE"),
        table=_table_type(info, source),
        kmalloc=_kmalloc_type(info, source),
        order=order,
        destructor=destructor,
        destructor_value=destructor_value,
        destructor_mask=destructor_mask,
        free_orders=free_orders,
    )
    for name in _FIELDS:
        offset, width = getattr(layout, name)
        if offset % max(width, 1):
            raise KernelError(f"VMCOREINFO puts {name} at {offset} of struct page, which is not aligned")
        if not 0 <= offset <= size - width:
            raise KernelError(f"VMCOREINFO puts {name} at {offset} of a struct page of {size} bytes")
    for name in _MASKS:
        if not 0 <= getattr(layout, name) < 1 << 64:
            raise KernelError(f"VMCOREINFO puts {name} outside the 64 bits of a member of struct page")
    return StructPage(layout, tuple(warnings))


def _optional(offset: int | None, width: int, size: int) -> Field:
    """A member that only proves others; NOTHING unless it can be where VMCOREINFO puts it."""
    if offset is None or offset % width or not 0 <= offset <= size - width:
        return NOTHING
    return offset, width


def _required_type(value: PageType) -> PageType:
    if value == NO_TYPE:
        _required(None, "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)")
    return value


def _table_type(info: Vmcoreinfo, source: _Source) -> PageType:
    """Page type of page tables, which VMCOREINFO does not give."""
    # Since 1d40a5ea01d5 ("mm: mark pages in use for page tables"), v4.18. Its distance from the exported type of free
    # pages is constant in each form of page types.
    buddy, mask = source.page_type("PAGE_BUDDY_MAPCOUNT_VALUE")
    if mask == 0xFF000000:
        return buddy + (2 << 24) & mask, mask  # 4ffca5a96678 ("mm: support only one page_type per page"), v6.12
    bit = ~buddy & 0xFFFFFFFF
    if bit == 1 << 30:
        # 8db00ad56461 ("mm: allow reuse of the lower 16 bit of the page type with an actual type"), v6.11
        return ~(bit >> 2) & 0xFFFFFFFF, mask
    if bit != 1 << 7 or info.version() < (4, 18):
        return NO_TYPE
    # PG_kmemcg was below it until 18b2db3b0385 ("mm: Convert page kmemcg type to a page memcg flag"), v5.11.
    return ~(bit << (2 if info.version() >= (5, 11) else 3)) & 0xFFFFFFFF, mask


def _kmalloc_type(info: Vmcoreinfo, source: _Source) -> PageType:
    """Page type of large allocations by kmalloc, which VMCOREINFO does not give; since v6.15."""
    buddy, mask = source.page_type("PAGE_BUDDY_MAPCOUNT_VALUE")
    if mask != 0xFF000000 or info.version() < (6, 15):
        return NO_TYPE
    return buddy + (8 << 24) & mask, mask


def _swapcache(source: _Source) -> int:
    """Mask of the flags that are all set on a page in the swap cache."""
    swapcache, private = source.bit("PG_swapcache"), source.bit("PG_private")
    swapbacked = source.bit("PG_swapbacked")
    # Since 6326fec1122c ("mm: Use owner_priv bit for PageSwapCache, valid when PageSwapBacked"), v4.10, PG_swapcache
    # shares a bit below PG_private with a flag of file systems, and means swap cache only with PG_swapbacked, which is
    # exported since 1cbf29da3628, v4.17. In between, PG_swapbacked is six bits above PG_private.
    if swapcache and not swapbacked and swapcache < private:
        swapbacked = private << 6
    return swapcache and swapcache | swapbacked


def _head_mask(info: Vmcoreinfo, source: _Source) -> int:
    """Mask of PG_head."""
    mask = info.number("PG_head_mask")
    if mask is not None:
        return mask & (1 << 64) - 1
    # Exported since 3.16. Before, 64-bit kernels had PG_head at 14 and PG_tail at 15, between PG_private (11) and
    # PG_swapcache (16).
    before_3_16 = (0, 0) < info.version() < (3, 16)
    if before_3_16 and source.bit("PG_private") == 1 << 11 and source.bit("PG_swapcache") == 1 << 16:
        return 1 << 14
    return 0


def _tail(info: Vmcoreinfo, source: _Source, word: int, head: int) -> tuple[Field, int]:
    """Field and mask that identify a tail page."""
    # Bit 0 marks a tail in compound_head, since 1d798ca3f164 ("mm: make compound_head() robust"), v4.4, and in
    # compound_info, its name since d50569612c29 ("mm: rename the 'compound_head' field in the 'struct page' to
    # 'compound_info'"), v7.1.
    for member in ("compound_head", "compound_info"):
        offset = info.offset(f"page.{member}")
        if offset is not None:
            return (offset, word), 1
    if info.version() in _UNEXPORTED_COMPOUND:
        return (source.offset("lru"), word), 1
    if info.version() >= (4, 6):
        _required(None, "OFFSET(page.compound_head) and OFFSET(page.compound_info)")
    # Before, PG_tail marks a tail: the bit above PG_head. 32-bit kernels with SPARSEMEM lack it: PG_compound marks
    # heads and tails, PG_reclaim (three bits above it) tails as well, and PG_swapcache takes PG_tail's place.
    is_shared = source.bit("PG_swapcache") == head << 1
    return (source.offset("flags"), word), head | head << 3 if is_shared else head << 1


def _exports_compound(info: Vmcoreinfo) -> bool:
    """Return whether VMCOREINFO says anything of order or destructor."""
    members = "page.compound_order", "page.compound_dtor", "folio._folio_order", "folio._folio_dtor"
    return info.number("HUGETLB_PAGE_DTOR") is not None or any(info.offset(name) is not None for name in members)


def _exported_compound(info: Vmcoreinfo, size: int) -> tuple[Field, Field, int, int]:
    """What _compound() returns, if VMCOREINFO says it; NOTHING for what contradicts itself."""
    order, dtor = info.offset("page.compound_order"), info.offset("page.compound_dtor")
    if order is None and dtor is None:
        # Relative to the head page since 1c5509be58f6 ("mm: remove 'First tail page' members from struct page"), v6.3.
        order, dtor = (info.offset(f"folio._folio_{name}") for name in ("order", "dtor"))
        order = None if order is None else order - size
        dtor = None if dtor is None else dtor - size
    if order is None:
        return NOTHING, NOTHING, 0, 0
    if dtor is None:
        return (order, 1), NOTHING, 0, 0
    # The destructor's number directly precedes the order and has the same width: unsigned int or u16 until
    # 036e7aa49fb2 ("mm: store compound_dtor / compound_order as bytes"), v4.16.
    width = order - dtor
    if width not in ((1, 2, 4) if info.version() < (4, 16) else (1,)):
        return NOTHING, NOTHING, 0, 0
    if info.number("HUGETLB_PAGE_DTOR") not in (_HUGETLB_DTOR, None):
        return (order, width), NOTHING, 0, 0
    return (order, width), (dtor, width), _HUGETLB_DTOR, (1 << 8 * width) - 1


def _compound(info: Vmcoreinfo, source: _Source, arch: Arch, size: int) -> tuple[Field, Field, int, int]:
    """Order and destructor of a compound page, in its first tail page; value and mask of hugetlb's destructor."""
    word = arch.abi.word
    hugetlb_id = info.number("HUGETLB_PAGE_DTOR")
    if info.version() in _UNEXPORTED_COMPOUND and info.offset("page.compound_head") is None:
        # The tail has compound_head (a word), destructor and order (together a word) where the head has lru.
        lru, half = source.offset("lru"), word // 2
        return (lru + word + half, half), (lru + word, half), hugetlb_id or _HUGETLB_DTOR, (1 << 8 * half) - 1
    if info.offset("page.compound_head") is None and info.offset("page.compound_info") is None:
        # Before 1d798ca3f164 ("mm: make compound_head() robust"), v4.4: the two pointers of the tail's lru are the
        # destructor's address and the order. The symbol is exported since 3.16.
        lru = source.offset("lru")
        function = info.symbol("free_huge_page")
        field = NOTHING if function is None else (lru, word)
        return (lru + word, word), field, function or 0, (1 << 64) - 1
    if _exports_compound(info):
        return _exported_compound(info, size)
    # The order is the low byte of the first tail's flags since ebc1baf5c9b4 ("mm: free up a word in the first tail
    # page"), v6.6. PG_hugetlb in these flags marks hugetlb since 9c5ccf2db04b ("mm: remove HUGETLB_PAGE_DTOR"), v6.6,
    # until d99e3140a4d3 ("mm: turn folio_test_hugetlb into a PageType"), v6.9.
    flags = source.offset("flags")
    low_byte = flags if arch.abi.byteorder == "little" else flags + word - 1
    bit = source.bit("PG_hugetlb")
    return (low_byte, 1), (flags, word) if bit else NOTHING, bit, bit
