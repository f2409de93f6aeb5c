"""makedumpfile's output, verbatim and filtered by message level, because scripts parse it."""

from __future__ import annotations

import sys
import time

from vmfilter import __version__
from vmfilter.console.output import hand_out, one_line, show
from vmfilter.frames.classes import PageClass
from vmfilter.lean import TYPE_CHECKING, suppress
from vmfilter.makedumpfile import VERSION
from vmfilter.makedumpfile.options import DEFAULT_MESSAGES, OPTIONS, Command
from vmfilter.report.text import EXCLUDED_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmfilter.statistics import Statistics

HEADLINE = f"makedumpfile: version {VERSION} (vmfilter {__version__})"
_PROGRESS, _COMMON, _ERROR, _DEBUG, _REPORT = 1, 2, 4, 8, 16
_STAGES = {"classify": "Excluding unnecessary pages", "write": "Copying data"}
_SPINNER = "/|\\-"
_SECOND = 1.0  # between two updates of the progress


class Messages:
    """Prints the messages that the message level selects. progress() is a vmfilter.run.Progress."""

    def __init__(self) -> None:
        self._level = DEFAULT_MESSAGES
        self._aside = False
        self._stage = ""
        self._started = self._last = 0.0
        self._turn = 0

    def obey(self, command: Command) -> None:
        """Follow the command line from now on."""
        self._aside = command.flatten  # the dump goes to standard output
        self._level = DEFAULT_MESSAGES
        if not command.check_params:
            self._level = command.message_level | _DEBUG * command.debug | _REPORT * command.show_stats

    def _print(self, bit: int, lines: tuple[str, ...], aside: bool) -> None:
        if self._level & bit and lines:
            show(*lines, aside=aside)

    def common(self, *lines: str) -> None:
        """Print common messages (2)."""
        self._print(_COMMON, lines, self._aside)

    def result(self, lines: Iterable[str]) -> None:
        """Print common messages (2) that are all that the run makes. Raises OutputError if that fails."""
        if self._level & _COMMON:
            hand_out(lines, self._aside)

    def error(self, text: str) -> None:
        """Print one error or warning (4)."""
        self._print(_ERROR, (one_line(f"makedumpfile: {text}"),), aside=True)

    def always(self, text: str) -> None:
        """Print one warning at every message level: what must not go unread."""
        show(one_line(f"makedumpfile: {text}"), aside=True)

    @property
    def debugs(self) -> bool:
        """Whether debug messages are printed."""
        return self._level & _DEBUG != 0

    def debug(self, *lines: str) -> None:
        """Print debug messages (8)."""
        self._print(_DEBUG, lines, self._aside)

    def report(self, *lines: str) -> None:
        """Print lines of the report (16)."""
        self._print(_REPORT, lines, self._aside)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Print the progress of a stage, once a second and at its end."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._started = stage, now
        elif done < total and now - self._last < _SECOND:
            return
        self._last = now
        share = 1000 * done // total if done < total else 1000
        left = (now - self._started) * (1000 - share) / share if share and stage == "write" else None
        eta = "" if left is None else _eta(int(left))
        text = f"{_STAGES[stage]:50}: [{share // 10:3}.{share % 10} %] {_SPINNER[self._turn % 4]}  {eta:>16}"
        self._turn += 1
        self._draw("\r" + text)

    def end_progress(self) -> None:
        """End the progress line."""
        if self._stage:
            self._draw("\n")
        self._stage = ""

    def _draw(self, text: str) -> None:
        if self._level & _PROGRESS and sys.stderr is not None:
            with suppress(OSError):
                print(text, end="", file=sys.stderr, flush=True)


def _eta(seconds: int) -> str:
    minutes, hours = seconds // 60, seconds // 3600
    if seconds < 100:
        return f"eta: {seconds}s"
    if minutes < 100:
        return f"eta: {minutes}m{seconds % 60}s"
    if hours < 48:
        return f"eta: {hours}h{minutes % 60}m"
    return f"eta: {hours // 24}d{hours % 24}h" if hours < 2400 else "eta: >100day"


_OURS = {PageClass.PMEM_METADATA, PageClass.PMEM_USERDATA}
"""Classes that makedumpfile does not know: a line each, if the dump has such pages."""


