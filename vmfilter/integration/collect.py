"""Writes vmfilter and the Python modules that it needs to an initramfs under construction.

Modules become bytecode without source, in one archive (archive.py); those that an interpreter loads before it can read
that stay at their path. The interpreter and extension modules are only listed, because the tools that build an
initramfs copy such files together with their shared objects, to the same path as on this machine: both rely on their
own location (the prefix, RUNPATH with $ORIGIN).
"""

from __future__ import annotations

import json
import marshal
import os
import py_compile
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import CodeType
from typing import NamedTuple

import vmfilter
from vmfilter.errors import OutputError, VmfilterError
from vmfilter.integration.archive import pack

_PROGRAMS = ("vmfilter", "vmfilter-makedumpfile")
ARCHIVE = "usr/lib/vmfilter/modules"
"""Where the archive is, in an initramfs."""
_LAUNCHER = """\
{start}
import marshal
import posix
import sys

fd = posix.open("/{archive}", posix.O_CLOEXEC)
code, index = marshal.loads(posix.pread(fd, {begin}, 0))
names = {{"__name__": "archive"}}
exec(code, names)
sys.meta_path.insert(0, names["Archive"](fd, {begin}, index))
from vmfilter.cli import main

sys.exit(main())
"""
_PYC_HEADER = 16  # bytes before the marshalled code: PEP 552
_LINE_BYTES = 127
"""Length of a #! line that every kernel reads in full. Since 6eb3c3d0a52d ("exec: increase BINPRM_BUF_SIZE to 256"),
v5.1, the limit is 255 bytes."""


def _interpreter() -> str:
    """Path of the interpreter itself, not of a virtual environment's link to it."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def _start(interpreter: str) -> str:
    """Return the first lines of a launcher.

    They must name the real interpreter, because dracut copies the file after #! from the build machine and fails if it
    does not exist. If the path contains a blank or is too long for the kernel, the shell starts the interpreter; Python
    reads the two lines for the shell as a string.
    """
    line = f"#!{interpreter} -ISXutf8"
    if len(os.fsencode(line)) <= _LINE_BYTES and not set(interpreter) & set(" \t\n"):
        return line
    return f"#!/bin/sh\n'''exec' {shlex.quote(interpreter)} -ISXutf8 \"$0\" \"$@\"\n' '''"


class _Needed(NamedTuple):
    """Modules that vmfilter needs: the file of each, by name.

    Attributes:
        first: those that an interpreter loads before anything else.
        others: all others.

    """

    first: dict[str, str]
    others: dict[str, str]


def _needed(interpreter: str) -> _Needed:
    """Return the modules that vmfilter needs."""
    directories = [str(Path(vmfilter.__path__[0]).parent), *(p for p in sys.path if os.path.isdir(p))]
    command = [interpreter, "-IS", str(Path(__file__).with_name("trace.py")), *directories]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        why = (result.stderr.splitlines() or [f"exit status {result.returncode}"])[-1]
        raise VmfilterError(f"{interpreter}: cannot load vmfilter's modules: {why}; install vmfilter again")
    return _Needed(**json.loads(result.stdout))


def _is_python(file: str) -> bool:
    return file.endswith((".py", ".pyc"))


def _code(file: str) -> CodeType:
    """Return the code of a Python file, or of one that is bytecode already."""
    path = Path(file)
    if path.suffix == ".pyc":
        code = marshal.loads(path.read_bytes()[_PYC_HEADER:])
        assert isinstance(code, CodeType)
        return code
    return compile(path.read_bytes(), file, "exec", dont_inherit=True)


def _write_bytecode(file: str, root: Path) -> None:
    """Write a Python file to its path in the initramfs, as bytecode."""
    source = Path(file)
    target = root / source.relative_to("/").with_suffix(".pyc")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".pyc":
        shutil.copyfile(source, target)
    else:  # unchecked hashes instead of timestamps make the initramfs reproducible
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(source), str(target), doraise=True, invalidation_mode=unchecked)


def _write_archive(files: Mapping[str, str], root: Path) -> int:
    """Write the archive of modules, and return the size of its begin."""
    code = {name: _code(file) for name, file in files.items() if _is_python(file)}
    packages = [name for name, file in files.items() if Path(file).stem == "__init__"]
    archive, begin = pack(code, files, packages, _code(str(Path(__file__).with_name("archive.py"))))
    path = root / ARCHIVE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(archive)
    return begin


def collect(initramfs: str | os.PathLike[str]) -> list[str]:
    """Write vmfilter's commands and all Python modules that they need to an initramfs.

    Args:
        initramfs: root directory of the initramfs under construction.

    Returns:
        Paths of programs and extension modules. The caller copies them to the same paths in the initramfs, with the
        shared objects that they need.

    Raises:
        VmfilterError: the bare interpreter cannot load vmfilter.
        OutputError: initramfs is not a directory or is the running system, or a file cannot be written.

    """
    root, interpreter = Path(initramfs), _interpreter()
    if not root.is_dir():
        raise OutputError(f"{root}: is not a directory; name the root of the initramfs")
    if root.samefile("/"):
        raise OutputError(f"{root}: is the running system; name the root of the initramfs")
    needed = _needed(interpreter)
    try:
        for file in filter(_is_python, needed.first.values()):
            _write_bytecode(file, root)
        begin = _write_archive(needed.others, root)
        for program in _PROGRAMS:
            launcher = root / "usr/bin" / program
            launcher.parent.mkdir(parents=True, exist_ok=True)
            launcher.write_text(_LAUNCHER.format(start=_start(interpreter), archive=ARCHIVE, begin=begin))
            launcher.chmod(0o755)
    except OSError as e:
        raise OutputError(f"{e.filename or root}: {e.strerror}") from e
    extensions = [file for files in needed for file in files.values() if not _is_python(file)]
    return [interpreter, *extensions]
