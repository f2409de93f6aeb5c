"""Extensions: what they can read, keep, drop and erase; one that fails; those of the package."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import Run
from files import Shared
from kernelbuilder import Synthetic
from secretbuilder import Secrets
from typesbuilder import UNION, Types, debugged

from vmfilter.crash.tasks import Task
from vmfilter.errors import NOT_ERASED
from vmfilter.extension import KernelError, Machine, shipped, walk
from vmfilter.extension import machine as machine_module
from vmfilter.extension.shipped import SHIPPED, user_stack
from vmfilter.kernel.search import understand
from vmfilter.kernel.types.debug_info import debug_info
from vmfilter.reader import open_dump

ANONYMOUS = 0xFFFF888000001001  # struct page's mapping, of a page of a process
SECRET = b"a key that has been copied about"


class Scene:
    """A machine with structures that a test makes.

    Attributes:
        s: the machine.
        types: its types.
        symbols: addresses by name.

    """

    def __init__(self) -> None:
        self.s = Synthetic()
        self.types = Types(8, "<")
        self.symbols: dict[str, int] = {}

    def put(self, data: bytes, align: int = 16) -> int:
        """Write data to frames of their own; return the virtual address."""
        at = self.s.memory.take(len(data))
        assert at % align == 0
        self.s.memory.write(at, data)
        return self.s.linear(at)

    def write_at(self, address: int, data: bytes) -> None:
        self.s.memory.write(address - self.s.linear(0), data)

    def word(self, address: int, value: int) -> None:
        self.write_at(address, struct.pack("<Q", value))

    def write(self, path: Path) -> Path:
        debugged(self.s, self.types, **self.symbols)
        return self.s.write(path)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[Scene], Machine]]:
    """The machine of a scene."""
    dumps = []

    def get(scene: Scene) -> Machine:
        dump = open_dump(scene.write(tmp_path / "vmcore"))
        dumps.append(dump)
        kernel = understand(dump).kernel
        assert kernel is not None
        return Machine(dump, kernel, debug_info(kernel))

    yield get
    for dump in dumps:
        dump.close()


# Walks


def test_lists_and_hash_lists(opened: Callable[[Scene], Machine]) -> None:
    c = Scene()
    c.types.struct("item", {"number": "u32", "links": "list_head"})
    places = [c.put(c.types.pack("item", number=n)) for n in range(3)]
    head, chain, nulls = c.put(bytes(16)), c.put(bytes(8)), c.put(bytes(8))
    for at, to in zip([head, *(p + 8 for p in places)], [*(p + 8 for p in places), head], strict=True):
        c.word(at, to)
    machine = opened(c)
    assert [o.number("number") for o in walk.linked(machine, head, "item", "links")] == [0, 1, 2]
    assert list(walk.hlist(machine, chain, "item", "links")) == []
    c.word(chain, places[1] + 8)
    c.word(places[2] + 8, 0)
    c.word(nulls, 7)
    machine = opened(c)
    assert [o.number("number") for o in walk.hlist(machine, chain, "item", "links")] == [1, 2]
    assert list(walk.hlist(machine, nulls, "item", "links")) == []
    with pytest.raises(KernelError, match="8 bytes at 0x2a are not in the dump"):
        list(walk.linked(machine, 0x2A, "item", "links"))


def test_a_red_black_tree_in_order_and_one_that_leads_back(opened: Callable[[Scene], Machine]) -> None:
    c = Scene()
    c.types.struct("rb_node", {"__rb_parent_color": "long", "rb_right": "pointer", "rb_left": "pointer"})
    c.types.struct("item", {"number": "u32", "node": "rb_node"})
    places = [c.put(c.types.pack("item", number=n)) for n in range(5)]
    root = c.put(struct.pack("<Q", places[3] + 8))
    for parent, left, right in ((3, 1, 4), (1, 0, 2)):
        c.word(places[parent] + 16, places[right] + 8)
        c.word(places[parent] + 24, places[left] + 8)
    machine = opened(c)
    assert [o.number("number") for o in walk.rb_tree(machine, root, "item", "node")] == [0, 1, 2, 3, 4]
    c.word(places[0] + 24, places[3] + 8)
    with pytest.raises(KernelError, match="leads back"):
        list(walk.rb_tree(opened(c), root, "item", "node"))


def test_an_xarray_of_two_levels(opened: Callable[[Scene], Machine]) -> None:
    c = Scene()
    c.types.struct("xarray", {"xa_lock": "u32", "xa_flags": "u32", "xa_head": "pointer"})
    c.types.struct("xa_node", {"shift": "char", "offset": "char", "parent": "pointer", "slots": "pointer[64]"})
    low, high = c.put(c.types.pack("xa_node")), c.put(c.types.pack("xa_node", shift=6))
    array, single = c.put(struct.pack("<IIQ", 0, 0, high + 2)), c.put(struct.pack("<IIQ", 0, 0, 0x1000))
    c.word(low + 16 + 8 * 5, 0x5000)
    c.word(low + 16 + 8 * 6, 5 << 2 | 2)  # a sibling of entry 5
    c.word(low + 16 + 8 * 63, 9 << 1 | 1)  # a number
    c.word(high + 16 + 8 * 1, low + 2)
    machine = opened(c)
    assert list(walk.xarray(machine, array)) == [(64 + 5, 0x5000), (64 + 63, 19)]
    assert list(walk.xarray(machine, single)) == [(0, 0x1000)]


@pytest.mark.parametrize("member", ["compound_head", "compound_info"])
@pytest.mark.parametrize("order", [1, 3])
def test_an_object_in_a_tail_of_a_slab(opened: Callable[[Scene], Machine], member: str, order: int) -> None:
    c = Scene()
    t, s = c.types, c.s
    t.struct("page", {"flags": "long", member: "long", "rest": "char[48]"})
    t.struct("slab", {"flags": "long", "slab_cache": "pointer", "objects": "u32"})
    t.struct("kmem_cache", {"list": "list_head", "size": "u32"})
    cache, head = c.put(t.pack("kmem_cache", size=768)), c.put(bytes(16))
    c.symbols["slab_caches"] = head
    c.write_at(cache, struct.pack("<QQ", head, head))
    c.write_at(head, struct.pack("<QQ", cache, cache))
    count = 1 << order
    first = -(-s.memory.take(2 * count * s.page) // s.page // count) * count
    s.put_raw(first, t.pack("slab", slab_cache=cache, objects=count * s.page // 768).ljust(64, b"\0"))
    # A pointer to the head, or since 7.1 a mask that makes the tail's address the head's.
    word = s.address(first) if member == "compound_head" else -64 * count & (1 << 64) - 1
    for tail in range(1, count):
        s.put_raw(first + tail, t.pack("page", **{member: word | 1}))
    start = s.linear(first * s.page)
    machine = opened(c)
    for i in 0, 6, count * s.page // 768 - 1:
        assert walk.allocation(machine, start + 768 * i + 700) == (start + 768 * i, 768)


def test_a_maple_tree_of_two_levels_and_a_node_of_no_type(opened: Callable[[Scene], Machine]) -> None:
    c = Scene()
    c.types.struct("maple_tree", {"ma_lock": "long", "ma_root": "pointer"})
    c.types.struct("maple_range_64", {"parent": "pointer", "pivot": "long[15]", "slot": "pointer[16]"})
    c.types.struct("maple_arange_64", {"parent": "pointer", "pivot": "long[9]", "slot": "pointer[10]"})
    leaf, other, top = (c.put(bytes(256), 256) for _ in range(3))
    tree, single = c.put(struct.pack("<QQ", 0, top | 3 << 3 | 2)), c.put(struct.pack("<QQ", 0, 0x4000))
    c.word(top + 8, 0xFFF)  # the first child has indices up to this
    c.word(top + 80, leaf | 1 << 3 | 2)
    c.word(top + 88, other | 1 << 3 | 2)
    for i, (pivot, entry) in enumerate(((0x10, 0x7000), (0x1F, 0), (0x2F, 0x8000), (0, 0))):
        c.word(leaf + 8 + 8 * i, pivot)
        c.word(leaf + 128 + 8 * i, entry)
    c.word(other + 8, 0x1FFF)
    c.word(other + 128, 0x9000)
    machine = opened(c)
    assert list(walk.maple_tree(machine, tree)) == [(0, 0x10, 0x7000), (0x20, 0x2F, 0x8000), (0x1000, 0x1FFF, 0x9000)]
    assert list(walk.maple_tree(machine, single)) == [(0, 0, 0x4000)]
    c.word(tree + 8, top | 9 << 3 | 2)
    with pytest.raises(KernelError, match="of type 9, which no kernel's tree has"):
        list(walk.maple_tree(opened(c), tree))


def test_per_cpu_copies(opened: Callable[[Scene], Machine]) -> None:
    c = Scene()
    c.symbols = {
        "__cpu_possible_mask": c.put(struct.pack("<Q", 0b101)),
        "nr_cpu_ids": c.put(struct.pack("<Q", 3)),
        "__per_cpu_offset": c.put(struct.pack("<3Q", 0x1000, 0x2000, 0x3000)),
    }
    machine = opened(c)
    assert walk.cpus(machine) == [0, 2]
    assert list(walk.per_cpu(machine, 0x20)) == [(0, 0x1020), (2, 0x3020)]


# Rules


def extension(folder: Path, *lines: str) -> str:
    text = "from vmfilter.extension import KernelError, Machine, walk\n\n\ndef rules(machine: Machine) -> None:\n"
    path = folder / "rules.py"
    path.write_text(text + "".join(f"    {line}\n" for line in lines))
    return str(path)


@pytest.fixture(scope="session")
def vmcore(shared: Shared) -> Path:
    return shared("secrets of extensions", lambda to: Secrets().write(to))


def test_an_extension_erases_bytes(vmcore: Path, run: Run, tmp_path: Path) -> None:
    rules = extension(tmp_path, "machine.erase(machine.symbol('array_var'), 100)")
    ran = run("erase", "--format", "elf", "--extension", rules, vmcore, tmp_path / "dump")
    assert (ran.status, ran.err) == (0, "")
    assert b"SECRET array" not in (tmp_path / "dump").read_bytes()
    assert b"SECRET name" in (tmp_path / "dump").read_bytes()
    assert f"erase {rules} size 100" in run("info", tmp_path / "dump").out


@pytest.mark.parametrize("form", ["elf", "kdump"])
def test_copies_of_a_secret_are_erased_wherever_they_are(run: Run, tmp_path: Path, form: str) -> None:
    """In two frames, across the edge of two, of two chunks, and at the end of memory."""
    c = Scene()
    size = c.s.page
    at = c.s.memory.take(300 * size)
    for place in 100, 5 * size - 7, 127 * size, 128 * size - 5, 256 * size - 31, 300 * size - len(SECRET):
        c.s.memory.write(at + place, SECRET)
    c.symbols["secret"] = c.s.linear(at + 100)
    vmcore = c.write(tmp_path / "vmcore")
    read = f"machine.read(machine.symbol('secret'), {len(SECRET)})"
    rules = extension(tmp_path, f"machine.erase_copies({read})", "machine.erase_copies(bytes(32))")
    for more in [], ["--dedup"] * (form == "kdump"):
        args = ["--force", "-d", 0, "--format", form, *more, "--extension", rules]
        assert run("filter", *args, vmcore, tmp_path / "dump").status == 0
        with open_dump(tmp_path / "dump") as dump:
            memory = dump.read(at, 300 * size)
        assert memory is not None
        assert memory.count(SECRET) == 0
        assert memory.count(b"X" * len(SECRET)) == 6
        assert len(memory) - memory.count(0) == 6 * len(SECRET)


def test_frames_are_kept_and_dropped_whatever_the_level(run: Run, tmp_path: Path) -> None:
    c = Scene()
    user, kernel, poisoned = (c.s.memory.take(2 * c.s.page) for _ in range(3))
    for at in user, kernel, poisoned:
        c.s.memory.write(at, b"x" * 2 * c.s.page)
        c.symbols[f"at_{at:x}"] = c.s.linear(at)
    frames = [at // c.s.page for at in (user, kernel, poisoned)]
    for frame in range(frames[0], frames[0] + 2):
        c.s.put(frame, "lru", mapping=ANONYMOUS)
    c.s.put(frames[2], "hwpoison")
    vmcore = c.write(tmp_path / "vmcore")
    rules = extension(
        tmp_path,
        f"machine.keep_frames({frames[0]})",
        f"machine.drop_frames({frames[1]}, 2)",
        f"machine.keep_frames({frames[1]})",
        f"machine.keep_frames({frames[2]})",
    )
    assert run("filter", "-d", 31, "--extension", rules, vmcore, tmp_path / "dump").status == 0
    with open_dump(tmp_path / "dump") as dump:
        held = [dump.read((frame + i) * c.s.page, c.s.page) is not None for frame in frames for i in range(2)]
    assert held == [True, False, True, False, False, True]


FAILING = {
    "1 / 0": "ZeroDivisionError: division by zero",
    "machine.symbol('nothing')": "there is no symbol 'nothing'",
    "raise SystemExit(3)": "SystemExit: 3",
    "machine.record('s1', 4)": "struct s1 at 0x4 is not in the dump",
    "machine.record('nothing', 4)": "have no structure or union 'nothing'",
    "machine.read(0, 1 << 40)": "1099511627776 bytes at 0x0 are not in the dump",
    "machine.keep_frames(5, 0)": "[0x5, 0x5) is no range",
    "machine.erase_copies(b'short')": "a secret has 16 to 1024 bytes, and not 5",
    "while True: machine.read(machine.symbol('array_var'), 4)": "has read memory 1000 times",
    "[machine.keep_frames(2 * i) for i in range(200)]": "has more than 100 ranges of one kind",
    "[machine.erase_copies(bytes(range(i, i + 20))) for i in range(65)]": "more than 64 secrets to search for",
    "machine.frame(8)": "0x8 is not mapped",
    "machine.keep_frames(4096 / 4096)": "TypeError: 'float' object cannot be interpreted as an integer",
    "machine.erase_copies('a secret that is no bytes')": "TypeError: memoryview: a bytes-like object is required",
    "machine.erase(8, 4)": "4 of 4 bytes at 0x8 are not mapped by the kernel",
    "machine.erase(machine.symbol('array_var'), -4)": "-4 of -4 bytes at",
    "machine.frame_of_page(8)": "0x8 is no struct page",
    "this is no Python": "SyntaxError: invalid syntax",
}


@pytest.mark.parametrize("line", FAILING)
def test_one_that_fails_erases_what_it_had_found_and_others_are_obeyed(
    vmcore: Path, run: Run, tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_module, "_MAX_READS", 1000)
    monkeypatch.setattr(machine_module, "_MAX_PIECES", 100)
    (tmp_path / "good").mkdir()
    good = extension(tmp_path / "good", "machine.erase(machine.symbol('array_var'), 100)")
    private = "machine.erase(machine.symbol('mystruct1'), 8)"
    bad = extension(tmp_path, "machine.drop_frames(0, 1 << 20)", private, line)
    form = ["--format", "elf", "--extension", bad, "--extension", good, vmcore, tmp_path / "dump"]
    ran = run("erase", *form)
    assert (ran.status, (tmp_path / "dump").exists()) == (5, False)
    assert "so not all that it would erase is erased, and no dump is made" in ran.err
    ran = run("filter", *form)
    assert ran.status == 7
    assert f"extension {bad} failed: " in ran.err
    assert FAILING[line] in ran.err
    assert "NOT ALL THAT WAS TO BE ERASED IS" in ran.out
    assert (f"erase {bad} size 8" in run("info", tmp_path / "dump").out) == (line != "this is no Python")
    assert b"SECRET array" not in (tmp_path / "dump").read_bytes()
    assert b"SECRET name" in (tmp_path / "dump").read_bytes()


def test_one_that_only_keeps_and_drops_fails_with_a_warning_and_the_dump_is_made(
    vmcore: Path, real: Callable[[str], Path], run: Run, tmp_path: Path
) -> None:
    path = Path(extension(tmp_path, "machine.drop_frames(0, 1 << 20)", "machine.symbol('nothing')"))
    path.write_text(path.read_text() + "\n\nERASES = False\n")
    for command in "filter", "erase":
        ran = run(command, "--force", "--extension", path, vmcore, tmp_path / "dump")
        assert (ran.status, "NOT ALL" in ran.out) == (0, False)
        assert ran.err.endswith("there is no symbol 'nothing'; so it keeps and drops nothing\n")
    ran = run("filter", "--extension", path, "--extension", "user_stack", real("x86_64-5.10"), tmp_path / "new")
    assert (ran.status, "so extensions keep and drop nothing\n" in ran.err) == (0, True)
    ran = run("filter", "--extension", path, "--extension", "keys", real("x86_64-5.10"), tmp_path / "none")
    assert (ran.status, "so nothing can be erased" in ran.err) == (5, True)
    path.write_text(
        path.read_text().replace(
            "machine.symbol('n", "machine.erase(machine.symbol('array_var'), 8)\n    machine.symbol('n"
        )
    )
    assert run("filter", "--force", "--extension", path, vmcore, tmp_path / "dump").status == NOT_ERASED


def test_what_one_prints_is_not_on_standard_output_where_the_dump_may_go(
    vmcore: Path, run: Run, tmp_path: Path
) -> None:
    ran = run("filter", "--extension", extension(tmp_path, "print('NOISE')"), vmcore, tmp_path / "dump")
    assert ("NOISE" in ran.err, "NOISE" in ran.out) == (True, False)


def test_one_that_is_no_extension(vmcore: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("")
    ran = run("filter", "--extension", tmp_path / "empty.py", vmcore, tmp_path / "dump")
    assert "failed: it defines no function rules()" in ran.err
    ran = run("filter", "--extension", "nothing", vmcore, tmp_path / "none")
    assert (ran.status, "no such file, and none of gpu, keys, user_stack, zfs_arc" in ran.err) == (2, True)


def test_time_is_limited(vmcore: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "_MAX_SECONDS", 0.05)
    rules = extension(tmp_path, "while True: machine.read(machine.symbol('array_var'), 4)")
    assert "it may never end" in run("filter", "--extension", rules, vmcore, tmp_path / "dump").err


def test_an_extension_is_loaded_as_a_program_is(vmcore: Path, tmp_path: Path) -> None:
    path = tmp_path / "rules.py"
    path.write_text("print('loaded from', __file__)\n\ndef rules(machine):\n    pass\n")
    command = [sys.executable, "-m", "vmfilter", "filter", "-q", "--extension", path, vmcore, "-"]
    ran = subprocess.run(command, capture_output=True, check=True)
    assert ran.stderr.decode() == f"loaded from {path}\n"
    assert ran.stdout.startswith(b"makedumpfile\0")  # and not with what the extension prints


def test_the_examples_of_the_document_run(vmcore: Path, run: Run, tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "extensions.md").read_text()
    examples = re.findall(r"^```py\n(.+?)^```", document, re.MULTILINE | re.DOTALL)
    assert len(examples) == 2
    for i, example in enumerate(examples):
        path = tmp_path / f"{i}.py"
        path.write_text(example)
        ran = run("filter", "--force", "--extension", path, vmcore, tmp_path / "dump")
        assert ran.status in (0, NOT_ERASED)  # the synthetic kernel lacks what they look for
        assert "Error" not in ran.err
    for name in SHIPPED:
        assert f"`{name}`" in document


def test_all_shipped_extensions_are_listed() -> None:
    files = {path.stem for path in Path(str(shipped.__file__)).parent.glob("*.py")}
    assert files - {"__init__"} == set(SHIPPED)


# Those that come with vmfilter, on structures made here


def test_keys_of_keyrings_and_copies_of_them_are_nowhere(run: Run, tmp_path: Path) -> None:
    c = Scene()
    t = c.types
    t.struct("rb_node", {"__rb_parent_color": "long", "rb_right": "pointer", "rb_left": "pointer"})
    t.struct("key_type", {"name": "pointer"})
    t.struct("key_payload", {"data": "pointer[4]"})
    t.struct("key", {"serial_node": "rb_node", "type": "pointer", "payload": "key_payload"})
    t.struct("user_key_payload", {"rcu": "list_head", "datalen": "short", "data": "char[0]"})
    user, keyring = (c.put(t.pack("key_type", name=c.put(name))) for name in (b"user\0", b"keyring\0"))
    header = t.pack("user_key_payload", datalen=len(SECRET))[: t.offsets["user_key_payload"]["data"]]
    payload = t.pack("key_payload", data=struct.pack("<Q", c.put(header + SECRET)))
    other = c.put(t.pack("key", type=keyring))
    empty = c.put(t.pack("key", type=user, serial_node=struct.pack("<QQQ", 0, 0, other)))
    c.symbols["key_serial_tree"] = c.put(struct.pack("<Q", c.put(
        t.pack("key", type=user, payload=payload, serial_node=struct.pack("<QQQ", 0, 0, empty))
    )))  # fmt: skip
    c.put(b"a copy: " + SECRET)
    vmcore, dump = c.write(tmp_path / "vmcore"), tmp_path / "dump"
    ran = run("erase", "--format", "elf", "--extension", "keys", vmcore, dump)
    assert (ran.status, ran.err) == (0, "")
    assert (vmcore.read_bytes().count(SECRET), dump.read_bytes().count(SECRET)) == (2, 0)
    assert dump.read_bytes().count(b"X" * len(SECRET)) == 2
    t.struct("page", {"flags": "long", "compound_head": "long", "rest": "char[48]"})
    t.struct("slab", {"flags": "long", "slab_cache": "pointer", "rest": "char[48]"})
    t.struct("kmem_cache", {"list": "list_head"})
    head = c.symbols["slab_caches"] = c.put(bytes(16))
    c.write_at(head, struct.pack("<QQ", head, head))
    c.write_at(user, t.pack("key_type", name=c.put(b"encrypted\0")))
    ran = run("erase", "--force", "--extension", "keys", c.write(vmcore), dump)
    assert ran.status == 5
    assert "1 keys are not erased: the payload of a key at 0x" in ran.err
    assert " is in no slab cache, and no dump is made: mend that rule, or leave it out\n" in ran.err


@pytest.mark.parametrize("form", ["", "fred_frame", "not there", "no sp"])
def test_user_stack_keeps_from_the_stack_pointer_up_or_says_that_it_found_none(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """The process's page tables are the kernel's, so its areas are where the kernel has memory."""
    c = Scene()
    t, size = c.types, c.s.page
    t.struct("pt_regs", {"ax": "long", "regs" if form == "no sp" else "sp": "long", "ss": "long"})
    if form == "fred_frame":
        t.struct("fred_frame", {"regs": "pt_regs", "info": "long[2]"})
    t.struct("vm_area_struct", {"vm_start": "long", "vm_end": "long", "vm_next": "pointer"})
    t.struct("mm_struct", {"pgd": "pointer", "mmap": "pointer"})
    t.struct("signal_struct", {"thread_head": "list_head"})
    members = {"mm": "pointer", "signal": "pointer", "stack": "pointer", "pid": "u32", "thread_node": "list_head"}
    t.struct("task_struct", members)
    at = c.s.memory.take(4 * size)
    c.s.memory.write(at, b"x" * 4 * size)
    for frame in range(at // size, at // size + 4):
        c.s.put(frame, "lru", mapping=ANONYMOUS)
    start, top = c.s.linear(at), t.sizes["fred_frame" if form == "fred_frame" else "pt_regs"]
    stack = c.put(bytes(2 * size))
    registers = b"" if form == "no sp" else t.pack("pt_regs", sp=0 if form == "not there" else start + size + 8)
    c.write_at(stack + 2 * size - top, registers)
    area = c.put(t.pack("vm_area_struct", vm_start=start, vm_end=start + 4 * size))
    mm = c.put(t.pack("mm_struct", pgd=c.s.linear(c.s.tables.root), mmap=area))
    signal = c.put(bytes(16))
    task = c.put(t.pack("task_struct", mm=mm, signal=signal, stack=stack, pid=7))
    link = task + t.offsets["task_struct"]["thread_node"]
    c.write_at(signal, struct.pack("<QQ", link, link))
    c.write_at(link, struct.pack("<QQ", signal, signal))
    found = Task(task, 7, "init", "R", 0, True, stack, 0)
    for name, value in (("panic_cpu", 0), ("current", found), ("stack_size", 2 * size)):
        monkeypatch.setattr(user_stack, name, lambda *_, value=value: value)
    ran = run("filter", "-d", 31, "--extension", "user_stack", c.write(tmp_path / "vmcore"), tmp_path / "dump")
    with open_dump(tmp_path / "dump") as dump:
        held = [dump.read(at + i * size, size) is not None for i in range(4)]
    said = {
        "not there": "the memory of PID 7 has no stack at its stack pointer, so none is kept; report it\n",
        "no sp": "is not known to vmfilter; use crash; so it keeps and drops nothing\n",
    }
    assert (ran.status, held) == (0, [False, *[form not in said] * 3])
    assert ran.err.endswith(said.get(form, ""))
    assert bool(ran.err) == (form in said)
    monkeypatch.setattr(user_stack, "current", lambda *_: None)
    ran = run("filter", "--force", "--extension", "user_stack", tmp_path / "vmcore", tmp_path / "dump")
    assert "the task that panicked is not in the dump, so no user stack is kept" in ran.err


class WithModule(Scene):
    """A machine on which a module is loaded, with symbols.

    Attributes:
        frames: page frames of buffers.

    """

    def __init__(self, module: str) -> None:
        super().__init__()
        self._module = module
        t = self.types
        t.struct("module_memory", {"base": "pointer", "size": "u32"})
        members = {"symtab": "pointer", "num_symtab": "u32", "strtab": "pointer", "typetab": "pointer"}
        t.struct("mod_kallsyms", members)
        members = {"state": "u32", "list": "list_head", "name": "char[56]", "mem": "module_memory[7]"}
        t.struct("module", {**members, "kallsyms": "pointer"})
        self.frames: list[int] = []

    def load(self, **symbols: int) -> None:
        """Load the module, with these symbols."""
        names = [*symbols]
        texts = b"\0" + b"".join(name.encode() + b"\0" for name in names)
        entries = bytes(24)
        for name in names:
            entries += struct.pack("<IBBHQQ", texts.index(name.encode()), 0, 0, 1, symbols[name], 8)
        text = entries + b"?" + b"d" * len(names) + texts
        base = self.put(text)
        at = base + len(entries)
        tables = {"symtab": base, "num_symtab": len(names) + 1, "typetab": at, "strtab": at + 1 + len(names)}
        kallsyms = self.put(self.types.pack("mod_kallsyms", **tables))
        memory = self.types.pack("module_memory", base=base, size=len(text))
        one = self.put(self.types.pack("module", name=self._module, mem=memory, kallsyms=kallsyms))
        link = one + self.types.offsets["module"]["list"]
        head = self.symbols["modules"] = self.put(struct.pack("<QQ", link, link))
        self.write_at(link, struct.pack("<QQ", head, head))

    def page(self, count: int = 1) -> int:
        """Return the address of the struct page of the first of some frames of data, which are to be dropped."""
        at = self.s.memory.take(count * self.s.page)
        self.s.memory.write(at, b"buffer." * (count * self.s.page // 7))
        frame = at // self.s.page
        self.frames += range(frame, frame + count)
        return self.s.address(frame)


def missing(run: Run, tmp_path: Path, scene: Scene, name: str) -> list[int]:
    """Return the page frames that are missing from a dump made with an extension, and not from one without it."""
    vmcore = scene.write(tmp_path / "vmcore")
    held = []
    for options in [], ["--extension", name]:
        ran = run("filter", "--force", "-d", 0, *options, vmcore, tmp_path / "dump")
        assert (ran.status, "changes nothing" in ran.err) == (0, False), ran.err
        with open_dump(tmp_path / "dump") as dump:
            size = scene.s.page
            held.append({at // size for start, end in dump.covered(0, dump.end) for at in range(start, end, size)})
    return sorted(held[0] - held[1])


def test_keys_of_keyrings_are_erased_where_a_module_has_no_types(run: Run, tmp_path: Path) -> None:
    c = WithModule("dm_crypt")
    t = c.types
    t.struct("rb_node", {"__rb_parent_color": "long", "rb_right": "pointer", "rb_left": "pointer"})
    c.symbols["key_serial_tree"] = c.put(bytes(8))
    t.struct("key", {"serial_node": "rb_node"})
    c.load()
    ran = run("filter", "--extension", "keys", c.write(tmp_path / "vmcore"), tmp_path / "dump")
    assert ran.status == NOT_ERASED
    assert "extension keys: keys of dm-crypt are not erased: " in ran.err
    assert "failed" not in ran.err


@pytest.mark.parametrize("marks", [False, True], ids=["before 6.11", "since 6.11"])
def test_gpu_drops_the_pages_of_buffers(run: Run, tmp_path: Path, marks: bool) -> None:
    c = WithModule("ttm")
    t = c.types
    t.struct("ttm_global", {"dummy_read_page": "pointer", "device_list": "list_head"})
    t.struct("ttm_device", {"device_list": "list_head", "man_drv": "pointer[9]"})
    t.struct("ttm_resource_manager", {"size": "long", "lru": "list_head[4]"})
    t.struct("ttm_lru_item", {"link": "list_head", "type": "u32"})
    t.struct("ttm_resource", {"start": "long", "bo": "pointer", "lru": "ttm_lru_item" if marks else "list_head"})
    t.struct("ttm_buffer_object", {"base": "char[64]", "ttm": "pointer"})
    t.struct("ttm_tt", {"pages": "pointer", "num_pages": "u32"})
    pages = c.put(struct.pack("<3Q", c.page(), 0, c.page()))
    buffer = c.put(t.pack("ttm_buffer_object", ttm=c.put(t.pack("ttm_tt", pages=pages, num_pages=3))))
    empty = c.put(t.pack("ttm_buffer_object"))
    links = []
    for bo in buffer, empty, *([0xDEAD] if marks else []):  # the last marks a place, and is no resource
        resource = c.put(t.pack("ttm_resource", bo=bo))
        links.append(resource + t.offsets["ttm_resource"]["lru"])
        if marks:
            c.write_at(links[-1] + 16, struct.pack("<I", bo == 0xDEAD))
    manager = c.put(t.pack("ttm_resource_manager"))
    heads = [manager + t.offsets["ttm_resource_manager"]["lru"] + 16 * i for i in range(4)]
    for head in heads:
        c.write_at(head, struct.pack("<QQ", head, head))
    for at, to in zip([heads[2], *links], [*links, heads[2]], strict=True):
        c.word(at, to)
    device = c.put(t.pack("ttm_device", man_drv=struct.pack("<QQ", 0, manager)))
    first = c.put(struct.pack("<QQQ", 0, device, device))
    c.write_at(device, struct.pack("<QQ", first + 8, first + 8))
    c.load(ttm_glob=first)
    assert missing(run, tmp_path, c, "gpu") == c.frames


def test_zfs_arc_drops_the_pages_of_buffers(run: Run, tmp_path: Path) -> None:
    c = WithModule("zfs")
    t = c.types
    t.struct("buf_hash_table", {"ht_mask": "u64", "ht_table": "pointer"})
    t.struct("l1hdr", {"b_bufcnt": "u32", "b_pabd": "pointer"})
    t.struct("arc_buf_hdr", {"b_dva": "u64", "b_hash_next": "pointer", "b_l1hdr": "l1hdr"})
    t.struct("abd_scatter", {"abd_offset": "u32", "abd_nents": "u32", "abd_sgl": "pointer"})
    t.struct("abd_linear", {"abd_buf": "pointer"})
    t.struct("abd_u", {"abd_scatter": "abd_scatter", "abd_linear": "abd_linear"}, UNION)
    t.struct("abd", {"abd_flags": "u32", "abd_size": "u32", "abd_u": "abd_u"})
    t.struct("scatterlist", {"page_link": "long", "offset": "u32", "length": "u32"})
    size = c.s.page
    more = c.put(t.pack("scatterlist", page_link=c.page(2) | 2, length=2 * size))
    entries = t.pack("scatterlist", page_link=c.page(), length=size) + t.pack("scatterlist", page_link=more | 1)
    scatter = t.pack("abd_scatter", abd_nents=2, abd_sgl=c.put(entries))
    scattered = c.put(t.pack("abd", abd_size=3 * size, abd_u=scatter))
    linear = c.s.linear((c.page(3), c.frames[-3] * size)[1])
    c.frames = [frame for frame in c.frames if frame != c.frames[-3]]  # only a part of it is the buffer's
    flat = t.pack("abd", abd_flags=1, abd_size=3 * size - 512, abd_u=struct.pack("<Q", linear + 512))
    headers = [c.put(t.pack("arc_buf_hdr", b_l1hdr=t.pack("l1hdr", b_pabd=at))) for at in (scattered, c.put(flat), 0)]
    c.word(headers[0] + 8, headers[1])
    c.load(
        buf_hash_table=c.put(
            t.pack("buf_hash_table", ht_mask=1, ht_table=c.put(struct.pack("<QQ", headers[2], headers[0])))
        )
    )
    assert missing(run, tmp_path, c, "zfs_arc") == c.frames
    c.word(more, more | 1)
    ran = run("erase", "--force", "--extension", "zfs_arc", c.write(tmp_path / "vmcore"), tmp_path / "dump")
    assert ran.status == 0
    assert f"the scatterlist at {more:#x} leads to a chain of chains; so it keeps and drops nothing" in ran.err


@pytest.mark.parametrize("name", ["gpu", "zfs_arc"])
def test_without_the_module_nothing_is_dropped(run: Run, tmp_path: Path, name: str) -> None:
    c = WithModule("another")
    c.load()
    assert missing(run, tmp_path, c, name) == []
