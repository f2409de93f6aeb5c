"""The crashed kernel's log (dmesg), in each of the three forms that it has had."""

from vmfilter.kernel.log.kernel_log import KernelLog
from vmfilter.kernel.log.record import Record

__all__ = ["KernelLog", "Record"]
