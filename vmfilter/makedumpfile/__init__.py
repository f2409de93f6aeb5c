"""makedumpfile's command line, messages and exit statuses over vmfilter, for scripts that know one command.

docs/makedumpfile.md says of each option whether it works. What is here is makedumpfile 1.7.9's interface: its man page,
and the words that it prints.
"""

VERSION = "1.7.9"
"""The makedumpfile whose interface this is."""
