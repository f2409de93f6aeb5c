"""ppc64, little-endian. Page table entries are big-endian all the same."""

from vmfilter.arch.ppc64 import arch
from vmfilter.formats.abi import LE64

ARCH = arch("ppc64le", LE64)
