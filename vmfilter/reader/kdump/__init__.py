"""kdump-compressed files: excluded pages are gone, the others lie compressed behind a bitmap."""
