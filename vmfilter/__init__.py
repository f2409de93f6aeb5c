"""Make small dumps of crashed Linux kernels.

    import vmfilter
    with vmfilter.open_dump("/proc/vmcore") as dump:
        print(vmfilter.filter_dump(dump, "dump", level=31).kept)

Each name is imported on first use, so that a command loads only what it needs.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's, without its import: a signal during imports before main() is a traceback
if TYPE_CHECKING:
    from typing import Any

    from vmfilter.errors import CodecError, InputError, KernelError, OutputError, UsageError, VmfilterError
    from vmfilter.filter import filter_dump
    from vmfilter.frames.classes import PageClass
    from vmfilter.reader import Dump, open_dump
    from vmfilter.statistics import Statistics

__version__ = "0.1.0"

__all__ = [
    "CodecError",
    "Dump",
    "InputError",
    "KernelError",
    "OutputError",
    "PageClass",
    "PageKind",
    "Statistics",
    "UsageError",
    "VmfilterError",
    "filter_dump",
    "open_dump",
]

_MODULES = {
    "CodecError": "errors",
    "InputError": "errors",
    "KernelError": "errors",
    "OutputError": "errors",
    "UsageError": "errors",
    "VmfilterError": "errors",
    "filter_dump": "filter",
    "PageClass": "frames.classes",
    "PageKind": "frames.classes",
    "Dump": "reader",
    "open_dump": "reader",
    "Statistics": "statistics",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'vmfilter' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"vmfilter.{_MODULES[name]}"), name)
