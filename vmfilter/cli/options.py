"""Values of options that several commands have."""

from __future__ import annotations

import argparse


def threads_of(text: str) -> int:
    """Return a number of threads. Raises ArgumentTypeError where it is none."""
    from vmfilter.pack import MAX_THREADS

    if not (text.isascii() and text.isdecimal() and len(text) < 5) or not 1 <= int(text) <= MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no number of threads from 1 to {MAX_THREADS}")
    return int(text)
