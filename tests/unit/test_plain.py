"""Command lines that are parsed without argparse mean what argparse says they mean."""

from __future__ import annotations

from argparse import Action

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfilter.cli.command import parser_of
from vmfilter.cli.parser import Parser
from vmfilter.cli.plain import COMMANDS, parsed

PARSERS = {name: parser for name, parser in parser_of("").commands().items() if name in COMMANDS}
VALUES = [
    "31",
    "zero,free",
    "lzo",
    "zstd:9",
    "elf",
    "json",
    "keep",
    "2",
    "64M",
    "0x1000",
    "-",
    "",
    "x y",
    "-1",
    "--",
    "é",
]
PLAIN = [
    ["filter", "/proc/vmcore", "dump"],
    ["filter", "-q", "--force", "-d", "31", "--compress=lzo", "-j", "2", "vmcore", "-"],
    ["filter", "vmcore", "dump", "--dry-run"],
    ["filter", "--dry-run", "vmcore"],
    ["filter", "--split", "--parts", "2", "a", "b", "c", "d"],
    ["filter", "--extension", "keys", "--extension", "gpu", "a", "b"],
    ["convert", "--format", "elf", "dump", "new"],
    ["reassemble", "a", "b", "dump"],
    ["info", "a", "b"],
    ["mem-usage"],
    ["dmesg", "--vmcoreinfo-at", "0x1000", "dump"],
    ["struct", "dump", "page"],
    ["symbols", "dump"],
    ["symbols", "dump", "init_*"],
    ["diff", "a", "b"],
    ["estimate", "--seconds", "1"],
    ["verify", "--json", "dump"],
]
NOT_PLAIN = [
    [],
    ["--version"],
    ["filtr"],
    ["kdump", "status"],
    ["filter"],
    ["filter", "a"],
    ["filter", "--help", "a", "b"],
    ["filter", "--fo", "a", "b"],
    ["filter", "--force=1", "a", "b"],
    ["filter", "-d31", "a", "b"],
    ["filter", "-d", "64", "a", "b"],
    ["filter", "a", "b", "-d"],
    ["filter", "a", "b", "--compress", "-q"],
    ["filter", "--format", "pdf", "a", "b"],
    ["filter", "--", "a", "b"],
    ["filter", "a", "-q", "b"],
    ["filter", "--vmcoreinfo", "f", "--vmcoreinfo-at", "1", "a", "b"],
    ["filter", "-1", "a", "b"],
    ["struct", "a", "b", "c"],
]


def by_argparse(words: list[str]) -> dict[str, object] | None:
    try:
        return vars(parser_of(words[0]).parse_args(words))
    except SystemExit:
        return None


@pytest.mark.parametrize("words", PLAIN, ids=" ".join)
def test_what_scripts_write_needs_no_argparse_and_means_the_same(words: list[str]) -> None:
    found = parsed(words)
    assert found is not None
    assert vars(found) == by_argparse(words)


@pytest.mark.parametrize("words", NOT_PLAIN, ids=" ".join)
def test_anything_else_is_left_to_argparse(words: list[str]) -> None:
    assert parsed(words) is None


def words_of(parser: Parser) -> st.SearchStrategy[list[str]]:
    actions: list[Action] = parser._actions
    options = [option for action in actions for option in action.option_strings]
    values = VALUES + [str(value) for action in actions for value in action.choices or ()]
    word = st.one_of(
        st.sampled_from(options),
        st.sampled_from(values),
        st.builds("{}={}".format, st.sampled_from(options), st.sampled_from(values)),
        st.sampled_from(options).map(lambda option: option[:5]),
    )
    return st.lists(word, max_size=6)


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_whatever_is_written_argparse_says_the_same(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    @given(words_of(PARSERS[name]))
    def same(words: list[str]) -> None:
        found = parsed([name, *words])
        if found is not None:
            assert vars(found) == by_argparse([name, *words])

    same()
