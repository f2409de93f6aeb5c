"""Where fuzzing starts: small good files of each kind, made by the builders of tests/support and by vmfilter itself."""

from __future__ import annotations

import bz2
import functools
import gzip
import itertools
import lzma
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import crashbuilder
import imagebuilder
import lz4.frame
import vmlinuxbuilder
import zstandard
from elfbuilder import PT_NOTE, Elf, Load, note
from kdumpbuilder import PRSTATUS, SUB
from kernelbuilder import DEVICE, FLAVOURS, RAM, Synthetic
from logbuilder import Message, Ring, cleared_at, plain, records
from machines import MACHINES
from spans import join_parts
from splitbuilder import parts_of, whole_file
from tinyvmcore import INFO, MAP, vmcore
from typesbuilder import Kallsyms, Types

from vmfilter import filter_dump
from vmfilter.pages.pmem.info_block import fletcher64

TESTDATA = Path(__file__).parents[1] / "testdata"
PAGE = 4096
PMEM = 0x100000000
_KERNEL_PAGES = 17  # of the tiny vmcore: page tables, name, sections, struct pages
_PLACE = (
    *(b"SYMBOL", b"PAGESIZE", b"OFFSET(uts", b"NUMBER(phys", b"NUMBER(sme", b"NUMBER(pgt"),
    *(b"NUMBER(SEC", b"NUMBER(MAX", b"SIZE(mem", b"OFFSET(mem", b"LENGTH(mem"),
)
"""Lines of VMCOREINFO that tell where things are in the tiny vmcore; later lines count."""
_LARGEST = 1 << 18  # bytes of a seed: larger ones make every run slow
_CODECS = ("none", "zlib", "lzo", "snappy", "zstd", "lz4")


def tiny_kernel() -> Load:
    """Return the memory of the tiny vmcore's kernel."""
    load = vmcore().loads[0]
    return replace(load, data=load.data[: _KERNEL_PAGES * PAGE])


def tiny(info: bytes = INFO, *more: Load) -> Elf:
    """Return the tiny vmcore with this VMCOREINFO, and little more memory than its kernel."""
    elf = vmcore(info)
    elf.loads = [tiny_kernel(), Load(0x30000, elf.loads[1].data[: 2 * PAGE]), *more]
    return elf


def _made(build: Callable[[Path], object]) -> bytes:
    """Return the bytes of a file that is made by a function of its path."""
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder, "made"))
        return Path(folder, "made").read_bytes()


def _filtered(**options: object) -> bytes:
    def build(path: Path) -> None:
        tiny().write(path.with_name("vmcore"))
        filter_dump(path.with_name("vmcore"), path, threads=1, **options)  # type: ignore[arg-type]

    return _made(build)


@functools.cache
def _dumps() -> list[bytes]:
    """Return dumps by vmfilter of each form, with checksums."""
    forms: list[dict[str, object]] = [{"level": 0, "compress": codec} for codec in _CODECS]
    forms += [{"level": 31}, {"level": 1, "dedup": True}, {"level": 31, "format": "elf"}, {"level": 0, "format": "elf"}]
    return [_filtered(**form) for form in forms]


def elf() -> Iterator[bytes]:
    """ELF vmcores of both classes and byte orders."""
    yield tiny().build()
    for elf_class, order, machine in ((1, 1, 3), (2, 2, 22), (2, 2, 21), (1, 1, 40), (2, 1, 183)):
        loads = [replace(load, vaddr=0) for load in tiny().loads]
        yield Elf(loads, elf_class=elf_class, data=order, machine=machine).build()
    excluded = [tiny_kernel(), Load(0x40000, bytes(3 * PAGE), left_out=9 * PAGE), Load(PMEM, bytes(PAGE), flags=0x17)]
    yield replace(tiny(), loads=excluded).build()
    yield replace(tiny(), notes=tiny().notes + note(b"ERASEINFO", 0, b"erase bytes")).build()
    yield from (dump for dump in _dumps() if dump.startswith(b"\x7fELF"))


def kdump() -> Iterator[bytes]:
    """kdump-compressed dumps of each version, byte order, header form and codec, and vmfilter's."""
    whole = whole_file(frames=24)
    for version in range(1, 7):
        notes = tiny().notes if version > 3 else b""
        yield replace(whole, codec=lambda pfn: _CODECS[pfn % 6], version=version, notes=notes).build()
    for header, endian, machine in zip(["64", *SUB], "><<<", (b"s390x", b"x86_64", b"i686", b"armv7l"), strict=True):
        yield replace(whole, header=header, endian=endian, machine=machine).build()
    for _, _, endian, header, size in PRSTATUS:  # by QEMU
        notes = Elf(data=2 if endian == ">" else 1).note(b"CORE", 1, bytes(size))
        yield replace(whole, machine=b"", endian=endian, header=header, notes=notes).build()
    yield replace(whole, lost={5, 6}, share=True, bitmap_blocks=1, vmcoreinfo=INFO).build()
    yield from (dump for dump in _dumps() if dump.startswith(b"KDUM"))


