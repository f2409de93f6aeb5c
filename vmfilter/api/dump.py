"""A dump as an object: what its file and its kernel say, and the memory in it."""

from __future__ import annotations

from contextlib import contextmanager
from types import MappingProxyType

from vmfilter import reader
from vmfilter.api.frames import Page, Run, RunTable, run_of
from vmfilter.api.kernel import Kernel
from vmfilter.api.notes import Note
from vmfilter.errors import HIGHEST, InputError, UsageError, check_address, is_whole, not_understood
from vmfilter.kernel.search import understand
from vmfilter.lean import TYPE_CHECKING, cached_property
from vmfilter.measure.runs import runs_of
from vmfilter.measure.walk import Walk

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self, Union

    from _typeshed import WriteableBuffer

    from vmfilter.kernel import kernel
    from vmfilter.kernel.search import Understood
    from vmfilter.reader import File

    Source = Union["Dump", File, Sequence[File]]  # noqa: UP007 - a class that follows cannot be in A | B
    """What is read: a dump that is open, a path or file object, or those of a split set."""

_MOST = 1 << 30
"""Bytes that one call reads at most."""


class Dump:
    """A dump that is open for reading. Use it as a context manager, or close it.

    Attributes:
        path: of its file, as messages name it.
        format: of its file, in words.
        wrappings: layers around the dump, outermost first: "zstd", "flattened".
        machine: architecture of the crashed machine, as uname -m prints it.
        level: dump level by which pages were excluded before.
        incomplete: whether pages are missing that the level keeps.
        cpus: number of CPUs; 0 if it is unknown.
        notes: the ELF notes, in file order.

    """

    def __init__(self, inner: reader.Dump) -> None:
        """Take ownership of a reader's dump. open_dump() makes one."""
        self._inner: reader.Dump | None = inner
        self.path, self.format, self.wrappings = inner.path, inner.format, inner.wrappings
        self.machine, self.level = inner.arch.name, inner.header.level
        self.incomplete = inner.header.incomplete or bool(inner.truncated)
        self.cpus = inner.cpus
        self.notes: Sequence[Note] = tuple(
            Note(note.name.decode("utf-8", "backslashreplace"), note.kind, note.size, self._reader, note.offset)
            for note in inner.notes
        )

    def __repr__(self) -> str:
        return f"<vmfilter.Dump {self.path!r}: {self.format}, {self.machine}>"

    def __enter__(self) -> Self:
        _ = self._open
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self._inner is not None:
            self._inner.__exit__(kind, e, tb)
        self.close()

    def close(self) -> None:
        """Close the files. The dump cannot be used afterwards; closing it again does nothing."""
        if self._inner is not None:
            self._inner.close()
        self._inner = None

    @property
    def _open(self) -> reader.Dump:
        if self._inner is None:
            raise UsageError(f"{self.path}: the dump is closed: open it again")
        return self._inner

    def _reader(self) -> reader.Dump:
        return self._open

    @property
    def warnings(self) -> Sequence[str]:
        """What is wrong with the file, one line each: the parts of it that are missing, reads that failed."""
        return tuple(self._open.warnings)

    @cached_property
    def _understood(self) -> Understood:
        return understand(self._open)

    @property
    def page_size(self) -> int:
        """Bytes of a page of the crashed machine."""
        return self._understood.page_size

    @cached_property
    def vmcoreinfo(self) -> Mapping[str, str]:
        """VMCOREINFO by key, as text: ``["OSRELEASE"]``, ``["SYMBOL(init_uts_ns)"]``. Empty if there is none.

        It is the one that describes the crashed kernel, by the note or found in memory.
        """
        info = self._understood.info
        lines = (line.partition("=") for line in (info.text if info else "").splitlines())
        return MappingProxyType({key: value for key, equals, value in lines if equals})

    @property
    def _kernel(self) -> kernel.Kernel:
        found = self._understood.kernel
        if found is None:
            raise not_understood(self.path, self._understood.error)
        return found

    @cached_property
    def kernel(self) -> Kernel:
        """The crashed kernel. Raises KernelError if it cannot be found."""
        return Kernel(self._reader, self._kernel)

    def read(self, address: int, size: int) -> bytes:
        """Return physical memory.

        Args:
            address: physical address of the first byte.
            size: number of bytes, at most 1 GiB.

        Raises:
            InputError: the dump does not contain all of it, or is damaged there.
            UsageError: address or size is not a number in range.

        """
        _check_range(address, size)
        inner = self._open
        _check_contained(inner, address, size)
        buffer = bytearray(size)
        inner.read_into(address, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, address: int, buffer: WriteableBuffer) -> None:
        """Fill a buffer with physical memory, without a copy.

        Args:
            address: physical address of the first byte.
            buffer: any object with a contiguous buffer that can be written: bytearray, mmap, an array of numpy. Its
                length is the number of bytes to read.

        Raises:
            InputError, UsageError: see read().

        """
        try:
            view = memoryview(buffer).cast("B")
        except (TypeError, ValueError):
            raise UsageError(
                f"{type(buffer).__name__} has no contiguous buffer to read into: give a bytearray, say"
            ) from None
        if view.readonly:
            raise UsageError(f"{type(buffer).__name__} cannot be written: read into a bytearray, say")
        _check_range(address, min(len(view), _MOST))
        inner = self._open
        _check_contained(inner, address, len(view))
        inner.read_into(address, view)

    def read_virtual(self, address: int, size: int) -> bytes:
        """Return memory of the kernel.

        Args:
            address: virtual address of the first byte, in the kernel's page tables.
            size: number of bytes, at most 1 GiB.

        Raises:
            InputError: not all of it is mapped, or in the dump; or the dump is damaged there.
            KernelError: the kernel cannot be found.
            UsageError: address or size is not a number in range.

        """
        _check_range(address, size)
        parts, at = list[bytes](), address
        for one in self._kernel.memory.translate(address, size):
            if one.vaddr != at:
                break
            parts.append(self.read(one.paddr, one.length))
            at += one.length
        if at != address + size:
            raise InputError(
                f"{self.path}: virtual address {at:#x} is not mapped by the kernel; "
                "vmfilter symbols lists addresses that are"
            )
        return b"".join(parts)

    def runs(self) -> Iterator[Run]:
        """Yield runs of page frames of the same class, kind and zone, without holes, in order.

        Raises:
            InputError: the file is damaged.
            KernelError: the kernel cannot be understood.

        """
        walk = Walk(self._open)
        for run in runs_of(walk.stretches()):
            yield run_of(run, walk.page_size, self.read)
            _ = self._open  # or memory of a dump that was closed meanwhile would count as lost

    def pages(self) -> Iterator[Page]:
        """Yield all page frames, without holes, in order; see runs(), which is faster."""
        return (page for run in self.runs() for page in run.pages())

    @cached_property
    def _table(self) -> RunTable:
        return RunTable(runs_of(Walk(self._open).stretches()))

    def page(self, pfn: int) -> Page:
        """Return one page frame. The first call classifies all of them, and keeps 19 bytes for each run.

        Args:
            pfn: its number.

        Raises:
            InputError: it is no memory, or the file is damaged.
            KernelError: the kernel cannot be understood.
            UsageError: pfn is not a number in range.

        """
        if not is_whole(pfn, 0, HIGHEST):
            raise UsageError(f"{pfn!r:.80} is not the number of a page frame: give an integer, at least 0")
        run = self._table.at(pfn)
        if run is None:
            raise InputError(
                f"{self._open.path}: page frame {pfn:#x} is no memory of the crashed machine; runs() lists what is"
            )
        return run_of(run, self.page_size, self.read).page(pfn)