def report(s: Statistics, elf: bool) -> Iterator[str]:
    """Yield makedumpfile's report. As in makedumpfile, pages that the input already lacks count as holes."""
    for stage, seconds in s.seconds.items():
        yield f"STEP [{_STAGES[stage]:27}] : {seconds:.6f} seconds"
    absent = s.classes[PageClass.EXCLUDED]
    original = s.present - absent
    in_elf = [f"     in ELF format : 0x{n:016x}" for n in (original - s.kept, s.remaining) if elf]
    yield ""
    yield f"Original pages  : 0x{original:016x}"
    yield f"  Excluded pages   : 0x{original - s.kept:016x}"
    yield from in_elf[:1]
    yield f"    {'Pages filled with zero':24}: 0x{s.zero:016x}"
    for name, page_class in EXCLUDED_NAMES.items():
        if page_class is not PageClass.EXCLUDED and (page_class not in _OURS or s.excluded(page_class)):
            yield f"    {name:24}: 0x{s.excluded(page_class):016x}"
    if s.lost:
        yield f"  Lost pages       : 0x{s.lost:016x}"
    yield f"  Remaining pages  : 0x{s.remaining:016x}"
    yield from in_elf[1:]
    if original:
        yield f"  (The number of pages is reduced to {100 * s.remaining // original}%.)"
    yield f"Memory Hole     : 0x{s.holes + absent:016x}"
    yield "-" * 50
    yield f"Total pages     : 0x{s.max_mapnr:016x}"
    yield f"Write bytes     : {s.output_size}"
    yield ""


_USED = (
    ("NON_PRI_CACHE", "Cache pages without private flag", PageClass.CACHE),
    ("PRI_CACHE", "Cache pages with private flag", PageClass.CACHE_PRIVATE),
    ("USER", "User process pages", PageClass.USER),
    ("FREE", "Free pages", PageClass.FREE),
)


def mem_usage(s: Statistics) -> Iterator[str]:
    """Yield the lines of --mem-usage. s: counts at level 31, with zero pages."""
    yield ""
    yield "TYPE\t\tPAGES\t\t\tEXCLUDABLE\tDESCRIPTION"
    yield "-" * 70
    yield f"ZERO\t\t{s.zero:<16}\tyes\t\tPages filled with zero"
    for name, text, page_class in _USED:
        tabs = "\t" if len(name) > 7 else "\t\t"
        yield f"{name}{tabs}{s.excluded(page_class):<16}\tyes\t\t{text}"
    yield f"KERN_DATA\t{s.remaining:<16}\tno\t\tDumpable kernel data "
    yield ""
    yield f"page size:\t\t{s.page_size:<16}"
    yield f"Total pages on system:\t{s.present:<16}"
    yield f"Total size on system:\t{s.present * s.page_size:<16} Byte"


def _disabled(codec: str) -> bool:
    from vmfilter.formats.codec import MISSING, availability

    return availability()[codec] == MISSING


def version() -> Iterator[str]:
    """Yield the lines of -v: the makedumpfile version that this replaces, and the codecs."""
    yield HEADLINE
    for codec in ("lzo", "snappy", "zstd"):
        yield f"{codec}\t{'disabled' if _disabled(codec) else 'enabled'}"
    yield ""


_USAGE = """
Usage:
  makedumpfile    [OPTIONS] VMCORE DUMPFILE
  makedumpfile -F [OPTIONS] VMCORE
  makedumpfile -R DUMPFILE
  makedumpfile --split [OPTIONS] VMCORE DUMPFILE1 DUMPFILE2 [DUMPFILE3 ..]
  makedumpfile --reassemble DUMPFILE1 DUMPFILE2 [DUMPFILE3 ..] DUMPFILE
  makedumpfile --dump-dmesg VMCORE LOGFILE
  makedumpfile --mem-usage /proc/kcore
  makedumpfile -h
  makedumpfile -v
"""
_PREFIXES = {"unneeded": "no effect: ", "refused": "not supported: "}


def help_lines() -> Iterator[str]:
    """Yield the lines of -h."""
    for codec, name in ("lzo", "LZO"), ("snappy", "snappy"), ("zstd", "zstd"):
        yield f"{name} support:"
        yield "  disabled" if _disabled(codec) else "  enabled"
    yield _USAGE
    yield "Options:"
    for option in OPTIONS:
        yield f"  {option.name} {option.value}".rstrip()
        yield f"      {_PREFIXES.get(option.sets, '')}{option.help}"
