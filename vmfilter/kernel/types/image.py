"""The kernel's image in physical memory, found without VMCOREINFO: by the form of its symbol table.

The image is contiguous in memory on every machine, so one number leads from virtual to physical addresses in it.
"""

from __future__ import annotations

from itertools import pairwise

from vmfilter.errors import KernelError
from vmfilter.formats.uts import UTS_SIZE, Utsname
from vmfilter.kernel.page_tables import Translation
from vmfilter.kernel.types.kallsyms import read_symbols
from vmfilter.kernel.types.places import DIGITS, Places, around, token_tables, with_tokens
from vmfilter.kernel.types.structures import Structures, types_of
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmfilter.formats.abi import Abi
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo
    from vmfilter.kernel.types.area import Readable
    from vmfilter.kernel.types.symbols import Symbols
    from vmfilter.reader import Dump
    from vmfilter.reader.plain import PlainFile

_PIECE = 1 << 20
_LARGEST = 1 << 27  # bytes of a kernel image
_ALIGNED = 1 << 12  # bytes: how an image lies, at least
_BANNER = b"Linux version "
ROOTS = "swapper_pg_dir", "init_top_pgt", "init_level4_pgt"
"""Names of the root of the kernel's page tables, to which init_mm.pgd points: see arch.x86_64."""


class ImageMemory:
    """The image as the kernel's virtual memory: what else that has is not known. See types.area.Memory."""

    def __init__(self, dump: Dump, shift: int) -> None:
        """Take the virtual address of what is at physical address 0."""
        self._dump, self._shift = dump, shift
        self._mask = (1 << 8 * dump.arch.abi.word) - 1

    def read(self, vaddr: int, size: int) -> bytes | None:
        return self._dump.read_kernel(vaddr - self._shift & self._mask, size)

    def read_int(self, vaddr: int, size: int) -> int | None:
        raw = self.read(vaddr, size)
        return None if raw is None else int.from_bytes(raw, self._dump.arch.abi.byteorder)

    def read_word(self, vaddr: int) -> int | None:
        return self.read_int(vaddr, self._dump.arch.abi.word)

    def translate(self, vaddr: int, length: int) -> Iterator[Translation]:
        yield Translation(vaddr, length, vaddr - self._shift & self._mask)


class _Image(NamedTuple):
    """What can be a kernel's image. See types.area.Readable."""

    memory: ImageMemory
    abi: Abi
    page_size: int
    info: Vmcoreinfo
    vmlinux: PlainFile | None


class Found(NamedTuple):
    """A kernel image.

    Attributes:
        places: where its symbol table is.
        symbols: its symbols.
        structures: its structures; its memory is the image.

    """

    places: Places
    symbols: Symbols
    structures: Structures


def images(dump: Dump, info: Vmcoreinfo) -> Iterator[Found]:
    """Yield the kernel images in a dump that contain symbols and types. Nothing but their form proves them.

    Args:
        dump: the dump.
        info: VMCOREINFO, which may say where the symbol table is.

    """
    for zero in with_tokens(_image(dump, info, 0), _digits(dump)):
        try:
            yield from _images_at(dump, info, zero)
        except KernelError:  # it only looked like one
            continue


def _digits(dump: Dump) -> Iterator[int]:
    """Yield the physical address of each row of digits in memory."""
    for start, end in dump.stored():
        yield from _find(dump, DIGITS, start, end)


def _find(dump: Dump, text: bytes, start: int, end: int) -> Iterator[int]:
    """Yield each physical address from start to end at which a text is."""
    buffer = bytearray(_PIECE)
    for at in range(start, end, _PIECE - len(text) + 1):
        size = min(_PIECE, end - at)
        dump.read_around(at, memoryview(buffer)[:size], dump.arch.page_size)
        found = buffer.find(text, 0, size)
        while found >= 0:
            yield at + found
            found = buffer.find(text, found + 1, size)


def _image(dump: Dump, info: Vmcoreinfo, shift: int) -> _Image:
    return _Image(ImageMemory(dump, shift), dump.arch.abi, dump.page_size or dump.arch.page_size, info, dump.vmlinux)


def _images_at(dump: Dump, info: Vmcoreinfo, zero: int) -> Iterator[Found]:
    """Yield the image whose symbol table has its digits at a physical address, in each form that it can have."""
    physical = _image(dump, info, 0)
    tables = token_tables(physical, zero)
    said = info.symbol("kallsyms_token_table")
    if said is not None and tables is not None:
        image = _image(dump, info, said - tables[0])
        known = [info.symbol(f"kallsyms_{name}") for name in Places._fields]
        if None not in known[:4]:
            yield from _with_types(image, Places(*known))  # type: ignore[arg-type]
        return
    near = dump.covered(max(zero - _LARGEST, 0), zero + _LARGEST)
    banners = [at for start, end in near for at in _find(dump, _BANNER, start, end)] if tables else []
    for place in around(physical, zero) if banners else ():
        for symbols in _symbols(physical, place):
            shift = _shift(dump, physical, symbols, banners)
            if shift is not None:
                moved = Places(*(None if at is None else at + shift for at in place))  # type: ignore[arg-type]
                yield from _with_types(_image(dump, info, shift), moved)
                return


def _with_types(image: _Image, place: Places) -> Iterator[Found]:
    for symbols in _symbols(image, place):
        yield Found(place, symbols, Structures(image, types_of(image, symbols)))


def _symbols(image: _Image, place: Places) -> Iterator[Symbols]:
    """Yield the symbols in each form in which their addresses ascend, as kallsyms has them."""
    try:
        table = read_symbols(image, place)
    except KernelError:
        return
    for addresses in table.forms:
        if _ascend(addresses):
            yield table.with_addresses(addresses)


def _ascend(addresses: Sequence[int]) -> bool:
    return all(a <= b for a, b in pairwise(addresses))


def _shift(dump: Dump, physical: _Image, symbols: Symbols, banners: Sequence[int]) -> int | None:
    """Return the virtual address of what is at physical address 0, as the image has it; None if it does not tell."""
    banner, name = symbols.address("linux_banner"), symbols.address("init_uts_ns")
    if banner is None or name is None:
        return None
    if banner in banners:  # symbols count from their own place
        return _by_pointer(physical, symbols) if release_at(physical, name) else None
    for at in banners:
        shift = banner - at
        if not shift % _ALIGNED and release_at(_image(dump, physical.info, shift), name):
            return shift
    return None


def _by_pointer(physical: _Image, symbols: Symbols) -> int | None:
    """Return the difference between a pointer in the image and the physical address to which it points."""
    structures = Structures(physical, types_of(physical, symbols))
    at = symbols.address("init_mm")
    init_mm = None if at is None else structures.read("mm_struct", at)
    root = next((table for name in ROOTS if (table := symbols.address(name)) is not None), None)
    shift = None if init_mm is None or root is None else init_mm.number("pgd") - root
    return None if shift is None or shift % _ALIGNED else shift


def release_at(image: Readable, at: int) -> str:
    """Return the release of the kernel whose struct uts_namespace is at an address; "" if none is there."""
    for offset in (0, 4):  # see kernel.kernel
        raw = image.memory.read(at + offset, UTS_SIZE)
        uts = Utsname.parse(raw) if raw else Utsname()
        if uts.sysname == b"Linux":
            return uts.release.decode("ascii", "replace")
    return ""
