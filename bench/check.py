"""Checks of measured dumps: a figure counts only if its dump is right."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class Checker:
    """Compares dumps with their vmcore. A dump whose content was checked before is not checked again.

    `vmfilter verify` reads all of a dump and compares every page with the vmcore. Judges are programs that share no
    code with vmfilter. They run as `JUDGE against DUMP VMCORE` (a judge in Python under this interpreter, which has its
    packages) and exit with 0 if all pages match. They read only kdump-compressed dumps, so makedumpfile converts every
    other form.
    """

    def __init__(self, vmfilter: str, makedumpfile: str, vmcore: Path, judges: Sequence[str], folder: Path) -> None:
        """Take the programs, the vmcore, the judges, and a folder for makedumpfile's conversions."""
        self._vmfilter, self._makedumpfile, self._vmcore = vmfilter, makedumpfile, str(vmcore)
        self._judges = [[sys.executable, judge] if judge.endswith(".py") else [judge] for judge in judges]
        self._whole = folder / "bench.whole"
        self._known: set[str] = set()

    def check(self, form: str, files: Sequence[Path]) -> str:
        """Check one dump; exit if it is wrong.

        Args:
            form: "kdump", "elf", "split" or "flat".
            files: of the dump.

        Returns:
            A digest of the dump's files.

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
