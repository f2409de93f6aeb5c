"""makedumpfile's command line, messages and exit statuses, for scripts that run makedumpfile.

The interface is that of makedumpfile 1.7.9: its man page, and the messages it prints. docs/makedumpfile.md lists which
options work.
"""

VERSION = "1.7.9"
"""Version of makedumpfile whose interface this is."""
