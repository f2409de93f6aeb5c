"""Erase keys: of keyrings, of dm-crypt and of TLS sockets; what ciphers made of them, and copies.

A key of AES can be computed from the round keys, so what a cipher keeps is erased to the end of its allocation.
"""

from __future__ import annotations

from vmfilter.extension import KernelError, Machine, Object, walk
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PLAIN = ("user", "logon")  # types of keys whose payload is struct user_key_payload
_OTHERS = ("encrypted", "trusted", "big_key", "rxrpc")  # their payload is one allocation, or leads to one
_TRANSFORMS = ("crypto_skcipher", "crypto_aead", "crypto_ahash", "crypto_shash", "crypto_cipher")
_DEEPEST = 4  # of a cipher in a cipher
_CIPHERS = {
    51: "aes_gcm_128",
    52: "aes_gcm_256",
    53: "aes_ccm_128",
    54: "chacha20_poly1305",
    55: "sm4_gcm",
    56: "sm4_ccm",
}
"""TLS_CIPHER_* of include/uapi/linux/tls.h: tls12_crypto_info_NAME has the key."""


def rules(machine: Machine) -> None:
    """Erase what each part of the kernel that this machine has keeps."""
    for what, part in (("keyrings", _keyrings), ("dm-crypt", _dm_crypt), ("TLS sockets", _tls)):
        try:
            part(machine)
        except KernelError as e:  # the others do not depend on it
            machine.fail(f"keys of {what} are not erased: {e}")


def _each(machine: Machine, what: str, found: Iterator[Object], erase: Callable[[Object], None]) -> None:
    """Erase each of what was found; tell of those that are not in the dump."""
    missing, why = 0, ""
    for one in found:
        try:
            erase(one)
        except KernelError as e:
            missing, why = missing + 1, why or str(e)
    if missing:
        machine.fail(f"{missing} {what} are not erased: {why}")


def _secret(machine: Machine, address: int, size: int) -> None:
    """Erase a key, and its copies if it is long enough to be found."""
    if size:
        machine.erase(address, size)
        if size >= 16:
            machine.erase_copies(machine.read(address, min(size, 1 << 10)))


def _keyrings(machine: Machine) -> None:
    def erase(key: Object) -> None:
        kind = machine.string(machine.pointer(key.number("type") + machine.offset("key_type", "name")))
        payload = key.word("payload.data")
        if kind in _PLAIN and payload:
            data = machine.record("user_key_payload", payload)
            _secret(machine, payload + machine.offset("user_key_payload", "data"), data.number("datalen"))
        elif kind in _OTHERS and payload:
            whole = walk.allocation(machine, payload)
            if whole is None:
                raise KernelError(f"the payload of a key at {payload:#x} is in no slab cache")
            machine.erase(*whole)

    keys = walk.rb_tree(machine, machine.symbol("key_serial_tree"), "key", "serial_node")
    _each(machine, "keys", keys, erase)


def _dm_crypt(machine: Machine) -> None:
    if not machine.is_loaded("dm_crypt"):
        return
    ciphers = _Ciphers(machine)

    def erase(target: Object) -> None:
        if machine.string(machine.pointer(target.number("type") + machine.offset("target_type", "name"))) != "crypt":
            return
        config = machine.record("crypt_config", target.number("private"))
        size = config.number("key_size")
        _secret(machine, config.address + machine.offset("crypt_config", "key"), size)
        first = config.word("cipher_tfm.tfms")
        for i in range(config.number("tfms_count") if first else 0):
            ciphers.erase(machine.pointer(first + i * machine.word))

    _each(machine, "dm-crypt devices", _targets(machine), erase)


def _targets(machine: Machine) -> Iterator[Object]:
    """Yield the targets of all device-mapper tables in use."""
    step = machine.size("dm_target")
    for cell in walk.rb_tree(machine, machine.symbol("name_rb_tree", "dm_mod"), "hash_cell", "name_node"):
        table = machine.pointer(cell.number("md") + machine.offset("mapped_device", "map"))
        if table:
            record = machine.record("dm_table", table)
            for i in range(record.number("num_targets")):
                yield machine.record("dm_target", record.number("targets") + i * step)


