"""The lock of a batch on a store: an object that says who has it. In a folder, the manifest itself is locked."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime

from vmfilter.errors import UsageError
from vmfilter.fleet.store import LOCK, Store
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


def _machine() -> str:
    """Return what no other machine has, nor a container with processes of its own, nor this one after a boot."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"


def _owner(store: Store) -> dict[str, Any]:
    """Return what the lock says; nothing if there is none."""
    try:
        said = json.loads(store.read(LOCK) or "{}")
    except ValueError:
        said = {}
    return said if isinstance(said, dict) else {}


def _has_ended(owner: dict[str, Any]) -> bool:
    """Return whether a batch was killed on this machine. Nobody can tell that of another."""
    if owner.get("machine") != _machine():
        return False
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return True
    except (KeyError, TypeError, OSError):
        pass
    return False


def lock(store: Store) -> None:
    """Take the lock, which stays until store.remove(LOCK). That of a batch that was killed on this machine is replaced.

    Raises:
        UsageError: another batch has it.
        OutputError: the store cannot be read or written.

    """
    since = datetime.now(UTC).isoformat(timespec="seconds")
    own = {"host": socket.gethostname(), "process": os.getpid(), "since": since, "machine": _machine()}
    data = json.dumps(own).encode()
    if store.create(LOCK, data):
        return
    owner = _owner(store)
    if not owner or _has_ended(owner):
        store.remove(LOCK)
        if store.create(LOCK, data):
            return
        owner = _owner(store)
    raise UsageError(
        f"{store.name}: another batch is writing it: process {owner.get('process')} on {owner.get('host')}, since "
        f"{owner.get('since')}: wait until it ends, or choose another --out; if it was killed, remove "
        f"{store.shown(LOCK)}"
    )
