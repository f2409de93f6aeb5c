"""vmfilter stats --html, --png and --svg: they show what the numbers say, and nothing in a dump is a command."""

from __future__ import annotations

import os
import re
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from browser import PROGRAM, Browser
from command import Run
from htmlpage import Page

import vmfilter.report
from vmfilter.info import dump_info
from vmfilter.measure.memory_map import MAX_RUNS, MemoryMap
from vmfilter.measure.runs import Run as MemoryRun
from vmfilter.measure.stats import measure
from vmfilter.reader import open_dump
from vmfilter.report.chart import chart
from vmfilter.report.html import page
from vmfilter.report.picture import COLORS, Picture, picture_of
from vmfilter.report.text import CLASS_NAMES
from vmfilter.report.treemap import Box, treemap


def test_the_page_is_complete(real: Callable[[str], Path], tmp_path: Path, run: Run) -> None:
    run("stats", "--html", tmp_path / "page", real("x86_64-6.12-pmem2"))
    text = (tmp_path / "page").read_text()
    made = Page(text)
    assert not re.search(r"https?:|@import|url\(", text.replace("http-equiv", ""))
    assert made.tags["img"] == made.tags["iframe"] == made.attributes["src"] == 0
    assert made.tags["script"] == 2
    assert "fsdax 0x100000000-0x10fffffff" in made.text
    assert made.data["pmem"][0] == [0x100000, 0x110000, "fsdax"]
    for tag in "canvas", "svg":
        assert re.search(rf'<{tag}[^>]* role="img"[^>]* aria-label="[^"]', text)


def test_the_page_says_why_the_kernel_panicked(real: Callable[[str], Path], tmp_path: Path, run: Run) -> None:
    run("stats", "--html", tmp_path / "page", real("x86_64-6.12-two-kernels"))
    assert "panicKernel panic - not syncing: sysrq triggered crash" in Page(
        (tmp_path / "page").read_text()
    ).text.replace("\n", "")


HOSTILE = """</script><script>alert(1)</script><img src=x onerror=alert(1)>"'&{{ 7*7 }}\x1b[31m\u202e\udcff"""


def hostile(picture: Picture) -> Picture:
    stats = picture.stats._replace(warnings=[HOSTILE])
    return picture._replace(name=HOSTILE, facts=[(HOSTILE, HOSTILE)], warnings=[HOSTILE], stats=stats)


@pytest.fixture
def picture(real: Callable[[str], Path]) -> Iterator[Picture]:
    with open_dump(real("x86_64-6.12-small")) as dump:
        found = MemoryMap()
        stats = measure(dump, also=found.add)
        yield picture_of(dump, dump_info(dump), stats, found)


def text(picture: Picture) -> str:
    return page(picture).decode()


def test_text_of_a_dump_is_text(picture: Picture) -> None:
    plain, made = Page(text(picture)), Page(text(hostile(picture)))
    same = plain.tags - made.tags, made.tags - plain.tags - Counter(dt=1, dd=1, section=1, h2=1, ul=1, li=1)
    assert made.tags["script"] == 2
    assert not made.tags["img"]
    assert not same[1]
    assert made.attributes["onerror"] == 0
    assert made.text.count("</script><script>alert(1)</script>") == 5  # title, heading, fact, warning
    assert "{{ 7*7 }}" in made.text
    assert not re.search("[\x1b\u202e\udcff]", text(hostile(picture)))


def test_the_largest_page_is_small(picture: Picture) -> None:
    """16 TiB, with as many runs as a map can have."""
    found = MemoryMap()
    found.runs = [MemoryRun(i << 15, (i << 15) + (1 << 14) + i % 9999, 1 + i % 5, None) for i in range(MAX_RUNS)]
    assert len(page(picture._replace(map=found))) < 5 << 20


def test_empty_memory_is_no_error(picture: Picture) -> None:
    assert Page(text(picture._replace(map=MemoryMap()))).data["runs"] == []


@pytest.mark.parametrize("form", ["png", "svg"])
def test_charts(real: Callable[[str], Path], tmp_path: Path, run: Run, form: str) -> None:
    for name in "one", "two":
        assert run("stats", f"--{form}", tmp_path / name, real("x86_64-6.12-pmem2")).status == 0
    made = (tmp_path / "one").read_bytes()
    assert made == (tmp_path / "two").read_bytes()
    if form == "png":
        assert made.startswith(b"\x89PNG\r\n\x1a\n")
        assert len(made) > 20_000
    else:
        assert ElementTree.fromstring(made).tag == "{http://www.w3.org/2000/svg}svg"
        assert b"user process data" in made


def test_a_chart_says_whose_memory_it_shows(picture: Picture) -> None:
    made = chart(picture, "svg").decode()
    assert "x86_64-6.12-small" in made
    assert "Linux 6.12." in made
    assert "no memory, or not in the dump" in made


def test_a_bar_as_long_as_the_chart_hides_no_legend(picture: Picture) -> None:
    drawn = ElementTree.fromstring(chart(picture, "svg"))
    parts = {part.get("id"): ElementTree.tostring(part, encoding="unicode") for part in drawn.iter()}
    right, legend = parts["axes_3"], parts["legend_2"]
    top = min(float(y) for y in re.findall(r"[\d.]+", re.findall(r' d="([^"]*)"', right)[0])[1::2])
    places = re.findall(r"translate\([\d.]+ ([\d.]+)\) scale", legend)
    assert len(places) == 2  # the texts
    assert all(float(y) < top for y in places)


