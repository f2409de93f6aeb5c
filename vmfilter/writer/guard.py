"""What force must not do: replace a dump by what is made from a smaller one of the same crash, its own descendant."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress

from vmfilter.errors import InputError, KernelError, OutputError
from vmfilter.formats.codec import SIGNATURES
from vmfilter.formats.flattened import SIGNATURE
from vmfilter.kernel.kernel import page_size_of
from vmfilter.kernel.search import vmcoreinfo_of
from vmfilter.reader import Dump, open_dump
from vmfilter.reader.plain import beginning
from vmfilter.reader.source import is_url

_READ_IN_PLACE = (b"\x7fELF", SIGNATURE, *SIGNATURES)
"""How files begin that need not be unpacked."""


def refuse_swapped(source: Dump, outputs: Sequence[str]) -> None:
    """Raise OutputError if an output is a dump with more memory of the same crash than the source: names are swapped.

    Args:
        source: from which the new dump is made.
        outputs: paths and URLs of the new dump.

    """
    old_files = [path for path in outputs if _can_be_opened(path)]
    said = vmcoreinfo_of(source) if old_files else None
    for path in old_files:
        if said is not None:
            with suppress(InputError, KernelError), open_dump(path, missing_parts=True) as old:
                found, page = vmcoreinfo_of(old), page_size_of(source, said)
                there, here = _frames(old, page), _frames(source, page)
                if found is not None and found.text == said.text and there > here:
                    raise OutputError(
                        f"{path}: not replaced: it has {there} pages of the same crash, and {source.path} only {here}: "
                        "are the two names swapped? if not, remove it first"
                    )


def _frames(dump: Dump, page: int) -> int:
    """Return the number of page frames of which a dump contains memory."""
    return sum(-(-end // page) - start // page for start, end in dump.covered(0, dump.end))


def _can_be_opened(path: str) -> bool:
    with suppress(OSError, InputError):
        if is_url(path) or stat.S_ISREG(os.stat(path).st_mode):
            return beginning(path).startswith(_READ_IN_PLACE)
    return False
