"""A kernel's vmlinux: its symbols, and its types from BTF or DWARF. Source: elf(5)."""

from __future__ import annotations

import mmap
import os
import re
import struct

from vmfilter.errors import InputError, UsageError, WrongKernelError, why_not_opened
from vmfilter.formats.abi import Abi
from vmfilter.formats.elf import CLASSES, IDENT_SIZE, SIGNS, ElfHeader, note_header, padded
from vmfilter.kernel.types.symbols import Symbols, SymbolTable
from vmfilter.lean import TYPE_CHECKING, NamedTuple, suppress
from vmfilter.reader.plain import PlainFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from vmfilter.kernel.types.area import Readable
    from vmfilter.kernel.types.dwarf import Dwarf
    from vmfilter.kernel.types.model import Types

_NT_GNU_BUILD_ID = 3
_SHT_SYMTAB, _SHT_NOTE, _SHT_NOBITS = 2, 7, 8
_MAX_SECTIONS, _MAX_SYMBOLS = 1 << 12, 1 << 20
_SYMBOL = {8: "IBBHQQ", 4: "IIIBBH"}  # Elf64_Sym, Elf32_Sym
_NAMELESS = 3, 4  # STT_SECTION, STT_FILE
_UNDEFINED, _ABSOLUTE = 0, 0xFFF1  # SHN_UNDEF, SHN_ABS
_WITNESS = "_stext"
_BANNER = "linux_banner"
_MAX_BANNER = 512  # bytes
_SEPARATE = "/usr/lib/debug/.build-id/{0}/{1}.debug", "{cache}/{0}{1}/debuginfo"
_OF_MODULES = "/usr/lib/debug/lib/modules/{}"
_SHF_COMPRESSED = 1 << 11


class _Section(NamedTuple):
    name: str
    kind: int
    flags: int
    address: int
    offset: int
    size: int


