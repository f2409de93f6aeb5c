"""vmfilter stats, judged by drgn: nodes and zones by the spans of the kernel's struct zones."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Run

pytestmark = pytest.mark.lab
NAMES = ["x86-pmem2", "x86-pmem3"]


def spans(core: Path, vmlinux: Path) -> list[tuple[int, int, int, str]]:
    """First frame, frame after the last, node and name of each zone."""
    import drgn
    from drgn.helpers.linux.mmzone import for_each_online_pgdat

    prog = drgn.Program()
    prog.set_core_dump(core)
    prog.load_debug_info([vmlinux])
    found = []
    for node in for_each_online_pgdat(prog):
        for zone in node.node_zones:
            first, frames = int(zone.zone_start_pfn), int(zone.spanned_pages)
            if frames:
                found.append((first, first + frames, int(node.node_id), zone.name.string_().decode()))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_zones_are_those_whose_span_has_the_frames(lab: Callable[[str], Path], run: Run, name: str) -> None:
    known = spans(lab(name), lab("vmlinux-pmem"))
    agree, wrong = Counter[str](), 0
    for row in csv.DictReader(io.StringIO(run("stats", "--csv", lab(name)).out)):
        start, end = int(row["start"]), int(row["end"])
        if not row["zone"]:  # no struct pages, so in no span
            assert all(end <= first or last <= start for first, last, _, _ in known)
            continue
        inside = any(
            first <= start and end <= last and (row["node"], row["zone"]) == (str(node), zone)
            for first, last, node, zone in known
        )
        agree[row["zone"]] += (end - start) * inside
        wrong += (end - start) * (not inside)
    # The kernel leaves the struct pages of a namespace's info block and labels as they are: zeros.
    assert wrong <= 4
    assert agree["DMA32"] > 60_000
    assert agree["Device"] > 2_000
