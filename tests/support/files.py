"""Files that tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

TESTDATA = Path(__file__).parents[2] / "testdata"
Shared = Callable[[str, Callable[[Path], object]], Path]
"""Returns the path of a file or folder that is made once for all workers, by its name and what makes it."""
