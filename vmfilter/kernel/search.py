"""Whose VMCOREINFO describes the crashed kernel: a file's, the note's or a text's in memory. Each has to prove itself.

A note is missing in dumps that a hypervisor makes, or is not the kernel's. Memory can also contain the text of other
kernels or earlier boots, and files of it. VMCOREINFO is proven if it leads through the page tables to the name of the
kernel whose release it gives; witnesses.py chooses among several.
"""

from __future__ import annotations

from vmfilter.errors import KernelError, UnreadableError, option
from vmfilter.formats.vmcoreinfo import Vmcoreinfo
from vmfilter.kernel.kernel import Kernel, page_size_of
from vmfilter.lean import TYPE_CHECKING, NamedTuple, suppress

if TYPE_CHECKING:
    from vmfilter.kernel.types.image import Found
    from vmfilter.reader import Dump
    from vmfilter.reader.dump import Given

_MAX_NOTE = 1 << 20  # bytes; the kernel needs one or two pages
_MAX_CANDIDATES = 256
_NOTE = "the note"
_IMAGE = "the kernel's image"
_PAGE_SIZES = 1 << 12, 1 << 14, 1 << 16


def vmcoreinfo_of(dump: Dump) -> Vmcoreinfo | None:
    """Return the VMCOREINFO note of a dump; None if it has none that can be read."""
    for note in dump.notes:
        if note.name == b"VMCOREINFO" and 0 < note.size <= _MAX_NOTE:
            try:
                text = dump.read_file(note.offset, note.size).rstrip(b"\0").decode("ascii", "replace")
            except UnreadableError as e:
                dump.pass_over(e)
            else:
                return Vmcoreinfo(text, note.offset, note.size)
    return None


class Understood(NamedTuple):
    """What a dump reveals about the crashed kernel.

    Attributes:
        page_size: bytes of a page.
        info: its VMCOREINFO; None if the dump has none.
        kernel: the kernel; None if it was not found.
        error: the reason if it was not found; "" otherwise.
        warnings: why its VMCOREINFO may be another's, one line each.

    """

    page_size: int
    info: Vmcoreinfo | None
    kernel: Kernel | None
    error: str
    warnings: list[str]


class Text(NamedTuple):
    """VMCOREINFO that was found.

    Attributes:
        place: "the note", a physical address, the path of the file that the caller gave, or "the kernel's image" if
            its symbols and types made up for it.
        release: of the kernel, as it says itself.
        is_used: whether it describes the crashed kernel.
        why: the reason, in words.

    """

    place: str
    release: str
    is_used: bool
    why: str


class Survey(NamedTuple):
    """What a dump reveals about the crashed kernel, and all VMCOREINFO that was found on the way."""

    understood: Understood
    texts: list[Text]


def understand(dump: Dump) -> Understood:
    """Find the crashed kernel in a dump. A failure is part of the result."""
    return survey(dump).understood


def survey(dump: Dump, everywhere: bool = False) -> Survey:
    """Find the crashed kernel, and tell what was found on the way. A failure is part of the result.

    Args:
        dump: the dump.
        everywhere: whether to search memory even if the note proves itself, or the caller chose. That changes the
            list only, not the kernel.

    """
    page_size, info = dump.page_size or dump.arch.page_size, None
    tried: list[_Candidate] = []
    used: _Candidate | None = None
    try:
        used, warnings = _choose(dump, tried)
        assert used.kernel is not None
        kernel, more = _mended(dump, used.kernel)
        if dump.vmlinux:
            from vmfilter.kernel.types.vmlinux import Vmlinux

            with Vmlinux(dump.vmlinux) as vmlinux:
                if not vmlinux.check(kernel, kernel.info.symbol("_stext")):
                    more.append(
                        f"{dump.path}: nothing tells whether {dump.vmlinux.name} is of this kernel or another build"
                    )
        understood = Understood(kernel.page_size, kernel.info, kernel, "", [*warnings, *more])
    except KernelError as e:
        error = str(e)
        if any(note.name == b"VMCOREINFO_XEN" for note in dump.notes):  # a PV guest's tables have Xen's addresses
            error += "; the machine ran Xen, whose dumps vmfilter does not understand: crash opens them"
        info = next((one.info for one in tried if one.place == _NOTE), None)
        understood = Understood(page_size, info, None, error, [])
    if everywhere and (dump.vmcoreinfo_at is not None or all(one.address is None for one in tried)):
        tried += _others(dump, used) if used else _in_memory(dump)
    return Survey(understood, [one.told(one is used) for one in tried])


