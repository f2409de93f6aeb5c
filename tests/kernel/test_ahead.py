"""Windows that threads classify ahead are those that are classified in order."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kernelbuilder import FLAVOURS, Synthetic
from scenes import ANON, CACHE, FILE, FREE, KERNEL, USER, Scene
from synthetic import HUGE, Machine

from vmfilter import filter_dump, native
from vmfilter.compress import workers
from vmfilter.compress.ahead import windows_ahead
from vmfilter.errors import InputError, UnreadableError
from vmfilter.kernel.search import understand
from vmfilter.pages import classify as classification
from vmfilter.pages.classify import WINDOW_PAGES, Classifier, Window
from vmfilter.pages.exclude import Selected, Selection
from vmfilter.reader import Dump, open_dump, source
from vmfilter.reader.segments import SegmentDump

GIB = 1 << 30


def machine(orders: tuple[int, ...]) -> Synthetic:
    """Make a machine with a hugetlb page of each order, one after another, and pages of other classes after them.

    Only struct pages of the sections that matter are in the dump: those of heads, and around the borders of windows.
    """
    m = Synthetic(FLAVOURS["6.12"], physical_bits=33)
    scene = Scene(m, 1 << max(orders))
    for order in orders:
        pfn = scene.take("hugetlb", USER, order)
        m.compound(pfn, 1, mapping=FILE, hugetlb=True)
        page = bytearray(m.section(pfn // 512)[64:128])
        page[0] = order
        m.put_raw(pfn + 1, bytes(page))
        for tail in range(pfn + 2, pfn + 512):
            m.put_raw(tail, m._page(mapping=ANON)[:8] + (m.address(pfn) | 1).to_bytes(8, "little") + m._page()[16:])
        for window in range(pfn + WINDOW_PAGES, pfn + (1 << order), WINDOW_PAGES):
            for tail in range(window, window + 512):
                m.put_raw(tail, m._page()[:8] + (m.address(pfn) | 1).to_bytes(8, "little") + m._page()[16:])
    scene.free(10)
    scene.compound("THP", USER, 9, "lru", "swapbacked", mapping=ANON)
    scene.page("cache", CACHE, "lru", mapping=FILE)
    return m


def classes_of(window: Window) -> bytes:
    return bytes(window.classes)


def copied(windows: Iterator[Window]) -> list[tuple[int, bytes]]:
    return [(window.pfn, classes_of(window)) for window in windows]


def ahead(classifier: Classifier, threads: int) -> Generator[Window, None, None]:
    """Yield windows; what their threads make of each is its classes."""
    for window, found in windows_ahead(classifier, threads, lambda: classes_of):
        assert found == classes_of(window)
        yield window


def classifier_of(dump: Dump) -> Classifier:
    page_size, _, kernel, error, _ = understand(dump)
    assert not error
    return Classifier(dump, page_size, kernel)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("orders", [(18,), (19, 18)])
def test_a_block_that_goes_on_in_the_next_windows(orders: tuple[int, ...], threads: int, tmp_path: Path) -> None:
    path = machine(orders).write(tmp_path / "vmcore")
    with open_dump(path) as dump:
        classifier = classifier_of(dump)
        expected, lists, unknown = copied(classifier.windows()), classifier.lists, classifier.unknown
        assert len(expected) > 2
        assert copied(ahead(classifier, threads)) == expected
        assert (classifier.lists, classifier.unknown) == (lists, unknown)
        assert lists.hugetlb == len(orders)
        assert {c for pfn, classes in expected for c in classes} >= {KERNEL, CACHE, USER, FREE}


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_windows_of_a_large_machine(
    mapped: bool, silent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_on_procfs", lambda fd: mapped)
    monkeypatch.setattr(classification, "_VERY_MANY", 0 if silent else 1 << 60)
    with open_dump(Machine(4 * GIB, blocks=HUGE).write(tmp_path / "vmcore")) as dump:
        classifier = classifier_of(dump)
        expected, lists = copied(classifier.windows()), classifier.lists
        assert copied(ahead(classifier, 3)) == expected
        assert classifier.lists == lists


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_same_dump_whatever_the_number_of_threads(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = machine((18,)).write(tmp_path / "vmcore")
    filter_dump(path, tmp_path / "in order", level=31, threads=1)
    used, real = list[native.Classifier](), native.Classifier.resume

    def resume(by: native.Classifier, other: native.Classifier) -> None:
        used.append(other)
        real(by, other)

    monkeypatch.setattr(native.Classifier, "resume", resume)
    monkeypatch.setattr(classification, "_MANY", 0)
    filter_dump(path, tmp_path / "ahead", level=31, threads=threads)
    assert (tmp_path / "ahead").read_bytes() == (tmp_path / "in order").read_bytes()
    assert bool(used) == (threads > 1)


def selected(selection: Selection, windows: Iterator[tuple[Window, Selected]]) -> tuple[object, ...]:
    """Return everything that is selected of windows."""
    bitmaps = []
    for window, found in windows:
        selection.take(found)
        bitmaps.append((window.pfn, found.present, found.kept, classes_of(window)))
    kept = list(selection.kept.runs()), list(selection.kept.ranked())
    return bitmaps, kept, selection.counts, selection.kinds, selection.uncounted


@pytest.mark.parametrize("threads", [0, 1, 5])
@pytest.mark.parametrize("first_pfn", [0, 200_001])
def test_windows_are_selected_once_whoever_does_it(
    first_pfn: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On threads, of which every second try runs out of memory, or by the caller if there is no room for a thread."""

    def selection() -> Selection:
        made = Selection(31, first_pfn=first_pfn)
        made.choose([(n, n + 7) for n in range(100, 400_000, 3001)], [(n, n + 11) for n in range(105, 400_000, 2003)])
        return made

    tries = itertools.count()

    def selector_of(made: Selection) -> Callable[[], Callable[[Window], Selected]]:
        def selector() -> Callable[[Window], Selected]:
            select = made.selector()

            def failing(window: Window) -> Selected:
                found = select(window)
                if threading.current_thread() is not threading.main_thread() and next(tries) % 2:
                    raise MemoryError
                return found

            return failing

        return selector

    if not threads:
        monkeypatch.setattr(workers, "has_room", lambda: False)
    with open_dump(machine((18,)).write(tmp_path / "vmcore")) as dump:
        classifier, expected, found = classifier_of(dump), selection(), selection()
        select = expected.selector()
        wanted = selected(expected, ((window, select(window)) for window in classifier.windows()))
        lists, unknown = classifier.lists, classifier.unknown
        assert selected(found, windows_ahead(classifier, max(threads, 1), selector_of(found))) == wanted
        assert (classifier.lists, classifier.unknown) == (lists, unknown)
    assert (next(tries) > 1) == (threads > 0)
    assert (found.uncounted > 0) == (first_pfn > 0)


