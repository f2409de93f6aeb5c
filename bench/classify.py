"""Classify a vmcore; print the seconds that it took, and how many pages: `classify.py VMCORE`."""

import sys

from vmfilter import filter_dump
from vmfilter.levels import PageClass

found = filter_dump(sys.argv[1], "nowhere", level=31, compress="none", dry_run=True)
print(found.seconds["classify"], sum(found.classes.values()) - found.classes[PageClass.HOLE])
