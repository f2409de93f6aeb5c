"""A page of HTML as its reader sees it: elements, tables, text, data."""

from __future__ import annotations

import json
from collections import Counter
from html.parser import HTMLParser
from typing import Any

_VOID = {"meta", "link", "rect", "br"}


class Page(HTMLParser):
    """The elements of a page, its tables, its text and its data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags = Counter[str]()
        self.attributes = Counter[str]()
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.data: Any = None
        self._open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes.update(name for name, _ in attrs)
        if tag not in _VOID:
            self._open.append((tag, dict(attrs).get("type") or ""))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == ("script", "application/json"):
            self.data = json.loads(data)
        elif self._open and self._open[-1][0] not in ("script", "style"):
            self.text += data
            if any(tag in ("td", "th") for tag, _ in self._open):
                self.tables[-1][-1][-1] += data


def table(made: Page, first: str) -> dict[str, list[str]]:
    """Rows of the table whose first heading is this, by their first cell."""
    (found,) = [t for t in made.tables if t[0][0] == first]
    return {row[0]: row[1:] for row in found[1:]}
