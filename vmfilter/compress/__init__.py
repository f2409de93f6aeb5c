"""Kept pages to compressed blocks, by several threads, in order."""
