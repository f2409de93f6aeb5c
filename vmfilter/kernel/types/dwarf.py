"""DWARF, the types in a vmlinux without BTF, by pyelftools. Source: the DWARF standard, version 5.

A vmlinux has thousands of units with millions of entries, so nothing is read but what is asked for: a name's place in
.debug_str leads to the attributes that refer to it, and these to their entries. Sections have hundreds of MiB, so they
are mapped. pyelftools trusts the file: if that is damaged, it raises whatever Python does.
"""

from __future__ import annotations

import mmap
import os
import re
from functools import cache, lru_cache
from io import BytesIO
from itertools import chain, islice, takewhile

from elftools.dwarf.die import DIE
from elftools.dwarf.dwarfinfo import DebugSectionDescriptor
from elftools.dwarf.enums import ENUM_DW_AT, ENUM_DW_FORM, ENUM_DW_TAG
from elftools.elf.elffile import ELFFile

from vmfilter.kernel.types.model import COMPOSITES, Kind, Type, Types
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, BinaryIO, Self

    from elftools.dwarf.dwarfinfo import DWARFInfo
    from elftools.elf.sections import Section

    from vmfilter.formats.abi import Abi

_KINDS = {
    "DW_TAG_base_type": Kind.INT,
    "DW_TAG_pointer_type": Kind.PTR,
    "DW_TAG_array_type": Kind.ARRAY,
    "DW_TAG_structure_type": Kind.STRUCT,
    "DW_TAG_union_type": Kind.UNION,
    "DW_TAG_enumeration_type": Kind.ENUM,
    "DW_TAG_typedef": Kind.TYPEDEF,
    "DW_TAG_volatile_type": Kind.VOLATILE,
    "DW_TAG_const_type": Kind.CONST,
    "DW_TAG_restrict_type": Kind.RESTRICT,
    "DW_TAG_subroutine_type": Kind.FUNC_PROTO,
}
_TAGS = {"struct": ("DW_TAG_structure_type",), "union": ("DW_TAG_union_type",)}
_ANY = "DW_TAG_structure_type", "DW_TAG_union_type", "DW_TAG_typedef"
_NAME, _LOCATION, _SIZE, _ENCODING = (
    bytes([ENUM_DW_AT[f"DW_AT_{name}"]]) for name in ("name", "location", "byte_size", "encoding")
)
_BYTE = bytes([ENUM_DW_FORM["DW_FORM_data1"]])
_BEFORE_NAME = {0: _NAME, 2: _SIZE + _BYTE + _ENCODING + _BYTE + _NAME}
"""Bytes in an entry between its form's number and its name, and how such a form begins. gcc's base types have two."""
_VARIABLE = "DW_TAG_variable"  # its definition can lack the name, and refer to its declaration instead
_FORMS = {
    0: ("flag_present", "implicit_const"),
    1: ("data1", "ref1", "flag", "strx1"),
    2: ("data2", "ref2", "strx2"),
    4: ("data4", "ref4", "ref_addr", "strp"),
}
_WIDTHS: dict[int, int] = {ENUM_DW_FORM[f"DW_FORM_{name}"]: width for width, names in _FORMS.items() for name in names}
"""Bytes of attributes that can precede the location of a variable."""
_OP_ADDR = 3  # DW_OP_addr
_SCALARS = "DW_TAG_base_type", "DW_TAG_typedef", "DW_TAG_enumeration_type"
_SIGNED = 5, 6, 13  # DW_ATE_signed, _signed_char, _signed_fixed
_FLOAT = 4  # DW_ATE_float
_ENUM_SIZE = 4
_DIMENSION = 1 << 48  # a number plus this many is the same array without its first dimension
_MAX_FOUND = 1 << 18  # places of a string
_COMPARED = 8  # definitions of a name
_KEPT_FORMS = 64  # units
_NUMBER = rb"(?:[\x80-\xff]*[\0-\x7f])"  # LEB128
_ATTRIBUTE = rb"(?!\0)(N)(?:(\x21)N|(N))".replace(b"N", _NUMBER)  # DW_FORM_implicit_const has its value here
_FORM = re.compile(rb"(N)(N)[\0\1]((?:A)*)\0\0".replace(b"A", rb"(?!\0)N(?:\x21N|(?!\x21)N)").replace(b"N", _NUMBER))


