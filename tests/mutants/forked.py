"""A plugin of pytest that judges many mutants of functions in one session: see mutants.py.

The tests run once as they are, to learn which functions each calls and how long it takes. Then a process is forked for
each mutant: functions get their mutated code, and the tests that call them run, the fastest first. What a fixture of
the session made before is not made again, so a mutant that lives here has not lived yet.
"""

from __future__ import annotations

import ast
import gc
import json
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType, FunctionType

import pytest

SECONDS = 60  # of a CPU, for the tests of a mutant
STUCK = 120  # seconds without using a CPU
MEMORY = 8 << 30  # bytes of address space

Place = tuple[str, str, int]  # of a function: file, qualified name, first line


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and all in it, in their order in the file."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)


def compiled(text: str, path: str) -> CodeType:
    """Compile a file, without annotations of functions."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        match node:
            case ast.arg():
                node.annotation = None
            case ast.FunctionDef():
                node.returns = None
    return compile(tree, path, "exec", dont_inherit=True)


def frame_of(code: CodeType) -> tuple[object, ...]:
    """Return what code does without the functions in it."""
    constants = [c.co_qualname if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return code.co_code, code.co_names, constants


def mutated(path: str, before: str, after: str) -> dict[Place, CodeType]:
    """Return the new code of the functions that differ; nothing if anything but functions differs."""
    old, new = ([*codes_in(compiled(text, path))] for text in (before, after))
    if [c.co_qualname for c in old] != [c.co_qualname for c in new]:
        return {}
    found = {}
    for a, b in zip(old, new, strict=True):
        if not a.co_flags & CO_OPTIMIZED and frame_of(a) != frame_of(b):
            return {}
        if a.co_flags & CO_OPTIMIZED and a != b:
            found[path, a.co_qualname, a.co_firstlineno] = b
    return found


def apply(codes: dict[Place, CodeType]) -> None:
    """Give functions their mutated code. Raises ValueError if their closures differ."""
    for function in gc.get_objects():
        if isinstance(function, FunctionType):
            code = function.__code__
            if new := codes.get((code.co_filename, code.co_qualname, code.co_firstlineno)):
                function.__code__ = new


class Judge:
    """Runs tests in forked processes."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self.seconds: dict[pytest.Item, float] = {}
        self.calls: dict[pytest.Item, set[Place]] = {}

    def learn(self) -> None:
        """Run all tests; forget those that fail or are skipped."""
        items = self._session.items
        for item, following in zip(items, [*items[1:], None], strict=True):
            seen = set[CodeType]()

            def note(frame: FrameType, event: str, _: object, seen: set[CodeType] = seen) -> None:
                if event == "call":
                    seen.add(frame.f_code)

            self._session.testsfailed, began = 0, time.process_time()
            threading.setprofile(note)
            sys.setprofile(note)
            self._run(item, following)
            sys.setprofile(None)
            threading.setprofile(None)
            if not self._session.testsfailed:
                self.seconds[item] = time.process_time() - began
                self.calls[item] = {(c.co_filename, c.co_qualname, c.co_firstlineno) for c in seen}

    def _run(self, item: pytest.Item, following: pytest.Item | None) -> None:
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)

    def tests_of(self, places: set[Place]) -> list[pytest.Item]:
        """Return the tests that call one of these functions, the fastest first."""
        return sorted((item for item, calls in self.calls.items() if calls & places), key=self.seconds.__getitem__)

    def killer(self, tests: Sequence[pytest.Item], change: Callable[[], None]) -> str | None:
        """Return the test that fails after a change in a process of its own, "" if none does in time, None if none."""
        out, into = os.pipe()
        if not (child := os.fork()):
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            os.setpgid(0, 0)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            try:
                change()
                for item, following in zip(tests, [*tests[1:], None], strict=True):
                    self._session.testsfailed = 0
                    self._run(item, following)
                    if self._session.testsfailed:
                        os.write(into, item.nodeid.encode())
                        break
                else:
                    os.write(into, b"-")
            except BaseException:  # not a test's: the mutant cannot be judged here
                os.write(into, b"-")
            finally:
                os._exit(0)
        os.close(into)
        self._wait(child, out)
        said = os.read(out, 1 << 12).decode()
        os.close(out)
        return None if said == "-" else said

    def _wait(self, child: int, out: int) -> None:
        """Wait until a process says something, ends, or waits for ever."""
        stat, used, moved = Path(f"/proc/{child}/stat"), 0, time.monotonic()
        while not select.select([out], [], [], 1)[0]:
            fields = stat.read_text().rpartition(")")[2].split()
            now = int(fields[11]) + int(fields[12])
            if now != used:
                used, moved = now, time.monotonic()
            elif time.monotonic() - moved > STUCK:
                break
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    """Judge the mutants that a file lists; write the verdicts to another."""
    work = Path(os.environ["VMFILTER_MUTANTS"])
    judge = Judge(session)
    judge.learn()
    good: dict[str, bool] = {}
    by_name = {item.nodeid: item for item in judge.calls}
    with open(work.with_suffix(".verdicts"), "w") as verdicts:
        for line in work.read_text().splitlines():
            mutant = json.loads(line)
            path = str(Path(mutant["file"]).resolve())
            codes = mutated(path, Path(path).read_text(), mutant["text"])
            tests = judge.tests_of(set(codes))
            verdict = judge.killer(tests, lambda codes=codes: apply(codes)) if tests else None
            if verdict:
                if verdict not in good:
                    good[verdict] = judge.killer([by_name[verdict]], lambda: None) is None
                if not good[verdict]:
                    verdict = None
            said = {"key": mutant["key"], "killer": verdict, "tests": len(tests), "functions": len(codes)}
            print(json.dumps(said), file=verdicts, flush=True)
    return True
