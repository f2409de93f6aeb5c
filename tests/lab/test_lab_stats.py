"""vmfilter stats, judged by drgn: nodes and zones by the spans of the kernel's struct zones, free pages by counters."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from command import Run
from counts import assert_same_counts
from judges import LARGE

pytestmark = pytest.mark.lab
NAMES = ["x86-pmem2", "x86-pmem3"]


class Zone(NamedTuple):
    """A zone: frames [first, end), and free pages by its counter and what CPUs have not added to it yet."""

    node: str
    name: str
    first: int
    end: int
    free: int


def zones(core: Path, vmlinux: Path) -> list[Zone]:
    """Zones that have memory."""
    import drgn
    from drgn.helpers.linux.cpumask import for_each_online_cpu
    from drgn.helpers.linux.mmzone import for_each_online_pgdat
    from drgn.helpers.linux.percpu import per_cpu_ptr

    prog = drgn.Program()
    prog.set_core_dump(core)
    prog.load_debug_info([vmlinux])
    which = prog["NR_FREE_PAGES"]
    found = []
    for node in for_each_online_pgdat(prog):
        for zone in node.node_zones:
            first, frames = int(zone.zone_start_pfn), int(zone.spanned_pages)
            if frames:
                changes = [per_cpu_ptr(zone.per_cpu_zonestats, cpu).vm_stat_diff for cpu in for_each_online_cpu(prog)]
                free = int(zone.vm_stat[which].counter) + sum(int(change[which]) for change in changes)
                name = zone.name.string_().decode()
                found.append(Zone(str(int(node.node_id)), name, first, first + frames, free))
    return found


@pytest.mark.parametrize("name", LARGE)
def test_each_form_has_the_same_counts_and_they_add_up(
    lab: Callable[[str], Path], run: Run, tmp_path: Path, name: str
) -> None:
    assert_same_counts(run, lab(name), tmp_path / "page")


@pytest.mark.parametrize("name", NAMES)
def test_free_pages_of_each_zone_are_those_that_the_kernel_counts(
    lab: Callable[[str], Path], run: Run, name: str
) -> None:
    counted = {(zone.node, zone.name): zone.free for zone in zones(lab(name), lab("vmlinux-pmem"))}
    data = json.loads(run("stats", "--json", lab(name)).out)
    found = {(str(z["node"]), z["zone"]): z["classes"]["free"] for z in data["zones"] if z["zone"]}
    assert found == counted
    assert counted["0", "DMA32"] > 20_000


@pytest.mark.parametrize("name", NAMES)
def test_zones_are_those_whose_span_has_the_frames(lab: Callable[[str], Path], run: Run, name: str) -> None:
    known = zones(lab(name), lab("vmlinux-pmem"))
    agree, wrong = Counter[str](), 0
    for row in csv.DictReader(io.StringIO(run("stats", "--csv", lab(name)).out)):
        start, end = int(row["start"]), int(row["end"])
        if not row["zone"]:  # no struct pages, so in no span
            assert all(end <= zone.first or zone.end <= start for zone in known)
            continue
        inside = any(
            zone.first <= start and end <= zone.end and (row["node"], row["zone"]) == (zone.node, zone.name)
            for zone in known
        )
        agree[row["zone"]] += (end - start) * inside
        wrong += (end - start) * (not inside)
    # The kernel leaves the struct pages of a namespace's info block and labels as they are: zeros.
    assert wrong <= 4
    assert agree["DMA32"] > 60_000
    assert agree["Device"] > 2_000