class _Mapping(mmap.mmap):
    """A section of a file as the stream that pyelftools reads. A mapping begins where a page does, so before it.

    Attributes:
        before: bytes of the mapping before the section.

    """

    before: int

    def __new__(cls, file: int, offset: int, size: int) -> Self:
        before = offset % mmap.ALLOCATIONGRANULARITY
        self = super().__new__(cls, file, before + size, access=mmap.ACCESS_READ, offset=offset - before)
        self.before = before
        self.seek(0)
        return self

    def seek(self, pos: int, whence: int = os.SEEK_SET) -> None:
        # A stream lets itself be moved behind its end, where nothing is read.
        super().seek(min(pos + self.before, len(self)) if whence == os.SEEK_SET else pos, whence)  # type: ignore[arg-type]

    def tell(self) -> int:
        return super().tell() - self.before


class _MappedFile(ELFFile):
    """An ELF file whose debug sections are mapped, if they are not compressed. pyelftools copies each.

    Entries of a module are copied: places of strings in them are relocations, as a linker has yet to add them up.
    """

    def _read_dwarf_section(self, section: Section, relocate_dwarf_sections: bool) -> DebugSectionDescriptor:
        size = section.data_size
        if self["e_type"] == "ET_REL" and section.name == ".debug_info":
            return super()._read_dwarf_section(section, True)
        if section.compressed or section["sh_type"] == "SHT_NOBITS" or not size:
            return super()._read_dwarf_section(section, relocate_dwarf_sections)
        offset, address = section["sh_offset"], section["sh_addr"]
        mapping: Any = _Mapping(self.stream.fileno(), offset, size)  # as much of a stream as is used
        return DebugSectionDescriptor(mapping, section.name, offset, size, address)


class _Form(NamedTuple):
    """How entries of a number are laid out: their tag, and their attributes with the form of each."""

    tag: int
    attributes: bytes


class _Contents:
    """The bytes of a debug section, mapped or not."""

    def __init__(self, section: DebugSectionDescriptor | None) -> None:
        stream: Any = BytesIO() if section is None else section.stream
        self._data: _Mapping | bytes = stream if isinstance(stream, _Mapping) else stream.getvalue()
        self._before = self._data.before if isinstance(self._data, _Mapping) else 0

    def at(self, start: int, size: int) -> bytes:
        """Return bytes, as far as there are any."""
        return self._data[self._before + start : self._before + start + size]

    def finds(self, text: bytes) -> Iterator[int]:
        """Yield each place of a text."""
        found, count = self._data.find(text, self._before), 0
        while found >= 0 and count < _MAX_FOUND:
            yield found - self._before
            found, count = self._data.find(text, found + 1), count + 1

    def matches(self, pattern: bytes) -> Iterator[int]:
        """Yield each place where a regular expression matches."""
        return (found.start() - self._before for found in re.compile(pattern).finditer(self._data, self._before))

    def forms(self, start: int) -> dict[int, _Form]:
        """Return the forms of a unit's entries, which are at a place of .debug_abbrev, by their numbers."""
        out, at = {}, self._before + start
        while (one := _FORM.match(self._data, at)) and one[1] != b"\0":
            out[_as_int(one[1])] = _Form(_as_int(one[2]), one[3])
            at = one.end()
        return out


def dwarf_info(file: BinaryIO) -> DWARFInfo:
    """Return what pyelftools reads of an open file. Raises whatever Python does."""
    return _MappedFile(file).get_dwarf_info(relocate_dwarf_sections=False)


