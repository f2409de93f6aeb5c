"""New dumps: a writer decides what is written at which offset, a transport where the bytes go."""
