"""Bytes on disk, without any I/O: what the reader and the writer share."""