class _Ciphers:
    """Ciphers of the kernel's crypto API: they begin with a struct crypto_tfm, at some offset."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        head = machine.symbol("crypto_alg_list")
        self._algorithms = {one.address for one in walk.linked(machine, head, "crypto_alg", "cra_list")}
        self._bases = sorted({machine.offset(name, "base") for name in _TRANSFORMS})
        self._algorithm, self._own = (
            machine.offset("crypto_tfm", "__crt_alg"),
            machine.offset("crypto_tfm", "__crt_ctx"),
        )

    def _start(self, address: int) -> int | None:
        """Return where a cipher's own data start; None if there is no cipher, with an algorithm that is registered."""
        for base in self._bases:
            try:
                if self._machine.pointer(address + base + self._algorithm) in self._algorithms:
                    return address + base + self._own
            except KernelError:  # no pointer
                continue
        return None

    def erase(self, address: int, deep: int = _DEEPEST) -> None:
        """Erase what a cipher keeps, and the ciphers that it uses, given its address."""
        machine = self._machine
        whole, start = walk.allocation(machine, address), self._start(address)
        if whole is None or start is None:
            raise KernelError(f"what is at {address:#x} is no cipher in a slab cache")
        size = whole.address + whole.size - start
        machine.erase(start, size)
        raw = machine.read(start, size)
        for i in range(0, size - machine.word + 1, machine.word) if deep else ():
            word = int.from_bytes(raw[i : i + machine.word], machine.kernel.abi.byteorder)
            if word and self._start(word) is not None:
                self.erase(word, deep - 1)


def _tls(machine: Machine) -> None:
    if not machine.is_loaded("tls"):
        return
    ciphers = _Ciphers(machine)

    def erase(context: Object) -> None:
        for path, own, member in (
            ("crypto_send", "tls_sw_context_tx", "aead_send"),
            ("crypto_recv", "tls_sw_context_rx", "aead_recv"),
        ):
            _crypto_info(machine, context.address + machine.offset("tls_context", path))
            private = context.number("priv_ctx_tx" if path == "crypto_send" else "priv_ctx_rx")
            cipher = machine.record(own, private).number(member) if private else 0
            if cipher:
                ciphers.erase(cipher)

    _each(machine, "TLS sockets", _contexts(machine), erase)


def _crypto_info(machine: Machine, address: int) -> None:
    kind = machine.number(address + machine.offset("tls_crypto_info", "cipher_type"), 2)
    struct = f"tls12_crypto_info_{_CIPHERS[kind]}" if kind in _CIPHERS else ""
    if struct:
        at, end = machine.offset(struct, "key"), machine.offset(struct, "salt")
        machine.erase(address, machine.size(struct))
        _secret(machine, address + at, end - at)


def _contexts(machine: Machine) -> Iterator[Object]:
    """Yield struct tls_context of every TCP socket that is connected and has TLS in the kernel."""
    hash_table = machine.record("inet_hashinfo", machine.symbol("tcp_hashinfo"))
    step, node = machine.size("inet_ehash_bucket"), "__sk_common.skc_nulls_node"
    first, count = hash_table.number("ehash"), hash_table.number("ehash_mask") + 1
    raw = machine.read(first, count * step)
    for i in range(count):
        if raw[i * step] & 1:  # an empty list: its end is an odd number
            continue
        for sock in walk.hlist(machine, first + i * step, "sock", node):
            if sock.number("sk_protocol") != 6 or sock.number("__sk_common.skc_state") in (6, 12):
                continue  # no TCP; TIME_WAIT and NEW_SYN_RECV have no struct sock
            own = machine.record("inet_connection_sock", sock.address)
            operations, data = own.number("icsk_ulp_ops"), own.number("icsk_ulp_data")
            if operations and data and machine.record("tcp_ulp_ops", operations).text("name") == "tls":
                yield machine.record("tls_context", data)
