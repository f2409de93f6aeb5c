"""The crashed kernel: its name, and its symbols and structures if they are in the dump."""

from __future__ import annotations

from vmfilter.crash.tasks import list_tasks
from vmfilter.errors import InputError, KernelError, UsageError, check_address, not_found
from vmfilter.kernel.types.debug_info import debug_info
from vmfilter.kernel.types.modules import nearest
from vmfilter.kernel.types.structures import AskedStructures
from vmfilter.lean import TYPE_CHECKING, cached_property

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmfilter.crash.tasks import Task
    from vmfilter.kernel import kernel
    from vmfilter.kernel.types.debug_info import DebugInfo
    from vmfilter.kernel.types.structures import Object
    from vmfilter.reader import Dump


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _check_name(name: object) -> None:
    """Check an argument. Raises UsageError unless it is a string."""
    if not isinstance(name, str):
        raise UsageError(f"{name!r:.80} is not the name of a symbol or type: give text, as C has it")


class Kernel:
    """The crashed kernel.

    Symbols (kallsyms) and types (BTF) come from the dump itself. Where it lacks them, or the kernel was built without,
    open_dump() takes a vmlinux.

    Attributes:
        release: as uname -r prints it.
        version: as uname -v prints it.
        machine: as uname -m prints it.
        nodename: name of the host.
        page_size: bytes.

    """

    def __init__(self, dump: Callable[[], Dump], found: kernel.Kernel) -> None:
        """Describe a kernel that was found in a dump; dump() returns it, or raises UsageError once it is closed."""
        self._dump, self._path, self._kernel = dump, dump().path, found
        self.release, self.version = _text(found.uts.release), _text(found.uts.version)
        self.machine, self.nodename = _text(found.uts.machine), _text(found.uts.nodename)
        self.page_size = found.page_size

    def __repr__(self) -> str:
        return f"<vmfilter.Kernel {self.release} {self.machine}>"

    @property
    def _info(self) -> DebugInfo:
        """Symbols and types. Raises UsageError if the dump is closed: its memory would seem to be excluded."""
        self._dump()
        return self._found

    @cached_property
    def _found(self) -> DebugInfo:
        try:
            return debug_info(self._kernel)
        except KernelError as e:
            raise not_found(self._path, e) from e

    @cached_property
    def _structures(self) -> AskedStructures:
        try:
            types = self._info.need_structures().types
        except KernelError as e:
            raise not_found(self._path, e) from e
        return AskedStructures(self._kernel, types, f"{self._path}: ")

    def symbol(self, name: str) -> int:
        """Return the virtual address of a symbol of the kernel image.

        Args:
            name: as /proc/kallsyms has it.

        Raises:
            KernelError: there is none of this name, or the dump lacks the kernel's symbols.

        """
        _check_name(name)
        address = self._info.symbols.address(name)
        if address is None:
            raise KernelError(f"{self._path}: the kernel has no symbol {name!r:.80}: vmfilter symbols lists them")
        return address

    def symbol_at(self, address: int) -> str:
        """Return a virtual address as name+offset/size; "" if it is neither in the kernel image nor in a module.

        Args:
            address: of code or data.

        Raises:
            KernelError: the dump lacks the kernel's symbols.

        """
        check_address(address)
        place = self._info.symbols.place(address)
        return "" if place is None else str(place)

    def struct(self, name: str, address: int) -> Object:
        """Read a structure or union.

        Args:
            name: of its type, such as task_struct.
            address: virtual address where it begins.

        Returns:
            The structure. ``.number("pid")``, ``.text("comm")`` and ``.raw("comm")`` read its members; ``mm.pgd``
            names a member of a member.

        Raises:
            KernelError: the kernel has no such type, or the dump lacks its types.
            InputError: the dump does not contain all of it.

        """
        _check_name(name)
        check_address(address)
        self._dump()
        structures = self._structures
        if structures.types.find(name) is None:
            near = nearest(name, structures.types)
            raise not_found(self._path, f"the kernel has no structure or union {name!r:.80}{near}")
        try:
            found = structures.read(name, address)
        except KernelError as e:
            raise not_found(self._path, e) from e
        if found is None:
            raise InputError(f"{self._path}: not all of {name} at {address:#x} is in the dump; the vmcore may have it")
        return found

    def tasks(self) -> list[Task]:
        """Return all tasks, and the idle task of each CPU.

        Raises:
            KernelError: the dump lacks the kernel's symbols, types or tasks.

        """
        info = self._info
        try:
            return list_tasks(self._dump(), info).tasks
        except KernelError as e:
            raise not_found(self._path, e) from e
