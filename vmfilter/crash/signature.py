"""The panic line without what differs from crash to crash, so that the same fault has the same text."""

from __future__ import annotations

import re

_VARIABLE = (
    (re.compile(r"\+0x[0-9a-f]+/0x[0-9a-f]+"), ""),  # offset and size of a function
    (re.compile(r"\b0x[0-9a-f]+\b|\b[0-9a-f]{8,16}\b"), "#"),  # addresses, and values of registers
    (re.compile(r"\[[^\]]*:[0-9:]+\]"), "[task]"),  # comm and PID, as watchdogs print them
    (re.compile(r"\d+"), "N"),
    (re.compile(r"\s+"), " "),
)
"""What is replaced, in this order, and by what."""
_PREFIX = "Kernel panic - not syncing: "
_LONGEST = 200


def signature(panic: str, cause: str) -> str:
    """Return the signature of a crash.

    Args:
        panic: message with which the kernel panicked, "" if it is unknown.
        cause: message about the fault before it, "" if there was none. It says more than the panic.

    Returns:
        "" if both are unknown.

    """
    text = cause or panic.removeprefix(_PREFIX)
    for pattern, replacement in _VARIABLE:
        text = pattern.sub(replacement, text)
    return text.strip()[:_LONGEST]
