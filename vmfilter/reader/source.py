"""Read bytes of a dump file at an offset: by pread, or by mmap if that is faster and safe. remote.py reads URLs."""

from __future__ import annotations

import errno
import mmap
import os
from array import array
from itertools import chain

from vmfilter import native
from vmfilter.errors import InputError, UnreadableError, why_not_read
from vmfilter.lean import TYPE_CHECKING, Lock, NamedTuple, Protocol, suppress

if TYPE_CHECKING:
    from collections.abc import Sequence

_WINDOW_BYTES = 32 << 20
_WINDOWS = 8
"""Parts of a file that are mapped at a time. The kernel needs 64 KiB of page tables for each."""
_HAS_BUFFER_IN_FAULTS = os.uname().machine == "s390x"
"""Whether faults of a mapping of /proc/vmcore may share a buffer: see ProcSource."""


class Extents(NamedTuple):
    """Parts of a file that the C core reads itself, on any thread.

    Attributes:
        fd: the file; -1: it is mapped, and the offsets are addresses.
        words: u64 offset, size and position in the caller's array for each part: struct vmf_extent.
        mapped: keeps the addresses mapped.

    """

    fd: int
    words: array[int]
    mapped: Sequence[memoryview] = ()


class Source(Protocol):
    """The bytes of a dump file. Several threads may read at once.

    Attributes:
        path: path of the file, for messages.
        size: bytes; None if unknown, as for some files of procfs.
        wrappings: layers around the dump that were removed, outermost first: "zstd", "flattened".
        cut: description of how such a layer is truncated; "" if none is.

    """

    path: str
    size: int | None
    wrappings: Sequence[str]
    cut: str

    def extents(self, parts: array[int]) -> Extents | None:
        """Return how to read parts of the file without read_into(), None if there is no other way.

        Args:
            parts: u64 offset, size and position of each, as in Extents.

        """

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill the view with bytes from offset on.

        Raises:
            UnreadableError: the file cannot be read there.
            InputError: the file ends before the view is full.

        """

    def next_data(self, offset: int) -> int:
        """Return the end of the hole at an offset: all bytes from the offset to there read as zeros.

        Returns:
            The offset itself if it is in no hole, or if holes are unknown.

        """

    def data(self, most: int) -> int:
        """Return how many bytes of the file are in no hole; most if there are more."""

    def close(self) -> None:
        """Close the file. Later calls do nothing."""

    def is_file(self, identity: object) -> bool:
        """Return whether this is the file with this stat() result, the one at this URL, or this file object.

        A URL is without its secrets, as in messages.
        """


def is_url(path: str) -> bool:
    """Return whether a path is a URL, and not the name of a file: ./a://b is one."""
    scheme, separator, _ = path.partition("://")
    return bool(scheme and separator) and "/" not in scheme


def bytes_at(source: Source, offset: int, size: int) -> bytes:
    """Return size bytes of a file from offset on. Raises InputError as Source.read_into() does."""
    buffer = bytearray(size)
    source.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def begin_of(source: Source) -> bytes:
    """Return the first 16 bytes of a file, fewer if it is shorter. Raises InputError as Source.read_into() does."""
    return bytes_at(source, 0, 16 if source.size is None else min(source.size, 16))


class PreadSource:
    """Any file that supports pread."""

    def __init__(
        self,
        path: str,
        fd: int,
        wrappings: Sequence[str] = (),
        cut: str = "",
        original: os.stat_result | None = None,
    ) -> None:
        """Take ownership of fd; close() closes it.

        Args:
            path, wrappings, cut: the attributes of Source.
            fd: file to read.
            original: stat() result of the user's file, if fd is an unpacked copy of it.

        """
        self.path = path
        self.wrappings = wrappings
        self.cut = cut
        self._fd = fd
        self._original = original or os.fstat(fd)
        self.size: int | None
        try:
            self.size = os.lseek(fd, 0, os.SEEK_END)  # st_size of a block device is 0
        except OSError:
            self.size = 0

    def extents(self, parts: array[int]) -> Extents | None:
        return None if self._fd < 0 else Extents(self._fd, parts)  # closed: the C core would take offsets for addresses

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def is_file(self, identity: object) -> bool:
        if isinstance(identity, os.stat_result):
            return os.path.samestat(identity, self._original)
        return identity == self.path  # what a URL names was unpacked

    def read_into(self, offset: int, view: memoryview) -> None:
        while view:
            try:
                n = os.preadv(self._fd, [view], offset)
            except (OSError, OverflowError) as e:
                reason = why_not_read(e) if isinstance(e, OSError) else "no file is that long; copy it again"
                raise UnreadableError(f"{self.path}: cannot be read at offset {offset:#x}: {reason}") from e
            if n == 0:
                raise InputError(
                    f"{self.path}: ends at offset {offset:#x}, {len(view)} bytes too early: "
                    "the file is truncated: copy it again"
                )
            view, offset = view[n:], offset + n

    def next_data(self, offset: int) -> int:
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as e:  # ENXIO: there is no data before the end of the file. Others: holes are unknown
            return max(offset, os.fstat(self._fd).st_size) if e.errno == errno.ENXIO else offset
        except OverflowError:  # no file is that long
            return offset

    def data(self, most: int) -> int:
        if self.size is None:
            return most
        end, at, found = self.size, 0, 0
        while found < most and (at := self.next_data(at)) < end:
            try:
                hole = os.lseek(self._fd, at, os.SEEK_HOLE)
            except OSError:  # holes are unknown
                hole = end
            at, found = hole, found + hole - at
        return min(found, most)


