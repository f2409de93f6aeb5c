"""ppc64, little-endian; page table entries are big-endian here too."""

from vmfilter.arch.ppc64 import arch
from vmfilter.formats.abi import LE64

ARCH = arch("ppc64le", LE64)
