"""The description of an architecture: page table forms, roots of the kernel's page tables, sizes."""

from __future__ import annotations

from vmfilter.lean import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vmfilter.formats.abi import Abi
    from vmfilter.formats.elf import Load
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo
    from vmfilter.native import TableLevel


class Paging(NamedTuple):
    """A paging form.

    Attributes:
        levels: from the last level, whose entries map one page, up to the root.
        big_endian: byte order of the entries.
        entry_size: bytes of an entry, 4 or 8.
        address_shift: left shift of the address bits that the levels' masks select.
        high_mask, high_shift: mask of further address bits in an entry, and their left shift.
        block_mask, block_size: leaves with a bit of block_mask set map an aligned block of block_size bytes together;
            each contains the address of the block.
        executable_mask, executable_value: a leaf maps executable memory if
            ``entry & executable_mask == executable_value``; (0, 1) if leaves do not tell.

    """

    levels: tuple[TableLevel, ...]
    big_endian: bool = False
    entry_size: int = 8
    address_shift: int = 0
    high_mask: int = 0
    high_shift: int = 0
    block_mask: int = 0
    block_size: int = 0
    executable_mask: int = 0
    executable_value: int = 1


class Root(NamedTuple):
    """One candidate for the root of the kernel's page tables.

    Attributes:
        address: physical address of the root table.
        paging: its paging form.
        phys_base: value of phys_base for the kdump-compressed header.
        linear: ranges that are mapped without tables, as (vaddr, bytes, paddr). They do not overlap, and take
            precedence over the tables.
        ram_start: FLATMEM: physical address of the page frame of the first struct page, in bytes (the kernel's
            ARCH_PFN_OFFSET).
        section_size_bits: overrides Arch.section_size_bits if the section size depends on the paging form; otherwise 0.

    """

    address: int
    paging: Paging
    phys_base: int
    linear: tuple[tuple[int, int, int], ...] = ()
    ram_start: int = 0
    section_size_bits: int = 0


class KernelMemory(Protocol):
    """Reader of the kernel's virtual memory, as architectures need it. Each method returns None if it cannot read."""

    def read(self, vaddr: int, size: int, /) -> bytes | None:
        """Read size bytes."""

    def read_int(self, vaddr: int, size: int, /) -> int | None:
        """Read an unsigned integer of size bytes."""

    def read_word(self, vaddr: int, /) -> int | None:
        """Read an unsigned long."""


def as_it_is(_info: Vmcoreinfo, _memory: KernelMemory, root: Root) -> Root:
    """Return the root unchanged: VMCOREINFO alone describes it."""
    return root


class TableRegister(NamedTuple):
    """A register with the address of the page tables, in a note that each CPU has.

    Attributes:
        name, kind: of the note.
        offset, size: of the register in the note, in bytes.
        masks: bits that are address, in each reading.

    """

    name: bytes
    kind: int
    offset: int
    size: int
    masks: tuple[int, ...]


class Stack(NamedTuple):
    """Where a backtrace begins, and how it goes from a frame to its caller's.

    Attributes:
        pc, sp, fp: places of program counter, stack pointer and frame pointer in Arch.registers.
        by_sp: frames are linked by the stack pointer, and the return address is in the caller's frame; otherwise by the
            frame pointer, and it is beside the link.
        link, returns: offsets in bytes, from the pointer, of the link to the caller's frame and of the return address.
        task_pc, task_sp, task_fp: members of struct task_struct that keep them while a task does not run; "" if none.

    """

    pc: int
    sp: int
    fp: int
    link: int
    returns: int
    task_sp: str
    task_pc: str = ""
    task_fp: str = ""
    by_sp: bool = False


class Variable(NamedTuple):
    """A number in VMCOREINFO that is a variable of the kernel.

    Attributes:
        name: of the number.
        symbol: of the variable.
        size: bytes of it.
        member: "structure.member", if the number is a member of the variable.

    """

    name: str
    symbol: str
    size: int = 8
    member: str = ""


def numbered(prefix: str, count: int) -> tuple[str, ...]:
    """Return names of registers that are numbered from 0."""
    return tuple(f"{prefix}{i}" for i in range(count))


class Arch(NamedTuple):
    """An architecture.

    Attributes:
        name: machine name in struct utsname.
        abi: byte order, word size and alignment of its structures.
        page_size: bytes of a page if VMCOREINFO does not say.
        prstatus_size: bytes of struct elf_prstatus, the contents of an NT_PRSTATUS note.
        registers: names of those in struct elf_prstatus (pr_reg), in its order: struct user_regs_struct of x86 and
            arm64, struct pt_regs or user_pt_regs of the others, in the kernel's arch/*/include/uapi/asm/ptrace.h or
            arch/x86/include/asm/user_*.h.
        section_size_bits: log2 of the bytes of a memory section if VMCOREINFO does not say.
        max_physmem_bits: given the paging form in use, number of physical address bits if VMCOREINFO does not say.
        roots: returns candidates for the root of the page tables, the likeliest first. The right one leads to the
            kernel's own name.
        settle: completes the right root with facts that only the kernel's memory contains; the memory it receives uses
            the incomplete root.
        vmcoreinfo_hints: for dumps without a VMCOREINFO note: given a reader of physical memory (address, bytes),
            returns physical addresses that may contain the note or its text.
        largest_page: bytes of the largest page that a kernel can be built with.
        counts_from_ram: page frame 0 of a kdump-compressed dump is at phys_base of its header.
        table_registers: registers with the address of a CPU's page tables, in notes that some dumps have.
        address_bits: bits of a pointer that are an address; KASAN uses others for tags.
        stack: of backtraces; None: they are not known.
        variables: numbers that roots needs.

    """

    name: str
    abi: Abi
    page_size: int
    prstatus_size: int
    registers: tuple[str, ...]
    section_size_bits: int
    max_physmem_bits: Callable[[Paging], int]
    roots: Callable[[Vmcoreinfo, Sequence[Load]], Sequence[Root]]
    settle: Callable[[Vmcoreinfo, KernelMemory, Root], Root] = as_it_is
    vmcoreinfo_hints: Callable[[Callable[[int, int], bytes | None]], Iterable[int]] = lambda read: ()
    largest_page: int = 4096
    counts_from_ram: bool = False
    table_registers: tuple[TableRegister, ...] = ()
    address_bits: int = 64
    stack: Stack | None = None
    variables: tuple[Variable, ...] = ()
