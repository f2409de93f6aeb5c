"""The interface of every reader: a dump file as the physical memory of the crashed machine."""

from __future__ import annotations

from vmfilter.errors import InputError, KernelError, UnreadableError
from vmfilter.formats.elf import NT_PRSTATUS, Load
from vmfilter.formats.uts import Utsname
from vmfilter.lean import TYPE_CHECKING, NamedTuple, cached_property
from vmfilter.reader.source import Extents, Source, bytes_at

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from vmfilter.arch import Arch
    from vmfilter.formats.codec import Codec
    from vmfilter.frames.frame_set import Stretch
    from vmfilter.reader.plain import PlainFile

_MAX_READ = 1 << 30
# Bytes of memory per byte of data. All memory and all memory sections are walked, so they must be bounded. The struct
# pages alone, which no dump level excludes, are a byte for each 64 bytes of memory, or 1024 if pages have 64 KiB.
_MEMORY_PER_BYTE = 1 << 16
_ENOUGH_DATA = 1 << 32  # for any machine
_MAX_LISTED = 8


def frames_named(first: int, last: int) -> str:
    """Return the name of the page frames from first to last in messages."""
    return f"frames {first:#x}-{last:#x}" if first < last else f"frame {first:#x}"


def listed(names: Sequence[str]) -> str:
    """Return names as a list for a message, which ends with the number of the others if there are many."""
    more = len(names) - _MAX_LISTED
    return ", ".join([*names[:_MAX_LISTED], *[f"{more} more ranges"] * (more > 0)]) or "no page"


class Note(NamedTuple):
    """An ELF note.

    Attributes:
        name: its owner, without trailing NULs.
        kind: n_type.
        offset: file offset of the descriptor.
        size: bytes of the descriptor.
        start: file offset of the note.

    """

    name: bytes
    kind: int
    offset: int
    size: int
    start: int


class Given(NamedTuple):
    """VMCOREINFO that the caller gives: the path of a file, and its text."""

    path: str
    text: str


class DumpHeader(NamedTuple):
    """The crash as the file's own header describes it. ELF headers do not; VMCOREINFO is read elsewhere.

    Attributes:
        uts: utsname of the crashed kernel.
        crash_time: seconds since 1970; 0 if unknown.
        level: dump level by which pages were excluded before.
        incomplete: whether pages are missing: the writer ran out of space or time, or a part of the file is gone.
        cpus: number of CPUs of the machine; 0 if unknown.
        phys_base: phys_base of the kernel; None if unknown. KASLR on x86_64 can make it negative.

    """

    uts: Utsname = Utsname()
    crash_time: int = 0
    level: int = 0
    incomplete: bool = False
    cpus: int = 0
    phys_base: int | None = None


class Fetched(NamedTuple):
    """Pages as the file stores them.

    Attributes:
        pages: number of pages.
        descriptors: one page descriptor of native.DESCRIPTOR bytes per page, in this machine's byte order.
        extents: file ranges that contain the data, native.EXTENT bytes each.
        data: contents of the extents.

    """

    pages: int
    descriptors: memoryview
    extents: memoryview
    data: bytearray


class DumpPart(NamedTuple):
    """A file of a split set, with the page frames [first, end) of its pages. The path of a missing part is ""."""

    path: str
    first: int
    end: int
    wrappings: Sequence[str] = ()


