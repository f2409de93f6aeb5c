"""Physical memory of a crashed machine as a dump file keeps it: what every reader offers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from vmfilter.arch import Arch
from vmfilter.errors import InputError, KernelError
from vmfilter.reader.source import Source

if TYPE_CHECKING:
    from vmfilter.codec import Codec

PF_PMEM = 0x10
"""p_flags of a PT_LOAD of persistent memory, by the pmem RFC v2."""
_MAX_READ = 1 << 30


class Piece(NamedTuple):
    """Physical addresses [start, end) of memory, in the file from offset on."""

    start: int
    end: int
    offset: int
    flags: int = 0
    vaddr: int = 0


class Note(NamedTuple):
    """One ELF note: of whom, what kind, and where in the file its description lies."""

    name: bytes
    kind: int
    offset: int
    size: int


class Header(NamedTuple):
    """What the file's own header says of the crash, beside VMCOREINFO; ELF says none of it.

    Attributes:
        uts: fields of struct new_utsname.
        crash_time: seconds since 1970, 0 where it is not known.
        level: dump level of what was left out before.
        incomplete: whether space or time ran out when it was written, or a part of it is missing now.
        cpus: of the machine, 0 where it is not known.
        phys_base: of the kernel, None where it is not known; negative where x86_64's KASLR made it so.

    """

    uts: tuple[bytes, ...] = ()
    crash_time: int = 0
    level: int = 0
    incomplete: bool = False
    cpus: int = 0
    phys_base: int | None = None


class Fetched(NamedTuple):
    """Data of pages as they lie in the file: what vmf_extents() found, and read.

    Attributes:
        pages: how many.
        descriptors: a struct vmf_descriptor each, in this machine's byte order.
        extents: struct vmf_extent.
        extent_count: of them.
        data: theirs.

    """

    pages: int
    descriptors: Any
    extents: Any
    extent_count: int
    data: bytearray


class Dump:
    """A dump file that is open for reading. Reading is safe for several threads at once.

    Attributes:
        path: of the file.
        format: what kind of file it is, in words.
        wrappings: what was taken off to come to it, the outermost first: "zstd", "flattened".
        arch: of the crashed machine.
        page_size: bytes of the file's own pages; None where it has bytes of memory, as ELF does.
        header: what the file says of the crash.
        truncated: what is missing of a file that ends before what its headers tell of, in words; "" where nothing is.
        loads: the PT_LOADs as an ELF file has them, in its order; for hints only (their vaddr is not to be trusted).
        end: physical address after all memory.
        notes: the ELF notes, in order.
        note_parts: where the notes lie in the file: offset and bytes of each PT_NOTE.
        erase_info: where makedumpfile says what it erased from memory: offset and bytes of that text.

    """

    format: str
    arch: Arch
    end: int
    page_size: int | None = None
    header = Header()

    def __init__(self, source: Source) -> None:
        """Take over the source, which close() closes."""
        self.path = source.path
        self.wrappings = source.wrappings
        self.truncated = source.cut
        self._source = source
        self.loads: Sequence[Piece] = []
        self.notes: list[Note] = []
        self.note_parts: list[tuple[int, int]] = []
        self.erase_info: tuple[int, int] | None = None

    @property
    def warnings(self) -> list[str]:
        """What is missing of it, and what reading it has come upon until now and is no failure, one line each."""
        if self.truncated:
            advice = "what is missing counts as left out before; if the original is whole, copy it again"
            return [f"{self.path}: {self.truncated}; {advice}"]
        return [f"{self.path}: is incomplete: what it has lost counts as left out before"] * self.header.incomplete

    def close(self) -> None:
        """Close the file. The dump cannot be used after."""
        self._source.close()

    def __enter__(self) -> Self:
        """Use it as a context that closes the file."""
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        """Close the file. Where what was wanted of it failed, what is missing of it may be why: that is noted."""
        if isinstance(e, (InputError, KernelError)):
            for warning in self.warnings:
                e.add_note(warning)
        self.close()

    def is_file(self, info: os.stat_result) -> bool:
        """Whether it reads the file that stat() says this of."""
        return self._source.is_file(info)

    def next_memory(self, address: int) -> int | None:
        """First physical address from this one on that is memory, in the file or left out of it; None after all."""
        raise NotImplementedError

    def mark(self, pfn: int, page_size: int, classes: memoryview) -> None:
        """Say what the file itself knows of page frames.

        Args:
            pfn: the first.
            page_size: bytes of a frame.
            classes: in: all HOLE; out: KERNEL for each frame of which the file has a part, PMEM_USERDATA where that
                is marked as persistent memory, EXCLUDED for memory that is not in the file.

        """
        raise NotImplementedError

    def covered(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Stretches of the physical addresses [start, end) that the file has, as pairs of the same kind, in order."""
        raise NotImplementedError

    def read_into(self, address: int, view: memoryview) -> bool:
        """Fill the view with physical memory from address on.

        Returns:
            Whether all of it is in the dump. What is not is filled with zeros, as the rest of a page frame of which a
            PT_LOAD holds a part.

        Raises:
            InputError: the file cannot be read, or is damaged there.

        """
        raise NotImplementedError

    def read(self, address: int, size: int) -> bytes | None:
        """Physical memory as bytes; None where not all of it is in the dump."""
        buffer = bytearray(size)
        return bytes(buffer) if self.read_into(address, memoryview(buffer)) else None

    def codec(self) -> Codec | None:
        """Return the codec that the pages lie in the file with, most of them; None where the format has no codecs."""
        return None

    def fetch(self, address: int, count: int) -> Fetched:
        """Read pages as they lie in the file, where the format has codecs.

        Args:
            address: of the first.
            count: how many at most; all of them are in the dump.

        Returns:
            At least one. It is valid until the same thread reads from the dump again.

        Raises:
            InputError: the file cannot be read, or is damaged there.

        """
        raise NotImplementedError

    def has_memory(self, start: int, end: int) -> bool:
        """Whether any of the physical addresses [start, end) is memory, in the file or left out of it."""
        first = self.next_memory(start)
        return first is not None and first < end

    def blocks(self, size: int) -> Iterator[int]:
        """Addresses of the aligned blocks of so many bytes that have any memory, in order."""
        at = self.next_memory(0)
        while at is not None:
            block = at // size * size
            yield block
            at = self.next_memory(block + size)

    def read_file(self, offset: int, size: int) -> bytes:
        """Bytes of the file itself.

        Raises:
            InputError: the file ends before, or cannot be read.

        """
        if size < 0 or size > _MAX_READ:
            raise InputError(f"{self.path}: a size of {size} bytes at offset {offset:#x} cannot be right")
        buffer = bytearray(size)
        self._source.read_into(offset, memoryview(buffer))
        return bytes(buffer)
