"""Numbers about memory: what it was used for, and what differs between two dumps. Nothing here writes a dump."""
