"""In CI (CI=true), a skipped test fails unless it is listed here with the reason.

The repository has no room for the lab. Tests marked lab are skipped unless one is beside the checkout. Some also need a
kernel's debug information. It takes 350 MB, and mirrors keep only the newest, so a lab may lack it.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from judges import NOT_FETCHED, VMCORES

ON_STORES = (
    "test_a_dump_is_the_same_from_and_to_a_store",
    "test_a_dump_is_read_by_ranges",
    "test_a_large_dump_goes_to_a_store_in_parts",
    "test_nothing_half_written_stays",
    "test_an_object_is_replaced_only_if_asked",
    "test_every_command_takes_urls",
    "test_a_batch_reads_and_writes_a_store",
    "test_one_batch_at_a_time_writes_to_a_store",
)
MAY_BE_SKIPPED = {
    "test_bad_input.py::test_a_file_without_permission_is_refused": "CI runs as root, who may read every file",
    "test_kcore.py::test_the_running_system": "containers hide /proc/kcore; tests/crash reads it in a real kernel",
    "test_pictures.py::test_the_page_in_a_browser": "a browser is larger than all else that tests need",
    "test_integration_suse.py::test_kdump_save_saves_the_log_and_the_dump": "SUSE's kdump is in no Debian package",
    "test_lab_types.py::test_vmcoreinfo_from_vmlinux_is_makedumpfiles": "only 1.7.9 knows all that is compared",
    "test_sftp.py::test_a_dump_is_the_same_by_sftp": "not every machine should get an SSH server",
    "test_sftp.py::test_nothing_half_written_stays_on_the_server": "as the one above",
    "test_sftp.py::test_one_batch_at_a_time_writes_to_a_server": "as the one above",
    **{f"test_stores.py::{name}": "on abfs:// alone: Azurite needs Node.js, and 180 MB" for name in ON_STORES},
    "test_integration_udev.py::test_the_rules_are_valid": "Debian 12 has systemd 252, udevadm verify came with 254",
}


def _judge(nodeid: str, report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure."""
    name = nodeid.rpartition("/")[2].partition("[")[0]
    if not report.skipped or hasattr(report, "wasxfail") or os.environ.get("CI") != "true" or name in MAY_BE_SKIPPED:
        return
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    if NOT_FETCHED in reason:
        return
    report.outcome = "failed"
    report.longrepr = f"{nodeid}: {reason}: no test may be skipped in CI that tests/support/skips.py does not list"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge each phase of a test."""
    report = yield
    if VMCORES.is_dir() or not item.get_closest_marker("lab"):
        _judge(item.nodeid, report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Judge each file; a skip at module level skips all its tests."""
    report = yield
    _judge(collector.nodeid, report)
    return report
