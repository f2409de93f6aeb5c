"""The description of a dump as JSON."""

from __future__ import annotations

from vmfilter.frames.levels import level_names
from vmfilter.lean import TYPE_CHECKING
from vmfilter.report.data import document
from vmfilter.report.text import CLASS_NAMES, KIND_NAMES

if TYPE_CHECKING:
    from vmfilter.info import DumpInfo
    from vmfilter.report.data import Document


def info_json(info: DumpInfo) -> str:
    """Return the description of a dump as JSON."""
    return document(info_data(info))


def info_data(info: DumpInfo) -> Document:
    """Return what info --json prints. What is unknown is null."""
    crash, task = info.crash, info.crash.task
    names = ("sysname", "nodename", "release", "version", "machine", "domainname")
    return {
        "path": info.path,
        "crash": {
            "panic": crash.panic or None,
            "cause": crash.cause or None,
            "task": {"pid": task.pid, "comm": task.comm or None, "cpu": task.cpu} if task else None,
            "hardware": crash.hardware or None,
            "uptime": crash.uptime,
            "tainted": crash.tainted or None,
            "load": list(crash.load) if crash.load else None,
            "memory": dict(crash.memory) if crash.memory else None,
            "time": info.crash_time or None,
        },
        "kernel": {
            name: field.decode("utf-8", "backslashreplace") or None
            for name, field in zip(names, info.uts, strict=False)
        },
        "machine": info.machine,
        "cpus": info.cpus or None,
        "format": info.format,
        "wrappings": list(info.wrappings),
        "page_size": info.page_size,
        "level": info.level,
        "level_names": level_names(info.level),
        "incomplete": info.incomplete,
        "truncated": info.truncated,
        "parts": [
            {"path": part.path or None, "first": part.first, "end": part.end, "wrappings": list(part.wrappings)}
            for part in info.parts
        ],
        "classes": {name: info.classes[page_class] for page_class, name in CLASS_NAMES.items()},
        "codecs": info.codecs,
        "notes": [
            {"name": n.name.decode("utf-8", "backslashreplace"), "type": n.kind, "count": n.notes, "size": n.size}
            for n in info.notes
        ],
        "erased": info.erased,
        "lost": {"pages": info.lost_pages, "ranges": [{"start": start, "end": end} for start, end in info.lost]},
        "missing": [{"start": gap.start, "end": gap.end, "why": str(gap.loss)} for gap in info.gaps],
        "pmem": [
            {
                "kind": n.namespace.kind if n.namespace else None,
                "start": n.namespace.start if n.namespace else None,
                "end": n.namespace.end if n.namespace else None,
                "metadata": n.metadata,
                "userdata": n.userdata,
            }
            for n in info.pmem
        ],
        "remains": {KIND_NAMES[kind]: {"held": r.held, "all": r.all} for kind, r in info.remains.items()},
        "vmcoreinfo": [
            {"place": text.place, "release": text.release, "used": text.is_used, "why": text.why} for text in info.texts
        ],
        "warnings": info.warnings,
    }
