"""The counts of vmfilter stats in each form: text, JSON, CSV and HTML."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from command import Run
from htmlpage import Page, table

from vmfilter.frames.classes import PageClass
from vmfilter.report.text import CLASS_NAMES


def assert_same_counts(run: Run, vmcore: Path, page: Path) -> None:
    """Assert that each form has the same counts, and that they add up; page: where to write HTML."""
    data = json.loads(run("stats", "--json", "--html", page, vmcore).out)
    assert_sums(data)
    assert_text(run("stats", "--all", vmcore).out, data)
    assert_csv(run("stats", "--csv", vmcore).out, data)
    assert_html(Page(page.read_text()), data)


def assert_sums(data: dict[str, Any]) -> None:
    """JSON adds up to the page frames that are memory."""
    assert sum(data["classes"].values()) == data["present"] <= data["max_mapnr"]
    assert sum(data["kinds"].values()) == data["classes"][CLASS_NAMES[PageClass.KERNEL]]
    for what in "classes", "kinds":
        by_zone = Counter[str]()
        for zone in data["zones"]:
            by_zone.update(zone[what])
        assert by_zone == Counter(data[what])


def assert_text(text: str, data: dict[str, Any]) -> None:
    """The first table of text has the pages of JSON."""
    lines = text.partition("\n\n")[0].splitlines()[1:]
    shown = {line[:38].strip(): int(line[38:51]) for line in lines}
    assert {n: shown[n] for n in data["classes"]} == data["classes"]
    assert {n: shown[n] for n in data["kinds"]} == data["kinds"]
    assert shown["all memory"] == data["present"]


def assert_csv(text: str, data: dict[str, Any]) -> None:
    """Runs ascend, and add up to the pages of JSON by class, kind and zone."""
    pages, by_zone = {"class": Counter[str](), "kind": Counter[str]()}, Counter[tuple[str, str]]()
    end = 0
    for row in csv.DictReader(io.StringIO(text)):
        assert end <= int(row["start"]) < int(row["end"])
        end = int(row["end"])
        for column in pages:
            pages[column][row[column]] += end - int(row["start"])
        by_zone[row["node"], row["zone"]] += end - int(row["start"])
    assert end <= data["max_mapnr"]
    del pages["kind"][""]
    assert pages["class"] == nonzero(data["classes"])
    assert pages["kind"] == nonzero(data["kinds"])
    zones = {(z["node"], z["zone"]): sum(z["classes"].values()) for z in data["zones"]}
    assert by_zone == {("" if n is None else str(n), z or ""): pages for (n, z), pages in zones.items()}


def assert_html(page: Page, data: dict[str, Any]) -> None:
    """Tables and map have the pages of JSON."""
    rows = table(page, "class")
    for what in "classes", "kinds":
        wanted = nonzero(data[what])
        assert Counter({n: int(rows[n][0]) for n in wanted}) == wanted
    assert int(rows["all memory"][0]) == data["present"]
    levels = table(page, "level")
    assert {level: (int(row[1]), int(row[4])) for level, row in levels.items()} == {
        level: (numbers["kept"], numbers["zero"]) for level, numbers in data["levels"].items()
    }
    assert sum(int(row[-1]) for row in table(page, "zone").values()) == data["present"]
    runs = page.data["runs"]
    by_class = Counter[str]()
    for i in range(0, len(runs), 4):
        by_class[page.data["uses"][runs[i + 2]]["class"]] += runs[i + 1]
    assert by_class == nonzero(data["classes"])
    assert sum(runs[0::4]) + sum(runs[1::4]) <= data["max_mapnr"]
    words = next(t for t in page.tables if t[0][0] == "addresses" and t[0][-1] == "classes")
    assert sum(int(row[1]) for row in words[1:]) == data["present"]


def nonzero(counts: dict[str, int]) -> Counter[str]:
    """Counts without zeros."""
    return Counter({name: pages for name, pages in counts.items() if pages})
