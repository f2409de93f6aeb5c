"""Whether a dump that was measured is right: what its figures are worth."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class Checker:
    """Checks dumps against the vmcore that they were made of, each content once.

    `vmfilter verify` reads all of a dump and compares every page with the vmcore's. Judges are programs that share no
    code with vmfilter, run as `JUDGE against DUMP VMCORE` (one in Python by this Python, for the packages that it has),
    exit status 0 where all pages are the vmcore's; they are given kdump-compressed dumps, which makedumpfile makes of
    every other form.
    """

    def __init__(self, vmfilter: str, makedumpfile: str, vmcore: Path, judges: Sequence[str], folder: Path) -> None:
        """See the class; folder is for what makedumpfile makes."""
        self._vmfilter, self._makedumpfile, self._vmcore = vmfilter, makedumpfile, str(vmcore)
        self._judges = [[sys.executable, judge] if judge.endswith(".py") else [judge] for judge in judges]
        self._whole = folder / "bench.whole"
        self._known: set[str] = set()

    def check(self, form: str, files: Sequence[Path]) -> str:
        """Check one dump; end the program where it is not right.

        Args:
            form: "kdump", "elf", "split" or "flat".
            files: of the dump.

        Returns:
            A digest of its content.

        """
        digest = hashlib.sha256()
        for path in files:
            with open(path, "rb") as f:
                digest.update(hashlib.file_digest(f, "sha256").digest())
        if digest.hexdigest() not in self._known:
            names = [str(path) for path in files]
            _pass([self._vmfilter, "verify", "-q", "--against", self._vmcore, *names])
            if self._judges:
                dump = self._as_kdump(form, files)
                for judge in self._judges:
                    _pass([*judge, "against", dump, self._vmcore])
                self._whole.unlink(missing_ok=True)
            self._known.add(digest.hexdigest())
        return digest.hexdigest()

    def _as_kdump(self, form: str, files: Sequence[Path]) -> str:
        if form == "kdump":
            return str(files[0])
        self._whole.unlink(missing_ok=True)
        program, to = self._makedumpfile, str(self._whole)
        if form == "flat":
            with open(files[0], "rb") as f:
                _pass([program, "-R", to], f)
        elif form == "split":
            _pass([program, "--reassemble", *map(str, files), to])
        else:
            _pass([program, "-d", "0", str(files[0]), to])
        return to


def _pass(command: list[str], stdin: object = subprocess.DEVNULL) -> None:
    ended = subprocess.run(command, stdin=stdin, capture_output=True, text=True)  # type: ignore[call-overload]
    if ended.returncode:
        sys.exit(f"{' '.join(command)}: exit status {ended.returncode}: {(ended.stdout + ended.stderr)[-1000:]}")
