"""What a distribution installs so that vmfilter runs in the capture kernel, and how it is installed.

root/ holds the files as they lie in a system; docs/kdump.md says what each is for.
"""
