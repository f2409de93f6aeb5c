"""struct new_utsname: the identity of a kernel."""

from __future__ import annotations

from vmfilter.lean import NamedTuple

UTS_FIELD = 65
"""Size of each field in bytes: __NEW_UTS_LEN + 1."""
UTS_SIZE = 6 * UTS_FIELD


class Utsname(NamedTuple):
    """The fields of struct new_utsname, each up to its first zero byte; empty if unknown."""

    sysname: bytes = b""
    nodename: bytes = b""
    release: bytes = b""
    version: bytes = b""
    machine: bytes = b""
    domainname: bytes = b""

    @classmethod
    def parse(cls, raw: bytes) -> Utsname:
        """Parse a structure of UTS_SIZE bytes."""
        return cls(*(raw[at : at + UTS_FIELD].split(b"\0")[0] for at in range(0, UTS_SIZE, UTS_FIELD)))

    def pack(self) -> bytes:
        """Return the structure. Fields that are too long are truncated."""
        return b"".join(field[: UTS_FIELD - 1].ljust(UTS_FIELD, b"\0") for field in self)
