"""Adds to the site the documents that are not in docs/, for mkdocs.yml; README.md is its start page."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "vmfilter/report/schema.json")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add each file below the name that it has in the project."""
    top = Path(config.config_file_path).parent
    for name in OUTSIDE:
        files.append(File.generated(config, name, abs_src_path=str(top / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page with the links of the site, in which docs/ and the top of the project are one folder."""
    return re.sub(r"\]\((?:\.\./|docs/)", "](", markdown)
