"""Leave out what ZFS caches: the pages of the ARC's buffers (OpenZFS 2.x), which are file contents."""

from __future__ import annotations

from vmfilter.extension import KernelError, Machine
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ERASES = False
_LINEAR = 1  # ABD_FLAG_LINEAR
_CHAIN = 1  # SG_CHAIN; SG_END is 2
_MOST = 1 << 24  # headers in a chain, entries of a scatterlist


def rules(machine: Machine) -> None:
    """Drop the pages of every buffer that the hash table of the ARC leads to."""
    if not machine.is_loaded("zfs"):
        return
    table = machine.record("buf_hash_table", machine.symbol("buf_hash_table", "zfs"))
    first, count, word = table.number("ht_table"), table.number("ht_mask") + 1, machine.word
    raw = machine.read(first, count * word)
    for i in range(0, len(raw), word):
        for data in _buffers(machine, int.from_bytes(raw[i : i + word], machine.kernel.abi.byteorder)):
            _drop(machine, data)


def _buffers(machine: Machine, header: int) -> Iterator[int]:
    """Yield struct abd of the headers in a chain of the hash table."""
    seen = {0}
    while header not in seen and len(seen) < _MOST:
        seen.add(header)
        found = machine.record("arc_buf_hdr", header)
        data = found.number("b_l1hdr.b_pabd")
        if data:
            yield data
        header = found.number("b_hash_next")


def _drop(machine: Machine, address: int) -> None:
    data = machine.record("abd", address)
    if data.number("abd_flags") & _LINEAR:
        start = data.number("abd_u.abd_linear.abd_buf")
        for first, end in machine.physical(start, data.number("abd_size")):
            whole = -(-first // machine.page_size), end // machine.page_size  # a page of slab has other contents too
            if whole[0] < whole[1]:
                machine.drop_frames(whole[0], whole[1] - whole[0])
        return
    at, step = data.number("abd_u.abd_scatter.abd_sgl"), machine.size("scatterlist")
    for _ in range(data.number("abd_u.abd_scatter.abd_nents")):
        entry = machine.record("scatterlist", at)
        link = entry.number("page_link")
        if link & _CHAIN:
            at = link & ~3
            entry = machine.record("scatterlist", at)
            link = entry.number("page_link")
        if link & _CHAIN:
            raise KernelError(f"the scatterlist at {at:#x} leads to a chain of chains")
        pages = -(-(entry.number("offset") + entry.number("length")) // machine.page_size)
        machine.drop_frames(machine.frame_of_page(link & ~3), pages)
        at += step
