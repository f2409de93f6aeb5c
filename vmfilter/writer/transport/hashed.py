"""A new dump as a file, with a second file that contains its SHA-256."""

from __future__ import annotations

import hashlib
import os

from vmfilter.errors import OutputError, why_not_written
from vmfilter.writer.transport.file import FileTransport

SUFFIX = ".sha256"
"""Of the second file's name."""
_RESERVED = 4096  # more than a hash and the longest name


def line_of(path: str, digest: str) -> bytes:
    """Return the line of a file with a SHA-256 in hexadecimal; path: of the dump, in the same folder."""
    listed = os.fsencode(os.path.basename(path))
    name = listed.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return b"\\" * (name != listed) + digest.encode() + b"  " + name + b"\n"


class HashedFileTransport(FileTransport):
    """A file and its SHA-256, as `sha256sum -c` reads it in the same folder.

    The header is written last, so the finished file is read again for this, before it gets its name.
    """

    def __init__(self, path: str, force: bool = False) -> None:
        """Create neither file yet.

        Args:
            path: final name of the dump.
            force: whether to replace regular files of these names.

        Raises:
            OutputError: it is not the name of a file.

        """
        super().__init__(path, force)
        self._hash = FileTransport(path + SUFFIX, force)

    def create(self) -> None:
        super().create()
        self._hash.create()
        self._hash.reserve(0, _RESERVED)  # a full disk must not cost the dump

    def publish(self) -> None:
        try:
            with open(self.descriptor(), "rb", buffering=0) as file:
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as e:
            raise OutputError(f"{self._path}: cannot be read again for its SHA-256: {why_not_written(e)}") from e
        line = line_of(self._given, digest)
        self._hash.write(0, line)
        self._hash.sync(len(line))
        super().publish()
        self._hash.publish()

    def close(self) -> None:
        super().close()
        self._hash.close()

    def abort(self) -> str | None:
        left = [self._hash.abort(), super().abort()]
        return "; ".join(filter(None, left)) or None
