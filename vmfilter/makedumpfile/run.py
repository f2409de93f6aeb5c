"""Runs a makedumpfile command line."""

from __future__ import annotations

import errno
import os

from vmfilter.console.output import hand_out, one_line, trouble
from vmfilter.console.signals import EndedError, EndsBetweenPages
from vmfilter.errors import (
    CodecError,
    InputError,
    KernelError,
    NoSpaceError,
    OutputError,
    UsageError,
    VmfilterError,
    WrongKernelError,
    not_found,
    not_understood,
)
from vmfilter.lean import TYPE_CHECKING
from vmfilter.makedumpfile.messages import HEADLINE, Messages, help_lines, mem_usage, report, version
from vmfilter.makedumpfile.options import Command, check, parse
from vmfilter.reader import Dump, open_dump
from vmfilter.writer.output import put, side_file
from vmfilter.writer.transport.base import Published

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from vmfilter.erase.rules import Rules
    from vmfilter.statistics import Statistics

_COMPLETED, _FAILED, _WRONG_RELEASE = 0, 1, 2
_NOT_MAPPED = (1 << 64) - 1


def run(arguments: Sequence[str]) -> int:
    """Run makedumpfile with arguments, without the program name; return its exit status."""
    command, messages = Command(), Messages()
    try:
        try:
            parse(arguments, command)
        finally:
            messages.obey(command)
        if command.help or command.version:
            messages.result(help_lines() if command.help else version())
            return _COMPLETED
        check(command)
        if command.check_params:
            _check_files(command)
            return _COMPLETED
        messages.debug(HEADLINE, one_line(f"command line: makedumpfile {' '.join(arguments)}"), "")
        for name, why in command.unneeded.items():
            messages.common(f"'{name}' option has no effect: {why}.")
        if command.work_dir:
            os.environ["TMPDIR"] = command.work_dir
        job = next((job for mode, job in _JOBS.items() if getattr(command, mode)), _create)
        if saved := job(command, messages):  # --mem-usage saves nothing, and makedumpfile prints no more
            messages.common("", one_line(saved), "", "makedumpfile Completed.")
        return _COMPLETED
    except CodecError as e:  # from a set to reassemble; the command line is valid
        messages.error(trouble(e))
    except WrongKernelError:
        messages.error(f"{command.vmlinux} and {command.files[0]} don't match.")
        messages.common("", "makedumpfile Failed.")
        return _WRONG_RELEASE
    except UsageError as e:
        lines = [str(e)] if str(e) else []
        messages.common(*lines, "Commandline parameter is invalid.", "Try `makedumpfile --help' for more information.")
    except VmfilterError as e:
        messages.error(trouble(e))
    except MemoryError:
        messages.error("out of memory; use --num-threads 1")
    except EndedError as e:
        messages.always(str(e))
        return 128 + e.number
    if not command.check_params:
        messages.common("", "makedumpfile Failed.")
    return _FAILED


def _path(name: str) -> str:
    """Return a path for vmfilter. To makedumpfile, - is a file of that name."""
    return f"./{name}" if name == "-" else name


def _check_files(command: Command) -> None:
    """Check the files of a run that exist before it. Raises VmfilterError if it would refuse one.

    VMCORE need not exist yet, and a DUMPFILE that exists may be gone by then.
    """
    from vmfilter.erase.evaluate import commands_in
    from vmfilter.kernel.types.vmlinux import Vmlinux
    from vmfilter.reader.open import given_in
    from vmfilter.reader.plain import PlainFile
    from vmfilter.writer.output import Form, check

    if command.config:
        commands_in(command.config)
    if command.vmcoreinfo:
        given_in(command.vmcoreinfo)
    if command.vmlinux:
        Vmlinux(PlainFile(command.vmlinux)).close()
    if outputs := [_path(name) for name in _outputs(command)]:
        check(outputs, Form("kdump", None, False, False, None, None, command.force, True, limit=command.limit), None)
    for path in outputs:
        if os.path.exists(path) and not os.path.isfile(path):
            raise OutputError(f"{path}: exists and is not a regular file; choose another name")


def _outputs(command: Command) -> list[str]:
    """Return the names of the files that a run makes."""
    if command.generate:
        return [command.generate]
    if command.flatten or command.mem_usage:
        return []
    return command.files[:1] if command.rearrange else command.files[-1:] if command.reassemble else command.files[1:]


def _opened(command: Command) -> Dump:
    return open_dump(_path(command.files[0]), vmcoreinfo=command.vmcoreinfo, vmlinux=command.vmlinux)


