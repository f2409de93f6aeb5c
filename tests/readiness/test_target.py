"""Where the settings of kdump say that dumps go."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmfilter.errors import UsageError
from vmfilter.readiness.target import find_target, given, room_at


def root_with(tmp_path: Path, name: str, text: str) -> Path:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text", "where", "local"),
    [
        ("etc/kdump.conf", "# a comment\ncore_collector makedumpfile -l\n", "/var/crash", True),
        ("etc/kdump.conf", "path /srv/dumps # here\n", "/srv/dumps", True),
        ("etc/kdump.conf", "ext4 UUID=1-2\npath /x\n", "ext4 UUID=1-2, /x", False),
        ("etc/kdump.conf", "ssh root@host\nsshkey /root/.ssh/id\n", "ssh root@host", False),
        ("etc/kdump.conf", "raw /dev/sdb1\n", "raw /dev/sdb1", False),
        ("etc/default/kdump-tools", "USE_KDUMP=1\n#KDUMP_COREDIR=/x\n", "/var/crash", True),
        ("etc/default/kdump-tools", 'KDUMP_COREDIR="/srv/crash"\n', "/srv/crash", True),
        ("etc/default/kdump-tools", "SSH=root@host\nKDUMP_COREDIR=/srv\n", "ssh root@host", False),
        ("etc/default/kdump-tools", 'NFS="host:/dumps"\n', "nfs host:/dumps", False),
        ("etc/sysconfig/kdump", 'KDUMP_SAVEDIR="file:///srv/crash"\n', "/srv/crash", True),
        ("etc/sysconfig/kdump", "KDUMP_SAVEDIR=/srv\n", "/srv", True),
        ("etc/sysconfig/kdump", "KDUMP_SAVEDIR=ftp://host/dumps\n", "ftp://host/dumps", False),
    ],
)
def test_each_distribution_names_its_target(tmp_path: Path, name: str, text: str, where: str, local: bool) -> None:
    target = find_target(root_with(tmp_path, name, text))
    assert target
    assert (target.where, target.local, target.said_by) == (where, local, f"/{name}")
    if local:
        assert target.path == tmp_path / where[1:]


@pytest.mark.parametrize("text", ['KDUMP_COMMANDLINE=""\nKEXEC_ARGS=""\n', "\0\xff garbage"])
def test_settings_without_a_target_name_none(tmp_path: Path, text: str) -> None:
    assert find_target(root_with(tmp_path, "etc/sysconfig/kdump", text)) is None
    assert find_target(tmp_path / "nothing") is None


def test_a_target_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in "nothing", "file":
        with pytest.raises(UsageError, match=r"/\w+' \(--target\) is not a directory; make it first"):
            given(str(tmp_path / name))


def test_the_room_is_that_of_the_nearest_directory(tmp_path: Path) -> None:
    below = find_target(root_with(tmp_path, "etc/kdump.conf", "path /a/b/c\n"))
    assert below
    room, parent = room_at(below), room_at(given(str(tmp_path)))
    assert room
    assert parent
    assert room.free > 0
    assert room.writable == parent.writable
    assert abs(room.free - parent.free) < 1 << 28


def test_a_remote_target_has_no_known_room(tmp_path: Path) -> None:
    target = find_target(root_with(tmp_path, "etc/kdump.conf", "nfs host:/dumps\n"))
    assert target
    assert room_at(target) is None
