"""Input written by makedumpfile: its split sets and incomplete files, compared with its own whole dump."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest
from judges import LAB, peer_is_here

import vmfilter
from vmfilter.reader import open_dump
from vmfilter.verify import verify_dump

pytestmark = pytest.mark.lab


def makedumpfile(*arguments: object) -> None:
    command = [sys.executable, str(LAB / "lab" / "peer.py"), "makedumpfile", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("codec", ["-c", "-l", "-z"])
def test_a_split_set_of_makedumpfile_is_its_whole_dump(
    request: pytest.FixtureRequest, tmp_path: Path, codec: str
) -> None:
    if not peer_is_here("makedumpfile", "-v"):
        pytest.skip("makedumpfile is not available here")
    get: Callable[[str], Path] = request.getfixturevalue("lab")
    vmcore = get("x86-6.12")
    makedumpfile(codec, "-d", 31, vmcore, tmp_path / "whole")
    # Blocks of 4 MiB: makedumpfile's default is larger than this vmcore, and would put everything into the first part.
    parts = [tmp_path / f"part{i}" for i in range(3)]
    makedumpfile("--split", "--splitblock-size", 4096, codec, "-d", 31, vmcore, *parts)
    with open_dump(tmp_path / "whole") as whole:
        for order in permutations(parts):
            with open_dump(order) as dump:
                found = verify_dump(dump, whole)
                assert (found.whole, found.compared) == (True, found.pages)
        with open_dump(parts) as dump, open_dump(vmcore) as original:
            assert verify_dump(whole, dump).not_compared == 0
            assert verify_dump(dump, original).compared == found.pages
    with pytest.raises(vmfilter.InputError, match="a part of the split set is missing"):
        open_dump(parts[1:])
