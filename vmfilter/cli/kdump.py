"""vmfilter kdump: install vmfilter into the system's kdump, and say whether the next crash leaves a dump."""

from __future__ import annotations

from vmfilter.cli.options import add_json, size_of
from vmfilter.errors import UsageError, VmfilterError
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping

    from vmfilter.cli.parser import Commands, Parser
    from vmfilter.readiness.system import System

_KDUMP = """\
Make vmfilter part of a system's kdump, explain crashkernel=, and check that
the next crash leaves a dump."""

_DESCRIPTION = """\
Make vmfilter part of a system's kdump. This installs a hook for
initramfs-tools, a module for dracut, udev rules that reload kdump when the
machine's memory changes, and example settings. It never changes a file that it
did not install: docs/guide-distribution.md says which settings make kdump use
vmfilter."""

_REMOVE = """\
Remove what vmfilter kdump install put into a system, except files that were
modified since, and folders that contain others. Nothing else is touched; take
vmfilter out of kdump's settings yourself."""

_COLLECT = """\
Write vmfilter and the Python modules that it needs to DIR, the root of an
initramfs under construction. Print the programs and extension modules that
must be copied to the same paths in DIR, with their shared objects. The hook
for initramfs-tools and the dracut module call this; other initramfs builders
can do the same."""

_CRASHKERNEL = """\
Explain LINE, a kernel command line or its crashkernel= words: how much memory
the kernel reserves, above and below the limit of low memory, and by which
rules: those of the newest kernel known, not of the running one, unless --kernel
is given. The machine is this one by default: run this as root,
since /proc/iomem is hidden from others. With --memory, a typical memory layout is
assumed; with another --arch and no --memory, 16G."""
_STATUS = """\
Check everything that must hold for the next crash to leave a dump. Print one
line per check: ok, warn or fail, what was found, and below it what to do. Run it
as root: other users cannot read /proc/iomem and /proc/kcore."""
_STATUS_STATUS = {
    0: "no check failed; a warning is not a failure",
    1: "a check failed: the next crash may leave no dump",
}
_ADVISE = """\
Print the crashkernel= to boot with, and why: what the capture kernel, its
initramfs and vmfilter need on this system, and some more."""
_CRASHKERNEL_STATUS = {
    0: "the kernel reserves memory",
    1: "it reserves none: LINE is invalid, or the memory does not fit",
}
_EXAMPLES = {
    "vmfilter kdump install": "the hooks and rules; as root",
    "vmfilter kdump remove --dry-run": "what would be removed",
    "vmfilter kdump collect /tmp/initramfs": "for an initramfs builder",
    "vmfilter kdump status": "will the next crash leave a dump; as root",
    "vmfilter kdump advise": "which crashkernel= to boot with; as root",
    "vmfilter kdump crashkernel 1G,high --memory 64G": "what a machine with 64 GiB would reserve",
}


