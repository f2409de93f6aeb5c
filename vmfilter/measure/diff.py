"""What differs between two dumps: of one vmcore, or of one machine at two times."""

from __future__ import annotations

from collections import Counter
from itertools import groupby, pairwise

from vmfilter import native
from vmfilter.compress.budget import budget
from vmfilter.compress.workers import Task, WorkerPool
from vmfilter.errors import InputError
from vmfilter.frames.classes import PageClass, class_in
from vmfilter.lean import TYPE_CHECKING, NamedTuple, closing, deque
from vmfilter.measure.walk import Walk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.measure.walk import Stretch
    from vmfilter.reader import Dump

MAX_RUNS = 1 << 16
"""Limit of the runs that are listed."""
_CHUNK_BYTES = 1 << 19
_NOT_KEPT = PageClass.HOLE, PageClass.EXCLUDED
_NOT_READ = PageClass.HWPOISON, PageClass.OFFLINE


class Difference(NamedTuple):
    """Page frames [start, end) that differ in the same way.

    Attributes:
        start, end: page frames.
        a, b: class and kind in either dump, as a frame's byte; None if the dump does not contain the frames.
        contents: whether the contents differ, or cannot be read.

    """

    start: int
    end: int
    a: int | None
    b: int | None
    contents: bool


class Diff(NamedTuple):
    """The differences of two dumps.

    Attributes:
        page_size: bytes.
        counts: frames by class and kind in either dump (see Difference) and by whether their contents differ.
        compared: number of frames whose contents were compared.
        runs: the first MAX_RUNS differences.
        more: number of the others.
        warnings: one line each.

    """

    page_size: int
    counts: dict[tuple[int | None, int | None, bool], int]
    compared: int
    runs: list[Difference]
    more: int
    warnings: list[str]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.counts


def diff_dumps(a: Dump, b: Dump, threads: int | None = None) -> Diff:
    """Compare two dumps frame by frame.

    Args:
        a, b: the dumps.
        threads: number of threads that read; None: one per CPU.

    Returns:
        The differences.

    Raises:
        InputError: a file is damaged, or the dumps are of different architectures or page sizes.
        KernelError: a kernel cannot be understood.
        UsageError: the number of threads is out of range.

    """
    if a.arch.name != b.arch.name:
        raise InputError(
            f"{b.path}: is a dump of {b.arch.name}, but {a.path} is one of {a.arch.name}; compare dumps of one machine"
        )
    walks = Walk(a, zones=False), Walk(b, zones=False)
    size = walks[0].page_size
    if walks[1].page_size != size:
        raise InputError(
            f"{b.path}: its pages have {walks[1].page_size} bytes, but those of {a.path} have {size}; "
            "compare dumps of one kernel"
        )
    counts, runs, more = Counter[tuple[int | None, int | None, bool]](), list[Difference](), 0
    with closing(_Comparison(a, b, size, threads)) as comparison:
        for one in _joined(comparison.differences(_parts(*(walk.stretches() for walk in walks)))):
            counts[one[2:]] += one.end - one.start
            if len(runs) < MAX_RUNS:
                runs.append(one)
            else:
                more += 1
    warnings = [*walks[0].warnings, *walks[1].warnings, *_strangers(a, b, walks)]
    return Diff(size, dict(counts), comparison.compared, runs, more, warnings)


def _strangers(a: Dump, b: Dump, walks: tuple[Walk, Walk]) -> Iterator[str]:
    """Yield a warning if the dumps are of two kernels: the user may have named the wrong file."""
    x, y = (walk.kernel.uts for walk in walks)
    if (x.release, x.version) == (y.release, y.version) or not (x.release and y.release):
        return
    names = [field.decode("ascii", "backslashreplace") for field in (y.release, x.release)]
    if names[0] == names[1]:
        names = [field.decode("ascii", "backslashreplace") for field in (y.version, x.version)]
    yield f"{b.path}: its kernel is {names[0]}, and that of {a.path} {names[1]}: pages at one address have no relation"


def _joined(differences: Iterator[Difference]) -> Iterator[Difference]:
    """Merge differences that touch and are alike."""
    last: Difference | None = None
    for one in differences:
        if last and (last.end, *last[2:]) == (one.start, *one[2:]):
            last = last._replace(end=one.end)
            continue
        if last:
            yield last
        last = one
    if last:
        yield last


