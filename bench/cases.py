"""The cases that are measured and the targets they should meet, as tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import NamedTuple

CODECS = {"zlib": "-c", "lzo": "-l", "snappy": "-p", "zstd": "-z", "none": ""}
"""makedumpfile's option for each codec."""
SOURCE_LEVEL = 17  # of the dump that "again" filters


@dataclass(frozen=True)
class Form:
    """A form of dump, and how both programs make it.

    Attributes:
        ours, theirs: arguments after level and codec. {vmcore}, {again} (a kdump-compressed dump of it), {a} and {b}
                (the new files) stand for paths. If theirs is empty, vmfilter is compared with the codec alone.
        check: name of the form for check.Checker.
        files: number of files made.
        stdout: what writes to standard output: "theirs" (makedumpfile, to a file) or "both" (each to a pipe).
        threaded: makedumpfile can make it with --num-threads.
        refused: vmfilter's attempts at O_DIRECT fail; makedumpfile never makes any.

    """

    ours: str = "{vmcore} {a}"
    theirs: str = "{vmcore} {a}"
    check: str = "kdump"
    files: int = 1
    stdout: str = ""
    threaded: bool = True
    refused: bool = False


FORMS = {
    "file": Form(),
    "buffered": Form(refused=True),
    "pipe": Form("{vmcore} -", "-F {vmcore}", "flat", stdout="both"),
    "dry": Form("--dry-run {vmcore} {a}", "", "", 0),
    "elf": Form("--format elf {vmcore} {a}", "-E {vmcore} {a}", "elf", threaded=False),
    "split": Form("--split {vmcore} {a} {b}", "--split {vmcore} {a} {b}", "split", 2, threaded=False),
    "flat": Form("--flatten {vmcore} {a}", "-F {vmcore}", "flat", stdout="theirs"),
    "again": Form("{again} {a}", "{again} {a}"),
}


class Case(NamedTuple):
    """A dump to make: form, dump level, codec, threads. Its name is, for example, file-d17-zstd-j2."""

    form: str
    level: int
    codec: str
    threads: int

    @property
    def name(self) -> str:
        """Name for --cases and in the results."""
        return f"{self.form}-d{self.level}-{self.codec}-j{self.threads}"


def dumps(threads: int) -> Iterator[Case]:
    """Return all dumps to measure on a machine with this number of CPUs."""
    fast = ("lzo", "snappy", "zstd", "zlib")
    for level in (31, 17, 1):
        for codec in fast:
            yield from (Case("file", level, codec, j) for j in sorted({1, threads}))
    for form in ("buffered", "pipe", "dry", "split", "flat"):
        yield from (Case(form, 17, codec, threads) for codec in fast)
    yield Case("elf", 17, "none", threads)
    yield from (Case("again", 31, codec, threads) for codec in fast)
    yield from (Case("again", 17, codec, threads) for codec in ("lzo", "zstd"))


class Target(NamedTuple):
    """A limit for a figure.

    Attributes:
        what: description.
        cases: pattern of case names.
        figure: name of the figure in the results.
        least, most: limits of the figure, inclusive.

    """

    what: str
    cases: str
    figure: str
    least: float = 0
    most: float = float("inf")

    def covers(self, name: str) -> bool:
        """Return whether the target applies to the case."""
        return fnmatch(name, self.cases)

    def met(self, value: float) -> bool:
        """Return whether the value is within the limits."""
        return self.least <= value <= self.most


_FAST = ("lzo", "snappy", "zstd")
TARGETS = (
    *(Target("to disk, times as fast", f"file-d17-{c}-j2", "speedup", least=1.8) for c in _FAST),
    Target("to disk, times as fast", "file-d17-zlib-j2", "speedup", least=7),
    *(Target("size", f"file-d17-{c}-j2", "size", most=1.01) for c in _FAST),
    Target("size", "file-d17-zlib-j2", "size", most=1.03),
    *(
        Target("without O_DIRECT, times as fast", f"{form}-d17-{codec}-j2", "speedup", least=1.6)
        for form in ("buffered", "pipe")
        for codec in _FAST
    ),
    *(Target("without O_DIRECT, times as fast", f"{f}-d17-zlib-j2", "speedup", 5) for f in ("buffered", "pipe")),
    Target("small dump, times as fast", "file-d31-lzo-j2", "speedup", least=1.3),
    Target("small dump, times as fast", "file-d31-snappy-j2", "speedup", least=1.3),
    Target("small dump, times as fast", "file-d31-zstd-j2", "speedup", least=1.6),
    Target("small dump, times as fast", "file-d31-zlib-j2", "speedup", least=4),
    *(Target("one thread against one, times as fast", f"file-d17-{c}-j1", "speedup", least=1) for c in _FAST),
    Target("classification, ns a page", "classify", "ns_a_page", most=5),
    Target("discarded, times as long as the codec alone", "dry-d17-*-j2", "floor", most=1.2),
    Target("to disk, times as long as the codec alone", "file-d17-*-j2", "floor", most=1.5),
    Target("start-up, seconds", "start", "ours", most=0.060),
    Target("RssAnon over 1 MiB a thread, MiB", "*-d*", "anon_over_threads", most=40),
    *(Target("other forms, times as fast", f"{f}-d17-*-j2", "speedup", least=1.8) for f in ("elf", "split", "flat")),
    Target("filtered again, times as fast", "again-*-j2", "speedup", least=1.8),
)
