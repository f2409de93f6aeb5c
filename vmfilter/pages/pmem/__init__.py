"""Persistent memory: which of its page frames contain struct pages (metadata), and which contain user data."""

from vmfilter.pages.pmem.pmem import NO_PMEM, Pmem, find_pmem

__all__ = ["NO_PMEM", "Pmem", "find_pmem"]
