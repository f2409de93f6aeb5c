"""New dumps: a format (what is written at which offset) over a transport (what that means)."""
