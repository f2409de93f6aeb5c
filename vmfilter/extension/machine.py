"""The crashed machine as an extension sees it: symbols, structures and memory to read, and rules to make."""

from __future__ import annotations

import time
from operator import index

from vmfilter.erase.types import Variables
from vmfilter.errors import KernelError
from vmfilter.kernel.page_tables import VirtualMemory
from vmfilter.kernel.types.modules import find_type
from vmfilter.kernel.types.structures import AskedStructures
from vmfilter.lean import TYPE_CHECKING, cached_property

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.frames.ranges import Range
    from vmfilter.kernel.kernel import Kernel
    from vmfilter.kernel.types.debug_info import DebugInfo
    from vmfilter.kernel.types.model import Types
    from vmfilter.kernel.types.structures import Object
    from vmfilter.reader import Dump

_MAX_READS = 1 << 22
_MAX_SECONDS = 120.0
_MAX_READ = 1 << 26  # bytes at once
_MAX_PIECES = 1 << 17  # ranges of each kind of rule
_MAX_SECRETS = 64
_SHORTEST_SECRET = 16  # bytes: shorter ones occur by chance
_LONGEST_SECRET = 1 << 10


class Machine:
    """The crashed machine. Every method raises KernelError if the dump lacks what it needs.

    Addresses are virtual, of the kernel, in bytes, unless a method says otherwise.

    Attributes:
        page_size: bytes of a page.
        word: bytes of a pointer.
        info: symbols and types.
        dump: the dump.
        kernel: the kernel.
        pieces: ranges [start, end) of physical addresses to erase.
        kept, dropped: ranges [first, end) of page frames.
        secrets: bytes to erase wherever they are.
        failures: what it does not erase, one line each.
        warnings: what else it tells, one line each.

    """

    def __init__(self, dump: Dump, kernel: Kernel, info: DebugInfo) -> None:
        self.dump, self.kernel, self.info = dump, kernel, info
        self.page_size, self.word = kernel.page_size, kernel.abi.word
        self.pieces: list[Range] = []
        self.kept: list[Range] = []
        self.dropped: list[Range] = []
        self.secrets: list[bytes] = []
        self.failures: list[str] = []
        self.warnings: list[str] = []
        self._variables = Variables(info)
        self._types: dict[str, AskedStructures] = {}
        self._by_types: dict[Types, AskedStructures] = {}
        self._reads, self._until = 0, time.monotonic() + _MAX_SECONDS

    def _spend(self) -> None:
        self._reads += 1
        if self._reads > _MAX_READS:
            raise KernelError(f"the extension has read memory {_MAX_READS} times: it may never end")
        if time.monotonic() > self._until:
            raise KernelError(f"the extension has run for {_MAX_SECONDS:.0f} seconds: it may never end")

    # What the kernel says

    def symbol(self, name: str, module: str = "") -> int:
        """Return the address of a symbol of a module, or else of the kernel image."""
        return self._variables.address(name, module or "vmlinux")

    def is_loaded(self, module: str) -> bool:
        """Return whether a module is loaded."""
        return self._variables.is_loaded(module)

    def _structures(self, struct: str) -> AskedStructures:
        if struct not in self._types:
            needed = self.info.need_structures()
            own = needed.types
            if own.find(struct) is None:
                own, _ = find_type(needed, self.info.symbols, struct)
            self._types[struct] = self._by_types.setdefault(own, AskedStructures(self.kernel, own))
        return self._types[struct]

    def size(self, struct: str) -> int:
        """Return the bytes of a structure."""
        return self._structures(struct).size(struct)

    def offset(self, struct: str, path: str) -> int:
        """Return the offset in bytes of a member: "signal.rlim" is that member of the structure itself."""
        return self._structures(struct).field(struct, path).offset

    def width(self, struct: str, path: str) -> int:
        """Return the bytes of a member."""
        return self._structures(struct).field(struct, path).size

    def has(self, struct: str, path: str) -> bool:
        """Return whether a structure has a member in this kernel."""
        return self._structures(struct).has(struct, path)

    def record(self, struct: str, address: int) -> Object:
        """Read a structure: its members are number(path), word(path), raw(path) and text(path)."""
        self._spend()
        found = self._structures(struct).read(struct, address)
        if found is None:
            raise KernelError(f"struct {struct} at {address:#x} is not in the dump")
        return found

    def read(self, address: int, size: int) -> bytes:
        """Read bytes."""
        self._spend()
        data = self.kernel.memory.read(address, size) if 0 <= size <= _MAX_READ else None
        if data is None:
            raise KernelError(f"{size} bytes at {address:#x} are not in the dump")
        return data

    def number(self, address: int, size: int) -> int:
        """Read an unsigned integer of size bytes."""
        return int.from_bytes(self.read(address, size), self.kernel.abi.byteorder)

    def pointer(self, address: int) -> int:
        """Read a pointer, or an unsigned long."""
        return self.number(address, self.word)

    def string(self, address: int, most: int = 256) -> str:
        """Read characters up to a zero, most of them at most."""
        text = bytearray()
        while len(text) < most and 0 not in text:
            upto = -(address + len(text)) % self.page_size or self.page_size
            text += self.read(address + len(text), min(upto, most - len(text)))
        return text.partition(b"\0")[0].decode("utf-8", "backslashreplace")

    def physical(self, address: int, size: int = 1) -> Iterator[Range]:
        """Yield the ranges [start, end) of physical addresses that a range of virtual ones is mapped to."""
        self._spend()
        return ((t.paddr, t.paddr + t.length) for t in self.kernel.memory.translate(address, size))

    def frame(self, address: int) -> int:
        """Return the page frame that an address is mapped to."""
        start = next((start for start, _ in self.physical(address)), None)
        if start is None:
            raise KernelError(f"{address:#x} is not mapped")
        return start // self.page_size

    def frame_of_page(self, page: int) -> int:
        """Return the page frame of a struct page, given its address."""
        at = page
        for start, stop, memmap in self.memmap:
            if memmap <= at < memmap + (stop - start) * self.page_struct:
                return start + (at - memmap) // self.page_struct
        raise KernelError(f"{page:#x} is no struct page")

    @cached_property
    def page_struct(self) -> int:
        """Bytes of struct page."""
        return self.kernel.struct_page().layout.size

    @cached_property
    def memmap(self) -> list[tuple[int, int, int]]:
        """Ranges [first, end) of page frames, and the address of the first one's struct page."""
        found: list[tuple[int, int, int]] = []
        end = -(-self.dump.end // self.page_size)
        at = 0
        while at < end:
            following = self.dump.next_memory(at * self.page_size)
            if following is None:
                break
            at = max(at, following // self.page_size)
            stop, memmap = self.kernel.memory_model.stretch(at, end)
            if memmap is not None:
                found.append((at, stop, memmap))
            at = max(stop, at + 1)
        return found

    def user_memory(self, mm: int) -> VirtualMemory:
        """Return the memory of a process, to read and translate its addresses; mm: address of its struct mm_struct."""
        table = self.record("mm_struct", mm).number("pgd")
        start = next((start for start, _ in self.physical(table)), None)
        if start is None:
            raise KernelError(f"the page tables at {table:#x} are not mapped")
        return VirtualMemory(self.dump, self.kernel.memory.root._replace(address=start, linear=()))

    # Rules

    def warn(self, text: str) -> None:
        """Tell the user something, in one line."""
        self.warnings.append(text.partition("\n")[0])

    def fail(self, text: str) -> None:
        """Tell the user, in one line, what is not erased. To vmfilter filter it is a warning; erase makes no dump."""
        self.failures.append(text.partition("\n")[0])

    @staticmethod
    def _add(ranges: list[Range], start: int, end: int) -> None:
        start, end = index(start), index(end)  # a TypeError of the extension, and not of the run
        if start >= end or start < 0:
            raise KernelError(f"[{start:#x}, {end:#x}) is no range")
        if len(ranges) >= _MAX_PIECES:
            raise KernelError(f"the extension has more than {_MAX_PIECES} ranges of one kind")
        ranges.append((start, end))

    def erase(self, address: int, size: int) -> None:
        """Erase bytes: X is written over them. Those that are mapped are erased even if others are not."""
        mapped = 0
        for start, end in self.physical(address, size):
            self._add(self.pieces, start, end)
            mapped += end - start
        if mapped != size:
            raise KernelError(f"{size - mapped} of {size} bytes at {address:#x} are not mapped by the kernel")

    def erase_physical(self, address: int, size: int) -> None:
        """Erase bytes, given their physical address."""
        self._add(self.pieces, address, address + size)

    def erase_copies(self, secret: bytes) -> None:
        """Erase some bytes wherever the new dump would have them: a key that has been copied about.

        Every page is searched as it is written, so do this for few secrets. Copies that are not contiguous in physical
        memory are not found.
        """
        secret = bytes(memoryview(secret))
        if not _SHORTEST_SECRET <= len(secret) <= _LONGEST_SECRET:
            raise KernelError(f"a secret has {_SHORTEST_SECRET} to {_LONGEST_SECRET} bytes, and not {len(secret)}")
        if len(set(secret)) > 2 and secret not in self.secrets:  # else it is no secret, but empty or erased
            if len(self.secrets) >= _MAX_SECRETS:
                raise KernelError(f"the extension has more than {_MAX_SECRETS} secrets to search for")
            self.secrets.append(secret)

    def keep_frames(self, first: int, count: int = 1) -> None:
        """Keep page frames that the dump level excludes, unless they are hwpoisoned or offline."""
        self._add(self.kept, first, first + count)

    def drop_frames(self, first: int, count: int = 1) -> None:
        """Exclude page frames that the dump level keeps. Kept ones win."""
        self._add(self.dropped, first, first + count)
