"""kdump-compressed files: a bitmap of the kept pages, their descriptors, and the pages, compressed one by one."""