def _check_free(command: Command, paths: Sequence[str]) -> None:
    for path in paths:
        if os.path.lexists(path) and not (command.force and os.access(path, os.W_OK)):
            reason = os.strerror(errno.EACCES if command.force else errno.EEXIST)
            raise OutputError(f"Can't open the dump file ({path}). {reason}")


def _rearrange(command: Command, messages: Messages) -> str:
    from vmfilter.rearrange import rearrange, standard_input

    output = _path(command.files[0])
    _check_free(command, [output])
    made = rearrange(standard_input(), output, force=command.force, dry_run=command.dry_run, name="standard input")
    if made.cut:
        messages.common("This is an incomplete dumpfile, but might analyzable.")
        raise InputError(f"standard input: {made.cut}")
    return f"The dumpfile is saved to {command.files[0]}."


def _reassemble(command: Command, messages: Messages) -> str:
    from vmfilter.convert import convert_dump

    *parts, output = map(_path, command.files)
    _check_free(command, [output])
    try:
        with open_dump(parts) as dump:
            result = convert_dump(dump, output, force=command.force, progress=messages.progress)
    finally:
        messages.end_progress()
    _tell(result, messages)
    return f"The dumpfile is saved to {command.files[-1]}."


def _show_vmcoreinfo(dump: Dump, messages: Messages) -> None:
    """Print VMCOREINFO as debug messages. With --dump-dmesg, SUSE's kdump reads OSRELEASE and CRASHTIME there."""
    from vmfilter.kernel.search import vmcoreinfo_of

    if messages.debugs and (info := vmcoreinfo_of(dump)):
        messages.debug("VMCOREINFO   :", *(f"  {one_line(line)}" for line in info.text.splitlines()), "")


def _generate(command: Command, messages: Messages) -> str:
    from vmfilter.makedumpfile.generate import generated

    _save(
        "".join(f"{line}\n" for line in generated(_path(command.vmlinux or ""))),
        command.generate,
        True,
        command.vmlinux,
    )
    return f"The vmcoreinfo is saved to {command.generate}."


def _save(text: str, name: str, force: bool, made_from: Any) -> None:
    """Write a file that is made from a dump, or another file. Raises OutputError."""
    transport = side_file(_path(name), force, made_from)
    with Published([transport]):
        put(transport, text.encode())


def _dmesg(command: Command, messages: Messages) -> str:
    from vmfilter.kernel.log import KernelLog
    from vmfilter.kernel.search import understand
    from vmfilter.report.log import log_lines

    name = "STDOUT" if command.flatten else command.files[1]
    if not command.flatten:
        _check_free(command, [_path(name)])
    with _opened(command) as dump:
        _show_vmcoreinfo(dump, messages)
        _, _, kernel, error, doubts = understand(dump)
        if kernel is None:
            raise not_understood(dump.path, error)
        log = KernelLog(kernel)
        try:
            lines = list(log_lines(log.records(since_clear=command.partial_dmesg), caller=True))
        except KernelError as e:
            raise not_found(dump.path, e) from e
    for warning in (*doubts, *(f"{command.files[0]}: {warning}" for warning in log.warnings())):
        messages.error(f"warning: {warning}")
    if command.flatten:
        hand_out(lines)
    else:
        _save("".join(f"{line}\n" for line in lines), name, command.force, dump)
    return f"The dmesg log is saved to {name}."


def _mem_usage(command: Command, messages: Messages) -> str:
    from vmfilter.measure.mem_usage import usage_with_zero

    with _opened(command) as dump:
        usage, warnings = usage_with_zero(dump, 31)
    for warning in warnings:
        messages.error(f"warning: {warning}")
    messages.result(mem_usage(usage))
    return ""


def _create(command: Command, messages: Messages) -> str:
    names = command.files[1:] or ["STDOUT"]
    outputs = ["-"] if command.flatten else [_path(name) for name in names]
    if not command.flatten:
        _check_free(command, outputs)
    with _opened(command) as dump:
        _show_vmcoreinfo(dump, messages)
        if command.vtop:
            _translate(dump, command.vtop, messages)
        result = _Creation(command, dump, outputs, names, messages).run()
    messages.report(*report(result, command.elf))
    _tell(result, messages)
    if command.split:
        return f"The dumpfiles are saved to {', '.join(names[:-1])}, and {names[-1]}."
    return f"The dumpfile is saved to {names[0]}."


