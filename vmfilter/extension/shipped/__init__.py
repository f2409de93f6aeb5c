"""Extensions that come with vmfilter: `--extension NAME` runs one. docs/extensions.md says what they do."""

SHIPPED = ("gpu", "keys", "user_stack", "zfs_arc")
"""Their names: in an initramfs, no folder has their files."""
