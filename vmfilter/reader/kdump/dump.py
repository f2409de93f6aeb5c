"""kdump-compressed dumps, read as the physical memory of the crashed machine.

vmfilter/writer/kdump.py has a drawing of the format, vmfilter/formats/kdump.py its headers. Sources: makedumpfile's
IMPLEMENTATION, crash's diskdump.c, libkdumpfile's diskdump.c.
"""

from __future__ import annotations

import struct
import threading

from vmfilter import native
from vmfilter.errors import InputError, MemoryShortError, UnreadableError, fewer_threads
from vmfilter.formats.codec import CODECS
from vmfilter.formats.elf import Load
from vmfilter.formats.kdump import DUMP_DH_COMPRESSED_INCOMPLETE, main_layout
from vmfilter.frames.classes import PageClass
from vmfilter.lean import TYPE_CHECKING
from vmfilter.native import DESCRIPTOR, EXTENT
from vmfilter.reader.dump import Dump, DumpPart, Fetched, Note
from vmfilter.reader.kdump.file import KdumpFile
from vmfilter.reader.kdump.page_index import PageIndex
from vmfilter.reader.kdump.split_set import Part, in_order
from vmfilter.reader.notes import take_notes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmfilter.formats.codec import Codec
    from vmfilter.reader.source import Source

_MAX_NOTES_SIZE = 1 << 28
_MAX_VMCOREINFO_SIZE = 1 << 20
_BATCH_BYTES = 1 << 18  # bytes of pages that are read and decompressed at a time
_DESCRIPTOR = struct.Struct("=QIIQ")
_EXTENT = struct.Struct("=QQQ")


