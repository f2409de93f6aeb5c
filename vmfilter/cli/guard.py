"""What --force must not do: replace a dump by one that has less of the same crash, as if two names were swapped."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress

from vmfilter.errors import InputError, KernelError, OutputError
from vmfilter.formats.codec import SIGNATURES
from vmfilter.formats.flattened import SIGNATURE
from vmfilter.kernel.search import vmcoreinfo_of
from vmfilter.lean import TYPE_CHECKING
from vmfilter.reader import Dump, open_dump

if TYPE_CHECKING:
    from vmfilter.run import Progress

_READ_IN_PLACE = (b"\x7fELF", SIGNATURE, *SIGNATURES)
"""How files begin that need not be unpacked."""


class Guard:
    """A Progress that ends a run before its first page is written, if it would replace a dump with more memory."""

    def __init__(self, shown: Progress | None, source: Dump, outputs: Sequence[str]) -> None:
        """Wrap a Progress, or None.

        Args:
            shown: what is called too.
            source: from which the new dump is made.
            outputs: paths of the new dump.

        """
        self._shown, self._source = shown, source
        self._unchecked = list(outputs)
        self._page_size = 0
        self._note = getattr(shown, "note", None)

    def note(self, page_size: int, size: int) -> None:
        """See vmfilter.run.Progress."""
        self._page_size = page_size
        if self._note:
            self._note(page_size, size)

    def __call__(self, stage: str, done: int, total: int) -> None:
        while stage == "write" and self._unchecked:
            _check(self._source, self._unchecked.pop(), total * self._page_size)
        if self._shown is not None:
            self._shown(stage, done, total)


def _check(source: Dump, path: str, size: int) -> None:
    """Raise OutputError if a file is a dump of the same crash (by its VMCOREINFO) with more than size bytes of it."""
    before = vmcoreinfo_of(source)
    if before is None or not _can_be_opened(path):
        return
    with suppress(InputError, KernelError), open_dump(path, missing_parts=True) as old:
        found = vmcoreinfo_of(old)
        contained = sum(end - start for start, end in old.covered(0, old.end))
        if found is not None and found.text == before.text and contained > size:
            raise OutputError(
                f"{path}: not replaced: it has {contained / 2**20:.1f} MiB of the same crash, and the new dump would "
                f"have {size / 2**20:.1f} MiB; if the two names are not swapped, remove it, and try again"
            )


def _can_be_opened(path: str) -> bool:
    with suppress(OSError):
        if stat.S_ISREG(os.stat(path).st_mode):
            with open(path, "rb") as file:
                return file.read(16).startswith(_READ_IN_PLACE)
    return False
