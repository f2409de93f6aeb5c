"""Run the vmfilter command as python -m vmfilter."""

import sys

from vmfilter.cli import main

sys.exit(main())
