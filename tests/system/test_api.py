"""What `import vmfilter` offers."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import re
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Run
from crashbuilder import scene
from kernelbuilder import FLAVOURS, Synthetic
from logbuilder import Message, Ring

import vmfilter
from vmfilter import Level, PageClass, PageKind
from vmfilter.cli.command import parser_of

SMALL = "x86_64-6.12-small"


@pytest.fixture
def small(real: Callable[[str], Path]) -> Path:
    return real(SMALL)


# Names


def test_every_public_name_is_listed_and_imported_on_first_use() -> None:
    names = [name for in_module in vmfilter._NAMES.values() for name in in_module]
    assert sorted(names) == vmfilter.__all__ == sorted({*dir(vmfilter)} - {"__version__"})
    for name in vmfilter._MODULES:
        assert getattr(vmfilter, name).__doc__


def test_importing_the_package_loads_nothing_else() -> None:
    code = "import sys; before = {*sys.modules}; import vmfilter; dir(vmfilter); print(*{*sys.modules} - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["vmfilter"]


def test_no_name_needs_a_library_of_others() -> None:
    code = "import sys, vmfilter; [getattr(vmfilter, name) for name in vmfilter._MODULES]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "matplotlib", "jinja2", "zstandard", "drgn", "fsspec"} & set(done.stdout.split())


def test_help_is_a_page_that_begins_with_what_one_needs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import vmfilter; help(vmfilter)"], capture_output=True, text=True, check=True
    )
    beginning = done.stdout[:2500]
    assert "Make small dumps of crashed Linux kernels, and read them." in beginning
    for name in ("open_dump", "filter_dump", "dump_info", "dmesg", "VmfilterError"):
        assert name in beginning
    assert "Filter a dump: write a new one with the pages that a dump level keeps." in done.stdout


def test_nothing_is_printed(small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    vmfilter.filter_dump(small, io.BytesIO())
    vmfilter.stats(small)
    assert capfd.readouterr() == ("", "")


# Levels


@pytest.mark.parametrize(
    ("level", "number"),
    [
        (Level.ZERO | Level.FREE, 17),
        (Level.ALL, 31),
        (Level.CACHE | Level.PMEM_METADATA, 38),
        (Level.NONE, 0),
        ("free", 16),
        ("zero,cache,user,free", 31),
        ("31", 31),
        (63, 63),
    ],
)
def test_levels_are_flags_names_or_numbers(small: Path, level: Any, number: int) -> None:
    assert vmfilter.filter_dump(small, "new", level=level, dry_run=True).level == number


# Results agree with the commands


def printed(run: Run, *arguments: object) -> Any:
    done = run(*arguments)
    assert done.status == 0, done.err
    return json.loads(done.out)


def test_results_are_what_the_commands_print(small: Path, tmp_path: Path, run: Run) -> None:
    dump = tmp_path / "dump"
    vmfilter.filter_dump(small, dump)
    pairs = [
        (vmfilter.dump_info(small), ("info", small)),
        (vmfilter.verify_dump(dump), ("verify", dump)),
        (vmfilter.verify_dump(dump, small), ("verify", "--against", small, dump)),
        (vmfilter.memory_usage(small), ("mem-usage", small)),
        (vmfilter.stats(small), ("stats", small)),
        (vmfilter.diff(small, small), ("diff", small, small)),
    ]
    for result, (command, *rest) in pairs:
        assert result.as_dict() == printed(run, command, "--json", *rest)


def test_filter_and_convert_return_what_the_commands_print(small: Path, tmp_path: Path, run: Run) -> None:
    for command, operation in (("filter", vmfilter.filter_dump), ("convert", vmfilter.convert_dump)):
        result = operation(small, tmp_path / "dump", force=True).as_dict()
        document = printed(run, command, "--json", "--force", small, tmp_path / "dump")
        del result["seconds"], document["seconds"]
        assert result == document


def test_an_estimate_is_what_the_command_prints(small: Path, tmp_path: Path, run: Run) -> None:
    result = vmfilter.estimate(small, levels=["free", 31], codecs=["zstd", "zlib"], seed=1).as_dict()
    document = printed(run, "estimate", "--json", "-d", "31", "--compress", "zlib", "--seed", "1", small)
    assert result.keys() == document.keys()
    assert [(row["level"], row["codec"]) for row in result["dumps"]] == [
        (level, codec) for level in (16, 31) for codec in ("zstd", "zlib")
    ]
    assert result["judged"] == {"level": 31, "codec": "zstd"}


def test_results_are_frozen_and_can_be_pickled(small: Path) -> None:
    usage = vmfilter.memory_usage(small)
    with pytest.raises(AttributeError):
        usage.present = 0  # type: ignore[misc]
    usage.as_dict()["classes"].clear()
    assert usage.as_dict()["classes"]
    for result in usage, vmfilter.dump_info(small), vmfilter.stats(small), vmfilter.filter_dump(small, io.BytesIO()):
        again = pickle.loads(pickle.dumps(result))
        assert again == result
        assert again.as_dict() == result.as_dict()
    assert repr(usage).startswith("MemoryUsage(page_size=4096, max_mapnr=49110, present=28374, kept_at_most={1: 28374")


def test_the_log_is_records_and_text(tmp_path: Path, run: Run) -> None:
    machine = Synthetic(flavour=FLAVOURS["6.12"])
    ring = Ring(machine)
    ring.put(Message(b"Linux version 6.12", 0, level=5))
    ring.put(Message(b"nvme nvme0: queues", 2 * 10**9, level=3, subsystem=b"nvme", device=b"c245:0", caller=77))
    ring.write()
    vmcore = machine.write(tmp_path / "vmcore")
    log = vmfilter.dmesg(vmcore)
    lines = run("dmesg", "--json", vmcore).out.splitlines()
    assert [record.as_dict() for record in log] == [json.loads(line) for line in lines]
    assert len(log) == len(lines) == 2
    assert f"{log}\n" == run("dmesg", vmcore).out


# A dump as an object


def test_a_dump_says_what_its_file_says(small: Path) -> None:
    with vmfilter.open_dump(small) as dump:
        assert (dump.path, dump.format, dump.machine, dump.page_size) == (str(small), "ELF64", "x86_64", 4096)
        assert (dump.level, dump.incomplete, dump.cpus, dump.warnings) == (0, False, 2, ())
        assert dump.vmcoreinfo["OSRELEASE"] == dump.kernel.release == "6.12.95"
        assert dump.kernel.machine == "x86_64"
        name = dump.read_virtual(int(dump.vmcoreinfo["SYMBOL(init_uts_ns)"], 16), 400)
        assert b"6.12.95\0" in name
        with pytest.raises(TypeError):
            dump.vmcoreinfo["OSRELEASE"] = "other"  # type: ignore[index]


def test_notes_have_bytes_and_registers(small: Path) -> None:
    with vmfilter.open_dump(small) as dump:
        cpus = [note for note in dump.notes if note.is_cpu]
        assert [note.name for note in dump.notes] == ["CORE", "CORE", "VMCOREINFO"]
        assert dump.notes[2].data.startswith(b"OSRELEASE=6.12.95\n")
        assert dump.notes[2].registers == {}
        assert dump.notes[2].pid is None
        registers = cpus[0].registers
        assert len(registers) == 27
        assert registers["cs"] == 0x10
        assert registers["rsp"] >> 32 == 0xFFFFD5AA
        assert len(cpus[0].data) == cpus[0].size == 336


@pytest.mark.parametrize(
    ("name", "pc"),
    [
        ("arm64-6.12", "pc"),
        ("riscv64-6.12", "pc"),
        ("loongarch64-7.2", "era"),
        ("ppc64le-6.12", "nip"),
        ("s390x-6.12-qemu", "psw_addr"),
        ("arm-6.12-qemu", "pc"),
        ("i386-6.1-qemu", "eip"),
        ("x86_64-6.12-qemu", "rip"),
    ],
)
def test_the_program_counter_of_each_machine_is_in_the_kernel(real: Callable[[str], Path], name: str, pc: str) -> None:
    """Or 0, in a note of a CPU that did not run."""
    with vmfilter.open_dump(real(name)) as dump:
        counters = [note.registers[pc] for note in dump.notes if note.is_cpu]
        stext = int(dump.vmcoreinfo.get("SYMBOL(_stext)", "0"), 16)
    assert counters
    assert any(counter >> 24 == stext >> 24 or counter >> 40 == stext >> 40 != 0 for counter in counters)


def test_memory_is_read_as_bytes_or_into_a_buffer(small: Path) -> None:
    with vmfilter.open_dump(small) as dump:
        run = next(run for run in dump.runs() if run.kind is PageKind.SLAB)
        page = dump.page(run.start)
        buffer, words = bytearray(4096), array("Q", bytes(4096))
        dump.read_into(page.address, buffer)
        dump.read_into(page.address, words)  # type: ignore[arg-type]
        assert page.data == dump.read(page.address, 4096) == bytes(buffer) == words.tobytes()
        assert len(dump.read(page.address + 4000, 96)) == 96
        assert dump.read(0, 0) == b""


def test_runs_and_pages_are_what_memory_usage_counts(small: Path) -> None:
    usage = vmfilter.memory_usage(small)
    with vmfilter.open_dump(small) as dump:
        runs = list(dump.runs())
        pages = list(dump.pages())
        for run in runs[::40]:
            page = dump.page(run.start)
            assert (page.page_class, page.kind, page.zone) == (run.page_class, run.kind, run.zone)
    for page_class in PageClass:
        of_class = [run for run in runs if run.page_class is page_class]
        assert sum(map(len, of_class)) == (usage.classes[page_class] if page_class else 0)
    for kind in PageKind:
        assert sum(len(run) for run in runs if run.kind is kind) == usage.kinds[kind]
    assert [page.pfn for page in pages] == [pfn for run in runs for pfn in range(run.start, run.end)]


def test_symbols_structures_and_tasks_come_from_the_dump(tmp_path: Path, run: Run) -> None:
    vmcore = scene("x86_64").s.write(tmp_path / "vmcore")
    with vmfilter.open_dump(vmcore) as dump:
        task = dump.kernel.struct("task_struct", dump.kernel.symbol("init_task"))
        tasks = dump.kernel.tasks()
        assert [one["pid"] for one in json.loads(run("tasks", "--json", vmcore).out)] == [one.pid for one in tasks]
        assert task.number("pid") == 0
        assert dump.kernel.symbol_at(dump.kernel.symbol("init_task") + 4).startswith("init_task+0x4/")
        for name, address in (("task_struct", 0), ("no_struct", 0)):
            with pytest.raises(vmfilter.VmfilterError, match=f"{name}"):
                dump.kernel.struct(name, address)


# Files


def test_paths_are_str_bytes_or_pathlike(small: Path, tmp_path: Path) -> None:
    paths: list[Any] = [str(small), bytes(small), small]
    counts = {vmfilter.filter_dump(path, bytes(tmp_path / f"dump{i}")).remaining for i, path in enumerate(paths)}
    assert counts == {2449}
    assert vmfilter.verify_dump(bytes(tmp_path / "dump0")).whole


def test_a_dump_goes_from_bytes_to_bytes(small: Path, tmp_path: Path) -> None:
    out = io.BytesIO(b"what was there before" * 100)
    result = vmfilter.filter_dump(io.BytesIO(small.read_bytes()), out)
    vmfilter.filter_dump(small, tmp_path / "dump")
    assert result.outputs == ["<BytesIO>"]
    assert out.getvalue() == (tmp_path / "dump").read_bytes()
    assert len(out.getvalue()) == result.output_size


@pytest.mark.parametrize(
    "options", [{"format": "elf"}, {"flatten": True}, {"compress": "zlib", "dedup": True}], ids=repr
)
def test_a_file_object_gets_what_a_file_gets(small: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    vmfilter.filter_dump(small, tmp_path / "dump", **options)
    out = io.BytesIO()
    vmfilter.filter_dump(small, out, **options)
    with open(tmp_path / "object", "wb") as file:
        vmfilter.filter_dump(small, file, **options)
    assert out.getvalue() == (tmp_path / "dump").read_bytes() == (tmp_path / "object").read_bytes()


class Pipe(io.RawIOBase):
    """A file object that cannot seek, and takes and gives a few bytes at a time."""

    def __init__(self, data: bytes | bytearray = b"") -> None:
        self.data, self._rest = bytearray(), memoryview(data)

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.data += data[:70_000]
        return min(len(data), 70_000)

    def readinto(self, buffer: Any, /) -> int:
        part, self._rest = self._rest[: min(len(buffer), 70_000)], self._rest[min(len(buffer), 70_000) :]
        buffer[: len(part)] = part
        return len(part)


def test_a_file_object_that_cannot_seek_gets_a_flattened_dump(small: Path) -> None:
    pipe = Pipe(small.read_bytes())
    vmfilter.filter_dump(pipe, pipe, level="free")
    assert pipe.data.startswith(b"makedumpfile")
    with vmfilter.open_dump(Pipe(pipe.data)) as dump:
        assert (dump.level, list(dump.wrappings)) == (16, ["flattened"])


def test_a_compressed_dump_is_read_from_a_file_object(small: Path) -> None:
    import gzip

    packed = io.BytesIO(gzip.compress(small.read_bytes(), 1))
    assert vmfilter.memory_usage(packed) == vmfilter.memory_usage(small)


def test_vmcoreinfo_is_read_from_a_file_object(small: Path) -> None:
    with vmfilter.open_dump(small) as dump:
        text = io.BytesIO(dump.notes[2].data)
    with vmfilter.open_dump(small, vmcoreinfo=text) as dump:
        assert dump.kernel.release == "6.12.95"
    text.close()
    with pytest.raises(vmfilter.InputError, match="<BytesIO>: cannot be read: I/O operation on closed file"):
        vmfilter.open_dump(small, vmcoreinfo=text)


def test_a_split_set_is_read_from_file_objects(small: Path, tmp_path: Path) -> None:
    parts = [tmp_path / "1", tmp_path / "2"]
    vmfilter.filter_dump(small, parts)
    found = vmfilter.verify_dump([io.BytesIO(part.read_bytes()) for part in parts])
    assert (found.whole, found.lost) == (True, 0)


def test_a_file_object_is_empty_after_a_failure(small: Path) -> None:
    def fail(stage: str, done: int, total: int) -> None:
        if stage == "write":
            raise KeyError(stage)

    out = io.BytesIO()
    with pytest.raises(KeyError):
        vmfilter.filter_dump(small, out, progress=fail)
    assert out.getvalue() == b""


@pytest.mark.parametrize("taken", [None, 0, -1, 1 << 30, "all"])
@pytest.mark.parametrize("seeks", [False, True])
def test_a_file_object_whose_write_takes_nothing_is_an_error(small: Path, taken: object, seeks: bool) -> None:
    class Unwilling(io.BytesIO):
        def write(self, data: Any, /) -> int:
            return taken  # type: ignore[return-value]

        def seekable(self) -> bool:
            return seeks

    said = f"^<Unwilling>: cannot be written: its write\\(\\) took {taken} of [0-9]+ bytes; give another file(\n|$)"
    with pytest.raises(vmfilter.OutputError, match=said):
        vmfilter.filter_dump(small, Unwilling())


@pytest.mark.parametrize(("call", "flatten"), [("pwrite", False), ("pwrite", True), ("write", True)])
def test_a_write_of_the_system_that_takes_nothing_is_an_error(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, flatten: bool
) -> None:
    monkeypatch.setattr(os, call, lambda *_: 0)
    with open(tmp_path / "appended", "ab") as file, pytest.raises(vmfilter.OutputError, match=r"write\(\) took 0 of "):
        vmfilter.filter_dump(small, file if call == "write" else tmp_path / "new", flatten=flatten)
    assert os.listdir(tmp_path) == ["appended"]


def test_a_file_object_is_not_its_own_output(small: Path, tmp_path: Path) -> None:
    source = io.BytesIO(small.read_bytes())
    with pytest.raises(vmfilter.OutputError, match="<BytesIO>: is the input"):
        vmfilter.filter_dump(source, source)
    assert source.getvalue() == small.read_bytes()
    (tmp_path / "copy").write_bytes(small.read_bytes())
    with open(tmp_path / "copy", "r+b") as file, pytest.raises(vmfilter.OutputError, match="is the input"):
        vmfilter.filter_dump(file, file)
    assert (tmp_path / "copy").read_bytes() == small.read_bytes()


# Mistakes

Call = Callable[[vmfilter.Dump], object]
HIGHEST = 1 << 64
MISTAKES: list[tuple[Call, str]] = [
    (lambda dump: vmfilter.open_dump(5), "the dump to read: 5 is neither a file nor a list of files"),  # type: ignore[arg-type]
    (lambda dump: vmfilter.open_dump([]), "neither a file nor a list of files"),
    (lambda dump: vmfilter.open_dump("/no/such"), "/no/such: cannot be opened: No such file or directory"),
    (lambda dump: vmfilter.open_dump(b"/no/such"), "/no/such: cannot be opened"),
    (lambda dump: vmfilter.open_dump(io.StringIO("text")), "<StringIO>: is a file of text: open it in binary mode"),  # type: ignore[arg-type]
    (lambda dump: vmfilter.open_dump(io.BytesIO()), "<BytesIO>: not a dump that vmfilter knows"),
    (lambda dump: vmfilter.open_dump(io.BytesIO(b"\x7fELF")), "<BytesIO>: ends at offset 0x4, "),
    (lambda dump: vmfilter.open_dump(dump.path, vmlinux=io.BytesIO()), "vmlinux: give its path, not a file object"),  # type: ignore[arg-type]
    (lambda dump: vmfilter.filter_dump(dump, "new", format="ELF"), "unknown format 'ELF': use kdump or elf"),
    (lambda dump: vmfilter.filter_dump(dump, 5), "output: 5 is neither a file"),  # type: ignore[arg-type]
    (lambda dump: vmfilter.filter_dump(dump, "new", level=64), "dump level 64 is not between 0 and 63"),
    (lambda dump: vmfilter.filter_dump(dump, "new", level=Level.ALL | 64), "dump level 95 is not between"),
    (lambda dump: vmfilter.filter_dump(dump, "new", level="fre"), "'fre' is not a page class"),
    (
        lambda dump: vmfilter.filter_dump(dump, "new", level=None),
        "dump level None is no level: give a number, name or Level",
    ),  # type: ignore[arg-type]
    (lambda dump: vmfilter.filter_dump(dump, [io.BytesIO(), io.BytesIO()]), "a split set needs"),
    (lambda dump: vmfilter.filter_dump(dump, io.BytesIO(), sha256=True), "the SHA-256 of a dump"),
    (lambda dump: vmfilter.open_dump(dump.path, vmlinux="/no/such").kernel, "/no/such"),
    (lambda dump: vmfilter.estimate(dump, threads=0), "threads must be a number, at least 1, not 0"),
    (lambda dump: vmfilter.estimate(dump, levels=["x"]), "'x' is not a page class"),
    (lambda dump: vmfilter.estimate(dump, levels=[]), "there is nothing to estimate"),
    (lambda dump: vmfilter.estimate(dump, codecs=["x"]), "codec 'x'"),
    (lambda dump: vmfilter.estimate(dump, seconds=0), "must be a positive number, not 0"),
    (lambda dump: dump.read(-1, 4), "-1 is not an address"),
    (lambda dump: dump.read(HIGHEST, 4), "is not an address"),
    (lambda dump: dump.read("0", 4), "'0' is not an address"),  # type: ignore[arg-type]
    (lambda dump: dump.read(0, -1), "-1 is no size: give a number of bytes from 0 to 0x40000000"),
    (lambda dump: dump.read(0, 1 << 40), "is no size: give a number of bytes"),
    (lambda dump: dump.read(0, 1 << 20), ": physical address 0x0 is not in the dump"),
    (lambda dump: dump.read((1 << 64) - 1, 1 << 20), ": physical address 0xffffffffffffffff is not in the dump"),
    (lambda dump: dump.read_into(0x100000, b"1234"), "bytes cannot be written: read into a bytearray"),  # type: ignore[arg-type]
    (lambda dump: dump.read_into(0x100000, 5), "int has no contiguous buffer"),  # type: ignore[arg-type]
    (lambda dump: dump.read_virtual(0, 4), ": virtual address 0x0 is not mapped by the kernel"),
    (lambda dump: dump.read_virtual((1 << 64) - 1, 4), ": virtual address 0xffffffffffffffff is not mapped"),
    (lambda dump: dump.read_virtual(1.5, 4), "1.5 is not an address"),  # type: ignore[arg-type]
    (lambda dump: dump.page(0), "page frame 0x0 is no memory of the crashed machine"),
    (lambda dump: dump.page(-1), "-1 is not the number of a page frame"),
    (lambda dump: dump.page(1 << 62), "is no memory of the crashed machine"),
    (lambda dump: dump.kernel.symbol("init_task"), "kallsyms_num_syms at 0x"),
    (lambda dump: vmfilter.dmesg(dump), "the kernel's log is damaged"),
    (lambda dump: vmfilter.verify_dump(dump, threads=0), "the number of threads must be from 1"),
    (lambda dump: vmfilter.verify_dump(dump, progress=5), "progress 5 is not callable"),  # type: ignore[arg-type]
    (lambda dump: vmfilter.filter_dump(dump, "new", rules="x"), "rules must be vmfilter.Rules, not 'x'"),  # type: ignore[arg-type]
    (lambda dump: vmfilter.convert_dump(dump, "new", rules=5), "rules must be vmfilter.Rules, not 5"),  # type: ignore[arg-type]
    (lambda dump: vmfilter.estimate(dump, levels="31"), "levels must be a list of dump levels, not '31'"),
    (lambda dump: vmfilter.estimate(dump, levels=31), "levels must be a list of dump levels, not 31"),  # type: ignore[arg-type]
    (lambda dump: vmfilter.estimate(dump, levels=[99]), "dump level 99 is not between 0 and 63"),
    (lambda dump: vmfilter.estimate(dump, codecs="zlib"), "codecs must be a list of page codecs, not 'zlib'"),
    (lambda dump: vmfilter.estimate(dump, seconds="1"), "seconds must be a number, not '1'"),  # type: ignore[arg-type]
    (lambda dump: vmfilter.estimate(dump, seed=[1]), "seed must be a number, not [1]"),  # type: ignore[arg-type]
    (lambda dump: vmfilter.open_dump(dump.path, vmcoreinfo_at=-1), "-1 is not an address"),
    (lambda dump: vmfilter.open_dump(dump.path, max_memory="1G"), "max_memory must be a number of bytes"),  # type: ignore[arg-type]
    (lambda dump: next(dump.runs()).page(1 << 40), "1099511627776 is not the number of a page frame of the run"),
    (lambda dump: dump.kernel.symbol(b"jiffies"), "b'jiffies' is not the name of a symbol or type"),  # type: ignore[arg-type]
    (lambda dump: dump.kernel.symbol_at(-1), "-1 is not an address"),
    (lambda dump: dump.kernel.struct("page", "0"), "'0' is not an address"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_a_mistake_is_one_exception_of_one_line(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with vmfilter.open_dump(small) as dump:
        with pytest.raises(vmfilter.VmfilterError) as raised:
            call(dump)
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_dumps_of_two_machines_are_not_compared(real: Callable[[str], Path], small: Path) -> None:
    other = real("arm64-6.12")
    for compare in vmfilter.diff, vmfilter.verify_dump:
        with pytest.raises(vmfilter.VmfilterError, match=r"is a dump of \w+, but .* is one of \w+; "):
            compare(small, other)


def test_a_message_to_a_program_has_the_words_of_functions(small: Path, tmp_path: Path, run: Run) -> None:
    dump, link = tmp_path / "dump", tmp_path / "link"
    vmfilter.filter_dump(small, dump)
    link.symlink_to(tmp_path / "nowhere")
    for output in dump, link:
        assert "; --force " in run("filter", small, output).err  # a command before does not change what programs get
        with pytest.raises(vmfilter.OutputError, match="; force=True "):
            vmfilter.filter_dump(small, output)
    with pytest.raises(vmfilter.KernelError, match="without vmcoreinfo_at, memory is searched"):
        _ = vmfilter.open_dump(small, vmcoreinfo_at=0x1000).kernel
    with vmfilter.open_dump(small, vmcoreinfo_at=0x1000) as dump:
        for operation in (lambda: vmfilter.filter_dump(dump, "new"), lambda: vmfilter.estimate(dump)):
            with pytest.raises(vmfilter.KernelError, match="; level=1 excludes only zero pages"):
                operation()
    with pytest.raises(vmfilter.UsageError, match="max_memory must be a number of bytes, at least 1048576, not 64"):
        vmfilter.filter_dump(small, "new", max_memory=64)


def test_no_message_below_the_commands_has_an_option_of_theirs() -> None:
    """errors.option() writes it as its reader gives it. What is a whole command stays one."""
    helps = "".join(command.format_help() for command in parser_of("").commands().values())
    options = {*re.findall(r"(?<![\w-])--[a-z][\w-]*", helps)}
    found = []
    for path in sorted(Path(vmfilter.__file__).parent.rglob("*.py")):
        if {*path.parts} & {"cli", "makedumpfile", "integration", "readiness", "report", "fleet"}:
            continue
        tree = ast.parse(path.read_text())
        documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
                text = re.sub(r"(vmfilter [a-z-]+|virsh dump) --\S+", "", node.value)
                found += [(path.name, name) for name in re.findall(r"(?<![\w-])--[a-z][\w-]*", text) if name in options]
                found += [(path.name, name) for name in re.findall(r"-[dj] \d+|\(-[a-z]\)", text)]
    assert found == []


def test_swapped_names_do_not_replace_the_larger_dump(small: Path, tmp_path: Path) -> None:
    vmcore, dump, other = tmp_path / "vmcore", tmp_path / "dump", tmp_path / "other"
    vmcore.write_bytes(small.read_bytes())
    vmfilter.filter_dump(vmcore, dump)
    said = f"^{vmcore}: not replaced: .* are the two names swapped\\? if not, remove it first$"
    for operation in vmfilter.filter_dump, vmfilter.convert_dump:
        with pytest.raises(vmfilter.OutputError, match=said):
            operation(dump, vmcore, force=True)
        with vmfilter.open_dump(dump) as opened, pytest.raises(vmfilter.OutputError, match=said):
            operation(opened, [other, vmcore], force=True)
        with pytest.raises(vmfilter.OutputError, match=said), open(dump, "rb") as file:
            operation(file, bytes(vmcore), force=True)
    assert vmcore.read_bytes() == small.read_bytes()
    assert not other.exists()
    assert vmfilter.filter_dump(dump, vmcore, force=True, dry_run=True).remaining == 2449
    assert vmfilter.filter_dump(vmcore, dump, force=True).remaining == 2449
    vmcore.unlink()
    assert vmfilter.convert_dump(dump, vmcore, force=True).remaining == 2449


def test_the_warnings_of_a_result_are_those_of_the_command(small: Path, tmp_path: Path, run: Run) -> None:
    dump = tmp_path / "dump"
    result = vmfilter.filter_dump(small, dump, compress="none", limit=5 << 20)
    ran = run("filter", "--json", "--force", "--compress", "none", "--limit", "5M", small, dump)
    assert ran.status == 6
    assert result.as_dict()["warnings"] == [*result.warnings]
    assert [line.replace("limit was", "--limit was") for line in result.warnings] == json.loads(ran.out)["warnings"]
    assert any("is incomplete: " in line for line in result.warnings)


def test_a_closed_dump_says_so(small: Path) -> None:
    dump = vmfilter.open_dump(small)
    runs = dump.runs()
    next(runs)
    with vmfilter.open_dump(small) as other:
        kernel = other.kernel
    dump.close()
    dump.close()
    calls: list[Call] = [
        lambda dump: dump.__enter__(),
        lambda dump: dump.notes[0].data,
        lambda dump: list(runs),
        lambda dump: kernel.symbol("jiffies"),
        lambda dump: kernel.struct("page", 0),
        lambda dump: kernel.tasks(),
        vmfilter.stats,
        lambda dump: dump.read(0x100000, 4),
        lambda dump: dump.kernel,
        lambda dump: list(dump.pages()),
        lambda dump: dump.page(256),
    ]
    for call in calls:
        with pytest.raises(vmfilter.UsageError, match=f"{small}: the dump is closed: open it again"):
            call(dump)


def test_a_closed_file_object_says_so(small: Path) -> None:
    file = io.BytesIO(small.read_bytes())
    file.close()
    with pytest.raises(vmfilter.UsageError, match="<BytesIO>: cannot be used: I/O operation on closed file"):
        vmfilter.open_dump(file)
    with open(small, "rb") as opened:
        pass
    with pytest.raises(vmfilter.UsageError, match="cannot be used: I/O operation on closed file"):
        vmfilter.open_dump(opened)
