"""The documents are a site whose links lead somewhere, and which loads nothing from other hosts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Run mkdocs: with --strict, each of its warnings is a failure."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
    return subprocess.run([*command, "--site-dir", str(site)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", made)
    assert done.returncode == 0, done.stderr
    return made


def test_the_site_has_every_document(site: Path) -> None:
    """Those of docs/ and those beside it; README.md is the start page."""
    names = [p.stem for folder in (ROOT, ROOT / "docs") for p in folder.glob("*.md")]
    assert {"index" if name == "README" else name for name in names} | {"404"} == {p.stem for p in site.glob("*.html")}
    assert "exposes the" in (site / "index.html").read_text()


def test_the_site_loads_nothing_from_other_hosts(site: Path) -> None:
    """Links that a reader may click are in `a` alone."""
    remote = r"""(?:<(?!a\s)\w+\s[^>]*(?:src|href)=|url\(|@import )["']?(?:https?:)?//"""
    texts = [path.read_text() for suffix in ("html", "css", "svg") for path in site.rglob(f"*.{suffix}")]
    assert [found for text in texts for found in re.findall(remote, text)] == []
    assert len(texts) > 20


@pytest.mark.parametrize("link", ["nothing.md", "README.md#nothing", "nothing.png"])
def test_a_link_that_leads_nowhere_is_a_failure(tmp_path: Path, link: str) -> None:
    config = (ROOT / "mkdocs.yml").read_text().partition("nav:")[0].replace("hooks:", "# hooks:")
    (tmp_path / "mkdocs.yml").write_text(config)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "README.md").write_text(f"# Start\n\nA [link]({link}).\n")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1
    assert link in done.stderr
