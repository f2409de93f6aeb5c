"""Files shared by tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

TESTDATA = Path(__file__).parents[2] / "testdata"
Shared = Callable[[str, Callable[[Path], object]], Path]
"""Returns the path of a file or folder that is made once for all workers, given its name and its maker."""


def skip_unless_holes_are_known(folder: Path) -> None:
    """Skip the test if the file system of a folder does not tell where files have holes."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(1 << 20)
        try:
            os.lseek(file.fileno(), 0, os.SEEK_DATA)
        except OSError:  # ENXIO: no data until the end of the file
            return
    pytest.skip("the file system does not tell where files have holes")