class _Candidate(NamedTuple):
    """VMCOREINFO that may be the crashed kernel's.

    Attributes:
        place: see Text.
        info: VMCOREINFO.
        kernel: the kernel to which it leads; None if it leads to none.
        failure: the reason why it is not proven; "" if it is.
        address: physical address of a text in memory; None elsewhere.
        why: what speaks for or against it.

    """

    place: str
    info: Vmcoreinfo
    kernel: Kernel | None
    failure: str
    address: int | None = None
    why: str = "leads to its kernel"

    @property
    def release(self) -> str:
        return self.info.plain("OSRELEASE") or "unknown"

    def told(self, is_used: bool) -> Text:
        return Text(self.place, self.release, is_used, self.failure or self.why)


def _candidate(dump: Dump, place: str, info: Vmcoreinfo, address: int | None = None) -> _Candidate:
    """Find the kernel that VMCOREINFO describes, or the reason why it is not found."""
    kernel, failure = None, ""
    try:
        kernel = Kernel(dump, info)
    except KernelError as e:
        failure = str(e)
    else:
        said, release = info.plain("OSRELEASE"), kernel.uts.release.decode("ascii", "replace")
        if said is not None and said != release:
            failure = f"VMCOREINFO is of kernel {said[:64]!r}, and leads to kernel {release!r}"
    return _Candidate(place, info, kernel, failure, address)


def _choose(dump: Dump, tried: list[_Candidate]) -> tuple[_Candidate, list[str]]:
    """Return what describes the crashed kernel, and warnings. Lists all that was tried.

    Raises:
        KernelError: nothing does.

    """
    if dump.given is not None:
        tried.append(_by_file(dump, dump.given))
        return tried[0], []
    if dump.vmcoreinfo_at is not None:
        tried.append(_at(dump, dump.vmcoreinfo_at))
        return tried[0], []
    info = vmcoreinfo_of(dump)
    try:
        return _found(dump, info, tried)
    except KernelError:
        if dump.header.incomplete:  # what the note leads to can be missing
            raise
        tried += _rebuilt(dump, info or Vmcoreinfo(""))
        if all(one.failure for one in tried):
            raise
        used, warnings = _best(dump, tried)
        lacks = "its VMCOREINFO does not lead to the kernel" if info else "it has no VMCOREINFO"
        return used, [f"{dump.path}: {lacks}; the kernel's own symbols and types replace it", *warnings]


def _found(dump: Dump, info: Vmcoreinfo | None, tried: list[_Candidate]) -> tuple[_Candidate, list[str]]:
    """Return what describes the crashed kernel, by its note or by a text in memory. See _choose()."""
    if info is None:
        tried += _in_memory(dump)
        return _best(dump, tried)
    note = _candidate(dump, _NOTE, info)
    tried.append(note)
    if dump.header.incomplete and note.failure:  # the note may be right
        raise KernelError(note.failure)
    if dump.header.incomplete or not (note.failure or _is_doubtful(dump, note)):
        return note, []
    tried += _others(dump, note)
    if not note.failure:
        return _best(dump, tried)
    return _instead_of(note, dump, tried)


