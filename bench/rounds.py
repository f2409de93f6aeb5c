"""Rounds: vmfilter and its rival take turns, case by case."""

from __future__ import annotations

import argparse
import contextlib
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cases import CODECS, FORMS, SOURCE_LEVEL, Case
from check import Checker
from floor import Floor
from measure import Job, Measured, TooLongError, run

HERE = Path(__file__).resolve().parent
PYTHON = sys.executable
VMFILTER = str(Path(PYTHON).with_name("vmfilter"))
_SLOWER = 1.5  # times the first mode's time, after which a second mode is stopped
_FEWEST = 3
_STEP = re.compile(r"STEP \[Excluding[^]]*\] : ([\d.]+) seconds")

Side = Callable[[], Measured]


class Bench:
    """One comparison on one vmcore."""

    def __init__(self, options: argparse.Namespace, vmcore: Path) -> None:
        """Take the parsed command line and the vmcore."""
        self._options = options
        self._vmcore = vmcore
        self._makedumpfile = options.makedumpfile
        folder = Path(options.out)
        self._files = {name: folder / f"bench.{name}" for name in ("a", "b", "again", "raw")}
        self._checker = Checker(VMFILTER, self._makedumpfile, self._vmcore, options.judge, folder)
        self._floor: tuple[int, Floor] | None = None
        self._again = ""
        self.results: dict[str, Any] = {}

    def clean(self) -> None:
        """Remove the dumps."""
        for path in self._files.values():
            path.unlink(missing_ok=True)

    def measure(self, name: str, case: Case | None) -> Mapping[str, Any]:
        """Measure a case; store the figures in results and return them."""
        if case is None:
            found = self._start() if name == "start" else self._classify()
        elif FORMS[case.form].theirs:
            found = self._against_makedumpfile(case)
        else:
            found = self._against_codec(case)
        self.results[name] = found
        return found

    # The cases

    def _start(self) -> dict[str, Any]:
        ours, theirs = Job([VMFILTER, "--version"]), Job([self._makedumpfile, "-v"])
        return self._rounds(ours, "makedumpfile", lambda: run(theirs), run(theirs, watch=True))

    def _classify(self) -> dict[str, Any]:
        ours = Job([PYTHON, str(HERE / "classify.py"), str(self._vmcore)])
        options = ["--message-level", "31", "-l", "-d", "31"]
        theirs = Job([self._makedumpfile, *options, str(self._vmcore), str(self._files["b"])], [self._files["b"]])

        def timed(job: Job, watch: bool = False) -> Measured:
            m = run(job, watch)
            wall = sum(map(float, _STEP.findall(m.said))) if job is theirs else float(m.said.split()[0])
            return m._replace(wall=wall, synced=wall, size=0)

        found = self._rounds(ours, "makedumpfile", lambda: timed(theirs), timed(theirs, True), timed)
        found["pages"] = int(run(ours).said.split()[1])
        return found

    def _against_makedumpfile(self, case: Case) -> dict[str, Any]:
        form = FORMS[case.form]
        if "{again}" in form.ours:
            self._make_again(case.codec)
        ours = self._ours(case)
        warm = run(ours, watch=True)
        modes = [1, case.threads] if form.threaded and case.threads > 1 else [1]
        best: tuple[Measured, Job, int] | None = None
        for mode in modes:
            job = self._theirs(case, mode)
            limit = best[0].wall * _SLOWER if best else None
            with contextlib.suppress(TooLongError):
                m = run(job, watch=True, limit=limit)
                if best is None or m.wall < best[0].wall:
                    best = m, job, mode
        assert best
        seen, theirs, mode = best
        rival = f"makedumpfile, {mode} thread" + "s" * (mode > 1)
        found = self._rounds(ours, rival, lambda: run(theirs), seen, warm=warm)
        found["threads"] = case.threads
        found["digest"] = self._check(case)
        return found

    def _against_codec(self, case: Case) -> dict[str, Any]:
        floor = self._alone(case.level)

        def alone() -> Measured:
            wall, cpu, size = floor.run(case.codec, case.threads)
            return Measured(wall, wall, cpu, size)

        found = self._rounds(self._ours(case), "codec alone", alone, alone())
        found["threads"] = case.threads
        found["size"] = 0
        return found

    # Commands and inputs

    def _ours(self, case: Case) -> Job:
        form = FORMS[case.form]
        outputs = [self._files[name] for name in "ab"[: form.files]]
        program = [PYTHON, str(HERE / "refused.py")] if form.refused else [VMFILTER]
        options = ["filter", "-q", "-d", str(case.level), "--compress", case.codec, "-j", str(case.threads)]
        stdout = "pipe" if form.stdout == "both" else None
        return Job([*program, *options, *self._named(form.ours)], [] if stdout else outputs, stdout)

    def _theirs(self, case: Case, mode: int) -> Job:
        form = FORMS[case.form]
        outputs = [self._files[name] for name in "ab"[: form.files]]
        options = [CODECS[case.codec], "-d", str(case.level), *(["--num-threads", str(mode)] if mode > 1 else [])]
        stdout = {"both": "pipe", "theirs": outputs[0] if outputs else None}.get(form.stdout)
        command = [self._makedumpfile, *filter(None, options), *self._named(form.theirs)]
        return Job(command, [] if stdout == "pipe" else outputs, stdout)

    def _named(self, line: str) -> list[str]:
        return [word.format(vmcore=self._vmcore, **self._files) for word in line.split()]

    def _make_again(self, codec: str) -> None:
        """Make the dump for the form "again"."""
        if self._again != codec:
            to = self._files["again"]
            options = ["-d", str(SOURCE_LEVEL), "--compress", codec]
            run(Job([VMFILTER, "filter", "-q", *options, str(self._vmcore), str(to)], [to]))
            self._checker.check("kdump", [to])
            self._again = codec

    def _alone(self, level: int) -> Floor:
        """Return the pages of a level, in memory."""
        if self._floor is None or self._floor[0] != level:
            self._floor = None
            to = self._files["raw"]
            options = ["-d", str(level), "--compress", "none"]
            run(Job([VMFILTER, "filter", "-q", *options, str(self._vmcore), str(to)], [to]))
            self._floor = level, Floor(to)
            to.unlink()
        return self._floor[1]

    def _check(self, case: Case) -> str:
        """Run vmfilter once more, into a file if the form writes to a pipe, and check the dump."""
        form, job = FORMS[case.form], self._ours(case)
        files = [self._files[name] for name in "ab"[: form.files]]
        run(Job(job.command, files, files[0] if job.stdout else None))
        digest = self._checker.check(form.check, files)
        for path in files:
            path.unlink()
        return digest

    def _rounds(
        self,
        ours: Job,
        rival: str,
        theirs: Side,
        seen: Measured,
        run_ours: Callable[..., Measured] | None = None,
        warm: Measured | None = None,
    ) -> dict[str, Any]:
        """Run both programs in turn.

        Args:
            ours: vmfilter's command.
            rival: description of the other side.
            theirs: runs the other side.
            seen: figures of its first run.
            run_ours: runs vmfilter's command; None: run().
            warm: figures of vmfilter's first run, if it ran already.

        """
        run_ours = run_ours or run
        warm = warm or run_ours(ours, watch=True)
        affordable = self._options.seconds / (warm.wall + seen.wall)
        rounds = []
        for turn in range(int(max(_FEWEST, min(self._options.rounds, affordable)))):
            if turn % 2:
                b, a = theirs(), run_ours(ours)
            else:
                a, b = run_ours(ours), theirs()
            rounds.append((a, b))
        found: dict[str, Any] = {"rival": rival}
        for who, looked, runs in (("ours", warm, [a for a, _ in rounds]), ("theirs", seen, [b for _, b in rounds])):
            found[who] = {x: statistics.median(getattr(m, x) for m in runs) for x in ("wall", "synced", "cpu", "size")}
            found[who] |= {"hwm": looked.hwm, "anon": looked.anon}
        found["speedup"] = statistics.median(b.wall / a.wall for a, b in rounds)
        found["speedup_synced"] = statistics.median(b.synced / a.synced for a, b in rounds)
        found["size"] = found["ours"]["size"] / found["theirs"]["size"] if found["theirs"]["size"] else 0
        found["rounds"] = [{"ours": a.wall, "theirs": b.wall, "theirs_synced": b.synced} for a, b in rounds]
        return found
