"""Real vmcores of real kernels, compared with those kernels' own /proc/kpageflags."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import kpageflags
import pytest
from command import Run
from judges import kdumpid
from kdumpreader import Kdump

import vmfilter
from vmfilter.frames.classes import PageClass
from vmfilter.kernel import witnesses
from vmfilter.kernel.memory_model import SparseMemory
from vmfilter.kernel.search import understand, vmcoreinfo_of
from vmfilter.reader import open_dump

# A few dozen frames change hands between the copy of kpageflags and the panic. The program that made the copy exits,
# and its pages wait on per-CPU lists; other pages were about to be put on an LRU list, and are on it by then.
LOST, KEPT_NEEDLESSLY = 70, 100
KERNELS = ["5.10", "6.1", "6.12-hvo", "6.12-la57", "6.12-small", "6.18", "7.2-hvo"]
HWPOISONED = ["6.12-hvo", "6.12-la57", "6.18", "7.2-hvo"]


@pytest.mark.parametrize("name", KERNELS)
def test_level_31_agrees_with_kpageflags(real: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    vmcore = real(f"x86_64-{name}")
    vmfilter.filter_dump(vmcore, tmp_path / "dump")
    dump = Kdump(tmp_path / "dump")
    table = kpageflags.table(vmcore.with_name(vmcore.name + ".kpageflags"), dump.present, dump.kept)
    lost = sum(table.get(kind, (0, 0))[1] for kind in kpageflags.KERNELS_OWN)
    kept_needlessly = sum(kept for kind, (kept, _) in table.items() if kind not in kpageflags.KERNELS_OWN)
    assert lost <= LOST, table
    assert kept_needlessly <= KEPT_NEEDLESSLY, table
    for kind in ("free", "cache", "anonymous"):
        assert table[kind][1] > 2000, f"{kind}: too few to be conclusive, {table}"
    assert table["hugetlb"] == (0, 2048)
    assert table["slab"][0] > 1000
    assert table["slab"][1] == table["reserved"][1] == 0


# Name, first frame in the dump, excluded frames that are the kernel's own, kept frames that are not. QEMU's dumps
# are of running guests, some time after the copy: the buffers that it went through have been freed since.
OTHER_MACHINES = [
    ("ppc64le-6.12", 0, 60, 110),
    ("ppc64le-6.12-64k", 0, 4, 24),
    ("ppc64le-6.1-64k", 0, 12, 15),
    ("ppc64le-7.2", 0, 75, 75),
    ("ppc64le-6.12-64k-hash-qemu", 0, 16, 10),
    ("ppc64le-6.12-hash-qemu", 0, 2, 35),
    ("s390x-6.12-qemu", 0, 400, 30),
    ("i386-6.1-qemu", 0, 8, 25),
    ("i386-6.1-pae-qemu", 0, 6, 40),
    ("arm-6.12-qemu", 0x40000, 20, 20),
    ("arm-6.12-lpae-qemu", 0x40000, 460, 30),
    ("x86_64-6.12-qemu", 0, 10, 25),
    ("x86_64-6.12-qemu-paging", 0, 240, 25),
    ("x86_64-6.12-two-kernels", 0, 10, 50),
]


@pytest.mark.parametrize(("name", "first", "lost", "kept_needlessly"), OTHER_MACHINES)
def test_level_31_on_other_machines_and_in_other_dumps(
    real: Callable[[str], Path], tmp_path: Path, name: str, first: int, lost: int, kept_needlessly: int
) -> None:
    vmcore = real(name)
    vmfilter.filter_dump(vmcore, tmp_path / "dump")
    dump = Kdump(tmp_path / "dump")
    path = vmcore.with_name(vmcore.name + ".kpageflags")
    table = kpageflags.table(path, dump.present, dump.kept, dump.order, first)
    assert sum(table.get(kind, (0, 0))[1] for kind in kpageflags.KERNELS_OWN) <= lost, table
    found = sum(kept for kind, (kept, _) in table.items() if kind not in kpageflags.KERNELS_OWN)
    assert found <= kept_needlessly, table
    for kind in ("free", "cache", "anonymous"):
        assert table[kind][1] > 2000 * 4096 // dump.block_size, f"{kind}: too few to be conclusive, {table}"
    assert table["slab"][0] > 200
    assert table["slab"][1] == table["reserved"][1] == 0


@pytest.mark.parametrize("name", [row[0] for row in OTHER_MACHINES])
def test_every_page_of_another_machine_is_right(real: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    vmfilter.filter_dump(real(name), tmp_path / "dump", level=1)
    dump = Kdump(tmp_path / "dump")
    assert len(dump.kept) == len(dump.present) > 4000
    with open_dump(real(name)) as source:
        first = dump.phys_base // dump.block_size if source.arch.counts_from_ram else 0
        for i, (pfn, content) in enumerate(dump.pages()):
            if i % 16 == 0 or content.strip(b"\0"):
                assert source.read((first + pfn) * dump.block_size, dump.block_size) in (content, None)


@pytest.mark.parametrize("name", [*(row[0] for row in OTHER_MACHINES), "arm64-6.12", "loongarch64-7.2", "riscv64-6.12"])
def test_registers_have_the_size_that_identifies_the_machine(real: Callable[[str], Path], name: str) -> None:
    with open_dump(real(name)) as dump:
        sizes = {note.size for note in dump.notes if (note.name, note.kind) == (b"CORE", 1)}
        assert sizes == {dump.arch.prstatus_size}


# What libkdumpfile (in drgn) can translate: not 4K pages of ppc64, nor s390x since 6.10, nor arm, whose frames it
# counts from 0 while crash and makedumpfile count from phys_base. In QEMU's dumps of x86 it begins at the tables in
# CR3, which strip.py removes.
TRANSLATED = ["ppc64le-6.12-64k", "ppc64le-6.1-64k", "ppc64le-6.12-64k-hash-qemu"]


@pytest.mark.parametrize("name", TRANSLATED)
def test_libkdumpfile_reads_the_kernels_name_by_virtual_address(
    real: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    drgn = pytest.importorskip("drgn")
    vmfilter.filter_dump(real(name), tmp_path / "dump")
    prog = drgn.Program()
    prog.set_core_dump(str(tmp_path / "dump"))
    told = dict(line.split("=", 1) for line in prog["VMCOREINFO"].string_().decode().splitlines())
    at = int(told["SYMBOL(init_uts_ns)"], 16) + int(told["OFFSET(uts_namespace.name)"])
    name_fields = [bytes(prog.read(at + 65 * i, 65)).split(b"\0")[0].decode() for i in range(6)]
    assert name_fields == Kdump(tmp_path / "dump").utsname
    assert (name_fields[0], name_fields[2]) == ("Linux", told["OSRELEASE"])


# kdumpid's name of the architecture; the version it prints is the kernel's
KDUMPID = {"ppc64le": "ppc64", "s390x": "s390x", "i386": "ia32", "arm": "arm", "x86_64": "x86_64"}


@pytest.mark.lab
@pytest.mark.parametrize("name", [row[0] for row in OTHER_MACHINES])
def test_kdumpid_recognises_architecture_and_kernel(real: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    vmfilter.filter_dump(real(name), tmp_path / "dump")
    said = kdumpid(tmp_path / "dump").split()
    assert said[said.index("Arch:") + 1] == KDUMPID[name.split("-")[0]]
    assert said[said.index("Version:") + 1] == Kdump(tmp_path / "dump").utsname[2]


@pytest.mark.parametrize("name", HWPOISONED)
@pytest.mark.parametrize("level", [0, 1, 31])
def test_a_hwpoisoned_page_is_in_no_dump(real: Callable[[str], Path], tmp_path: Path, name: str, level: int) -> None:
    vmcore = real(f"x86_64-{name}")
    flags = kpageflags.array("Q", vmcore.with_name(vmcore.name + ".kpageflags").read_bytes())
    poisoned = {pfn for pfn, f in enumerate(flags) if kpageflags.kind(f) == "hwpoison"}
    statistics = vmfilter.filter_dump(vmcore, tmp_path / "dump", level=level)
    dump = Kdump(tmp_path / "dump")
    assert len(poisoned) == 1
    assert poisoned <= set(dump.present)
    assert not poisoned & set(dump.kept)
    assert statistics.classes[PageClass.HWPOISON] == 1


def test_five_levels_of_page_tables_are_really_walked(real: Callable[[str], Path]) -> None:
    from vmfilter.kernel.kernel import Kernel

    with open_dump(real("x86_64-6.12-la57")) as dump:
        info = vmcoreinfo_of(dump)
        assert info is not None
        assert info.number("pgtable_l5_enabled") == 1
        assert Kernel(dump, info).uts.release.startswith(b"6.12.95")


def test_every_bit_of_the_level_excludes_just_its_classes(real: Callable[[str], Path], tmp_path: Path) -> None:
    vmcore = real("x86_64-6.12-small")
    whole = vmfilter.filter_dump(vmcore, tmp_path / "0", level=0)
    c = whole.classes
    wanted = {
        1: 0,
        2: c[PageClass.CACHE],
        4: c[PageClass.CACHE] + c[PageClass.CACHE_PRIVATE],
        8: c[PageClass.USER],
        16: c[PageClass.FREE],
        32: 0,
    }
    for level, count in wanted.items():
        vmfilter.filter_dump(vmcore, tmp_path / str(level), level=level, compress="lzo")
        dump = Kdump(tmp_path / str(level))
        assert len(dump.present) - len(dump.kept) == count, level
    assert min(wanted[2], wanted[8], wanted[16]) > 500


# Name, excluded frames that are the kernel's own, kept frames that are not. Large numbers of the former: a CPU gave
# back the frames on its list in the meantime; they had no flags, and are free now.
ARM64_RISCV64_LOONGARCH64 = [
    ("arm64-5.10", 20, 45),
    ("arm64-6.12", 60, 70),
    ("arm64-6.12-16k", 5, 20),
    ("arm64-6.12-16k-va47", 40, 20),
    ("arm64-6.12-va48", 260, 70),
    ("arm64-7.2", 20, 30),
    ("loongarch64-7.2", 115, 20),
    ("riscv64-6.12", 50, 35),
    ("riscv64-7.2-sv39", 40, 40),
    ("riscv64-7.2-sv48", 170, 45),
]


@pytest.mark.parametrize(("name", "lost", "kept_needlessly"), ARM64_RISCV64_LOONGARCH64)
def test_level_31_on_arm64_riscv64_and_loongarch64(
    real: Callable[[str], Path], tmp_path: Path, name: str, lost: int, kept_needlessly: int
) -> None:
    vmcore = real(name)
    vmfilter.filter_dump(vmcore, tmp_path / "dump")
    dump = Kdump(tmp_path / "dump")
    table = kpageflags.table(vmcore.with_name(vmcore.name + ".kpageflags"), dump.present, dump.kept)
    assert sum(table.get(kind, (0, 0))[1] for kind in kpageflags.KERNELS_OWN) <= lost, table
    found = sum(kept for kind, (kept, _) in table.items() if kind not in kpageflags.KERNELS_OWN)
    assert found <= kept_needlessly, table
    for kind in ("free", "cache", "anonymous"):
        assert table[kind][1] * dump.block_size > 8 << 20, f"{kind}: too few to be conclusive, {table}"
    assert table["hugetlb"] == (0, 8192 if dump.block_size == 16384 else 2048)  # huge pages of 32 MiB or 2 MiB
    assert table["slab"][0] * dump.block_size > 4 << 20
    assert table["slab"][1] == table["reserved"][1] == 0


@pytest.mark.parametrize(
    ("name", "machine", "release", "phys_base"),
    [
        ("arm64-5.10", b"aarch64", b"5.10.0-32-arm64", 0xFFFFA0AA80000000),
        ("arm64-6.12", b"aarch64", b"6.12.94+deb13-cloud-arm64", 0x40000000),
        ("arm64-6.12-16k", b"aarch64", b"6.12.107+deb13-arm64-16k", 0x40000000),
        ("arm64-6.12-16k-va47", b"aarch64", b"6.12.107+deb13-arm64-16k", 0xFFF0800040000000),
        ("arm64-6.12-va48", b"aarch64", b"6.12.107+deb13-cloud-arm64", 0xFFF0E82E00000000),
        ("arm64-7.2", b"aarch64", b"7.2.13+deb14-cloud-arm64", 0x40000000),
        ("loongarch64-7.2", b"loongarch64", b"7.2.13+deb14-loong64", 0),
        ("riscv64-6.12", b"riscv64", b"6.12.107+deb13-riscv64", 0x80000000),
        ("riscv64-7.2-sv39", b"riscv64", b"7.2.13+deb14-riscv64", 0x80000000),
        ("riscv64-7.2-sv48", b"riscv64", b"7.2.13+deb14-riscv64", 0x80000000),
    ],
)
def test_the_header_is_as_the_machine_itself_would_write_it(
    real: Callable[[str], Path], tmp_path: Path, name: str, machine: bytes, release: bytes, phys_base: int
) -> None:
    """phys_base as makedumpfile computes it on each; crash takes arm64's from here."""
    vmfilter.filter_dump(real(name), tmp_path / "dump")
    raw = (tmp_path / "dump").read_bytes()
    uts = [raw[12 + 65 * i :][:65].split(b"\0")[0] for i in range(6)]
    block = 16384 if "16k" in name or "loongarch" in name else 4096
    assert (uts[0], uts[2], uts[4]) == (b"Linux", release, machine)
    assert int.from_bytes(raw[428:432], "little") == block
    assert int.from_bytes(raw[block : block + 8], "little") == phys_base


