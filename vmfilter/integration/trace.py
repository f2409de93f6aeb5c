"""Imports everything that vmfilter needs and prints the modules found. collect.py runs it in a bare interpreter.

No list is maintained by hand. This script imports every module of vmfilter and executes every import statement in
their functions. It prints help and an error message, because argparse imports modules only for those. It excludes
OpenSSL, packages of extras with the modules that need them, those that only replace a codec of the C core, and the
parts of vmfilter that no initramfs needs.

Arguments: directories to search for modules, after the interpreter's own.
Output: a JSON object with two maps from the name of a module to its file. "first" has those that an interpreter loads
before anything else, "others" the rest.
"""

from __future__ import annotations

import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import PathFinder  # importlib.machinery has it too, and loads more modules


class _Finder:
    """The interpreter's finder for modules in files, which records what it finds.

    sys.modules is not enough: since Python 3.13, collections.abc replaces itself there by a built-in module.
    """

    def __init__(self) -> None:
        specs = [m.__spec__ for m in sys.modules.values()]
        self.first = {s.name: s.origin for s in specs if s and s.has_location}
        self.others: dict[str, str | None] = {}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target)
        if spec and spec.has_location and name not in self.first:
            self.others[name] = spec.origin
        return spec


finder = _Finder()
sys.meta_path[sys.meta_path.index(PathFinder)] = finder
sys.path += sys.argv[1:]

import ast
import codecs
import contextlib
import json
import os
from collections.abc import Iterator, Set
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, cast

_LEFT_OUT = ("api", "fleet", "integration", "reader.remote", "writer.transport.remote")
"""Rooms and modules without use in an initramfs, which a capture kernel unpacks into little memory."""
_EXTRAS = ("elftools", "fsspec", "jinja2", "matplotlib")
"""Packages of extras: modules that cannot be imported without one are left out too."""


def _imports(node: ast.AST, packages: Set[str]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the import statements below a node that import some packages, except those under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            name = str(child.module) if isinstance(child, ast.ImportFrom) else child.names[0].name
            if name.partition(".")[0] in packages:
                yield child
        elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from _imports(child, packages)


def _encodings(tree: ast.AST) -> Iterator[str]:
    """Yield the encodings that the code names: each is a module, imported on first use."""
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

    package = Path(__file__).parents[1]
    left_out = {*_EXTRAS, *(f"vmfilter.{name}" for name in _LEFT_OUT)}
    modules.update(dict.fromkeys(left_out))  # None makes an import fail, and that of whatever needs it
    modules["_hashlib"] = None  # keeps OpenSSL out, which is large: hashlib has its own SHA-256
    codecs_of = {c: codec.package for c, codec in CODECS.items() if codec.package}
    needed = {"vmfilter", *sys.stdlib_module_names, *codecs_of.values()}
    needed -= {codecs_of[c] for c in native_libraries() if c in codecs_of} - sys.stdlib_module_names
    for source in package.rglob("*.py"):
        if source.stem == "__main__":
            continue
        path = source.relative_to(package.parent).with_suffix("")
        try:
            import_module(".".join(path.parts).removesuffix(".__init__"))
        except ImportError as e:
            if not any(f"{e.name}.".startswith(f"{name}.") for name in left_out):
                raise
            continue
        tree = ast.parse(source.read_bytes())
        for encoding in _encodings(tree):
            codecs.lookup(encoding)
        for statement in _imports(tree, needed):
            with contextlib.suppress(ImportError):  # an optional package
                exec(compile(ast.Module([statement], []), str(source), "exec"), {})
    main = import_module("vmfilter.cli").main
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        for arguments in ("--help", "--version", "--wrong", "filter --help", "makedumpfile -h"):
            with contextlib.suppress(SystemExit):
                main(arguments.split())


if __name__ == "__main__":
    _load(cast("dict[str, ModuleType | None]", sys.modules))
    # os is frozen, but an interpreter locates its library by this file
    print(json.dumps({"first": {**finder.first, "os": os.__file__}, "others": finder.others}))
