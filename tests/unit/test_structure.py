"""The rooms of the package: imports, for types too, go one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = [
    *(
        "lean",
        "errors",
        "native",
        "frames",
        "formats",
        "arch",
        "reader",
        "kernel",
        "crash",
        "pages",
        "erase",
        "extension",
        "compress",
        "statistics",
        "writer",
    ),
    *("run", "filter", "convert", "info", "verify", "measure", "rearrange"),
    *("readiness", "report", "api", "console", "makedumpfile", "integration", "fleet", "cli"),
]
"""The rooms in order: each imports only earlier ones. docs/architecture.md draws them."""


@cache
def modules() -> dict[str, Path]:
    paths = sorted((ROOT / "vmfilter").rglob("*.py"))
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}
    return {name: path for name, path in names.items() if "integration.root" not in name}


def imports(path: Path) -> Iterator[str]:
    """Every module of the package that a file imports, inside functions and for types too."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("vmfilter"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vmfilter"):
            module = str(node.module)
            for alias in node.names:
                full = f"{module}.{alias.name}"
                yield full if full in modules() else module


@cache
def arrows() -> dict[str, set[str]]:
    return {name: {m for m in imports(path) if m in modules()} - {name} for name, path in modules().items()}


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {name: set(to) for name, to in arrows().items()}
    del graph["vmfilter"]  # the public names, imported on first use
    while leaves := {name for name, to in graph.items() if not to & graph.keys()}:
        for name in leaves:
            del graph[name]
    assert not graph


def test_rooms_import_only_rooms_before_them() -> None:
    def room(name: str) -> str:
        return name.split(".")[1]

    wrong = [
        (name, to)
        for name, all_of in arrows().items()
        for to in all_of
        if "." in name and "." in to and name != "vmfilter.__main__"
        if ROOMS.index(room(to)) > ROOMS.index(room(name))
    ]
    assert not wrong


def test_one_file_imports_the_extension() -> None:
    assert [name for name, path in modules().items() if "vmfilter._core" in set(imports(path))] == ["vmfilter.native"]


def test_the_package_root_is_small() -> None:
    assert len(list((ROOT / "vmfilter").glob("*.py"))) <= 12


def test_no_test_imports_another() -> None:
    tests = {p.stem: p for p in (ROOT / "tests").rglob("test_*.py")}
    for path in tests.values():
        tree = ast.walk(ast.parse(path.read_bytes()))
        named = {n.module for n in tree if isinstance(n, ast.ImportFrom)}
        assert not named & tests.keys(), path
