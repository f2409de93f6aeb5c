"""The big real vmcores, and judges that we did not write, if a lab lies beside the checkout."""

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
needs_lab = [
    pytest.mark.lab,
    pytest.mark.skipif(not VMCORES.is_dir(), reason=f"no vmcores in {VMCORES}"),
]


def judge(*arguments: str | Path) -> str:
    """Output of one of the lab's own programs; it must end well."""
    script, *rest = arguments
    done = subprocess.run([sys.executable, str(LAB / "lab" / script), *map(str, rest)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@functools.cache
def peer_is_here(program: str, *arguments: str) -> bool:
    """Whether a peer can be run here: it is fetched from the distribution on its first use."""
    peer = LAB / "lab" / "peer.py"
    with open(peer) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # no two workers may fetch it at once
        return subprocess.run([sys.executable, peer, program, *arguments], capture_output=True).returncode == 0
