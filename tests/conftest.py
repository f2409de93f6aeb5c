"""Fixtures for all tests: files made once and shared by all workers, such as the real vmcores of testdata/."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command import Ran, Run
from files import TESTDATA, Shared
from judges import VMCORES
from skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401 - pytest calls them
from unpack import unpack_sparse

from vmfilter.cli import main, start


@pytest.fixture(autouse=True)
def _own_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore what the command's main() sets for its process, and keep the garbage collector on, as in a program."""
    monkeypatch.setattr(start, "gc", SimpleNamespace(disable=lambda: None, freeze=lambda: None))
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(n) for n in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Path of a file or folder that is made once for all workers, given its name and its maker; tests only read it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def get(name: str, make: Callable[[Path], object]) -> Path:
        target, unfinished = folder / name, folder / f"{name}.unfinished"
        with open(folder / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                make(unfinished)
                unfinished.rename(target)
        return target

    return get


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run vmfilter with arguments, in this process."""

    def call(*arguments: object) -> Ran:
        capsys.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as e:  # raised by argparse
            status = e.code if isinstance(e.code, int) else 1
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def s3() -> Iterator[Any]:
    """The bucket "dumps" of moto's server, as a file system of fsspec."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as m:
        m.setenv("AWS_ACCESS_KEY_ID", "test")
        m.setenv("AWS_SECRET_ACCESS_KEY", "test")
        m.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        store = fsspec.filesystem("s3")
        store.mkdir("dumps")
        yield store
    server.stop()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the tests that need a lab if there is none."""
    if item.get_closest_marker("lab") and not VMCORES.is_dir():
        pytest.skip(f"no vmcores in {VMCORES}")


@pytest.fixture(scope="session")
def lab(shared: Shared) -> Callable[[str], Path]:
    """Path of a file of the lab, unpacked."""
    return lambda name: shared(f"lab-{name}", lambda to: unpack_sparse(VMCORES / f"{name}.zst", to))


@pytest.fixture(scope="session")
def real(shared: Shared) -> Callable[[str], Path]:
    """Path of a real vmcore of testdata/, given its name; NAME.kpageflags is beside it."""

    def get(name: str) -> Path:
        shared(f"{name}.kpageflags", lambda to: unpack_sparse(TESTDATA / f"{name}.kpageflags.zst", to))
        return shared(name, lambda to: unpack_sparse(TESTDATA / f"{name}.vmcore.zst", to))

    return get
