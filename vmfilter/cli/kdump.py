"""vmfilter kdump: install vmfilter into the system's kdump."""

from __future__ import annotations

import argparse

from vmfilter.errors import UsageError
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_DESCRIPTION = """\
Make vmfilter part of a system's kdump. This installs a hook for
initramfs-tools, a module for dracut, udev rules that reload kdump when the
machine's memory changes, and example settings. It never changes a file that it
did not install: docs/guide-distribution.md says which settings make kdump use
vmfilter."""

_COLLECT = """\
Write vmfilter and the Python modules that it needs to DIR, the root of an
initramfs under construction. Print the programs and extension modules that
must be copied to the same paths in DIR, with their shared objects. The hook
for initramfs-tools and the dracut module call this; other initramfs builders
can do the same."""


def add_to(commands: _SubParsersAction[argparse.ArgumentParser], epilog: str) -> None:
    """Add the subcommand and its actions to the parser."""

    def add(to: _SubParsersAction[argparse.ArgumentParser], name: str, help: str, text: str) -> argparse.ArgumentParser:
        formatter = argparse.RawDescriptionHelpFormatter
        return to.add_parser(name, help=help, description=text, epilog=epilog, formatter_class=formatter)

    p = add(commands, "kdump", "install vmfilter into the system's kdump", _DESCRIPTION)
    p.set_defaults(run=run)
    actions = p.add_subparsers(title="actions", metavar="ACTION", required=True, dest="action")
    for a in (
        add(actions, "install", "install vmfilter into kdump", _DESCRIPTION),
        add(actions, "remove", "remove the installed files, except those modified since", _DESCRIPTION),
    ):
        a.add_argument(
            "--root", type=_directory, default="/", metavar="DIR", help="root of the system (default: %(default)s)"
        )
        a.add_argument("--dry-run", action="store_true", help="print what would be done, and change nothing")
    a = add(actions, "collect", "add vmfilter to an initramfs", _COLLECT)
    a.add_argument("initramfs", type=_directory, metavar="DIR", help="root of the initramfs under construction")


def _directory(name: str) -> str:
    """Reject an empty name: it is an unset shell variable, and would mean the working directory."""
    if not name:
        raise argparse.ArgumentTypeError("the directory name is empty")
    return name


def run(options: argparse.Namespace) -> int:
    """Run the action, print what it did, return the exit status."""
    from vmfilter.console.output import hand_out, show

    try:
        from vmfilter.integration.collect import collect
        from vmfilter.integration.install import install, remove
    except ModuleNotFoundError:
        raise UsageError(
            "kdump does not work in an initramfs; run it on the system that builds the initramfs"
        ) from None

    if options.action == "collect":
        hand_out(collect(options.initramfs))
    else:
        show(*(install if options.action == "install" else remove)(options.root, dry_run=options.dry_run))
    return 0
