"""Files that people have in hand and vmfilter does not read: recognised by a few bytes, with what to do instead.

Sources: the magic numbers in QEMU, libvirt, Xen, crash, s390-tools, LiME and AVML; the kernel's kernel/power/swap.c.
"""

from __future__ import annotations

from vmfilter.lean import NamedTuple

BEGINNING = 1 << 16
"""Bytes of a file in which its format can be recognised."""

_GUEST = "use virsh dump --memory-only, or QEMU's dump-guest-memory"
_CRASH = "crash opens it"
_ZGETDUMP = "zgetdump -f elf converts it"
_PAGE = 4096
_LKCD = 0xA8190173618F23ED
_S390 = 0xA8190173618F23FD
_UNPACK = "unpack it, and name the dump in it"


class Foreign(NamedTuple):
    """A format.

    Attributes:
        name: what the file is, with its article.
        advice: what to do.
        magics: bytes that identify it, any of them.
        offset: their file offset.

    """

    name: str
    advice: str
    magics: tuple[bytes, ...]
    offset: int = 0


def _words(size: int, *values: int) -> tuple[bytes, ...]:
    """Return integers of size bytes, in either byte order."""
    return tuple(value.to_bytes(size, order) for value in values for order in ("little", "big"))


FORMATS = (
    Foreign("a QEMU guest's state (savevm)", _GUEST, (b"QEVM",)),
    Foreign("a guest saved by libvirt", _GUEST, (b"LibvirtQemudSave", b"LibvirtQemudPart")),
    Foreign(
        "a guest saved by Xen (xl save)",
        f"xl dump-core dumps a guest, and {_CRASH}",
        (b"Xen saved domain", b"LinuxGuestRecord", b"libvirt-xml\n", *_words(4, 0xF00FEBED, 0xF00FEBEE)),
    ),
    Foreign(
        "a VMware snapshot or suspended guest (.vmss, .vmsn)",
        f"{_CRASH} beside its .vmem",
        _words(4, 0xBED0BED0, 0xBED2BED2, 0xBED3BED3, 0xBAD1BAD1, 0xBAD2BAD2),
    ),
    Foreign(
        "a guest saved by VirtualBox", "VBoxManage debugvm dumpvmcore makes an ELF core", (b"\x7fVirtualBox Saved",)
    ),
    Foreign("a dump by sadump", f"makedumpfile filters it, {_CRASH}", (b"sadump\0\0",)),
    Foreign("a dump by diskdump", _CRASH, (b"DISKDUMP",)),
    Foreign("a dump by LKCD", _CRASH, _words(8, _LKCD, _LKCD - 0x20)),
    Foreign("an s390 stand-alone dump or zfcpdump", _ZGETDUMP, _words(8, _S390, _S390 + 1)),
    Foreign("a dump by VMDUMP of z/VM", _ZGETDUMP, ("VMDUMP  ".encode("cp037"),), 56),
    Foreign(
        "memory as LiME and AVML write it", "Volatility opens it; to filter, let kdump make a dump", (b"EMiL", b"AVML")
    ),
    Foreign(
        "raw memory, or a lost header",
        "copy it again; crash opens FILE@ADDRESS, or .vmem by its .vmss",
        (bytes(_PAGE), b"\x53\xff\0\xf0" * 4),  # zeros; the interrupt vectors of a PC, at address 0
    ),
    Foreign("a dump of Windows", "WinDbg opens it", (b"PAGEDU64", b"PAGEDUMP", b"MDMP")),
    Foreign("a dump of FreeBSD", "FreeBSD's kgdb opens it", (b"minidump FreeBSD", b"FreeBSD Kernel Dump")),
    *(
        Foreign(
            "a swap area with a hibernation image",
            "boot the machine from it; it is not a dump of a crash",
            (b"S1SUSPEND",),
            page - 10,
        )
        for page in (_PAGE, 4 * _PAGE, 16 * _PAGE)
    ),
    Foreign("a kernel image (bzImage)", "name the vmcore; vmfilter needs no kernel image", (b"HdrS",), 0x202),
    Foreign("a kernel's log", "name the vmcore from which it was made", (b"[    0.", b"<6>[    0.", b"<5>[    0.")),
    Foreign("a disk image (qcow2, VMDK)", "copy the dump out of it", (b"QFI\xfb", b"KDMV", b"# Disk Descript")),
    Foreign("a tar archive", _UNPACK, (b"ustar",), 257),
    Foreign(
        "a zip, 7z, RAR or cpio archive",
        _UNPACK,
        (b"PK\3\4", b"PK\5\6", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\7", b"070701", b"070702", b"070707"),
    ),
    Foreign("a file compressed by lzop", "decompress it with lzop -d", (b"\x89LZO\0\r\n\x1a\n",)),
    Foreign("a file compressed by lz4 in its legacy format", "decompress it with lz4 -d", (b"\x02\x21\x4c\x18",)),
    Foreign("an encrypted file (LUKS, OpenSSL, PGP)", "decrypt it", (b"LUKS\xba\xbe", b"Salted__", b"-----BEGIN PGP")),
    Foreign(
        "a web page", "the download failed: look at it", (b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML", b"<?xml")
    ),
)


def foreign(begin: bytes) -> Foreign | None:
    """Return the format of a file that vmfilter does not read; None if it is unknown.

    Args:
        begin: first BEGINNING bytes of the file, or all of a smaller one.

    """
    return next((f for f in FORMATS if begin.startswith(f.magics, f.offset)), None)