def split() -> Iterator[bytes]:
    """Split sets."""
    for version in (2, 6):
        files = [part.build() for part in parts_of(whole_file(frames=40, version=version), 12, 25)]
        yield join_parts(files)
        yield join_parts(files[1:])


def flattened() -> Iterator[bytes]:
    """Flattened files."""
    yield _filtered(level=31, flatten=True)
    yield _filtered(level=0, compress="lzo", flatten=True)
    yield _filtered(level=31, format="elf", flatten=True)


def wrapped() -> Iterator[bytes]:
    """Files compressed as a whole."""
    for inner in (tiny().build(), _filtered(level=31, flatten=True)):
        yield zstandard.ZstdCompressor(write_checksum=True).compress(inner)
        yield gzip.compress(inner, 1)
        yield lzma.compress(inner, preset=0)
        yield bz2.compress(inner, 1)
        yield lz4.frame.compress(inner)
        yield zstandard.ZstdCompressor().compress(gzip.compress(inner))


def vmcoreinfo() -> Iterator[bytes]:
    """VMCOREINFO of the tiny vmcore, and struct pages of synthetic kernels, and of the real ones in testdata/."""
    yield INFO
    place = [line for line in INFO.splitlines() if line.startswith(_PLACE)]
    for flavour in FLAVOURS.values():
        yield b"\n".join(["\n".join(flavour.lines()).encode(), *place, b""])
    for path in sorted(TESTDATA.glob("*.vmcore.zst")):
        with open(path, "rb") as file:
            begin = zstandard.ZstdDecompressor().stream_reader(file).read(1 << 20)
        at = begin.find(b"OSRELEASE=")
        if at >= 0:
            yield b"\n".join([begin[at : begin.find(b"\0", at)], *place, b""])


def search() -> Iterator[bytes]:
    """Memory with VMCOREINFO, as a page of text and as the note."""
    yield INFO
    yield bytes(PAGE) + INFO.ljust(PAGE, b"\0") + note(b"VMCOREINFO", 0, INFO)
    yield note(b"VMCOREINFO", 0, INFO) + bytes(100) + INFO[:-300] + b"\n" + INFO


def _compact(data: bytes) -> bytes:
    """Return a synthetic vmcore whose empty memory, at its end, has the contents of its beginning instead."""
    wide, order = data[4] == 2, ">" if data[5] == 2 else "<"
    program, head = (f"{order}IIQQQQQQ", f"{order}Q") if wide else (f"{order}IIIIIIII", f"{order}I")
    (phoff,) = struct.unpack_from(head, data, 32 if wide else 28)
    (count,) = struct.unpack_from(order + "H", data, 56 if wide else 44)
    size, at_offset, at_size = struct.calcsize(program), *((2, 5) if wide else (1, 4))
    rows = [list(struct.unpack_from(program, data, phoff + i * size)) for i in range(count)]
    notes = next(i for i, row in enumerate(rows) if row[0] == PT_NOTE)
    end = max(row[at_offset] + row[at_size] for row in rows[notes:])
    out = bytearray(data[:end])
    for i, row in enumerate(rows[:notes]):  # the builder puts empty memory before the notes
        row[at_offset], row[at_size] = 0, min(row[at_size], end)
        struct.pack_into(program, out, phoff + i * size, *row)
    return bytes(out)


def _synthetic(machine: Synthetic) -> Iterator[bytes]:
    """Yield a synthetic vmcore if it is small enough."""
    data = _compact(_made(machine.write))
    if len(data) <= _LARGEST:
        yield data


def kernel() -> Iterator[bytes]:
    """Kernels of each kind of struct page, memory model and machine."""
    for flavour in FLAVOURS.values():
        machine = Synthetic(flavour)
        first = machine.kernel_at // PAGE
        machine.put(first, "lru", mapping=0xFFFF888000ABCD01)
        machine.compound(first + 4, 2, "lru", hugetlb=True)
        machine.free(first + 8, 3)
        yield from _synthetic(machine)
    for sparse, levels in (("static", 4), ("array", 5), ("pointer", 4)):
        yield from _synthetic(Synthetic(sparse=sparse, levels=levels, text_vaddr=True, physical_bits=29))
    for other in MACHINES.values():
        if other.page <= 4 * PAGE and other.section_bits < 27:
            yield from _synthetic(Synthetic(FLAVOURS["6.12"], other))


def log() -> Iterator[bytes]:
    """Kernels with a log of each form."""
    messages = [Message(b"message %d" % i, i * 10**9, subsystem=b"pci" * (i % 2), device=b"+pci" * 2) for i in range(9)]
    for name in (None, "i386, classic, FLATMEM", "s390x, 3 levels"):
        machine = MACHINES[name] if name else None
        text = Synthetic(machine=machine)
        plain(text, b"<6>[    0.000000] Linux version\n<4>second\n" * 5, 4096, logged=100)
        variable = Synthetic(machine=machine)
        records(variable, messages, 4096, caller=True, clear=64)
        ring = Ring(Synthetic(machine=machine))
        for message in messages * 3:
            ring.put(message)
        ring.write()
        cleared_at(ring.machine, 5, latch=1)
        yield from itertools.chain.from_iterable(map(_synthetic, (text, variable, ring.machine)))