def _tell(result: Statistics, messages: Messages) -> None:
    """Print the warnings about a new dump. Raises InputError if it is incomplete; a warning explains why."""
    for warning in result.warnings:
        messages.error(f"warning: {warning}")
    if result.not_erased:
        messages.always("warning: the new dump contains what was to be erased; message level 4 says what")
    if result.gaps:
        from vmfilter.report.text import coverage

        for line in coverage(result.gaps):
            messages.error(f"warning: {line}")
    if result.incomplete:
        raise InputError("the new dump is incomplete; the warning above says why")


def _translate(dump: Dump, vaddr: int, messages: Messages) -> None:
    from vmfilter.kernel.search import understand

    _, _, kernel, error, _ = understand(dump)
    if error:
        messages.error(error)
    mappings = kernel.memory.translate(vaddr, 1) if kernel else iter(())
    paddr = next((m.paddr for m in mappings), _NOT_MAPPED)
    messages.common("", f"Translating virtual address {vaddr:x} to physical address.")
    messages.common("VIRTUAL           PHYSICAL", f"{vaddr:16x}  {paddr:x}", "")


class _Creation:
    """Makes one dump, at one level after the other until it fits."""

    def __init__(
        self, command: Command, dump: Dump, outputs: Sequence[str], names: Sequence[str], messages: Messages
    ) -> None:
        self._command = command
        self._dump = dump
        self._outputs = outputs
        self._names = ", ".join(names)
        self._messages = messages
        self._progress = EndsBetweenPages(messages.progress, command.flatten)
        self._codec = self._available_codec()

    def _available_codec(self) -> str:
        from vmfilter.formats.codec import parse_codec

        command = self._command
        try:
            return parse_codec(command.codec)[0].name
        except CodecError:  # makedumpfile then writes an uncompressed dump
            self._messages.common(
                f"'{command.codec_option}' option is disabled, because this vmfilter was built without {command.codec}."
            )
            return "none"

    def run(self) -> Statistics:
        """Make the dump. Raises VmfilterError on failure, or if no level fits; pages written by then are kept."""
        first, *others = self._command.levels
        result = self._attempt(first)
        # A stream cannot be rewound, and its reader must not get two dumps.
        for level in [] if self._command.flatten else others:
            if result is not None and (not result.cut_off or self._failed(result)):
                break
            self._messages.common(f"Retry to create a dumpfile by dump_level({level}).")
            self._delete(result)
            result = self._attempt(level)
        if result is not None and result.incomplete:
            self._messages.common("This is an incomplete dumpfile, but might analyzable.")
        if result is None or result.cut_off:
            try:
                raise (result and self._failed(result)) or OutputError(f"{self._names}: the new dump does not fit")
            finally:
                del result  # see vmfilter.errors
        return result

    @staticmethod
    def _failed(result: Statistics) -> BaseException | None:
        """Return the error that ended the run, unless space ran out."""
        return None if isinstance(result.failure, NoSpaceError) else result.failure

    def _attempt(self, level: int) -> Statistics | None:
        """Make a dump; return None if not even a part of it fits."""
        from vmfilter.filter import filter_dump

        command, messages, before = self._command, self._messages, self._dump.header.level
        if level | before != level:
            level |= before
            source = command.files[0]
            messages.common(f"dump_level is changed to {level}, because {source} was created by dump_level({before}).")
        result, failed = None, ""
        try:
            result = filter_dump(
                self._dump,
                self._outputs,
                level=level,
                format="elf" if command.elf else "kdump",
                compress=self._codec,
                limit=command.limit,
                threads=command.threads or None,
                force=command.force,
                keep_incomplete=True,
                dry_run=command.dry_run,
                rules=self._rules(),
                progress=self._progress,
            )
            if result.failure is not None:
                failed = _reason(result.failure)
            elif result.cut_off:
                failed = f"Size limit({command.limit}) reached."
        except NoSpaceError as e:
            failed = _reason(e)
        finally:
            messages.end_progress()
        if failed:
            messages.common("", f"Can't write the dump file({self._names}). {failed}")
        return result

    def _rules(self) -> Rules | None:
        if not self._command.config:
            return None
        from vmfilter.erase.rules import Rules

        return Rules(self._command.config)

    def _delete(self, result: Statistics | None) -> None:
        if result is not None and not self._command.dry_run:
            for path in self._outputs:
                os.unlink(path)


def _reason(failure: BaseException) -> str:
    return str(failure.__cause__.strerror) if isinstance(failure.__cause__, OSError) else str(failure)


_JOBS: dict[str, Callable[[Command, Messages], str]] = {
    "generate": _generate,
    "rearrange": _rearrange,
    "reassemble": _reassemble,
    "dmesg": _dmesg,
    "mem_usage": _mem_usage,
}
"""Actions other than making a dump, by the attribute of Command that selects them."""
