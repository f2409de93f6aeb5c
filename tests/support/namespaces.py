"""Runs programs in their own mount namespace, in which folders of a test cover folders of the machine."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest


def _can_unshare() -> bool:
    command = ["unshare", "--mount", "true"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


needs_namespace = pytest.mark.skipif(
    os.geteuid() != 0 or not _can_unshare(), reason="only root can make a mount namespace, if the machine permits it"
)


def needs_program(name: str, package: str) -> pytest.MarkDecorator:
    """Skip a test if a program is not installed, and name its Debian package."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return pytest.mark.skipif(not shutil.which(name, path=path), reason=f"{name} is not installed (package {package})")


def run_over(
    folders: Mapping[str, Path], command: list[str], environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command that sees each given folder at the path it is given for; the output is text."""
    binds = [f"mount --bind {shlex.quote(str(folder))} {path}" for path, folder in folders.items()]
    script = " && ".join([*binds, f"exec {shlex.join(command)}"])
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
