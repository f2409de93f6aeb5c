"""Modules of the crashed kernel: where they are, their symbols, and their types.

struct module has module_memory since ac3b43283923 ("module: replace module_layout with module_memory"), v6.4.
"""

from __future__ import annotations

import struct

from vmfilter.errors import InputError, KernelError, UsageError, did_you_mean
from vmfilter.kernel.types.area import read_table
from vmfilter.kernel.types.btf import Btf
from vmfilter.kernel.types.symbols import Symbols, SymbolTable
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.kernel.types.model import Types
    from vmfilter.kernel.types.structures import Object, Structures

_MAX_MODULES = 1 << 12
_MAX_SYMBOLS = 1 << 18  # of a module
_MAX_NOTES, _MAX_NOTE = 16, 1 << 12  # of a module, and bytes of each
_UNFORMED = 3  # MODULE_STATE_UNFORMED: its memory is being filled
_SYMBOL = {8: "IBBHQQ", 4: "IIIBBH"}  # Elf64_Sym, Elf32_Sym
_VALUE = {8: 4, 4: 1}  # place of st_value in it


class Module(NamedTuple):
    """A module.

    Attributes:
        name: of the module.
        ranges: virtual addresses [start, end) that it occupies.
        record: its struct module.

    """

    name: str
    ranges: list[tuple[int, int]]
    record: Object


def modules(structures: Structures, symbols: Symbols) -> Iterator[Module]:
    """Yield the modules, the one loaded last first. Raises KernelError if the types do not fit."""
    head = symbols.address("modules")
    if head is None:  # built without modules
        return
    for record in structures.listed(head, "module", "list", _MAX_MODULES):
        if record.number("state") != _UNFORMED:
            yield Module(record.text("name"), list(_ranges(structures, record)), record)


def _ranges(structures: Structures, record: Object) -> Iterator[tuple[int, int]]:
    word, order = structures.kernel.abi.word, structures.kernel.abi.byteorder
    if record.has("mem"):
        name, raw = "module_memory", record.raw("mem")
        step = structures.size(name)
        parts = [raw[i : i + step] for i in range(0, len(raw), step)] if step else []
    else:
        name, parts = "module_layout", [record.raw("core_layout"), record.raw("init_layout")]
    base, size = structures.field(name, "base").offset, structures.field(name, "size").offset
    for part in parts:
        start = int.from_bytes(part[base : base + word], order)
        length = int.from_bytes(part[size : size + 4], order)
        if start and length:
            yield start, start + length


def add_modules(structures: Structures, symbols: Symbols) -> list[str]:
    """Add the symbols of all modules.

    Args:
        structures: of the kernel.
        symbols: of the kernel image.

    Returns:
        Which modules have none, one line each.

    """
    lost = []
    for module in modules(structures, symbols):
        try:
            table = _symbols(structures, module)
        except KernelError as e:
            lost.append(f"the symbols of module {module.name} are missing: {e}")
            table = SymbolTable(module.name, b"\0", b"", [])
        symbols.add(table, module.ranges)
    return lost


def _symbols(structures: Structures, module: Module) -> SymbolTable:
    kernel = structures.kernel
    at = module.record.number("kallsyms")
    tables = structures.read("mod_kallsyms", at)
    if tables is None:
        raise KernelError(f"struct mod_kallsyms at {at:#x} is not in the dump")
    count = tables.number("num_symtab")
    if count > _MAX_SYMBOLS:
        raise KernelError(f"num_symtab at {at:#x} is {count}: the kernel's memory is damaged")
    form = struct.Struct(kernel.abi.sign + _SYMBOL[kernel.abi.word])
    raw = read_table(kernel, "symtab", tables.number("symtab"), form.size * count)
    # Since 1c7651f43777 ("kallsyms: store type information in its own array"), v5.2; before, it was in st_info.
    kinds = read_table(kernel, "typetab", tables.number("typetab"), count)
    start = tables.number("strtab")
    end = next((end for first, end in module.ranges if first <= start < end), None)
    if end is None:
        raise KernelError(f"strtab at {start:#x} is outside the module: the kernel's memory is damaged")
    texts = read_table(kernel, "strtab", start, end - start)
    names, addresses, letters = [b""], [], []
    place = _VALUE[kernel.abi.word]
    for i, entry in enumerate(form.iter_unpack(raw)):
        name = texts[entry[0] : max(texts.find(b"\0", entry[0]), 0)]
        if name:
            names.append(name)
            addresses.append(entry[place])
            letters.append(kinds[i])
    return SymbolTable(module.name, b"\0".join([*names, b""]), bytes(letters), addresses)