def _instead_of(note: _Candidate, dump: Dump, tried: list[_Candidate]) -> tuple[_Candidate, list[str]]:
    """Return what describes the kernel if a note does not prove itself.

    Converters of hypervisors' snapshots write one from System.map, without KASLR.
    """
    best = None
    with suppress(KernelError):
        best, warnings = _best(dump, tried)
    if best is None:
        if note.kernel is None:
            raise KernelError(note.failure)
        return note, [f"{dump.path}: {note.failure}; it is used, since memory has no other"]
    instead = f"the text at {best.place} of memory is used"
    return best, [f"{dump.path}: the VMCOREINFO note is passed over: {note.failure}; {instead}", *warnings]


def _is_doubtful(dump: Dump, note: _Candidate) -> bool:
    """Return whether CPUs ran, but none with the page tables to which a note leads.

    The address that a guest gave to a vmcoreinfo device can be from an earlier boot.
    """
    registers = {(r.name, r.kind) for r in dump.arch.table_registers}
    if note.kernel is None or not any((n.name, n.kind) in registers for n in dump.notes):
        return False
    from vmfilter.kernel.witnesses import is_doubtful

    return is_doubtful(dump, note.kernel)


def _rebuilt(dump: Dump, info: Vmcoreinfo) -> list[_Candidate]:
    """Return the kernels in whose images there are symbols and types, from which VMCOREINFO can be made.

    Args:
        dump: the dump.
        info: what there is of VMCOREINFO. If it does not fit, it is another kernel's.

    """
    from vmfilter.kernel.types.image import images

    for said in dict.fromkeys((info, Vmcoreinfo(""))):
        made = (_of_image(dump, said, image) for image in images(dump, said))
        if found := [one for one in made if one is not None]:
            return found
    return []


def _of_image(dump: Dump, info: Vmcoreinfo, image: Found) -> _Candidate | None:
    """Return the kernel of an image; None if its symbols and types do not lead to it."""
    from vmfilter.kernel.types.exported import exported, located

    arch, said = dump.arch, info.plain("PAGESIZE")
    lines = [*exported(arch, image.symbols, image.structures), *located(image.places)]
    sizes = [size for size in dict.fromkeys((arch.page_size, *_PAGE_SIZES)) if size <= arch.largest_page]
    proven: list[_Candidate] = []
    for size in sizes if said is None else (page_size_of(dump, info),):
        made = Vmcoreinfo("".join(f"{line}\n" for line in (*lines, f"PAGESIZE={size}")))
        found = _candidate(dump, _IMAGE, info.completed(made))
        if not found.failure and found.kernel is not None:
            if not found.kernel.lacks():  # tables of ppc64 lead to its name whatever the size
                return found
            proven.append(found)
    return proven[0] if proven else None


def _mended(dump: Dump, kernel: Kernel) -> tuple[Kernel, list[str]]:
    """Give VMCOREINFO what classification needs, from the kernel's types. Only if it lacks something are they read."""
    lacking = kernel.lacks()
    if not lacking:
        return kernel, []
    from vmfilter.kernel.types.mend import completed

    found = completed(dump, kernel)
    return (kernel, []) if found is None else (found.kernel, [f"{dump.path}: {lacking}; {found.how}"])


def _at(dump: Dump, address: int) -> _Candidate:
    from vmfilter.kernel.texts import text_at

    text, _ = text_at(dump, address)
    if text is None:
        raise KernelError(
            f"no VMCOREINFO begins at physical address {address:#x}: without {option('vmcoreinfo_at')}, "
            "memory is searched"
        )
    found = _candidate(dump, f"{address:#x}", Vmcoreinfo(text.decode("ascii")), address)
    if found.failure:
        raise KernelError(found.failure)
    return found._replace(why="chosen by its address")


