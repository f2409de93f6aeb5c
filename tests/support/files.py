"""Files shared by tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

TESTDATA = Path(__file__).parents[2] / "testdata"
Shared = Callable[[str, Callable[[Path], object]], Path]
"""Returns the path of a file or folder that is made once for all workers, given its name and its maker."""
