"""Writes vmfilter and the Python modules that it needs to an initramfs under construction.

Modules become bytecode without source, at the same path as on this machine: an interpreter and its libraries rely on
their own location (the prefix, RUNPATH with $ORIGIN). The interpreter and extension modules are only listed, because
the tools that build an initramfs copy such files together with their shared objects.
"""

from __future__ import annotations

import json
import os
import py_compile
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import vmfilter
from vmfilter.errors import OutputError, VmfilterError

_PROGRAMS = ("vmfilter", "vmfilter-makedumpfile")
_LAUNCHER = """\
{start}
import sys

sys.path += {directories}
from vmfilter.cli import main

sys.exit(main())
"""
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


def _needed(interpreter: str) -> dict[str, Path]:
    """Return the file of each module that vmfilter needs, by module name."""
    directories = [str(Path(vmfilter.__path__[0]).parent), *(p for p in sys.path if os.path.isdir(p))]
    command = [interpreter, "-IS", str(Path(__file__).with_name("trace.py")), *directories]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        why = (result.stderr.splitlines() or [f"exit status {result.returncode}"])[-1]
        raise VmfilterError(f"{interpreter}: cannot load vmfilter's modules: {why}")
    return {name: Path(file) for name, file in json.loads(result.stdout).items()}


def _directory(name: str, file: Path) -> str:
    """Return the entry of sys.path under which a module was found."""
    return str(file.parents[name.count(".") + (file.stem == "__init__")])


def _write_bytecode(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".pyc":
        shutil.copyfile(source, target)
    else:  # unchecked hashes instead of timestamps make the initramfs reproducible
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(source), str(target), doraise=True, invalidation_mode=unchecked)


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
    pure = [file for file in needed.values() if file.suffix in {".py", ".pyc"}]
    ours = {n: file for n, file in needed.items() if n.partition(".")[0] not in sys.stdlib_module_names}
    directories = list(dict.fromkeys(_directory(name, file) for name, file in ours.items()))
    try:
        for file in pure:
            _write_bytecode(file, root / file.relative_to("/").with_suffix(".pyc"))
        for program in _PROGRAMS:
            launcher = root / "usr/bin" / program
            launcher.parent.mkdir(parents=True, exist_ok=True)
            launcher.write_text(_LAUNCHER.format(start=_start(interpreter), directories=directories))
            launcher.chmod(0o755)
    except OSError as e:
        raise OutputError(f"{e.filename or root}: {e.strerror}") from e
    return [interpreter, *(str(file) for file in needed.values() if file not in pure)]
