"""Nowhere: the whole run of --dry-run, with nothing kept."""

from __future__ import annotations

import sys


class Discard:
    """Nowhere: for --dry-run."""

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See Transport."""

    def stream(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See Transport."""

    def settle(self) -> None:
        """See Transport."""

    @property
    def landed(self) -> int:
        """See Transport."""
        return sys.maxsize

    def forget(self, start: int, end: int) -> None:
        """See Transport."""

    def zeros(self, offset: int, size: int) -> None:
        """See Transport."""

    def reserve(self, start: int, end: int) -> None:
        """See Transport."""

    def sync(self, size: int) -> None:
        """See Transport."""

    def publish(self) -> None:
        """See Transport."""

    def abort(self) -> str | None:
        """See Transport."""
        return None
