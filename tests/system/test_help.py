"""What help prints: examples that parse, groups, statuses in one place."""

from __future__ import annotations

import shlex

import pytest
from command import Run, every

from vmfilter.cli.command import parser_of
from vmfilter.errors import EXIT_STATUSES

COMMANDS = {path: parser for path, parser in every(parser_of("")) if path != "makedumpfile"}


def examples(text: str) -> list[str]:
    shown = text.partition("\nexamples:\n")[2].partition("\n\n")[0].splitlines()
    return [line.strip() for line in shown[::2]]


@pytest.mark.parametrize("path", COMMANDS)
def test_each_command_has_examples_that_it_understands(path: str, run: Run) -> None:
    text = run(*path.split(), "--help").out
    assert text == run("help", *path.split()).out
    shown = examples(text)
    assert shown or COMMANDS[path].commands()
    for line in shown:
        command = next(
            part for part in line.removeprefix(". <(").rstrip(")").split(" | ") if part.startswith("vmfilter")
        )
        words = shlex.split(command.partition(" > ")[0])[1:]
        parsed, rest = parser_of(words[0]).parse_known_args(words)
        assert not rest
        assert callable(parsed.run)
        assert line.startswith(("vmfilter", ". <(vmfilter"))


def test_the_usage_of_a_command_is_one_line(run: Run) -> None:
    for path in COMMANDS:
        usage, error = run(*path.split(), "--no-such-option").err.splitlines()
        assert usage.startswith(f"usage: vmfilter {path} [OPTIONS]")
        assert error.startswith(f"vmfilter: {path}: unknown option --no-such-option; ")


def test_the_options_of_filter_are_in_groups(run: Run) -> None:
    text = run("filter", "--help").out
    titles = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    for title in "what is excluded:", "the new dump:", "threads and memory:", "if something fails:":
        assert title in titles


def test_exit_statuses_are_in_one_place(run: Run) -> None:
    text = run("help", "exit-status").out
    for status, meaning in EXIT_STATUSES.items():
        assert f"{status:8} {meaning}\n" in text
    for command in "verify", "diff", "estimate", "kdump status", "kdump crashkernel":
        assert f"vmfilter {command}:\n0 " in text
    assert "vmfilter help exit-status" in run("filter", "--help").out


def test_help_of_makedumpfile_is_its_own(run: Run) -> None:
    assert "--dump-dmesg" in run("help", "makedumpfile").out


def test_an_unknown_topic_is_one_line(run: Run) -> None:
    ran = run("help", "kdump", "statsu")
    assert (ran.status, ran.err) == (2, "vmfilter: vmfilter kdump has no command 'statsu'; did you mean status?\n")


def test_the_help_of_a_command_names_the_new_dump_as_its_usage_does(run: Run) -> None:
    for command, new in ("filter", "DUMP"), ("rearrange", "DUMP"), ("convert", "NEW"), ("erase", "NEW"):
        text = " ".join(run(command, "--help").out.split())
        assert f"replace {new} if it exists" in text
        assert f"also write {new}.sha256" in text


def test_exit_statuses_are_shown_or_said_to_be_elsewhere(run: Run) -> None:
    elsewhere = "exit status: vmfilter help exit-status\n"
    assert not run("--help").out.endswith(elsewhere)
    for path in COMMANDS:
        assert run(*path.split(), "--help").out.endswith(elsewhere)


def test_remove_does_not_say_that_it_installs(run: Run) -> None:
    assert "Remove what vmfilter kdump install put into a system" in run("kdump", "remove", "--help").out
