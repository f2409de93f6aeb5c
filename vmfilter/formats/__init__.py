"""File formats and codecs that readers and writers share. Nothing here does I/O."""
