"""Loads all that vmfilter needs, and prints which modules those are: run by collect.py in a bare interpreter.

Nothing is listed by hand: every module of vmfilter is imported, so is all that any of its functions imports when it
is called, and help and complaints of the command are printed, for which argparse imports what it has put off. What
only stands in for a codec that the C core has is kept out, and so is what installs: this package.

Arguments: the folders to look for modules in, after those of the interpreter. Output: a JSON object, the name of each
module that has a file → its file.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder


class _Finder:
    """The interpreter's finder of modules that have files, which keeps what it has found.

    What is loaded does not tell: since 3.13 collections.abc puts another module, which is built in, in its place.
    """

    def __init__(self) -> None:
        specs = [m.__spec__ for m in sys.modules.values()]
        self.files = {s.name: s.origin for s in specs if s and s.has_location}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target)
        if spec and spec.has_location:
            self.files[name] = spec.origin
        return spec


finder = _Finder()
sys.meta_path[sys.meta_path.index(PathFinder)] = finder
sys.path += sys.argv[1:]

import ast
import codecs
import contextlib
import json
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, cast


def _imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements below a node, those in functions too; not those that only type checkers follow."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from _imports(child)


def _encodings(tree: ast.AST) -> Iterator[str]:
    """Names of the encodings that are asked for: each is a module, loaded when it is used first."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            named = [k.value for k in node.keywords if k.arg == "encoding"]
            if isinstance(node.func, ast.Attribute) and node.func.attr in ("decode", "encode"):
                named += node.args[:1]
            for name in named:
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    yield name.value


def _load(modules: dict[str, ModuleType | None]) -> None:
    from vmfilter.formats.codec import CODECS, native_libraries

    here = Path(__file__).parent
    modules["vmfilter.integration"] = None  # to the import system: there is none
    stand_ins = {CODECS[c].package for c in native_libraries()} - sys.stdlib_module_names
    modules.update({p: None for p in stand_ins if p})
    for source in here.parent.rglob("*.py"):
        if source.parent == here or source.stem == "__main__":
            continue
        path = source.relative_to(here.parent.parent).with_suffix("")
        import_module(".".join(path.parts).removesuffix(".__init__"))
        tree = ast.parse(source.read_bytes())
        for encoding in _encodings(tree):
            codecs.lookup(encoding)
        for statement in _imports(tree):
            with contextlib.suppress(ImportError):  # a package that may be missing
                exec(compile(ast.Module([statement], []), str(source), "exec"), {})
    main = import_module("vmfilter.cli").main
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        for arguments in ("--help", "--version", "--wrong", "filter --help", "makedumpfile -h"):
            with contextlib.suppress(SystemExit):
                main(arguments.split())


if __name__ == "__main__":
    _load(cast("dict[str, ModuleType | None]", sys.modules))
    # os is built in, but its file is what tells an interpreter where the others are
    print(json.dumps({**finder.files, "os": os.__file__}))
