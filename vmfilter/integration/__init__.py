"""Installs what runs vmfilter in the capture kernel.

root/ contains the files at their paths in the system; docs/guide-distribution.md says what each is for.
"""
