"""What vmfilter needs of Python, put into an initramfs that is being built.

Each module lies where it lies on this machine, as bytecode that needs no source, so that what an interpreter and its
libraries know of their own place (the prefix, RUNPATH with $ORIGIN) holds. The interpreter and extension modules are
only named: the tools that build an initramfs copy such files, with their shared objects.
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

sys.path += {folders}
from vmfilter.cli import main

sys.exit(main())
"""
_LINE_BYTES = 127
"""The longest #! line that each kernel reads whole. It is 255 bytes since 6eb3c3d0a52d ("exec: increase BINPRM_BUF_SIZE
to 256"), v5.1."""


def _interpreter() -> str:
    """The interpreter itself, also where this one is a virtual environment's."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def _start(interpreter: str) -> str:
    """First lines of a launcher.

    They name the interpreter itself: dracut installs what follows #! from the machine that builds the initramfs, and
    fails if it is not there. A path with a blank, or too long for the kernel, is left to the shell; Python reads its
    two lines as a string.
    """
    line = f"#!{interpreter} -ISXutf8"
    if len(os.fsencode(line)) <= _LINE_BYTES and not set(interpreter) & set(" \t\n"):
        return line
    return f"#!/bin/sh\n'''exec' {shlex.quote(interpreter)} -ISXutf8 \"$0\" \"$@\"\n' '''"


def _needed(interpreter: str) -> dict[str, Path]:
    """File of each module that is needed, by name."""
    folders = [str(Path(vmfilter.__path__[0]).parent), *(p for p in sys.path if os.path.isdir(p))]
    command = [interpreter, "-IS", str(Path(__file__).with_name("trace.py")), *folders]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        why = (result.stderr.splitlines() or [f"exit status {result.returncode}"])[-1]
        raise VmfilterError(f"{interpreter}: what vmfilter needs cannot be loaded: {why}")
    return {name: Path(file) for name, file in json.loads(result.stdout).items()}


def _folder(name: str, file: Path) -> str:
    """The folder where the search for a module, or for the package that it is in, ended."""
    return str(file.parents[name.count(".") + (file.stem == "__init__")])


def _write_bytecode(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".pyc":
        shutil.copyfile(source, target)
    else:  # by hash and unchecked, so that no time is in it: the same initramfs each time
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(source), str(target), doraise=True, invalidation_mode=unchecked)


def collect(initramfs: str | os.PathLike[str]) -> list[str]:
    """Put vmfilter, the modules that it needs and its commands into an initramfs.

    Args:
        initramfs: folder that becomes the root of the initramfs.

    Returns:
        Paths of programs and extension modules that are to be copied there too, to where they lie here, with the
        shared objects that they need.

    Raises:
        VmfilterError: vmfilter cannot be loaded by the bare interpreter.
        OutputError: the files cannot be written.

    """
    root, interpreter = Path(initramfs), _interpreter()
    if not root.is_dir():
        raise OutputError(f"{root}: is no folder: the root of an initramfs is asked for")
    if root.samefile("/"):
        raise OutputError(f"{root}: is this system, and no initramfs that is being built")
    needed = _needed(interpreter)
    pure = [file for file in needed.values() if file.suffix in {".py", ".pyc"}]
    ours = {n: file for n, file in needed.items() if n.partition(".")[0] not in sys.stdlib_module_names}
    folders = list(dict.fromkeys(_folder(name, file) for name, file in ours.items()))
    try:
        for file in pure:
            _write_bytecode(file, root / file.relative_to("/").with_suffix(".pyc"))
        for program in _PROGRAMS:
            launcher = root / "usr/bin" / program
            launcher.parent.mkdir(parents=True, exist_ok=True)
            launcher.write_text(_LAUNCHER.format(start=_start(interpreter), folders=folders))
            launcher.chmod(0o755)
    except OSError as e:
        raise OutputError(f"{e.filename or root}: {e.strerror}") from e
    return [interpreter, *(str(file) for file in needed.values() if file not in pure)]
