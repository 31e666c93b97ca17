"""``python -m kmemd``."""

import sys

from kmemd.cli import main

sys.exit(main())
