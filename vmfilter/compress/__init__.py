"""Kept pages to compressed blocks, on several threads, in order."""
