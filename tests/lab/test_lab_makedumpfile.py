"""Command lines run by makedumpfile and by vmfilter: the same exit status, the same pages."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from files import Shared
from judges import LAB, peer_is_here
from kdumpreader import Kdump

import vmfilter
from vmfilter.kernel.search import understand
from vmfilter.reader import open_dump
from vmfilter.verify import verify_dump

pytestmark = pytest.mark.lab

PEER = [sys.executable, str(LAB / "lab" / "peer.py"), "makedumpfile"]
OURS = [sys.executable, "-m", "vmfilter", "makedumpfile"]

# VMCORE is a vmcore, FIRST a dump of level 1, ONE and TWO a split set, OLD an existing file.
MADE = [
    *(f"-d {level} VMCORE dump" for level in (0, 1, 2, 4, 8, 16, 17, 30, 31)),
    *(f"{codec} -d 31 VMCORE dump" for codec in ("-c", "-l", "-z", "-cd 31", "-c -l", "-lf")),
    "VMCORE dump -d31",
    "VMCORE -d 31 dump --non-mmap",
    "-d 1,31 VMCORE dump",
    "-d 31 -b 8 VMCORE dump",
    "-d 31 --cyclic-buffer 64 VMCORE dump",
    "-d 31 --work-dir . VMCORE dump",
    "-d 31 --message-level 31 VMCORE dump",
    "-d 31 --mess=0 VMCORE dump",
    "-d 31 -D --show-stats VMCORE dump",
    "-d 31 --vtop 0xffffffff81000000 VMCORE dump",
    "-d 31 -L 1G VMCORE dump",
    "-d 31 --split --splitblock-size 64 VMCORE dump dump2 dump3",
    "-z -d 31 --split VMCORE dump dump2",
    "-f -d 31 VMCORE OLD",
    "-d 31 FIRST dump",
    "-d 0 FIRST dump",
    "-z -d 16 FIRST dump",
    "--reassemble ONE TWO dump",
    "--reassemble TWO ONE dump",
    "-d 31 -- VMCORE dump",
]
NOT_MADE = [
    "",
    "VMCORE",
    "VMCORE dump more",
    "nofile dump",
    "VMCORE no/dump",
    "VMCORE OLD",
    "OLD dump",
    "-c -E VMCORE dump",
    "-F VMCORE dump",
    "-F --split VMCORE dump dump2",
    "--split VMCORE dump",
    "--split -E VMCORE dump dump2",
    "--split --num-threads 2 VMCORE dump dump2",
    "-E --num-threads 2 VMCORE dump",
    "--reassemble ONE dump",
    "--reassemble ONE",
    "--reassemble --dry-run ONE TWO dump",
    "--reassemble -d 31 ONE TWO dump",
    "-R OLD",
    "-R -d 31 dump",
    "-d 64 VMCORE dump",
    "-d -1 VMCORE dump",
    "-L 0 VMCORE dump",
    "-L 1Q VMCORE dump",
    "-L 64K -d 31 VMCORE dump",
    "--message-level 32 VMCORE dump",
    "--no-such VMCORE dump",
    "--d VMCORE dump",
    "-Y VMCORE dump",
    "--split=1 VMCORE dump",
    "-d",
    "--partial-dmesg VMCORE dump",
    "--dump-dmesg --dry-run VMCORE dump",
    "-x nofile VMCORE dump",
    "-i nofile VMCORE dump",
    "-g info",
    "--config nofile VMCORE dump",
    "-X VMCORE dump",
    "-e VMCORE dump",
]
NO_FILE = [
    "--dry-run -d 31 VMCORE dump",
    "--check-params -d 31 VMCORE dump",
    "-h",
    "--help",
    "-v",
    "-d 31 --dry-run -F VMCORE",
]


@pytest.fixture(scope="session")
def files(lab: Callable[[str], Path], shared: Shared) -> dict[str, Path]:
    """Paths of the files that command lines name."""
    if not peer_is_here("makedumpfile", "-v"):
        pytest.skip("makedumpfile is not available here")
    vmcore = lab("x86-6.12")

    def make(folder: Path) -> None:
        folder.mkdir()
        for command in (
            [*PEER, "-c", "-d", "1", vmcore, folder / "FIRST"],
            [*OURS, "-c", "-d", "31", "--split", vmcore, folder / "ONE", folder / "TWO"],
        ):
            subprocess.run(command, capture_output=True, check=True)

    folder = shared("makedumpfile", make)
    return {"VMCORE": vmcore} | {name: folder / name for name in ("FIRST", "ONE", "TWO")}


def run(program: list[str], line: str, files: dict[str, Path], folder: Path) -> int:
    folder.mkdir()
    (folder / "OLD").write_bytes(b"old")
    words = [str(files.get(word, word)) for word in line.split()]
    return subprocess.run([*program, *words], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True).returncode


def dumps(folder: Path) -> dict[str, Kdump]:
    return {path.name: Kdump(path) for path in folder.iterdir() if path.read_bytes()[:5] == b"KDUMP"}


@pytest.mark.parametrize("line", MADE)
def test_the_same_pages_are_kept(files: dict[str, Path], tmp_path: Path, line: str) -> None:
    assert run(PEER, line, files, tmp_path / "theirs") == 0
    assert run(OURS, line, files, tmp_path / "ours") == 0
    theirs, ours = dumps(tmp_path / "theirs"), dumps(tmp_path / "ours")
    assert sorted(theirs) == sorted(ours) != []
    if len(theirs) > 1:  # the cuts may differ: compare the joined sets
        for who in "theirs", "ours":
            names = [str(tmp_path / who / name) for name in sorted(theirs)]
            subprocess.run([*OURS, "--reassemble", *names, tmp_path / f"{who}.all"], capture_output=True, check=True)
        theirs, ours = {"all": Kdump(tmp_path / "theirs.all")}, {"all": Kdump(tmp_path / "ours.all")}
    for name in theirs:
        assert ours[name].status == theirs[name].status
        assert ours[name].dump_level == theirs[name].dump_level
        assert ours[name].kept == theirs[name].kept
        for (_, mine), (pfn, other) in zip(ours[name].pages(), theirs[name].pages(), strict=True):
            assert mine == other, hex(pfn)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("line", NOT_MADE)
def test_the_same_command_lines_fail(files: dict[str, Path], tmp_path: Path, line: str) -> None:
    assert run(PEER, line, files, tmp_path / "theirs") == 1
    assert run(OURS, line, files, tmp_path / "ours") == 1
    assert (tmp_path / "ours" / "OLD").read_bytes() == b"old"


@pytest.mark.parametrize("line", NO_FILE)
def test_the_same_command_lines_make_no_file(files: dict[str, Path], tmp_path: Path, line: str) -> None:
    assert run(PEER, line, files, tmp_path / "theirs") == 0
    assert run(OURS, line, files, tmp_path / "ours") == 0
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["OLD"]


@pytest.mark.parametrize("sender", [PEER, OURS], ids=["theirs", "ours"])
@pytest.mark.parametrize("receiver", [PEER, OURS], ids=["theirs", "ours"])
@pytest.mark.parametrize("options", ["-c -d 31", "-E -d 31"])
def test_each_reads_the_others_streams(
    files: dict[str, Path], tmp_path: Path, sender: list[str], receiver: list[str], options: str
) -> None:
    sent = subprocess.run([*sender, "-F", *options.split(), files["VMCORE"]], capture_output=True, check=True)
    (tmp_path / "stream").write_bytes(sent.stdout)
    with open(tmp_path / "stream", "rb") as stream:
        subprocess.run([*receiver, "-R", tmp_path / "dump"], stdin=stream, capture_output=True, check=True)
    subprocess.run([*OURS, "-d", "31", tmp_path / "dump", tmp_path / "got"], capture_output=True, check=True)
    subprocess.run([*OURS, "-d", "31", files["VMCORE"], tmp_path / "want"], capture_output=True, check=True)
    got, want = (
        {pfn: data for pfn, data in Kdump(tmp_path / name).pages() if any(data)}  # zero pages may be in no PT_LOAD
        for name in ("got", "want")
    )
    assert got == want
    shutil.rmtree(tmp_path)


def test_the_log_is_the_same(files: dict[str, Path], tmp_path: Path) -> None:
    for who, program in ("theirs", PEER), ("ours", OURS):
        command = [*program, "--dump-dmesg", str(files["VMCORE"]), str(tmp_path / who)]
        subprocess.run(command, capture_output=True, check=True)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes() != b""


def test_the_log_since_it_was_cleared_is_the_same(files: dict[str, Path], tmp_path: Path) -> None:
    vmcore, seq = tmp_path / "vmcore", 300
    subprocess.run(["cp", "--sparse=always", files["VMCORE"], vmcore], check=True)
    with open_dump(vmcore) as dump:
        kernel = understand(dump).kernel
        assert kernel is not None
        symbol, val = kernel.info.symbol("clear_seq"), kernel.info.offset("latched_seq.val")
        assert symbol is not None
        assert val is not None
        at = next(kernel.memory.translate(symbol + val, 16)).paddr
        load = next(load for load in dump.loads if load.start <= at < load.end)
    with open(vmcore, "r+b") as file:
        file.seek(load.offset + at - load.start)
        file.write(seq.to_bytes(8, "little") * 2)
    for who, program in ("theirs", PEER), ("ours", OURS):
        command = [*program, "--dump-dmesg", "--partial-dmesg", str(vmcore), str(tmp_path / who)]
        subprocess.run(command, capture_output=True, check=True)
    said = (tmp_path / "ours").read_bytes()
    assert said == (tmp_path / "theirs").read_bytes()
    subprocess.run([*OURS, "--dump-dmesg", str(vmcore), str(tmp_path / "all")], capture_output=True, check=True)
    records = re.split(rb"\n(?=\[)", (tmp_path / "all").read_bytes())
    assert said == b"\n".join(records[seq:]) != b""
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    ("line", "covered"),
    [
        ("-z -d 31 OURS dump", False),
        ("-l -d 31 OURS dump", False),
        ("-E -d 31 ELF dump", False),
        ("--reassemble ONE TWO dump", False),
        ("-R dump", True),
    ],
)
def test_makedumpfile_passes_over_our_checksums_and_its_copies_are_not_believed(
    files: dict[str, Path], tmp_path: Path, line: str, covered: bool
) -> None:
    made = {"OURS": {"compress": "zstd"}, "ELF": {"format": "elf"}, "FLAT": {"flatten": True}}
    for name, how in made.items():
        vmfilter.filter_dump(files["VMCORE"], tmp_path / name, **how)  # type: ignore[arg-type]
    words = [str(files.get(word, word)) for word in line.split()]
    with open(tmp_path / "FLAT", "rb") as stream:
        subprocess.run([*PEER, *words], cwd=tmp_path, stdin=stream, capture_output=True, check=True)
    with open_dump(tmp_path / "dump") as dump:
        found = verify_dump(dump)
    assert (found.whole, found.covered) == (True, covered)
