"""A test that is skipped in CI (CI=true) fails there, unless it is listed here with the reason."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

MAY_BE_SKIPPED = {
    "test_bad_input.py::test_a_file_without_permission_is_refused": "CI runs as root, who may read every file",
    "test_kcore.py::test_the_running_system": "containers hide /proc/kcore; tests/crash reads it in a real kernel",
    "test_integration_udev.py::test_it_is_a_rule_for_udev": "udevadm verify came with systemd 254, after Debian 12's",
}


def _judge(nodeid: str, report: pytest.TestReport | pytest.CollectReport) -> None:
    """Make a skip a failure."""
    name = nodeid.rpartition("/")[2].partition("[")[0]
    if not report.skipped or hasattr(report, "wasxfail") or os.environ.get("CI") != "true" or name in MAY_BE_SKIPPED:
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"{nodeid}: {reason}: no test may be skipped in CI that tests/support/skips.py does not list"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge each phase of a test."""
    report = yield
    _judge(item.nodeid, report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Judge each file, which may skip all that is in it."""
    report = yield
    _judge(collector.nodeid, report)
    return report
