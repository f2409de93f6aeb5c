"""ppc64, little-endian. Page table entries are big-endian all the same."""

from vmfilter.arch.ppc64 import arch

ARCH = arch("ppc64le", little_endian=True)
