"""Run vmfilter as if no file system supported O_DIRECT: every attempt to use it fails with EINVAL.

Takes vmfilter's command line. On Linux 6.6 and later even tmpfs supports O_DIRECT, so a real one is not always at hand.
"""

import errno
import fcntl
import os
import sys
from typing import Any

from vmfilter.cli import main

_open, _fcntl = os.open, fcntl.fcntl


def _refuse(flags: int, where: str) -> None:
    if flags & os.O_DIRECT:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), where)


def _refusing_open(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    _refuse(flags, os.fspath(path))
    return _open(path, flags, mode, dir_fd=dir_fd)


def _refusing_fcntl(fd: int, command: int, argument: Any = 0) -> Any:
    if command == fcntl.F_SETFL:
        _refuse(argument, f"file descriptor {fd}")
    return _fcntl(fd, command, argument)


os.open, fcntl.fcntl = _refusing_open, _refusing_fcntl  # type: ignore[assignment]
sys.exit(main())
