"""Leave out system memory that graphics drivers lent to GPUs: the pages of TTM's buffers (amdgpu, nouveau, xe, ...)."""

from __future__ import annotations

from vmfilter.extension import Machine, walk
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ERASES = False
_PRIORITIES = 4  # TTM_MAX_BO_PRIORITY
_RESOURCE = 0  # TTM_LRU_RESOURCE; other entries of a list only mark places


def rules(machine: Machine) -> None:
    """Drop the pages of every buffer that has some."""
    if not machine.is_loaded("ttm"):
        return
    head = machine.symbol("ttm_glob", "ttm") + machine.offset("ttm_global", "device_list")
    for device in walk.linked(machine, head, "ttm_device", "device_list"):
        managers, word = device.raw("man_drv"), machine.word
        for i in range(0, len(managers), word):
            manager = int.from_bytes(managers[i : i + word], machine.kernel.abi.byteorder)
            for buffer in _buffers(machine, manager) if manager else ():
                _drop(machine, buffer)


def _buffers(machine: Machine, manager: int) -> Iterator[int]:
    """Yield struct ttm_buffer_object of each resource of a manager."""
    # The lists have had entries that are no resources since v6.11.
    marks = machine.has("ttm_resource", "lru.link")
    first, step = manager + machine.offset("ttm_resource_manager", "lru"), 2 * machine.word
    for priority in range(_PRIORITIES):
        at = first + priority * step
        for resource in walk.linked(machine, at, "ttm_resource", "lru.link" if marks else "lru"):
            if not marks or resource.number("lru.type") == _RESOURCE:
                yield resource.number("bo")


def _drop(machine: Machine, buffer: int) -> None:
    table = machine.record("ttm_buffer_object", buffer).number("ttm") if buffer else 0
    if table:
        pages = machine.record("ttm_tt", table)
        first, word = pages.number("pages"), machine.word
        raw = machine.read(first, pages.number("num_pages") * word) if first else b""
        for i in range(0, len(raw), word):
            page = int.from_bytes(raw[i : i + word], machine.kernel.abi.byteorder)
            if page:
                machine.drop_frames(machine.frame_of_page(page))