def test_text_of_a_dump_is_text_in_a_chart(picture: Picture) -> None:
    odd = HOSTILE + "$\\frac$ \u6f22"
    made = chart(picture._replace(name=odd, facts=[("kernel", odd), ("crash time", "--><script>")]), "svg").decode()
    assert not re.search("[\x1b\u202e\udcff]", made)
    assert [tag for tag in ElementTree.fromstring(made).iter() if tag.tag.endswith("script")] == []


@pytest.mark.parametrize(("option", "module"), [("html", "jinja2"), ("png", "matplotlib"), ("svg", "matplotlib")])
def test_a_missing_extra_is_named(
    real: Callable[[str], Path], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, option: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    done = run("stats", f"--{option}", tmp_path / "page", real("x86_64-6.12-small"))
    assert (done.status, done.out) == (2, "")
    assert done.err == f"vmfilter: --{option} needs {module}, which is not installed: pip install 'vmfilter[report]'\n"
    assert not (tmp_path / "page").exists()


def test_a_file_is_replaced_only_if_asked(real: Callable[[str], Path], tmp_path: Path, run: Run) -> None:
    (tmp_path / "page").write_text("mine")
    assert run("stats", "--html", tmp_path / "page", real("x86_64-6.12-small")).status == 4
    assert (tmp_path / "page").read_text() == "mine"
    assert run("stats", "--force", "--html", tmp_path / "page", real("x86_64-6.12-small")).status == 0
    assert (tmp_path / "page").read_text().startswith("<!DOCTYPE html>")


def test_csv_and_pictures_exclude_each_other(real: Callable[[str], Path], tmp_path: Path, run: Run) -> None:
    done = run("stats", "--csv", "--html", tmp_path / "page", real("x86_64-6.12-small"))
    assert (done.status, done.err.count("\n")) == (2, 1)


def test_each_class_has_a_colour() -> None:
    css = (Path(vmfilter.report.__file__).parent / "assets" / "page.css").read_text()
    light = css.partition("@media")[0]
    assert COLORS.keys() == CLASS_NAMES.keys()
    for name, color in COLORS.values():
        assert f"--{name}: {color};" in light
    assert len(set(COLORS.values())) == len(CLASS_NAMES)


@pytest.mark.parametrize("numbers", [[1], [6, 6, 4, 3, 2, 2, 1], [10**12, 1, 1], [5] * 40])
def test_a_treemap_divides_its_rectangle(numbers: list[int]) -> None:
    boxes = treemap(numbers, Box(0, 0, 300, 200))
    areas = [box.width * box.height for box in boxes]
    assert areas == pytest.approx([n * 60_000 / sum(numbers) for n in numbers])
    for box in boxes:
        assert -1e-6 <= box.x <= box.x + box.width <= 300 + 1e-6
        assert -1e-6 <= box.y <= box.y + box.height <= 200 + 1e-6


def test_the_page_in_a_browser(real: Callable[[str], Path], tmp_path: Path, run: Run) -> None:
    """VMFILTER_SCREENSHOTS names a folder for the screenshots of the documents: docs."""
    if not PROGRAM:
        pytest.skip("no Chromium")
    shots = Path(os.environ.get("VMFILTER_SCREENSHOTS", tmp_path))
    run("stats", "--html", tmp_path / "page.html", real("x86_64-6.12-pmem2"))
    with Browser(tmp_path) as browser:
        browser.resize(1200, 900)
        browser.prefer("light")
        browser.open(tmp_path / "page.html")
        browser.wait("document.getElementById('map').dataset.drawn")
        paper = browser.value("getComputedStyle(document.body).backgroundColor")
        drawn = browser.value("map.toDataURL()")
        assert len(drawn) > 5000
        before = int(browser.value("map.dataset.drawn"))
        browser.value("document.getElementById('in').click()")
        assert int(browser.value("map.dataset.drawn")) == pytest.approx(before / 2, abs=1)
        browser.value("document.getElementById('all').click(); map.scrollIntoView(); map.focus()")
        browser.call("Input.dispatchKeyEvent", type="keyDown", key="n", text="n")
        first = browser.value("document.getElementById('status').textContent")
        assert re.match(r"0x[0-9a-f]+-0x[0-9a-f]+, \d+ pages?\n.*\nnode 0, zone 0", first)
        x, y = browser.value(
            "(() => { const box = map.getBoundingClientRect(); return [box.left + 200, box.top + 5] })()"
        )
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        assert not browser.value("document.getElementById('tip').hidden")
        assert "zone 0" in browser.value("document.getElementById('tip').textContent")
        (shots / "stats-light.png").write_bytes(browser.shot())
        browser.prefer("dark")
        assert browser.value("getComputedStyle(document.body).backgroundColor") != paper
        assert browser.value("document.getElementById('all').click(); map.toDataURL()") != drawn
        browser.resize(360, 740)
        browser.wait("innerWidth == 360")
        assert browser.value("document.documentElement.scrollWidth") <= 360
        assert len(browser.value("map.toDataURL()")) > 3000
        browser.value("map.scrollIntoView()")
        (shots / "stats-dark.png").write_bytes(browser.shot())
        for name, size in (("light", (1200, 900)), ("dark", (360, 740))):
            shot = (shots / f"stats-{name}.png").read_bytes()
            assert struct.unpack(">II", shot[16:24]) == size
            assert len(shot) < 150_000
        assert [event["request"]["url"] for event in browser.of("Network.requestWillBeSent")] == [
            (tmp_path / "page.html").as_uri()
        ]
        assert browser.of("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded") == []
