"""What a kernel makes of crashkernel=: parsed as it parses, reserved by its architecture's rules."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from vmfilter.errors import UsageError
from vmfilter.lean import TYPE_CHECKING, NamedTuple
from vmfilter.readiness.crash_rules import (
    CMA,
    CMA_OPTION,
    ERAS,
    GIB,
    MIB,
    NEWEST,
    OLDEST,
    ROUNDED,
    Commit,
    Era,
    Version,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmfilter.frames.ranges import Range

_NAME = "crashkernel="
_NUMBER = re.compile(r"(0[xX][0-9a-fA-F]{1,32}|0[0-7]{0,32}|[1-9][0-9]{0,32})([kKmMgGtTpPeE]?)")
_SHIFTS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_ALL = (1 << 64) - 1
_ALIASES = {
    "amd64": "x86_64",
    "aarch64": "arm64",
    "riscv": "riscv64",
    "loongarch": "loongarch64",
    "s390": "s390x",
    "ppc64le": "ppc64",
    "ppc64el": "ppc64",
    "armv6l": "arm",
    "armv7l": "arm",
    "armhf": "arm",
}


class _WrongError(Exception):
    """A value that the kernel does not accept; the text says why."""


class Asked(NamedTuple):
    """What one word asks for.

    Attributes:
        size: bytes; 0 if no range contains the memory of the machine.
        base: address after @; 0 if the kernel is to choose.

    """

    size: int
    base: int


@dataclass
class Reservation:
    """What a kernel reserves.

    Attributes:
        valid: whether it reserves memory for a capture kernel.
        high: bytes at or above the limit of low memory.
        low: bytes below it; all of them on an architecture without such a limit.
        cma: bytes that the running system may use until the crash.
        base: address after @; None if the kernel chooses.
        reason: why, in a sentence or more.
        commits: what made the rules that were used.
        texts: what each of these rules says.

    """

    valid: bool = False
    high: int = 0
    low: int = 0
    cma: int = 0
    base: int | None = None
    reason: str = ""
    commits: list[Commit] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Bytes that are reserved above the limit, below it, and for ,cma."""
        return self.high, self.low, self.cma

    def use(self, commit: Commit, text: str) -> None:
        """Note a rule that was used."""
        self.commits.append(commit)
        self.texts.append(text)


def arch_of(name: str) -> str:
    """Return the key of ERAS for an architecture's name.

    Raises:
        UsageError: no rules are known for it.

    """
    arch = _ALIASES.get(name, name)
    if arch not in ERAS:
        raise UsageError(f"no rules of crashkernel= are known for {name[:20]!r}; they are for {', '.join(ERAS)}")
    return arch


def version_of(text: str) -> Version:
    """Return the version in a kernel's name, such as 6.12.95-amd64.

    Raises:
        UsageError: it has none, or it is older than the rules that are known.

    """
    match = re.match(r"(\d{1,3})\.(\d{1,3})(?![\d])", text)
    if not match or (version := (int(match[1]), int(match[2]))) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise UsageError(f"{text[:20]!r} is not the version of a kernel since {oldest}; give one such as 6.12")
    return version


def size_text(size: int) -> str:
    """Return a size as crashkernel= takes it: 256M, 4G."""
    for letter, shift in (("G", 30), ("M", 20), ("K", 10)):
        if size and not size % (1 << shift):
            return f"{size >> shift}{letter}"
    return str(size)


def words(line: str) -> list[str]:
    """Return the values of crashkernel= in a command line, in order. As in the kernel, a space ends a value."""
    return [part.partition(" ")[0] for part in line.replace("\n", " ").split(_NAME)[1:]]


