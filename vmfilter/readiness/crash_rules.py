"""What kernels make of crashkernel=, as data: one Era for each time an architecture's rules changed.

Read in arch/*/mm/init.c, arch/*/kernel/setup.c, arch/powerpc/kexec/core.c, kernel/crash_core.c and
kernel/crash_reserve.c of the versions named. Before 5.2, rules differ in ways that are not written here.
"""

from __future__ import annotations

from vmfilter.lean import NamedTuple

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

Version = tuple[int, int]
"""Major and minor number of a kernel."""
OLDEST: Version = (5, 2)
NEWEST: Version = (7, 3)
"""The newest kernel whose source was read."""


class Commit(NamedTuple):
    """The commit that made a rule: the id is empty if only its subject and version are known for sure."""

    id: str
    subject: str
    version: Version


class Era(NamedTuple):
    """The rules of an architecture from one version to the next.

    Attributes:
        commit: what made them.
        text: them, in a sentence.
        limit: first address that is not low, in bytes; 0: there is only one part, which counts as low.
        align: alignment of an address that the kernel chooses, in bytes.
        fixed_align: that of an address after @.
        rounded_address: what an address after @ is rounded up to, in bytes.
        suffixes: whether ,high and ,low are understood.
        falls_back: whether a size that does not fit below the limit goes above it.
        default_low: bytes that are reserved below the limit if the rest is above it, and ,low does not say how many.
        strict: whether an invalid ,low, or an invalid size beside ,high, makes all of it invalid.
        needs_address: whether a size alone means address 0, which is never free.
        from_size: whether the search begins at the address that is the size, and not at 0.
        rounded: what a size is rounded up to, in bytes.
        most_address: address after @ if none is given (at most half of memory), in bytes; 0: the kernel searches.
        span: bytes from the start of memory within which the kernel searches; 0: all of it.
        taken: bytes at the end of memory that boot takes before the kernel searches, at least.

    """

    commit: Commit
    text: str
    limit: int = 4 * GIB
    align: int = 2 * MIB
    fixed_align: int = 2 * MIB
    suffixes: bool = True
    falls_back: bool = True
    default_low: int = 128 * MIB
    strict: bool = True
    needs_address: bool = False
    from_size: bool = False
    rounded: int = 1
    most_address: int = 0
    span: int = 0
    rounded_address: int = 1
    taken: int = 0


_X86 = Era(
    Commit("b9ac3849af41", "x86/kdump: Fall back to reserve high crashkernel memory", (5, 2)),
    "a size goes below 4G, else above it; then 256M below 4G are added for DMA",
    align=16 * MIB,
    fixed_align=MIB,
    default_low=256 * MIB,  # 94fb93341822 ("x86/crash: Allocate enough low memory when crashkernel=high")
    strict=False,
)
_ARM64 = Era(
    Commit("", "arm64: kdump: reserve memory for crash dump kernel", (4, 12)),
    "a size goes below the limit of DMA, 4G on most machines, or nowhere",
    suffixes=False,
    falls_back=False,
    default_low=0,
    rounded=4 * KIB,
)
_RISCV = Era(
    Commit("e53d28180d4d", "RISC-V: Add kdump support", (5, 13)),
    "a size goes below 4G, else anywhere, without a low part",
    suffixes=False,
    default_low=0,
    rounded=4 * KIB,
)
_LOONGARCH = Era(
    Commit("4e62d1d86585", "LoongArch: Add kdump support", (6, 1)),
    "an address is needed: a size alone asks for address 0, which is in use",
    align=1,
    fixed_align=1,
    suffixes=False,
    falls_back=False,
    default_low=0,
    needs_address=True,
)
_S390 = Era(
    Commit("60a0c68df263", "[S390] kdump backend code", (3, 2)),
    "one part, above the address that equals its size, rounded up to 1M",
    limit=0,
    align=MIB,
    fixed_align=1,
    suffixes=False,
    from_size=True,
    rounded=MIB,
    rounded_address=MIB,
)
_PPC64 = Era(
    Commit("7c5ed82b800d", "powerpc: Set crashkernel offset to mid of RMA region", (5, 18)),
    "one part in the middle of the memory that is accessible in real mode, from 512M at most, or 128M on bare metal",
    limit=0,
    align=64 * KIB,
    fixed_align=64 * KIB,
    suffixes=False,
    rounded=64 * KIB,
    most_address=512 * MIB,
)
_GENERIC = "the generic reservation: a size goes below 4G, else above it with a part below 4G; ,high goes above it"

