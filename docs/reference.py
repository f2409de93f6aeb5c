"""Generates the reference of the public interface: `.venv/bin/python docs/reference.py [FILE]`.

All text comes from the docstrings and signatures of the public names, and of what their results contain. By default,
the file is docs/api-reference.md.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import vmfilter

COLUMNS = 100
INTRODUCTION = """\
# Reference of the public interface

Made by `docs/reference.py` from the docstrings: change those, and run it again. [api.md](api.md)
shows the same by example.

`Source` is a `Dump`, or one `File` or several: those of a split set. `File` is a path (`str`,
`bytes`, `os.PathLike`) or a file object, in binary mode. Results are frozen dataclasses, and have
`as_dict()`: what the command prints with `--json`.
"""
LISTS = ("Args", "Attributes", "Raises")  # sections of docstrings that are lists of names


def wrapped(text: str, bullet: str = "") -> str:
    """Return a paragraph, or an item of a list, in lines that fit."""
    indent = " " * len(bullet)
    text = " ".join(text.split()).replace("``", "`")
    return textwrap.fill(
        text, COLUMNS, initial_indent=bullet, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def items(body: str) -> Iterator[str]:
    """Yield the items of a list in a docstring, each as an item of Markdown."""
    for item in re.split(r"\n(?=\S)", body):
        name, colon, text = item.partition(": ")
        yield wrapped(f"`{name}`: {text}" if colon else item, "- ")


def markdown(docstring: str) -> str:
    """Return a docstring as Markdown."""
    parts = []
    for part in docstring.split("\n\n"):
        title, _, body = part.partition("\n")
        if title.rstrip(":") in LISTS and title.endswith(":"):
            parts.append(f"{title}\n\n" + "\n".join(items(textwrap.dedent(body))))
        elif title == "Returns:":
            parts.append(wrapped(f"Returns: {body}"))
        else:
            parts.append(wrapped(part))
    return "\n\n".join(parts)


def signature(function: Any) -> str:
    """Return how a function or method is defined."""
    line = textwrap.dedent(inspect.getsource(function)).partition(":\n")[0]
    return f"```\n{line.replace('(self, ', '(').replace('(self)', '()')}\n```"


def members(kind: type) -> Iterator[str]:
    """Yield the properties and methods of a class, in the order of its source."""
    for name, member in vars(kind).items():
        if name.startswith("_") or not (doc := inspect.getdoc(member)):
            continue
        if inspect.isfunction(member):
            yield f"### {kind.__name__}.{name}\n\n{signature(member)}\n\n{markdown(doc)}"
        elif isinstance(member, property) or hasattr(member, "func"):
            yield f"### {kind.__name__}.{name}\n\n{markdown(doc)}"


def section(name: str) -> str:
    """Return what the reference says of a public name."""
    found = getattr(vmfilter, name)
    doc = markdown(inspect.getdoc(found) or "")
    if inspect.isfunction(found):
        return f"## {name}\n\n{signature(found)}\n\n{doc}"
    if hasattr(found, "__members__"):  # an enumeration
        values = [wrapped(f"`{one}` = {value.value}", "- ") for one, value in found.__members__.items()]
        return f"## {name}\n\n{doc}\n\n" + "\n".join(values)
    if issubclass(found, Exception):
        return f"## {name}\n\n{doc}\n\n`exit_status` is {found.exit_status}."
    return "\n\n".join([f"## {name}", doc, *members(found)])


def reference() -> str:
    """Return the whole reference: functions, then classes."""
    names = [*vmfilter._MODULES]
    names.sort(key=lambda name: not inspect.isfunction(getattr(vmfilter, name)))
    return "\n\n".join([INTRODUCTION.rstrip(), *map(section, names)]) + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "api-reference.md"
    target.write_text(reference(), encoding="utf-8")
