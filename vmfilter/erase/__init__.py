"""Erasing: bytes of the crashed kernel's memory that a new dump must not contain."""
