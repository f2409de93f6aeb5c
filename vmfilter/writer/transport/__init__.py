"""Where the bytes of a new dump go: a file that appears whole or not at all, a stream, a disk, or nowhere."""
