"""What a batch notes of a dump: a line of its manifest."""

from __future__ import annotations

import hashlib
import json

from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

DONE, INCOMPLETE, DAMAGED, FAILED, TIMEOUT, KILLED = STATUSES = (
    *("done", "incomplete", "damaged"),
    *("failed", "timeout", "killed"),
)
"""Done; done, and the dump is incomplete; verified, and it is damaged; an error; took too long; its process died."""
SUCCEEDED = DONE, INCOMPLETE, DAMAGED


class Input(NamedTuple):
    """A dump, as a listing describes it.

    Attributes:
        name: path or URL, without secrets.
        url: path or URL.
        size: bytes; None if it is unknown, as for a dump that does not exist.
        modified: time of its last change, or what the store has in place of that; "" if unknown.
        digest: what the store says of its contents (an ETag); "" if it says nothing.
        others: paths or URLs of the other parts, if it is the first of a split set. The other attributes but the names
            are of all of them then.

    """

    name: str
    url: str
    size: int | None = None
    modified: str = ""
    digest: str = ""
    others: tuple[str, ...] = ()

    @property
    def files(self) -> list[str]:
        """Paths or URLs of all its files."""
        return [self.url, *self.others]


def note_of(name: str, job: str) -> str:
    """Return the name of a file with the record of a dump, by its name, and job."""
    return hashlib.sha256(f"{name}\0{job}".encode("utf-8", "surrogateescape")).hexdigest()[:32] + ".json"


class Record(NamedTuple):
    """What became of a dump.

    Attributes:
        input: its name.
        job: operation and options, as text: the same dump can be filtered twice.
        size, modified, digest: see Input; digest may also be a SHA-256.
        status: one of STATUSES.
        seconds: that it took.
        warnings: one line each.
        error: what went wrong, "" if nothing did.
        output: path or URL of what was made, "" if nothing was.
        output_size: bytes.
        facts: about the dump, for the table.

    """

    input: str
    job: str
    size: int | None
    modified: str
    digest: str
    status: str
    seconds: float
    warnings: list[str]
    error: str
    output: str
    output_size: int
    facts: dict[str, Any]

    @property
    def line(self) -> str:
        """The record as a line of a manifest."""
        return json.dumps(self._asdict()) + "\n"

    @property
    def succeeded(self) -> bool:
        """Whether there is an output."""
        return self.status in SUCCEEDED
