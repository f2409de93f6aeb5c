"""Frames of kernel stacks by the links between them: the frame pointer's, or the back chain."""

from __future__ import annotations

from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmfilter.arch import Arch
    from vmfilter.kernel.types.debug_info import DebugInfo

MAX_FRAMES = 256
_KERNEL = 1 << 55  # set in kernel addresses of arm64; a signature changes only bits above it


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


def frames(info: DebugInfo, arch: Arch, registers: Sequence[int], is_exact: bool) -> Iterator[Frame]:
    """Yield the frames of a stack, the newest first.

    Args:
        info: of the kernel.
        arch: its architecture; its stack is known.
        registers: in the order of PRSTATUS; an unknown one is 0.
        is_exact: whether the program counter is where the task was, not where a call will return to.

    """
    stack = arch.stack
    assert stack is not None
    pc, sp = registers[stack.pc], registers[stack.sp]
    if is_text(info, pc):
        yield Frame(pc, sp, is_exact)
    elif pc:
        return  # user space
    memory, word = info.kernel.memory, info.kernel.abi.word
    signature = info.kernel.info.number("KERNELPACMASK") or 0
    interrupted = _INTERRUPTED.get(arch.name, _never)
    at, seen = sp if stack.by_sp else registers[stack.fp], set[int]()
    while at and at not in seen and at % word == 0 and len(seen) < MAX_FRAMES:
        seen.add(at)
        link = memory.read_word(at + stack.link)
        back = memory.read_word((link or 0) + stack.returns if stack.by_sp else at + stack.returns)
        if back is not None and back & _KERNEL:
            back |= signature  # arm64 signs return addresses (pointer authentication)
        is_called = bool(link) and back is not None and is_text(info, back)
        saved = interrupted(info, at, link or 0, back or 0)
        if is_called and not (saved and stack.by_sp):
            assert back is not None
            yield Frame(back, link or 0 if stack.by_sp else at)
        if saved:
            pc, sp, fp = (memory.read_word(saved + word * place) or 0 for place in (stack.pc, stack.sp, stack.fp))
            if not is_text(info, pc):
                return
            yield Frame(pc, sp, True)
            at = sp if stack.by_sp else fp
        elif not link or not (is_called or stack.by_sp):
            return
        else:
            at = link


# Where an exception saved the registers of what it interrupted, in the order of PRSTATUS, given a frame, its link and
# return address; 0 if it did not.


def _never(_info: DebugInfo, _at: int, _link: int, _back: int) -> int:
    return 0


def _arm64(info: DebugInfo, at: int, link: int, back: int) -> int:
    """pt_regs has a record of zeros and a type (asm/stacktrace/frame.h) instead of a usual one.

    Since c2c6b27b5aa1 ("arm64: stacktrace: unwind exception boundaries"), v6.13.
    """
    if link or back or not info.structures or not info.structures.has("pt_regs", "stackframe.type"):
        return 0
    kind = info.kernel.memory.read_int(at + 16, 8)
    return at - info.structures.field("pt_regs", "stackframe").offset if kind == _META_PT_REGS else 0


def _riscv64(info: DebugInfo, at: int, _link: int, back: int) -> int:
    """handle_exception calls with its stack pointer at the registers, and leaves no frame."""
    place = info.symbols.place(back)
    return at if place and place.name == "handle_exception" else 0


def _s390x(_info: DebugInfo, at: int, link: int, _back: int) -> int:
    """struct pt_regs, which begins with an argument, follows a frame without a back chain."""
    return 0 if link else at + _S390X_FRAME + 8


def _ppc64(info: DebugInfo, at: int, _link: int, _back: int) -> int:
    """A mark in the frame says that struct pt_regs follows (STACK_INT_FRAME_MARKER in asm/ptrace.h)."""
    for mark, registers in _PPC64_MARKS:
        if info.kernel.memory.read_word(at + mark) in _PPC64_VALUES:
            return at + registers
    return 0


_META_PT_REGS = 2  # FRAME_META_TYPE_PT_REGS
_S390X_FRAME = 160  # sizeof(struct stack_frame)
# With ELF ABI v2 since cd52414d5a6c ("powerpc/64: ELFv2 use minimal stack frames in int and switch frame sizes"), v6.2;
# before, and with v1.
_PPC64_MARKS = ((32, 48), (96, 112))
_PPC64_VALUES = (0x7265677368657265, 0x52454753, 0x53474552, 0x72656773)
_INTERRUPTED = {"aarch64": _arm64, "riscv64": _riscv64, "s390x": _s390x, "ppc64": _ppc64, "ppc64le": _ppc64}
