"""Mutation tests of classification, kernel, reader and writer: see run.sh.

universalmutator makes mutants of C and Python alike: it replaces operators and numbers, inverts conditions, removes
parts of lists, and whole lines. A mutant is one changed line. Lines are drawn with a fixed seed, and one mutant of each
that somebody could have written: it compiles without a warning, to other object code or bytecode, and all its names are
defined. Work is done on a copy of the tree, so nothing is left behind if it is interrupted. build/mutants/killed
remembers the mutants that were killed, and by which test: they do not run again while their file is the same, and these
tests run first. equivalent.toml has those that no test can kill. forked.py judges most mutants of functions in Python,
in tens of milliseconds each; those that live there, and all others, have a run of pytest of their own.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from hashlib import sha256
from io import StringIO
from itertools import islice
from pathlib import Path
from types import CodeType
from typing import NamedTuple

from universalmutator.mutator import mutants_regexp

ROOT = Path(__file__).parents[2]
KILLED = ROOT / "build/mutants/killed"
PYTHON = ROOT / ".venv/bin/python"
SEED = 15
MEMORY = 8 << 30  # bytes of address space of a test run: some mutants never stop to allocate
SECONDS = 30  # of a CPU, for a file of tests: three times what the longest takes
SESSION = 7200  # of a CPU, for all tests once, and forked processes apart
FIRST = 8  # tests that killed most run before the others
TOO_SLOW = "too slow"

DOUBTS = [
    "kernel/test_doubts.py::test_the_lists_lead_to_the_same_zones_as_the_symbol",
    "kernel/test_doubts.py::test_the_report_compares_free_pages_with_the_kernels_own_count",
    "kernel/test_doubts.py",
]
TESTS = {
    "csrc/check.c": ["kernel/test_doubts.py::test_each_rule", *DOUBTS],
    "csrc/classify.c": [
        "kernel/test_classify.py",
        "kernel/test_tails.py",
        "kernel/test_ahead.py",
        "kernel/test_zone_bits.py",
        "system/test_stats.py",
    ],
    "vmfilter/pages/classify.py": ["kernel/test_classify.py", "kernel/test_ahead.py", "kernel/test_kinds.py"],
    "vmfilter/pages/memmap.py": ["kernel/test_classify.py", "kernel/test_tails.py", "kernel/test_ahead.py"],
    "vmfilter/kernel/poison.py": ["kernel/test_tails.py"],
    "vmfilter/compress/ahead.py": ["kernel/test_ahead.py"],
    "vmfilter/compress/thread.py": ["unit/test_thread.py"],
    "vmfilter/pages/doubts.py": DOUBTS,
    "vmfilter/pages/exclude.py": ["formats/test_first_frame.py"],
    "vmfilter/kernel/struct_page.py": ["kernel/test_classify.py", "kernel/test_published.py"],
    "vmfilter/kernel/memory_model.py": [
        "kernel/test_page_tables.py",
        "kernel/test_coverage.py",
        "kernel/test_published.py",
    ],
    "vmfilter/kernel/page_tables.py": ["kernel/test_page_tables.py"],
    "vmfilter/kernel/search.py": ["kernel/test_search.py", "kernel/test_two_kernels.py"],
    "vmfilter/kernel/kernel.py": ["kernel/test_search.py"],
    "vmfilter/kernel/texts.py": ["kernel/test_search.py", "kernel/test_two_kernels.py"],
    "vmfilter/kernel/witnesses.py": ["kernel/test_two_kernels.py"],
    "vmfilter/kernel/zone_bits.py": ["kernel/test_zone_bits.py"],
    "vmfilter/measure/memory_map.py": ["unit/test_memory_map.py"],
    "vmfilter/measure/diff.py": ["system/test_diff.py"],
    "vmfilter/kernel/types/area.py": ["kernel/test_kallsyms.py"],
    "vmfilter/kernel/types/btf.py": ["kernel/test_btf.py", "kernel/test_modules.py"],
    "vmfilter/kernel/types/kallsyms.py": ["kernel/test_kallsyms.py"],
    "vmfilter/kernel/types/modules.py": ["kernel/test_modules.py"],
    "vmfilter/kernel/types/places.py": ["kernel/test_kallsyms.py"],
    "vmfilter/kernel/types/structures.py": ["kernel/test_btf.py", "kernel/test_tasks.py"],
    "vmfilter/kernel/types/symbols.py": ["kernel/test_kallsyms.py", "kernel/test_modules.py"],
    "vmfilter/crash/backtrace.py": ["kernel/test_tasks.py"],
    "vmfilter/crash/cpus.py": ["kernel/test_tasks.py"],
    "vmfilter/crash/orc.py": ["kernel/test_tasks.py"],
    "vmfilter/crash/summary.py": ["kernel/test_tasks.py"],
    "vmfilter/crash/tasks.py": ["kernel/test_tasks.py"],
    "vmfilter/crash/unwind.py": ["kernel/test_tasks.py"],
    "vmfilter/crash/unwind_x86.py": ["kernel/test_tasks.py"],
    "vmfilter/kernel/zones.py": DOUBTS,
    "vmfilter/reader/checksums.py": ["formats/test_checksums.py"],
    "vmfilter/reader/dump.py": [
        "system/test_unreadable.py",
        "system/test_info.py",
        "kernel/test_given_vmcoreinfo.py",
        "formats/test_elf.py",
        "formats/test_holes.py",
    ],
    "vmfilter/reader/elf.py": ["formats/test_elf.py"],
    "vmfilter/reader/flattened.py": ["unit/test_source.py", "formats/test_formats.py"],
    "vmfilter/reader/foreign.py": ["formats/test_foreign.py"],
    "vmfilter/reader/kcore.py": ["system/test_kcore.py"],
    "vmfilter/reader/notes.py": ["formats/test_writer.py"],
    "vmfilter/reader/open.py": ["formats/test_foreign.py", "formats/test_wrapped.py", "formats/test_split.py"],
    "vmfilter/reader/segments.py": ["formats/test_elf.py", "formats/test_holes.py"],
    "vmfilter/reader/source.py": ["unit/test_source.py", "formats/test_holes.py"],
    "vmfilter/reader/stream.py": ["formats/test_wrapped.py"],
    "vmfilter/reader/kdump/check.py": ["system/test_verify.py"],
    "vmfilter/reader/kdump/contents.py": ["system/test_verify.py"],
    "vmfilter/reader/kdump/descriptors.py": ["formats/test_first_frame.py", "formats/test_truncated.py"],
    "vmfilter/reader/kdump/dump.py": ["formats/test_first_frame.py", "formats/test_kdump.py"],
    "vmfilter/reader/kdump/file.py": ["formats/test_first_frame.py", "formats/test_kdump.py"],
    "vmfilter/reader/kdump/headers.py": ["formats/test_first_frame.py", "formats/test_kdump.py"],
    "vmfilter/reader/kdump/page_index.py": ["formats/test_first_frame.py", "formats/test_kdump.py"],
    "vmfilter/reader/kdump/split_set.py": ["formats/test_split.py"],
    "vmfilter/writer/base.py": ["formats/test_writer.py"],
    "vmfilter/writer/descriptors.py": ["formats/test_writer.py"],
    "vmfilter/writer/elf.py": ["formats/test_elf.py", "formats/test_formats.py"],
    "vmfilter/writer/kdump.py": ["formats/test_writer.py"],
    "vmfilter/writer/notes.py": ["kernel/test_search.py", "formats/test_writer.py"],
    "vmfilter/writer/output.py": ["formats/test_writer.py"],
    "vmfilter/writer/split.py": ["formats/test_split.py"],
    "vmfilter/writer/transport/base.py": ["formats/test_writer.py", "formats/test_split.py"],
    "vmfilter/writer/transport/direct_io.py": ["unit/test_direct_io.py"],
    "vmfilter/writer/transport/discard.py": ["system/test_cli.py"],
    "vmfilter/writer/transport/file.py": ["unit/test_direct_io.py", "system/test_hostile_folder.py"],
    "vmfilter/writer/transport/flattened.py": ["formats/test_formats.py"],
    "vmfilter/writer/transport/hashed.py": ["system/test_sha256.py", "system/test_hostile_folder.py"],
    "vmfilter/writer/transport/stream.py": ["formats/test_formats.py"],
    "vmfilter/writer/transport/summed.py": ["formats/test_checksums.py"],
}
"""The modules, and few fast tests that notice most."""
OF_KERNEL = ["kernel/test_search.py", "kernel/test_real.py", "kernel/test_kinds.py", "kernel/test_machines.py"]
OF_FILES = ["formats/test_kdump.py", "formats/test_writer.py", "formats/test_formats.py", "formats/test_elf.py"]
OF_FILES += ["formats/test_holes.py", "formats/test_truncated.py", "formats/test_split.py", "formats/test_checksums.py"]
OF_FILES += ["system/test_bad_input.py", "system/test_incomplete.py", "system/test_unreadable.py", "system/test_cli.py"]
ALL_TESTS = {
    "csrc": OF_KERNEL,
    "pages": [*OF_KERNEL, "kernel/test_pmem.py", "formats/test_writer.py", "system/test_unreadable.py"],
    "kernel": ["kernel/test_classify.py", *OF_KERNEL, "system/test_info.py", "system/test_bad_input.py"],
    "reader": [*OF_FILES, "system/test_verify.py", "kernel/test_pmem.py", "kernel/test_kinds.py"],
    "writer": [*OF_FILES, "system/test_verify.py", "system/test_makedumpfile.py"],
}
"""The tests that a mutant must pass as well to have lived, by room."""
SLOW = "kernel/test_doubts.py::test_no_wrong_field_loses_a_page_of_the_kernel_or_keeps_many_others_in_silence"


EQUIVALENT = tomllib.loads(Path(__file__).with_name("equivalent.toml").read_text())["mutant"]


class Copy:
    """A copy of the tree in which mutants are built and tested.

    Attributes:
        root: the copy.
        failure: the test that failed in the last call of passes(); empty if none is known.
        killed: the mutants that were, and by which test.

    """

    def __init__(self, folder: Path, builds: bool) -> None:
        """Copy the tree to a folder, and build its extension if asked."""
        self.root = folder / "tree"
        skipped = shutil.ignore_patterns(".*", "build", "testdata", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, self.root, ignore=skipped)
        (self.root / "testdata").symlink_to(ROOT / "testdata")
        self._scratch = folder / "scratch"
        self.failure, self._good = "", set[str]()
        self.killed: dict[str, str] = {}
        if KILLED.exists():
            self.killed = dict(line.split("\t") for line in KILLED.read_text().splitlines())
        paths = f"{self.root}:{Path(__file__).parent}"
        self._environment = {**os.environ, "PYTHONPATH": paths, "VMFILTER_CFLAGS": "-Werror -g0"}
        # A mutant may have the size and the time of the file before it, whose bytecode it must not have.
        self._environment["PYTHONDONTWRITEBYTECODE"] = "1"
        self._commands: list[str] = []
        if builds:
            built, output = self.run([PYTHON, "setup.py", "build_ext", "--inplace", "--force"], 600)
            if not built:
                raise SystemExit(output)
            self._commands = [line for line in output.splitlines() if " -c " in line or " -shared " in line]
        self.run([PYTHON, "-m", "compileall", "-q", "vmfilter", "tests/support"], 600)
        self._extension = next(self.root.glob("vmfilter/_core*.so"))

    def run(self, command: Sequence[str | Path], seconds: int) -> tuple[bool, str]:
        """Run a command in the copy; return whether it succeeds in these seconds of a CPU, and its output."""

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))

        with subprocess.Popen(
            [str(c) for c in command],
            cwd=self.root,
            env=self._environment,
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=limit,
        ) as process:
            try:
                output, _ = process.communicate(timeout=60 + 5 * seconds)  # on a busy machine
                return process.returncode == 0, output
            except subprocess.TimeoutExpired:
                return False, TOO_SLOW
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # and what the tests started

    def passes(self, tests: Sequence[str]) -> bool:
        """Return whether tests pass in bounded time of a CPU, and do not wait for ever."""
        self.failure = ""
        options = ["-q", "-x", "--tb=line", "-m", "not crash and not lab", "-p", "no:cacheprovider"]
        killers = Counter(k for k in self.killed.values() if k.partition("::")[0] in tests)
        first = [killer for killer, _ in killers.most_common(FIRST)]
        command = [PYTHON, "-m", "pytest", *options, f"--basetemp={self._scratch}", *first, *tests]
        for _ in range(2):  # the machine may have stood still
            passed, output = self.run(command, SECONDS * len(tests))
            shutil.rmtree(self._scratch, ignore_errors=True)
            if output != TOO_SLOW:
                break
        if named := re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE):
            self.failure = named[1]
        return passed

    def check(self, failure: str) -> None:
        """Exit if a test fails without any mutant."""
        if failure and failure not in self._good:
            if not self.passes([failure]):
                raise SystemExit(f"{failure} fails without any mutant")
            self._good.add(failure)

    def keep(self, mutant: str, failure: str) -> None:
        """Remember that a test killed a mutant."""
        self.killed[mutant] = failure
        with KILLED.open("a") as file:
            print(mutant, failure, sep="\t", file=file)

    def fork(self, mutants: Sequence[dict[str, str]], tests: Sequence[str]) -> None:
        """Judge mutants of functions in one session: see forked.py."""
        work = self._scratch.with_name("mutants")
        work.write_text("".join(f"{json.dumps(mutant)}\n" for mutant in mutants))
        self._environment["VMFILTER_MUTANTS"] = str(work)
        options = ["-p", "forked", "-p", "no:terminal", "-p", "no:xdist", "-p", "no:cacheprovider"]
        options += ["-m", "not crash and not lab", f"--deselect=tests/{SLOW}", f"--basetemp={self._scratch}"]
        _, output = self.run([PYTHON, "-m", "pytest", *options, *tests], SESSION)
        shutil.rmtree(self._scratch, ignore_errors=True)
        verdicts = work.with_suffix(".verdicts")
        if not verdicts.exists():
            raise SystemExit(output)
        for line in verdicts.read_text().splitlines():
            verdict = json.loads(line)
            if verdict["killer"] is not None:
                print(verdict["key"], f"killed by {verdict['killer'] or 'time'}", flush=True)
                self.keep(verdict["key"], verdict["killer"])

    def compile(self, module: str) -> bytes:
        """Compile a C file as CI does; return the object code, or nothing if that fails."""
        (command,) = (c for c in self._commands if f" -c {module} " in c)
        compiled, _ = self.run(shlex.split(command), 60)
        return (self.root / command.split(" -o ")[1].split()[0]).read_bytes() if compiled else b""

    @contextmanager
    def linked(self) -> Iterator[None]:
        """Make the extension of the object code; afterwards it is the one without mutants."""
        (command,) = (c for c in self._commands if " -shared " in c)
        kept = self._extension.rename(f"{self._extension}.kept")
        words = shlex.split(command)
        words[words.index("-o") + 1] = str(self._extension)
        self.run(words, 60)
        yield
        kept.rename(self._extension)


class Meaning(NamedTuple):
    """What a Python file does.

    Attributes:
        code: bytecode, without annotations, docstrings and imports.
        names: all names in it.
        undefined: names that it uses and does not define.

    """

    code: object
    names: set[str]
    undefined: set[str]


def meaning(text: str) -> Meaning:
    """Return what the text of a Python file means; raise SyntaxError if it is none."""
    tree = ast.parse(text)
    used: set[str] = set()
    defined = set(dir(builtins))
    attributes: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name) | ast.ClassDef(name=name):
                defined.add(name)
            case ast.alias():
                defined.add(node.asname or node.name)
            case ast.arg():
                node.annotation = None
                defined.add(node.arg)
            case ast.FunctionDef():
                node.returns = None
                defined.add(node.name)
            case ast.AnnAssign():
                node.annotation = ast.Constant(0)
            case ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                attributes.add(name)
            case ast.ExceptHandler(name=str(name)):
                defined.add(name)
        for field in "body", "orelse", "finalbody":
            if isinstance(statements := getattr(node, field, None), list):
                does = [s for s in statements if not _does_nothing(s)]
                setattr(node, field, does or [ast.Pass()] * (field == "body"))
    code = _shape(compile(ast.fix_missing_locations(tree), "", "exec"))
    return Meaning(code, used | defined | attributes, used - defined)


def _does_nothing(statement: ast.stmt) -> bool:
    match statement:
        case ast.Pass() | ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom():
            return True
    return False


def _shape(code: CodeType) -> tuple[object, ...]:
    constants = [_shape(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return code.co_code, code.co_exceptiontable, code.co_names, code.co_varnames, constants


class Mutant(NamedTuple):
    """A line that is changed, from 1 on, and what it becomes."""

    number: int
    line: str


class Module:
    """One file, and its mutants.

    Attributes:
        name: its path.
        equivalent: how many mutants of the last draw no test can kill.

    """

    def __init__(self, name: str, copy: Copy) -> None:
        self.name, self._copy = name, copy
        self._path = copy.root / name
        self._text = self._path.read_text()
        self._lines = self._text.splitlines(keepends=True)
        self.equivalent = 0
        self._is_c = name.endswith(".c")
        self._equivalent = {(m["line"], m["becomes"]) for m in EQUIVALENT if m["file"] == name}
        self._same = Meaning(copy.compile(name), set(), set()) if self._is_c else meaning(self._text)

    def draw(self, count: int) -> list[Mutant]:
        """Return this many mutants, without those that no test can kill."""
        drawn = [m for m in islice(self._drawn(), count) if not self._is_equivalent(m)]
        self.equivalent = count - len(drawn)
        return drawn

    def survivors(self, drawn: Sequence[Mutant]) -> list[Mutant]:
        """Run the module's tests on mutants; return the survivors."""
        return [m for m in drawn if not self._is_killed(m, TESTS[self.name], f"--deselect=tests/{SLOW}")]

    def for_fork(self, drawn: Sequence[Mutant]) -> Iterator[dict[str, str]]:
        """Yield the mutants of Python that are not known to be killed, for Copy.fork()."""
        for mutant in drawn:
            if not self._is_c and (key := self._key(mutant)) not in self._copy.killed:
                yield {"key": key, "file": self.name, "text": self._text_of(mutant)}

    def is_killed(self, mutant: Mutant) -> bool:
        """Return whether the other tests of the room notice a mutant."""
        others = ALL_TESTS[self.name.split("/")[-2 if self._is_c else 1]]
        slow = [SLOW] * (DOUBTS[-1] in TESTS[self.name])
        return self._is_killed(mutant, [*slow, *(test for test in others if test not in TESTS[self.name])])

    def _drawn(self) -> Iterator[Mutant]:
        """Draw lines, and one plausible mutant of each."""
        rules = ["universal.rules", *(["c_like.rules", "c.rules"] if self._is_c else ["python.rules"])]
        of_line: dict[int, list[str]] = {}
        with redirect_stdout(StringIO()):
            for number, line, *_ in mutants_regexp(self._lines, rules, ignorePatterns=[], ignoreStringOnly=True):
                of_line.setdefault(number, []).append(line)
        chance = random.Random(f"{SEED} {self.name}")
        for number in chance.sample(sorted(of_line), len(of_line)):
            lines = of_line[number]
            for line in chance.sample(lines, len(lines)):
                mutant = Mutant(number, line)
                with self._changed(mutant) as text:
                    plausible = self._is_plausible(text)
                if plausible:
                    yield mutant
                    break

    @contextmanager
    def _changed(self, mutant: Mutant) -> Iterator[str]:
        """Change the line; the file is as it was afterwards, and its bytecode valid."""
        before = os.stat(self._path)
        text = self._text_of(mutant)
        self._path.write_text(text)
        yield text
        self._path.write_text(self._text)
        os.utime(self._path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def _is_plausible(self, text: str) -> bool:
        """Return whether this can be built, and does something else."""
        if self._is_c:
            return self._copy.compile(self.name) not in (b"", self._same.code)
        try:
            new = meaning(text)
        except SyntaxError:
            return False
        return new.code != self._same.code and new.names <= self._same.names and new.undefined <= self._same.undefined

    def _text_of(self, mutant: Mutant) -> str:
        return "".join([*self._lines[: mutant.number - 1], mutant.line, *self._lines[mutant.number :]])

    def _key(self, mutant: Mutant) -> str:
        digest = sha256(f"{mutant}{self._text}".encode()).hexdigest()[:16]
        return f"{self.name}:{mutant.number}:{digest}"

    def _is_equivalent(self, mutant: Mutant) -> bool:
        return (self._lines[mutant.number - 1].strip(), mutant.line.strip()) in self._equivalent

    def _is_killed(self, mutant: Mutant, tests: Sequence[str], *options: str) -> bool:
        """Return whether a test fails that passes without the mutant, now or in an earlier run."""
        key = self._key(mutant)
        if key in self._copy.killed:
            return True
        tests = [f"tests/{test}" for test in tests]
        with self._changed(mutant):
            if self._is_c:
                self._copy.compile(self.name)
                with self._copy.linked():
                    killed = not self._copy.passes([*options, *tests])
            else:
                killed = not self._copy.passes([*options, *tests])
        failure = self._copy.failure
        print(f"{self.name}:{mutant.number}", f"killed by {failure or 'time'}" if killed else "lives", flush=True)
        if killed:
            self._copy.check(failure)
            self._copy.keep(key, failure)
        return killed

    def show(self, mutant: Mutant) -> str:
        return f"{self.name}:{mutant.number}\n-{self._lines[mutant.number - 1]}+{mutant.line}"


def main() -> None:
    """Test mutants; print those that survive the tests of their module, then a table, and those that survive all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int, nargs="?", default=300)
    parser.add_argument("modules", nargs="*", metavar="module")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = arguments.modules or list(TESTS)
        copy = Copy(Path(folder), builds=any(name.endswith(".c") for name in names))
        lines = {name: len((ROOT / name).read_text().splitlines()) for name in TESTS}
        per_line = arguments.count / sum(lines.values())
        counts = {Module(name, copy): max(2, round(per_line * lines[name])) for name in names}
        drawn = {module: module.draw(count) for module, count in counts.items()}
        tests = sorted({f"tests/{test.partition('::')[0]}" for name in names for test in TESTS[name]})
        copy.fork([mutant for module, mutants in drawn.items() for mutant in module.for_fork(mutants)], tests)
        lived: dict[Module, list[Mutant]] = {}
        for module, count in counts.items():
            lived[module] = module.survivors(drawn[module])
            killed = count - module.equivalent - len(lived[module])
            print(f"{module.name}: {killed} of {count} killed, {module.equivalent} equivalent", flush=True)
            print(*(module.show(m) for m in lived[module]), sep="\n", flush=True)
        print("| module | mutants | equivalent | live |\n|---|---:|---:|---:|", flush=True)
        for module, count in counts.items():
            lived[module] = [m for m in lived[module] if not module.is_killed(m)]
            print(f"| `{module.name}` | {count} | {module.equivalent} | {len(lived[module])} |", flush=True)
    equivalent, alive = sum(m.equivalent for m in lived), sum(map(len, lived.values()))
    print(f"| all | {sum(counts.values())} | {equivalent} | {alive} |")
    print(*(module.show(m) for module, mutants in lived.items() for m in mutants), sep="\n")


if __name__ == "__main__":
    main()
