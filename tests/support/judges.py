"""Large real vmcores and independent judges, if a lab is beside the checkout."""

from __future__ import annotations

import fcntl
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

LAB = Path(os.environ.get("VMFILTER_LAB", Path(__file__).parents[3] / "shared"))
VMCORES = LAB / "vmcores"
LARGE = sorted(path.name.removesuffix(".zst") for path in VMCORES.glob("[!rv]*-*[0-9].zst"))
"""Names of the vmcores of the lab, but for riscv64: its kernel's own data are not in it."""
NOT_FETCHED = "the lab has not fetched "
"""Why tests are skipped that need more than is kept beside the checkout."""


def judge(*arguments: str | Path) -> str:
    """Return the output of one of the lab's programs; assert that it succeeds."""
    script, *rest = arguments
    done = subprocess.run([sys.executable, str(LAB / "lab" / script), *map(str, rest)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@functools.cache
def peer_is_here(program: str, *arguments: str) -> bool:
    """Return whether a peer can run here; its first use fetches it from the distribution."""
    peer = LAB / "lab" / "peer.py"
    with open(peer) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two workers must not fetch it at once
        return subprocess.run([sys.executable, peer, program, *arguments], capture_output=True).returncode == 0


def kdumpid(dump: Path) -> str:
    """Return what libkdumpfile's kdumpid says about a dump; skip the test if it is not available."""
    if not peer_is_here("kdumpid", "--version"):
        pytest.skip("kdumpid is not available here")
    return judge("peer.py", "kdumpid", dump)


def debug_vmlinux(package: str) -> Path:
    """Return the vmlinux in one of Debian's -dbg packages; skip the test if the lab has not fetched it."""
    cache = Path(os.environ.get("VMLAB_CACHE", Path.home() / ".cache" / "vmlab")) / "debs"
    found = sorted(cache.glob(f"{package}-dbg_*/usr/lib/debug/boot/vmlinux-*"))
    if not found:
        pytest.skip(f"{NOT_FETCHED}{package}-dbg into {cache}: debs.py does")
    return found[-1]