class Dwarf(Types):
    """The types in a vmlinux. The number of a type is the offset of its entry."""

    _form = "DWARF"

    def __init__(self, info: DWARFInfo, abi: Abi, path: str) -> None:
        """Take what pyelftools reads.

        Args:
            info: of the file.
            abi: of the kernel.
            path: of the file, for messages.

        """
        super().__init__(path, abi)
        self._info = info
        self._entries, self._strings = map(_Contents, (info.debug_info_sec, info.debug_str_sec))
        self._forms_at = lru_cache(_KEPT_FORMS)(_Contents(info.debug_abbrev_sec).forms)
        self.named_entry = cache(self._named)
        self.get = cache(self._get)  # type: ignore[method-assign]

    def _die(self, offset: int) -> DIE:
        try:
            return self._info.get_DIE_from_refaddr(offset)
        except Exception as e:
            raise self._damaged(f"has no entry at {offset:#x}") from e

    def _named(self, name: str, tag: str) -> DIE | None:
        """Return the entry that defines a name, the largest of several: files have small structures of their own."""
        return max(islice(self._definitions(name, tag), _COMPARED), key=_size, default=None)

    def _definitions(self, name: str, tag: str) -> Iterator[DIE]:
        text = name.encode("latin-1", "replace") + b"\0"
        for place in chain(self._references(text), self._entries.finds(text)):
            start = self._start(place, tag)
            die = None if start is None else self._die(start)
            if die is not None and (tag == _VARIABLE or "DW_AT_declaration" not in die.attributes):
                own = die.attributes.get("DW_AT_name")  # damaged entries have others than their abbreviation says
                if own and own.offset == place and own.value == text[:-1] and self._is_entry(die):
                    yield die

    def _is_entry(self, die: DIE) -> bool:
        """Return whether an entry begins here, and not within another one whose bytes only look like it."""
        try:
            if "DW_AT_sibling" in die.attributes:  # its members end where it says
                count = sum(1 for _ in die.iter_children())
                end = die._terminator
                return (
                    count > 0
                    and end is not None
                    and end.offset + end.size == die.cu.cu_offset + die.attributes["DW_AT_sibling"].value
                )
            return any(one.offset == die.offset for one in die.cu.iter_DIE_children(die.cu.get_top_DIE()))
        except Exception:
            return False

    def _references(self, text: bytes) -> Iterator[int]:
        """Yield the offset of each attribute that refers to a string, or has the same bytes."""
        order = self._abi.byteorder
        # The linker lets a string be the end of another, so it can be at any of these places.
        places = {place.to_bytes(4, order) for place in self._strings.finds(text)}
        sets = (b"".join(b"\\x%02x" % value for value in {place[i] for place in places}) for i in range(4))
        pattern = b"(?=" + b"".join(b"[%s]" % values for values in sets) + b")"
        for found in self._entries.matches(pattern) if places else ():
            if self._entries.at(found, 4) in places:
                yield found

    def _start(self, place: int, tag: str) -> int | None:
        """Return the start of the entry whose name is at a place, if it can have this tag; None if it has not.

        The name is the first attribute or nearly so, after the number of the entry's form, which has one byte or two.
        """
        try:
            forms = self._forms(place)
            for before, beginning in _BEFORE_NAME.items():
                at = place - before
                low, high = self._entries.at(at - 2, 2) if at > 1 else bytes(2)
                for code, size in ((high, 1), (low & 0x7F | high << 7, 2)):
                    form = forms.get(code) if high < 0x80 and (size == 1 or low >= 0x80) else None
                    if form and form.tag == ENUM_DW_TAG[tag] and form.attributes.startswith(beginning):
                        return at - size
        except Exception:
            pass
        return None

    def _forms(self, place: int) -> dict[int, _Form]:
        """Return the forms of entries in the unit that has a place. pyelftools takes a hundred times as long."""
        return self._forms_at(self._info.get_CU_containing(place)["debug_abbrev_offset"])

    def find(self, name: str) -> int | None:
        word, _, rest = name.rpartition(" ")
        if word not in ("", *_TAGS) or not rest:
            return None
        for tag in _TAGS[word] if word else _ANY:
            die = self.named_entry(rest, tag)
            if die is not None:
                number = self.resolved(die.offset)
                return number if self.kind(number) in COMPOSITES else None
        return None

    def named(self, name: str) -> int | None:
        dies = (self.named_entry(name, tag) for tag in _SCALARS)
        return next((die.offset for die in dies if die is not None), None)

    def variable(self, name: str, address: int | None = None) -> int | None:
        die = None if address is None else self._variable_at(address)
        die = die or self.named_entry(name, _VARIABLE)
        return None if die is None else self.type_of(die)

    def _variable_at(self, address: int) -> DIE | None:
        """Return the entry that defines the variable at an address, which can lack a name; None if there is none."""
        word = self._abi.word
        linked = (address % (1 << 8 * word)).to_bytes(word, self._abi.byteorder)
        location = bytes((1 + word, _OP_ADDR)) + linked
        for place in self._entries.finds(location):
            for start in self._starts(place):
                die = self._die(start)
                own = die.attributes.get("DW_AT_location")
                if own is not None and own.offset == place and self._is_entry(die):
                    return die
        return None

    def _starts(self, place: int) -> Iterator[int]:
        """Yield where the entry of a variable can begin whose location is at a place: other entries refer to it too."""
        try:
            forms = self._forms(place)
        except Exception:
            return
        for code, form in forms.items():
            if form.tag != ENUM_DW_TAG[_VARIABLE]:
                continue
            attributes = takewhile(lambda one: one[1] != _LOCATION, re.finditer(_ATTRIBUTE, form.attributes))
            widths = [_WIDTHS.get(_as_int(one[2] or one[3])) for one in attributes]
            if None not in widths:
                number = bytes((code,)) if code < 0x80 else bytes((code & 0x7F | 0x80, code >> 7 & 0x7F))
                start = place - sum(filter(None, widths)) - len(number)
                if start >= 0 and self._entries.at(start, len(number)) == number:
                    yield start

    def source(self, name: str) -> str:
        """Return the path of the file that declares a typedef; "" if the file has none, or no line tables."""
        die = self.named_entry(name, "DW_TAG_typedef") if self._info.debug_line_sec is not None else None
        try:
            unit = None if die is None else self._info.get_CU_containing(die.offset)
            program = None if unit is None else self._info.line_program_for_CU(unit)
            if die is None or program is None:
                return ""
            header, number = program.header, die.attributes["DW_AT_decl_file"].value
            base = 0 if header.version >= 5 else 1  # until then, files and directories count from 1
            file = header.file_entry[number - base]
            folder = header.include_directory[file.dir_index - base] if file.dir_index >= base else b""
            return os.path.join(folder, file.name).decode("latin-1")
        except Exception as e:
            raise self._damaged(f"has no file that declares {name}") from e

    def enumerators(self, name: str) -> dict[str, int]:
        die = self.named_entry(name, "DW_TAG_enumeration_type")
        return {} if die is None else dict(self._values(die))

    def _values(self, die: DIE) -> Iterator[tuple[str, int]]:
        for child in self._children(die, "DW_TAG_enumerator"):
            value = child.attributes.get("DW_AT_const_value")
            if value is None or not isinstance(value.value, int):
                raise self._damaged(f"has an enumerator at {child.offset:#x} that is no number")
            yield _text(child), value.value

    def _children(self, die: DIE, tag: str) -> Iterator[DIE]:
        try:
            yield from (child for child in die.iter_children() if child.tag == tag)
        except Exception as e:
            raise self._damaged(f"has members at {die.offset:#x} that cannot be read") from e

    def _get(self, number: int) -> Type:
        if not number:
            return Type(Kind.VOID, "", False, 0)
        die = self._die(number % _DIMENSION)
        kind, at = _KINDS.get(str(die.tag), Kind.VOID), die.attributes
        size = _size(die)
        encoding = at["DW_AT_encoding"].value if "DW_AT_encoding" in at else 0
        if kind == Kind.INT:
            return Type(Kind.FLOAT if encoding == _FLOAT else kind, _text(die), encoding in _SIGNED, size)
        if "DW_AT_declaration" in at:
            return Type(Kind.FWD, _text(die), kind == Kind.UNION, 0)
        if kind in COMPOSITES:
            return Type(kind, _text(die), False, size)
        if kind == Kind.ENUM:
            return Type(kind, _text(die), any(value < 0 for _, value in self._values(die)), size or _ENUM_SIZE)
        has_parameters = kind == Kind.FUNC_PROTO and any(self._children(die, "DW_TAG_formal_parameter"))
        return Type(kind, _text(die), has_parameters, self.type_of(die))

    def type_of(self, die: DIE) -> int:
        """Return the number of the type that an entry, or its declaration, refers to; 0 (void) if none does."""
        try:
            if "DW_AT_type" not in die.attributes and "DW_AT_specification" in die.attributes:
                die = die.get_DIE_from_attribute("DW_AT_specification")
            if "DW_AT_type" not in die.attributes:
                return 0
            return int(die.get_DIE_from_attribute("DW_AT_type").offset)
        except Exception as e:
            raise self._damaged(f"has an entry at {die.offset:#x} of no type") from e

    def array(self, number: int) -> tuple[int, int]:
        dimension, offset = divmod(number, _DIMENSION)
        die = self._die(offset)
        ranges = list(self._children(die, "DW_TAG_subrange_type"))
        counts = [_count(one) for one in ranges[dimension:]] or [0]
        return (number + _DIMENSION if len(counts) > 1 else self.type_of(die)), counts[0]

    def _members(self, number: int) -> Iterator[tuple[str, int, int, int]]:
        for die in self._children(self._die(number), "DW_TAG_member"):
            at, kind = die.attributes, self.type_of(die)
            place = at["DW_AT_data_member_location"].value if "DW_AT_data_member_location" in at else 0
            if not isinstance(place, int):
                raise self._damaged(f"has a member at {die.offset:#x} whose place is an expression")
            bits = at["DW_AT_bit_size"].value if "DW_AT_bit_size" in at else 0
            bit = 8 * place
            if "DW_AT_data_bit_offset" in at:
                bit = at["DW_AT_data_bit_offset"].value
            elif "DW_AT_bit_offset" in at:  # until DWARF 3: from the most significant bit of the unit
                before = at["DW_AT_bit_offset"].value
                bit += before if self._abi.sign == ">" else 8 * self.size(kind) - before - bits
            yield _text(die), kind, bit, bits


def _as_int(number: bytes) -> int:
    """Return the value of a LEB128 number."""
    return sum((byte & 0x7F) << 7 * i for i, byte in enumerate(number))


def _size(die: DIE) -> int:
    size = die.attributes.get("DW_AT_byte_size")
    return size.value if size is not None and isinstance(size.value, int) else 0


def _text(die: DIE) -> str:
    name = die.attributes.get("DW_AT_name")
    return name.value.decode("latin-1") if name is not None and isinstance(name.value, bytes) else ""


def _count(die: DIE) -> int:
    """Return the number of elements of a dimension; 0 if it does not say."""
    for name, more in ("DW_AT_count", 0), ("DW_AT_upper_bound", 1):
        if name in die.attributes:
            value = die.attributes[name].value
            return value + more if isinstance(value, int) and 0 < value + more < 1 << 32 else 0
    return 0
