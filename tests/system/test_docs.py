"""What the documents say is true: names, links, commands and their output, messages."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crashbuilder import scene
from logbuilder import Message, Ring

import vmfilter.errors
from vmfilter.cli.command import parser_of
from vmfilter.makedumpfile.options import OPTIONS

ROOT = Path(__file__).parents[2]
PUBLIC = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [*PUBLIC, ROOT / "bench" / "README.md", ROOT / "testdata" / "README.md"]
COLUMNS = 100
VMCORES = {
    "vmcore": "x86_64-6.12-small",
    "dimm": "x86_64-5.10-dimm",
    "pmem": "x86_64-6.12-pmem2",
    "qemu": "x86_64-6.12-qemu",
    "two": "x86_64-6.12-two-kernels",
}
"""Names in the documents' commands of vmcores of testdata/."""
PANICS = {
    "monday": "Fatal exception",
    "tuesday": "Fatal exception",
    "wednesday": "hung_task: blocked tasks",
}
"""Names in docs/api.md of dumps, in a folder, and why their kernels panicked."""
WHERE = "/var/crash"
"""Folder where the commands run according to the documents."""
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))


def test_the_architecture_names_the_existing_modules() -> None:
    drawing = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    named = set(re.findall(r"\w+\.(?:py|[ch])\b", drawing)) - {"setup.py"}
    rooms = [p for p in (ROOT / "vmfilter").rglob("*.py") if p.parent.name not in ("arch", "cli") and p.stem[0] != "_"]
    there = {p.name for p in (*rooms, *(ROOT / "csrc").glob("*.c"))}
    assert there - named == set()
    others = {p.name for folder in ("vmfilter/cli", "csrc") for p in (ROOT / folder).iterdir()}
    assert named - there - others == set()


# Form


@pytest.mark.parametrize("document", PUBLIC, ids=lambda p: p.name)
def test_lines_fit_100_columns(document: Path) -> None:
    """All lines but output of programs, which is shown unchanged."""
    text = re.sub(r"^```console\n.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert [line for line in text.splitlines() if len(line) > COLUMNS] == []


def anchors(document: Path) -> set[str]:
    """Return the anchors of headings as GitHub generates them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not link.startswith("https:"):
            name, _, anchor = link.partition("#")
            target = (document.parent / name).resolve() if name else document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@each_document
def test_the_paths_in_a_document_exist(document: Path) -> None:
    pattern = r"(?<![\w/.])(?:docs|tests|bench|testdata|csrc|fuzz)/[\w./-]*\w"
    named = set(re.findall(pattern, document.read_text()))
    assert [path for path in sorted(named) if "NAME" not in path and not (ROOT / path).exists()] == []


# Commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, real: Callable[[str], Path]) -> Path:
    """Folder where the commands of all documents run, with the files that quickstart.sh leaves."""
    made = tmp_path_factory.mktemp("documents")
    for name, vmcore in VMCORES.items():
        shutil.copy(real(vmcore), made / name)
    crashes = made / "crashes"
    crashes.mkdir()
    for name, panic in PANICS.items():
        vmcore = scene("x86_64")
        ring = Ring(vmcore.s)
        for message in (
            Message(b"Linux version 6.12", 0, level=5),
            Message(b"BUG: unable to handle page fault for address: ffffffffffffff10", 77_000_000_000, level=1),
            Message(f"Kernel panic - not syncing: {panic}".encode(), 77_100_000_000, level=0),
        ):
            ring.put(message)
        ring.write()
        vmcore.s.write(crashes / name)
    (crashes / "notes.txt").write_text("rebooted it twice")
    return made


def on_screen(command: list[str], folder: Path) -> str:
    """Run a command as a reader does, on a terminal of 80 columns; return what is on the screen at the end."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "80"}
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        printed = b""
        with contextlib.suppress(OSError):  # EIO: the terminal is closed
            while data := os.read(ours, 1 << 16):
                printed += data
        process.wait()
    os.close(ours)
    return left_on_screen(printed.decode())


def left_on_screen(printed: str) -> str:
    """Return what is on the screen at the end."""
    lines = printed.replace("\x1b[K", "").split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)


def stable(text: str) -> str:
    """Return output without what depends on the machine or on the version of a codec's library.

    A bar is shorter if the seconds before it have more digits.
    """
    text = re.sub(r"\d+ s  \[#+\]$", "N s  [#]", text, flags=re.MULTILINE)
    return re.sub(r"\d+ bytes \([\d.]+ MiB(, [\d.]+%)?", "N bytes (N MiB", text, flags=re.MULTILINE)


