"""Explains in one line why the C core, or a library of Python's, cannot be loaded, and what to do."""

from __future__ import annotations

import os

from vmfilter.console.output import one_line

PACKAGES = {
    "libdeflate.so.0": "libdeflate0",
    "libisal.so.2": "libisal2",
    "liblz4.so.1": "liblz4-1",
    "liblzo2.so.2": "liblzo2-2",
    "libsnappy.so.1": "libsnappy1v5",
    "libzstd.so.1": "libzstd1",
}
"""Debian package of each library that the core may be linked to."""


def not_loaded(error: ImportError) -> str | None:
    """Return a line for the user; None if another module than the core failed to import, but not by the loader."""
    text = one_line(str(error))
    if "failed to map segment" in text:
        return f"out of memory, or on a file system that is mounted noexec: {text}"
    if error.name not in ("_core", "vmfilter._core"):
        return None
    file, _, _ = text.partition(":")  # the dynamic loader's messages begin with the file
    package = PACKAGES.get(os.path.basename(file))
    advice = f"install Debian's package {package}, or " if package else ""
    return f"the C core cannot be loaded: {text}; {advice}build vmfilter on this machine (pip install .)"
