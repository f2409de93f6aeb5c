"""Generates the manual pages: `.venv/bin/python docs/manpages.py [DIRECTORY]`, by default in docs/man.

Only NAME and SEE ALSO are written here. argparse-manpage turns the parsers into roff; the other sections come from
--help, README.md, guide-kernel-engineer.md, makedumpfile.md and CHANGELOG.md.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from argparse_manpage.manpage import Manpage

from vmfilter import __version__
from vmfilter.cli.command import parser_of
from vmfilter.cli.help import statuses
from vmfilter.makedumpfile.messages import help_lines
from vmfilter.makedumpfile.options import OPTIONS

DOCS = Path(__file__).parent
README, CHANGELOG, GUIDE, MAKEDUMPFILE = (
    (DOCS / name).read_text(encoding="utf-8")
    for name in ("../README.md", "../CHANGELOG.md", "guide-kernel-engineer.md", "makedumpfile.md")
)
SEE_ALSO = (
    "**crash**(8), **dmesg**(1), **drgn**(1), **kdump.conf**(5), **kdump-config**(8), **kexec**(8), **makedumpfile**(8)"
)


def section(document: str, heading: str) -> str:
    """Return the text of a document below a heading."""
    return document.partition(f"\n## {heading}\n\n")[2].partition("\n\n## ")[0]


def roff(markdown: str) -> str:
    """Convert paragraphs, lists and code blocks to roff."""
    text = markdown.strip().replace("\\", "\\e").replace("-", "\\-")
    text = re.sub(r"^```\n(.+?)\n```", r".RS 4\n.nf\n\1\n.fi\n.RE", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\*\*(.+?)\*\*|`(.+?)`", r"\\fB\1\2\\fR", text)
    text = re.sub(r"^ +", "", text, flags=re.MULTILINE)
    return re.sub(r"^\\- ", r".IP \\(bu 2\n", text, flags=re.MULTILINE)


def with_tags(page: str) -> str:
    """Convert columns in help texts, such as dump levels and exit statuses, to tagged paragraphs."""
    lines: list[str] = []
    in_table = False
    for line in page.splitlines():
        *tag, text = re.split(r" {2,}", line.strip())
        if line.startswith(" "):
            lines += [".TP", f".B {', '.join(tag)}", text] if tag else [text]
            in_table = True
        elif line or not in_table:
            lines += [".PP", line] if in_table and line[0] != "." else [line]
            in_table = False
    return "\n".join(lines) + "\n"


def page(parser: argparse.ArgumentParser, name: str, sections: dict[str, str]) -> str:
    """Return the manual page of a parser, with additional sections. name: text of NAME."""
    made = Manpage(parser, format="single-commands-section")
    made.section, made.manual, made.description = "8", "System Manager's Manual", name
    made.source = f"vmfilter {__version__}"
    heading = f"\n## [{__version__}] - "
    made.date = CHANGELOG.partition(heading)[2].partition("\n")[0]  # today's would change the page every day
    for heading, text in sections.items():
        made.add_section(heading, "=", text)
    return with_tags(str(made))


def vmfilter() -> str:
    """Return the page of vmfilter with all its subcommands."""
    parser = parser_of("")
    said = "\n".join(f"  {line}" if line[-1:] != ":" else line for line in statuses(parser))
    parser.description = None  # it becomes a section
    lines = section(GUIDE, "Commands at a glance").split("```")[1].strip().splitlines()
    examples = "\n".join(
        f"  {roff(command.strip())}  {roff(text)}" for command, _, text in (x.partition("#") for x in lines)
    )
    sections = {
        "description": roff(README.partition("\n\n")[2].partition("```")[0]),
        "exit status": said,
        "examples": examples,
        "see also": roff(f"**vmfilter-makedumpfile**(8), {SEE_ALSO}"),
    }
    return page(parser, "make small dumps of crashed Linux kernels", sections)


def makedumpfile() -> str:
    """Return the page of vmfilter-makedumpfile."""
    parser = argparse.ArgumentParser(prog="vmfilter-makedumpfile", add_help=False)
    groups = {
        "unneeded": parser.add_argument_group("options that change nothing"),
        "refused": parser.add_argument_group("options that are not supported"),
    }
    for option in OPTIONS:
        shape = {"metavar": option.value} if option.value else {"action": "store_true"}
        groups.get(option.sets, parser).add_argument(option.name, help=option.help.replace("%", "%%"), **shape)
    forms = "\n".join(help_lines()).partition("Usage:\n")[2].partition("\n\n")[0]
    sections = {
        "synopsis": roff(forms.replace("  makedumpfile", "**vmfilter-makedumpfile**")).replace("\n", "\n.br\n"),
        "description": roff(MAKEDUMPFILE.partition("\n\n")[2].partition("\n| ")[0]),
        "exit status": roff(section(MAKEDUMPFILE, "Exit status")),
        "differences": roff(section(MAKEDUMPFILE, "Where it differs")),
        "see also": roff(f"**vmfilter**(8), {SEE_ALSO}"),
    }
    return page(parser, "make small dumps with the command line of makedumpfile", sections)


if __name__ == "__main__":
    os.environ["COLUMNS"] = "10000"  # or argparse would wrap lines at the width of this terminal
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "man"
    directory.mkdir(exist_ok=True)
    for name, made in (("vmfilter", vmfilter()), ("vmfilter-makedumpfile", makedumpfile())):
        (directory / f"{name}.8").write_text(made, encoding="utf-8")
