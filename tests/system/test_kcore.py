"""/proc/kcore: what part of it is memory, what is excluded, and what happens if it cannot be read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from elfbuilder import PAGE, Elf, Load, vmcoreinfo_note

import vmfilter
from vmfilter.reader import kcore, open_dump
from vmfilter.reader import open as reader
from vmfilter.reader.kcore import KcoreDump
from vmfilter.reader.source import PreadSource

NONE = (1 << 64) - 1
IOMEM = """00000000-00000fff : Reserved
00001000-0009fbff : System RAM
  00100000-00103fff : System RAM
    00101000-00101fff : Crash kernel
    00103000-00103fff : Crash kernel (low)
fec00000-fec003ff : IOAPIC 0
"""


def pages(*numbers: int) -> bytes:
    return b"".join(bytes([n]) * PAGE for n in numbers)


KCORE = [
    Load(0x2000, pages(3), vaddr=0xFFFFFFFF81000000),  # the kernel's text, which is in RAM as well
    Load(NONE, pages(99), vaddr=0xFFFFC90000000000),  # vmalloc
    Load(0x1000, pages(2, 3, 4), vaddr=0xFFFF888000001000),
    Load(0x100000, pages(10, 11, 12, 13), vaddr=0xFFFF888000100000),
]

OTHERS = [(0x100000, 0x101000), (0x102000, 0x103000)]

Opened = Callable[..., KcoreDump]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Open a file as if it were /proc/kcore."""

    def get(loads: list[Load] = KCORE, iomem: str | None = IOMEM) -> KcoreDump:
        path = Elf(loads, vmcoreinfo_note("OSRELEASE=6.1\n")).write(tmp_path / "kcore")
        monkeypatch.setattr(reader, "KCORE", str(path))
        monkeypatch.setattr(kcore, "IOMEM", str(tmp_path / "iomem"))
        if iomem is not None:
            (tmp_path / "iomem").write_text(iomem)
        dump = open_dump(path)
        assert isinstance(dump, KcoreDump)
        return dump

    return get


def test_ram_is_present_and_the_crash_kernel_is_not(opened: Opened) -> None:
    with opened() as dump:
        assert list(dump.covered(0, dump.end)) == [(0x1000, 0x4000), (0x100000, 0x101000), (0x102000, 0x103000)]
        assert dump.read(0x1000, 3 * PAGE) == pages(2, 3, 4)
        assert dump.read(0x100000, PAGE) == pages(10)
        assert dump.read(0x102000, PAGE) == pages(12)
        assert dump.read(0x101000, PAGE) is None
        assert [n.name for n in dump.notes] == [b"VMCOREINFO"]
        assert dump.format == "the running system's memory (ELF64)"
        assert dump.warnings == []


def test_without_a_crash_kernel_all_memory_is_present(opened: Opened) -> None:
    with opened(iomem="00001000-0009fbff : System RAM\n") as dump:
        assert dump.read(0x100000, 4 * PAGE) == pages(10, 11, 12, 13)


def test_other_files_are_not_the_running_system(opened: Opened, tmp_path: Path) -> None:
    opened().close()
    copy = Elf(KCORE).write(tmp_path / "copy")
    with open_dump(copy) as dump:
        assert dump.read(0x101000, PAGE) == pages(11)


@pytest.mark.parametrize("iomem", ["", "00000000-00000000 : System RAM\n  00000000-00000000 : Crash kernel\n", None])
def test_an_iomem_without_contents_is_reported(opened: Opened, iomem: str | None, tmp_path: Path) -> None:
    with pytest.raises(vmfilter.InputError, match=r"^.*iomem: .*crash kernel's memory") as refused:
        opened(iomem=iomem)
    assert "\n" not in str(refused.value)


def test_an_old_kernel_has_no_physical_addresses(opened: Opened) -> None:
    with pytest.raises(vmfilter.InputError, match=r"older than 4\.11"):
        opened([Load(0, pages(1, 2)), Load(0, pages(3))])


def test_a_system_with_only_the_crash_kernel_is_refused(opened: Opened) -> None:
    with pytest.raises(vmfilter.InputError, match="no memory but the crash kernel's"):
        opened([Load(0x101000, pages(1))])


@pytest.mark.parametrize("error", [errno.EIO, errno.EFAULT])
def test_unreadable_pages_are_lost(opened: Opened, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: int) -> None:
    with opened() as dump:
        bad = next(p.offset + 0x2000 - p.start for p in dump.segments if p.start <= 0x2000 < p.end)
        preadv = os.preadv

        def fails(fd: int, views: list[memoryview], offset: int) -> int:
            if offset < bad + PAGE and offset + len(views[0]) > bad:
                raise OSError(error, os.strerror(error))
            return preadv(fd, views, offset)

        monkeypatch.setattr(os, "preadv", fails)
        with pytest.raises(vmfilter.InputError, match="cannot be read at offset"):
            dump.read(0x1FF0, 32)
        assert dump.read(0x1FF0, 16) == bytes([2]) * 16
        result = vmfilter.filter_dump(dump, tmp_path / "out", level=0)
    assert (result.lost, result.unreadable_at, result.incomplete) == (1, [(0x2000, 0x3000)], True)
    with open_dump(tmp_path / "out") as new:
        assert list(new.covered(0, new.end)) == [(0x1000, 0x2000), (0x3000, 0x4000), *OTHERS]


def test_the_reported_size_of_the_file_makes_no_difference(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    init = PreadSource.__init__

    def small(self: PreadSource, *args: object) -> None:
        init(self, *args)  # type: ignore[arg-type]
        self.size = 100

    monkeypatch.setattr(PreadSource, "__init__", small)
    with opened() as dump:
        assert dump.read(0x102000, PAGE) == pages(12)


def _can_be_read() -> bool:
    try:
        with open("/proc/kcore", "rb") as f:
            return f.read(4) == b"\x7fELF"
    except OSError:  # hidden in a container, or refused by a locked down kernel
        return False


@pytest.mark.skipif(not _can_be_read(), reason="the running system's memory cannot be read here")
def test_the_running_system() -> None:
    with open_dump("/proc/kcore") as dump:
        assert isinstance(dump, KcoreDump)
        first = dump.next_memory(0)
        assert first is not None
        assert dump.read_into(first, memoryview(bytearray(16 * PAGE))) in (True, False)