class _Tools:
    """Buffers and decompressor of one thread, and the page that it read last."""

    def __init__(self, page_size: int) -> None:
        try:
            self.decompressor = native.Decompressor(page_size)
        except MemoryError:
            raise MemoryShortError(f"no memory for decompression; {fewer_threads()}") from None
        self.batch = max(_BATCH_BYTES // page_size, 1)
        self.descriptors = bytearray(self.batch * DESCRIPTOR)
        self.extents = bytearray(self.batch * EXTENT)
        self.data = bytearray(self.batch * page_size)
        self.unpacked = bytearray(self.batch * page_size)
        self.page = bytearray(page_size)  # last page that was read in part: the next read often continues there
        self.page_of: int | None = None
        self.page_whole = False


class KdumpDump(Dump):
    """A kdump-compressed file, or all parts of a split set.

    Page frames are numbered as in the file (see PageIndex). They are blocks of the file, which QEMU makes larger than
    the kernel's pages on some machines.

    Attributes:
        files: files of the dump, in order of their page frames.
        index: index of the page frames and their descriptors.

    """

    def __init__(self, *sources: Source, missing_parts: bool = False) -> None:
        """Parse the headers, and take ownership of the sources.

        Args:
            sources: the file, or the parts of a split set in any order.
            missing_parts: whether to accept a split set with missing parts. Their pages count as lost.

        Raises:
            InputError: a file is damaged, or truncated before its descriptors; the files are not one dump; or a part
                is missing.
            KernelError: the architecture is unknown.

        """
        super().__init__(sources[0])
        self._sources = sources
        self._local = threading.local()
        self.files = in_order([KdumpFile(source) for source in sources])
        file = self.files[0]  # all parts have the same headers, notes and bitmaps
        self._source = file.source
        self.path = file.path if len(sources) == 1 else f"{file.path} and {len(sources) - 1} more"
        self.format = f"kdump-compressed, header version {file.version}"
        self.arch = file.arch
        self.page_size = self._size = file.block
        self._find_notes(file)
        if note := self.checksum_note:
            for each in self.files:
                each.find_whole_size(note.offset)
        self._start = file.starts_at
        self.end = self._start + file.frames * self._size
        self.index = PageIndex(self.files, missing_parts, self.pass_over)
        self.header = file.header._replace(incomplete=self.index.incomplete)
        self.truncated = self.index.truncated or self.truncated
        first = self.next_memory(0)
        if first is not None:
            self.loads = [Load(first, self.end, 0)]

    def close(self) -> None:
        for source in self._sources:
            source.close()

    def is_file(self, identity: object) -> bool:
        return any(source.is_file(identity) for source in self._sources)

    def _find_notes(self, file: KdumpFile) -> None:
        sub = file.sub
        for since, what, at, size, most in (
            (3, "VMCOREINFO", sub.offset_vmcoreinfo, sub.size_vmcoreinfo, _MAX_VMCOREINFO_SIZE),
            (4, "notes", sub.offset_note, sub.size_note, _MAX_NOTES_SIZE),
            (5, "erase info", sub.offset_eraseinfo, sub.size_eraseinfo, _MAX_NOTES_SIZE),
        ):
            if file.version < since or not size:
                continue
            is_lost = at + size > file.size
            if size > most or (is_lost and what != "erase info"):
                raise InputError(
                    f"{file.path}: damaged or truncated: {what} of {size} bytes at offset {at:#x}; copy it again"
                )
            if what == "notes":
                take_notes(self, at, size)
            elif what == "erase info" and not is_lost:
                self.erase_info = (at, size)
        if file.version >= 3 and sub.size_vmcoreinfo and not any(n.name == b"VMCOREINFO" for n in self.notes):
            at = sub.offset_vmcoreinfo
            self.notes.append(Note(b"VMCOREINFO", 0, at, sub.size_vmcoreinfo, at))

    def marked_header(self) -> bytes:
        file = self.files[0]
        return main_layout(file.form).pack(*file.main._replace(status=file.main.status | DUMP_DH_COMPRESSED_INCOMPLETE))

    def next_memory(self, address: int) -> int | None:
        return self._next_address(address, self.end)

    def has_memory(self, start: int, end: int) -> bool:
        # The base class would search beyond end, and a hole can be long.
        return self._next_address(start, end) is not None

    def _next_address(self, start: int, end: int) -> int | None:
        size, base = self._size, self._start
        pfn = self.index.next_frame((start - base) // size, -(-(end - base) // size))
        return None if pfn is None else max(base + pfn * size, start)

    def mark(self, pfn: int, page_size: int, classes: memoryview) -> None:
        start, end = pfn * page_size, (pfn + len(classes)) * page_size
        for bits_of, value in (self.index.memory, PageClass.EXCLUDED), (self.index.held, PageClass.KERNEL):
            for at, upto in self._areas(start, end, bits_of):
                first, last = at // page_size - pfn, -(-upto // page_size) - pfn
                classes[first:last] = bytes((value,)) * (last - first)

    def covered(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        return self._areas(start, end, self.index.held)

    def lost(self) -> Iterator[tuple[int, int]]:
        return self._areas(0, self.end, self.index.lost) if self.header.incomplete else iter(())

    def _areas(self, start: int, end: int, bits_of: Callable[[int], bytes]) -> Iterator[tuple[int, int]]:
        """Yield ranges of the physical addresses [start, end) whose frames' bits are set."""
        size, base = self._size, self._start
        for pfn, n in self.index.runs((start - base) // size, -(-(end - base) // size), bits_of):
            yield max(base + pfn * size, start), min(base + (pfn + n) * size, end)

    def read_into(self, address: int, view: memoryview) -> bool:
        size = self._size
        done, whole = 0, True
        while done < len(view):
            pfn, skip = divmod(address - self._start + done, size)
            n = min(size - skip, len(view) - done)
            if n < size:
                tools = self._tools()
                if tools.page_of != pfn:
                    tools.page_of = None
                    tools.page_whole = self._read_pages(pfn, memoryview(tools.page))
                    tools.page_of = pfn
                whole &= tools.page_whole
                view[done : done + n] = memoryview(tools.page)[skip : skip + n]
            else:
                n = (len(view) - done) // size * size
                whole &= self._read_pages(pfn, view[done : done + n])
            done += n
        return whole

    def _read_pages(self, pfn: int, view: memoryview) -> bool:
        size, tools, index = self._size, self._tools(), self.index
        count = len(view) // size
        done = missing = 0
        for first, n in index.runs(pfn, pfn + count, index.held):
            at = first - pfn
            if at > done:
                view[done * size : at * size] = bytes((at - done) * size)
                missing += at - done
            for part, start, end in index.parts_of(first, first + n):
                rank = index.rank(start) - part.before
                for i in range(0, end - start, tools.batch):
                    m, to = min(tools.batch, end - start - i), start - pfn + i
                    fetched = self._fetch(tools, part, rank + i, start + i, m)
                    self._decompress(tools, part.file, fetched, start + i, view[to * size : (to + m) * size])
            done = at + n
        if done < count:
            view[done * size :] = bytes((count - done) * size)
            missing += count - done
        return missing == 0

    def _tools(self) -> _Tools:
        try:
            tools: _Tools = self._local.tools
        except AttributeError:
            tools = self._local.tools = _Tools(self._size)
        return tools

    @property
    def kept(self) -> int:
        return self.index.kept

    @property
    def parts(self) -> list[DumpPart]:
        if not self.files[0].is_part:
            return []
        parts = [DumpPart(file.path, file.first, file.end, file.source.wrappings) for file in self.files]
        return sorted([*parts, *(DumpPart("", *missing) for missing in self.index.missing)], key=lambda p: p[1:3])

    @property
    def sources(self) -> list[Source]:
        return [file.source for file in self.files]

    def contents_of(self, file: int, areas: Sequence[tuple[int, int]]) -> list[str]:
        from vmfilter.reader.kdump.contents import contents_of

        return contents_of(self.files[file], self.index, areas)

    def codec(self) -> Codec:
        from vmfilter.reader.kdump.descriptors import codec_of

        return codec_of(self.files[0], self.index)

    def codecs(self) -> dict[str, int]:
        from vmfilter.reader.kdump.descriptors import tally

        names = {codec.flag: codec.name for codec in CODECS.values()}
        return {names.get(flag, f"flags {flag:#x}"): n for flag, n in sorted(tally(self.index).flags.items())}

    def faults(self) -> Iterator[str]:
        from vmfilter.reader.kdump.check import faults

        return faults(self.files, self.index)

    def fetch(self, address: int, count: int) -> Fetched:
        tools = self._tools()
        pfn = (address - self._start) // self._size
        part, start, end = next(iter(self.index.parts_of(pfn, pfn + min(count, tools.batch))))
        fetched = self._fetch(tools, part, self.index.rank(start) - part.before, start, end - start)
        self._decompress(tools, part.file, fetched, start, memoryview(tools.unpacked))
        return fetched

    def _fetch(self, tools: _Tools, part: Part, rank: int, pfn: int, count: int) -> Fetched:
        """Read count pages, a batch at most, without decompressing them.

        rank is the number of the first descriptor within the part; pfn is its page frame, for messages.
        """
        source, at = part.file.source, part.descriptors + rank * DESCRIPTOR
        descriptors = memoryview(tools.descriptors)[: count * DESCRIPTOR]
        source.read_into(at, descriptors)
        if self.arch.abi.swapped:
            native.swap_descriptors(descriptors)
        try:
            extents = native.extents_of(descriptors, self._size, part.data, tools.extents)
        except native.BadDescriptorError as e:
            offset, size, _, _ = _DESCRIPTOR.unpack_from(descriptors, e.index * DESCRIPTOR)
            raise UnreadableError(
                f"{part.file.path}: damaged: the descriptor of frame {pfn + e.index:#x}, at offset "
                f"{at + e.index * DESCRIPTOR:#x}, points to {size} bytes at {offset:#x}; copy it again"
            ) from None
        data = memoryview(tools.data)
        try:
            for offset, size, to in list(_EXTENT.iter_unpack(extents)):  # a failure must not keep extents in use
                source.read_into(offset, data[to : to + size])
        except InputError as e:  # data after the end of the file is lost like any that cannot be read
            raise UnreadableError(str(e)) from e
        return Fetched(count, descriptors, extents, tools.data)

    def _decompress(self, tools: _Tools, file: KdumpFile, fetched: Fetched, pfn: int, view: memoryview) -> None:
        """Decompress fetched pages, the first of which is frame pfn, into a view."""
        size, done = self._size, 0
        while True:
            rest = fetched.descriptors[done * DESCRIPTOR :]
            done += tools.decompressor.decompress(rest, fetched.extents, fetched.data, view[done * size :])
            if done == fetched.pages:
                return
            at, length, flag, _ = _DESCRIPTOR.unpack_from(fetched.descriptors, done * DESCRIPTOR)
            where = f"frame {pfn + done:#x}, {length} bytes at offset {at:#x}"
            view[done * size : (done + 1) * size] = self._expand(file, flag, at, length, where)
            done += 1

    def _expand(self, file: KdumpFile, flag: int, at: int, length: int, where: str) -> bytes:
        """Decompress a page that the C core could not decompress, with the codec's Python package."""
        size = self._size
        codec: Codec | None = next((c for c in CODECS.values() if c.flag == flag), None)
        if codec is None:
            raise UnreadableError(
                f"{file.path}: {where}: unknown page flags {flag:#x}; use a newer vmfilter, or copy it again"
            )
        if not flag:
            raise UnreadableError(
                f"{file.path}: damaged: {where}: marked as uncompressed, but a page has {size} bytes; copy it again"
            )
        if native.decompresses(flag):
            raise UnreadableError(
                f"{file.path}: damaged: {where}: {codec.name} cannot decompress them to a page; copy it again"
            )
        if codec.expand is None:
            raise InputError(
                f"{file.path}: {where}: this vmfilter was built without the library of {codec.name}; "
                "install it, and build again"
            )
        page = codec.expand(file.read(at, length), size)
        if page is None or len(page) != size:
            raise UnreadableError(
                f"{file.path}: damaged: {where}: {codec.name} cannot decompress them to a page; copy it again"
            )
        return page
