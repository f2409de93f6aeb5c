"""Classify a vmcore one or more times; print the seconds of each pass and the number of pages.

classify.py VMCORE [PASSES]
"""

import sys

from vmfilter import filter_dump
from vmfilter.frames.classes import PageClass

for _ in range(int(sys.argv[2]) if len(sys.argv) > 2 else 1):
    found = filter_dump(sys.argv[1], "nowhere", level=31, compress="none", dry_run=True)
    print(found.seconds["classify"], sum(found.classes.values()) - found.classes[PageClass.HOLE])