class Memory:
    """Physical memory of the crashed machine. Several threads may read at once."""

    def read_into(self, address: int, view: memoryview) -> bool:
        """Fill the view with physical memory.

        Memory that the dump does not contain reads as zeros, as does the rest of a page frame that a PT_LOAD contains
        in part.

        Args:
            address: physical address of the first byte.
            view: destination; its length is the number of bytes to read.

        Returns:
            Whether the dump contains all of it.

        Raises:
            UnreadableError: the file cannot be read, or is damaged there.

        """
        raise NotImplementedError

    def read_around(self, address: int, view: memoryview, piece: int) -> list[tuple[int, int, UnreadableError]]:
        """Fill the view as read_into() does, but with zeros for what cannot be read.

        Args:
            address, view: see read_into().
            piece: bytes that are lost together if one of them cannot be read: a page. Pieces are aligned.

        Returns:
            The pieces that cannot be read: first and last byte in the view, [first, end), and the reason.

        """
        try:
            self.read_into(address, view)
        except UnreadableError:
            lost: list[tuple[int, int, UnreadableError]] = []
        else:
            return []
        at = 0
        while at < len(view):
            end = min(at + piece - (address + at) % piece, len(view))
            try:
                self.read_into(address + at, view[at:end])
            except UnreadableError as e:
                view[at:end] = bytes(end - at)
                # Not e itself: with its frames, it would be in a cycle. Python 3.11 can crash if it collects one that
                # contains a memoryview in use.
                lost.append((at, end, UnreadableError(str(e))))
            at = end
        return lost

    def read_frames(
        self, stretches: Sequence[Stretch], page_size: int, view: memoryview
    ) -> list[tuple[int, int, UnreadableError]]:
        """Fill the view with pages, one after the other, and with zeros for those that cannot be read.

        Args:
            stretches: their frames.
            page_size: bytes.
            view: destination, page_size bytes for each frame.

        Returns:
            The pages that cannot be read, in ascending order: index in the view, frame, and reason.

        """
        lost, done = list[tuple[int, int, UnreadableError]](), 0
        for pfn, count, _ in stretches:
            pages = view[done * page_size : (done + count) * page_size]
            for at, _, failure in self.read_around(pfn * page_size, pages, page_size):
                lost.append((done + at // page_size, pfn + at // page_size, failure))
            done += count
        return lost

    def read(self, address: int, size: int) -> bytes | None:
        """Return size bytes of physical memory; None if the dump does not contain all. Raises as read_into() does."""
        buffer = bytearray(size)
        return bytes(buffer) if self.read_into(address, memoryview(buffer)) else None

    def fetch(self, address: int, count: int) -> Fetched:
        """Read compressed pages, after a test that they can be decompressed. Only formats with codecs support this.

        Args:
            address: physical address of the first page.
            count: maximum number of pages. The dump must contain all of them.

        Returns:
            One page or more. They are valid until the same thread reads from the dump again.

        Raises:
            UnreadableError: the file cannot be read, or is damaged there.

        """
        raise NotImplementedError


class Dump(Memory):
    """A dump file that is open for reading. Several threads may read at once.

    Attributes:
        path: path of the file, for messages.
        format: name of the format, for reports.
        wrappings: layers around the dump, outermost first: "zstd", "flattened".
        arch: architecture of the crashed machine.
        page_size: bytes of a page in the file; None if the file stores memory by the byte, as ELF does.
        header: the crash as the file's header describes it.
        truncated: description of what a truncated file lacks; "" if the file is not truncated.
        loads: the PT_LOADs of an ELF file, in file order. They are hints only: their vaddr cannot be trusted.
        end: physical address after all memory.
        notes: the ELF notes, in file order, without vmfilter's own.
        note_parts: file offset and size in bytes of each range of these notes.
        checksum_note: note with the checksums of the file, or of another from which it was copied; None without one.
        vmcoreinfo_at: physical address of the text of VMCOREINFO to use; None: find out.
        given: VMCOREINFO to use, from a file; None: find out.
        vmlinux: the crashed kernel's vmlinux, for its types and symbols; None: they are in the dump.
        erase_info: file offset and size in bytes of makedumpfile's report of erased data; None without one.
        passed_over: number of reads of notes and of the kernel's own data that failed and were passed over.

    """

    format: str
    arch: Arch
    end: int
    page_size: int | None = None
    header = DumpHeader()
    vmcoreinfo_at: int | None = None
    given: Given | None = None
    vmlinux: PlainFile | None = None

    def __init__(self, source: Source) -> None:
        """Take ownership of the source; close() closes it."""
        self.path = source.path
        self.wrappings = source.wrappings
        self.truncated = source.cut
        self._source = source
        self.loads: Sequence[Load] = []
        self.notes: list[Note] = []
        self.note_parts: list[tuple[int, int]] = []
        self.checksum_note: Note | None = None
        self.erase_info: tuple[int, int] | None = None
        self.passed_over = 0
        self._first_failure = ""

    def pass_over(self, failure: UnreadableError) -> None:
        """Record that notes or data of the kernel cannot be read, and that the run goes on without them."""
        self._first_failure = self._first_failure or str(failure)
        self.passed_over += 1

    @property
    def warnings(self) -> list[str]:
        """Non-fatal problems found so far, one line each."""
        failed = f"{self._first_failure}; {self.passed_over} reads of notes or kernel data failed and were passed over"
        return [*self._what_is_missing(), *([failed] if self.passed_over else [])]

    def _what_is_missing(self) -> list[str]:
        if self.truncated:
            advice = "missing pages count as excluded; if the original is complete, copy it again"
            return [f"{self.path}: {self.truncated}; {advice}"]
        return [f"{self.path}: is incomplete: its missing pages count as excluded"] * self.header.incomplete

    def close(self) -> None:
        """Close the file. The dump cannot be used afterwards."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        # Missing pages may have caused the failure, so the exception mentions them.
        if isinstance(e, (InputError, KernelError)):
            for warning in self.warnings:
                e.add_note(warning)
        self.close()

    def is_file(self, identity: object) -> bool:
        """Return whether the dump is in the file with this stat() result or URL, or in this file object."""
        return self._source.is_file(identity)

    def marked_header(self) -> bytes:
        """Return the header at the beginning of the file, with the mark of an incomplete dump."""
        raise NotImplementedError

    def next_memory(self, address: int) -> int | None:
        """Return the lowest physical address >= address that is memory, kept or excluded; None if there is none."""
        raise NotImplementedError

    def mark(self, pfn: int, page_size: int, classes: memoryview) -> None:
        """Set the classes of page frames that the file alone determines.

        Args:
            pfn: first page frame.
            page_size: bytes of a page frame.
            classes: one byte per page frame, all HOLE on entry. On return: KERNEL if the file contains any of the
                frame, PMEM_USERDATA if it also marks that as persistent memory, EXCLUDED if the frame is memory that
                the file does not contain.

        """
        raise NotImplementedError

    def covered(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges [start, end) of physical addresses that the file contains, in order."""
        raise NotImplementedError

    def extents(self, parts: array[int]) -> Extents | None:
        """Return how to read parts of the file, at offsets of located(); None: it does not contain memory as it is.

        Args:
            parts: u64 offset, size and position of each: see vmfilter.reader.source.Extents.

        """
        return None

    def located(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield what covered() yields, in as many ranges as it takes, each with its offset in the file."""
        return ((first, last, 0) for first, last in self.covered(start, end))

    def stored(self) -> Iterator[tuple[int, int]]:
        """Yield ranges [start, end) of physical addresses that contain all data of the file, in its order.

        Holes of the file are left out, and data that it gives several addresses have one of them.
        """
        return self.covered(0, self.end)

    def lost(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges [start, end) of physical addresses that an incomplete dump has lost, if its format says."""
        return iter(())

    def read_kernel(self, address: int, size: int) -> bytes | None:
        """Return size bytes of the kernel's own data; None if the dump does not contain all, or they cannot be read."""
        try:
            return self.read(address, size)
        except UnreadableError as e:
            self.pass_over(e)
            return None

    @property
    def cpus(self) -> int:
        """Number of CPUs whose registers the dump contains, or else the number in its header; 0 if unknown."""
        saved = sum(1 for note in self.notes if note.name == b"CORE" and note.kind == NT_PRSTATUS)
        return saved or self.header.cpus

    @property
    def kept(self) -> int | None:
        """Number of pages kept when the file was written, lost ones included; None if the format does not say."""
        return None

    @property
    def parts(self) -> list[DumpPart]:
        """Parts of a split set, in order of their page frames; empty for a single file."""
        return []

    def codec(self) -> Codec | None:
        """Return the codec of most pages; None if the format has no codecs."""
        return None

    def codecs(self) -> dict[str, int]:
        """Return the number of pages by codec name; empty if the format has no codecs. This reads all descriptors."""
        return {}

    @cached_property
    def most_memory(self) -> int:
        """Bytes of memory that a dump with so few data can be about."""
        data = sum(source.data(_ENOUGH_DATA) for source in self.sources)
        return data * _MEMORY_PER_BYTE if data < _ENOUGH_DATA else 1 << 64

    @property
    def sources(self) -> Sequence[Source]:
        """The files, in order of their page frames."""
        return [self._source]

    def contents_of(self, file: int, areas: Sequence[tuple[int, int]]) -> list[str]:
        """Return for each of some areas what the dump has there.

        Args:
            file: index of the file in sources.
            areas: file offsets [start, end).

        Raises:
            InputError: that cannot be read.

        """
        raise NotImplementedError

    def faults(self) -> Iterator[str]:
        """Yield the faults of the file outside its pages, one line each."""
        return iter(())

    def has_memory(self, start: int, end: int) -> bool:
        """Return whether any of the physical addresses [start, end) is memory, kept or excluded."""
        first = self.next_memory(start)
        return first is not None and first < end

    def blocks(self, size: int) -> Iterator[int]:
        """Yield the addresses of the blocks that contain memory, in order. Blocks are size bytes, and aligned."""
        at = self.next_memory(0)
        while at is not None:
            block = at // size * size
            yield block
            at = self.next_memory(block + size)

    def read_file(self, offset: int, size: int) -> bytes:
        """Return size bytes of the file itself.

        Raises:
            UnreadableError: the file cannot be read there.
            InputError: the file ends before that.

        """
        if size < 0 or size > _MAX_READ:
            raise InputError(
                f"{self.path}: damaged: implausible size of {size} bytes at offset {offset:#x}; copy it again"
            )
        return bytes_at(self._source, offset, size)
