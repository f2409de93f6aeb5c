"""New dumps: a format says what is written at which offset, a transport what that means."""
