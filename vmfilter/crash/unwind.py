"""Frames of kernel stacks by the links between them: the frame pointer's, or the back chain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vmfilter.arch.base import Stack
    from vmfilter.kernel.types.debug_info import DebugInfo

MAX_FRAMES = 256
_KERNEL = 1 << 55  # bit of an address of arm64 that tells the kernel's, whatever a signature does to those above


class Frame(NamedTuple):
    """A frame.

    Attributes:
        pc: address in the function; a return address unless it is_exact.
        sp: stack pointer there.
        is_exact: pc is where the function was, not where a call will return to.
        is_guess: the address is on the stack, but may be left over from an earlier call.

    """

    pc: int
    sp: int
    is_exact: bool = False
    is_guess: bool = False


def is_text(info: DebugInfo, address: int) -> bool:
    """Return whether an address is in the code of the kernel or a module."""
    place = info.symbols.place(address)
    return place is not None and place.is_text


def frames(info: DebugInfo, stack: Stack, registers: Sequence[int], is_exact: bool) -> Iterator[Frame]:
    """Yield the frames of a stack, the newest first.

    Args:
        info: of the kernel.
        stack: of its architecture.
        registers: in the order of PRSTATUS; those that are unknown are 0.
        is_exact: whether the program counter is where the task was, not where a call will return to.

    """
    pc, sp = registers[stack.pc], registers[stack.sp]
    if is_text(info, pc):
        yield Frame(pc, sp, is_exact)
    elif pc:
        return  # user space
    memory, word = info.kernel.memory, info.kernel.abi.word
    signature = info.kernel.info.number("KERNELPACMASK") or 0
    at, seen = sp if stack.by_sp else registers[stack.fp], set[int]()
    while at and at not in seen and at % word == 0 and len(seen) < MAX_FRAMES:
        seen.add(at)
        link = memory.read_word(at + stack.link)
        back = memory.read_word((link or 0) + stack.returns if stack.by_sp else at + stack.returns)
        if not link or back is None:
            return
        if back & _KERNEL:
            back |= signature  # arm64 signs return addresses (pointer authentication)
        if is_text(info, back):
            yield Frame(back, link if stack.by_sp else at)
        elif not stack.by_sp:
            return
        at = link
