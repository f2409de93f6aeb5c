"""vmfilter stats, judged by the kernel: nodes and zones by its struct zones and its log, free pages by its counters.

drgn reads these with the kernel's debug information. Where the archive has no debug package of the
kernel any more, its own types (BTF) serve instead.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from command import Run
from counts import assert_same_counts
from judges import LARGE, VMCORES, debug_vmlinux

from vmfilter.crash.cpus import per_cpu, possible_cpus
from vmfilter.kernel.search import understand
from vmfilter.kernel.types.debug_info import debug_info
from vmfilter.reader import open_dump

pytestmark = pytest.mark.lab
PMEM = ["x86-pmem2", "x86-pmem3"]
DEBUG = {"x86-6.12": "linux-image-6.12.95+deb12-cloud-amd64", "x86-7.2": "linux-image-7.2.13+deb14-cloud-amd64"}
"""Debian's packages of kernels whose debug information is still in its archive."""
TYPED = [name for name in LARGE if name not in PMEM]
"""Vmcores of kernels that have their own types (BTF)."""


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


@pytest.fixture
def vmlinux(lab: Callable[[str], Path]) -> Callable[[str], Path]:
    """Path of the debug information of the kernel of a vmcore."""
    return lambda name: lab("vmlinux-pmem") if name in PMEM else debug_vmlinux(DEBUG[name])


def typed_zones(core: Path) -> list[Zone]:
    """The same by the kernel's own types, as vmfilter reads them. All these kernels have one node."""
    with open_dump(core) as dump:
        _, _, kernel, error, _ = understand(dump)
        assert kernel, error
        info = debug_info(kernel)
        structures, memory = info.need_structures(), kernel.memory
        which = structures.types.enumerators("zone_stat_item")["NR_FREE_PAGES"]
        word, size = kernel.abi.word, structures.size("zone")
        table, alone = info.symbols.address("node_data"), info.symbols.address("contig_page_data")
        node = memory.read_word(table) if table else alone
        assert node
        zones = structures.field("pglist_data", "node_zones")
        found = []
        for at in range(node + zones.offset, node + zones.offset + zones.size, size):
            zone = structures.read("zone", at)
            assert zone
            start, frames = zone.number("zone_start_pfn"), zone.number("spanned_pages")
            if not frames:
                continue
            counts = zone.raw("vm_stat")[word * which :][:word]
            free = int.from_bytes(counts, kernel.abi.byteorder, signed=True)
            differences = structures.field("per_cpu_zonestat", "vm_stat_diff").offset + which
            for cpu in possible_cpus(info):
                place = per_cpu(info, zone.number("per_cpu_zonestats"), cpu)
                byte = place and memory.read(place + differences, 1)
                free += int.from_bytes(byte or b"", "little", signed=True)
            name = (memory.read(zone.number("name"), 8) or b"").partition(b"\0")[0].decode()
            found.append(Zone("0", name, start, start + frames, free))
        return found


def logged_zones(console: str, page_size: int) -> list[Zone]:
    """Zones in memory that the kernel knew at boot, as it printed them; free is 0."""
    text = console[console.index("Zone ranges:") :]
    span = r" +(\S+) +\[mem 0x(\w+)-0x(\w+)\]"
    zones = re.findall(rf"(?m)^(?:\[[^]]*\])?{span}", text[: text.index("Movable zone start")])
    nodes = re.findall(r"node +(\d+): \[mem 0x(\w+)-0x(\w+)\]", text[: text.index("Initmem setup node")])
    found = []
    for name, *limits in zones:
        start, last = (int(limit, 16) for limit in limits)
        for node, *ends in nodes:
            first, end = max(int(ends[0], 16), start), min(int(ends[1], 16), last) + 1
            if first < end:
                found.append(Zone(node, name, -(-first // page_size), end // page_size, 0))
    return found


@pytest.mark.parametrize("name", LARGE)
def test_each_form_has_the_same_counts_and_they_add_up(
    lab: Callable[[str], Path], run: Run, tmp_path: Path, name: str
) -> None:
    assert_same_counts(run, lab(name), tmp_path / "page")


def free_pages(run: Run, core: Path) -> dict[tuple[str, str], int]:
    """Free pages by node and zone, as stats counts them."""
    data = json.loads(run("stats", "--json", core).out)
    return {(str(z["node"]), z["zone"]): z["classes"]["free"] for z in data["zones"] if z["zone"]}


@pytest.mark.parametrize("name", [*PMEM, *DEBUG])
def test_free_pages_of_each_zone_are_those_that_the_kernel_counts(
    lab: Callable[[str], Path], vmlinux: Callable[[str], Path], run: Run, name: str
) -> None:
    counted = {(zone.node, zone.name): zone.free for zone in zones(lab(name), vmlinux(name))}
    assert free_pages(run, lab(name)) == counted
    assert counted["0", "DMA32"] > 20_000


@pytest.mark.parametrize("name", TYPED)
def test_so_they_are_by_the_kernels_own_types(lab: Callable[[str], Path], run: Run, name: str) -> None:
    counted = {(zone.node, zone.name): zone.free for zone in typed_zones(lab(name))}
    assert free_pages(run, lab(name)) == counted
    assert sum(counted.values()) > 10_000


@pytest.mark.parametrize("name", LARGE)
def test_nodes_and_zones_are_those_that_the_kernel_printed_at_boot(
    lab: Callable[[str], Path], run: Run, name: str
) -> None:
    """Pages of persistent memory came later."""
    page_size = json.loads(run("stats", "--json", lab(name)).out)["page_size"]
    known = logged_zones((VMCORES / f"{name}.console.txt").read_text(errors="replace"), page_size)
    agree = 0
    for row in csv.DictReader(io.StringIO(run("stats", "--csv", lab(name)).out)):
        start, end = int(row["start"]), int(row["end"])
        for zone in known if row["zone"] else ():
            common = min(end, zone.end) - max(start, zone.first)
            if common > 0:
                assert (row["node"], row["zone"]) == (zone.node, zone.name), row
                agree += common
    assert agree > 0.5 * sum(zone.end - zone.first for zone in known)  # the vmcore lacks what crashkernel= reserved


@pytest.mark.parametrize("name", [*PMEM, *DEBUG])
def test_zones_are_those_whose_span_has_the_frames(
    lab: Callable[[str], Path], vmlinux: Callable[[str], Path], run: Run, name: str
) -> None:
    known = zones(lab(name), vmlinux(name))
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
    assert agree["Device"] > (2_000 if name in PMEM else -1)
