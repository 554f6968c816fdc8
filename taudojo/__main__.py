"""`python -m taudojo` is the command `taudojo`."""

import sys

from taudojo.cli import main

sys.exit(main())