ERAS: dict[str, tuple[Era, ...]] = {
    "x86_64": (
        _X86,
        _X86._replace(
            commit=Commit(
                "9c08a2a139fe", "x86: kdump: use generic interface to simplify crashkernel reservation code", (6, 7)
            ),
            text=_GENERIC,
            fixed_align=16 * MIB,
            strict=True,
        ),
    ),
    "arm64": (
        _ARM64,
        _ARM64._replace(
            # It was posted for 5.19 with what the next two eras have, as distributions took it, and merged without.
            commit=Commit("944a45abfabc", "arm64: kdump: Reimplement crashkernel=X", (5, 19)),
            text="as posted for 5.19, and in kernels of distributions: below the limit of DMA, else above it with 256M "
            "below; 5.19 as released has ,high and ,low, but neither the fallback nor the 256M",
            suffixes=True,
            falls_back=True,
            default_low=256 * MIB,
        ),
        _ARM64._replace(
            commit=Commit("944a45abfabc", "arm64: kdump: Reimplement crashkernel=X", (6, 0)),
            text="5.19 as released, and 6.0: a size goes below the limit of DMA, or nowhere; ,high above it, with a "
            "low part only if ,low asks",
            suffixes=True,
        ),
        _ARM64._replace(
            commit=Commit(
                "a9ae89df7377",
                "arm64: kdump: Support crashkernel=X fall back to reserve region above DMA zones",
                (6, 2),
            ),
            text="a size that does not fit below the limit of DMA goes above it, and so does ,high; then 128M below it "
            "are added, by a149cf00b158",
            suffixes=True,
            falls_back=True,
            default_low=128 * MIB,
        ),
        Era(
            Commit("fdc268232dbb", "arm64: kdump: use generic interface to simplify crashkernel reservation", (6, 7)),
            _GENERIC,
        ),
    ),
    "riscv64": (
        _RISCV,
        _RISCV._replace(
            commit=Commit("5882e5acf18d", "riscv: kdump: Implement crashkernel=X,[high,low]", (6, 6)),
            text="a size goes below 4G, else above it, and so does ,high; then 128M below 4G are added",
            suffixes=True,
            default_low=128 * MIB,
        ),
        Era(
            Commit("39365395046f", "riscv: kdump: use generic interface to simplify crashkernel reservation", (6, 7)),
            _GENERIC,
        ),
    ),
    "loongarch64": (
        _LOONGARCH,
        _LOONGARCH._replace(
            commit=Commit("35c94fab6eee", "LoongArch: kdump: Add crashkernel=YM handling", (6, 3)),
            text="a size goes below 4G, or nowhere",
            align=2 * MIB,
            needs_address=False,
        ),
        Era(
            Commit("78de91b45860", "LoongArch: Use generic interface to support crashkernel=X,[high,low]", (6, 8)),
            _GENERIC,
        ),
    ),
    "s390x": (
        _S390,
        _S390._replace(
            commit=Commit("bb1520d581a3", "s390/mm: start kernel with DAT enabled", (6, 3)),
            text="one part, above the address that equals its size, rounded up to 1M, and below the page tables that "
            "boot puts at the end of memory: so less than half of memory",
            taken=MIB,  # at most 1M and 2M for each 1G of memory, without large pages
        ),
    ),
    "ppc64": (
        _PPC64._replace(
            commit=Commit("e641eb03ab2b", "powerpc: Fix up the kdump base cap to 128M", OLDEST),  # or older
            text="one part in the middle of the memory that is accessible in real mode, from 128M at most",
            most_address=128 * MIB,
        ),
        _PPC64,
        _PPC64._replace(
            commit=Commit("e3185ee438c2", "powerpc/crash: use generic crashkernel reservation", (6, 15)), rounded=1
        ),
    ),
    "arm": (
        Era(
            Commit("61603016e212", "ARM: kexec: fix crashkernel= handling", OLDEST),  # or older
            "one part in the memory that the kernel always maps (760M with 3G for user space), aligned to 128M",
            limit=0,
            align=128 * MIB,
            fixed_align=MIB,
            suffixes=False,
            span=760 * MIB,
        ),
    ),
}
"""For each architecture its eras, oldest first."""

CMA_OPTION = Commit("35c18f2933c5", 'Add a new optional ",cma" suffix to the crashkernel= command line option', (6, 17))
CMA: dict[str, Commit] = {
    "x86_64": Commit("bf8be1c36108", "x86: implement crashkernel cma reservation", (6, 17)),
    "ppc64": Commit("b4a96ab50f36", "powerpc/kdump: Add support for crashkernel CMA reservation", (6, 19)),
    "arm64": Commit("c12c63d05dfe", "arm64: kexec_file: Add support for crashkernel CMA reservation", (7, 3)),
    "riscv64": Commit("a037fe3c58ed", "riscv: kexec_file: Add support for crashkernel CMA reservation", (7, 3)),
}
"""What made an architecture reserve for ,cma."""
ROUNDED = Commit("46d36b1be18b", "kdump: round up the total memory size to 128M for crashkernel reservation", (6, 0))
"""What rounds memory up to 128M before it is compared with ranges."""

LAYOUTS: dict[str, tuple[tuple[int, int], ...]] = {
    "x86_64": ((0, 2 * GIB), (4 * GIB, 64 * TIB)),
    "arm64": ((0, 0xFE000000), (4 * GIB, 1 << 48)),
    "riscv64": ((2 * GIB, 1 << 48),),
    "loongarch64": ((0, 256 * MIB), (0x90000000, 1 << 48)),
    "s390x": ((0, 1 << 48),),
    "ppc64": ((0, 1 << 48),),
    "arm": ((GIB, 1 << 40),),
}
"""Where a typical machine has its memory, filled from the first range on: PCs and servers have devices below 4G."""
