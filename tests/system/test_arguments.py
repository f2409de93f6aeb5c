"""Any invalid argument of a public function raises the same public exception."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kdumpbuilder import PAGE, KdumpFile

import vmfilter
from vmfilter.frames.levels import parse_level

NO_PATHS: list[Any] = [None, 5, [], [None], "na\0me", b"na\0me", [["name"]], {}]
LISTS = ("expressions", "symbols", "extensions")
WRONG: list[dict[str, Any]] = [
    *({"format": v} for v in ("x", "", "ELF", None, 5, ["kdump"])),
    *({"compress": v} for v in ("x", "", "zlib:0", "zlib:x", "lzo:1", 5, b"zlib", ["zlib"])),
    *({"threads": v} for v in (0, -1, 1025, 1.5, "4", True, [1])),
    *({"max_memory": v} for v in (0, -1, 1.5, "4M", True)),
    *({"output": v} for v in (*NO_PATHS, ["new", "./new"], ["new", "-"])),
    *({"progress": v} for v in (5, "print")),
    *({"rules": v} for v in (5, ("a",), vmfilter.Rules(config=5), vmfilter.Rules(config="na\0me"))),  # type: ignore[arg-type]
    *({"rules": vmfilter.Rules(**{n: v})} for n in LISTS for v in (5, None, "name", b"name", [5], [b"name"], {"name"})),
    {"format": "elf", "compress": "zlib"},
    {"format": "elf", "dedup": True},
    {"format": "elf", "output": ["new", "other"]},
]
WRONG_FILTER: list[dict[str, Any]] = [
    *({"level": v} for v in (64, -1, 1.5, "x", None, True, [31])),
    *({"limit": v} for v in (0, -1, 1.5, "4M", True)),
    {"output": ["new", "other"], "limit": 1 << 20},
]


@pytest.fixture
def dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return KdumpFile({7: b"x" * PAGE}).write(tmp_path / "dump")


@pytest.mark.parametrize("arguments", [*WRONG, *WRONG_FILTER], ids=repr)
def test_an_invalid_argument_of_filter_dump(dump: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(vmfilter.UsageError) as refused:
        vmfilter.filter_dump(dump, **({"output": "new", "level": 1} | arguments))
    assert "\n" not in str(refused.value)
    assert refused.value.exit_status == 2
    assert list(dump.parent.iterdir()) == [dump]


@pytest.mark.parametrize("arguments", WRONG, ids=repr)
def test_an_invalid_argument_of_convert_dump(dump: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(vmfilter.UsageError):
        vmfilter.convert_dump(dump, **({"output": "new"} | arguments))
    assert list(dump.parent.iterdir()) == [dump]


@pytest.mark.parametrize("path", NO_PATHS, ids=repr)
def test_an_invalid_path_of_a_dump(dump: Path, path: Any) -> None:
    with pytest.raises(vmfilter.UsageError):
        vmfilter.open_dump(path)
    with pytest.raises(vmfilter.UsageError):
        vmfilter.filter_dump(path, "new")


def test_rules_take_paths_that_are_objects(dump: Path) -> None:
    (dump.parent / "rules").write_text("")
    rules = vmfilter.Rules(config=dump.parent / "none", extensions=[dump.parent / "rules"])  # type: ignore[arg-type, list-item]
    with pytest.raises(vmfilter.KernelError, match="so nothing can be erased"):
        vmfilter.filter_dump(dump, "new", level=1, rules=rules)


def test_an_argument_is_refused_before_the_dump_is_opened() -> None:
    with pytest.raises(vmfilter.UsageError, match="dump level 64"):
        vmfilter.filter_dump("not there", "new", level=64)
    with pytest.raises(vmfilter.UsageError, match="codec 'x'"):
        vmfilter.convert_dump("not there", "new", compress="x")


@pytest.mark.parametrize("threads", [0, 1.5, "4"])
def test_an_invalid_argument_of_verify_dump(dump: Path, threads: Any) -> None:
    with vmfilter.open_dump(dump) as opened, pytest.raises(vmfilter.UsageError):
        vmfilter.verify_dump(opened, threads=threads)


@pytest.mark.parametrize("level", ["64", "x", "", "zero,"])
def test_an_invalid_name_of_a_level(level: str) -> None:
    with pytest.raises(vmfilter.UsageError):
        parse_level(level)
