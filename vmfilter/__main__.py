"""python -m vmfilter is the vmfilter command."""

import sys

from vmfilter.cli import main

sys.exit(main())
