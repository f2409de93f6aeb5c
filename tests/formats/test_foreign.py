"""Files that are no dumps, or dumps of other kinds: one line names the format and says what to do."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
from descriptors import all_closed_again
from elfbuilder import PAGE, Elf, Load, note, prstatus_note

import vmfilter
from vmfilter.reader.foreign import FORMATS

LKCD, S390 = 0xA8190173618F23ED, 0xA8190173618F23FD
NT_AUXV, NT_FILE = 6, 0x46494C45

SAMPLES = {
    "virsh dump --memory-only": b"QEVM" + struct.pack(">I", 3),
    "saved by libvirt": b"LibvirtQemudSave" + struct.pack("<II", 2, 100),
    "saved by Xen": b"Xen saved domain, xl format\n \0 \r",
    "Xen, .*xl dump-core": struct.pack("<I", 0xF00FEBED),
    "VMware snapshot": struct.pack("<II", 0xBED2BED2, 8),
    "saved by VirtualBox": b"\x7fVirtualBox SavedState V2.0\n",
    "sadump": b"sadump\0\0",
    "diskdump": b"DISKDUMP",
    "LKCD": struct.pack("<Q", LKCD),
    "a dump by LKCD": struct.pack(">Q", LKCD - 0x20),
    "s390 .*zgetdump": struct.pack(">Q", S390),
    "s390 stand-alone dump": struct.pack(">Q", S390 + 1),
    "VMDUMP": "SR".encode("cp037") + bytes(54) + "VMDUMP  ".encode("cp037"),
    "LiME": struct.pack("<IIQQ8x", 0x4C694D45, 1, 0x1000, 0x9FBFF),
    "AVML": struct.pack("<IIQQ8x", 0x4C4D5641, 2, 0x1000, 0x9FBFF),
    "raw memory": bytes(4096),
    "raw memory, or": b"\x53\xff\x00\xf0" * 256,
    "Windows": b"PAGEDU64",
    "Windows, .*WinDbg": b"MDMP",
    "FreeBSD": b"minidump FreeBSD/amd64\0",
    "hibernation image": b"\0" * 100 + b"x" * 3986 + b"S1SUSPEND\0",
    "hibernation image, .*boot": b"x".ljust(65526, b"\0") + b"S1SUSPEND\0",
    "bzImage": b"MZ".ljust(0x202, b"\0") + b"HdrS",
    "kernel's log": b"[    0.000000] Linux version 6.12.0\n",
    "qcow2": b"QFI\xfb\0\0\0\3",
    "tar archive": b"vmcore".ljust(257, b"\0") + b"ustar\x0000",
    "zip, 7z, RAR or cpio archive": b"PK\3\4",
    "cpio archive": b"070701",
    "lzop -d": b"\x89LZO\0\r\n\x1a\n",
    "lz4 -d": b"\x02\x21\x4c\x18",
    "encrypted": b"Salted__",
    "web page": b"<!DOCTYPE html>\n",
}


def refusal(data: bytes, folder: Path) -> str:
    path = folder / "file"
    path.write_bytes(data)
    with all_closed_again(), pytest.raises(vmfilter.InputError) as found:
        vmfilter.open_dump(path)
    said = str(found.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    return said.removeprefix(f"{path}: ")


@pytest.mark.parametrize("what", SAMPLES)
def test_the_format_is_named_with_what_to_do(tmp_path: Path, what: str) -> None:
    said = refusal(SAMPLES[what].ljust(5000, b"x"), tmp_path)
    assert " which vmfilter does not read: " in said
    name, _, advice = what.partition(", .*")
    assert name.split(" .*")[0] in said
    assert advice in said


def test_each_format_has_a_sample_and_a_row_in_the_guide_for_support(tmp_path: Path) -> None:
    said = [refusal(data, tmp_path) for data in SAMPLES.values()]
    guide = (Path(__file__).parents[2] / "docs" / "guide-support.md").read_text()
    for known in FORMATS:
        assert any(line.startswith(f"{known.name}, which") and line.endswith(known.advice) for line in said), known.name
        assert f"| {known.name} | {known.advice} |" in guide


def test_a_file_inside_a_compressed_one_is_named(tmp_path: Path) -> None:
    assert refusal(gzip.compress(SAMPLES["tar archive"]), tmp_path).startswith("a tar archive")


@pytest.mark.parametrize("data", [b"", b"x", b"QEV", b"\0" * 4095, b"x" * 70000, b"PAGEDUMB"])
def test_an_unknown_format_is_shown_by_its_first_bytes(tmp_path: Path, data: bytes) -> None:
    found = f"begins with {data[:8]!r}" if data else "is empty"
    said = f"not a dump that vmfilter knows (ELF, kdump-compressed): it {found}; name a vmcore, or a dump made from one"
    assert refusal(data, tmp_path) == said


# ELF files of other kinds


@pytest.mark.parametrize(("kind", "what"), [(1, "module"), (2, "perhaps vmlinux"), (3, "library"), (9, "e_type is 9")])
def test_an_elf_file_that_is_no_core_is_named(tmp_path: Path, kind: int, what: str) -> None:
    said = refusal(Elf([Load(0x1000, bytes(PAGE))], kind=kind).build(), tmp_path)
    assert said.startswith("an ELF file, but not a core: ")
    assert what in said


def test_a_core_of_a_xen_guest_is_named(tmp_path: Path) -> None:
    header = bytearray(Elf().build()[:64])
    struct.pack_into("<QQ", header, 32, 0, 64)  # e_phoff, e_shoff
    struct.pack_into("<HHHH", header, 54, 0, 0, 64, 7)  # e_phentsize, e_phnum, e_shentsize, e_shnum
    assert "xl dump-core" in refusal(bytes(header) + bytes(8000), tmp_path)


def test_program_headers_of_another_size_are_named(tmp_path: Path) -> None:
    made = bytearray(Elf([Load(0x1000, bytes(PAGE))]).build())
    struct.pack_into("<H", made, 54, 55)
    assert refusal(bytes(made), tmp_path).endswith("at offset 0x40, is 55 bytes; copy it again")


def core(paddrs: list[int], notes: bytes) -> bytes:
    loads = [Load(paddr, bytes([i + 1]) * PAGE, vaddr=0x400000 + i * PAGE) for i, paddr in enumerate(paddrs)]
    return Elf(loads, prstatus_note() + notes).build()


@pytest.mark.parametrize("kind", [NT_AUXV, NT_FILE])
def test_a_core_of_a_process_is_not_taken_for_a_machine(tmp_path: Path, kind: int) -> None:
    said = refusal(core([0, 0, 0], note(b"CORE", kind, bytes(32))), tmp_path)
    assert said == "the core of a process, not of a machine: open it with gdb"


@pytest.mark.parametrize(
    ("paddrs", "notes"),
    [([0], b""), ([0, 0x100000], note(b"CORE", NT_AUXV, bytes(32))), ([0], note(b"LINUX", NT_AUXV, bytes(32)))],
)
def test_a_core_of_a_machine_is_read_wherever_its_memory_is(tmp_path: Path, paddrs: list[int], notes: bytes) -> None:
    (tmp_path / "vmcore").write_bytes(core(paddrs, notes))
    with vmfilter.open_dump(tmp_path / "vmcore") as dump:
        assert dump.read(paddrs[-1], PAGE) == bytes([len(paddrs)]) * PAGE
