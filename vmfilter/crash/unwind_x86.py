"""Frames of x86_64's kernel stacks: by ORC, else by addresses on the stack that calls confirm.

The frame in which the kernel saves the registers of the CPU that panics often has no ORC: _THIS_IP_ is a label that the
compiler moves.
"""

from __future__ import annotations

import struct

from vmfilter.crash import orc
from vmfilter.crash.unwind import MAX_FRAMES, Frame, is_text
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmfilter.arch import Arch
    from vmfilter.kernel.types.debug_info import DebugInfo

_STACK = 1 << 14  # bytes of a stack (THREAD_SIZE without KASAN), to which it is aligned
_ALL = (1 << 64) - 1
_PLACES = {"bp": 4, "*bp": 4, "sp": 19, "*sp": 19, "r10": 7, "r13": 2, "ax": 10, "dx": 12, "di": 14}
"""Registers in struct pt_regs, and in PRSTATUS, in words."""
_VOLATILE = ("r10", "r13", "ax", "dx", "di")  # known only where all registers were saved
_PT_REGS, _IRET = 21 * 8, 5 * 8  # bytes of struct pt_regs, and of what iret takes: ip, cs, flags, sp, ss
_PC, _SP, _BP = 16, 19, 4
_CALL, _CALL_SIZE = 0xE8, 5  # call rel32
_FAR = 7  # bytes of the longest call


class _NoRuleError(Exception):
    """There is no rule for an address."""


def frames(info: DebugInfo, _arch: Arch, registers: Sequence[int], is_exact: bool) -> Iterator[Frame]:
    """Yield the frames of a stack, the newest first. Arguments as for unwind.frames()."""
    walk = _Walk(info, registers, is_exact)
    if not is_text(info, walk.pc):
        return  # user space
    yield Frame(walk.pc, walk.sp, is_exact)
    for _ in range(MAX_FRAMES):
        try:
            frame = walk.by_orc()
        except _NoRuleError:
            frame = walk.by_calls()
        if frame is None:
            return
        yield frame


class _Walk:
    """Registers on the way from frame to frame."""

    def __init__(self, info: DebugInfo, registers: Sequence[int], is_exact: bool) -> None:
        self._info, self._memory = info, info.kernel.memory
        self._registers, self._is_exact, self._is_known = list(registers), is_exact, is_exact
        self._orc = orc.Orc(info)

    @property
    def pc(self) -> int:
        return self._registers[_PC]

    @property
    def sp(self) -> int:
        return self._registers[_SP]

    def by_orc(self) -> Frame | None:
        """Go to the caller; None at the end of the stack. Raises _NoRuleError if ORC does not say where it is."""
        rule = self._orc.find(self.pc if self._is_exact else self.pc - 1)
        if rule is None or not rule.kind:
            raise _NoRuleError
        if rule.kind == orc.END:
            return None
        before, bp = self.sp, self._registers[_BP]
        at = self._base(rule)
        if rule.kind == orc.CALL:
            back = self._memory.read_word(at - 8)
            if back is None or not before < at:
                raise _NoRuleError
            self._registers[_PC], self._registers[_SP] = back, at
            self._is_exact = self._is_known = False
        else:
            self._restore(at, rule.kind == orc.REGS)
        if rule.bp_reg in ("caller's sp", "bp"):
            saved = self._memory.read_word((at if rule.bp_reg != "bp" else bp) + rule.bp_offset & _ALL)
            self._registers[_BP] = saved or 0
        return Frame(self.pc, self.sp, self._is_exact) if is_text(self._info, self.pc) else None

    def _base(self, rule: orc.Rule) -> int:
        place = _PLACES.get(rule.sp_reg)
        if place is None or (rule.sp_reg in _VOLATILE and not self._is_known):
            raise _NoRuleError
        value = self._registers[place]
        if rule.sp_reg in _VOLATILE:
            return value
        # 87ccc826bf1c ("x86/unwind/orc: Change REG_SP_INDIRECT"), v5.12.
        at = value if rule.sp_reg == "*sp" else value + rule.sp_offset & _ALL
        if not rule.sp_reg.startswith("*"):
            return at
        inner = self._memory.read_word(at)
        if inner is None:
            raise _NoRuleError
        return inner + rule.sp_offset & _ALL if rule.sp_reg == "*sp" else inner

    def _restore(self, at: int, whole: bool) -> None:
        """Take the registers that an exception saved."""
        raw = self._memory.read(at, _PT_REGS if whole else _IRET)
        if raw is None:
            raise _NoRuleError
        saved = struct.unpack(f"<{len(raw) // 8}Q", raw)
        if whole:
            self._registers = list(saved)
        else:
            self._registers[_PC], self._registers[_SP] = saved[0], saved[3]
        self._is_exact, self._is_known = True, whole

    def by_calls(self) -> Frame | None:
        """Go to the nearest address on the stack that follows a call of this function, or else any call."""
        start = self.sp & -8
        size = (start | _STACK - 1) + 1 - start
        raw = self._memory.read(start, size) or b""
        words = struct.unpack(f"<{len(raw) // 8}Q", raw)
        calls = [(start + 8 * i, word, self._calls(word)) for i, word in enumerate(words) if is_text(self._info, word)]
        this = self._info.symbols.place(self.pc - (not self._is_exact))
        name = this.name if this else ""
        for wanted in ((name,), ("?", name)):
            for at, word, callee in calls:
                if callee in wanted or (callee and len(wanted) > 1):
                    self._registers[_PC], self._registers[_SP] = word, at + 8
                    self._is_exact = self._is_known = False
                    return Frame(word, at + 8, is_guess=callee != name)
        return None

    def _calls(self, address: int) -> str:
        """Return the function that the instruction before an address calls; "?" if unknown, "" if it calls none."""
        raw = self._memory.read(address - _FAR, _FAR)
        if raw is None:
            return "?"
        if raw[-_CALL_SIZE] == _CALL:
            offset = int.from_bytes(raw[1 - _CALL_SIZE :], "little", signed=True)
            target = self._info.symbols.place(address + offset & _ALL)
            return target.name if target and target.is_text and not target.offset else ""
        indirect = any(raw[-size] == 0xFF and raw[1 - size] >> 3 & 7 == 2 for size in range(2, _FAR + 1))
        return "?" if indirect else ""
