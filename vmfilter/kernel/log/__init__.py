"""The crashed kernel's log (dmesg), in all three formats it has had."""

from vmfilter.kernel.log.kernel_log import KernelLog
from vmfilter.kernel.log.record import Record

__all__ = ["KernelLog", "Record"]
