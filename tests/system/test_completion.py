"""What bash, zsh and fish complete with the scripts that are made from the parser; the real shells judge."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from command import Run

LINES = {
    "vmfilter conv": {"convert"},
    "vmfilter kdump sta": {"status"},
    "vmfilter help exit": {"exit-status"},
    "vmfilter completion f": {"fish"},
    "vmfilter filter --forc": {"--force"},
    "vmfilter verify --agai": {"--against"},
    "vmfilter filter --format e": {"elf"},
    "vmfilter filter -q --on-doubt tr": {"trust"},
    "vmfilter filter --compress zs": {"zstd"},
}
"""What is the only way to go on with a line."""


@pytest.fixture
def script(run: Run, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The script for the shell that is the parameter."""
    shell = request.param
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    ran = run("completion", shell)
    assert (ran.status, ran.err) == (0, "")
    path = tmp_path / f"completion.{shell}"
    path.write_text(ran.out)
    return path


@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash(script: Path) -> None:
    program = """
    . "$1"
    words=($2)
    COMP_WORDS=("${words[@]}")
    COMP_CWORD=$((${#words[@]} - 1))
    _vmfilter
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    for line, found in {
        **LINES,
        "vmfilter filter --format = e": {"elf"},
        "vmfilter filter -d zero,f": {"zero,free"},
    }.items():
        done = subprocess.run(["bash", "-c", program, "bash", script, line], capture_output=True, text=True, check=True)
        assert (set(done.stdout.split()), done.stderr) == (found, ""), line


@pytest.mark.parametrize("script", ["fish"], indirect=True)
def test_fish(script: Path) -> None:
    for line, found in LINES.items():
        command = ["fish", "--no-config", "--command", f"source {script}; complete -C '{line}'"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert {said.split("\t")[0] for said in done.stdout.splitlines()} == found, line


@pytest.mark.parametrize("script", ["zsh"], indirect=True)
def test_zsh(script: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TERM": "dumb", "PS1": "> "}
    with subprocess.Popen(
        ["zsh", "-f", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    ) as shell:
        os.close(theirs)

        def seen(text: str) -> bool:
            """Wait until the terminal shows a text."""
            shown, deadline = "", time.monotonic() + 20
            while text not in shown and time.monotonic() < deadline:
                if select.select([ours], [], [], 0.2)[0]:
                    with contextlib.suppress(OSError):
                        shown += os.read(ours, 1 << 16).decode(errors="replace")
            return text in shown

        os.write(ours, f"autoload -U compinit; compinit -u -D; . {script}; echo re''ady\n".encode())
        assert seen("ready")
        for line, (found,) in LINES.items():
            whole = f"{line.rpartition(' ')[0]} {found} "
            os.write(ours, b"\x15" + line.encode() + b"\t")
            assert seen(whole), line
        shell.kill()
    os.close(ours)


@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_every_option_of_every_command_is_in_the_script(script: Path, run: Run) -> None:
    said = script.read_text()
    for command in "filter", "convert", "verify", "stats", "estimate", "kdump crashkernel":
        words = run("help", *command.split()).out.split()
        options = {word.strip(",.;:") for word in words if word.startswith("--")}
        assert [option for option in options if option not in said] == [], command