def explain(line: str, arch: str, ram: Iterable[Range], kernel: Version = NEWEST) -> Reservation:
    """Say what a kernel reserves.

    Args:
        line: its command line.
        arch: a key of ERAS.
        ram: where the machine has memory, in order.
        kernel: its version, OLDEST or newer.

    Returns:
        What it reserves, with the reason.

    """
    made = Reservation()
    eras = [era for era in ERAS[arch] if era.commit.version <= kernel]
    if not eras:
        made.reason = f"{arch} has no kdump before Linux {_dotted(ERAS[arch][0].commit.version)}"
        return made
    era = eras[-1]
    made.use(era.commit, era.text)
    ranges = list(ram)
    memory = sum(end - start for start, end in ranges)
    try:
        asked, high, low, notes = _asked(line, era, memory, kernel, made)
        notes += _cma(line, arch, kernel, made)
        placed = _reserve(made, era, ranges, asked, high=high, low=low)
        if 0 < made.high + made.low < MIB:
            notes.append("sizes without K, M or G are in bytes")
        made.reason = "; ".join([placed, *notes])
    except _WrongError as e:
        made.valid, made.high, made.low, made.cma = False, 0, 0, 0
        made.reason = str(e)
    return made


def history(line: str, arch: str, ram: Sequence[Range]) -> list[tuple[Version, Reservation]]:
    """Return what kernels reserved and reserve, with the version since which they do. Arguments: see explain()."""
    changes = {era.commit.version for era in ERAS[arch]} | {ROUNDED.version, CMA_OPTION.version}
    changes |= {CMA[arch].version} if arch in CMA else set()
    found: list[tuple[Version, Reservation]] = []
    for version in sorted({max(change, OLDEST) for change in changes}):
        made = explain(line, arch, ram, version)
        if not found or made.sizes != found[-1][1].sizes:
            found.append((version, made))
    return found


def _asked(line: str, era: Era, memory: int, kernel: Version, made: Reservation) -> tuple[Asked, bool, int, list[str]]:
    """Return the main part, whether ,high asks for it, the low part's size, and notes on what is ignored."""
    values = words(line)
    suffixes = (",high", ",low", *([",cma"] if kernel >= (6, 17) else []))
    plain = [v for v in values if not v.endswith(suffixes)]
    last = {suffix: [v for v in values if v.endswith(suffix)][-1:] for suffix in suffixes}
    if not values:
        raise _WrongError("invalid: there is no crashkernel= on the command line, so nothing is reserved")
    notes = []
    if plain:
        try:
            asked = _plain(plain[-1], memory, kernel, made)
            if not asked.size:
                raise _WrongError(f"invalid: {_NAME}{plain[-1]} asks for 0 bytes on this machine")
        except _WrongError:
            if era.strict or not last[",high"]:
                raise
            notes.append(f"the invalid {_NAME}{plain[-1]} is passed over for ,high, until Linux 6.7")
        else:
            if len(plain) > 1:
                notes.append(f"the last one counts, {_NAME}{plain[-1]}")
            reads_low = era.suffixes and not era.strict
            if ignored := [_NAME + v for s in (",high", *([",low"] * (not reads_low))) for v in last[s]]:
                verb = "is" if len(ignored) == 1 else "are"
                notes.append(f"{' and '.join(ignored)} {verb} ignored beside a size without a suffix")
            low = _low(last[",low"], era, notes) if reads_low else era.default_low
            return asked, False, low, notes
    if not last[",high"] or not era.suffixes:
        given = ", ".join(_NAME + v for v in values)
        why = (
            "needs a size with ,high or without a suffix beside it"
            if era.suffixes
            else "has a suffix that is not known"
        )
        raise _WrongError(f"invalid: {given} {why}{_since_suffixes(era)}")
    size = _suffixed(last[",high"][0], ",high")
    if not size:
        raise _WrongError(f"invalid: {_NAME}{last[',high'][0]} asks for 0 bytes")
    return Asked(size, 0), True, _low(last[",low"], era, notes), notes


def _since_suffixes(era: Era) -> str:
    """Say since which version an architecture understands suffixes, if this one does not yet."""
    if era.suffixes:
        return ""
    later = [e.commit.version for eras in ERAS.values() if era in eras for e in eras if e.suffixes]
    return f" to it before Linux {_dotted(later[0])}" if later else " to it"


