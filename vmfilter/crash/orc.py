"""ORC, by which x86_64 kernels unwind their stacks: arch/x86/include/asm/orc_types.h and kernel/unwind_orc.c."""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections import Counter

from vmfilter.errors import KernelError
from vmfilter.formats.abi import LE64
from vmfilter.kernel.types.modules import modules
from vmfilter.lean import TYPE_CHECKING, NamedTuple, suppress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfilter.kernel.kernel import Kernel
    from vmfilter.kernel.types.debug_info import DebugInfo

_ENTRY = struct.Struct("<hhH")  # sp_offset, bp_offset; sp_reg:4, bp_reg:4, type:2 or 3
_MAX_ENTRIES = 1 << 22
_OF_MODULE = ("orc_unwind_ip", "orc_unwind", "num_orcs")  # members of struct mod_arch_specific
CALL, REGS, REGS_PARTIAL, END = "call", "regs", "regs partial", "end"
_TYPES = (CALL, REGS, REGS_PARTIAL, "")
# Since fb799447ae29 ("x86,objtool: Split UNWIND_HINT_EMPTY in two"), v6.4.
_TYPES_6_4 = ("", END, CALL, REGS, REGS_PARTIAL, "", "", "")
_REGISTERS = ("", "caller's sp", "dx", "di", "bp", "sp", "r10", "r13", "*bp", "*sp", *6 * [""])
# Since 1735858caa4b ("objtool/x86: Reorder ORC register numbering"), v7.1.
_REGISTERS_7_1 = ("", "ax", "dx", "sp", "bp", "di", "r10", "r13", "caller's sp", "*sp", "*bp", *5 * [""])


class Rule(NamedTuple):
    """How to unwind from an address.

    Attributes:
        sp_reg, sp_offset: register and offset that give the caller's stack pointer; after a *, it is in memory there.
        bp_reg, bp_offset: the same for where its frame pointer is saved; "" if it was not.
        kind: CALL, REGS, REGS_PARTIAL or END; "" if there is no way on.

    """

    sp_reg: str
    sp_offset: int
    bp_reg: str
    bp_offset: int
    kind: str


class _Table:
    """The rules of the kernel image or a module: addresses in order, relative to the entries that have them."""

    def __init__(self, at: int, addresses: bytes, rules: bytes) -> None:
        self._at, self._rules = at, rules
        self._offsets = array("i", addresses)
        if LE64.swapped:
            self._offsets.byteswap()

    def numbering(self) -> tuple[Sequence[str], Sequence[str]]:
        """Return the names of types and registers by number, which changed. Most entries are calls, found from SP."""
        types = Counter(kind & 3 for kind in self._rules[5 :: _ENTRY.size])
        registers = Counter(pair & 15 for pair in self._rules[4 :: _ENTRY.size])
        is_6_4 = types[_TYPES_6_4.index(CALL)] > types[_TYPES.index(CALL)]
        is_7_1 = registers[_REGISTERS_7_1.index("sp")] > registers[_REGISTERS.index("sp")]
        return _TYPES_6_4 if is_6_4 else _TYPES, _REGISTERS_7_1 if is_7_1 else _REGISTERS

    def find(self, address: int, numbering: tuple[Sequence[str], Sequence[str]]) -> Rule:
        """Return the rule for an address."""
        offset = address - self._at
        i = bisect_right(range(len(self._offsets)), offset, key=lambda i: 4 * i + self._offsets[i]) - 1
        sp_offset, bp_offset, bits = _ENTRY.unpack_from(self._rules, _ENTRY.size * max(i, 0))
        types, registers = numbering
        sp_reg, bp_reg, kind = registers[bits & 15], registers[bits >> 4 & 15], types[bits >> 8 & len(types) - 1]
        if types is _TYPES and not sp_reg:
            # The end is bit 10 ("x86/unwind/orc: Detect the end of the stack"), or bit 11 since ffb1b4a41016
            # ("x86/unwind/orc: Add 'signal' field to ORC metadata"), v6.3.
            kind = END if bits & 0xC00 else ""
        return Rule(sp_reg, sp_offset, bp_reg, bp_offset, kind)


def _table(kernel: Kernel, addresses: int, rules: int, count: int) -> _Table | None:
    """Read a table; None if the dump does not have it."""
    if not 0 < count <= _MAX_ENTRIES:
        return None
    raw = kernel.memory.read(addresses, 4 * count), kernel.memory.read(rules, _ENTRY.size * count)
    return None if raw[0] is None or raw[1] is None else _Table(addresses, raw[0], raw[1])


class Orc:
    """The rules of a kernel and its modules."""

    def __init__(self, info: DebugInfo) -> None:
        """Read the rules of the kernel image, and find where its modules have theirs."""
        address = info.symbols.address
        start, stop = address("__start_orc_unwind_ip"), address("__stop_orc_unwind_ip")
        rules = address("__start_orc_unwind")
        has = start is not None and stop is not None and rules is not None
        self._image = _table(info.kernel, start or 0, rules or 0, ((stop or 0) - (start or 0)) // 4) if has else None
        self._numbering = self._image.numbering() if self._image else (_TYPES, _REGISTERS)
        self._info = info
        self._modules: list[tuple[int, int, tuple[int, int, int]]] = []
        self._tables: dict[tuple[int, int, int], _Table | None] = {}
        if self._image and info.structures:
            with suppress(KernelError):  # debug_info() has said why modules are missing
                for module in modules(info.structures, info.symbols):
                    ips, rules, count = (module.record.number(f"arch.{member}") for member in _OF_MODULE)
                    self._modules += [(start, end, (ips, rules, count)) for start, end in module.ranges]

    def find(self, address: int) -> Rule | None:
        """Return the rule for an address; None if there is none."""
        if address == 0:  # a call of a null pointer
            return Rule("sp", 8, "", 0, CALL)
        table = self._image if self._info.symbols.place(address) else None
        for start, end, where in self._modules:
            if start <= address < end:
                if where not in self._tables:
                    self._tables[where] = _table(self._info.kernel, *where)
                table = self._tables[where]
        return table.find(address, self._numbering) if table else None
