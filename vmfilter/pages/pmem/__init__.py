"""Persistent memory: which of its frames hold struct pages (metadata), and which hold files (user data)."""

from vmfilter.pages.pmem.pmem import NO_PMEM, Pmem, find_pmem

__all__ = ["NO_PMEM", "Pmem", "find_pmem"]
