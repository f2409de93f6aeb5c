"""All Python modules of an initramfs in one file. collect.py writes it; in the initramfs, this code loads from it.

Python looks for each module in the directories of sys.path, and opens a file of its own for it. That takes a third of
the time of all imports. In an archive, a module is one read at a known offset.

    begin       marshalled: the code of this module, and the index
    then        the marshalled code of each module

The launchers in the initramfs know the size of the begin.
"""

from __future__ import annotations

import marshal
import posix
import sys
from _frozen_importlib_external import spec_from_file_location

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType
else:
    Loader = object
    ModuleSpec = type(sys.__spec__)  # to import importlib.machinery takes time

Entry = tuple[str, bool, int, int]
"""A module: the file that it is, or was made of; whether that is a package; offset and size of its code after the
begin, or 0 if it is an extension module, which stays a file."""


def pack(
    code: Mapping[str, CodeType], files: Mapping[str, str], packages: Sequence[str], loader: CodeType
) -> tuple[bytes, int]:
    """Return an archive, and the size of its begin in bytes.

    Args:
        code: of each Python module, by its name.
        files: of each module in code, and of extension modules.
        packages: names of those that are packages.
        loader: the code of this module.

    """
    index, parts, at = dict[str, Entry](), [], 0
    for name, file in sorted(files.items()):
        part = marshal.dumps(code[name]) if name in code else b""
        index[name] = file, name in packages, at, len(part)
        parts.append(part)
        at += len(part)
    begin = marshal.dumps((loader, index))
    return b"".join((begin, *parts)), len(begin)


def names_in(archive: bytes) -> list[str]:
    """Return the names of the modules in an archive."""
    _, index = marshal.loads(archive)
    return list(index)


class Archive(Loader):
    """Finds and loads the modules of an archive: an entry of sys.meta_path, and their loader."""

    def __init__(self, fd: int, begin: int, index: Mapping[str, Entry]) -> None:
        """Take an open archive.

        Args:
            fd: of the archive; stays open.
            begin: size of its begin in bytes.
            index: of its modules.

        """
        self._fd, self._begin, self._index = fd, begin, index

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        if name not in self._index:
            return None
        file, is_package, _, size = self._index[name]
        if not size:
            return spec_from_file_location(name, file)
        spec = ModuleSpec(name, self, origin=file, is_package=is_package)
        if is_package:
            spec.submodule_search_locations = [file.rpartition("/")[0]]
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        """See importlib.abc.Loader. Python creates the module."""

    def exec_module(self, module: ModuleType) -> None:
        """See importlib.abc.Loader."""
        file, _, offset, size = self._index[module.__name__]
        module.__file__ = file
        exec(marshal.loads(posix.pread(self._fd, size, self._begin + offset)), module.__dict__)
