"""What a command prints, and what signals do to it: for every command line."""