class Vmlinux:
    """A vmlinux, or the file with its debug information.

    Attributes:
        path: of the file, for messages.
        abi: of the kernel.
        build_id: in hexadecimal; "" if it has none.

    """

    def __init__(self, file: PlainFile) -> None:
        """Open the file.

        Raises:
            InputError: it cannot be read, or is not ELF.

        """
        self._file, self.path = file, file.name
        try:
            with file.open() as opened:
                self._data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as e:
            raise InputError(f"{self.path}: cannot be read: {why_not_opened(self.path, e)}") from e
        except ValueError as e:
            raise InputError(f"{self.path}: not a vmlinux: it is empty; get it again") from e
        try:
            self._sections = {section.name: section for section in self._read_sections()}
        except (struct.error, KeyError, IndexError, OverflowError) as e:
            self._data.close()
            raise InputError(
                f"{self.path}: not a vmlinux: it is no ELF file, or its sections are damaged; give "
                "the one that the kernel's build made"
            ) from e
        self.build_id = next(self._build_ids(), "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; what was read of it stays."""
        self._data.close()

    def _read_sections(self) -> Iterator[_Section]:
        ident = self._data[:IDENT_SIZE]
        if ident[:4] != b"\x7fELF":
            raise KeyError
        kind, sign = CLASSES[ident[4]], SIGNS[ident[5]]
        self.abi = Abi(kind.word_bits // 8, "little" if sign == "<" else "big")
        header = ElfHeader(*struct.unpack_from(sign + kind.header, self._data))
        form = struct.Struct(sign + kind.section)
        if header.shnum > _MAX_SECTIONS or header.shentsize != form.size:
            raise KeyError
        raw = [form.unpack_from(self._data, header.shoff + i * form.size) for i in range(header.shnum)]
        start, size = raw[header.shstrndx][4:6]
        names = self._data[start : start + size]
        for name, section_kind, flags, address, offset, size, *_ in raw:
            text = names[name : max(names.find(b"\0", name), 0)].decode("latin-1")
            yield _Section(text, section_kind, flags, address, offset, size)

    def section(self, name: str) -> bytes:
        """Return the contents of a section; nothing if there is none."""
        found = self._sections.get(name)
        if found is None or found.kind == _SHT_NOBITS:
            return b""
        return self._data[found.offset : found.offset + found.size]

    def read(self, address: int, size: int) -> bytes:
        """Return what is at a virtual address before the kernel is moved, as far as the file has it."""
        for one in self._sections.values():
            if one.address and one.kind != _SHT_NOBITS and one.address <= address < one.address + one.size:
                at = one.offset + address - one.address
                return self._data[at : min(at + size, one.offset + one.size)]
        return b""

    def _build_ids(self) -> Iterator[str]:
        for one in self._sections.values():
            yield from build_ids(self.section(one.name) if one.kind == _SHT_NOTE else b"", self.abi)

    def table(self) -> SymbolTable:
        """Return the symbols where they were linked. Raises InputError if the file has none."""
        symtab = next((one for one in self._sections.values() if one.kind == _SHT_SYMTAB), None)
        data = b"" if symtab is None else self.section(symtab.name)
        form = struct.Struct(self.abi.sign + _SYMBOL[self.abi.word])
        texts = self.section(".strtab")
        names, kinds, addresses = [b""], bytearray(), []
        for entry in form.iter_unpack(data[: len(data) // form.size * form.size][: _MAX_SYMBOLS * form.size]):
            name, value = entry[0], entry[4 if self.abi.word == 8 else 1]
            info, index = (entry[1], entry[3]) if self.abi.word == 8 else (entry[3], entry[5])
            text = texts[name : max(texts.find(b"\0", name), 0)]
            if text and info & 0xF not in _NAMELESS and index != _UNDEFINED:
                names.append(text)
                kinds += _letter(info, index)
                addresses.append(value)
        if not addresses:
            raise InputError(f"{self.path}: has no symbols: give the vmlinux that the kernel's build made")
        return SymbolTable("", b"\0".join([*names, b""]), bytes(kinds), addresses)

    def symbols(self, kernel: Readable) -> Symbols:
        """Return the symbols where KASLR moved them.

        Raises:
            InputError: the file has no symbols.
            WrongKernelError: it is of another kernel.

        """
        start = kernel.info.symbol(_WITNESS)
        self.check(kernel, start)
        linked = self.table()
        shift = _shift(linked, start)
        lowest = min((at for name in (_WITNESS, "_text") if (at := linked.address(name)) is not None), default=0)
        mask = (1 << 8 * self.abi.word) - 1
        # Per-CPU and absolute symbols are below the image, and do not move.
        return Symbols(linked.moved(lambda at: at + shift & mask if at >= lowest else at))

    def check(self, kernel: Readable, start: int | None) -> bool:
        """Find out whether the file is of a kernel: by its build ID, or else by its linux_banner.

        Args:
            kernel: the kernel.
            start: address of its _stext; None if it is not known.

        Returns:
            Whether it is; False if neither tells.

        Raises:
            WrongKernelError: it is of another.

        """
        said = kernel.info.plain("BUILD-ID")
        if self.abi != kernel.abi:
            raise WrongKernelError(f"{self.path} is of another machine than the dump; give the vmlinux of its kernel")
        if said and self.build_id:
            if said != self.build_id:
                raise WrongKernelError(
                    f"{self.path} is of build {self.build_id}, and the dump's kernel of {said:.64}: give "
                    "the vmlinux of that one"
                )
            return True
        table = self.table()
        linked = table.address(_BANNER)
        own = b"" if linked is None else self.read(linked, _MAX_BANNER).partition(b"\0")[0]
        at = None if linked is None or start is None else linked + _shift(table, start)
        theirs = kernel.memory.read(at, len(own)) if at is not None and own else None
        if theirs not in (None, own):
            raise WrongKernelError(
                f"{self.path} is of another kernel than the dump: linux_banner differs; give the vmlinux of its kernel"
            )
        return theirs is not None

    def shift(self, start: int | None) -> int:
        """Return by how many bytes KASLR moved a kernel whose _stext is at an address. Raises as table()."""
        return _shift(self.table(), start)

    def types(self) -> Types:
        """Return the types: from BTF if the file has it, or else from DWARF.

        Raises:
            KernelError: they are damaged.
            UsageError: DWARF needs pyelftools, which is not installed.
            InputError: the file has neither, nor is there one with its debug information.

        """
        raw = self.section(".BTF")
        if raw:
            from vmfilter.kernel.types.btf import Btf

            return Btf(raw, self.abi, self.path)
        return self.dwarf()

    def dwarf(self) -> Dwarf:
        """Return the types from DWARF, in this file or that with its debug information. Raises as types()."""
        debug = self._file if ".debug_info" in self._sections else self._separate()
        try:
            from vmfilter.kernel.types.dwarf import Dwarf, dwarf_info
        except ImportError as e:
            raise UsageError(
                f"{debug.name}: its types are DWARF, which needs pyelftools: pip install 'vmfilter[debuginfo]'"
            ) from e
        try:
            with debug.open() as file:
                return Dwarf(dwarf_info(file), self.abi, debug.name)
        except Exception as e:  # see dwarf.py
            raise InputError(f"{debug.name}: its debug information is damaged, or cannot be read; get it again") from e

    def may_describe(self, name: str) -> bool:
        """Return whether the debug information in this file can have a name: its strings have it, or are compressed."""
        found = [one for one in self._sections.values() if one.name in (".debug_str", ".debug_info")]
        text = name.encode("latin-1", "replace") + b"\0"
        return any(one.flags & _SHF_COMPRESSED or text in self.section(one.name) for one in found)

    def _separate(self) -> PlainFile:
        found = separate(self.build_id)
        if found is None:
            raise InputError(
                f"{self.path}: has no DWARF, and a file with its debug information is not installed: "
                "get it with debuginfod-find"
            )
        return PlainFile(found)


def separate(build_id: str) -> str | None:
    """Return the path of the file with the debug information of a build: installed, or debuginfod's; None: neither."""
    cache = os.environ.get("DEBUGINFOD_CACHE_PATH") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "debuginfod_client"
    )
    places = [form.format(build_id[:2], build_id[2:], cache=cache) for form in _SEPARATE]
    return next((place for place in places if build_id and os.path.isfile(place)), None)


def debug_of_module(name: str, build_id: str, release: str) -> Vmlinux | None:
    """Return the file with the debug information of a module; None if it is not installed.

    Distributions name it by the build ID, or keep it in the folder of its kernel.

    Args:
        name: of the module, as the kernel has it.
        build_id: in hexadecimal.
        release: of the kernel.

    """
    own = separate(build_id)
    paths = [own] if own else []
    if re.fullmatch(r"[\w.+~-]+", release) and release.strip("."):  # a dump must not lead anywhere else
        files = (os.path.join(at, file) for at, _, files in os.walk(_OF_MODULES.format(release)) for file in files)
        paths += [path for path in files if os.path.basename(path).partition(".ko")[0].replace("-", "_") == name]
    for path in paths:
        with suppress(InputError):
            file = Vmlinux(PlainFile(path))
            if file.build_id == build_id:
                return file
            file.close()
    return None


def build_ids(notes: bytes, abi: Abi) -> Iterator[str]:
    """Yield the build IDs among notes, in hexadecimal."""
    header, at = note_header("<" if abi.byteorder == "little" else ">"), 0
    while at + header.size <= len(notes):
        name_size, size, kind = header.unpack_from(notes, at)
        name, desc = at + header.size, at + header.size + padded(name_size)
        if kind == _NT_GNU_BUILD_ID and notes[name : name + 4] == b"GNU\0":
            yield notes[desc : desc + size].hex()
        at = desc + padded(size)


def _shift(linked: SymbolTable, start: int | None) -> int:
    """Return by how many bytes KASLR moved a kernel whose _stext is at an address."""
    own = linked.address(_WITNESS)
    return 0 if own is None or start is None else start - own


def _letter(info: int, index: int) -> bytes:
    """Return the letter of a symbol's type, as far as nm(1) tells it without sections."""
    kind, is_local = info & 0xF, info >> 4 == 0
    letter = b"A" if index == _ABSOLUTE else b"T" if kind == 2 else b"D"
    return letter.lower() if is_local else letter