class ProcSource(PreadSource):
    """A file of procfs, which the kernel never shrinks: /proc/vmcore, /proc/kcore.

    It is mapped if it can be (/proc/vmcore), since read() makes the kernel map and unmap every page of the old memory.
    Even so a mapping costs more than reading it, mostly for the TLB. So windows of the file stay mapped, and reads of
    a few pages here and there share them. A page of a mapping that cannot be read is an error, not SIGBUS: see
    csrc/mapped.c. A kernel without CONFIG_CROSS_MEMORY_ATTACH lacks what that needs, so its files are read by pread.

    One thread reads at a time. The kernel copies each page through a bounce buffer that concurrent reads share without
    a lock, so two threads would get each other's bytes. extents() gives only mappings whose faults use no such buffer:

    - /proc/kcore: open_kcore() in fs/proc/kcore.c allocates one page per open file (private_data).
      Since df04abfd181a ("fs/proc/kcore.c: Add bounce buffer for ktext data"), v4.8.
    - /proc/vmcore on i386: copy_oldmem_page() in arch/x86/kernel/crash_dump_32.c has one page, kdump_buf_page.
      Until 7e015a279853 ("x86/crashdump/32: Simplify copy_oldmem_page()"), v5.11.
    - /proc/vmcore of a zfcpdump on s390x: drivers/s390/char/zcore.c has one page, hsa_buf. Faults of a mapping use it
      too.
      Until 9ffed254d938 ("s390/zcore: fix race when reading from hardware system area"), v6.0.

    No other file that can contain a dump needs this. A block device is read through the page cache. /dev/mem and
    /dev/crash do not begin with a dump header, so they are refused: read_mem() allocates a page for each read, but
    crash_open() allocates one for each open file.
    """

    def __init__(self, path: str, fd: int) -> None:
        super().__init__(path, fd)
        self.size = self.size or None
        self._reading = Lock()
        self._mapped: dict[int, memoryview] = {}  # windows by number, the least recently used first
        self._places = array("Q")  # the same windows, for native.map_extents()

    def close(self) -> None:
        with self._reading:
            self._unmap(0)
            self._note_places()
            super().close()

    def extents(self, parts: array[int]) -> Extents | None:
        """See Source. Only a mapping is of use: pread() maps and unmaps each page of the old memory."""
        if _HAS_BUFFER_IN_FAULTS:
            return None
        words = array("Q", bytes(2 * parts.itemsize * len(parts)))  # most parts are in one window
        with self._reading:
            for _ in range(_WINDOWS + 1):
                places = self._places
                found, used, missing = native.map_extents(parts, _WINDOW_BYTES, places, words)
                mapped = []
                while used:
                    last = used.bit_length() - 1
                    mapped.append(self._window(places[3 * last]))
                    used ^= 1 << last
                if found >= 0:
                    return Extents(-1, words[: 3 * found], mapped)
                if found < -1:
                    return None
                self._window(missing)
        return None  # they are in too many windows

    def next_data(self, offset: int) -> int:
        return offset

    def data(self, most: int) -> int:
        return most

    def read_into(self, offset: int, view: memoryview) -> None:
        with self._reading:
            while view:
                number, at = divmod(offset, _WINDOW_BYTES)
                part = self._window(number)[at : at + len(view)]
                try:
                    copied = native.copy_mapped(part, view)
                except OSError:  # this kernel does not support it
                    copied = 0
                    part = part[:0]
                offset, view = offset + copied, view[copied:]
                if copied < len(part):
                    reason = f"{os.strerror(errno.EFAULT)}; use another copy if there is one"
                    raise UnreadableError(f"{self.path}: cannot be read at offset {offset:#x}: {reason}")
                if not part:  # it is not mapped
                    super().read_into(offset, view)
                    return

    def _window(self, number: int) -> memoryview:
        """Return a window of the file; empty if it cannot be mapped."""
        window = self._mapped.pop(number, None)
        if window is not None:
            self._mapped[number] = window
            return window
        self._unmap(_WINDOWS - 1)
        self._mapped[number] = window = self._map(number * _WINDOW_BYTES)
        self._note_places()
        return window

    def _map(self, start: int) -> memoryview:
        size = min((self.size or 0) - start, _WINDOW_BYTES)
        if size > 0 and self._fd >= 0:  # mmap would take 0 for all of the file, and -1 for no file
            with suppress(OSError, ValueError, OverflowError):
                return memoryview(mmap.mmap(self._fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ, offset=start))
        return memoryview(b"")

    def _unmap(self, most: int) -> None:
        """Unmap the windows that were not used lately, until so many are left."""
        while len(self._mapped) > most:
            del self._mapped[next(iter(self._mapped))]

    def _note_places(self) -> None:
        places = ((number, native.address(window), len(window)) for number, window in self._mapped.items())
        self._places = array("Q", chain.from_iterable(places))


def _on_procfs(fd: int) -> bool:
    """Return whether a file is on procfs. It can be mounted more than once, with a device number for each mount."""
    device = os.fstat(fd).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            return any(mount.split()[2] == number and " - proc " in mount for mount in mounts)
    except OSError:  # procfs is not mounted on /proc
        return False


def open_source(path: str, fd: int) -> Source:
    """Return the source for a file descriptor: procfs needs one of its own."""
    return ProcSource(path, fd) if _on_procfs(fd) else PreadSource(path, fd)
