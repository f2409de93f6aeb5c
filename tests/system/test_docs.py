"""What the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_architecture_names_the_modules_that_there_are() -> None:
    drawing = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    named = set(re.findall(r"\w+\.(?:py|[ch])\b", drawing)) - {"setup.py"}
    rooms = [p for p in (ROOT / "vmfilter").rglob("*.py") if p.parent.name not in ("arch", "cli") and p.stem[0] != "_"]
    there = {p.name for p in (*rooms, *(ROOT / "csrc").glob("*.c"))}
    assert there - named == set()
    others = {p.name for folder in ("vmfilter/cli", "csrc") for p in (ROOT / folder).iterdir()}
    assert named - there - others == set()
