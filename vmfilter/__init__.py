"""Make small dumps of crashed Linux kernels, and read them.

    import vmfilter

    vmfilter.filter_dump("/proc/vmcore", "dump", level="zero,cache,user,free")

    with vmfilter.open_dump("dump") as dump:
        print(dump.kernel.release, dump.vmcoreinfo["PAGESIZE"])
        print(vmfilter.dump_info(dump).crash.panic)
        print(vmfilter.dmesg(dump))

Functions:

    open_dump     a dump as an object: notes, VMCOREINFO, kernel, memory, pages
    filter_dump   a smaller dump: the pages that a dump level keeps
    convert_dump  the same pages in another format or codec
    verify_dump   whether a dump is whole, or equal to another
    dump_info     what crashed, and what the dump contains
    dmesg         the kernel's log
    memory_usage  pages by class, and what each dump level would keep
    stats         also by node and zone, zero pages, blocks by order
    diff          what differs between two dumps
    estimate      how large dumps will be, from a sample

Each takes a path (str, bytes, os.PathLike), a file object, several of these for a split set, or a Dump. Each returns
an object that is frozen, with as_dict() for JSON. Nothing is printed. What goes wrong is a VmfilterError, in one line:
InputError (the dump), OutputError (the new file), KernelError (the crashed kernel), UsageError (an argument).
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's, without its import: a signal during imports before main() is a traceback
if TYPE_CHECKING:
    from typing import Any

    from vmfilter.api.dump import Dump, open_dump
    from vmfilter.api.frames import Page, Run
    from vmfilter.api.kernel import Kernel
    from vmfilter.api.levels import Level
    from vmfilter.api.notes import Note
    from vmfilter.api.operations import (
        convert_dump,
        diff,
        dmesg,
        dump_info,
        estimate,
        filter_dump,
        memory_usage,
        stats,
        verify_dump,
    )
    from vmfilter.api.results import (
        Diff,
        DumpInfo,
        Estimate,
        Log,
        LogRecord,
        MemoryUsage,
        Statistics,
        Stats,
        Verification,
    )
    from vmfilter.crash.summary import CrashedTask as CrashedTask
    from vmfilter.crash.summary import Summary as Summary
    from vmfilter.crash.tasks import Task as Task
    from vmfilter.erase.rules import Rules
    from vmfilter.errors import CodecError, InputError, KernelError, OutputError, UsageError, VmfilterError
    from vmfilter.frames.classes import PageClass, PageKind
    from vmfilter.kernel.types.structures import Object as Object
    from vmfilter.kernel.zone_bits import Zone as Zone
    from vmfilter.measure.diff import Difference as Difference
    from vmfilter.measure.stats import Blocks as Blocks
    from vmfilter.measure.stats import ZonePages as ZonePages
    from vmfilter.pages.coverage import Gap as Gap
    from vmfilter.pages.remains import Remains as Remains
    from vmfilter.readiness.estimate import Between as Between
    from vmfilter.readiness.estimate import Row as Row
    from vmfilter.statistics import NamespacePages as NamespacePages

__version__ = "0.2.0"

__all__ = [
    "CodecError",
    "Diff",
    "Dump",
    "DumpInfo",
    "Estimate",
    "InputError",
    "Kernel",
    "KernelError",
    "Level",
    "Log",
    "LogRecord",
    "MemoryUsage",
    "Note",
    "OutputError",
    "Page",
    "PageClass",
    "PageKind",
    "Rules",
    "Run",
    "Statistics",
    "Stats",
    "UsageError",
    "Verification",
    "VmfilterError",
    "convert_dump",
    "diff",
    "dmesg",
    "dump_info",
    "estimate",
    "filter_dump",
    "memory_usage",
    "open_dump",
    "stats",
    "verify_dump",
]

_NAMES = {
    "api.operations": (
        *("filter_dump", "convert_dump", "verify_dump", "dump_info", "dmesg", "memory_usage", "stats", "diff"),
        "estimate",
    ),
    "api.dump": ("open_dump", "Dump"),
    "api.kernel": ("Kernel",),
    "api.notes": ("Note",),
    "api.frames": ("Page", "Run"),
    "api.levels": ("Level",),
    "erase.rules": ("Rules",),
    "frames.classes": ("PageClass", "PageKind"),
    "api.results": (
        *("Statistics", "Verification", "DumpInfo", "MemoryUsage", "Stats", "Diff", "Estimate", "Log", "LogRecord"),
    ),
    "errors": ("VmfilterError", "UsageError", "CodecError", "InputError", "KernelError", "OutputError"),
}
"""The public names, by the module that has them."""
_VALUES = {
    "crash.summary": ("Summary", "CrashedTask"),
    "crash.tasks": ("Task",),
    "kernel.types.structures": ("Object",),
    "kernel.zone_bits": ("Zone",),
    "measure.diff": ("Difference",),
    "measure.stats": ("ZonePages", "Blocks"),
    "pages.coverage": ("Gap",),
    "pages.remains": ("Remains",),
    "readiness.estimate": ("Row", "Between"),
    "statistics": ("NamespacePages",),
}
"""What results contain, by its module: for annotations. It is not in __all__, of which help() prints all."""
_MODULES = {name: module for names in (_NAMES, _VALUES) for module, of in names.items() for name in of}


def __getattr__(name: str) -> Any:
    """Import a name on first use, so that a command loads only what it needs."""
    if name not in _MODULES:
        raise AttributeError(f"module 'vmfilter' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"vmfilter.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
