"""vmfilter kdump: makes it part of a distribution's kdump."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmfilter.errors import UsageError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_DESCRIPTION = """Make vmfilter part of a system's kdump: a hook for initramfs-tools, a module for dracut, udev rules
that reload kdump when the memory of the machine changes, and examples of settings. No file that is there is changed:
docs/kdump.md says which settings make kdump use vmfilter."""

_COLLECT = """Put vmfilter, and the modules of Python that it needs, into DIR, the root of an initramfs that is being
built, and print the programs and extension modules which are to be copied to the same paths in it, with their shared
objects. The hook and the module do so; so can what builds another initramfs."""


def add_to(commands: _SubParsersAction[argparse.ArgumentParser], epilog: str) -> None:
    """Add the subcommand, with its own, to the parser."""

    def add(to: _SubParsersAction[argparse.ArgumentParser], name: str, help: str, text: str) -> argparse.ArgumentParser:
        formatter = argparse.RawDescriptionHelpFormatter
        return to.add_parser(name, help=help, description=text, epilog=epilog, formatter_class=formatter)

    p = add(commands, "kdump", "make it part of the system's kdump", _DESCRIPTION)
    p.set_defaults(run=run)
    actions = p.add_subparsers(title="actions", metavar="ACTION", required=True, dest="action")
    for a in (
        add(actions, "install", "install what makes it part of kdump", _DESCRIPTION),
        add(actions, "remove", "remove what install has put there, but for what was changed since", _DESCRIPTION),
    ):
        a.add_argument(
            "--root", type=_folder, default="/", metavar="DIR", help="the system's root (default: %(default)s)"
        )
        a.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    a = add(actions, "collect", "fill an initramfs", _COLLECT)
    a.add_argument("initramfs", type=_folder, metavar="DIR", help="folder that becomes the root of the initramfs")


def _folder(name: str) -> str:
    """The name, unless it is empty, as a variable is that was not set: it would be the working folder."""
    if not name:
        raise argparse.ArgumentTypeError("the name of a folder is empty")
    return name


def run(options: argparse.Namespace) -> int:
    """Do it, print what was done, return the exit status."""
    from vmfilter.console.output import hand_out, show

    try:
        from vmfilter.integration.collect import collect
        from vmfilter.integration.install import install, remove
    except ModuleNotFoundError:
        raise UsageError("kdump is a command of the system that makes an initramfs, not of an initramfs") from None

    if options.action == "collect":
        hand_out(collect(options.initramfs))
    else:
        show(*(install if options.action == "install" else remove)(options.root, dry_run=options.dry_run))
    return 0