def crash() -> Iterator[bytes]:
    """Crashed machines with symbols, types, tasks and stacks."""
    for name in ("x86_64", "s390x, 3 levels"):
        yield from _synthetic(crashbuilder.scene(name).s)


def btf() -> Iterator[bytes]:
    """Types of either byte order."""
    for word, sign in ((8, "<"), (8, ">"), (4, "<")):
        types = Types(word, sign)
        types.struct("task_struct", {"pid": "int", "comm": "char[16]", "tasks": "list_head"})
        yield types.build()


def kallsyms() -> Iterator[bytes]:
    """Compressed names of symbols, after their tokens."""
    table = Kallsyms([("_stext", "T", 0), ("start_kernel", "t", 64), ("x" * 200, "d", 128)])
    names = table.names()
    yield b"\0".join([*table.tokens, names])


_DEFINITIONS = b"""
struct list_head { struct list_head *next, *prev; };
enum comm { SHORT = 1, LONG = -2 };
struct page { unsigned long flags; union { struct list_head lru; void (*free)(int); }; unsigned low : 3, high : 7; };
struct task_struct { int pid; char comm[16][2]; struct list_head tasks; struct page *page; enum comm kind; };
struct task_struct task;
"""


def vmlinux() -> Iterator[bytes]:
    """A vmlinux with types in BTF and, if there is a C compiler, with those in DWARF."""
    symbols = [("cpu_number", "A", 0x40), ("_stext", "T", 0xFFFFFFFF81000000), ("vfs_read", "t", 0xFFFFFFFF81000040)]
    yield _made(lambda to: vmlinuxbuilder.vmlinux(to, symbols, bytes(range(20)), {".BTF": next(btf())}))
    for version in ("-gdwarf-4", "-gdwarf-5", "-gz") if shutil.which("cc") else ():
        command = ["cc", "-g", version, "-nostdlib", "-static", "-Wl,-e,0", "-x", "c", "-", "-o"]
        yield _made(functools.partial(_compile, command))


def _compile(command: list[str], to: Path) -> None:
    subprocess.run([*command, str(to)], input=_DEFINITIONS, check=True, capture_output=True)


def image() -> Iterator[bytes]:
    """Machines without VMCOREINFO, whose kernel's image has symbols and types."""
    for layout, late in (("relative", False), ("place", True), ("absolute", False)):
        machine = imagebuilder.described(layout, late, bits=(21, 29))
        machine.note = False
        yield _compact(_made(machine.write))


def _info_block(minor: int = 4) -> bytes:
    """Return struct nd_pfn_sb."""
    fields = (b"u" * 16, b"p" * 16, 0, 1, minor, 2 << 20, 512, 2, 0, 0, 2 << 20, PAGE, 64)
    block = struct.pack("<16s16s16sIHHQQIIIIIH", b"NVDIMM_PFN_INFO\0", *fields).ljust(PAGE, b"\0")
    return block[:-8] + struct.pack("<Q", fletcher64(block))


def pmem() -> Iterator[bytes]:
    """The tiny vmcore with persistent memory, whose metadata an info block or the kernel's list describes."""
    devices = [Load(PMEM, bytes(PAGE) + _info_block(minor), flags=0x17, left_out=4 << 20) for minor in (4, 2)]
    yield tiny(INFO, devices[0]).build()
    yield tiny(INFO, replace(devices[1], flags=7)).build()
    head, entry = MAP + 0x7000, MAP + 0x7100
    lines = [f"SYMBOL(devm_memmap_vmcore_head)={head:x}", "SIZE(devm_memmap_vmcore)=40"]
    lines += [f"OFFSET(devm_memmap_vmcore.{name})={at}" for name, at in (("entry", 0), ("start", 16), ("end", 24))]
    elf = tiny(INFO + "\n".join([*lines, ""]).encode(), devices[0])
    memory = bytearray(elf.loads[0].data)
    struct.pack_into("<QQ", memory, 0x7000, entry, entry)
    struct.pack_into("<QQQQ", memory, 0x7100, head, head, PMEM // PAGE, PMEM // PAGE + 512)
    elf.loads = [replace(elf.loads[0], data=bytes(memory)), *elf.loads[1:]]
    yield elf.build()
    yield from _synthetic(Synthetic(section_flags={16: RAM, 40: DEVICE}))


def checksums() -> Iterator[bytes]:
    """Dumps with checksums."""
    return iter(_dumps())


def vmcores() -> Iterator[bytes]:
    """A few inputs of each kind, for the commands."""
    yield from itertools.islice(elf(), 2)
    yield from _dumps()
    yield from itertools.islice(kernel(), 0, None, 4)
    yield from pmem()