def _module_types(structures: Structures, symbols: Symbols, base: Btf) -> Iterator[Btf]:
    """Yield the types of each module that has some in memory.

    Since 36e68442d1af ("bpf: Load and verify kernel module BTFs"), v5.11, the list btf_modules has them.
    """
    head = symbols.address("btf_modules")
    for entry in structures.listed(head, "btf_module", "list", _MAX_MODULES) if head is not None else ():
        module = structures.read("module", entry.number("module"))
        own = structures.read("btf", entry.number("btf"))
        if module is not None and own is not None:
            name = module.text("name")
            data = read_table(structures.kernel, f"types (BTF) of {name}", own.number("data"), own.number("data_size"))
            yield Btf(data, structures.kernel.abi, name, base)


def _debug_types(structures: Structures, symbols: Symbols, but: set[str], name: str) -> Iterator[Types]:
    """Yield the types in the installed debug information of modules, but for some of them, if it can have a name."""
    release = structures.kernel.info.plain("OSRELEASE") or ""
    for module in modules(structures, symbols):
        build_id = _build_id(structures, module) if module.name not in but else ""
        if build_id:
            from vmfilter.kernel.types.vmlinux import debug_of_module

            file = debug_of_module(module.name, build_id, release)
            if file is not None:
                try:
                    with file:
                        if file.may_describe(name):
                            yield file.dwarf()
                except (InputError, UsageError) as e:
                    raise KernelError(str(e)) from e


def _build_id(structures: Structures, module: Module) -> str:
    """Return the build ID of a module in hexadecimal, by its notes in /sys/module; "" if it has none."""
    from vmfilter.kernel.types.vmlinux import build_ids

    kernel, record = structures.kernel, module.record
    notes = record.number("notes_attrs") if record.has("notes_attrs") else 0
    if not notes:
        return ""
    first = notes + structures.field("module_notes_attrs", "attrs").offset
    for i in range(_MAX_NOTES):
        note = structures.read("bin_attribute", first + i * structures.size("bin_attribute"))
        at, size = (note.number("private"), note.number("size")) if note is not None else (0, 0)
        if not any(start <= at < end for start, end in module.ranges):
            break
        data = kernel.memory.read(at, min(size, _MAX_NOTE)) or b""
        found = next(build_ids(data, kernel.abi), "")
        if found:
            return found
    return ""


def find_type(structures: Structures, symbols: Symbols, name: str) -> tuple[Types, int]:
    """Find a structure or union of the kernel, or else of a module: in memory, or else in its debug information.

    Args:
        structures: of the kernel.
        symbols: of the kernel image.
        name: as Btf.find() takes it.

    Returns:
        The types among which it is, and its number.

    Raises:
        KernelError: there is none of this name, or types are missing or damaged, or pyelftools is not installed.

    """
    number = structures.types.find(name)
    if number is not None:
        return structures.types, number
    described = set[str]()
    for btf in _module_types(structures, symbols, structures.types) if isinstance(structures.types, Btf) else ():
        described.add(btf.name)
        number = btf.find(name)
        if number is not None:
            return btf, number
    for types in _debug_types(structures, symbols, described, name.rpartition(" ")[2]):
        number = types.find(name)
        if number is not None:
            return types, number
    near = nearest(name, structures.types)
    raise KernelError(f"the kernel's types and its modules' have no structure or union {name!r:.80}{near}")


def nearest(name: str, types: Types) -> str:
    """Return what to do about a name that no structure has; types: of the kernel."""
    return did_you_mean(name.rpartition(" ")[2], types.names()) or "; give a name as C has it"