def _check_range(address: int, size: int) -> None:
    check_address(address)
    if not is_whole(size, 0, _MOST):
        raise UsageError(f"{size!r:.80} is no size: give a number of bytes from 0 to {_MOST:#x}")


def _check_contained(dump: reader.Dump, address: int, size: int) -> None:
    """Raise InputError unless a dump contains a range of physical memory."""
    at = address
    for start, end in dump.covered(address, address + size):
        if start > at:
            break
        at = end
    if at < address + size:
        raise InputError(
            f"{dump.path}: physical address {at:#x} is not in the dump: it was excluded or lost, or is no memory; "
            "the vmcore may have it"
        )


def open_dump(
    path: File | Sequence[File],
    *,
    missing_parts: bool = False,
    vmcoreinfo: File | None = None,
    vmcoreinfo_at: int | None = None,
    vmlinux: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None = None,
    max_memory: int | None = None,
) -> Dump:
    """Open a dump: an ELF vmcore or a kdump-compressed file, also flattened, or compressed as a whole.

    Args:
        path: path or file object, or a URL as a str (s3://BUCKET/KEY, https://HOST/PATH; needs vmfilter[remote]).
            Several, in any order, are the parts of one split set. "-" is standard input. A file object is read from its
            beginning if it can seek; it stays open, and must not be used until the dump is closed.
        missing_parts: whether to accept a split set with missing parts. Their pages count as lost.
        vmcoreinfo: file, or URL of one, with VMCOREINFO of the crashed kernel, as makedumpfile -g writes it; None: the
            dump's own.
        vmcoreinfo_at: physical address of the text of VMCOREINFO, if memory contains several; None: find out.
        vmlinux: path or URL of the crashed kernel's vmlinux, or of the file with its debug information, for symbols and
            types that the dump lacks; None: the dump's own alone.
        max_memory: bytes of memory that may be allocated to decompress the file; None: 128 MiB.

    Returns:
        The dump. A truncated file is opened if its headers and bitmaps are complete; its warnings say so.

    Raises:
        InputError: the file cannot be read, is not a dump, or is damaged; or the files are not one split set.
        KernelError: the architecture is unknown.
        UsageError: an argument is wrong.

    """
    if vmcoreinfo_at is not None:
        check_address(vmcoreinfo_at)
    if max_memory is not None and not is_whole(max_memory, 1):
        raise UsageError(f"max_memory must be a number of bytes, at least 1, not {max_memory!r:.80}")
    return Dump(
        reader.open_dump(
            path,
            missing_parts=missing_parts,
            vmcoreinfo=vmcoreinfo,
            vmcoreinfo_at=vmcoreinfo_at,
            vmlinux=vmlinux,
            max_memory=max_memory,
        )
    )


@contextmanager
def opened(source: Source, missing_parts: bool = False) -> Iterator[reader.Dump]:
    """Yield the reader of a source, which is closed afterwards unless the caller opened it."""
    if isinstance(source, Dump):
        yield source._open
        return
    with reader.open_dump(source, missing_parts=missing_parts) as dump:
        yield dump


def reader_of(source: Source) -> reader.Dump | File | Sequence[File]:
    """Return the reader of a source that the caller opened, or else the source."""
    return source._open if isinstance(source, Dump) else source