def _low(values: list[str], era: Era, notes: list[str]) -> int:
    """Return the size of the low part beside ,high."""
    if not values:
        return era.default_low
    try:
        return _suffixed(values[0], ",low")
    except _WrongError:
        if era.strict:
            raise
        notes.append(f"the invalid {_NAME}{values[0]} is passed over for the default, until Linux 6.7")
        return era.default_low


def _cma(line: str, arch: str, kernel: Version, made: Reservation) -> list[str]:
    """Note what ,cma asks for; return notes."""
    values = [v for v in words(line) if v.endswith(",cma")]
    if not values or kernel < (6, 17):  # until 6.17, the suffix is an unknown one: _plain() refuses it
        return []
    commit = CMA.get(arch)
    if not commit or commit.version > kernel:
        since = f" before Linux {_dotted(commit.version)}" if commit else ""
        return [f"{_NAME}{values[-1]} is ignored: {arch} does not reserve for it{since}"]
    try:
        made.cma = _suffixed(values[-1], ",cma")
    except _WrongError:
        return [f"the invalid {_NAME}{values[-1]} is ignored"]
    made.use(commit, ",cma adds memory that user pages of the running system use until the crash, and the dump lacks")
    return [f"{size_text(made.cma)} of contiguous memory (CMA) are added, if kernel pages leave them free"]