def test_no_thread_is_started_for_a_small_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.Classifier, "resume", lambda a, b: pytest.fail("classified ahead"))
    filter_dump(Synthetic(FLAVOURS["6.12"]).write(tmp_path / "vmcore"), tmp_path / "dump", level=31, threads=4)


def test_unreadable_struct_pages_cost_what_they_describe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m = Synthetic(FLAVOURS["6.12"], vmemmap=False)
    scene = Scene(m)
    for _ in range(512):
        scene.page("cache", CACHE, "lru", mapping=FILE)
    first = scene.at - 512
    path = m.write(tmp_path / "vmcore")
    bad, real = m.memmap_frame(first + 128) * 4096, SegmentDump.read_into

    def failing(dump: SegmentDump, address: int, view: memoryview) -> bool:
        if address <= bad < address + len(view):
            raise UnreadableError("a bad sector")
        return real(dump, address, view)

    monkeypatch.setattr(SegmentDump, "read_into", failing)
    monkeypatch.setattr(native.Classifier, "classify_file", lambda *_, **__: 0)  # the file cannot be read there
    with open_dump(path) as dump:
        classifier = classifier_of(dump)
        before = dump.passed_over
        for windows in classifier.windows(), ahead(classifier, 2):
            found = b"".join(classes for _, classes in copied(windows))[first : first + 512]
            assert found == bytes([CACHE] * 128 + [KERNEL] * 64 + [CACHE] * 320)
            assert classifier.unknown == 64
        assert dump.passed_over == before + 2


def test_what_a_thread_raises_ends_the_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, before = machine((18,)).write(tmp_path / "vmcore"), threading.active_count()
    with open_dump(path) as dump:
        classifier = classifier_of(dump)
        numbers = [pfn for pfn, _ in copied(classifier.windows())]
        real = native.Classifier.classify_file

        def failing(by: native.Classifier, fd: int, extents: object, pfn: int, *rest: object, **ahead: bool) -> int:
            if pfn >= numbers[-1]:
                raise InputError("the file is truncated")
            return real(by, fd, extents, pfn, *rest, **ahead)  # type: ignore[arg-type]

        monkeypatch.setattr(native.Classifier, "classify_file", failing)
        seen = list[int]()
        with pytest.raises(InputError, match="truncated"):
            seen.extend(window.pfn for window in ahead(classifier, 2))
    assert seen == numbers[:-1]
    assert threading.active_count() == before


def test_a_run_that_ends_early_ends_its_threads(tmp_path: Path) -> None:
    before = threading.active_count()
    with open_dump(machine((18,)).write(tmp_path / "vmcore")) as dump:
        with closing(ahead(classifier_of(dump), 3)) as windows:
            next(windows)
        assert threading.active_count() == before
