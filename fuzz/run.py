"""Fuzzes targets, as many at once as there are CPUs: run.py SECONDS [TARGET...]. Exit status 1: something was found.

Python targets run under atheris, those of core.c under libFuzzer. Each has its own process, and gets a new one after a
finding. build/fuzz/ keeps the corpus, logs and findings.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module
from io import StringIO
from pathlib import Path
from pkgutil import walk_packages
from random import Random
from typing import NoReturn

from mutate import mutate

try:
    import atheris
except ImportError:
    atheris = None

FOLDER = Path("build/fuzz")
CORE = FOLDER / "core"
_CORE_TARGETS = re.compile(r'\{"(\w+)", \1\}')
_LARGEST = 1 << 20  # bytes of an input
_SLOWER = 3  # times that instrumentation makes the code slower
_MOST = 10  # findings of a target in one run
_FOUND = re.compile(
    r"^(?:\w+(?:\.\w+)*(?:Error|Exception|Interrupt)\b.*|.*(?:ERROR: \w+: .*|runtime error: .*|not true: .*))$", re.M
)


@dataclass
class Campaign:
    """One target's share of a run.

    Attributes:
        name: of the target.
        start: fuzzes in this process, with these options of libFuzzer; never returns.
        seeds: returns the inputs to start from.
        seconds: that are left.

    """

    name: str
    start: Callable[[list[str]], NoReturn]
    seeds: Callable[[], list[bytes]]
    seconds: float
    executions: int = 0
    findings: list[str] = field(default_factory=list)
    _began: float = 0

    def fork(self) -> int:
        """Begin, or go on after a finding; return the process."""
        self._began = time.monotonic()
        log = os.open(FOLDER / f"{self.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        if pid := os.fork():
            os.close(log)
            return pid
        os.dup2(log, 1)
        os.dup2(log, 2)
        corpus = FOLDER / "corpus" / self.name
        corpus.mkdir(parents=True, exist_ok=True)
        for seed in self.seeds():
            (corpus / sha256(seed).hexdigest()[:16]).write_bytes(seed)
        left = self.seconds - (time.monotonic() - self._began)
        options = {"max_total_time": max(int(left), 1), "max_len": _LARGEST, "len_control": 0}
        options |= {"timeout": 300, "rss_limit_mb": 4096, "print_final_stats": 1}
        if "CI" in os.environ:
            options["seed"] = 1  # so that a change fails CI, and not chance
        findings = FOLDER / "findings" / f"{self.name}-"
        self.start([f"-{k}={v}" for k, v in options.items()] + [f"-artifact_prefix={findings}", str(corpus)])

    def ended(self, status: int) -> bool:
        """Take what a process leaves; return whether to go on."""
        self.seconds -= time.monotonic() - self._began
        log = (FOLDER / f"{self.name}.log").read_text(errors="replace")
        counted = re.findall(r"number_of_executed_units: (\d+)", log)
        self.executions += int(counted[-1]) if counted else 0
        if not status:
            return False
        said, written = _FOUND.findall(log), re.findall(r"Test unit written to (\S+)", log)
        self.findings.append(f"{said[0] if said else log[-500:]}; input: {written[-1] if written else 'unknown'}")
        return len(self.findings) < _MOST and self.seconds >= 1


def _python_campaigns() -> list[Campaign]:
    if atheris is None:
        return []
    with redirect_stderr(StringIO()), atheris.instrument_imports(include=["vmfilter"]):  # it names each module
        import vmfilter

        for module in walk_packages(vmfilter.__path__, "vmfilter."):  # some are imported only where they are needed
            if module.name.split(".")[1] not in ("integration", "__main__"):
                import_module(module.name)
    import limits
    from targets import TARGETS, Target, attempt

    limits.SECONDS *= _SLOWER

    def starter(target: Target) -> Callable[[list[str]], NoReturn]:
        def start(options: list[str]) -> NoReturn:
            atheris.Setup(
                ["fuzz", *options],
                lambda data: attempt(target, data),
                custom_mutator=lambda data, limit, seed: mutate(data, limit, seed, atheris.Mutate),
            )
            atheris.Fuzz()
            raise AssertionError("atheris returned")

        return start

    return [Campaign(t.name, starter(t), lambda t=t: list(t.seeds()), 0) for t in TARGETS]  # type: ignore[misc]


def _core_campaigns() -> list[Campaign]:
    if not CORE.exists():
        return []

    def starter(name: str) -> Callable[[list[str]], NoReturn]:
        return lambda options: os.execve(CORE, [str(CORE), *options], {**os.environ, "FUZZ_TARGET": name})

    names = _CORE_TARGETS.findall(Path(__file__).with_name("core.c").read_text())
    return [Campaign(f"core-{n}", starter(n), _noise, 0) for n in names]


def _noise() -> list[bytes]:
    """Return inputs for any target of the core: small numbers, which choose what it does, and noise."""
    chance = Random(1)
    return [bytes(chance.randrange(8) for _ in range(12)) + chance.randbytes(2000) for _ in range(32)]


def main(seconds: int, names: list[str]) -> int:
    """Fuzz, print a line for each target, return the exit status."""
    known = [*_python_campaigns(), *_core_campaigns()]
    if unknown := set(names) - {c.name for c in known}:
        print(f"no such target: {' '.join(sorted(unknown))}; there are {' '.join(c.name for c in known)}")
        return 2
    waiting = [c for c in known if not names or c.name in names]
    cpus = len(os.sched_getaffinity(0))
    for campaign in waiting:
        campaign.seconds = seconds * min(cpus, len(waiting)) / len(waiting)
    (FOLDER / "findings").mkdir(parents=True, exist_ok=True)
    found = 0
    running: dict[int, Campaign] = {}
    while waiting or running:
        while waiting and len(running) < cpus:
            campaign = waiting.pop(0)
            running[campaign.fork()] = campaign
        pid, status = os.wait()
        campaign = running.pop(pid)
        if campaign.ended(status):
            waiting.insert(0, campaign)
            continue
        found += len(campaign.findings)
        print(
            f"{campaign.name:17} {campaign.executions:>11,} executions  {len(campaign.findings)} findings", flush=True
        )
        for finding in campaign.findings:
            print(f"    {finding}", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
