"""A folder that another user can write to: swapping names there misleads no write, rename or removal."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kdumpreader import Kdump
from tinyvmcore import vmcore

import vmfilter
from vmfilter.errors import OutputError
from vmfilter.rearrange import rearrange
from vmfilter.writer.transport.base import Published
from vmfilter.writer.transport.file import FileTransport
from vmfilter.writer.transport.hashed import HashedFileTransport

CALLS = ["open", "pwrite", "posix_fallocate", "ftruncate", "fsync", "link", "rename", "unlink", "stat"]
FORMS: dict[str, dict[str, Any]] = {
    "kdump": {},
    "forced": {"force": True},
    "elf": {"format": "elf"},
    "flattened": {"flatten": True},
    "with its SHA-256": {"sha256": True},
    "split": {},
}


class Attack:
    """Does something before every call of a function of os, once there is a temporary file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: str, folder: Path, swap: Callable[[Path], None]) -> None:
        real = getattr(os, call)
        self.times = 0
        attacking = False

        def attacked(*arguments: Any, **options: Any) -> Any:
            nonlocal attacking
            if not attacking:
                attacking = True
                for path in list(folder.glob("*.incomplete")):
                    if not path.is_symlink():
                        swap(path)
                        self.times += 1
                attacking = False
            return real(*arguments, **options)

        monkeypatch.setattr(os, call, attacked)


def outputs(form: str, folder: Path) -> list[Path]:
    return [folder / name for name in (("one", "two") if form == "split" else ("dump",))]


@pytest.mark.parametrize("how", ["moved", "removed"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("form", FORMS)
def test_a_temporary_name_that_becomes_a_link_is_not_followed(
    form: str, call: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, victim = tmp_path / "folder", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("precious")
    source = vmcore().write(tmp_path / "vmcore")
    outs = outputs(form, folder)

    def swap(path: Path) -> None:
        if how == "moved":
            path.rename(path.with_suffix(".theirs"))
        else:
            path.unlink()
        path.symlink_to(victim)

    with monkeypatch.context() as m:
        Attack(m, call, folder, swap)
        try:
            vmfilter.filter_dump(source, outs, level=1, **FORMS[form])
            made = True
        except OutputError:
            made = False
    assert victim.read_text() == "precious"
    assert not victim.is_symlink()
    if made:
        assert not any(out.is_symlink() for out in outs)
        vmfilter.open_dump(outs).close()
    elif (form, call) != ("forced", "rename"):  # in the instant before that, the link itself gets the name
        assert not any(os.path.lexists(out) for out in outs)


@pytest.mark.parametrize("call", CALLS)
def test_a_folder_that_becomes_a_link_is_not_followed(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, aside, victim = tmp_path / "folder", tmp_path / "aside", tmp_path / "victim"
    for path in folder, victim:
        path.mkdir()
    source = vmcore().write(tmp_path / "vmcore")

    def swap(path: Path) -> None:
        if not aside.exists():
            folder.rename(aside)
            folder.symlink_to(victim)

    with monkeypatch.context() as m:
        attack = Attack(m, call, folder, swap)
        vmfilter.filter_dump(source, folder / "dump", level=1, force=call in ("rename", "stat"))
    assert attack.times
    assert not list(victim.iterdir())
    assert os.listdir(aside) == ["dump"]
    Kdump(aside / "dump")


def test_a_rearranged_stream_is_not_written_to_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, victim = tmp_path / "folder", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("precious")
    stream = tmp_path / "stream"
    vmfilter.filter_dump(vmcore().write(tmp_path / "vmcore"), stream, level=1, flatten=True)

    def swap(path: Path) -> None:
        path.rename(folder / "theirs")
        path.symlink_to(victim)

    with monkeypatch.context() as m, open(stream, "rb") as file:
        assert Attack(m, "pwrite", folder, swap)
        rearrange(file, folder / "dump")
    assert victim.read_text() == "precious"
    vmfilter.open_dump(folder / "dump").close()


def test_a_link_that_takes_the_name_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    transport = FileTransport(str(tmp_path / "dump"))
    transport.create()
    (tmp_path / "dump").symlink_to(victim)
    transport.sync(4)
    with pytest.raises(OutputError, match="was created by another process meanwhile"):
        transport.publish()
    transport.abort()
    assert os.listdir(tmp_path) == ["dump"]


def test_a_name_that_another_process_has_taken_is_not_removed(tmp_path: Path) -> None:
    transport = FileTransport(str(tmp_path / "dump"))
    transport.create()
    transport.sync(4)
    transport.publish()
    (tmp_path / "dump").unlink()
    (tmp_path / "dump").write_text("theirs")
    transport.abort()
    assert (tmp_path / "dump").read_text() == "theirs"


def test_a_temporary_file_that_cannot_be_removed_is_named(tmp_path: Path) -> None:
    transport = FileTransport(str(tmp_path / "dump"))
    transport.create()
    (aside,) = tmp_path.iterdir()
    aside.unlink()
    aside.mkdir()
    assert transport.abort() == f"{aside}: is not a dump, and cannot be removed: Is a directory; remove it yourself"


def test_a_dump_and_its_sha_256_that_cannot_be_removed_are_named(tmp_path: Path) -> None:
    transport = HashedFileTransport(str(tmp_path / "dump"))
    transport.create()
    for aside in list(tmp_path.iterdir()):
        aside.unlink()
        aside.mkdir()
    assert (transport.abort() or "").count("is not a dump, and cannot be removed: Is a directory") == 2


def test_each_file_of_a_set_that_cannot_be_removed_is_named(tmp_path: Path) -> None:
    transports = [FileTransport(str(tmp_path / str(i))) for i in range(3)]

    def fail() -> None:
        with Published(transports):
            for aside in list(tmp_path.iterdir()):
                aside.unlink()
                aside.mkdir()
            raise InterruptedError

    with pytest.raises(InterruptedError) as raised:
        fail()
    assert len(raised.value.__notes__) == 3