class _Part(NamedTuple):
    """Page frames [start, end), and their byte in either dump."""

    start: int
    end: int
    a: int
    b: int

    @property
    def is_read(self) -> bool:
        """Whether the contents are compared: both dumps contain them, and reading them is safe."""
        return not {class_in(self.a), class_in(self.b)}.intersection((*_NOT_KEPT, *_NOT_READ))

    def differs(self, contents: bool) -> Iterator[Difference]:
        """Yield what the classes say of these frames, given whether the contents differ; nothing if all is the same."""
        a, b = (None if class_in(byte) in _NOT_KEPT else byte for byte in self[2:])
        if a != b or contents:
            yield Difference(self.start, self.end, a, b, contents)


def _parts(a: Iterator[Stretch], b: Iterator[Stretch]) -> Iterator[_Part]:
    """Yield all frames of both dumps, whose windows begin at the same frames."""
    x, y = next(a, None), next(b, None)
    while x or y:
        pfn = min(window.pfn for window in (x, y) if window)
        ours, theirs = (bytes(window.classes) if window and window.pfn == pfn else b"" for window in (x, y))
        length = max(len(ours), len(theirs))
        both = [classes.ljust(length, bytes((PageClass.HOLE,))) for classes in (ours, theirs)]
        starts = sorted({i for classes in both for i, _ in native.class_runs(classes)})
        for i, end in pairwise([*starts, length]):
            yield _Part(pfn + i, pfn + end, both[0][i], both[1][i])
        x, y = next(a, None) if ours else x, next(b, None) if theirs else y


def _chunks(parts: Iterator[_Part], pages: int) -> Iterator[list[_Part]]:
    """Cut parts into chunks: of as many pages to read as given, or as many parts that are not read."""
    chunk, room = list[_Part](), pages
    for part in parts:
        while part.is_read and part.end - part.start > room:
            chunk.append(part._replace(end=part.start + room))
            yield chunk
            part, chunk, room = part._replace(start=part.start + room), [], pages
        chunk.append(part)
        room -= part.end - part.start if part.is_read else 1
        if not room:
            yield chunk
            chunk, room = [], pages
    yield chunk


class _Chunk(Task["_Reader"]):
    """Parts to compare, and what differs."""

    def __init__(self, parts: list[_Part]) -> None:
        super().__init__()
        self._parts = parts
        self.found: list[Difference] = []

    def do(self, worker: _Reader) -> None:
        self.found = [one for part in self._parts for one in worker.compare(part)]

    @property
    def compared(self) -> int:
        """Number of pages whose contents are compared."""
        return sum(part.end - part.start for part in self._parts if part.is_read)


class _Reader:
    """Compares parts, for one thread."""

    def __init__(self, a: Dump, b: Dump, page_size: int) -> None:
        self._size = page_size
        self._sides = [(dump, memoryview(bytearray(_CHUNK_BYTES))) for dump in (a, b)]

    def compare(self, part: _Part) -> Iterator[Difference]:
        if not part.is_read:
            yield from part.differs(False)
            return
        size, start = self._size, part.start
        lost, pages = set[int](), list[bytes]()
        for dump, buffer in self._sides:
            view = buffer[: (part.end - start) * size]
            lost.update(first // size for first, _, _ in dump.read_around(start * size, view, size))
            pages.append(bytes(view))
        if not lost and pages[0] == pages[1]:
            yield from part.differs(False)
            return
        differ = [
            i in lost or pages[0][i * size : (i + 1) * size] != pages[1][i * size : (i + 1) * size]
            for i in range(part.end - start)
        ]
        for contents, frames in groupby(range(len(differ)), differ.__getitem__):
            first, *others = frames
            yield from part._replace(start=start + first, end=start + first + 1 + len(others)).differs(contents)


class _Comparison:
    """Compares on several threads, with a bounded number of chunks in flight."""

    def __init__(self, a: Dump, b: Dump, page_size: int, threads: int | None) -> None:
        limits = budget(threads)
        self._pages, self._most = _CHUNK_BYTES // page_size, limits.chunks
        self._pool = WorkerPool(lambda: _Reader(a, b, page_size), limits.threads)
        self.compared = 0

    def differences(self, parts: Iterator[_Part]) -> Iterator[Difference]:
        """Yield the differences, in order. Raises what reading raised."""
        pending = deque[_Chunk]()
        for chunk in _chunks(parts, self._pages):
            if len(pending) == self._most:
                yield from self._taken(pending.popleft())
            pending.append(_Chunk(chunk))
            self._pool.submit(pending[-1])
        while pending:
            yield from self._taken(pending.popleft())

    def _taken(self, chunk: _Chunk) -> list[Difference]:
        chunk.wait()
        self.compared += chunk.compared
        return chunk.found

    def close(self) -> None:
        """End the threads."""
        self._pool.end()