def add_to(commands: Commands) -> None:
    """Add the subcommand and its actions to the parser."""

    def add(to: Commands, name: str, help: str, text: str, statuses: Mapping[int, str] | None = None) -> Parser:
        examples = {command: does for command, does in _EXAMPLES.items() if f" {name}" in command}
        return to.add_parser(name, help=help, description=text, examples=examples, statuses=statuses)

    p = add(commands, "kdump", "install vmfilter into kdump, and check that kdump is ready", _KDUMP)
    actions = p.add_subparsers(title="actions", metavar="ACTION", required=True, dest="action")
    for a in (
        add(actions, "install", "install vmfilter into kdump", _DESCRIPTION),
        add(actions, "remove", "remove the installed files, except those modified since", _REMOVE),
    ):
        a.add_argument(
            "--root", type=_directory, default="/", metavar="DIR", help="root of the system (default: %(default)s)"
        )
        a.add_argument("--dry-run", action="store_true", help="print what would be done, and change nothing")
        a.set_defaults(run=_install)
    a = add(actions, "collect", "add vmfilter to an initramfs", _COLLECT)
    a.add_argument("initramfs", type=_directory, metavar="DIR", help="root of the initramfs under construction")
    a.set_defaults(run=_install)
    for a, run in (
        (add(actions, "status", "check that the next crash leaves a dump", _STATUS, _STATUS_STATUS), _status),
        (add(actions, "advise", "print the crashkernel= to use", _ADVISE), _advise),
    ):
        a.add_argument("--root", type=_directory, default="/", metavar="DIR", help="look below DIR (default: /)")
        add_json(a)
        a.set_defaults(run=run)
    a = add(actions, "crashkernel", "explain crashkernel=", _CRASHKERNEL, _CRASHKERNEL_STATUS)
    a.add_argument("line", metavar="LINE", help="such as 'crashkernel=1G,high crashkernel=256M,low'")
    a.add_argument("--arch", metavar="NAME", help="x86_64, arm64, riscv64, loongarch64, s390x, ppc64 or arm")
    a.add_argument("--memory", type=size_of, metavar="SIZE", help="memory of the machine, in bytes or with K, M, G, T")
    a.add_argument("--kernel", metavar="VERSION", help="rules of this version, such as 6.1 (default: the newest known)")
    add_json(a)
    a.set_defaults(run=_crashkernel)


def _directory(name: str) -> str:
    """Reject an empty name: it is an unset shell variable, and would mean the working directory."""
    if not name:
        raise UsageError("the directory name is empty")
    return name


def _install(options: Namespace) -> int:
    """Install, remove or collect, print what was done, return the exit status."""
    from vmfilter.console.output import hand_out, one_line, show

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
        try:
            done = (install if options.action == "install" else remove)(options.root, dry_run=options.dry_run)
        except VmfilterError as e:
            if "; " not in str(e):  # of what the system refuses, and of nothing to remove
                raise type(e)(f"{e}; be root, and name the system with --root if it is another") from e.__cause__
            raise
        if options.dry_run:
            hand_out(map(one_line, done))
        else:
            show(*map(one_line, done))
    return 0


def _crashkernel(options: Namespace) -> int:
    """Explain a line, return the exit status."""
    from vmfilter.console.output import hand_out
    from vmfilter.readiness.crashkernel import explain
    from vmfilter.readiness.machine import machine_of
    from vmfilter.report.data import document
    from vmfilter.report.readiness import crashkernel_data, crashkernel_lines

    machine = machine_of(options.arch, options.memory, options.kernel)
    line = (
        options.line
        if "crashkernel=" in options.line
        else " ".join(f"crashkernel={word}" for word in options.line.split())
    )
    made = explain(line, machine.arch, machine.ram, machine.kernel)
    hand_out(
        [document(crashkernel_data(line, machine, made))] if options.json else crashkernel_lines(line, machine, made)
    )
    return 0 if made.valid else 1


def _system(root: str) -> System:
    """Return the system below a directory. Raises InputError if there is none: a wrong name is no fault of kdump."""
    from pathlib import Path

    from vmfilter.errors import InputError
    from vmfilter.readiness.system import System

    if not Path(root).is_dir():
        raise InputError(f"{root}: is not a directory; name the root of a system")
    return System(Path(root))


def _status(options: Namespace) -> int:
    """Check the system, return the exit status."""
    from vmfilter.console.output import hand_out
    from vmfilter.readiness.checks import FAIL, check, worst
    from vmfilter.report.data import document
    from vmfilter.report.readiness import status_data, status_lines

    results = check(_system(options.root))
    hand_out([document(status_data(results))] if options.json else status_lines(results))
    return 1 if worst(results) == FAIL else 0


def _advise(options: Namespace) -> int:
    """Print advice, return the exit status."""
    from vmfilter.console.output import hand_out
    from vmfilter.readiness.advice import advise
    from vmfilter.report.data import document

    advice = advise(_system(options.root))
    hand_out([document(advice._asdict())] if options.json else [advice.line, advice.reason])
    return 0
