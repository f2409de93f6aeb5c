"""Dumps on an SFTP server: OpenSSH's, with a configuration, keys and a port of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from tinyvmcore import vmcore

import vmfilter
from vmfilter.errors import OutputError, UsageError
from vmfilter.fleet.manifest import Manifest
from vmfilter.fleet.store import Store

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server's root, which this user may log in to with a key."""
    if not SSHD:
        pytest.skip("no sshd")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nSubsystem sftp internal-sftp -u 022\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # it does not start as root without that
    command = [SSHD, "-D", "-e", "-f", str(folder / "config")]
    options = {"username": "root" if os.geteuid() == 0 else os.environ["USER"], "key_filename": str(folder / "user")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process, pytest.MonkeyPatch.context() as m:
        m.setitem(fsspec.config.conf, "sftp", {**options, "look_for_keys": False, "allow_agent": False})
        assert process.stderr
        assert "listening" in process.stderr.readline()
        yield f"sftp://127.0.0.1:{port}"
        process.terminate()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return vmcore(pages=64).write(tmp_path / "vmcore")


@pytest.mark.parametrize("flatten", [False, True])
def test_a_dump_is_the_same_by_sftp(server: str, source: Path, tmp_path: Path, flatten: bool) -> None:
    vmfilter.filter_dump(source, tmp_path / "here", flatten=flatten)
    url = f"{server}{tmp_path}/new/there"
    vmfilter.filter_dump(source, url, level=0)
    with pytest.raises(OutputError, match="exists; force=True replaces it"):
        vmfilter.filter_dump(source, url)
    vmfilter.filter_dump(f"{server}{source}", url, flatten=flatten, force=True)
    assert (tmp_path / "new" / "there").read_bytes() == (tmp_path / "here").read_bytes()
    assert (tmp_path / "new" / "there").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["there"]


def test_one_batch_at_a_time_writes_to_a_server(server: str, tmp_path: Path) -> None:
    store = Store(f"{server}{tmp_path}/out")
    manifest = Manifest(store)
    with pytest.raises(UsageError, match=f"another batch is writing it: process {os.getpid()} on"):
        Manifest(store)
    manifest.close()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.jsonl"]
    Manifest(store).close()


@pytest.mark.parametrize("flatten", [False, True])
def test_nothing_half_written_stays_on_the_server(server: str, source: Path, tmp_path: Path, flatten: bool) -> None:
    def ended(stage: str, done: int, total: int) -> None:
        if stage == "write" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vmfilter.filter_dump(source, f"{server}{tmp_path}/there", flatten=flatten, progress=ended)
    assert [path.name for path in tmp_path.iterdir()] == ["vmcore"]