def _by_file(dump: Dump, given: Given) -> _Candidate:
    """Return the kernel of a file with VMCOREINFO.

    makedumpfile -g writes such a file from vmlinux. It lacks what only the running kernel knows, above all where KASLR
    put it, so the dump's own VMCOREINFO completes it.
    """
    note, why = vmcoreinfo_of(dump), "chosen"
    own = note if note is not None and not _candidate(dump, _NOTE, note).failure else None
    found = _completed(dump, given, own)
    if found.failure and own is None:
        tried = _in_memory(dump)
        if any(not one.failure for one in tried):
            best, _ = _best(dump, tried)
            found = _completed(dump, given, best.info)
            why = f"chosen, and completed by the text at {best.place}"
    if found.failure:
        raise KernelError(f"{given.path} is not VMCOREINFO of this kernel: {found.failure}; try without it")
    return found._replace(why=why)


def _completed(dump: Dump, given: Given, own: Vmcoreinfo | None) -> _Candidate:
    info = Vmcoreinfo(given.text)
    try:
        return _candidate(dump, given.path, info.completed(own) if own else info)
    except KernelError as e:
        return _Candidate(given.path, info, None, str(e))


def crash_time(dump: Dump, info: Vmcoreinfo | None) -> int:
    """Return the time of the crash in seconds since 1970; 0 if neither VMCOREINFO nor the file gives it."""
    try:
        said = info.plain_number("CRASHTIME") if info else None
    except KernelError:
        said = None
    return (said or dump.header.crash_time) & (1 << 63) - 1


def search_kernel(dump: Dump) -> Kernel:
    """Find the crashed kernel by a text in memory. All memory is read: there can be several.

    Raises:
        KernelError: no VMCOREINFO in memory leads through page tables to its kernel.

    """
    kernel = _best(dump, _in_memory(dump))[0].kernel
    assert kernel is not None
    return kernel


def _others(dump: Dump, known: _Candidate) -> list[_Candidate]:
    """Return the texts in memory that are no copies of another."""
    text = known.info.text

    def is_copy(one: str) -> bool:
        return one == text or (not known.failure and (one.startswith(text) or text.startswith(one)))

    return [one for one in _in_memory(dump) if not is_copy(one.info.text)]


def _in_memory(dump: Dump) -> list[_Candidate]:
    """Return the texts in memory, but for copies of each other."""
    from vmfilter.kernel.texts import texts

    found: dict[bytes, _Candidate] = {}
    for address, text in texts(dump):
        if text in found:
            continue
        found[text] = _candidate(dump, f"{address:#x}", Vmcoreinfo(text.decode("ascii")), address)
        if len(found) == _MAX_CANDIDATES:
            break
    # A copy may be cut, or from before the crash, which appends its time.
    proven = [text for text, one in found.items() if not one.failure]
    cut = {text for text in proven if any(t.startswith(text) for t in proven if t != text)}
    return [one for text, one in found.items() if text not in cut]


def _best(dump: Dump, tried: list[_Candidate]) -> tuple[_Candidate, list[str]]:
    """Return the one that was running, with a warning if there are others. Writes into the list what speaks for each.

    Raises:
        KernelError: none is proven.

    """
    proven = [i for i, one in enumerate(tried) if not one.failure]
    if not proven:
        none = f"none of the candidates in memory ({len(tried)}) leads to a kernel"
        raise KernelError(f"no VMCOREINFO note, and {none if tried else 'none in memory either'}")
    if len(proven) == 1:
        return tried[proven[0]], []
    from vmfilter.kernel.witnesses import running

    best, said = running(dump, [kernel for i in proven if (kernel := tried[i].kernel)])
    for i, why in zip(proven, said, strict=True):
        tried[i] = tried[i]._replace(why=why)
    used = tried[proven[best]]
    others = ", ".join(f"{tried[i].place} ({tried[i].release}: {tried[i].why})" for i in proven if tried[i] is not used)
    warning = (
        f"{dump.path}: memory has VMCOREINFO of {len(proven)} kernels or boots; the one at {used.place} "
        f"({used.release}: {used.why}) is used; {option('vmcoreinfo_at')} chooses another: {others}"
    )
    return used, [warning]
