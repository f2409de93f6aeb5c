"""A machine whose kernel's image has symbols and types: what VMCOREINFO lacks can be found there."""

from __future__ import annotations

from kernelbuilder import FLAVOURS, Synthetic
from typesbuilder import UNION, Kallsyms, Types

FREE, CACHE = 1024, 2048  # frames
BANNER = b"Linux version 6.12 (builder@host)\n\0"


class Described(Synthetic):
    """A machine of x86_64 with 16 free pages and one page of cache, whose image has symbols and types.

    Its VMCOREINFO has only the lines that begin as one of `left`, and those in `wrong` instead of others.
    """

    left: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    def _vmcoreinfo(self, sections: list[str]) -> str:
        lines = super()._vmcoreinfo(sections).splitlines()
        wrong = {line.partition("=")[0]: line for line in self.wrong}
        lines = [wrong.get(line.partition("=")[0], line) for line in lines]
        return "".join(f"{line}\n" for line in lines if line.startswith(self.left))


def described(
    layout: str = "relative",
    late: bool = True,
    sequences: bytes = b"",
    btf: bool = True,
    bits: tuple[int, int] = (27, 46),
) -> Described:
    """Make the machine. bits: of a section and of all memory; x86_64 has these if VMCOREINFO does not say."""
    flavour = FLAVOURS["6.12"]
    s = Described(flavour, sparse="pointer", section_bits=bits[0], physical_bits=bits[1], name_at=0)
    s.free(FREE, 4)
    s.put(CACHE, "lru", mapping=s.linear(0x123000))
    data, image = types().build(), s.memory.take(0x24000)
    s.memory.write(image, data)
    mm, banner, phys_base = (image + len(data) + 8 - len(data) % 8 + i * 0x100 for i in range(3))
    s.memory.write_word(mm, s.symbol(s.tables.root))
    s.memory.write(banner, BANNER)
    s.memory.write_word(phys_base, s.phys_base)
    places = {"_stext": s.text, "init_uts_ns": s.text, "mem_section": s.text + s.page, "init_top_pgt": s.tables.root}
    places |= {"init_mm": mm, "linux_banner": banner, "phys_base": phys_base}
    if btf:
        places |= {"__start_BTF": image, "__stop_BTF": image + len(data)}
    places |= {f"x{i}_0123456789": image + 0x10000 + 8 * i for i in range(700)} | {"_end": image + 0x20000}
    symbols = sorted(((name, "D", s.symbol(at)) for name, at in places.items()), key=lambda one: one[2])
    Kallsyms(symbols, layout, late=late, sequences=sequences, address=s.symbol).write(s)
    return s


def types() -> Types:
    """struct page of 6.12, flags and page types, and what leads to struct pages."""
    made = Types()
    made.struct("", {"lru": "list_head", "compound_head": "long"}, UNION)
    counters = {"_mapcount": "u32", "_refcount": "u32", "memcg_data": "long"}
    made.struct("page", {"flags": "long", "": "", "mapping": "long", "index": "long", "private": "long", **counters})
    made.struct("free_area", {"free_list": "list_head[6]", "nr_free": "long"})
    made.struct("zone", {"free_area": "free_area[11]"})
    made.struct("mem_section", {"section_mem_map": "long", "usage": "pointer"})
    made.struct("uts_namespace", {"name": "char[390]"})
    made.struct("mm_struct", {"pgd": "pointer"})
    bits = FLAVOURS["6.12"].bits
    made.enum("pageflags", {f"PG_{name}": bit for name, bit in bits.items() if name != "slab"})
    made.enum("pagetype", {f"PGTY_{name}": value >> 24 for name, value in FLAVOURS["6.12"].types.items()})
    return made