def _reserve(made: Reservation, era: Era, ram: list[Range], asked: Asked, *, high: bool, low: int) -> str:
    """Place the main part and the low part; return the reason.

    Raises:
        _WrongError: they do not fit.

    """
    size = -(-asked.size // era.rounded) * era.rounded
    asked = asked._replace(base=-(-asked.base // era.rounded_address) * era.rounded_address)
    ram = _free(ram, era.taken)
    base = asked.base or (min(era.most_address, _first_range(ram) // 2) if era.most_address else 0)
    limit, top = era.limit or _ALL, max((end for _, end in ram), default=0)
    if asked.base:
        made.base = asked.base
    if base or era.needs_address:
        at = _highest(ram, size, era.fixed_align, base, base + size) if base and not _too_low(era, base, size) else 0
    elif high:
        at = _highest(ram, size, era.align, limit, top) or _highest(ram, size, era.align, 0, limit)
    else:
        lowest = size if era.from_size else 0
        span = ram[0][0] + era.span if era.span and ram else limit
        at = _highest(ram, size, era.align, lowest, min(limit, span))
        if not at and era.falls_back and era.limit:
            at = _highest(ram, size, era.align, limit, top)
    if not at:
        raise _WrongError(f"fails: {_unplaced(era, asked, size, ram, high=high)}")
    if at < limit:
        made.valid, made.low = True, size
        where = f" below {size_text(limit)}" if era.limit else ""
        exact = f" at {asked.base:#x}, if nothing else uses that memory at boot" if asked.base else ""
        return f"{size_text(size)} are reserved{exact or where}"
    if low and not _highest(ram, low, era.align, 0, limit):
        raise _WrongError(f"fails: no {size_text(low)} below {size_text(limit)} are free, and then nothing is reserved")
    made.valid, made.high, made.low = True, size, low
    low_text = f"and {size_text(low)} below it for DMA" if low else "and nothing below it"
    return f"{size_text(size)} are reserved above {size_text(limit)}, {low_text}"


def _free(ram: list[Range], taken: int) -> list[Range]:
    """Return memory without what boot takes at its end."""
    return [*ram[:-1], (ram[-1][0], max(ram[-1][1] - taken, ram[-1][0]))] if ram else []


def _too_low(era: Era, base: int, size: int) -> bool:
    return era.from_size and base < size


def _first_range(ram: list[Range]) -> int:
    return ram[0][1] - ram[0][0] if ram else 0


def _unplaced(era: Era, asked: Asked, size: int, ram: list[Range], *, high: bool) -> str:
    """Say why there is no place."""
    wanted = size_text(size)
    if era.needs_address and not asked.base:
        return f"{wanted} at address 0 are in use; give an address"
    if asked.base:
        if _too_low(era, asked.base, size):
            return f"the address {asked.base:#x} is below the size, {wanted}"
        if asked.base % era.fixed_align:
            return f"the address {asked.base:#x} is not a multiple of {size_text(era.fixed_align)}"
        return f"the {wanted} at {asked.base:#x} are not all free memory"
    if era.limit and not era.falls_back and not high:
        return f"no {wanted} are free below {size_text(era.limit)}"
    return f"this machine has no {wanted} of contiguous free memory where they are allowed"


def _highest(ram: list[Range], size: int, align: int, start: int, end: int) -> int:
    """Return the highest aligned address of free memory in a range, or 0: memblock allocates from the top."""
    for first, after in reversed(ram):
        at = (min(after, end) - size) // align * align
        if at >= max(first, start) and at > 0:
            return at
    return 0


def _dotted(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


# The kernel's parsers: memparse() and its callers in kernel/crash_reserve.c


def _number(text: str, at: int, what: str) -> tuple[int, int]:
    """Parse a number with an optional unit; return it and where it ends.

    Raises:
        _WrongError: there is none.

    """
    match = _NUMBER.match(text, at)
    if not match:
        hint = " (auto is of Red Hat's kernels until RHEL 8 alone)" if text == "auto" else ""
        raise _WrongError(f"invalid: {_NAME}{text[:80]} has no {what} where one is expected{hint}")
    digits = match[1]
    number = int(digits, 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10)
    return (number << _SHIFTS[match[2].lower()]) & _ALL, match.end()


def _suffixed(text: str, suffix: str) -> int:
    """Parse SIZE,SUFFIX; return the size."""
    size, end = _number(text, 0, "size")
    if text[end:] != suffix:
        raise _WrongError(f"invalid: {_NAME}{text[:80]} is not a size and {suffix}")
    return size


def _plain(text: str, memory: int, kernel: Version, made: Reservation) -> Asked:
    """Parse SIZE[@ADDRESS], or ranges of memory with a size for each."""
    if ":" in text:
        return _ranges(text, memory, kernel, made)
    size, end = _number(text, 0, "size")
    if text[end : end + 1] == "@":
        return Asked(size, _number(text, end + 1, "address")[0] if _NUMBER.match(text, end + 1) else 0)
    if end < len(text):
        raise _WrongError(f"invalid: {_NAME}{text[:80]} has {text[end : end + 20]!r} after the size")
    return Asked(size, 0)


def _ranges(text: str, memory: int, kernel: Version, made: Reservation) -> Asked:
    """Parse START-[END]:SIZE[,...][@ADDRESS]; what follows the range that contains the memory is not looked at."""
    if kernel >= ROUNDED.version:
        memory = -(-memory // (128 * MIB)) * 128 * MIB
        made.use(ROUNDED, "memory is rounded up to 128M before it is compared with ranges")
    at = 0
    while True:
        start, at = _number(text, at, "memory size")
        at = _expected(text, at, "-")
        end = _ALL
        if text[at : at + 1] != ":":
            end, at = _number(text, at, "memory size")
            if end <= start:
                raise _WrongError(f"invalid: {_NAME}{text[:80]} has a range that ends before it begins")
        at = _expected(text, at, ":")
        size, at = _number(text, at, "size")
        if size >= memory:
            raise _WrongError(f"invalid: {_NAME}{text[:80]} has a size of {size_text(size)}, more than all memory")
        if start <= memory < end:
            break
        if text[at : at + 1] != ",":
            size = 0
            break
        at += 1
    if not size:
        raise _WrongError(f"nothing is reserved: no range of {_NAME}{text[:80]} has {_memory_text(memory)}")
    address = text.find("@", at)
    return Asked(size, _number(text, address + 1, "address")[0] if address >= 0 else 0)


def _memory_text(memory: int) -> str:
    return f"{memory / GIB:.1f} GiB of memory" if memory >= GIB else f"{memory // MIB} MiB of memory"


def _expected(text: str, at: int, character: str) -> int:
    if text[at : at + 1] != character:
        raise _WrongError(f"invalid: {_NAME}{text[:80]} has no {character!r} where one is expected")
    return at + 1