def blocks(document: Path, kind: str) -> list[str]:
    """Return the blocks of code in a document."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", PUBLIC, ids=lambda p: p.name)
def test_commands_print_what_a_document_shows(document: Path, folder: Path) -> None:
    """The commands of a document run one after the other: later ones read files of earlier ones."""
    where = folder / f"{document.stem} commands"
    where.mkdir()
    for name in VMCORES:
        (where / name).symlink_to(folder / name)
    for text in blocks(document, "console"):
        for command, shown in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
            printed = on_screen(["sh", "-c", command], where).replace(str(where), WHERE)
            assert stable(printed) == stable(shown), command


def test_the_recording_shows_the_tutorial() -> None:
    """If not, run `sh docs/cast.sh`."""
    recorded = (ROOT / "docs" / "tutorial.cast").read_text().splitlines()[1:]
    printed = "".join(text for _, _, text in map(json.loads, recorded))
    shown = "".join(text for text in blocks(ROOT / "docs" / "tutorial.md", "console") if "$ drgn" not in text)
    assert stable(left_on_screen(printed)) == stable(shown)


def programs(document: Path) -> list[tuple[str, str]]:
    """Return the programs in a document, each with what the block after it says that it prints."""
    return re.findall(r"^```python\n(.*?)^```\n(?:\n```\n(.*?)^```$)?", document.read_text(), re.MULTILINE | re.DOTALL)


each_document_with_programs = pytest.mark.parametrize("document", [*filter(programs, PUBLIC)], ids=lambda p: p.name)


@each_document_with_programs
def test_programs_print_what_a_document_shows(document: Path, folder: Path) -> None:
    """If nothing is shown, anything but an exception."""
    for program, shown in programs(document):
        printed = on_screen([sys.executable, "-c", program], folder)
        assert printed == shown or (not shown and "Traceback" not in printed), program


def test_mypy_accepts_the_programs_of_the_page_for_programs(tmp_path: Path) -> None:
    for i, (program, _) in enumerate(programs(ROOT / "docs" / "api.md")):
        (tmp_path / f"program_{i}.py").write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Success"), done.stdout + done.stderr


def test_the_reference_is_what_the_docstrings_say(tmp_path: Path) -> None:
    """If not, run `.venv/bin/python docs/reference.py`."""
    subprocess.run([sys.executable, str(ROOT / "docs" / "reference.py"), str(tmp_path / "made")], check=True)
    assert (tmp_path / "made").read_text() == (ROOT / "docs" / "api-reference.md").read_text()


def test_the_support_matrix_is_what_testdata_proves(tmp_path: Path) -> None:
    """If not, run `.venv/bin/python docs/support_matrix.py`."""
    subprocess.run([sys.executable, str(ROOT / "docs" / "support_matrix.py"), str(tmp_path / "made")], check=True)
    assert (tmp_path / "made").read_text() == (ROOT / "docs" / "support-matrix.md").read_text()


def test_readme_names_existing_options() -> None:
    """makedumpfile's options and ours."""
    section = (ROOT / "README.md").read_text().partition("## From makedumpfile")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", section, re.MULTILINE)[2:]
    theirs = {name for left, _ in rows for name in re.findall(r"(?<![\w-])--?[\w-]+", left)}
    assert theirs - {option.name for option in OPTIONS} == set()
    ours = " ".join(right for _, right in rows)
    commands = parser_of("").commands()
    assert set(re.findall(r"vmfilter ([\w-]+)", ours)) - set(commands) == set()
    helps = "".join(command.format_help() for command in commands.values())
    assert [name for name in re.findall(r"(?<![\w-])--[\w-]+", ours) if f"{name} " not in helps] == []
    assert len(rows) > 10


# Messages


def messages() -> Iterator[tuple[str, str]]:
    """Yield each failure in the source as its place and its message, with … for variable parts."""
    kinds = {name for name, kind in vars(vmfilter.errors).items() if isinstance(kind, type)}
    for path in sorted((ROOT / "vmfilter").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds and node.args:
                text = words(node.args[-1])
                if len(re.findall(r"[a-z]{2,}", text)) > 2:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", text


def words(node: ast.expr) -> str:
    """Return the text of an expression that is a string, as the command line has it."""
    if isinstance(node, ast.JoinedStr):
        return "".join(words(part) for part in node.values)
    if isinstance(node, ast.FormattedValue) and re.match(r"option\('", ast.unparse(node.value)):
        name, *value = (ast.literal_eval(argument) for argument in node.value.args)  # type: ignore[attr-defined]
        return " ".join([f"--{name.replace('_', '-')}", *(str(one) for one in value if one is not True)])
    return str(node.value) if isinstance(node, ast.Constant) else "…"


def shown_messages() -> list[str]:
    """Return the messages that begin an item or a row of the support guide."""
    guide = (ROOT / "docs" / "guide-support.md").read_text()
    return re.findall(r"^(?:- |\| )`([^`]+)`", guide, re.MULTILINE)


def occurs(shown: str, text: str) -> bool:
    return re.search(".*".join(map(re.escape, shown.split("…"))), text) is not None


def test_each_failure_is_in_the_support_guide() -> None:
    failures, shown = dict(messages()), shown_messages()
    assert {at: text for at, text in failures.items() if not any(occurs(s, text) for s in shown)} == {}
    assert len(failures) > 100


def test_the_support_guide_shows_existing_messages() -> None:
    nodes = (node for path in (ROOT / "vmfilter").rglob("*.py") for node in ast.walk(ast.parse(path.read_text())))
    texts = {words(n) for n in nodes if isinstance(n, ast.JoinedStr | ast.Constant)}
    assert [shown for shown in shown_messages() if not any(occurs(shown, text) for text in texts)] == []