@pytest.mark.parametrize("name", [row[0] for row in ARM64_RISCV64_LOONGARCH64 if not row[0].startswith("loongarch")])
def test_drgn_finds_the_kernels_name_by_its_virtual_address(
    real: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """arm64 by drgn's own page table code, riscv64 by libkdumpfile's; neither supports loongarch64."""
    drgn = pytest.importorskip("drgn")

    vmcore = real(name)
    vmfilter.filter_dump(vmcore, tmp_path / "dump")
    with open_dump(vmcore) as dump:
        info = vmcoreinfo_of(dump)
    assert info is not None
    prog = drgn.Program()
    prog.set_core_dump(str(tmp_path / "dump"))
    uts = prog.read(info.symbol("init_uts_ns"), 400)
    assert b"Linux\0" in uts
    assert (info.plain("OSRELEASE") or "?").encode() + b"\0" in uts


@pytest.mark.parametrize(
    ("name", "levels", "page_size"),
    [
        ("arm64-5.10", 4, 4096),
        ("arm64-6.12", 5, 4096),
        ("arm64-6.12-va48", 4, 4096),
        ("arm64-6.12-16k", 4, 16384),
        ("arm64-6.12-16k-va47", 3, 16384),
        ("loongarch64-7.2", 3, 16384),
        ("riscv64-6.12", 5, 4096),
        ("riscv64-7.2-sv48", 4, 4096),
        ("riscv64-7.2-sv39", 3, 4096),
    ],
)
def test_each_form_of_page_tables_is_really_there(
    real: Callable[[str], Path], name: str, levels: int, page_size: int
) -> None:
    from vmfilter.kernel.kernel import Kernel

    with open_dump(real(name)) as dump:
        info = vmcoreinfo_of(dump)
        assert info is not None
        kernel = Kernel(dump, info)
        assert len(kernel.memory._levels) == levels
        assert kernel.page_size == page_size


def test_a_riscv64_vmcore_of_kexec_load_has_no_struct_pages(real: Callable[[str], Path], tmp_path: Path) -> None:
    """Its first page tables are missing too, as kexec-tools omits "Reserved" memory. All pages are kept."""
    vmcore = real("riscv64-6.12-reserved")
    with pytest.raises(vmfilter.KernelError, match=r"mem_section.* level=1 "):
        vmfilter.filter_dump(vmcore, tmp_path / "dump")
    vmfilter.filter_dump(vmcore, tmp_path / "dump", level=1)
    dump = Kdump(tmp_path / "dump")
    assert dump.kept == dump.present
    assert b"6.12.94+deb13-riscv64" in (tmp_path / "dump").read_bytes()[:400]


def test_memory_sections_are_found_if_a_part_of_their_array_is_missing(
    real: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a file whose zero pages were excluded: the array of roots has many."""
    with open_dump(real("x86_64-6.12-small")) as dump:
        kernel = understand(dump).kernel
        assert kernel is not None
        model = kernel.memory_model
        assert isinstance(model, SparseMemory)
        whole = list(model.runs())
        assert whole
        read, lacking = kernel.memory.read, model._array + 3 * 4096

        def holed(vaddr: int, size: int) -> bytes | None:
            return None if vaddr < lacking + 4096 and lacking < vaddr + size else read(vaddr, size)

        monkeypatch.setattr(kernel.memory, "read", holed)
        assert list(model.runs()) == whole


# Of several kernels


@pytest.mark.parametrize(
    ("name", "cpus"),
    [("x86_64-6.12-two-kernels", 1), ("i386-6.1-pae-qemu", 1), ("s390x-6.12-qemu", 2), ("arm64-6.12", 0)],
)
def test_cpus_that_run_the_kernel_are_known_by_their_page_tables(
    real: Callable[[str], Path], name: str, cpus: int
) -> None:
    """A process has tables of its own, which strip.py removes. No dump of arm64 contains TTBR."""
    with open_dump(real(name)) as dump:
        kernel = understand(dump).kernel
        assert kernel is not None
        assert witnesses.cpus_of(dump, kernel) == cpus


def test_a_capture_kernel_that_hung_is_not_taken_for_the_crashed_one(real: Callable[[str], Path], run: Run) -> None:
    """QEMU's dump of the guest: each kernel has a CPU, and sections for all memory, as they are larger than it."""
    path = real("x86_64-6.12-two-kernels")
    crashed, capturing = "0x4ce018", "0x51a0000"
    ran = run("dmesg", path)
    assert ran.out.endswith("Kernel panic - not syncing: sysrq triggered crash\n")
    assert f"the one at {crashed} (6.12.95: manages about 122 MiB) is used" in ran.err
    assert f"{capturing} (6.12.95: manages about 60 MiB)" in ran.err
    with open_dump(path) as dump, open_dump(path, vmcoreinfo_at=int(capturing, 0)) as other:
        kernels = [kernel for d in (dump, other) if (kernel := understand(d).kernel)]
        for witness, speaks in ((witnesses._managed, True), (witnesses.cpus_of, False), (witnesses._log_end, True)):
            said = [witness(dump, kernel) for kernel in kernels]
            assert (said[0] > said[1], said[0] < said[1]) == (speaks, False), said


def as_of_vmlinux(text: bytes) -> bytes:
    """Return VMCOREINFO as it would be without KASLR, and without its offset, as makedumpfile -g writes it."""
    offset = int(re.search(rb"KERNELOFFSET=(\w+)", text)[1], 16)  # type: ignore[index]

    def linked(m: re.Match[bytes]) -> bytes:
        value = int(m[2], 16)
        return m[1] + b"%x" % (value - offset if value >= 0xFFFFFFFF80000000 else value)

    text = re.sub(rb"(SYMBOL\(\w+\)=)(\w+)", linked, text)
    return re.sub(rb"KERNELOFFSET=\w+\n|NUMBER\(phys_base\)=\S+\n", b"", text)


@pytest.mark.parametrize("fault", ["earlier boot", "unrelocated note", "short note", "no note, but a file of vmlinux"])
def test_vmcoreinfo_that_is_not_the_kernels_changes_no_page(
    real: Callable[[str], Path], tmp_path: Path, fault: str
) -> None:
    vmcore, vmcoreinfo = real("x86_64-6.12-small"), None
    vmfilter.filter_dump(vmcore, tmp_path / "right")
    data = bytearray(vmcore.read_bytes())
    with open_dump(vmcore) as dump:
        info, first = vmcoreinfo_of(dump), min(load.offset for load in dump.loads)
    assert info is not None
    place = slice(info.file_offset, info.file_offset + info.file_size)
    text = bytes(data[place])
    if fault == "earlier boot":  # its memory sections are gone: the address is one of zeros
        own = re.search(rb"SYMBOL\(mem_section\)=\w+", text)[0]  # type: ignore[index]
        at = next(i for i in range(first, len(data), 4096) if not any(data[i : i + 4096]))
        data[at : at + len(text)] = text.replace(own, own[:-7] + b"%07x" % (int(own[-7:], 16) ^ 0x3000000))
    else:
        wrong = b"\n".join(text.split(b"\n")[:3]) if fault == "short note" else as_of_vmlinux(text)
        data[place] = wrong.ljust(len(text), b"\0")
    if fault in ("earlier boot", "no note, but a file of vmlinux"):
        data[place.start - 12] = ord("X")  # the note's name
    if fault == "no note, but a file of vmlinux":
        vmcoreinfo = tmp_path / "info"
        of_the_image = re.sub(rb"SYMBOL\(\w+\)=ffff(?!ffff)\w+\n", b"", as_of_vmlinux(text))
        vmcoreinfo.write_bytes(of_the_image)
    (tmp_path / "vmcore").write_bytes(data)
    with open_dump(tmp_path / "vmcore", vmcoreinfo=vmcoreinfo) as dump:
        vmfilter.filter_dump(dump, tmp_path / "new")
    assert Kdump(tmp_path / "new").kept == Kdump(tmp_path / "right").kept
    with open_dump(tmp_path / "new") as dump:
        told = understand(dump)
        assert sorted(told.info.text.splitlines()) == sorted(text.decode().splitlines())  # type: ignore[union-attr]
