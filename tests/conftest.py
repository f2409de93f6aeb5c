"""What tests share: the real vmcores of testdata/, unpacked once a session."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import Ran, Run
from judges import VMCORES
from unpack import unpack_sparse

from vmfilter.cli import main

TESTDATA = Path(__file__).parent.parent / "testdata"


@pytest.fixture(autouse=True)
def _own_process() -> Iterator[None]:
    """What the command's main() sets for its process is put back."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(n) for n in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)
    gc.enable()


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Path of a real vmcore of testdata/, by name; NAME.kpageflags lies beside it."""
    folder = tmp_path_factory.mktemp("vmcores")

    def get(name: str) -> Path:
        target = folder / name
        if not target.exists():
            unpack_sparse(TESTDATA / f"{name}.vmcore.zst", target)
            unpack_sparse(TESTDATA / f"{name}.kpageflags.zst", folder / f"{name}.kpageflags")
        return target

    return get


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run vmfilter with arguments, in this process."""

    def call(*arguments: object) -> Ran:
        capsys.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as e:  # argparse
            status = e.code if isinstance(e.code, int) else 1
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Path of a file of the lab's, unpacked once a session."""
    folder = tmp_path_factory.mktemp("lab")

    def get(name: str) -> Path:
        target = folder / name
        return target if target.exists() else unpack_sparse(VMCORES / f"{name}.zst", target)

    return get
